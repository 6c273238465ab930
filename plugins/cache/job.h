// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <map>
#include <memory>
#include <vector>

#include "config.h"
#include "log.h"
#include "task.h"

namespace ucm::cache {

enum class Row : uint8_t {
    kTodo,
    kDropped,  // dump: its block was removed meanwhile
    kWaiting,  // load: for the store below
    kTaken     // somebody answers it
};

// One accepted transfer on its way through this layer.
struct Job {
    Job(std::shared_ptr<Task> t, bool is_dump, uint64_t ledger_epoch, const Logger &logger,
        Metrics<kMetrics> &counters)
        : task(std::move(t)),
          dump(is_dump),
          epoch(ledger_epoch),
          rows(task->n(), Row::kTodo),
          untaken(task->n()),
          open_(task->n()),
          log_(logger),
          metrics_(counters) {
        for (size_t i = 0; i < task->n(); i++) bytes_ += task->length(i);
        write_log("dispatching.");
    }

    // Once for each row, with no lock held, by a thread that ends before the store does.
    void answer(size_t i, const ucm_result &result) {
        if (result.status != UCM_OK && result.status != UCM_NOT_FOUND)
            metrics_.add(kFailedShards, 1);
        task->complete(i, result);
        if (open_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
        if (!log_.wants(UCM_LOG_DEBUG)) return;
        char text[64];
        snprintf(text, sizeof text, "finished, cost %.3fms.",
                 double(monotonic_ns() - start_ns_) / 1e6);
        write_log(text);
    }

    const std::shared_ptr<Task> task;
    const bool dump;
    const uint64_t epoch;  // of the ledger; dumps only
    // Guarded by Core::mutex.
    std::vector<Row> rows;
    size_t untaken;
    std::multimap<int64_t, std::shared_ptr<Job>>::iterator timer;

  private:
    void write_log(const char *what) const {
        log_.write(UCM_LOG_DEBUG, "Cache task(%llu,%s,%zu,%llu) %s",
                   static_cast<unsigned long long>(task->number()), dump ? "DUMP" : "LOAD",
                   task->n(), static_cast<unsigned long long>(bytes_), what);
    }

    std::atomic<size_t> open_;
    uint64_t bytes_ = 0;
    const int64_t start_ns_ = monotonic_ns();
    const Logger &log_;
    Metrics<kMetrics> &metrics_;
};

using JobRef = std::shared_ptr<Job>;

}  // namespace ucm::cache
