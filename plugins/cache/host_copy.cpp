// SPDX-License-Identifier: MIT
#include "host_copy.h"

#include <cstring>

#ifdef __SSE2__
#include <emmintrin.h>
#endif

namespace ucm::cache {

#if defined(__SANITIZE_THREAD__)

// Readers of shared slots copy first and check the generation afterwards, so this race is intended:
// ThreadSanitizer must see neither the accesses nor a memcpy. The barrier keeps GCC from making
// one.
__attribute__((no_sanitize("thread"))) void copy_bytes(void *to, const void *from, size_t n, bool) {
    typedef uint64_t __attribute__((may_alias, aligned(1))) word;
    auto *target = static_cast<uint8_t *>(to);
    auto *source = static_cast<const uint8_t *>(from);
    for (; n >= sizeof(word); n -= sizeof(word)) {
        *reinterpret_cast<word *>(target) = *reinterpret_cast<const word *>(source);
        target += sizeof(word);
        source += sizeof(word);
        asm volatile("" ::: "memory");
    }
    for (; n; n--) {
        *target++ = *source++;
        asm volatile("" ::: "memory");
    }
}

#elif defined(__SSE2__)

namespace {

constexpr size_t kLine = 64;
constexpr size_t kAhead = 512;  // the best of 512 to 2048 on the machines tried

void stream_lines(uint8_t *to, const uint8_t *from, size_t n) {
    for (size_t i = 0; i < n; i += kLine) {
        _mm_prefetch(reinterpret_cast<const char *>(from) + i + kAhead, _MM_HINT_NTA);
        const auto *source = reinterpret_cast<const __m128i *>(from + i);
        auto *target = reinterpret_cast<__m128i *>(to + i);
        const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
}

}  // namespace

void copy_bytes(void *to, const void *from, size_t n, bool streaming) {
    if (!streaming || n < kStreamRun) {
        std::memcpy(to, from, n);
        return;
    }
    auto *target = static_cast<uint8_t *>(to);
    auto *source = static_cast<const uint8_t *>(from);
    const size_t head = size_t(-reinterpret_cast<uintptr_t>(target)) % kLine;
    const size_t lines = (n - head) / kLine * kLine;
    std::memcpy(target, source, head);
    stream_lines(target + head, source + head, lines);
    std::memcpy(target + head + lines, source + head + lines, n - head - lines);
    _mm_sfence();  // streaming stores are not ordered by the release that follows
}

#else

void copy_bytes(void *to, const void *from, size_t n, bool) {
    std::memcpy(to, from, n);
}

#endif

}  // namespace ucm::cache
