// SPDX-License-Identifier: MIT
#include "measure.h"

#include <algorithm>
#include <cstring>

#include "clock.h"
#include "frame.h"
#include "ucm/store_v1.hpp"

namespace ucm::compress {
namespace {

constexpr uint64_t kMaxPlanes = 65536;  // of a shard

Geometry geometry_of(uint64_t plane_bytes, uint64_t planes, int32_t dtype) {
    return Geometry({plane_bytes * planes},
                    std::vector<ucm_plane>(planes, ucm_plane{plane_bytes, dtype, 0}));
}

uint64_t no_hash(const void *, size_t, uint64_t) {
    return 0;
}

// Adds the CPU time of work() in this thread.
template <typename F>
void timed(uint64_t &ns, F work) {
    const int64_t start = clock_ns(CLOCK_THREAD_CPUTIME_ID);
    work();
    ns += uint64_t(clock_ns(CLOCK_THREAD_CPUTIME_ID) - start);
}

ucm_status measure(const uint8_t *data, uint64_t bytes, const Geometry &geometry, int named,
                   Mode mode, const Kernels &kernels, ucm_bench_figures &figures) {
    const uint64_t capacity = geometry.capacity(), shards = (bytes + capacity - 1) / capacity;
    // Each shard has a frame of its own: what is decoded has left the caches, if there is much.
    const uint64_t room = ucm::round_up(capacity + kTrailerBytes, 64);
    FrameCoder coder(geometry, named, kernels);
    Mapping frames(room * shards), again(bytes);
    std::vector<uint64_t> stored(shards);
    // Page faults are the machine's cost and not the codec's.
    std::memset(frames.base(), 1, frames.bytes());
    std::memset(again.base(), 1, again.bytes());
    const auto length = [&](uint64_t i) { return std::min(capacity, bytes - i * capacity); };
    timed(figures.memcpy_ns, [&] {
        for (uint64_t i = 0; i < shards; i++)
            std::memcpy(again.base() + i * capacity, data + i * capacity, length(i));
    });
    std::memset(again.base(), 1, again.bytes());
    timed(figures.compress_ns, [&] {
        for (uint64_t i = 0; i < shards; i++) {
            void *from = const_cast<uint8_t *>(data + i * capacity);
            TileCounts counts;
            stored[i] = coder.encode({}, &from, length(i), mode, frames.base() + i * room, &counts);
        }
    });
    bool whole = true;
    timed(figures.decompress_ns, [&] {
        for (uint64_t i = 0; i < shards; i++) {
            void *to = again.base() + i * capacity;
            const Decoded decoded = coder.decode({}, frames.base() + i * room, stored[i], &to);
            whole = whole && decoded.status == UCM_OK && decoded.bytes == length(i);
        }
    });
    if (!whole || std::memcmp(data, again.base(), bytes) != 0) return UCM_CORRUPT;
    for (const uint64_t each : stored) figures.frame_bytes += each;
    return UCM_OK;
}

}  // namespace
}  // namespace ucm::compress

double ucm::compress::decoding_cost(Mode mode) {
    constexpr uint64_t kBytes = 64 * kTileBytes;
    std::vector<uint8_t> numbers(kBytes);
    uint32_t state = 1;
    for (uint64_t i = 0; i < kBytes; i += 2) {
        // Exponents halve in number from 127 down, as those of noise around zero do.
        state = state * 1664525 + 1013904223;
        const int exponent = 127 - __builtin_clz(state | 1);
        const uint32_t word = uint32_t(exponent) << 7 | (state >> 8 & 0x807f);
        numbers[i] = uint8_t(word);
        numbers[i + 1] = uint8_t(word >> 8);
    }
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < 3; round++) {
        ucm_bench_figures figures{};
        if (measure(numbers.data(), kBytes, geometry_of(kTileBytes, 8, UCM_DTYPE_BF16),
                    UCM_DTYPE_BF16, mode, best_kernels(), figures) != UCM_OK)
            throw Error(UCM_INTERNAL, "what the codec decodes is not what it coded");
        best = std::min(best, figures.decompress_ns);
    }
    return double(best + 1) / double(kBytes);
}

extern "C" ucm_status ucm_bench_codec(const void *data, uint64_t bytes, uint64_t plane_bytes,
                                      uint64_t shard_bytes, int32_t dtype, int32_t named,
                                      const char *codec, const char *kernels, int32_t checksums,
                                      ucm_bench_figures *figures) {
    using namespace ucm::compress;
    const size_t width = element_bytes(dtype);
    if (!bytes || !width || !element_bytes(named) || !plane_bytes || plane_bytes % width ||
        plane_bytes > UINT32_MAX)
        return UCM_INVALID;
    const Kernels *given = *kernels ? kernels_named(kernels) : &best_kernels();
    if (!given) return UCM_UNSUPPORTED;
    Kernels used = *given;
    if (!checksums) used.hash = no_hash;
    // No larger than what is there.
    plane_bytes = std::min(plane_bytes, ucm::round_up(bytes, width));
    const uint64_t wanted = std::min(shard_bytes, bytes) / plane_bytes;
    const uint64_t planes = std::clamp<uint64_t>(wanted, 1, kMaxPlanes);
    *figures = {};
    try {
        return measure(static_cast<const uint8_t *>(data), bytes,
                       geometry_of(plane_bytes, planes, dtype), named, mode_of(codec), used,
                       *figures);
    } catch (const ucm::Error &error) {
        return error.status();
    } catch (...) {
        return UCM_UNAVAILABLE;
    }
}
