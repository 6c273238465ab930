// SPDX-License-Identifier: MIT
#include "kernels_generic.h"

namespace ucm::compress {
namespace {

void split_fp16(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    split_fp16_end(raw, n, symbols, planes, planes + n, planes + n + (n + 3) / 4);
}

void merge_fp16(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes + n, n, first);
    merge_fp16_end(symbols, planes + first, at.crumbs, at.signs, count, raw);
}

void split_e5m2(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes) {
    split_e5_end<1>(raw, n, symbols, planes, planes + (n + 3) / 4);
}

void merge_e5m2(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first, size_t count,
                uint8_t *raw) {
    const Fives at(planes, n, first);
    merge_e5_end<1>(symbols, at.crumbs, at.signs, count, raw);
}

void translate(const uint8_t *from, size_t n, const uint8_t *table, int, uint8_t *to) {
    for (size_t i = 0; i < n; i++) to[i] = table[from[i]];
}

}  // namespace

const Kernels kScalarKernels = {
    "scalar",
    hash,
    {split_bytes, split_rotated<uint16_t>, split_fp16, split_rotated<uint32_t>, split_e4m3,
     split_e5m2},
    {merge_bytes, merge_rotated<uint16_t>, merge_fp16, merge_rotated<uint32_t>, merge_e4m3,
     merge_e5m2},
    largest,
    tally_plain,
    translate,
    {code_end<1>, code_end<2>},
    {count_passing<1>, count_passing<2>},
    {decode_end<1>, decode_end<2>},
};

}  // namespace ucm::compress
