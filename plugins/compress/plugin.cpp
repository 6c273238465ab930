// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

using ucm::compress::CompressStore;

const ucm_option kOptions[] = {
    {"compress_codec", UCM_TYPE_STRING, 0, "auto", "auto|split|raw", nullptr,
     "How shards are coded: split codes every tile, auto those where an estimate says that it "
     "pays, "
     "raw none."},
    {"compress_concurrency", UCM_TYPE_INT, 0, "2", "1..256", "threads",
     "Threads that compress, and as many that decompress."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"split_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles", "Tiles coded."},
    {"constant_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles",
     "Tiles of one repeated element."},
    {"raw_tiles_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "tiles",
     "Tiles kept as they are inside coded shards."},
    {"raw_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards kept as they are, because coding did not pay."},
    {"bad_frames_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Loaded frames that failed a check or do not fit this layout."},
};
static_assert(sizeof kMetrics / sizeof *kMetrics == ucm::compress::kAllMetrics);

}  // namespace

UCM_STORE_PLUGIN(CompressStore, "Compress", "0.1.0",
                 "Lossless compression of KV cache blocks on their way down.",
                 UCM_PLUGIN_NEEDS_LOWER, kOptions, kMetrics)
