// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

using ucm::posix::PosixStore;

// In the order of ucm::posix::Option.
const ucm_option kOptions[] = {
    {"storage_backends", UCM_TYPE_STRINGS, 0, nullptr, nullptr, nullptr,
     "Directories that keep the blocks; they must exist."},
    {"io_direct", UCM_TYPE_BOOL, 0, "false", nullptr, nullptr,
     "Use O_DIRECT, past the page cache, where the file system can."},
    {"posix_io_engine", UCM_TYPE_STRING, 0, "psync", "psync|aio|io_uring|auto", nullptr,
     "How reads and writes are made: psync is preadv and pwritev on threads; auto tries."},
    {"posix_data_trans_concurrency", UCM_TYPE_INT, 0, "8", "1..256", "requests",
     "Reads under way at once, and as many writes; with psync each has a thread."},
    {"timeout_ms", UCM_TYPE_INT, 0, "30000", "1..86400000", "ms",
     "How long a shard may wait before its I/O starts."},
    {"namespace", UCM_TYPE_STRING, 0, "default", nullptr, nullptr,
     "Whose blocks: a folder of this name keeps them."},
    {"model", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "The model whose KV cache it is; another one's blocks are not seen."},
    {"fingerprint", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "All else that tells what the bytes mean; with another one blocks are not seen."},
    {"file_mode", UCM_TYPE_STRING, 0, "0600", "0600|0640|0660", nullptr,
     "Who may use new files: 0640 lets the group read, 0660 write too. In quotes."},
    {"file_group", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "Group of new files, by name or number; empty: as it comes."},
    {"posix_durability", UCM_TYPE_STRING, 0, "none", "none|data|full", nullptr,
     "What is synced before a block is published: nothing, its data, or its folder too."},
    {"posix_verify", UCM_TYPE_BOOL, 0, "true", nullptr, nullptr,
     "Off only to measure what checks cost; refused unless UCM_MEASURE=verify is set."},
    {"posix_zero_copy", UCM_TYPE_BOOL, 0, "false", nullptr, nullptr,
     "With io_direct, move aligned memory without buffers in huge pages; registered memory always "
     "is."},
    {"posix_capacity_gb", UCM_TYPE_FLOAT, 0, "0", "0..", "GiB",
     "What all writers together may take in storage_backends; 0: no limit."},
    {"posix_gc_enable", UCM_TYPE_BOOL, 0, "true", nullptr, nullptr,
     "Delete the coldest blocks to make room; false: what does not fit is NO_SPACE."},
    {"posix_gc_trigger_threshold_ratio", UCM_TYPE_FLOAT, 0, "0.9", "0.01..1", nullptr,
     "The part of the capacity beyond which blocks are deleted; 0.7 in older versions, which "
     "estimated."},
    {"posix_gc_recycle_percent", UCM_TYPE_FLOAT, 0, "0.1", "0..1", nullptr,
     "The part of that which is then made free."},
    {"posix_write_mbps_max", UCM_TYPE_INT, 0, "0", "0..1000000", "MB/s",
     "New blocks beyond this rate, of all writers together, are not kept; 0: no limit."},
    {"posix_admission", UCM_TYPE_STRING, 0, "all", "all|second_sight", nullptr,
     "second_sight: a block is kept when it is dumped for the second time."},
};

// In the order of ucm::StandardMetric and ucm::posix::Metric.
const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"corrupt_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards that failed their check in a load."},
    {"quarantined_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Corrupt blocks that were taken away."},
    {"published_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that were made whole and visible."},
    {"abandoned_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Unfinished blocks that were given up."},
    {"unfinished_blocks", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "blocks", "Blocks that miss shards."},
    {"lookup_stats_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "calls",
     "Blocks of lookups that the index did not answer: one system call each."},
    {"index_blocks", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "blocks",
     "Blocks that the index in memory knows."},
    {"index_listed", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "%", "Folders that the index answers for."},
    {"declined_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that admission kept off the disk."},
    {"evicted_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks that this store deleted to make room."},
    {"evicted_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes", "What their files took."},
    {"quota_used_bytes", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "bytes",
     "What counts against the quota, of all writers, as last seen."},
    {"quota_limit_bytes", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "bytes",
     "The quota in force; 0: none."},
};
static_assert(sizeof kMetrics / sizeof *kMetrics == ucm::posix::kMetrics);

}  // namespace

UCM_STORE_PLUGIN(PosixStore, "Posix", "0.1.0", "Keeps blocks as files in directories.", 0, kOptions,
                 kMetrics)
