// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "clock.h"
#include "ucm/store_v1.hpp"

namespace ucm {

struct BlockId {
    uint8_t bytes[UCM_BLOCK_ID_BYTES];

    static BlockId at(const uint8_t *ids, size_t i) {
        BlockId id;
        std::memcpy(id.bytes, ids + i * UCM_BLOCK_ID_BYTES, sizeof id.bytes);
        return id;
    }
    bool operator==(const BlockId &other) const {
        return std::memcmp(bytes, other.bytes, sizeof bytes) == 0;
    }
    std::string hex() const {
        static const char digits[] = "0123456789abcdef";
        std::string text;
        for (uint8_t byte : bytes) {
            text += digits[byte >> 4];
            text += digits[byte & 15];
        }
        return text;
    }
};

struct BlockIdHash {
    // Ids may come from anywhere, so both halves are mixed.
    size_t operator()(const BlockId &id) const {
        uint64_t a, b;
        std::memcpy(&a, id.bytes, 8);
        std::memcpy(&b, id.bytes + 8, 8);
        return size_t((a ^ (b * 0x9e3779b97f4a7c15u)) * 0xff51afd7ed558ccdu);
    }
};

constexpr uint32_t kUnknownDepth = 0xffffffff;

// The bound of a queue in shards and bytes. Below it one transfer may overshoot, so that a large
// one is never starved by small ones.
class Admission {
  public:
    Admission(uint64_t max_shards, uint64_t max_bytes)
        : max_shards_(max_shards), max_bytes_(max_bytes) {}

    bool enter(uint64_t shards, uint64_t bytes) {
        std::lock_guard<std::mutex> hold(mutex_);
        if (shards_.load(std::memory_order_acquire) >= max_shards_ ||
            bytes_.load(std::memory_order_acquire) >= max_bytes_)
            return false;
        shards_.fetch_add(shards, std::memory_order_relaxed);
        bytes_.fetch_add(bytes, std::memory_order_relaxed);
        return true;
    }

    void leave(uint64_t shards, uint64_t bytes) {
        bytes_.fetch_sub(bytes, std::memory_order_release);
        shards_.fetch_sub(shards, std::memory_order_release);
    }

  private:
    const uint64_t max_shards_, max_bytes_;
    std::mutex mutex_;  // one enter at a time; leave only makes room
    std::atomic<uint64_t> shards_{0}, bytes_{0};
};

class Tasks;

// One accepted transfer: a copy of its arrays, and its callbacks. Ends itself after the last shard.
class Task {
  public:
    size_t n() const { return shards_.size(); }
    ucm_task number() const { return number_; }
    BlockId id(size_t i) const { return BlockId::at(ids_.data(), i); }
    uint32_t shard(size_t i) const { return shards_[i]; }
    void *const *addresses(size_t i) const { return addresses_.data() + i * segments_; }
    uint64_t length(size_t i) const { return lengths_.empty() ? capacity_ : lengths_[i]; }
    uint64_t raw_length(size_t i) const {
        return raw_lengths_.empty() ? length(i) : raw_lengths_[i];
    }
    uint32_t depth(size_t i) const { return depths_.empty() ? kUnknownDepth : depths_[i]; }
    uint64_t tag() const { return tag_; }
    int32_t priority() const { return priority_; }
    int64_t deadline_ns() const { return deadline_ns_; }
    bool replace() const { return replace_; }
    // What to wait for before the memory is touched; 0: nothing.
    uint64_t event() const { return event_; }

    // UCM_OK, or why a shard whose bytes do not move yet should not start to.
    ucm_status refused() const {
        if (cancelled_.load(std::memory_order_relaxed)) return UCM_CANCELLED;
        return deadline_ns_ && monotonic_ns() > deadline_ns_ ? UCM_TIMEOUT : UCM_OK;
    }
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
    // Every shard is complete: finished runs or has run.
    bool ended() const { return remaining_.load(std::memory_order_acquire) == 0; }

