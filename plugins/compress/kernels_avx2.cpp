// SPDX-License-Identifier: MIT
// Needs AVX2, BMI and POPCNT, as every x86-64-v3 has.
#include <immintrin.h>

#include "kernels_generic.h"

namespace ucm::compress {
namespace {

inline __m256i load(const void *from) {
    return _mm256_loadu_si256(static_cast<const __m256i *>(from));
}
inline void store(void *to, __m256i value) {
    _mm256_storeu_si256(static_cast<__m256i *>(to), value);
}
inline __m128i load_shuffle(const uint8_t (&eight)[8]) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i *>(eight));
}
inline void store_half(void *to, __m128i value) {
    _mm_storel_epi64(static_cast<__m128i *>(to), value);
}

inline uint32_t mask_of(__m256i bytes) {
    return uint32_t(_mm256_movemask_epi8(bytes));
}

// The lanes of `set`, one behind another.
inline uint8_t *close_ranks(__m256i bytes, uint32_t set, uint8_t *to) {
    const __m128i halves[2] = {_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)};
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++, set >>= 8) {
        const __m128i eight = k % 2 ? _mm_srli_si128(halves[k / 2], 8) : halves[k / 2];
        store_half(to, _mm_shuffle_epi8(eight, load_shuffle(kShuffles.close[set & 255])));
        to += _mm_popcnt_u32(set & 255);
    }
    return to;
}

// The other way round: 32 bytes, of which those in `set`, all ones, come from `from`, and the
// others are zero.
inline __m256i open_ranks(__m256i set, const uint8_t *&from) {
    // Less how many of the set there are up to each byte; of 8 and then of 16.
    __m256i less = _mm256_add_epi8(set, _mm256_slli_epi64(set, 8));
    less = _mm256_add_epi8(less, _mm256_slli_epi64(less, 16));
    less = _mm256_add_epi8(less, _mm256_slli_epi64(less, 32));
    const __m256i before = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 7, 7, 7, 7, 7, 7, 7, 7));
    less = _mm256_add_epi8(less, _mm256_shuffle_epi8(less, before));
    // Their places; what is not of the set gets a highest bit, which gives zero.
    const __m256i none = _mm256_set1_epi8(char(0x80));
    const __m256i places = _mm256_sub_epi8(_mm256_or_si256(set, none), less);
    const uint32_t mask = mask_of(set);
    const uint8_t *const second = from + _mm_popcnt_u32(mask & 0xffff);
    const __m256i next = _mm256_loadu2_m128i(reinterpret_cast<const __m128i *>(second),
                                             reinterpret_cast<const __m128i *>(from));
    from += _mm_popcnt_u32(mask);
    return _mm256_shuffle_epi8(next, places);
}

inline uint64_t pack_crumbs(__m256i codes) {
    const __m256i fours = _mm256_maddubs_epi16(codes, _mm256_set1_epi16(0x0401));
    const __m256i bytes = _mm256_madd_epi16(fours, _mm256_set1_epi32(0x00100001));
    const __m256i first =
        _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12,
                         -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i closed = _mm256_shuffle_epi8(bytes, first);
    return uint32_t(_mm256_extract_epi32(closed, 0)) |
           uint64_t(uint32_t(_mm256_extract_epi32(closed, 4))) << 32;
}

// Four times every byte of 8, each with one crumb left: where an even one is, with its value; where
// an odd one is, with its value times four.
inline __m256i crumbs_in_place(uint64_t codes) {
    const __m256i four_times = _mm256_setr_epi8(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4,
                                                4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7);
    const __m256i low = _mm256_shuffle_epi8(_mm256_set1_epi64x(int64_t(codes)), four_times);
    const __m256i high = _mm256_srli_epi16(low, 4);
    const __m256i both = _mm256_blend_epi16(low, high, 0xaa);
    return _mm256_and_si256(both, _mm256_set1_epi16(0x0c03));
}

inline __m256i unpack_crumbs(uint64_t codes) {
    const __m256i values = _mm256_setr_epi8(0, 1, 2, 3, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 1, 2,
                                            3, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0);
    return _mm256_shuffle_epi8(values, crumbs_in_place(codes));
}

inline __m256i lanes_of(uint32_t set) {
    const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2,
                                            2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x(int64_t(0x8040201008040201));
    const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(int(set)), spread);
    return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

