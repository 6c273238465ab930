// SPDX-License-Identifier: MIT
#pragma once

#include <memory>

#include "log.h"
#include "ucm/store_v1.hpp"

namespace ucm::cache {

// One shard to copy between a slot of the cache and a row of the caller's segments. Length counts
// across the segments in order.
struct Piece {
    uint8_t *slot;
    void *const *row;
    uint64_t length;
};

// Copies on the calling thread, which waits for the copies' end. Any number of threads at once.
class Device {
  public:
    virtual ~Device() = default;
    // Caller's memory -> slots. `event`: 0, or what to wait for before the first byte is read.
    virtual ucm_status gather(const Piece *pieces, size_t n, uint64_t event) = 0;
    // Slots -> caller's memory.
    virtual ucm_status scatter(const Piece *pieces, size_t n) = 0;
    virtual void pin(uint8_t *base, uint64_t bytes) = 0;
    virtual void unpin(uint8_t *base, uint64_t bytes) = 0;
    virtual bool events() const = 0;
};

std::unique_ptr<Device> make_device(const ucm_layout &layout, const Logger &log);

}  // namespace ucm::cache
