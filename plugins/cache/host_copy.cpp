// SPDX-License-Identifier: MIT
#include "host_copy.h"

#include <cstring>

#ifdef __SSE2__
#include <immintrin.h>
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

std::vector<Stream> streams() {
    return {};
}

#elif defined(__SSE2__)

namespace {

constexpr size_t kLine = 64;
constexpr size_t kStep = 2 * kLine;
constexpr size_t kInTurn = 4;   // places that are copied in turn: one alone keeps memory waiting
constexpr size_t kAhead = 256;  // NTA instead of T0 costs a third on an Intel Xeon

struct Sse2 {
    static void line(uint8_t *to, const uint8_t *from) {
        const auto *source = reinterpret_cast<const __m128i *>(from);
        auto *target = reinterpret_cast<__m128i *>(to);
        const __m128i a = _mm_loadu_si128(source), b = _mm_loadu_si128(source + 1);
        const __m128i c = _mm_loadu_si128(source + 2), d = _mm_loadu_si128(source + 3);
        _mm_stream_si128(target, a);
        _mm_stream_si128(target + 1, b);
        _mm_stream_si128(target + 2, c);
        _mm_stream_si128(target + 3, d);
    }
};

#ifdef __x86_64__
#define UCM_AVX2 __attribute__((target("avx2")))
#define UCM_AVX512 __attribute__((target("avx512f")))

struct Avx2 {
    UCM_AVX2 static void line(uint8_t *to, const uint8_t *from) {
        const auto *source = reinterpret_cast<const __m256i *>(from);
        auto *target = reinterpret_cast<__m256i *>(to);
        const __m256i a = _mm256_loadu_si256(source), b = _mm256_loadu_si256(source + 1);
        _mm256_stream_si256(target, a);
        _mm256_stream_si256(target + 1, b);
    }
};

struct Avx512 {
    UCM_AVX512 static void line(uint8_t *to, const uint8_t *from) {
        _mm512_stream_si512(reinterpret_cast<__m512i *>(to), _mm512_loadu_si512(from));
    }
};
#endif

// Inlined into the kind's own function, so that its instructions are too. Leaves less than
// kInTurn * kStep bytes; returns what it copied.
template <typename Kind>
__attribute__((always_inline)) inline size_t stream(uint8_t *to, const uint8_t *from, size_t n) {
    const size_t part = n / (kInTurn * kStep) * kStep;
    for (size_t i = 0; i < part; i += kStep)
        for (size_t k = 0; k < kInTurn; k++)
            for (size_t at = k * part + i; at < k * part + i + kStep; at += kLine) {
                _mm_prefetch(reinterpret_cast<const char *>(from + at) + kAhead, _MM_HINT_T0);
                Kind::line(to + at, from + at);
            }
    return kInTurn * part;
}

size_t stream_sse2(uint8_t *to, const uint8_t *from, size_t n) {
    return stream<Sse2>(to, from, n);
}

#ifdef __x86_64__
UCM_AVX2 size_t stream_avx2(uint8_t *to, const uint8_t *from, size_t n) {
    return stream<Avx2>(to, from, n);
}

UCM_AVX512 size_t stream_avx512(uint8_t *to, const uint8_t *from, size_t n) {
    return stream<Avx512>(to, from, n);
}
#endif

}  // namespace

std::vector<Stream> streams() {
    std::vector<Stream> kinds{stream_sse2};
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) kinds.push_back(stream_avx2);
    if (__builtin_cpu_supports("avx512f")) kinds.push_back(stream_avx512);
#endif
    return kinds;
}

void copy_bytes(void *to, const void *from, size_t n, bool streaming) {
    if (!streaming || n < kStreamRun) {
        std::memcpy(to, from, n);
        return;
    }
    static const Stream best = streams().back();
    auto *target = static_cast<uint8_t *>(to);
    auto *source = static_cast<const uint8_t *>(from);
    const size_t head = size_t(-reinterpret_cast<uintptr_t>(target)) % kLine;
    std::memcpy(target, source, head);
    const size_t done = head + best(target + head, source + head, n - head);
    std::memcpy(target + done, source + done, n - done);
    _mm_sfence();  // streaming stores are not ordered by the release that follows
}

#else

void copy_bytes(void *to, const void *from, size_t n, bool) {
    std::memcpy(to, from, n);
}

std::vector<Stream> streams() {
    return {};
}

#endif

}  // namespace ucm::cache