inline __m256i split_e5(__m256i bytes, uint8_t *crumbs, uint8_t *signs) {
    const uint32_t sign = mask_of(bytes);
    const uint64_t low = pack_crumbs(_mm256_and_si256(bytes, _mm256_set1_epi8(3)));
    memcpy(signs, &sign, 4);
    memcpy(crumbs, &low, 8);
    return _mm256_and_si256(_mm256_srli_epi16(bytes, 2), _mm256_set1_epi8(31));
}

inline __m256i merge_e5(__m256i symbols, const uint8_t *crumbs, const uint8_t *signs) {
    uint32_t sign;
    uint64_t low;
    memcpy(&sign, signs, 4);
    memcpy(&low, crumbs, 8);
    const __m256i five = _mm256_slli_epi16(_mm256_and_si256(symbols, _mm256_set1_epi8(31)), 2);
    const __m256i top = _mm256_and_si256(lanes_of(sign), _mm256_set1_epi8(char(0x80)));
    return _mm256_or_si256(_mm256_or_si256(five, unpack_crumbs(low)), top);
}

void split_e5m2(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    uint8_t *signs = planes + (n + 3) / 4;
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        store(symbols + i, split_e5(load(raw + i), planes + i / 4, signs + i / 8));
    split_e5_end<1>(raw + i, n - i, symbols + i, planes + i / 4, signs + i / 8);
}

void merge_e5m2(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes, n, first);
    size_t i = 0;
    for (; i + 32 <= count; i += 32)
        store(raw + i, merge_e5(load(symbols + i), at.crumbs + i / 4, at.signs + i / 8));
    merge_e5_end<1>(symbols + i, at.crumbs + i / 4, at.signs + i / 8, count - i, raw + i);
}

// The lower and the upper bytes of 32 words.
struct Halves {
    __m256i low, high;
};

inline Halves unzip(__m256i a, __m256i b) {
    const __m256i ones = _mm256_set1_epi16(255);
    const __m256i low = _mm256_packus_epi16(_mm256_and_si256(a, ones), _mm256_and_si256(b, ones));
    const __m256i high = _mm256_packus_epi16(_mm256_srli_epi16(a, 8), _mm256_srli_epi16(b, 8));
    return {_mm256_permute4x64_epi64(low, 0xd8), _mm256_permute4x64_epi64(high, 0xd8)};
}

inline void zip(Halves halves, __m256i &a, __m256i &b) {
    const __m256i low = _mm256_permute4x64_epi64(halves.low, 0xd8);
    const __m256i high = _mm256_permute4x64_epi64(halves.high, 0xd8);
    a = _mm256_unpacklo_epi8(low, high);
    b = _mm256_unpackhi_epi8(low, high);
}

inline __m256i rotate(__m256i words, int left) {
    return _mm256_or_si256(_mm256_slli_epi16(words, left), _mm256_srli_epi16(words, 16 - left));
}

void split_bf16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *rest) {
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const Halves halves =
            unzip(rotate(load(raw + i * 2), 1), rotate(load(raw + i * 2 + 32), 1));
        store(symbols + i, halves.high);
        store(rest + i, halves.low);
    }
    split_lane<uint16_t>(raw + i * 2, n - i, n, symbols + i, rest + i);
}

void merge_bf16(const uint8_t *symbols, const uint8_t *rest, size_t, size_t first, size_t n,
                uint8_t *raw) {
    rest += first;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        __m256i a, b;
        zip({load(rest + i), load(symbols + i)}, a, b);
        store(raw + i * 2, rotate(a, 15));
        store(raw + i * 2 + 32, rotate(b, 15));
    }
    merge_lane<uint16_t>(symbols + i, rest + i, n - i, n, raw + i * 2);
}

void split_fp16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    uint8_t *crumbs = planes + n, *signs = crumbs + (n + 3) / 4;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const Halves halves = unzip(load(raw + i * 2), load(raw + i * 2 + 32));
        store(planes + i, halves.low);
        store(symbols + i, split_e5(halves.high, crumbs + i / 4, signs + i / 8));
    }
    split_fp16_end(raw + i * 2, n - i, symbols + i, planes + i, crumbs + i / 4, signs + i / 8);
}

void merge_fp16(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes + n, n, first);
    const uint8_t *low_bytes = planes + first;
    size_t i = 0;
    for (; i + 32 <= count; i += 32) {
        __m256i a, b;
        zip({load(low_bytes + i), merge_e5(load(symbols + i), at.crumbs + i / 4, at.signs + i / 8)},
            a, b);
        store(raw + i * 2, a);
        store(raw + i * 2 + 32, b);
    }
    merge_fp16_end(symbols + i, low_bytes + i, at.crumbs + i / 4, at.signs + i / 8, count - i,
                   raw + i * 2);
}

