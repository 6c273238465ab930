// SPDX-License-Identifier: MIT
#include "guess.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "classes.h"
#include "sample.h"
#include "ucm/store_v1.h"

namespace ucm::compress {
namespace {

constexpr uint32_t kRun = 128, kRuns = 8;

// By where bytes are in words of 4: all, those at odd places; and exponents of bf16 and fp32.
struct Counts {
    const uint32_t (&any)[256];
    uint32_t odd[256] = {}, half[256] = {}, word[256] = {};
};

void count(const uint8_t *run, uint32_t bytes, Counts &counts) {
    for (uint32_t i = 0; i + 4 <= bytes; i += 4) {
        uint16_t low, high;
        std::memcpy(&low, run + i, 2);
        std::memcpy(&high, run + i + 2, 2);
        counts.odd[run[i + 1]]++;
        counts.odd[run[i + 3]]++;
        counts.half[low >> 7 & 255]++;
        counts.half[high >> 7 & 255]++;
        counts.word[high >> 7 & 255]++;
    }
}

// Are these n bytes spread as evenly as random ones, but for so many times what these deviate by?
// Then no numbers that they could be have exponents worth coding.
bool is_noise(const uint32_t (&counts)[256], uint32_t n, float deviations) {
    uint32_t equal = 0;  // pairs, twice, and each with itself
    for (uint32_t count : counts) equal += count * count;
    return float(equal) < float(n) * (1 + float(n) / 256 + deviations * 0.0884f);
}

// How often the `bits` bits from `shift` on are what. Neighbours are not added to one field in
// turn, which would wait for itself.
void fold(const uint32_t (&counts)[256], int shift, int bits, uint32_t (&fields)[256]) {
    const int size = 1 << bits, step = 1 << shift;
    for (int at = 0; at < 256; at += size * step)
        for (int low = 0; low < step; low++)
            for (int f = 0; f < size; f++) fields[f] += counts[at + f * step + low];
}

// Bits of a symbol, the bits of a byte from `shift` on, as the codec of this mode would code it;
// perhaps fewer where these are `enough` already.
float symbol(const uint32_t (&counts)[256], int shift, int bits, Mode mode, float enough) {
    uint32_t fields[256] = {};
    fold(counts, shift, bits, fields);
    uint32_t total = 0, equal = 0, none = 0;
    for (uint32_t count : fields) {
        total += count;
        equal += count * count;
        none += count == 0;
    }
    if (total == 0) return 8;
    if (mode == Mode::kFast) {
        // Numbers have few exponents: noise is soon seen.
        if (none < 128) return float(bits);
        // No code is shorter than this entropy, and choosing classes takes longer.
        const float least = 2 * std::log2(float(total)) - std::log2(float(equal));
        if (least >= enough) return least;
        return float(choose_classes(fields, total, kTileBytes, 1 << bits).bits);
    }
    float sum = 0, seen = 0;
    for (uint32_t count : fields)
        if (count) sum += float(count) * std::log2(float(count)), seen++;
    // A sample shows less entropy than there is (Miller 1955).
    return std::log2(float(total)) - (sum - (seen - 1) * 0.72f) / float(total);
}

// What a byte takes as a number of this dtype; perhaps less where that is `enough` already.
float cost_of(int dtype, const Counts &counts, Mode mode, float enough) {
    struct Field {
        const uint32_t (&counts)[256];
        int shift, bits, beside, all;
    };
    // Small codes whole bytes.
    const bool small = mode == Mode::kSmall;
    const Field fields[kDtypes] = {
        {counts.any, 0, 8, 0, 8},
        {counts.half, 0, 8, 8, 16},
        small ? Field{counts.odd, 0, 8, 8, 16} : Field{counts.odd, 2, 5, 11, 16},
        {counts.word, 0, 8, 24, 32},
        small ? Field{counts.any, 0, 8, 0, 8} : Field{counts.any, 3, 4, 4, 8},
        small ? Field{counts.any, 0, 8, 0, 8} : Field{counts.any, 2, 5, 3, 8},
    };
    if (dtype == UCM_DTYPE_BYTES) return 31.0f / 32;
    const auto &[of, shift, bits, beside, all] = fields[dtype];
    const float beside_bits = float(beside), all_bits = float(all);
    return (symbol(of, shift, bits, mode, enough * all_bits - beside_bits) + beside_bits) /
           all_bits;
}

}  // namespace

bool looks_random(const uint8_t *bytes, uint32_t n) {
    uint32_t counts[256] = {};
    for (uint32_t i = 0; i < n; i++) counts[bytes[i]]++;
    return is_noise(counts, n, 4);
}

Guess guess_dtype(const uint8_t *raw, uint32_t bytes, int first, Mode mode) {
    uint8_t sample[kRun * kRuns];
    const uint32_t n = std::min(bytes, kRun * kRuns) / 4 * 4;
    if (bytes <= n + 3) {
        std::memcpy(sample, raw, n);
    } else {
        uint8_t *to = sample;
        each_run(bytes, kRun, kRuns, 4, [&](size_t at) {
            std::memcpy(to, raw + at, kRun);
            to += kRun;
        });
    }
    uint32_t any[256] = {};
    for (uint32_t i = 0; i < n; i++) any[sample[i]]++;
    if (is_noise(any, n, 2.5f)) return {UCM_DTYPE_BYTES, true};
    Counts counts{any};
    count(sample, n, counts);
    float cost[kDtypes];
    cost[first] = cost_of(first, counts, mode, 8);
    for (int dtype = 0; dtype < kDtypes; dtype++)
        if (dtype != first) cost[dtype] = cost_of(dtype, counts, mode, cost[first]);
    const int best = int(std::min_element(cost, cost + kDtypes) - cost);
    const bool stays = cost[first] < cost[best] * 1.01f && cost[first] < cost[UCM_DTYPE_BYTES];
    return {stays ? first : best, false};
}

}  // namespace ucm::compress
