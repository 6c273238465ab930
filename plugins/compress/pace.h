// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "codec.h"
#include "log.h"

namespace ucm::compress {

constexpr int kModes = 3;

// What is known of loads, in nanoseconds; of a mode what is not known is 0.
struct Costs {
    double read = 0;    // of a stored byte, in the store below, while nothing is decoded
    double whole = 0;   // of a raw byte, as reading and decoding overlap
    double busy = 0;    // of it, as something is decoded: that adds no more
    double stored = 1;  // bytes by raw bytes of what was loaded,
    double decode = 0;  // and of a raw byte of it, on one thread
    double mode_stored[kModes] = {}, mode_decode[kModes] = {};  // likewise, by Mode
    double threads = 1;                                         // that decode at once

    // Of a raw byte, were all coded so: what decoding adds to reading is measured, whether the two
    // overlap or take the same processors from each other.
    double expected(Mode mode) const;
    // Of a raw byte, were decoding for nothing. Alone and after a rest a store may read faster than
    // it does for long: what it then seems to lose is not all due to decoding.
    double reading() const;
};

// What compress_codec: auto does.
Mode mode_for(Mode now, const Costs &costs);

// Raw bytes and what `fast` makes of them; the older they are, the less they count.
struct Ratio {
    double raw = 0, frames = 0;

    void add(Mode mode, uint64_t raw_bytes, uint64_t frame_bytes);
};

// Watches loads, and which mode follows. A period is loads from when nothing is under way until
// nothing is any more, or, where that does not come, until so many bytes were decoded that what was
// under way at its beginning and at its end counts for little. In one of many nothing is decoded
// until all is read that was begun in it, for what reading takes alone; before that one no load
// begins for a moment, so that the decoder leaves room to read into. Any thread may call; times are
// monotonic_ns().
class Pace {
  public:
    Pace(bool automatic, Mode mode, const Logger &log)
        : automatic_(automatic), log_(log), mode_(mode), judged_(mode) {}

    // Before anything moves: nanoseconds of a raw byte on one thread, by Mode.
    void set_decoders(const double (&decode)[kModes], double threads);
    bool automatic() const { return automatic_; }
    Mode mode() const { return mode_.load(std::memory_order_relaxed); }
    // How to code the next shard: in `raw` one in many is coded, which tells what that would save.
    Mode next_dump();
    // Until then nothing is decoded; until then no load begins.
    int64_t held_until_ns() const { return held_until_ns_.load(std::memory_order_acquire); }
    int64_t shut_until_ns() const { return shut_until_ns_.load(std::memory_order_acquire); }

    // Loads go below, in the period that is returned, 0: nothing is watched; so many stored bytes
    // of them have come; all is decoded.
    uint64_t begin(int64_t now_ns);
    void read(uint64_t period, uint64_t bytes, int64_t now_ns);
    void end(int64_t now_ns);
    // One is decoded from now on; it was, 0 bytes of what failed; one was coded.
    void decoding(int64_t now_ns);
    void decoded(uint64_t raw, uint64_t frame, int64_t now_ns);
    void coded(Mode mode, uint64_t raw, uint64_t frame);

  private:
    bool wants_read() const;
    void start(int64_t now_ns);
    void release(int64_t now_ns);
    void finish(int64_t now_ns);
    void judge();

    const bool automatic_;
    const Logger &log_;
    std::atomic<Mode> mode_;
    std::atomic<int64_t> held_until_ns_{0}, shut_until_ns_{0};
    std::atomic<uint64_t> dumps_{0};
    std::mutex mutex_;                                 // guards all below
    uint64_t under_way_ = 0, below_ = 0, period_ = 0;  // below: of this period
    bool open_ = false, first_ = true;                 // a period is on; none has ended yet
    bool holds_ = false, held_ = false;                // now; in this period
    int64_t since_ns_ = 0;
    uint64_t decoding_ = 0;  // shards, now
    int64_t busy_since_ns_ = 0;
    // Of this period: stored bytes that have come; raw bytes, their frames, their decoding, and the
    // time in which there was any.
    double read_ = 0, raw_ = 0, frames_ = 0, decode_ = 0, busy_ns_ = 0;
    Ratio dumped_, loaded_;  // of what was coded, by this process or by others
    // First bytes that are read alone, then some that are loaded as ever; then it is judged, and
    // for so many raw bytes nothing is measured.
    double read_ns_ = 0, read_bytes_ = 0;
    double whole_ns_ = 0, whole_raw_ = 0, whole_frames_ = 0, whole_decode_ = 0, whole_busy_ns_ = 0;
    double rest_ = 0;
    Mode judged_;  // what the last measurement was for
    Costs costs_;
};

}  // namespace ucm::compress
