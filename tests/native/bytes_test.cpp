// SPDX-License-Identifier: MIT
//
// What touches every byte of a block file, for each kind of processor.
#include <xxhash.h>

#include <algorithm>
#include <catch2/catch.hpp>
#include <cstring>
#include <vector>

#include "byte_kernels.h"

using ucm::ByteKernels;

namespace {

std::vector<const ByteKernels *> all_kernels() {
    std::vector<const ByteKernels *> all{&ucm::kBaseByteKernels};
#ifdef __x86_64__
    if (__builtin_cpu_supports("avx2")) all.push_back(&ucm::kAvx2ByteKernels);
#endif
    return all;
}

std::vector<uint8_t> some_bytes(size_t n) {
    std::vector<uint8_t> bytes(n);
    for (size_t i = 0; i < n; i++) bytes[i] = uint8_t(i * 2654435761u >> 13);
    return bytes;
}

}  // namespace

TEST_CASE("every kind of processor computes the same checksum", "[bytes]") {
    const size_t n = GENERATE(1, 16, 17, 128, 129, 240, 241, 1024, 1025, 4096, 70001);
    const size_t piece = GENERATE(1, 255, 256, 4096);
    const std::vector<uint8_t> bytes = some_bytes(n + 1);
    for (const ByteKernels *kernels : all_kernels())
        for (const uint8_t *from : {bytes.data(), bytes.data() + 1}) {
            const uint64_t sum = XXH3_64bits_withSeed(from, n, 7);
            CHECK(kernels->hash(from, n, 7) == sum);
            XXH3_state_t *state = XXH3_createState();
            XXH3_64bits_reset_withSeed(state, 7);
            for (size_t at = 0; at < n; at += piece)
                kernels->add(state, from + at, std::min(piece, n - at));
            CHECK(kernels->end(state) == sum);
            XXH3_freeState(state);
        }
}

TEST_CASE("a copy past the cache takes its bytes, and no other", "[bytes]") {
    const size_t n = GENERATE(0, 1, 31, 63, 64, 65, 200, 4096, 4097);
    const std::vector<uint8_t> bytes = some_bytes(n + 8);
    for (const ByteKernels *kernels : all_kernels())
        for (size_t shift : {0, 1, 8, 63}) {
            std::vector<uint8_t> to(n + 192, 0xee), wanted = to;
            std::memcpy(wanted.data() + 64 + shift, bytes.data() + 3, n);
            kernels->copy(to.data() + 64 + shift, bytes.data() + 3, n);
            kernels->settle();
            CHECK(to == wanted);
        }
}