// The sign and mantissa of 32 bytes, in nibbles; two of them in the lower half of each word.
inline __m256i nibble_pairs(__m256i bytes) {
    const __m256i mantissa = _mm256_and_si256(bytes, _mm256_set1_epi8(7));
    const __m256i sign = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), _mm256_set1_epi8(8));
    return _mm256_maddubs_epi16(_mm256_or_si256(mantissa, sign), _mm256_set1_epi16(0x1001));
}

void split_fp8_e4m3(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const __m256i a = load(raw + i), b = load(raw + i + 32), low = _mm256_set1_epi8(15);
        store(symbols + i, _mm256_and_si256(_mm256_srli_epi16(a, 3), low));
        store(symbols + i + 32, _mm256_and_si256(_mm256_srli_epi16(b, 3), low));
        const __m256i pairs = _mm256_packus_epi16(nibble_pairs(a), nibble_pairs(b));
        store(planes + i / 2, _mm256_permute4x64_epi64(pairs, 0xd8));
    }
    split_e4m3(raw + i, n - i, symbols + i, planes + i / 2);
}

void merge_fp8_e4m3(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first,
                    size_t count, uint8_t *raw) {
    planes += first / 2;
    const __m256i low = _mm256_set1_epi8(15), exponent = _mm256_set1_epi8(0x78);
    // Where the sign and mantissa in a nibble go.
    const __m256i apart = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, -128, -127, -126, -125, -124, -123, -122, -121));
    const auto join = [&](const uint8_t *from, __m256i rest, uint8_t *to) {
        const __m256i moved = _mm256_slli_epi16(load(from), 3);
        store(to, _mm256_or_si256(_mm256_and_si256(moved, exponent), rest));
    };
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        const __m256i pairs = _mm256_permute4x64_epi64(load(planes + i / 2), 0xd8);
        const __m256i even = _mm256_shuffle_epi8(apart, _mm256_and_si256(pairs, low));
        const __m256i odd =
            _mm256_shuffle_epi8(apart, _mm256_and_si256(_mm256_srli_epi16(pairs, 4), low));
        join(symbols + i, _mm256_unpacklo_epi8(even, odd), raw + i);
        join(symbols + i + 32, _mm256_unpackhi_epi8(even, odd), raw + i + 32);
    }
    merge_e4m3(symbols + i, planes + i / 2, n, 0, count - i, raw + i);
}

// By what a table adds to its index, 16 entries at a time; most add nothing.
void translate(const uint8_t *from, size_t n, const uint8_t *table, int size, uint8_t *to) {
    __m256i bases[16], sums[16];
    int used = 0;
    const __m128i ramp = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    for (int k = 0; k < size / 16; k++) {
        const __m128i base = _mm_set1_epi8(char(16 * k));
        const __m128i entries = _mm_loadu_si128(reinterpret_cast<const __m128i *>(table + 16 * k));
        const __m128i sum = _mm_sub_epi8(entries, _mm_add_epi8(ramp, base));
        if (_mm_testz_si128(sum, sum)) continue;
        bases[used] = _mm256_broadcastsi128_si256(base);
        sums[used++] = _mm256_broadcastsi128_si256(sum);
    }
    const __m256i others = _mm256_set1_epi8(0x70);  // of another 16: their highest bit gives zero
    for (size_t i = 0; i < n; i += 32) {
        const __m256i v = load(from + i);
        __m256i sum = v;
        for (int k = 0; k < used; k++) {
            const __m256i at = _mm256_adds_epu8(_mm256_xor_si256(v, bases[k]), others);
            sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(sums[k], at));
        }
        store(to + i, sum);
    }
}

