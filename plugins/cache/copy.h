// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <vector>

#include "ucm/store_v1.h"

namespace ucm::cache {

// Moves one shard between a slot and a row of the caller's segments, in host memory.
class RowCopy {
  public:
    explicit RowCopy(const ucm_layout &layout)
        : segments_(layout.segment_bytes, layout.segment_bytes + layout.n_segments) {}

    void gather(uint8_t *slot, void *const *row, uint64_t length) const;
    void scatter(void *const *row, const uint8_t *slot, uint64_t length) const;

  private:
    std::vector<uint64_t> segments_;
};

}  // namespace ucm::cache
