// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>

#include "codec.h"
#include "log.h"

namespace ucm::compress {

// Bytes a second, 0 where it is not known: of the store below, and of decoders, of all threads in
// raw bytes.
struct Speeds {
    double loads = 0, dumps = 0;
    double fast = 0, small = 0;
    double ratio = 1;  // that the codec has reached
};

// What compress_codec: auto does. A store below that gives bytes faster than they can be decoded
// is better left alone, if loads were seen to; one several times slower leaves time for small.
// Between the two, what is done now goes on.
Mode mode_for(Mode now, const Speeds &speeds);

// How fast the store below moves bytes, while it moves any; and the mode that follows. Methods may
// be called by any thread.
class Pace {
  public:
    Pace(bool automatic, Mode mode, const Logger &log)
        : automatic_(automatic), log_(log), mode_(mode) {}

    // Before anything moves.
    void set_decoders(double fast, double small) { speeds_.fast = fast, speeds_.small = small; }
    bool automatic() const { return automatic_; }
    Mode mode() const { return mode_.load(std::memory_order_relaxed); }
    // A transfer below begins, and has ended with so many bytes moved.
    void begin(bool dumps);
    void end(bool dumps, uint64_t bytes);
    // A shard was coded.
    void coded(uint64_t raw, uint64_t frame);

  private:
    struct Lane {
        uint64_t running = 0, bytes = 0;
        int64_t since_ns = 0, busy_ns = 0;
    };
    void judge();

    const bool automatic_;
    const Logger &log_;
    std::atomic<Mode> mode_;
    std::mutex mutex_;  // guards all below
    Lane lanes_[2];     // loads, dumps
    uint64_t raw_ = 0, frames_ = 0;
    Speeds speeds_;
};

}  // namespace ucm::compress