    // Once for each shard, by any thread that holds no lock.
    inline void complete(size_t i, const ucm_result &result);

  private:
    friend class Tasks;
    Task() = default;

    ucm_task number_ = 0;
    size_t segments_ = 0;
    uint64_t capacity_ = 0;
    std::vector<uint8_t> ids_;
    std::vector<uint32_t> shards_, depths_;
    std::vector<void *> addresses_;
    std::vector<uint64_t> lengths_, raw_lengths_;
    void (*done_)(void *, size_t, const ucm_result *) = nullptr;
    void (*finished_)(void *) = nullptr;
    void *ctx_ = nullptr;
    uint64_t tag_ = 0;
    int32_t priority_ = 0;
    int64_t deadline_ns_ = 0;
    bool replace_ = false;
    uint64_t event_ = 0;
    std::atomic<size_t> remaining_{0};
    std::atomic<bool> cancelled_{false};
    Tasks *owner_ = nullptr;
    Admission *admission_ = nullptr;
};

// The tasks of one store: accepts transfers, finds them for cancel, waits for the last at close.
class Tasks {
  public:
    explicit Tasks(const ucm_layout *layout)
        : segments_(layout ? layout->n_segments : 0), capacity_(layout ? layout->capacity : 0) {}

    uint64_t capacity() const { return capacity_; }

    // NULL with *status UCM_BUSY, UCM_CLOSED or UCM_INVALID: nothing was accepted. A transfer of
    // nothing is finished on return, and NULL with UCM_OK.
    std::shared_ptr<Task> accept(const ucm_transfer &t, bool dump, Admission &admission,
                                 ucm_task *number, ucm_status *status, ucm_error *err) {
        uint64_t bytes = uint64_t(t.n) * capacity_;
        if (dump && t.lengths) {
            bytes = 0;
            for (size_t i = 0; i < t.n; i++) bytes += t.lengths[i];
        }
        std::shared_ptr<Task> task(new Task());
        copy(t, dump, *task);
        task->owner_ = this;
        task->admission_ = &admission;
        task->remaining_.store(t.n, std::memory_order_relaxed);
        {
            std::lock_guard<std::mutex> hold(mutex_);
            if (closing_) {
                *status = ucm_fail(err, UCM_CLOSED, 0, "the store is closing");
                return nullptr;
            }
            if (t.n && !admission.enter(t.n, bytes)) {
                *status = ucm_fail(err, UCM_BUSY, 0, "the queue is full; try again later");
                return nullptr;
            }
            task->number_ = next_++;
            if (t.n) running_[task->number_] = task;
        }
        if (number) *number = task->number_;
        *status = UCM_OK;
        if (t.n == 0) {
            t.finished(t.ctx);
            return nullptr;
        }
        return task;
    }

    ucm_status cancel(ucm_task number, ucm_error *err) {
        std::lock_guard<std::mutex> hold(mutex_);
        auto found = running_.find(number);
        if (found == running_.end() || found->second->ended())
            return ucm_fail(err, UCM_NOT_FOUND, 0, "no such task; it may have finished");
        found->second->cancel();
        return UCM_OK;
    }

    // Refuse new transfers; true when none runs any more.
    bool close(int64_t until_ns) {
        std::unique_lock<std::mutex> hold(mutex_);
        closing_ = true;
        while (!running_.empty()) {
            int64_t left = until_ns == INT64_MAX ? 1000000000 : until_ns - monotonic_ns();
            if (left <= 0) return false;
            idle_.wait_for(hold, std::chrono::nanoseconds(std::min<int64_t>(left, 1000000000)));
        }
        return true;
    }

  private:
    friend class Task;

