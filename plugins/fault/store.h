// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>

#include "log.h"
#include "metrics.h"
#include "rules.h"
#include "threads.h"
#include "ucm/store_v1.hpp"

namespace ucm::fault {

enum Option { kFaultRules, kFaultSeed, kFaultControl };
enum Metric {
    kErrors = kStandardMetrics,
    kBusyRefusals,
    kDelays,
    kHangs,
    kFlips,
    kShortReads,
    kLies,
    kHeldShards,
    kMetrics
};

struct Transfer;

// Passes everything through, unchanged but for what the rules break.
class FaultStore final : public Store {
  public:
    explicit FaultStore(const ucm_open_args &args);
    ~FaultStore() override;
    static void lower_layout(const ucm_layout_args &args, ucm_layout &out);

    uint64_t capabilities() const override;
    ucm_status lookup(const ucm_lookup_args &, ucm_error *) override;
    ucm_status load(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status dump(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status cancel(ucm_task, ucm_error *) override;
    ucm_status prefetch(const ucm_ids_args &, ucm_error *) override;
    ucm_status touch(const ucm_ids_args &, ucm_error *) override;
    ucm_status remove(const ucm_ids_args &, ucm_error *) override;
    ucm_status drain(const ucm_wait_args &, ucm_report &, ucm_error *) override;
    ucm_status metrics(const ucm_metrics_args &, ucm_error *) override;
    ucm_status register_memory(const ucm_memory_args &, ucm_error *) override;
    ucm_status close(const ucm_wait_args &, ucm_report &, ucm_error *) override;

  private:
    // A shard whose end is held back.
    struct Held {
        std::shared_ptr<Transfer> transfer;
        size_t i;
        ucm_result result;
        bool hangs;
        uint64_t version;  // of the rules; what hangs is let go when there are others
    };

    ucm_status start(bool dump, const ucm_transfer &, ucm_task *, ucm_error *);
    std::shared_ptr<Transfer> plan(bool dump, const ucm_transfer &);
    void refresh();
    // For lookup and remove: UCM_OK, or how the call ends.
    ucm_status call(const Plan &plan, int64_t deadline_ns, ucm_error *err);
    ucm_status closed(ucm_error *err) const;
    // A shard has ended below, or need not go there.
    void ended(const std::shared_ptr<Transfer> &transfer, size_t i, ucm_result result);
    void give(const std::shared_ptr<Transfer> &transfer, size_t i, const ucm_result &result);
    void drop(Transfer &transfer);
    void hold_loop();
    int64_t let_go();
    void look_again();
    static void on_done(void *ctx, size_t i, const ucm_result *result);
    static void on_finished(void *ctx);

    const Logger log_;
    ucm_store *const lower_;
    const bool lookup_only_;
    const size_t segments_;
    const std::vector<uint64_t> segment_bytes_;
    const uint64_t capacity_;
    Rules rules_;
    Metrics<kMetrics> metrics_;
    std::atomic<bool> closing_{false};

    std::mutex mutex_;  // guards all below
    std::condition_variable wake_, idle_;
    std::multimap<int64_t, Held> held_;  // by when they are due
    bool changed_ = false;               // the thread is to look again
    bool stopping_ = false;
    size_t running_ = 0;  // transfers
    Threads thread_;
};

}  // namespace ucm::fault
