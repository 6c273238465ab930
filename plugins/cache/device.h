// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "log.h"
#include "ucm/store_v1.hpp"

namespace ucm::cache {

// One shard to copy between a slot of the cache and a row of the caller's segments. length counts
// across the segments in order.
struct Piece {
    uint8_t *slot;
    void *const *row;
    uint64_t length;
};

// Moves bytes between slots and the memory that the layout's addresses point to. Copies on the
// calling thread, which waits for their end. Any number of threads at once.
//
// gather and scatter answer for the call as a whole. UCM_OK: every byte is there. Otherwise bytes
// on the receiving side are undefined, and nothing runs any more, except after UCM_PENDING: the
// device broke down, and its copies may still run. Then the slots of that gather must not be used
// again while this process lives, and every later copy is refused with UCM_UNAVAILABLE, so that no
// more slots than those of copies that ran at that moment are lost. A store reports PENDING as
// UCM_IO.
class Device {
  public:
    virtual ~Device() = default;
    // Caller's memory -> slots. `event`: 0, or what to wait for first (UCM_TRANSFER_EVENT).
    virtual ucm_status gather(const Piece *pieces, size_t n, uint64_t event) = 0;
    // Slots -> caller's memory.
    virtual ucm_status scatter(const Piece *pieces, size_t n, uint64_t event) = 0;
    // The cache's slot memory, pinned where the device wants that; until unpin with the same range,
    // or the end of the device. No slot may lie across two ranges. Not beside copies of that range.
    virtual void pin(uint8_t *base, uint64_t bytes) = 0;
    virtual void unpin(uint8_t *base, uint64_t bytes) = 0;
    // Whether `event` may be other than 0.
    virtual bool events() const = 0;
    // Would a copy wait for this event? Waits for nothing. Of what is no event a copy says so.
    virtual bool late(uint64_t event) = 0;
};

// For the kind of memory that the layout names. Throws ucm::Error.
std::unique_ptr<Device> make_device(const ucm_layout &layout, const Logger &log);

}  // namespace ucm::cache