    void copy(const ucm_transfer &t, bool dump, Task &task) const {
        task.segments_ = segments_;
        task.capacity_ = capacity_;
        task.ids_.assign(t.block_ids, t.block_ids + t.n * UCM_BLOCK_ID_BYTES);
        task.shards_.assign(t.shard_index, t.shard_index + t.n);
        task.addresses_.assign(t.addresses, t.addresses + t.n * segments_);
        if (dump && t.lengths) task.lengths_.assign(t.lengths, t.lengths + t.n);
        if (dump && t.raw_lengths) task.raw_lengths_.assign(t.raw_lengths, t.raw_lengths + t.n);
        if (t.depths) task.depths_.assign(t.depths, t.depths + t.n);
        task.done_ = t.done;
        task.finished_ = t.finished;
        task.ctx_ = t.ctx;
        task.tag_ = t.tag;
        task.priority_ = t.priority;
        task.deadline_ns_ = t.deadline_ns;
        task.replace_ = (t.flags & UCM_TRANSFER_REPLACE) != 0;
        task.event_ = t.flags & UCM_TRANSFER_EVENT ? t.event : 0;
    }

    void ended(ucm_task number) {
        std::shared_ptr<Task> last;  // freed after the lock
        std::lock_guard<std::mutex> hold(mutex_);
        auto found = running_.find(number);
        last = std::move(found->second);
        running_.erase(found);
        // Notify under the lock: close may delete this object as soon as it is released.
        if (running_.empty()) idle_.notify_all();
    }

    const size_t segments_;
    const uint64_t capacity_;
    std::mutex mutex_;  // guards all below
    std::condition_variable idle_;
    std::unordered_map<ucm_task, std::shared_ptr<Task>> running_;
    ucm_task next_ = 1;
    bool closing_ = false;
};

inline void Task::complete(size_t i, const ucm_result &result) {
    const uint64_t bytes = length(i);
    done_(ctx_, i, &result);
    admission_->leave(1, bytes);
    if (remaining_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    finished_(ctx_);
    owner_->ended(number_);
}

// Counts accepted dump shards until they are stored or lost, and lets drain wait for exactly those
// that were accepted before it.
class Ledger {
  public:
    // The returned epoch goes with the shards to end().
    uint64_t accept(uint64_t shards) {
        std::lock_guard<std::mutex> hold(mutex_);
        outstanding_[epoch_] += shards;
        return epoch_;
    }

    // `failed`: done said so itself, so that it is neither stored nor lost.
    void end(uint64_t epoch, uint64_t stored, uint64_t lost, uint64_t failed) {
        std::lock_guard<std::mutex> hold(mutex_);
        stored_ += stored;
        lost_ += lost;
        auto found = outstanding_.find(epoch);
        found->second -= stored + lost + failed;
        if (found->second == 0) {
            outstanding_.erase(found);
            changed_.notify_all();
        }
    }

    // Of shards that were counted as stored before: their block was abandoned.
    void lose_stored(uint64_t shards) {
        std::lock_guard<std::mutex> hold(mutex_);
        lost_ += shards;
    }

    // UCM_OK or UCM_PENDING; fills in and restarts stored and lost.
    ucm_status drain(int64_t until_ns, ucm_report &report) {
        std::unique_lock<std::mutex> hold(mutex_);
        const uint64_t mine = epoch_++;
        auto pending = [&] {
            uint64_t sum = 0;
            for (auto &entry : outstanding_)
                if (entry.first <= mine) sum += entry.second;
            return sum;
        };
        while (pending() != 0) {
            int64_t left = until_ns == INT64_MAX ? 1000000000 : until_ns - monotonic_ns();
            if (left <= 0) break;
            changed_.wait_for(hold, std::chrono::nanoseconds(std::min<int64_t>(left, 1000000000)));
        }
        report.stored = stored_;
        report.lost = lost_;
        report.pending = pending();
        stored_ = lost_ = 0;
        return report.pending ? UCM_PENDING : UCM_OK;
    }

  private:
    std::mutex mutex_;  // guards all below
    std::condition_variable changed_;
    std::map<uint64_t, uint64_t> outstanding_;  // epoch -> shards
    uint64_t epoch_ = 0, stored_ = 0, lost_ = 0;
};

}  // namespace ucm
