// SPDX-License-Identifier: MIT
// Needs AVX-512 F, BW, VL, VBMI and VBMI2: Ice Lake, Zen 4 and newer.
#include <immintrin.h>

#include "kernels_generic.h"

namespace ucm::compress {
namespace {

inline __m512i load(const void *from) {
    return _mm512_loadu_si512(from);
}
inline void store(void *to, __m512i value) {
    _mm512_storeu_si512(to, value);
}

inline __m512i every(int first, int step) {
    alignas(64) uint8_t bytes[64];
    for (int i = 0; i < 64; i++) bytes[i] = uint8_t(first + i * step);
    return _mm512_load_si512(bytes);
}

// Bytes of two vectors in turn, from the half that starts at `first`.
inline __m512i zip_index(int first) {
    alignas(64) uint8_t bytes[64];
    for (int i = 0; i < 64; i++) bytes[i] = uint8_t(first + i / 2 + i % 2 * 64);
    return _mm512_load_si512(bytes);
}

inline __m128i pack_crumbs(__m512i codes) {
    const __m512i fours = _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x0401));
    return _mm512_cvtepi32_epi8(_mm512_madd_epi16(fours, _mm512_set1_epi32(0x00100001)));
}

inline __m512i unpack_crumbs(__m128i codes) {
    const __m512i shifts = _mm512_set1_epi64(0x0e0c0a0806040200);
    const __m512i each = _mm512_multishift_epi64_epi8(shifts, _mm512_cvtepu16_epi64(codes));
    return _mm512_and_si512(each, _mm512_set1_epi8(3));
}

void split_bf16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *rest) {
    const __m512i low = every(0, 2), high = every(1, 2);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i a = _mm512_shldi_epi16(load(raw + i * 2), load(raw + i * 2), 1);
        const __m512i b = _mm512_shldi_epi16(load(raw + i * 2 + 64), load(raw + i * 2 + 64), 1);
        store(symbols + i, _mm512_permutex2var_epi8(a, high, b));
        store(rest + i, _mm512_permutex2var_epi8(a, low, b));
    }
    split_lane<uint16_t>(raw + i * 2, n - i, n, symbols + i, rest + i);
}

void merge_bf16(const uint8_t *symbols, const uint8_t *rest, size_t, size_t first, size_t n,
                uint8_t *raw) {
    rest += first;
    const __m512i front = zip_index(0), back = zip_index(32);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i high = load(symbols + i), low = load(rest + i);
        const __m512i a = _mm512_permutex2var_epi8(low, front, high);
        const __m512i b = _mm512_permutex2var_epi8(low, back, high);
        store(raw + i * 2, _mm512_shrdi_epi16(a, a, 1));
        store(raw + i * 2 + 64, _mm512_shrdi_epi16(b, b, 1));
    }
    merge_lane<uint16_t>(symbols + i, rest + i, n - i, n, raw + i * 2);
}

// 64 bytes of sign, five bits, and two bits.
inline __m512i split_e5(__m512i bytes, uint8_t *crumbs, uint8_t *signs) {
    const uint64_t sign = _mm512_movepi8_mask(bytes);
    memcpy(signs, &sign, 8);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(crumbs),
                     pack_crumbs(_mm512_and_si512(bytes, _mm512_set1_epi8(3))));
    return _mm512_and_si512(_mm512_srli_epi16(bytes, 2), _mm512_set1_epi8(31));
}

inline __m512i merge_e5(__m512i symbols, const uint8_t *crumbs, const uint8_t *signs) {
    uint64_t sign;
    memcpy(&sign, signs, 8);
    const __m512i low = unpack_crumbs(_mm_loadu_si128(reinterpret_cast<const __m128i *>(crumbs)));
    const __m512i five = _mm512_slli_epi16(_mm512_and_si512(symbols, _mm512_set1_epi8(31)), 2);
    const __m512i both = _mm512_or_si512(five, low);
    return _mm512_or_si512(both, _mm512_maskz_set1_epi8(__mmask64(sign), char(0x80)));
}

void split_e5m2(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    uint8_t *signs = planes + (n + 3) / 4;
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        store(symbols + i, split_e5(load(raw + i), planes + i / 4, signs + i / 8));
    split_e5_end<1>(raw + i, n - i, symbols + i, planes + i / 4, signs + i / 8);
}

void merge_e5m2(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes, n, first);
    size_t i = 0;
    for (; i + 64 <= count; i += 64)
        store(raw + i, merge_e5(load(symbols + i), at.crumbs + i / 4, at.signs + i / 8));
    merge_e5_end<1>(symbols + i, at.crumbs + i / 4, at.signs + i / 8, count - i, raw + i);
}

void split_fp16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    const __m512i low = every(0, 2), high = every(1, 2);
    uint8_t *crumbs = planes + n, *signs = crumbs + (n + 3) / 4;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i a = load(raw + i * 2), b = load(raw + i * 2 + 64);
        store(planes + i, _mm512_permutex2var_epi8(a, low, b));
        const __m512i top = _mm512_permutex2var_epi8(a, high, b);
        store(symbols + i, split_e5(top, crumbs + i / 4, signs + i / 8));
    }
    split_fp16_end(raw + i * 2, n - i, symbols + i, planes + i, crumbs + i / 4, signs + i / 8);
}

