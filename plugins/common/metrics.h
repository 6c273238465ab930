// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <atomic>

#include "clock.h"
#include "ucm/store_v1.h"

namespace ucm {

// What every one of our layers counts; a layer's own metrics follow from kStandardMetrics on.
enum StandardMetric {
    kDumpShards,
    kDumpBytes,
    kDumpOutBytes,
    kDumpBusyNs,
    kLoadShards,
    kLoadBytes,
    kLoadInBytes,
    kLoadBusyNs,
    kFailedShards,
    kStandardMetrics
};

#define UCM_STANDARD_METRICS                                                                      \
    {"dump_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards", "Shards dumped."},       \
        {"dump_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes",                        \
         "Bytes taken from above."},                                                              \
        {"dump_out_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes",                    \
         "Bytes passed below, or written."},                                                      \
        {"dump_busy_ns_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "ns",                         \
         "Time threads of this layer worked on dumps."},                                          \
        {"load_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards", "Shards loaded."},   \
        {"load_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes", "Bytes given above."}, \
        {"load_in_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes",                     \
         "Bytes taken from below, or read."},                                                     \
        {"load_busy_ns_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "ns",                         \
         "Time threads of this layer worked on loads."},                                          \
        {"failed_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards",                    \
         "Shards that ended with an error other than NOT_FOUND."}

// The counters and gauges of one store, N of them, in the order of its table.
template <size_t N>
class Metrics {
  public:
    void add(size_t which, uint64_t value) {
        values_[which].fetch_add(value, std::memory_order_relaxed);
    }
    void set(size_t which, uint64_t value) {
        values_[which].store(value, std::memory_order_relaxed);
    }
    ucm_status copy(const ucm_metrics_args &args) const {
        for (size_t i = 0; i < std::min(args.n, N); i++)
            args.values[i] = values_[i].load(std::memory_order_relaxed);
        return UCM_OK;
    }

  private:
    std::atomic<uint64_t> values_[N] = {};
};

// Adds the time of a scope to a counter.
template <size_t N>
class Busy {
  public:
    Busy(Metrics<N> &metrics, size_t which)
        : metrics_(metrics), which_(which), start_(monotonic_ns()) {}
    ~Busy() { metrics_.add(which_, uint64_t(monotonic_ns() - start_)); }
    Busy(const Busy &) = delete;
    Busy &operator=(const Busy &) = delete;

  private:
    Metrics<N> &metrics_;
    size_t which_;
    int64_t start_;
};

}  // namespace ucm
