// SPDX-License-Identifier: MIT
// Needs what every 64-bit ARM has.
#include <arm_neon.h>

#include "kernels_generic.h"

namespace ucm::compress {
namespace {

// The bytes of 64 symbols: vector k has those at k, k + 4, k + 8 and so on.
using Fours = uint8x16x4_t;

// Of words that rotate left by one: these bytes, with the highest bit of those below.
inline uint8x16_t shift_in(uint8x16_t bytes, uint8x16_t low) {
    return vsriq_n_u8(vshlq_n_u8(bytes, 1), low, 7);
}
// And right: with the lowest of those above.
inline uint8x16_t shift_out(uint8x16_t bytes, uint8x16_t high) {
    return vsliq_n_u8(vshrq_n_u8(bytes, 1), high, 7);
}

void split_bf16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *rest) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const uint8x16x2_t word = vld2q_u8(raw + i * 2);
        vst1q_u8(symbols + i, shift_in(word.val[1], word.val[0]));
        vst1q_u8(rest + i, shift_in(word.val[0], word.val[1]));
    }
    split_lane<uint16_t>(raw + i * 2, n - i, n, symbols + i, rest + i);
}

void merge_bf16(const uint8_t *symbols, const uint8_t *rest, size_t, size_t first, size_t n,
                uint8_t *raw) {
    rest += first;
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const uint8x16_t high = vld1q_u8(symbols + i), low = vld1q_u8(rest + i);
        vst2q_u8(raw + i * 2, {{shift_out(low, high), shift_out(high, low)}});
    }
    merge_lane<uint16_t>(symbols + i, rest + i, n - i, n, raw + i * 2);
}

void split_fp32(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *rest) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const uint8x16x4_t word = vld4q_u8(raw + i * 4);
        vst1q_u8(symbols + i, shift_in(word.val[3], word.val[2]));
        vst1q_u8(rest + i + n * 2, shift_in(word.val[2], word.val[1]));
        vst1q_u8(rest + i + n, shift_in(word.val[1], word.val[0]));
        vst1q_u8(rest + i, shift_in(word.val[0], word.val[3]));
    }
    split_lane<uint32_t>(raw + i * 4, n - i, n, symbols + i, rest + i);
}

void merge_fp32(const uint8_t *symbols, const uint8_t *rest, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    rest += first;
    size_t i = 0;
    for (; i + 16 <= count; i += 16) {
        const uint8x16_t d = vld1q_u8(symbols + i), c = vld1q_u8(rest + i + n * 2);
        const uint8x16_t b = vld1q_u8(rest + i + n), a = vld1q_u8(rest + i);
        vst4q_u8(raw + i * 4,
                 {{shift_out(a, b), shift_out(b, c), shift_out(c, d), shift_out(d, a)}});
    }
    merge_lane<uint32_t>(symbols + i, rest + i, count - i, n, raw + i * 4);
}

void split_fp8_e4m3(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *nibbles) {
    const uint8x16_t four_bits = vdupq_n_u8(15);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const uint8x16x2_t two = vld2q_u8(raw + i);
        const uint8x16_t even = two.val[0], odd = two.val[1];
        vst2q_u8(symbols + i, {{vandq_u8(vshrq_n_u8(even, 3), four_bits),
                                vandq_u8(vshrq_n_u8(odd, 3), four_bits)}});
        // The sign comes to stand above the mantissa.
        const uint8x16_t low = vsliq_n_u8(even, vshrq_n_u8(even, 7), 3);
        const uint8x16_t high = vsliq_n_u8(odd, vshrq_n_u8(odd, 7), 3);
        vst1q_u8(nibbles + i / 2, vsliq_n_u8(low, high, 4));
    }
    split_e4m3(raw + i, n - i, symbols + i, nibbles + i / 2);
}

void merge_fp8_e4m3(const uint8_t *symbols, const uint8_t *nibbles, size_t, size_t first, size_t n,
                    uint8_t *raw) {
    nibbles += first / 2;
    const uint8x16_t sign = vdupq_n_u8(0x80);
    size_t i = 0;
    for (; i + 32 <= n; i += 32) {
        const uint8x16x2_t two = vld2q_u8(symbols + i);
        const uint8x16_t both = vld1q_u8(nibbles + i / 2);
        const uint8x16_t even = vsliq_n_u8(both, two.val[0], 3);
        const uint8x16_t odd = vsliq_n_u8(vshrq_n_u8(both, 4), two.val[1], 3);
        vst2q_u8(raw + i, {{vbslq_u8(sign, vshlq_n_u8(both, 4), even), vbslq_u8(sign, both, odd)}});
    }
    merge_e4m3(symbols + i, nibbles + i / 2, n, 0, n - i, raw + i);
}

