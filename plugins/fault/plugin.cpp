// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

using ucm::fault::FaultStore;

// In the order of ucm::fault::Option.
const ucm_option kOptions[] = {
    {"fault_rules", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "What goes wrong and when, such as 'load:io errno=5 every=10; dump:delay ms=50 p=0.1'."},
    {"fault_seed", UCM_TYPE_INT, 0, "1", "0..", nullptr, "What p= and the flipped bits follow."},
    {"fault_control", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "A file whose rules hold instead of fault_rules while it exists; read at every operation."},
};

// In the order of ucm::StandardMetric and ucm::fault::Metric.
const ucm_metric kMetrics[] = {
    UCM_STANDARD_METRICS,
    {"injected_errors_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "",
     "Shards and calls that were made to fail."},
    {"injected_busy_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "",
     "Transfers that were refused with BUSY."},
    {"injected_delays_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "",
     "Shards and calls that were held back for a time."},
    {"injected_hangs_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards that were held back until they were let go."},
    {"injected_flips_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards with one bit flipped."},
    {"injected_short_reads_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards that were said to be shorter than they are."},
    {"injected_lies_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "",
     "Lookups that were answered wrongly."},
    {"held_shards", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "shards", "Shards held back now."},
};
static_assert(sizeof kMetrics / sizeof *kMetrics == ucm::fault::kMetrics);

}  // namespace

UCM_STORE_PLUGIN(FaultStore, "Fault", "0.1.0", "Passes everything through and breaks some of it.",
                 UCM_PLUGIN_NEEDS_LOWER, kOptions, kMetrics)
