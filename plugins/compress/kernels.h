// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

namespace ucm::compress {

constexpr size_t kTileBytes = 65536;
constexpr int kDtypes = 6;  // UCM_DTYPE_*, by number

// Behind what they read as symbols and passed-on symbols, kernels may read this much, and write as
// much behind symbols, ranks and codes. Raw bytes and planes they keep to.
constexpr size_t kKernelSlack = 64;

constexpr int kTallied = 8;
constexpr size_t kMostTallied = 4096;

// The inner loops of the codec "classes" (docs/frame-format.md), for one kind of processor. All
// sets give the same bytes.
struct Kernels {
    const char *name;

    // xxh3_64
    uint64_t (*hash)(const void *bytes, size_t n, uint64_t seed);

    // n elements to symbols and the planes beside them; by dtype.
    void (*split[kDtypes])(const uint8_t *raw, size_t n, uint8_t *symbols, uint8_t *planes);
    // Back, `count` of n elements from `first` on, a multiple of 64; symbols and raw are of those.
    void (*merge[kDtypes])(const uint8_t *symbols, const uint8_t *planes, size_t n, size_t first,
                           size_t count, uint8_t *raw);

    // The largest of n symbols, and how many are each of kTallied from `first` on; n is a multiple
    // of 64 and at most kMostTallied.
    uint8_t (*largest)(const uint8_t *symbols, size_t n);
    void (*tally)(const uint8_t *symbols, size_t n, uint8_t first, uint32_t *counts);

    // to[i] = table[from[i]], a table of 32 or 256.
    void (*translate)(const uint8_t *from, size_t n, const uint8_t *table, int size, uint8_t *to);

    // One level, by its width less 1. Ranks below the size of the class, 1 or 3, are codes; the
    // others are passed on, less that size, to `passed`, which may be `ranks`. Returns how many.
    size_t (*code[2])(const uint8_t *ranks, size_t n, uint8_t *codes, uint8_t *passed);
    // How many of n codes pass on.
    size_t (*count[2])(const uint8_t *codes, size_t n);
    // Back: a symbol of `members`, or the next of `passed`; returns what is left of these.
    const uint8_t *(*decode[2])(const uint8_t *codes, size_t n, const uint8_t *members,
                                const uint8_t *passed, uint8_t *symbols);
};

extern const Kernels kScalarKernels;
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const Kernels kNeonKernels;

// For tests: the name in UCM_COMPRESS_KERNELS, or NULL.
const char *wanted_kernels();
// Those that are wanted, else the fastest that this processor runs; or by name, NULL if it does not
// run them or there are none.
const Kernels &best_kernels();
const Kernels *kernels_named(const char *name);

// Bytes of one element; 0: no such dtype.
constexpr size_t element_bytes(int32_t dtype) {
    const size_t bytes[kDtypes] = {1, 2, 2, 4, 1, 1};
    return 0 <= dtype && dtype < kDtypes ? bytes[dtype] : 0;
}

// Bytes of the planes beside n symbols.
constexpr size_t plane_bytes(int dtype, size_t n) {
    const size_t crumbs = (n + 3) / 4 + (n + 7) / 8;
    const size_t bytes[kDtypes] = {0, n, n + crumbs, n * 3, (n + 1) / 2, crumbs};
    return bytes[dtype];
}

}  // namespace ucm::compress
