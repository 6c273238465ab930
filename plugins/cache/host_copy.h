// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ucm::cache {

// From so many bytes in one call on, copies go around the caches: by then source and target are in
// memory, and a copy through the caches reads the target first (benchmarks/copy_cost.cpp).
constexpr uint64_t kStreamFrom = uint64_t(1) << 20;
// Shorter runs never do: the processor's own prefetching and the caches win there.
constexpr uint64_t kStreamRun = 24 << 10;

// memcpy; `streaming` says that the whole call copies kStreamFrom or more. What it wrote is ordered
// before any later store, also around the caches.
void copy_bytes(void *to, const void *from, size_t n, bool streaming);

// Copies around the caches to where a line begins; less than 512 bytes are left, and it returns how
// many are not.
using Stream = size_t (*)(uint8_t *to, const uint8_t *from, size_t n);
// Those that this processor can run, the best last; only tests want the others.
std::vector<Stream> streams();

}  // namespace ucm::cache