// The lower two bits of 64 bytes.
inline uint8x16_t pack_crumbs(const Fours &bytes) {
    const uint8x16_t low = vsliq_n_u8(bytes.val[0], bytes.val[1], 2);
    const uint8x16_t high = vsliq_n_u8(bytes.val[2], bytes.val[3], 2);
    return vsliq_n_u8(low, high, 4);
}

// The highest bits of 64 bytes.
inline uint8x8_t pack_signs(const Fours &bytes) {
    const uint8x16_t low = vsriq_n_u8(bytes.val[1], bytes.val[0], 1);
    const uint8x16_t high = vsriq_n_u8(bytes.val[3], bytes.val[2], 1);
    const uint8x16_t nibbles = vshrq_n_u8(vsriq_n_u8(high, low, 2), 4);
    const uint16x8_t pairs = vreinterpretq_u16_u8(nibbles);
    return vmovn_u16(vsraq_n_u16(pairs, pairs, 4));
}

inline Fours split_e5(const Fours &bytes, uint8_t *crumbs, uint8_t *signs) {
    vst1q_u8(crumbs, pack_crumbs(bytes));
    vst1_u8(signs, pack_signs(bytes));
    Fours symbols;
    for (int k = 0; k < 4; k++)
        symbols.val[k] = vandq_u8(vshrq_n_u8(bytes.val[k], 2), vdupq_n_u8(31));
    return symbols;
}

inline Fours merge_e5(const Fours &symbols, const uint8_t *crumbs, const uint8_t *signs) {
    const uint8x16_t crumb = vld1q_u8(crumbs);
    const uint8x8_t eight = vld1_u8(signs);
    const uint8x16_t sign =
        vcombine_u8(vzip1_u8(eight, vshr_n_u8(eight, 4)), vzip2_u8(eight, vshr_n_u8(eight, 4)));
    const uint8x16_t low[4] = {crumb, vshrq_n_u8(crumb, 2), vshrq_n_u8(crumb, 4),
                               vshrq_n_u8(crumb, 6)};
    const uint8x16_t top[4] = {vshlq_n_u8(sign, 7), vshlq_n_u8(sign, 6), vshlq_n_u8(sign, 5),
                               vshlq_n_u8(sign, 4)};
    Fours bytes;
    for (int k = 0; k < 4; k++)
        bytes.val[k] = vbslq_u8(vdupq_n_u8(0x80), top[k], vsliq_n_u8(low[k], symbols.val[k], 2));
    return bytes;
}

void split_e5m2(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    uint8_t *signs = planes + (n + 3) / 4;
    size_t i = 0;
    for (; i + 64 <= n; i += 64)
        vst4q_u8(symbols + i, split_e5(vld4q_u8(raw + i), planes + i / 4, signs + i / 8));
    split_e5_end<1>(raw + i, n - i, symbols + i, planes + i / 4, signs + i / 8);
}

void merge_e5m2(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes, n, first);
    size_t i = 0;
    for (; i + 64 <= count; i += 64)
        vst4q_u8(raw + i, merge_e5(vld4q_u8(symbols + i), at.crumbs + i / 4, at.signs + i / 8));
    merge_e5_end<1>(symbols + i, at.crumbs + i / 4, at.signs + i / 8, count - i, raw + i);
}

void split_fp16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    uint8_t *crumbs = planes + n, *signs = crumbs + (n + 3) / 4;
    size_t i = 0;
    for (; i + 64 <= n; i += 64) {
        // Every fourth word, of which every fourth byte is then made.
        const uint8_t *at = raw + i * 2;
        const uint16x8x4_t a = vld4q_u16(reinterpret_cast<const uint16_t *>(at));
        const uint16x8x4_t b = vld4q_u16(reinterpret_cast<const uint16_t *>(at + 64));
        Fours low, high;
        for (int k = 0; k < 4; k++) {
            const uint8x16_t front = vreinterpretq_u8_u16(a.val[k]);
            const uint8x16_t back = vreinterpretq_u8_u16(b.val[k]);
            low.val[k] = vuzp1q_u8(front, back);
            high.val[k] = vuzp2q_u8(front, back);
        }
        vst4q_u8(planes + i, low);
        vst4q_u8(symbols + i, split_e5(high, crumbs + i / 4, signs + i / 8));
    }
    split_fp16_end(raw + i * 2, n - i, symbols + i, planes + i, crumbs + i / 4, signs + i / 8);
}

