// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <map>
#include <unordered_map>

#include "core.h"
#include "threads.h"

namespace ucm::cache {

// Answers loads from frames, and fills frames from the store below. Small hits are copied at once,
// on the caller's thread. The threads wait for nothing but work: what finds no frame is parked, and
// looked at again when there is room; what another process reads is looked at again when it rings.
// One more thread asks below what of a prefetch there is.
class LoadPath {
  public:
    explicit LoadPath(Core &core) : core_(core) {}
    ~LoadPath() { stop(); }

    void start();
    void stop();  // once idle

    // `inline_bytes`: how much of what is here the caller's thread may copy.
    void push(const JobRef &job, uint64_t inline_bytes);
    // Answers what does not have to be waited for; the job was cancelled.
    void cancel(ucm_task number);
    void prefetch(const std::vector<BlockId> &ids);
    // These are looked for while the breaker is open: what of them is below may be probed.
    void seek_probe(const uint8_t *ids, size_t n);
    // Passes below, now and then, which blocks were used.
    void pass_touches();

    // With Core::mutex held.
    bool idle() const;
    void forget_prefetches() {
        expected_.clear();
        prefetches_.clear();
    }
    // Something changed in another process, or may have.
    void look_again();
    bool waits_for_others() const { return !foreign_.empty(); }

  private:
    struct Part {
        JobRef job;
        std::vector<size_t> rows;
    };
    struct Waiter {
        JobRef job;
        size_t row;
    };
    struct Hit {
        BlockRef block;
        size_t row;
    };
    struct Foreign {
        Waiter waiter;
        BlockRef block;
        int64_t since_ns;
    };
    using Hits = std::vector<std::pair<JobRef, std::vector<Hit>>>;  // task by task
    struct Fill;
    struct Arriving;
    struct Arrival;
    using Key = std::pair<uint32_t, uint32_t>;  // record and shard

    void run();
    void run_expected();
    std::vector<uint8_t> ask_below(const std::vector<BlockId> &ids) const;
    void set_probe(const std::vector<BlockId> &ids, const std::vector<uint8_t> &tiers);
    bool step(Lock &lock);
    bool step_below(int64_t now_ns, Lock &lock);
    void claim(Job &job, size_t row);
    void copy_out(const JobRef &job, std::vector<Hit> hits, std::vector<size_t> &missed);
    std::vector<Hit> pin(const JobRef &job, const std::vector<Hit> &hits,
                         std::vector<size_t> &missed);
    void unpin(const std::vector<Hit> &hits);
    void serve_here(const JobRef &job, uint64_t most_bytes, std::vector<size_t> &left);
    void plan(Lock &lock);
    enum class Planned { kYes, kNoRoom };
    Planned plan_row(const Waiter &waiter, Hits &hits, Fill &fill, Outcome &outcome);
    void plan_prefetch(const BlockId &id, Lock &lock);
    void plan_probe(Lock &lock);
    bool may_fill(const BlockRef &block, const Fill &fill) const;
    void begin(Fill &fill, const BlockRef &block, uint32_t shard, std::vector<Waiter> waiters);
    void copy_hits(Hits &hits, Lock &lock);
    void launch(const std::shared_ptr<Fill> &fill, Lock &lock);
    void submit(const std::shared_ptr<Fill> &fill, Lock &lock);
    std::vector<Arrival> collect(Outcome &outcome);
    bool claim_waiters(Arrival &each);
    size_t hand_out(std::vector<Arrival> &arrivals, size_t first, size_t which);
    void give_up(const std::vector<Arrival> &arrivals);
    void arrive(Lock &lock);
    void fill_ended(Fill &fill, Outcome &outcome);
    void tell_breaker(ucm_status status, Outcome &outcome);
    void count_silence(Lock &lock);
    int64_t patience_ns() const;
    int64_t probe_at() const;
    void expire(const JobRef &job, Lock &lock);
    void unpark();
    void want_room();
    void queue(Part part, bool front = false);
    size_t queued() const;
    int64_t next_wake() const;

    Core &core_;
    Table &table_ = core_.table;
    // All guarded by Core::mutex.
    std::map<int32_t, std::deque<Part>, std::greater<int32_t>> pieces_;  // the most urgent first
    std::deque<Part> parked_;
    uint64_t parked_at_version_ = 0;  // of the room, when the last one was parked
    std::deque<std::pair<std::shared_ptr<Fill>, size_t>> arrived_;
    int64_t arrived_due_ns_ = 0;                 // until then more may gather
    std::deque<std::shared_ptr<Fill>> refused_;  // by a BUSY store below
    int64_t busy_until_ns_ = 0;
    std::deque<JobRef> expired_;
    std::deque<BlockId> expected_;    // to be prefetched, where the store below has them
    std::deque<BlockId> prefetches_;  // which it has
    std::vector<BlockId> sought_;     // one of them to be probed, if it has any
    bool asking_ = false;             // it is asked which
    std::vector<Foreign> foreign_;
    std::multimap<int64_t, JobRef> timers_;
    std::unordered_map<ucm_task, JobRef> jobs_;
    std::map<Key, Arriving *> arriving_;
    std::unordered_map<Fill *, std::shared_ptr<Fill>> fills_;  // until finished
    // When the store below last answered a load, or was given one while it had none.
    int64_t heard_ns_ = 0;
    // What was asked for last, refused since, or found in between: whether it can be had says
    // whether loads work.
    std::pair<BlockId, uint32_t> to_probe_;
    bool can_probe_ = false, probing_ = false;
    int64_t probed_ns_ = 0;
    size_t working_ = 0;  // threads that are in a step
    bool stopping_ = false;
    std::mutex touches_mutex_;  // guards touches_ only; hits take it, rarely
    std::vector<BlockId> touches_;
    Threads threads_;
};

}  // namespace ucm::cache
