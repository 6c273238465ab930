// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <unordered_map>

#include "core.h"
#include "threads.h"

namespace ucm::cache {

// Answers loads from slots, and fills slots from the store below. Its threads wait for nothing but
// work: what finds no slot is parked, and looked at again when there is room.
class LoadPath {
  public:
    explicit LoadPath(Core &core) : core_(core) {}
    ~LoadPath() { stop(); }

    void start();
    void stop();  // once idle

    void push(const JobRef &job);
    // Answers what does not have to be waited for; the job was cancelled.
    void cancel(ucm_task number);
    void prefetch(const std::vector<BlockId> &ids);

    // With Core::mutex held.
    bool idle() const;
    void forget_prefetches() { prefetches_.clear(); }

  private:
    struct Piece {
        JobRef job;
        std::vector<size_t> rows;
    };
    struct Waiter {
        JobRef job;
        size_t row;
    };
    struct Hit {
        BlockRef block;
        uint32_t slot;
        uint64_t length;
        size_t row;
    };
    struct Fill;
    struct Arriving;

    void run();
    bool step(Lock &lock);
    void claim(Job &job, size_t row);
    void plan(Piece piece, Lock &lock);
    bool plan_row(const JobRef &job, size_t row, std::vector<Hit> &hits, Fill &fill,
                  Outcome &outcome);
    void plan_prefetch(const BlockId &id, Lock &lock);
    void copy_hits(const JobRef &job, const std::vector<Hit> &hits, Lock &lock);
    void launch(const std::shared_ptr<Fill> &fill, Lock &lock);
    void submit(const std::shared_ptr<Fill> &fill, Lock &lock);
    void arrive(const std::shared_ptr<Fill> &fill, size_t k, Lock &lock);
    void expire(const JobRef &job, Lock &lock);
    void unpark();
    int64_t next_wake() const;

    Core &core_;
    // All guarded by Core::mutex.
    std::deque<Piece> pieces_, parked_;
    uint64_t parked_at_version_ = 0;  // of the room, when the last one was parked
    std::deque<std::pair<std::shared_ptr<Fill>, size_t>> arrived_;
    std::deque<std::shared_ptr<Fill>> refused_;  // by a BUSY store below
    int64_t busy_until_ns_ = 0;
    std::deque<JobRef> expired_;
    std::deque<BlockId> prefetches_;
    std::multimap<int64_t, JobRef> timers_;
    std::unordered_map<ucm_task, JobRef> jobs_;
    std::unordered_map<uint32_t, Arriving *> arriving_;        // by slot
    std::unordered_map<Fill *, std::shared_ptr<Fill>> fills_;  // until finished
    size_t working_ = 0;                                       // threads that are in a step
    bool stopping_ = false;
    Threads threads_;
};

}  // namespace ucm::cache
