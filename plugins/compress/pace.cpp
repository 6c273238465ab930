// SPDX-License-Identifier: MIT
#include "pace.h"

#include <algorithm>

#include "clock.h"

namespace ucm::compress {
namespace {

constexpr uint64_t kJudgedBytes = 64ull << 20;      // moved in one direction, between two decisions
constexpr double kRawFrom = 1.25, kRawUntil = 1.0;  // of the decoder's speed
constexpr double kSmallFrom = 1.0 / 3, kSmallUntil = 0.5;  // likewise, of small's

const char *name_of(Mode mode) {
    return mode == Mode::kRaw ? "raw" : mode == Mode::kSmall ? "small" : "fast";
}

}  // namespace

Mode mode_for(Mode now, const Speeds &speeds) {
    if (speeds.loads > speeds.fast * (now == Mode::kRaw ? kRawUntil : kRawFrom)) return Mode::kRaw;
    const double below = (speeds.loads > 0 ? speeds.loads : speeds.dumps) * speeds.ratio;
    if (below > 0 && below < speeds.small * (now == Mode::kSmall ? kSmallUntil : kSmallFrom))
        return Mode::kSmall;
    return Mode::kFast;
}

void Pace::begin(bool dumps) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    Lane &lane = lanes_[dumps];
    if (lane.running++ == 0) lane.since_ns = monotonic_ns();
}

void Pace::end(bool dumps, uint64_t bytes) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    Lane &lane = lanes_[dumps];
    const int64_t now_ns = monotonic_ns();
    lane.busy_ns += now_ns - lane.since_ns;
    lane.since_ns = now_ns;
    lane.bytes += bytes;
    lane.running--;
    if (lane.bytes < kJudgedBytes) return;
    (dumps ? speeds_.dumps : speeds_.loads) =
        double(lane.bytes) * 1e9 / double(std::max<int64_t>(lane.busy_ns, 1));
    lane.bytes = 0;
    lane.busy_ns = 0;
    judge();
}

void Pace::coded(uint64_t raw, uint64_t frame) {
    if (!automatic_) return;
    std::lock_guard<std::mutex> hold(mutex_);
    raw_ += raw;
    frames_ += frame;
}

void Pace::judge() {
    if (frames_ > 0) speeds_.ratio = double(raw_) / double(frames_);
    raw_ = frames_ = 0;
    const Mode now = mode(), next = mode_for(now, speeds_);
    if (next == now) return;
    mode_.store(next, std::memory_order_relaxed);
    log_.write(
        UCM_LOG_INFO,
        "compress_codec: auto codes %s from now on: the store below loads %.2f and dumps %.2f "
        "GB/s, %.2f and %.2f GB/s can be decoded of fast and small, at a ratio of %.2f",
        name_of(next), speeds_.loads / 1e9, speeds_.dumps / 1e9, speeds_.fast / 1e9,
        speeds_.small / 1e9, speeds_.ratio);
}

}  // namespace ucm::compress
