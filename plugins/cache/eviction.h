// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <unordered_map>

#include "block.h"

namespace ucm::cache {

// S3-FIFO over clean blocks: new ones pass through a small queue, and only those that are used
// there, or come back soon after they left it, reach the main queue. A scan flushes the small one
// alone. Guarded by Core::mutex.
class Eviction {
  public:
    void insert(Block &block);
    void erase(Block &block);
    // A load found this shard. A pass over the shards of a block counts once.
    static void used(Block &block, uint32_t shard);
    static void touched(Block &block);
    // Takes out the block that is to go, one that nobody pins. NULL: there is none. `patient`: nor
    // one of the main queue while all of a large small one is pinned, so that loads in flight do
    // not flush what is used.
    Block *victim(bool patient);

  private:
    enum Queue : uint8_t { kNone, kSmall, kMain };

    Block *next(bool small, size_t &busy);
    void put(Block &block, Queue queue);
    void remember(const BlockId &id);

    std::list<Block *> small_, main_;  // next to go first
    // Ids that left the small queue unused, oldest first; as many as there are blocks here.
    std::deque<std::pair<BlockId, uint64_t>> ghosts_;
    std::unordered_map<BlockId, uint64_t, BlockIdHash> ghost_numbers_;
    uint64_t next_ghost_ = 0;
};

}  // namespace ucm::cache