void merge_fp16(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes + n, n, first);
    planes += first;
    size_t i = 0;
    for (; i + 64 <= count; i += 64) {
        const Fours low = vld4q_u8(planes + i);
        const Fours high = merge_e5(vld4q_u8(symbols + i), at.crumbs + i / 4, at.signs + i / 8);
        uint16x8x4_t a, b;
        for (int k = 0; k < 4; k++) {
            a.val[k] = vreinterpretq_u16_u8(vzip1q_u8(low.val[k], high.val[k]));
            b.val[k] = vreinterpretq_u16_u8(vzip2q_u8(low.val[k], high.val[k]));
        }
        vst4q_u16(reinterpret_cast<uint16_t *>(raw + i * 2), a);
        vst4q_u16(reinterpret_cast<uint16_t *>(raw + i * 2 + 64), b);
    }
    merge_fp16_end(symbols + i, planes + i, at.crumbs + i / 4, at.signs + i / 8, count - i,
                   raw + i * 2);
}

void translate(const uint8_t *from, size_t n, const uint8_t *table, int size, uint8_t *to) {
    if (size == 32) {
        const uint8x16x2_t both = {{vld1q_u8(table), vld1q_u8(table + 16)}};
        for (size_t i = 0; i < n; i += 16) vst1q_u8(to + i, vqtbl2q_u8(both, vld1q_u8(from + i)));
        return;
    }
    Fours parts[4];
    for (int k = 0; k < 16; k++) parts[k / 4].val[k % 4] = vld1q_u8(table + k * 16);
    const uint8x16_t part = vdupq_n_u8(64);
    for (size_t i = 0; i < n; i += 16) {
        uint8x16_t index = vld1q_u8(from + i);
        uint8x16_t found = vqtbl4q_u8(parts[0], index);
        for (int k = 1; k < 4; k++) {
            index = vsubq_u8(index, part);  // what is not in this part is out of range
            found = vqtbx4q_u8(found, parts[k], index);
        }
        vst1q_u8(to + i, found);
    }
}

// Which of 64 lanes, one behind another, are all ones.
inline uint8x8_t mask_of(const uint8x16_t (&lanes)[4]) {
    const uint8x16_t bit = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201));
    const uint8x16_t a = vpaddq_u8(vandq_u8(lanes[0], bit), vandq_u8(lanes[1], bit));
    const uint8x16_t b = vpaddq_u8(vandq_u8(lanes[2], bit), vandq_u8(lanes[3], bit));
    const uint8x16_t both = vpaddq_u8(a, b);
    return vget_low_u8(vpaddq_u8(both, both));
}

// Sets of 8 lanes each, and byte k of `ends`: how many lanes are in these up to the k-th.
struct Sets {
    uint64_t lanes, ends;

    explicit Sets(uint8x8_t masks)
        : lanes(vget_lane_u64(vreinterpret_u64_u8(masks), 0)),
          ends(vget_lane_u64(vreinterpret_u64_u8(vcnt_u8(masks)), 0) * 0x0101010101010101) {}
    size_t set(int k) const { return lanes >> k * 8 & 255; }
    size_t begin(int k) const { return ends << 8 >> k * 8 & 255; }
    size_t count() const { return ends >> 56; }
};

// 64 ranks, of which those that pass go to `to`. Returns how many.
template <int Width>
inline size_t code_lane(const uint8_t *ranks, uint8_t *codes, uint8_t *to) {
    const uint8x16_t size = vdupq_n_u8(kClass<Width>);
    uint8x16_t rank[4], passed[4];
    for (int k = 0; k < 4; k++) {
        rank[k] = vld1q_u8(ranks + k * 16);
        passed[k] = vcgeq_u8(rank[k], size);
    }
    const uint8x8_t masks = mask_of(passed);
    if (Width == 2) {
        Fours own = vld4q_u8(ranks);
        for (int k = 0; k < 4; k++) own.val[k] = vminq_u8(own.val[k], size);
        vst1q_u8(codes, pack_crumbs(own));
    } else {
        vst1_u8(codes, masks);
    }
    const Sets sets(masks);
    for (int k = 0; k < 8; k++) {
        const uint8x16_t less = vsubq_u8(rank[k / 2], size);
        const uint8x8_t eight = k % 2 ? vget_high_u8(less) : vget_low_u8(less);
        vst1_u8(to + sets.begin(k), vtbl1_u8(eight, vld1_u8(kShuffles.close[sets.set(k)])));
    }
    return sets.count();
}

