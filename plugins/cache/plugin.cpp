// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

const ucm_option kOptions[] = {
    {"cache_buffer_capacity_gb", UCM_TYPE_FLOAT, 0, "0", "0..1000000000", "GiB",
     "Memory for cached blocks, of the whole segment where it is shared, else of each process; 0: "
     "half of what /dev/shm (or memory) has free, at most 256 GiB."},
    {"share_buffer_enable", UCM_TYPE_BOOL, 0, "true", nullptr, nullptr,
     "One segment of shared memory for all processes with this unique_id; false, or no unique_id: "
     "private memory."},
    {"waiting_queue_depth", UCM_TYPE_INT, 0, "8192", "1..", "shards",
     "Shards of accepted loads, and of accepted dumps, that may wait; then the answer is BUSY."},
    {"running_queue_depth", UCM_TYPE_INT, 0, "524288", "1..", "shards",
     "Dumped shards that may be on their way below at once."},
    {"timeout_ms", UCM_TYPE_INT, 0, "30000", "1..", "ms",
     "How long a shard may wait for its turn, for its event, for room, or for the store below."},
    {"cpu_affinity_cores", UCM_TYPE_INTS, 0, "", nullptr, nullptr,
     "Cores that the threads which copy use, each of which this process must be allowed; none: "
     "those "
     "of the opening thread."},
    {"namespace", UCM_TYPE_STRING, 0, "default", nullptr, nullptr,
     "Whose blocks: a tenant, team, purpose. Processes of one segment must agree."},
    {"model", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "The model whose KV cache it is. Processes of one segment must agree."},
    {"fingerprint", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "What else makes the same tokens other bytes. Processes of one segment must agree."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"hit_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards asked for that were here."},
    {"miss_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards asked for that were not here, or were still on their way from below."},
    {"coalesced_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards asked for that somebody was reading already; they count as missed too."},
    {"evicted_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_SHARED, "blocks",
     "Blocks that made way for others, since the memory was made."},
    {"abandoned_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Unfinished blocks given up."},
    {"lost_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards taken and then given up before they were stored below."},
    {"declined_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that the store below chose not to keep."},
    {"adopted_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that processes which died had accepted, and that this one stores."},
    {"breaker_opened_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "",
     "How often the store below was found to be down."},
    {"frames", UCM_METRIC_GAUGE, UCM_SCOPE_SHARED, "blocks",
     "Blocks that the cache may come to have room for."},
    {"frames_ready", UCM_METRIC_GAUGE, UCM_SCOPE_SHARED, "blocks",
     "Blocks that it has memory for now."},
    {"frames_dirty", UCM_METRIC_GAUGE, UCM_SCOPE_SHARED, "blocks",
     "Frames held by dumps that are unfinished or not stored below."},
    {"frames_free", UCM_METRIC_GAUGE, UCM_SCOPE_SHARED, "blocks", "Frames with nothing in them."},
    {"members", UCM_METRIC_GAUGE, UCM_SCOPE_SHARED, "stores", "Stores that share this memory."},
    {"breaker_open", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "",
     "1 while the store below is taken to be down, else 0."},
};

}  // namespace

UCM_STORE_PLUGIN(ucm::cache::CacheStore, "Cache", "0.1.0",
                 "Keeps blocks in host memory and writes them below in the background.",
                 UCM_PLUGIN_NEEDS_LOWER, kOptions, kMetrics)
