// SPDX-License-Identifier: MIT
#include "pace.h"

#include <algorithm>
#include <utility>

#include "frame.h"

namespace ucm::compress {
namespace {

constexpr double kLeastRead = 8 << 20, kLeastWhole = 64 << 20;  // bytes of a measurement
constexpr double kLongest = 256 << 20;                          // raw bytes of a period
constexpr double kLeastCoded = 8 << 20, kMostCoded = 64 << 20;  // of a ratio
constexpr uint64_t kSampleEvery = 127;  // dumps; a prime: no layer of the model is left out
constexpr double kRest = 16;            // bytes between two, for one that is read alone
constexpr int64_t kHoldNs = 50000000;   // at most: others wait for what has come
constexpr double kBetter = 0.9;         // another mode has to be, of what there is
constexpr double kSmallFrom = 3, kSmallUntil = 2;  // reading, in times of what small decodes
constexpr double kSmallStored = 0.993;             // of fast
constexpr uint64_t kNoPeriod = UINT64_MAX;

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

void Ratio::add(Mode mode, uint64_t raw_bytes, uint64_t frame_bytes) {
    if (raw > kMostCoded) {
        raw /= 2;
        frames /= 2;
    }
    raw += double(raw_bytes);
    frames += double(frame_bytes) / (mode == Mode::kSmall ? kSmallStored : 1);
}

void Pace::set_decoders(const double (&decode)[kModes], double threads) {
    std::copy(decode, decode + kModes, costs_.mode_decode);
    costs_.threads = threads;
}

Mode Pace::next_dump() {
    const Mode now = mode();
    if (!automatic_ || now != Mode::kRaw) return now;
    const uint64_t before = dumps_.fetch_add(1, std::memory_order_relaxed);
    return before % kSampleEvery == 0 ? Mode::kFast : now;
}

// The first period touches memory that nobody has touched yet.
bool Pace::wants_read() const {
    return !first_ && rest_ <= 0 && read_bytes_ < kLeastRead;
}

uint64_t Pace::begin(int64_t now_ns) {
    if (!automatic_) return 0;
    std::lock_guard<std::mutex> hold(mutex_);
    if (under_way_ == 0 || (!open_ && now_ns >= shut_until_ns())) start(now_ns);
    under_way_++;
    below_ += open_;
    return open_ ? period_ : kNoPeriod;
}

void Pace::start(int64_t now_ns) {
    open_ = true;
    period_++;
    below_ = 0;
    since_ns_ = busy_since_ns_ = now_ns;
    read_ = raw_ = frames_ = decode_ = busy_ns_ = 0;
    held_ = holds_ = wants_read();
    if (holds_) held_until_ns_.store(now_ns + kHoldNs, std::memory_order_release);
}

// What has come by now took so long. Parts of others may have come as well: in doubt it is slow.
void Pace::release(int64_t now_ns) {
    if (read_ > 0) read_ns_ += double(now_ns - since_ns_);
    read_bytes_ += read_;
    holds_ = false;
    held_until_ns_.store(0, std::memory_order_release);
}

void Pace::read(uint64_t period, uint64_t bytes, int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (period != period_) return;
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
    if (!is_raw) loaded_.add(as, raw, frame);
    raw_ += double(raw);
    frames_ += double(frame);
    decode_ += double(raw) * costs_.mode_decode[int(as)];
}

void Pace::end(int64_t now_ns) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    if (--under_way_ == 0) shut_until_ns_.store(0, std::memory_order_release);
    if (!open_ || (under_way_ > 0 && raw_ < kLongest)) return;
    open_ = false;
    finish(now_ns);
    if (under_way_ > 0 && wants_read())
        shut_until_ns_.store(now_ns + kHoldNs, std::memory_order_release);
}

void Pace::finish(int64_t now_ns) {
    if (holds_) release(now_ns);
    if (raw_ == 0) return;  // nothing was found, or the store below was busy
    const bool was_first = std::exchange(first_, false);
    if (held_ || was_first) return;
    if (decoding_ > 0) busy_ns_ += double(now_ns - busy_since_ns_);
    rest_ -= raw_;
    if (rest_ > 0 || read_bytes_ < kLeastRead) return;
    whole_ns_ += double(now_ns - since_ns_);
    whole_raw_ += raw_;
    whole_frames_ += frames_;
    whole_decode_ += decode_;
    whole_busy_ns_ += busy_ns_;
    if (whole_raw_ >= kLeastWhole) judge();
}

void Pace::coded(Mode mode, uint64_t raw, uint64_t frame) {
    if (!automatic_ || mode == Mode::kRaw) return;
    std::lock_guard<std::mutex> hold(mutex_);
    dumped_.add(mode, raw, frame);
}

void Pace::judge() {
    costs_.read = read_ns_ / read_bytes_;
    costs_.whole = whole_ns_ / whole_raw_;
    costs_.busy = whole_busy_ns_ / whole_raw_;
    costs_.stored = whole_frames_ / whole_raw_;
    costs_.decode = whole_decode_ / whole_raw_;
    const Mode now = mode();
    // Of what was never dumped by this process, loads tell. Raw frames tell nothing.
    const Ratio &coded = dumped_.raw >= kLeastCoded ? dumped_ : loaded_;
    const bool known = coded.raw >= kLeastCoded;
    const double fast = known ? coded.frames / coded.raw : 1;
    costs_.mode_stored[int(Mode::kRaw)] = 1;
    costs_.mode_stored[int(Mode::kFast)] = fast;
    costs_.mode_stored[int(Mode::kSmall)] = fast * kSmallStored;
    const Mode next = known ? mode_for(now, costs_) : now;
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