template <int Width>
size_t code(const uint8_t *ranks, size_t n, uint8_t *codes, uint8_t *passed) {
    size_t i = 0, count = 0;
    for (; i + 64 <= n; i += 64)
        count += code_lane<Width>(ranks + i, codes + i * Width / 8, passed + count);
    if (i == n) return count;
    uint8_t rest[64] = {};  // what is behind the last rank does not pass
    memcpy(rest, ranks + i, n - i);
    return count + code_lane<Width>(rest, codes + i * Width / 8, passed + count);
}

template <int Width>
size_t count(const uint8_t *codes, size_t n) {
    size_t i = 0, count = 0;
    for (; i + 128 <= n; i += 128)
        for (int k = 0; k < Width; k++) {
            uint8x16_t bits = vld1q_u8(codes + i * Width / 8 + k * 16);
            if (Width == 2) bits = vandq_u8(vandq_u8(bits, vshrq_n_u8(bits, 1)), vdupq_n_u8(0x55));
            count += vaddvq_u8(vcntq_u8(bits));
        }
    return count + count_passing<Width>(codes + i * Width / 8, n - i);
}

// 64 symbols; returns what of `passed` is left.
template <int Width>
inline const uint8_t *decode_lane(const uint8_t *codes, uint8x16_t members, const uint8_t *passed,
                                  uint8_t *symbols) {
    uint8x16_t own[4] = {members, members, members, members};
    uint8x8_t masks;
    if (Width == 2) {
        const uint8x16_t all = vld1q_u8(codes);
        const uint8x16_t fourth =
            vcombine_u8(vcreate_u8(0x0101010100000000), vcreate_u8(0x0303030302020202));
        const int8x16_t down = vreinterpretq_s8_u32(vdupq_n_u32(0xfafcfe00));  // by 0, 2, 4, 6
        uint8x16_t passing[4];
        for (int k = 0; k < 4; k++) {
            const uint8x16_t four = vqtbl1q_u8(all, vaddq_u8(fourth, vdupq_n_u8(uint8_t(k * 4))));
            const uint8x16_t each = vandq_u8(vshlq_u8(four, down), vdupq_n_u8(3));
            passing[k] = vceqq_u8(each, vdupq_n_u8(3));
            own[k] = vqtbl1q_u8(members, each);
        }
        masks = mask_of(passing);
    } else {
        masks = vld1_u8(codes);
    }
    const Sets sets(masks);
    for (int k = 0; k < 8; k++) {
        const uint8x8_t eight = k % 2 ? vget_high_u8(own[k / 2]) : vget_low_u8(own[k / 2]);
        const uint8x8_t open = vld1_u8(kShuffles.open[sets.set(k)]);
        vst1_u8(symbols + k * 8, vqtbx1_u8(eight, vld1q_u8(passed + sets.begin(k)), open));
    }
    return passed + sets.count();
}

template <int Width>
const uint8_t *decode(const uint8_t *codes, size_t n, const uint8_t *members, const uint8_t *passed,
                      uint8_t *symbols) {
    const uint8x16_t lookup = vreinterpretq_u8_u32(vdupq_n_u32(members_by_code<Width>(members)));
    return decode_lanes<Width>(codes, n, passed, symbols,
                               [&](const uint8_t *from, const uint8_t *next, uint8_t *to) {
                                   return decode_lane<Width>(from, lookup, next, to);
                               });
}

}  // namespace

const Kernels kNeonKernels = {
    "neon",
    hash,
    {split_bytes, split_bf16, split_fp16, split_fp32, split_fp8_e4m3, split_e5m2},
    {merge_bytes, merge_bf16, merge_fp16, merge_fp32, merge_fp8_e4m3, merge_e5m2},
    largest,
    tally_plain,
    translate,
    {code<1>, code<2>},
    {count<1>, count<2>},
    {decode<1>, decode<2>},
};

}  // namespace ucm::compress
