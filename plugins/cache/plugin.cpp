// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

const ucm_option kOptions[] = {
    {"cache_buffer_capacity_gb", UCM_TYPE_FLOAT, 0, "0", "0..", "GiB",
     "Memory for cached shards; 0: half of what memory has free, at most 256 GiB."},
    {"waiting_queue_depth", UCM_TYPE_INT, 0, "8192", "1..", "shards",
     "Shards of accepted loads, and of accepted dumps, that may wait; then the answer is BUSY."},
    {"running_queue_depth", UCM_TYPE_INT, 0, "524288", "1..", "shards",
     "Dumped shards that may be on their way below at once."},
    {"timeout_ms", UCM_TYPE_INT, 0, "30000", "1..", "ms",
     "How long a shard may wait for its turn, for room, or for the store below."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"hit_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards asked for that were here."},
    {"miss_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards asked for that were not here, or were still on their way from below."},
    {"evicted_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that made way for others."},
    {"abandoned_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Unfinished blocks given up."},
    {"lost_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards taken and then given up before they were stored below."},
    {"declined_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that the store below chose not to keep."},
    {"slots", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "shards", "Shards that the cache has room for."},
    {"slots_dirty", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "shards",
     "Slots held by dumps that are unfinished or not stored below."},
    {"slots_free", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "shards", "Slots with nothing in them."},
};

}  // namespace

UCM_STORE_PLUGIN(ucm::cache::CacheStore, "Cache", "0.1.0",
                 "Keeps blocks in host memory and writes them below in the background.",
                 UCM_PLUGIN_NEEDS_LOWER, kOptions, kMetrics)
