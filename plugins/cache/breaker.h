// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>

#include "clock.h"
#include "ucm/store_v1.h"

namespace ucm::cache {

// Opens when the store below fails again and again: then misses fail at once and dumps stay in
// memory, until one request at a time, now and then, finds it well again. Any thread.
class Breaker {
  public:
    enum class Says { kGo, kProbe, kNo };

    // May a request go below now? kProbe: this one alone, to see; report() its end.
    Says ask() {
        const int64_t until_ns = until_ns_.load(std::memory_order_acquire);
        if (until_ns == 0) return Says::kGo;
        int64_t expected = until_ns;
        const int64_t now_ns = monotonic_ns();
        if (now_ns < until_ns) return Says::kNo;
        return until_ns_.compare_exchange_strong(expected, now_ns + kProbeNs) ? Says::kProbe
                                                                              : Says::kNo;
    }
    bool open() const { return until_ns_.load(std::memory_order_acquire) != 0; }
    // When the next probe may go.
    int64_t until_ns() const { return until_ns_.load(std::memory_order_acquire); }

    enum class Turn { kNone, kOpened, kClosed };
    // How a request of the store below ended: with the best of its shards' statuses. NOT_FOUND,
    // CORRUPT and the like are answers too.
    Turn report(ucm_status status) {
        if (!down(status)) {
            failures_.store(0, std::memory_order_relaxed);
            return until_ns_.exchange(0) ? Turn::kClosed : Turn::kNone;
        }
        const uint32_t failures = failures_.fetch_add(1, std::memory_order_relaxed) + 1;
        if (failures < kMost) return Turn::kNone;
        const bool was_open = until_ns_.exchange(monotonic_ns() + kProbeNs) != 0;
        return was_open ? Turn::kNone : Turn::kOpened;
    }

    static bool down(ucm_status status) {
        return status == UCM_IO || status == UCM_UNAVAILABLE || status == UCM_TIMEOUT ||
               status == UCM_CLOSED;
    }

  private:
    static constexpr uint32_t kMost = 3;  // failed requests in a row
    static constexpr int64_t kProbeNs = 1000000000;

    std::atomic<int64_t> until_ns_{0};  // 0: closed
    std::atomic<uint32_t> failures_{0};
};

}  // namespace ucm::cache