void merge_fp16(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const __m512i front = zip_index(0), back = zip_index(32);
    const Fives at(planes + n, n, first);
    const uint8_t *low_bytes = planes + first;
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        const __m512i top = merge_e5(load(symbols + i), at.crumbs + i / 4, at.signs + i / 8);
        const __m512i low = load(low_bytes + i);
        store(raw + i * 2, _mm512_permutex2var_epi8(low, front, top));
        store(raw + i * 2 + 64, _mm512_permutex2var_epi8(low, back, top));
    }
    merge_fp16_end(symbols + i, low_bytes + i, at.crumbs + i / 4, at.signs + i / 8, count - i,
                   raw + i * 2);
}

void split_fp8_e4m3(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(8);
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m512i v = load(raw + i);
        store(symbols + i, _mm512_and_si512(_mm512_srli_epi16(v, 3), low));
        // Bits of `high` from the byte moved down, the others from the byte.
        const __m512i each = _mm512_ternarylogic_epi32(high, _mm512_srli_epi16(v, 4), v, 0xca);
        const __m512i twos =
            _mm512_maddubs_epi16(_mm512_and_si512(each, low), _mm512_set1_epi16(0x1001));
        _mm256_storeu_si256(reinterpret_cast<__m256i *>(planes + i / 2),
                            _mm512_cvtepi16_epi8(twos));
    }
    split_e4m3(raw + i, n - i, symbols + i, planes + i / 2);
}

void merge_fp8_e4m3(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first,
                    size_t count, uint8_t *raw) {
    planes += first / 2;
    const __m512i exponent = _mm512_set1_epi8(0x78), sign = _mm512_set1_epi8(char(0x80));
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        const __m512i twos = _mm512_cvtepu8_epi16(
            _mm256_loadu_si256(reinterpret_cast<const __m256i *>(planes + i / 2)));
        // The upper nibble to the byte above; what else is in upper halves, `exponent` covers.
        const __m512i each = _mm512_or_si512(twos, _mm512_slli_epi16(twos, 4));
        const __m512i rest =
            _mm512_ternarylogic_epi32(sign, _mm512_slli_epi16(each, 4), each, 0xca);
        const __m512i moved = _mm512_slli_epi16(load(symbols + i), 3);
        store(raw + i, _mm512_ternarylogic_epi32(exponent, moved, rest, 0xca));
    }
    merge_e4m3(symbols + i, planes + i / 2, n, 0, count - i, raw + i);
}

// What symbols add to bytes whose halves count two of them.
struct Pairs {
    alignas(16) uint8_t add[kTallied / 2][16];
};

constexpr Pairs make_pairs() {
    Pairs pairs{};
    for (int k = 0; k < kTallied; k++) pairs.add[k / 2][k] = k % 2 ? 16 : 1;
    return pairs;
}

constexpr Pairs kPairs = make_pairs();

void tally(const uint8_t *symbols, size_t n, uint8_t first, uint32_t *counts) {
    constexpr size_t kMostAtOnce = 15 * 64;  // half a byte counts so many
    const __m512i start = _mm512_set1_epi8(char(first)), half = _mm512_set1_epi8(15);
    // All but 16 get a highest bit, which gives zero.
    const __m512i others = _mm512_set1_epi8(0x70), zero = _mm512_setzero_si512();
    __m512i totals[2] = {};  // of four symbols each, in 16 bits
    for (size_t some; n > 0; symbols += some, n -= some) {
        some = n < kMostAtOnce ? n : kMostAtOnce;
        __m512i pairs[kTallied / 2] = {};
        for (size_t i = 0; i < some; i += 64) {
            const __m512i at = _mm512_adds_epu8(_mm512_sub_epi8(load(symbols + i), start), others);
#pragma GCC unroll 4
            for (int p = 0; p < kTallied / 2; p++) {
                const __m512i add = _mm512_broadcast_i32x4(
                    _mm_load_si128(reinterpret_cast<const __m128i *>(kPairs.add[p])));
                pairs[p] = _mm512_add_epi8(pairs[p], _mm512_shuffle_epi8(add, at));
            }
        }
#pragma GCC unroll 4
        for (int p = 0; p < kTallied / 2; p++) {
            const __m512i upper = _mm512_and_si512(_mm512_srli_epi16(pairs[p], 4), half);
            const __m512i even = _mm512_sad_epu8(_mm512_and_si512(pairs[p], half), zero);
            const __m512i odd = _mm512_slli_epi64(_mm512_sad_epu8(upper, zero), 16);
            const __m512i both = _mm512_slli_epi64(_mm512_or_si512(even, odd), p % 2 * 32);
            totals[p / 2] = _mm512_add_epi64(totals[p / 2], both);
        }
    }
    for (int t = 0; t < 2; t++) {
        const uint64_t sums = uint64_t(_mm512_reduce_add_epi64(totals[t]));
        for (int k = 0; k < 4; k++) counts[t * 4 + k] = sums >> k * 16 & 0xffff;
    }
}

