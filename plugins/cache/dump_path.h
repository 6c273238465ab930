// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <unordered_set>

#include "write_back.h"

namespace ucm::cache {

using IdSet = std::unordered_set<BlockId, BlockIdHash>;

// Copies accepted dumps into slots, in the order in which they came. One thread, so that one dump
// of a shard comes before another; it waits here for room, while loads go on elsewhere.
class DumpPath {
  public:
    DumpPath(Core &core, WriteBack &writer) : core_(core), writer_(writer) {}
    ~DumpPath() { stop(); }

    void start();
    void stop();  // once every job is answered

    void push(const JobRef &job);
    // While somebody drains, what is unfinished goes below as it comes.
    void flush(bool begin);

    // All below with Core::mutex held.
    // Shards of these that were accepted and not copied yet are cancelled.
    void cancel(const IdSet &ids);

  private:
    void run();
    void process(const JobRef &job, Lock &lock);
    bool take(const JobRef &job, size_t row, Lock &lock, Outcome &outcome, ucm_result &answer);
    bool make_room(const BlockId &id, Outcome &outcome);
    bool copy(const JobRef &job, size_t row, uint32_t slot, Lock &lock, Outcome &outcome,
              ucm_result &answer);
    bool landed(const BlockRef &block, const JobRef &job, size_t row, Outcome &outcome,
                ucm_result &answer);
    BlockRef joined(const JobRef &job, size_t row, Outcome &outcome);
    BlockRef gathering_for(const JobRef &job, size_t row, Outcome &outcome);

    Core &core_;
    WriteBack &writer_;
    // All guarded by Core::mutex.
    std::deque<JobRef> jobs_;  // the first one is being copied
    uint32_t flushing_ = 0;
    bool stopping_ = false;
    Threads threads_;
};

}  // namespace ucm::cache
