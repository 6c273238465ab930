// SPDX-License-Identifier: MIT
#pragma once

#include "metrics.h"
#include "ucm/store_v1.hpp"

namespace ucm::cache {

enum Option { kCapacityGb, kWaitingQueueDepth, kRunningQueueDepth, kTimeoutMs };

enum Metric {
    kHitShards = kStandardMetrics,
    kMissShards,
    kEvictedBlocks,
    kAbandonedBlocks,
    kLostShards,
    kDeclinedBlocks,
    kSlots,
    kSlotsDirty,
    kSlotsFree,
    kMetrics
};

// The limits of one open store; those that are not options follow from the pool's size.
struct Config {
    explicit Config(const ucm_open_args &args);

    uint32_t shards_per_block;
    uint64_t capacity;    // of a shard
    uint64_t slot_bytes;  // capacity in whole pages
    uint32_t slots;
    uint32_t held_slots;    // dumps hold at most so many, so that loads always find some
    size_t max_unfinished;  // blocks
    uint64_t waiting_shards, waiting_bytes;  // accepted, of loads and of dumps each
    uint64_t running_shards;                 // on their way below
    int64_t timeout_ms;
};

}  // namespace ucm::cache
