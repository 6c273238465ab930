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
    uint32_t any[256] = {}, odd[256] = {}, half[256] = {}, word[256] = {};
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

// Are these n bytes spread as evenly as random ones, but for half again what these deviate by? Then
// no numbers that they could be have exponents worth coding.
bool is_noise(const uint32_t (&counts)[256], uint32_t n) {
    uint32_t equal = 0;  // pairs, twice, and each with itself
    for (uint32_t count : counts) equal += count * count;
    return float(equal) < float(n) * (1 + float(n) / 256 + 1.5f * 0.0884f);
}

// Bits of a symbol, the bits of a byte from `shift` on, as the codec of this mode would code it.
float symbol(const uint32_t (&counts)[256], int shift, int bits, Mode mode) {
    uint32_t fields[256] = {};
    uint32_t total = 0;
    for (uint32_t byte = 0; byte < 256; byte++) {
        fields[byte >> shift & ((1u << bits) - 1)] += counts[byte];
        total += counts[byte];
    }
    if (total == 0) return 8;
    // Numbers have few exponents: noise is soon seen.
    if (mode == Mode::kFast && std::count(fields, fields + 256, 0u) < 128) return float(bits);
    if (mode == Mode::kFast)
        return float(choose_classes(fields, total, kTileBytes, 1 << bits).bits);
    float sum = 0, seen = 0;
    for (uint32_t count : fields)
        if (count) sum += float(count) * std::log2(float(count)), seen++;
    // A sample shows less entropy than there is (Miller 1955).
    return std::log2(float(total)) - (sum - (seen - 1) * 0.72f) / float(total);
}

}  // namespace

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
    Counts counts;
    for (uint32_t i = 0; i < n; i++) counts.any[sample[i]]++;
    if (is_noise(counts.any, n)) return {UCM_DTYPE_BYTES, true};
    count(sample, n, counts);
    // What a byte takes.
    float cost[kDtypes];
    cost[UCM_DTYPE_BYTES] = 31.0f / 32;
    cost[UCM_DTYPE_BF16] = (symbol(counts.half, 0, 8, mode) + 8) / 16;
    cost[UCM_DTYPE_FP32] = (symbol(counts.word, 0, 8, mode) + 24) / 32;
    if (mode == Mode::kSmall) {  // codes whole bytes
        cost[UCM_DTYPE_FP16] = (symbol(counts.odd, 0, 8, mode) + 8) / 16;
        cost[UCM_DTYPE_FP8_E4M3] = cost[UCM_DTYPE_FP8_E5M2] = symbol(counts.any, 0, 8, mode) / 8;
    } else {
        cost[UCM_DTYPE_FP16] = (symbol(counts.odd, 2, 5, mode) + 11) / 16;
        cost[UCM_DTYPE_FP8_E4M3] = (symbol(counts.any, 3, 4, mode) + 4) / 8;
        cost[UCM_DTYPE_FP8_E5M2] = (symbol(counts.any, 2, 5, mode) + 3) / 8;
    }
    const int best = int(std::min_element(cost, cost + kDtypes) - cost);
    const bool stays = cost[first] < cost[best] * 1.01f && cost[first] < cost[UCM_DTYPE_BYTES];
    return {stays ? first : best, false};
}

}  // namespace ucm::compress
