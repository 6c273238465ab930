// SPDX-License-Identifier: MIT
#pragma once

#include <list>
#include <memory>
#include <vector>

#include "job.h"
#include "task.h"

namespace ucm::cache {

constexpr uint32_t kNoSlot = UINT32_MAX;

enum class ShardState : uint8_t {
    kAbsent,
    kCopying,  // from the caller of a dump
    kLoading,  // from the store below
    kHere
};

struct ShardEntry {
    uint32_t slot = kNoSlot;  // none while kAbsent
    ShardState state = ShardState::kAbsent;
    bool below = false;  // gathering: the store below has it too, as part of an unfinished block
};

enum class Phase : uint8_t {
    kGathering,  // shards of dumps come in; nobody sees it
    kDirty,      // whole and visible, not stored below yet
    kClean,      // may be evicted; whole, or some shards of what the store below has
    kGone        // removed, replaced, evicted or lost; its slots go with the last pin
};

// One copy of one block. All of it is guarded by Core::mutex; bytes in slots are not: they are
// written while kCopying or kLoading and read while pinned.
struct Block {
    Block(const BlockId &block_id, uint32_t n) : id(block_id), shards(n) {}

    bool whole() const { return here == shards.size(); }
    bool complete() const { return have == shards.size(); }
    bool partly_below() const {
        bool below = writing;
        for (auto &entry : shards) below = below || entry.below;
        return below;
    }

    const BlockId id;
    std::vector<ShardEntry> shards;
    Phase phase = Phase::kClean;
    uint32_t here = 0;   // shards that are kHere
    uint32_t have = 0;   // shards that are kHere or below
    uint32_t slots = 0;  // shards with a slot
    uint32_t pins = 0;   // who reads or fills slots now
    bool held = false;   // its slots count as held by dumps

    // Of dumps.
    bool replace = false;                 // goes below with UCM_TRANSFER_REPLACE
    bool queued = false;                  // waits for its write-back
    bool writing = false;                 // a lower dump of it runs
    bool declined = false;                // the store below does not want it
    bool unsaved = false, saved = false;  // is in the index's list of those
    uint32_t tries = 0;
    uint32_t depth = kUnknownDepth;
    uint64_t tag = 0;
    uint64_t number = 0;     // in order of their beginning
    int64_t touched_ns = 0;  // its last shard
    std::list<std::shared_ptr<Block>>::iterator age, unsaved_at, saved_at;
    // The shard that completed a block which is partly below only: answered once it is published.
    std::shared_ptr<Job> last_job;
    size_t last_row = 0;
    ucm_status end = UCM_CANCELLED;  // why it is gone, for a shard that is being copied

    // Of eviction.
    uint8_t uses = 0, queue = 0;
    uint32_t last_used = UINT32_MAX;
    std::list<Block *>::iterator place;
};

using BlockRef = std::shared_ptr<Block>;

}  // namespace ucm::cache
