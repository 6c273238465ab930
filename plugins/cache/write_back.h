// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <list>
#include <map>
#include <unordered_map>
#include <unordered_set>

#include "core.h"
#include "threads.h"

namespace ucm::cache {

// Moves what dumps brought to the store below: whole blocks, and under pressure or for a drain the
// shards of unfinished ones. It writes the blocks that this member owns; one write of a block runs
// at a time. One thread.
class WriteBack {
  public:
    explicit WriteBack(Core &core) : core_(core) {}
    ~WriteBack() { stop(); }

    void start();
    void stop();  // once idle

    // All below with Core::mutex held, and the table's unless said otherwise.

    // A shard of this block was accepted in that epoch; drain waits for it from here on.
    void account(const BlockRef &block, uint32_t shard, uint64_t epoch);
    // The same of a shard that is here or below already, whoever brought it.
    void account_again(const BlockRef &block, uint32_t shard, uint64_t epoch);
    // The block's last shard, whose job is answered once the block is published below.
    void answer_later(const BlockRef &block, const JobRef &job, size_t row);
    // With Core::mutex alone: a job was cancelled.
    void cancelled();
    // Gathering: a shard came.
    void touched(const BlockRef &block);
    void request(const BlockRef &block);
    void request_unsaved(size_t most_shards);
    // Dumps need frames: writes the oldest unfinished blocks, unless frames are about to come free.
    void make_room();
    // Unfinished, and all that it has lies below, perhaps: its frame may be given away.
    void saved(const BlockRef &block);
    // Gives frames of blocks that lie below away; true: one came free.
    bool spill(Outcome &outcome);
    // Where dumps of any member wait for a frame, gives one of this member's away, or sees to it.
    void relieve(Outcome &outcome);
    // The block is given up: its shards are lost, and counted.
    void lose(const BlockRef &block, ucm_status status, const char *why, Outcome &outcome);
    // The block is not wanted any more: removed, or replaced by a newer copy.
    void drop(const BlockRef &block, Outcome &outcome, uint32_t flags = 0);
    // What dead members left, and what changed hands.
    void adopt(const Table::Inheritance &all, Outcome &outcome);
    void find_own();
    // Takes both locks itself. While a drain runs, unfinished blocks of which shards came through
    // this member are stored as far as they are here, also by other owners.
    void drain(bool begins);
    // Again and again, for owners change. With both locks.
    void flush_for_drains();
    // Blocks that others wrote, gave up or removed: settles their accounts.
    void settle_foreign(Outcome &outcome);
    void abandon_idle(Outcome &outcome);
    // Closing: to a living member what it may finish. True: come again when less is being written.
    bool leave(Outcome &outcome);

    // With Core::mutex alone.
    bool idle() const {
        return queue_.empty() && delayed_.empty() && doubtful_.empty() && held_back_.empty() &&
               in_flight_ == 0 && to_remove_.empty();
    }
    // Until every lower dump whose call runs now has been accepted, or refused.
    void wait_submitted(Lock &lock);

  private:
    struct Batch;
    struct Account {
        uint32_t shard;
        uint64_t epoch;
    };
    // What this store knows of a block that it writes, or that it has brought shards of.
    struct Work {
        std::vector<Account> accounts;
        JobRef last_job;
        size_t last_row = 0;
        uint32_t tries = 0;
        bool queued = false, unsaved = false, saved = false;
        std::list<BlockRef>::iterator unsaved_at, saved_at;
    };
    enum class End { kStored, kLost, kDeclined };

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
    void remove_again(Lock &lock, Outcome &outcome);
    bool again(const BlockRef &block, bool down);
    void leave_to(const BlockRef &block, uint32_t member);
    static bool waits_for(const std::vector<Account> &accounts, uint32_t shard);
    void account_handed(const BlockRef &block);
    void hand_back(const BlockRef &block);
    void settle_stored(const BlockRef &block, Work &work);
    void try_held_back();
    void not_unsaved(Work &work);
    void not_saved(Work &work);
    uint64_t end_accounts(const BlockRef &block, End end);
    void answer_overdue(Outcome &outcome);
    void answer_last(Work &work, ucm_status status, uint32_t flags, Outcome &outcome);
    void lose_oldest_spilled(Outcome &outcome);
    void lose_spilled(uint32_t record, Outcome &outcome);
    int64_t quiet_until() const;
    int64_t next_wake() const;

    Core &core_;
    Table &table_ = core_.table;
    // All guarded by Core::mutex.
    std::unordered_map<BlockRef, Work, BlockRefHash> works_;
    std::deque<BlockRef> queue_;
    std::multimap<int64_t, BlockRef> delayed_;  // when -> to be tried again
    // Copies of a block that wait until an older one is written: below, two must not mix.
    std::vector<BlockRef> held_back_;
    std::list<BlockRef> unsaved_;  // unfinished ones with shards that are here only
    std::list<BlockRef> saved_;    // unfinished ones that may lie below with all they have
    std::unordered_map<Batch *, std::shared_ptr<Batch>> running_;
    std::deque<std::shared_ptr<Batch>> ended_;
    std::vector<BlockRef> doubtful_;
    // Written, and removed meanwhile: they are removed below before anybody writes them anew.
    std::vector<BlockRef> to_remove_;
    uint32_t removal_tries_ = 0;
    int64_t remove_at_ns_ = 0;
    std::vector<BlockRef> last_;         // whose last shard is to be answered
    int64_t last_until_ns_ = INT64_MAX;  // when one of their callers may wait no longer
    std::vector<std::pair<BlockRef, uint32_t>> to_leave_;  // to this member; filled by judge
    uint64_t in_flight_ = 0;                               // shards
    uint64_t calls_begun_ = 0, calls_ended_ = 0;
    int64_t busy_until_ns_ = 0;    // the store below was BUSY
    int64_t queued_since_ns_ = 0;  // when queue_ was last empty
    uint64_t lost_seen_ = 0;
    uint32_t drains_ = 0;  // that run
    bool stopping_ = false;
    Threads threads_;
};

}  // namespace ucm::cache
