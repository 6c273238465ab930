// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

const ucm_option kOptions[] = {
    {"buffer_number", UCM_TYPE_INT, 0, "1048576", "1..1073741824", "blocks",
     "How many block ids are remembered; then the oldest is forgotten."},
};

const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"abandoned_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Unfinished blocks given up: too many, or no new shard for ten minutes."},
    {"remembered_blocks", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "blocks", "Block ids held now."},
};

}  // namespace

UCM_STORE_PLUGIN(ucm::FakeStore, "Fake", "0.1.0",
                 "Remembers which blocks were dumped, and no bytes.", 0, kOptions, kMetrics)
