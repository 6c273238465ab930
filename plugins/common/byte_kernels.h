// SPDX-License-Identifier: MIT
//
// What touches every payload byte: XXH3, and a copy past the cache. A kind for each processor, all
// with the same results; which one runs is decided once.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ucm {

struct ByteKernels {
    uint64_t (*hash)(const void *bytes, size_t n, uint64_t seed);
    void (*add)(void *state, const void *bytes, size_t n);  // to an XXH3_state_t
    uint64_t (*end)(const void *state);
    // Past the cache: whoever reads it next is a device, or another core, and the lines that are
    // overwritten need not be fetched first. Others see it after settle().
    void (*copy)(void *to, const void *from, size_t n);
    void (*settle)();
};

extern const ByteKernels kBaseByteKernels;
#ifdef __x86_64__
extern const ByteKernels kAvx2ByteKernels;
#endif

const ByteKernels &byte_kernels();

}  // namespace ucm
