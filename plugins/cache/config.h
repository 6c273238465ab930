// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "log.h"
#include "metrics.h"
#include "segment.h"
#include "ucm/store_v1.hpp"

namespace ucm::cache {

enum Option {
    kCapacityGb,
    kShareBuffer,
    kWaitingQueueDepth,
    kRunningQueueDepth,
    kTimeoutMs,
    kAffinityCores,
    kNamespace,
    kModel,
    kFingerprint
};

enum Metric {
    kHitShards = kStandardMetrics,
    kMissShards,
    kCoalescedShards,
    kEvictedBlocks,
    kAbandonedBlocks,
    kLostShards,
    kDeclinedBlocks,
    kAdoptedBlocks,
    kBreakerOpened,
    kFrames,
    kFramesReady,
    kFramesDirty,
    kFramesFree,
    kMembers_,
    kBreakerOpen,
    kMetrics
};

// The name of the segment that these arguments lead to; "": private memory.
std::string segment_name(const ucm_open_args &args);
// What others must have too who use the same memory, as far as these arguments say it.
Shape known_shape(const ucm_open_args &args);
// What the memory of a store is to be.
Shape make_shape(const ucm_open_args &args, bool shared, const Logger &log);

// The limits of one open store; those that are not options follow from its memory.
struct Config {
    Config(const ucm_open_args &args, const Shape &shape);

    uint32_t shards_per_block;
    uint64_t capacity;        // of a shard
    uint64_t waiting_shards;  // accepted, of loads and of dumps each
    uint64_t running_shards;  // on their way below
    int64_t timeout_ms;
    std::vector<int> cores;  // that its threads may use; none: as the thread that opens it
};

}  // namespace ucm::cache
