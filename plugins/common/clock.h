// SPDX-License-Identifier: MIT
#pragma once

#include <time.h>

#include <cstdint>

namespace ucm {

// In nanoseconds.
constexpr int64_t kMs = 1000000, kSecond = 1000 * kMs, kDay = 86400 * kSecond;

inline int64_t clock_ns(clockid_t clock) {
    timespec now{};
    clock_gettime(clock, &now);
    return int64_t(now.tv_sec) * 1000000000 + now.tv_nsec;
}

inline int64_t monotonic_ns() {
    return clock_ns(CLOCK_MONOTONIC);
}

// The instant `timeout_ms` from now; -1 is never.
inline int64_t deadline_after_ms(int64_t timeout_ms) {
    return timeout_ms < 0 ? INT64_MAX : monotonic_ns() + timeout_ms * 1000000;
}

}  // namespace ucm