void translate(const uint8_t *from, size_t n, const uint8_t *table, int size, uint8_t *to) {
    if (size == 32) {
        const __m512i all =
            _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(table)));
        for (size_t i = 0; i < n; i += 64)
            store(to + i, _mm512_permutexvar_epi8(load(from + i), all));
        return;
    }
    const __m512i a = load(table), b = load(table + 64);
    const __m512i c = load(table + 128), d = load(table + 192);
    for (size_t i = 0; i < n; i += 64) {
        const __m512i v = load(from + i);
        const __m512i below = _mm512_permutex2var_epi8(a, v, b);
        const __m512i above = _mm512_permutex2var_epi8(c, v, d);
        store(to + i, _mm512_mask_blend_epi8(_mm512_movepi8_mask(v), below, above));
    }
}

template <int Width>
size_t count_codes(const uint8_t *codes, size_t n) {
    const __m512i ones =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_set1_epi8(15);
    __m512i total = _mm512_setzero_si512();
    constexpr size_t kCodes = 512 / Width;
    size_t left = n;
    for (; left >= kCodes; left -= kCodes, codes += 64) {
        __m512i v = load(codes);
        if (Width == 2)
            v = _mm512_and_si512(_mm512_and_si512(v, _mm512_srli_epi16(v, 1)),
                                 _mm512_set1_epi8(0x55));
        const __m512i count = _mm512_add_epi8(
            _mm512_shuffle_epi8(ones, _mm512_and_si512(v, low)),
            _mm512_shuffle_epi8(ones, _mm512_and_si512(_mm512_srli_epi16(v, 4), low)));
        total = _mm512_add_epi64(total, _mm512_sad_epu8(count, _mm512_setzero_si512()));
    }
    return size_t(_mm512_reduce_add_epi64(total)) + count_passing<Width>(codes, left);
}

// 64 ranks; returns how many are passed on.
template <int Width>
inline size_t code_lane(__m512i rank, uint8_t *codes, uint8_t *passed) {
    const __m512i size = _mm512_set1_epi8(kClass<Width>);
    const uint64_t passing = _mm512_cmpge_epu8_mask(rank, size);
    if (Width == 2)
        _mm_storeu_si128(reinterpret_cast<__m128i *>(codes),
                         pack_crumbs(_mm512_min_epu8(rank, size)));
    else
        memcpy(codes, &passing, 8);
    store(passed, _mm512_maskz_compress_epi8(passing, _mm512_sub_epi8(rank, size)));
    return size_t(_mm_popcnt_u64(passing));
}

template <int Width>
size_t code(const uint8_t *ranks, size_t n, uint8_t *codes, uint8_t *passed) {
    size_t i = 0, count = 0;
    for (; i + 64 <= n; i += 64)
        count += code_lane<Width>(load(ranks + i), codes + i * Width / 8, passed + count);
    if (i == n) return count;
    const __m512i rest = _mm512_maskz_loadu_epi8((uint64_t(1) << (n - i)) - 1, ranks + i);
    return count + code_lane<Width>(rest, codes + i * Width / 8, passed + count);
}

// 64 symbols; returns what of `passed` is left.
template <int Width>
inline const uint8_t *decode_lane(const uint8_t *codes, __m512i lookup, const uint8_t *passed,
                                  uint8_t *symbols) {
    __m512i own = lookup;
    uint64_t passing;
    if (Width == 2) {
        const __m512i each =
            unpack_crumbs(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes)));
        passing = _mm512_cmpeq_epi8_mask(each, _mm512_set1_epi8(3));
        own = _mm512_shuffle_epi8(lookup, each);
    } else {
        memcpy(&passing, codes, 8);
    }
    store(symbols, _mm512_mask_expand_epi8(own, passing, load(passed)));
    return passed + _mm_popcnt_u64(passing);
}

template <int Width>
const uint8_t *decode(const uint8_t *codes, size_t n, const uint8_t *members, const uint8_t *passed,
                      uint8_t *symbols) {
    const __m512i lookup = _mm512_set1_epi32(int(members_by_code<Width>(members)));
    return decode_lanes<Width>(codes, n, passed, symbols,
                               [&](const uint8_t *from, const uint8_t *next, uint8_t *to) {
                                   return decode_lane<Width>(from, lookup, next, to);
                               });
}

}  // namespace

const Kernels kAvx512Kernels = {
    "avx512",
    hash,
    {split_bytes, split_bf16, split_fp16, split_rotated<uint32_t>, split_fp8_e4m3, split_e5m2},
    {merge_bytes, merge_bf16, merge_fp16, merge_rotated<uint32_t>, merge_fp8_e4m3, merge_e5m2},
    largest,
    tally,
    translate,
    {code<1>, code<2>},
    {count_codes<1>, count_codes<2>},
    {decode<1>, decode<2>},
};

}  // namespace ucm::compress
