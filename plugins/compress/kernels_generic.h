// SPDX-License-Identifier: MIT
#pragma once

// Loops that a compiler vectorises, and the ends of those written by hand. Every set of kernels is
// compiled with other flags: all is internal here and nothing comes from the C++ library, or the
// linker could give one processor another's instructions.

#include <string.h>

#include "kernels.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm::compress {
namespace {

uint64_t hash(const void *bytes, size_t n, uint64_t seed) {
    return XXH3_64bits_withSeed(bytes, n, seed);
}

// Loops of a fixed count are vectorised at -O2 already.
constexpr size_t kLane = 64;

template <typename Word, int Rotate>
inline Word rotate_left(Word word) {
    if constexpr (Rotate == 0) return word;
    return Word(word << Rotate | word >> (sizeof(Word) * 8 - Rotate));
}

template <typename Word>
inline void split_lane(const uint8_t *__restrict raw, size_t count, size_t plane,
                       uint8_t *__restrict top, uint8_t *__restrict rest) {
    for (size_t i = 0; i < count; i++) {
        Word word;
        memcpy(&word, raw + i * sizeof(Word), sizeof word);
        word = rotate_left<Word, 1>(word);
        for (size_t k = 0; k + 1 < sizeof(Word); k++) rest[k * plane + i] = uint8_t(word >> k * 8);
        top[i] = uint8_t(word >> (sizeof(Word) - 1) * 8);
    }
}

template <typename Word>
inline void merge_lane(const uint8_t *__restrict top, const uint8_t *__restrict rest, size_t count,
                       size_t plane, uint8_t *__restrict raw) {
    for (size_t i = 0; i < count; i++) {
        Word word = Word(Word(top[i]) << (sizeof(Word) - 1) * 8);
        for (size_t k = 0; k + 1 < sizeof(Word); k++)
            word = Word(word | Word(Word(rest[k * plane + i]) << k * 8));
        word = rotate_left<Word, int(sizeof(Word)) * 8 - 1>(word);
        memcpy(raw + i * sizeof(Word), &word, sizeof word);
    }
}

// bf16 and fp32.
template <typename Word>
void split_rotated(const uint8_t *raw, size_t n, uint8_t *top, uint8_t *rest) {
    size_t i = 0;
    for (; i + kLane <= n; i += kLane)
        split_lane<Word>(raw + i * sizeof(Word), kLane, n, top + i, rest + i);
    split_lane<Word>(raw + i * sizeof(Word), n - i, n, top + i, rest + i);
}

template <typename Word>
void merge_rotated(const uint8_t *top, const uint8_t *rest, size_t n, size_t first, size_t count,
                   uint8_t *raw) {
    rest += first;
    size_t i = 0;
    for (; i + kLane <= count; i += kLane)
        merge_lane<Word>(top + i, rest + i, kLane, n, raw + i * sizeof(Word));
    merge_lane<Word>(top + i, rest + i, count - i, n, raw + i * sizeof(Word));
}

void split_bytes(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *) {
    memcpy(symbols, raw, n);
}

void merge_bytes(const uint8_t *symbols, const uint8_t *, size_t, size_t, size_t count,
                 uint8_t *raw) {
    memcpy(raw, symbols, count);
}

inline uint8_t nibble_of(uint8_t e4m3) {
    return uint8_t((e4m3 & 7) | (e4m3 >> 4 & 8));
}

inline void split_e4m3_lane(const uint8_t *__restrict raw, size_t n, uint8_t *__restrict symbols,
                            uint8_t *__restrict nibbles) {
    for (size_t i = 0; i < n; i++) symbols[i] = uint8_t(raw[i] >> 3 & 15);
    for (size_t i = 0; i < n / 2; i++)
        nibbles[i] = uint8_t(nibble_of(raw[i * 2]) | nibble_of(raw[i * 2 + 1]) << 4);
    if (n % 2) nibbles[n / 2] = nibble_of(raw[n - 1]);
}

inline uint8_t e4m3_of(uint8_t symbol, uint8_t nibble) {
    return uint8_t((nibble & 7) | (nibble & 8) << 4 | (symbol & 15) << 3);
}

inline void merge_e4m3_lane(const uint8_t *__restrict symbols, const uint8_t *__restrict nibbles,
                            size_t n, uint8_t *__restrict raw) {
    for (size_t i = 0; i < n / 2; i++) {
        raw[i * 2] = e4m3_of(symbols[i * 2], nibbles[i] & 15);
        raw[i * 2 + 1] = e4m3_of(symbols[i * 2 + 1], nibbles[i] >> 4);
    }
    if (n % 2) raw[n - 1] = e4m3_of(symbols[n - 1], nibbles[n / 2] & 15);
}

void split_e4m3(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    size_t i = 0;
    for (; i + kLane <= n; i += kLane) split_e4m3_lane(raw + i, kLane, symbols + i, planes + i / 2);
    split_e4m3_lane(raw + i, n - i, symbols + i, planes + i / 2);
}

void merge_e4m3(const uint8_t *symbols, const uint8_t *planes, size_t, size_t first, size_t count,
                uint8_t *raw) {
    planes += first / 2;
    size_t i = 0;
    for (; i + kLane <= count; i += kLane)
        merge_e4m3_lane(symbols + i, planes + i / 2, kLane, raw + i);
    merge_e4m3_lane(symbols + i, planes + i / 2, count - i, raw + i);
}

// Where bits 1 to 0 and signs of n five-bit exponents are, from element `first` on.
struct Fives {
    Fives(const uint8_t *planes, size_t n, size_t first)
        : crumbs(planes + first / 4), signs(planes + (n + 3) / 4 + first / 8) {}
    const uint8_t *crumbs, *signs;
};

// Bytes that lie Stride apart: fp8_e5m2, and the upper byte of fp16.
template <size_t Stride>
inline void split_e5_end(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *crumbs,
                         uint8_t *signs) {
    memset(crumbs, 0, (n + 3) / 4);
    memset(signs, 0, (n + 7) / 8);
    for (size_t i = 0; i < n; i++) {
        const uint8_t byte = raw[i * Stride];
        symbols[i] = byte >> 2 & 31;
        crumbs[i / 4] = uint8_t(crumbs[i / 4] | (byte & 3) << i % 4 * 2);
        signs[i / 8] = uint8_t(signs[i / 8] | byte >> 7 << i % 8);
    }
}

template <size_t Stride>
inline void merge_e5_end(const uint8_t *symbols, const uint8_t *crumbs, const uint8_t *signs,
                         size_t n, uint8_t *raw) {
    for (size_t i = 0; i < n; i++)
        raw[i * Stride] = uint8_t((signs[i / 8] >> i % 8 & 1) << 7 | (symbols[i] & 31) << 2 |
                                  (crumbs[i / 4] >> i % 4 * 2 & 3));
}

inline void split_fp16_end(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *low,
                           uint8_t *crumbs, uint8_t *signs) {
    for (size_t i = 0; i < n; i++) low[i] = raw[i * 2];
    split_e5_end<2>(raw + 1, n, symbols, crumbs, signs);
}

inline void merge_fp16_end(const uint8_t *symbols, const uint8_t *low, const uint8_t *crumbs,
                           const uint8_t *signs, size_t n, uint8_t *raw) {
    for (size_t i = 0; i < n; i++) raw[i * 2] = low[i];
    merge_e5_end<2>(symbols, crumbs, signs, n, raw + 1);
}

// Vectors of whatever length there is.
typedef uint8_t Bytes __attribute__((vector_size(32)));

uint8_t largest(const uint8_t *symbols, size_t n) {
    Bytes most = {};
    for (size_t i = 0; i < n; i += sizeof(Bytes)) {
        Bytes next;
        memcpy(&next, symbols + i, sizeof next);
        most = next > most ? next : most;
    }
    uint8_t all = 0;
    for (size_t k = 0; k < sizeof(Bytes); k++) all = most[k] > all ? most[k] : all;
    return all;
}

// The sum of all bytes.
inline uint32_t sum_of(const Bytes &bytes) {
    uint64_t words[4], sum = 0;
    memcpy(words, &bytes, sizeof words);
    for (const uint64_t word : words)
        sum += (word & 0x00ff00ff00ff00ff) + (word >> 8 & 0x00ff00ff00ff00ff);
    return uint32_t(sum * 0x0001000100010001 >> 48);
}

inline void tally_plain(const uint8_t *symbols, size_t n, uint8_t first, uint32_t *counts) {
    Bytes each[kTallied], sums[kTallied] = {};
    for (int k = 0; k < kTallied; k++) each[k] = uint8_t(first + k) - Bytes{};
    for (size_t i = 0; i < n; i += sizeof(Bytes)) {
        Bytes next;
        memcpy(&next, symbols + i, sizeof next);
#pragma GCC unroll 8
        for (int k = 0; k < kTallied; k++) sums[k] -= Bytes(next == each[k]);
    }
    for (int k = 0; k < kTallied; k++) counts[k] = sum_of(sums[k]);
}

template <int Width>
constexpr uint8_t kClass = (1 << Width) - 1;

template <int Width>
inline size_t code_end(const uint8_t *ranks, size_t n, uint8_t *codes, uint8_t *passed) {
    constexpr size_t kPerByte = 8 / Width;
    size_t count = 0;
    for (size_t i = 0; i < n; i += kPerByte) {
        uint8_t byte = 0;
        for (size_t k = 0; k < kPerByte && i + k < n; k++) {
            const uint8_t rank = ranks[i + k];
            const bool own = rank < kClass<Width>;
            byte = uint8_t(byte | (own ? rank : kClass<Width>) << k * Width);
            passed[count] = uint8_t(rank - kClass<Width>);
            count += !own;
        }
        codes[i / kPerByte] = byte;
    }
    return count;
}

template <int Width>
inline uint64_t passing(uint64_t codes) {
    return Width == 1 ? codes : codes & codes >> 1 & 0x5555555555555555;
}

template <int Width>
size_t count_passing(const uint8_t *codes, size_t n) {
    size_t count = 0, left = n * Width;  // in bits
    for (; left >= 64; left -= 64, codes += 8) {
        uint64_t word;
        memcpy(&word, codes, 8);
        count += size_t(__builtin_popcountll(passing<Width>(word)));
    }
    if (left == 0) return count;
    uint64_t word = 0;
    memcpy(&word, codes, (left + 7) / 8);
    // What is behind the last code is nobody's.
    return count + size_t(__builtin_popcountll(passing<Width>(word & ((uint64_t(1) << left) - 1))));
}

template <int Width>
inline const uint8_t *decode_end(const uint8_t *codes, size_t n, const uint8_t *members,
                                 const uint8_t *passed, uint8_t *symbols) {
    constexpr size_t kPerByte = 8 / Width;
    for (size_t i = 0; i < n; i++) {
        const uint8_t code = codes[i / kPerByte] >> i % kPerByte * Width & kClass<Width>;
        symbols[i] = code < kClass<Width> ? members[code] : *passed++;
    }
    return passed;
}

// For every set of 8 lanes: where they come from when they close ranks, and, turned around, which
// of the closed ones each lane gets. 0x80 is none.
struct Shuffles {
    alignas(64) uint8_t close[256][8], open[256][8];
    uint8_t behind[8];  // what is loaded with the last one
};

constexpr Shuffles make_shuffles() {
    Shuffles s{};
    for (int set = 0; set < 256; set++) {
        int count = 0;
        for (int lane = 0; lane < 8; lane++) {
            s.open[set][lane] = 0x80;
            if (!(set >> lane & 1)) continue;
            s.open[set][lane] = uint8_t(count);
            s.close[set][count++] = uint8_t(lane);
        }
        while (count < 8) s.close[set][count++] = 0x80;
    }
    return s;
}

constexpr Shuffles kShuffles = make_shuffles();

// The members of a class by code, over and over.
template <int Width>
inline uint32_t members_by_code(const uint8_t *members) {
    if (Width == 1) return members[0] * 0x01010101u;
    return members[0] | uint32_t(members[1]) << 8 | uint32_t(members[2]) << 16;
}

// By 64 symbols: lane(codes, passed, symbols) returns what of `passed` is left.
template <int Width, typename Lane>
inline const uint8_t *decode_lanes(const uint8_t *codes, size_t n, const uint8_t *passed,
                                   uint8_t *symbols, Lane lane) {
    size_t i = 0;
    for (; i + 64 <= n; i += 64) passed = lane(codes + i * Width / 8, passed, symbols + i);
    if (i == n) return passed;
    uint8_t rest[16] = {};
    memcpy(rest, codes + i * Width / 8, ((n - i) * Width + 7) / 8);
    return lane(rest, passed, symbols + i);
}

}  // namespace
}  // namespace ucm::compress
