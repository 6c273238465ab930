// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "block.h"
#include "buffers.h"
#include "config.h"

namespace ucm::cache {

// What lies in a slot.
struct SlotInfo {
    uint64_t length = 0, raw_length = 0;
    uint64_t epoch = 0;     // of the dump that brought it
    bool accounted = true;  // false: the ledger waits for it
};

// Equal slots cut from one mapping. Guarded by Core::mutex, but for the bytes.
class SlotPool {
  public:
    explicit SlotPool(const Config &config)
        : slot_bytes_(config.slot_bytes),
          mapping_(config.slot_bytes * config.slots, Pages::kHuge),
          info_(config.slots) {
        free_.reserve(config.slots);
        for (uint32_t slot = config.slots; slot-- > 0;) free_.push_back(slot);
    }

    uint32_t take() {
        if (free_.empty()) return kNoSlot;
        const uint32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }
    void give(uint32_t slot) {
        info_[slot] = SlotInfo();
        free_.push_back(slot);
    }

    const Mapping &mapping() const { return mapping_; }
    uint8_t *bytes(uint32_t slot) const { return mapping_.base() + slot * slot_bytes_; }
    SlotInfo &info(uint32_t slot) { return info_[slot]; }
    uint32_t free() const { return uint32_t(free_.size()); }
    uint32_t total() const { return uint32_t(info_.size()); }

  private:
    const uint64_t slot_bytes_;
    Mapping mapping_;
    std::vector<SlotInfo> info_;
    std::vector<uint32_t> free_;  // the last one given is the first taken: its pages are warm
};

}  // namespace ucm::cache
