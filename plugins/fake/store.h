// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "metrics.h"
#include "task.h"
#include "ucm/store_v1.hpp"

namespace ucm {

enum FakeOption { kBufferNumber };
enum FakeMetric { kAbandonedBlocks = kStandardMetrics, kRememberedBlocks, kFakeMetrics };

// Remembers which blocks were dumped whole, and no bytes. Answers inside the call.
class FakeStore final : public Store {
  public:
    explicit FakeStore(const ucm_open_args &args);

    uint64_t capabilities() const override { return UCM_CAP_KEEPS | UCM_CAP_REMOVE; }
    ucm_status lookup(const ucm_lookup_args &args, ucm_error *err) override;
    ucm_status load(const ucm_transfer &t, ucm_task *task, ucm_error *err) override;
    ucm_status dump(const ucm_transfer &t, ucm_task *task, ucm_error *err) override;
    ucm_status remove(const ucm_ids_args &args, ucm_error *err) override;
    ucm_status drain(const ucm_wait_args &args, ucm_report &report, ucm_error *err) override;
    ucm_status metrics(const ucm_metrics_args &args, ucm_error *err) override;
    ucm_status close(const ucm_wait_args &args, ucm_report &report, ucm_error *err) override;

  private:
    struct Unfinished {
        std::vector<bool> seen;
        uint32_t count = 0;
        int64_t last_ns = 0;
        std::list<BlockId>::iterator age;
    };
    using UnfinishedMap = std::unordered_map<BlockId, Unfinished, BlockIdHash>;

    void take(const BlockId &id, uint32_t shard, bool replace, int64_t now_ns);
    void publish(const BlockId &id);
    void abandon_old(int64_t now_ns);
    void trim();
    void erase(UnfinishedMap::iterator found);
    void fill(ucm_report &report);

    const uint32_t shards_per_block_;
    const uint64_t capacity_;
    const size_t max_blocks_, max_unfinished_;

    std::mutex mutex_;                                              // guards all below but metrics_
    std::unordered_map<BlockId, uint64_t, BlockIdHash> published_;  // -> its number in fifo_
    std::deque<std::pair<uint64_t, BlockId>> fifo_;  // may hold removed ones, until their turn
    uint64_t next_number_ = 0;
    UnfinishedMap unfinished_;
    std::list<BlockId> age_;  // of unfinished_, longest without a new shard first
    uint64_t stored_ = 0, lost_ = 0, unfinished_shards_ = 0;
    Metrics<kFakeMetrics> metrics_;
};

}  // namespace ucm
