// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "seal.h"
#include "ucm/store_v1.hpp"

namespace encrypt {

enum Option { kKeyFile, kKeyEnv, kTenant, kThreads };
enum Metric { kSealedBytes, kOpenedBytes, kRefusedShards, kMetrics };

// One transfer from above. It is worked off in batches, each with a buffer of its own.
struct Transfer;
// Some shards of a transfer on their way to or from the store below.
struct Batch;

class EncryptStore final : public ucm::Store {
  public:
    explicit EncryptStore(const ucm_open_args &args);
    ~EncryptStore() override;
    static void lower_layout(const ucm_layout_args &args, ucm_layout &out);

    uint64_t capabilities() const override;
    ucm_status lookup(const ucm_lookup_args &, ucm_error *) override;
    ucm_status load(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status dump(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status prefetch(const ucm_ids_args &, ucm_error *) override;
    ucm_status touch(const ucm_ids_args &, ucm_error *) override;
    ucm_status remove(const ucm_ids_args &, ucm_error *) override;
    ucm_status drain(const ucm_wait_args &, ucm_report &, ucm_error *) override;
    ucm_status metrics(const ucm_metrics_args &, ucm_error *) override;
    ucm_status close(const ucm_wait_args &, ucm_report &, ucm_error *) override;

  private:
    ucm_status accept(bool dump, const ucm_transfer &, ucm_task *, ucm_error *);
    void work();
    bool next(std::unique_lock<std::mutex> &hold);
    void start(Batch &batch);
    void submit(Batch &batch);
    void open_all(Batch &batch);
    void release(Batch &batch);
    std::vector<Piece> pieces(const Transfer &transfer, size_t i, uint64_t bytes) const;
    void give(Transfer &transfer, size_t i, const ucm_result &result);
    void let_go(Transfer &transfer);
    static void on_done(void *ctx, size_t i, const ucm_result *result);
    static void on_finished(void *ctx);

    const ucm_host *const host_;
    ucm_store *const lower_;
    const Sealer sealer_;
    std::vector<uint64_t> segments_;
    uint64_t capacity_ = 0, row_bytes_ = 0;  // of a shard: above; below, in whole pages
    std::vector<std::unique_ptr<Batch>> batches_;
    std::atomic<uint64_t> counters_[kMetrics] = {};

    std::mutex mutex_;  // guards all below
    std::condition_variable wake_, idle_;
    std::deque<std::shared_ptr<Transfer>> waiting_;
    std::vector<Batch *> free_, arrived_, refused_;  // refused: by a store below that was BUSY
    size_t queued_shards_ = 0, transfers_ = 0;
    uint64_t number_ = 0;           // of the last dump
    std::set<uint64_t> dumps_;      // that have not ended
    std::set<std::string> spoilt_;  // blocks whose next dump replaces what is there
    bool closing_ = false, stopping_ = false;
    std::vector<std::thread> threads_;
};

}  // namespace encrypt
