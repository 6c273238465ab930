// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "core.h"
#include "threads.h"

namespace ucm::cache {

// Moves what dumps brought to the store below: whole blocks, and under pressure or for a drain the
// shards of unfinished ones. One write of a block runs at a time. One thread.
class WriteBack {
  public:
    explicit WriteBack(Core &core) : core_(core) {}
    ~WriteBack() { stop(); }

    void start();
    void stop();  // once idle

    // All below with Core::mutex held.
    void request(const BlockRef &block);
    void request_unsaved(size_t most_shards);
    // Dumps need slots: writes the oldest unfinished blocks, unless slots are about to come free.
    void make_room();
    bool idle() const {
        return queue_.empty() && delayed_.empty() && doubtful_.empty() && in_flight_ == 0;
    }
    // Until every lower dump whose call runs now has been accepted, or refused.
    void wait_submitted(Lock &lock);
    // The block is given up: its shards are lost, and counted.
    void lose(const BlockRef &block, ucm_status status, const char *why, Outcome &outcome);
    // The block is not wanted any more: removed, or replaced by a newer copy.
    void drop(const BlockRef &block, Outcome &outcome);

  private:
    struct Batch;

    void run();
    std::shared_ptr<Batch> build();
    void add(Batch &batch, const BlockRef &block);
    void submit(const std::shared_ptr<Batch> &batch, Lock &lock);
    void take_back(Batch &batch);
    void ended(Batch &batch);
    void finish(Batch &batch, Outcome &outcome);
    void judge(const BlockRef &block, const std::vector<uint32_t> &shards,
               const ucm_result *results, Outcome &outcome);
    void stored(const BlockRef &block, Outcome &outcome);
    void declined(const BlockRef &block, Outcome &outcome);
    void ask_below(Lock &lock, Outcome &outcome);
    bool again(const BlockRef &block);
    void written(const BlockRef &block);
    bool older_is_on_its_way(const BlockRef &block) const;
    void let_newer_go(const BlockId &id);
    void abandon_idle(Outcome &outcome);
    uint64_t settle_accounts(Block &block, bool lost);
    int64_t next_wake() const;

    Core &core_;
    // All guarded by Core::mutex.
    std::deque<BlockRef> queue_;
    std::multimap<int64_t, BlockRef> delayed_;  // when -> to be tried again
    std::unordered_set<BlockId, BlockIdHash> in_flight_ids_;
    // Copies of a block that wait until an older one is written: below, two must not mix.
    std::unordered_map<BlockId, std::vector<BlockRef>, BlockIdHash> held_back_;
    std::unordered_map<Batch *, std::shared_ptr<Batch>> running_;
    std::deque<std::shared_ptr<Batch>> ended_;
    std::vector<BlockRef> doubtful_;
    uint64_t in_flight_ = 0;  // shards
    uint64_t calls_begun_ = 0, calls_ended_ = 0;
    int64_t busy_until_ns_ = 0;  // the store below was BUSY
    bool stopping_ = false;
    Threads threads_;
};

}  // namespace ucm::cache
