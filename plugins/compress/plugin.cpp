// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

using ucm::compress::CompressStore;

const ucm_option kOptions[] = {
    {"compress_codec", UCM_TYPE_STRING, 0, "auto", "auto|fast|small|raw", nullptr,
     "How shards are coded: fast at the speed of memory, small up to two parts in a hundred "
     "shorter and several times slower, raw not at all; auto as the speed of the store below "
     "suggests."},
    {"compress_dtype", UCM_TYPE_STRING, 0, "auto", "auto|bf16|fp16|fp8|fp32", nullptr,
     "Which numbers the shards are made of, for all planes; auto tries those of the layout first, "
     "and the bytes decide. fp8 is e5m2 where the layout says so, else e4m3."},
    {"compress_concurrency", UCM_TYPE_INT, 0, "2", "1..256", "threads",
     "Threads that compress, and as many that decompress."},
    {"compress_allow_lossy", UCM_TYPE_BOOL, 0, "false", nullptr, nullptr,
     "Load frames that say they are lossy: not the bytes that were dumped, but close to them. "
     "Otherwise they are refused. Compress writes none, whatever this says."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"raw_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles",
     "Tiles kept as they are inside coded shards."},
    {"constant_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles",
     "Tiles of one repeated element."},
    {"zstd_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles", "Tiles coded by zstd."},
    {"classes_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles",
     "Tiles whose exponents are coded in classes."},
    {"raw_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards kept as they are, because coding did not pay."},
    {"bad_frames_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Loaded frames that failed a check, do not fit this layout, or are lossy and not allowed."},
    {"memory_bytes", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "bytes",
     "What buffers and scratch may take at most; mapped at open, taken page by page when used."},
    {"codec", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "",
     "What shards are coded with: 0 fast, 1 small, 2 raw."},
};
static_assert(sizeof kMetrics / sizeof *kMetrics == ucm::compress::kAllMetrics);

}  // namespace

UCM_STORE_PLUGIN(CompressStore, "Compress", "0.1.0",
                 "Lossless compression of KV cache blocks on their way down.",
                 UCM_PLUGIN_NEEDS_LOWER, kOptions, kMetrics)
