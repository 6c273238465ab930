// SPDX-License-Identifier: MIT
#include "store.h"

namespace {

using encrypt::EncryptStore;

// In the order of encrypt::Option.
const ucm_option kOptions[] = {
    {"encrypt_key_file", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "A file of mode 0600 with the key: 64 hex digits, or 32 bytes."},
    {"encrypt_key_env", UCM_TYPE_STRING, 0, "UCM_ENCRYPT_KEY", nullptr, nullptr,
     "Without a file: the environment variable that has the key."},
    {"encrypt_tenant", UCM_TYPE_STRING, 0, "", nullptr, nullptr,
     "Who it is for; one tenant's blocks cannot be opened as another's."},
    {"encrypt_threads", UCM_TYPE_INT, 0, "2", "1..64", "threads", "Threads that seal and open."},
};

// In the order of encrypt::Metric.
const ucm_metric kMetrics[] = {
    {"sealed_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes", "Plain bytes sealed."},
    {"opened_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes", "Plain bytes opened."},
    {"refused_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",
     "Shards that were not what this key had sealed."},
};
static_assert(sizeof kMetrics / sizeof *kMetrics == encrypt::kMetrics);

}  // namespace

UCM_STORE_PLUGIN(EncryptStore, "Encrypt", "0.1.0", "Seals shards with AES-256-GCM.",
                 UCM_PLUGIN_NEEDS_LOWER, kOptions, kMetrics)