template <int Width>
size_t count_codes(const uint8_t *codes, size_t n) {
    const __m256i ones =
        _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m256i low = _mm256_set1_epi8(15);
    __m256i total = _mm256_setzero_si256();
    constexpr size_t kCodes = 256 / Width;
    size_t left = n;
    for (; left >= kCodes; left -= kCodes, codes += 32) {
        __m256i v = load(codes);
        if (Width == 2)
            v = _mm256_and_si256(_mm256_and_si256(v, _mm256_srli_epi16(v, 1)),
                                 _mm256_set1_epi8(0x55));
        const __m256i count = _mm256_add_epi8(
            _mm256_shuffle_epi8(ones, _mm256_and_si256(v, low)),
            _mm256_shuffle_epi8(ones, _mm256_and_si256(_mm256_srli_epi16(v, 4), low)));
        total = _mm256_add_epi64(total, _mm256_sad_epu8(count, _mm256_setzero_si256()));
    }
    return size_t(_mm256_extract_epi64(total, 0) + _mm256_extract_epi64(total, 1) +
                  _mm256_extract_epi64(total, 2) + _mm256_extract_epi64(total, 3)) +
           count_passing<Width>(codes, left);
}

// 32 ranks; returns where the next that is passed on goes.
template <int Width>
inline uint8_t *code_lane(const uint8_t *ranks, uint8_t *codes, uint8_t *to) {
    const __m256i size = _mm256_set1_epi8(kClass<Width>);
    const __m256i rank = load(ranks), own = _mm256_min_epu8(rank, size);
    const uint32_t passed = mask_of(_mm256_cmpeq_epi8(own, size));
    if (Width == 2) {
        const uint64_t eight = pack_crumbs(own);
        memcpy(codes, &eight, 8);
    } else {
        memcpy(codes, &passed, 4);
    }
    return close_ranks(_mm256_sub_epi8(rank, size), passed, to);
}

template <int Width>
size_t code(const uint8_t *ranks, size_t n, uint8_t *codes, uint8_t *passed) {
    uint8_t *to = passed;
    size_t i = 0;
    for (; i + 32 <= n; i += 32) to = code_lane<Width>(ranks + i, codes + i * Width / 8, to);
    if (i == n) return size_t(to - passed);
    uint8_t rest[32] = {};  // of the first member: their codes are zero
    memcpy(rest, ranks + i, n - i);
    return size_t(code_lane<Width>(rest, codes + i * Width / 8, to) - passed);
}

// 32 symbols; returns what of `passed` is left.
template <int Width>
inline const uint8_t *decode_lane(const uint8_t *codes, __m256i lookup, const uint8_t *passed,
                                  uint8_t *symbols) {
    const __m256i passes = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 0, 0, -1, 0, 0, 0, 0, 0, 0, 0, 0, -1, 0, 0, 0));
    __m256i own, passing;
    if (Width == 2) {
        uint64_t eight;
        memcpy(&eight, codes, 8);
        const __m256i each = crumbs_in_place(eight);
        own = _mm256_shuffle_epi8(lookup, each);
        passing = _mm256_shuffle_epi8(passes, each);
    } else {
        uint32_t bits;
        memcpy(&bits, codes, 4);
        passing = lanes_of(bits);
        own = _mm256_andnot_si256(passing, lookup);
    }
    store(symbols, _mm256_or_si256(own, open_ranks(passing, passed)));
    return passed;
}

template <int Width>
const uint8_t *decode(const uint8_t *codes, size_t n, const uint8_t *members, const uint8_t *passed,
                      uint8_t *symbols) {
    const char zero = char(members[0]), one = Width == 2 ? char(members[1]) : char(0);
    const char two = Width == 2 ? char(members[2]) : char(0);
    // By what crumbs_in_place leaves of a code.
    const __m128i by_code =
        _mm_setr_epi8(zero, one, two, 0, one, 0, 0, 0, two, 0, 0, 0, 0, 0, 0, 0);
    const __m256i lookup =
        Width == 2 ? _mm256_broadcastsi128_si256(by_code) : _mm256_set1_epi8(zero);
    return decode_lanes<Width>(
        codes, n, passed, symbols, [&](const uint8_t *from, const uint8_t *next, uint8_t *to) {
            next = decode_lane<Width>(from, lookup, next, to);
            return decode_lane<Width>(from + 4 * Width, lookup, next, to + 32);
        });
}

}  // namespace

const Kernels kAvx2Kernels = {
    "avx2",
    hash,
    {split_bytes, split_bf16, split_fp16, split_rotated<uint32_t>, split_fp8_e4m3, split_e5m2},
    {merge_bytes, merge_bf16, merge_fp16, merge_rotated<uint32_t>, merge_fp8_e4m3, merge_e5m2},
    largest,
    tally_plain,
    translate,
    {code<1>, code<2>},
    {count_codes<1>, count_codes<2>},
    {decode<1>, decode<2>},
};

}  // namespace ucm::compress
