// SPDX-License-Identifier: MIT
#include "pace.h"

#include <algorithm>

#include "frame.h"

namespace ucm::compress {
namespace {

constexpr double kLeastRead = 8 << 20, kLeastWhole = 64 << 20;  // bytes of a measurement
constexpr double kRest = 16;                       // bytes between two, for one that is read alone
constexpr int64_t kHoldNs = 50000000;              // at most: others wait for what has come
constexpr double kBetter = 0.9;                    // another mode has to be, of what there is
constexpr double kSmallFrom = 3, kSmallUntil = 2;  // reading, in times of what small decodes
constexpr double kSmallStored = 0.993;             // of fast

const char *name_of(Mode mode) {
    return mode == Mode::kRaw ? "raw" : mode == Mode::kSmall ? "small" : "fast";
}

}  // namespace

double Costs::reading() const {
    return std::min(std::max(read * stored, whole - busy), whole);
}

double Costs::expected(Mode mode) const {
    const int m = int(mode);
    const double added = (whole - reading()) * mode_decode[m] / decode;
    return std::max(reading() * mode_stored[m] / stored + added, mode_decode[m] / threads);
}

Mode mode_for(Mode now, const Costs &costs) {
    const double fast = costs.expected(Mode::kFast), small = costs.expected(Mode::kSmall);
    const double raw = costs.expected(Mode::kRaw), coded = std::min(fast, small);
    if (now == Mode::kRaw ? coded > raw * kBetter : raw < coded * kBetter) return Mode::kRaw;
    if (small < fast * (now == Mode::kSmall ? 1 : kBetter)) return Mode::kSmall;
    // Small saves little: only what waits for the store below has the time.
    const double times = costs.reading() * costs.threads / costs.mode_decode[int(Mode::kSmall)];
    return times > (now == Mode::kSmall ? kSmallUntil : kSmallFrom) ? Mode::kSmall : Mode::kFast;
}

void Pace::set_decoders(const double (&decode)[kModes], double threads) {
    std::copy(decode, decode + kModes, costs_.mode_decode);
    costs_.threads = threads;
}

void Pace::begin(int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (under_way_ == 0) {
        since_ns_ = now_ns;
        read_ = raw_ = frames_ = decode_ = busy_ns_ = 0;
        // The first one touches memory that nobody has touched yet.
        held_ = holds_ = periods_++ > 0 && rest_ <= 0 && read_bytes_ < kLeastRead;
        if (holds_) held_until_ns_.store(now_ns + kHoldNs, std::memory_order_release);
    }
    under_way_++;
    below_++;
}

// What has come by now took so long. Parts of others may have come as well: in doubt it is slow.
void Pace::release(int64_t now_ns) {
    read_ns_ += double(now_ns - since_ns_);
    read_bytes_ += read_;
    holds_ = false;
    held_until_ns_.store(0, std::memory_order_release);
}

void Pace::read(uint64_t bytes, int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    below_--;
    read_ += double(bytes);
    if (holds_ && (below_ == 0 || now_ns >= held_until_ns())) release(now_ns);
}

void Pace::decoding(int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (decoding_++ == 0) busy_since_ns_ = now_ns;
}

void Pace::decoded(uint64_t raw, uint64_t frame, int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (--decoding_ == 0) busy_ns_ += double(now_ns - busy_since_ns_);
    if (raw == 0) return;
    const bool is_raw = frame >= raw + kTrailerBytes;
    const Mode as = is_raw ? Mode::kRaw : mode() == Mode::kSmall ? Mode::kSmall : Mode::kFast;
    raw_ += double(raw);
    frames_ += double(frame);
    decode_ += double(raw) * costs_.mode_decode[int(as)];
}

void Pace::end(int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (--under_way_ > 0) return;
    if (holds_) release(now_ns);
    if (held_ || periods_ == 1) return;
    rest_ -= raw_;
    if (rest_ > 0 || read_bytes_ < kLeastRead) return;
    whole_ns_ += double(now_ns - since_ns_);
    whole_raw_ += raw_;
    whole_frames_ += frames_;
    whole_decode_ += decode_;
    whole_busy_ns_ += busy_ns_;
    if (whole_raw_ >= kLeastWhole) judge();
}

void Pace::coded(uint64_t raw, uint64_t frame) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (mode() == Mode::kRaw) return;
    coded_raw_ += double(raw);
    coded_frames_ += double(frame);
}

void Pace::judge() {
    costs_.read = read_ns_ / read_bytes_;
    costs_.whole = whole_ns_ / whole_raw_;
    costs_.busy = whole_busy_ns_ / whole_raw_;
    costs_.stored = whole_frames_ / whole_raw_;
    costs_.decode = whole_decode_ / whole_raw_;
    const Mode now = mode();
    // Of what was never dumped by this process, loads tell.
    const double coded = coded_raw_ > 0 ? coded_frames_ / coded_raw_ : costs_.stored;
    costs_.mode_stored[int(Mode::kRaw)] = 1;
    costs_.mode_stored[int(Mode::kFast)] = now == Mode::kSmall ? coded / kSmallStored : coded;
    costs_.mode_stored[int(Mode::kSmall)] = now == Mode::kSmall ? coded : coded * kSmallStored;
    const Mode next = mode_for(now, costs_);
    // Two in a row have to say so: the second is made at once.
    rest_ = next == now ? kRest * read_bytes_ : 0;
    read_ns_ = read_bytes_ = 0;
    whole_ns_ = whole_raw_ = whole_frames_ = whole_decode_ = whole_busy_ns_ = 0;
    const bool sure = next == judged_;
    judged_ = next;
    if (next == now || !sure) return;
    mode_.store(next, std::memory_order_relaxed);
    log_.write(UCM_LOG_INFO,
               "compress_codec: auto codes %s from now on: loads take %.3f ns a raw byte, reading "
               "alone %.3f a stored one; expected are raw %.3f, fast %.3f, small %.3f",
               name_of(next), costs_.whole, costs_.read, costs_.expected(Mode::kRaw),
               costs_.expected(Mode::kFast), costs_.expected(Mode::kSmall));
}

}  // namespace ucm::compress
