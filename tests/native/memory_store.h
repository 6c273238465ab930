// SPDX-License-Identifier: MIT
//
// A bottom store in memory whose every move a test decides. See Memory for what it can be told.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <unordered_map>
#include <vector>

#include "task.h"
#include "threads.h"

namespace ucm_test {

using ucm::BlockId;

enum class Op { kLoad, kDump, kLookup, kRemove };

// Contents and remote control of a MemoryStore. Shared by the test and the store, so that it
// outlives the store and can be given to the next one. All methods: any thread, at any time.
class Memory {
  public:
    // Set before open.
    uint64_t capabilities =
        UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_REMOVE | UCM_CAP_CANCEL | UCM_CAP_PERSISTENT;
    size_t threads = 1;
    uint64_t max_shards = 1u << 20;  // BUSY above

    struct Counters {
        uint64_t load_transfers = 0, dump_transfers = 0,
                 busy = 0;  // busy: how often it was answered
        uint64_t loaded = 0, dumped = 0,
                 replaced = 0;    // shards done UCM_OK; replaced: with REPLACE
        uint64_t registered = 0;  // bytes of memory
        uint64_t lookups = 0, removes = 0, touches = 0, prefetches = 0, drains = 0;  // calls
        uint64_t looked_up = 0;     // ids asked for
        uint64_t most_waiting = 0;  // shards accepted and not yet done, at most
    };

    // Nothing completes from now on, until release() lets all, or release(k) lets k shards go.
    void hold() {
        change([&] { allowed_ = 0; });
    }
    void release() {
        change([&] { allowed_ = SIZE_MAX; });
    }
    void release(size_t shards) {
        change([&] { allowed_ += shards; });
    }
    // Dumps alone complete no more, or go on.
    void hang_dumps(bool on) {
        change([&] { hangs_ = on; });
    }
    // Each shard takes that long.
    void delay(std::chrono::microseconds each) {
        change([&] { delay_ = each; });
    }
    // The next k transfers are answered UCM_BUSY.
    void busy(size_t transfers) {
        change([&] { busy_ = transfers; });
    }
    // After `skip` more shards of this kind (lookups and removes: calls), the next `count` end with
    // status.
    void fail(Op op, ucm_status status, size_t skip = 0, size_t count = 1, int os_errno = 0) {
        change([&] { faults_[op] = {status, skip, count, os_errno}; });
    }
    // Of these blocks it keeps nothing: their dumps are DECLINED.
    void decline(const std::vector<BlockId> &ids) {
        change([&] {
            for (const BlockId &id : ids) declined_[id] = true;
        });
    }
    // Complete what waits in an order of chance.
    void reorder(bool on) {
        change([&] { reorder_ = on; });
    }

    Counters counters() const {
        std::lock_guard<std::mutex> hold(mutex_);
        return counters_;
    }
    // Shards accepted and not done.
    size_t waiting() const {
        std::lock_guard<std::mutex> hold(mutex_);
        return waiting_.size();
    }
    // Returns once `shards` or more wait here, or false after 30 seconds.
    bool wait_for_waiting(size_t shards) {
        std::unique_lock<std::mutex> hold(mutex_);
        return changed_.wait_for(hold, std::chrono::seconds(30),
                                 [&] { return waiting_.size() >= shards; });
    }
    bool published(const BlockId &id) const {
        std::lock_guard<std::mutex> hold(mutex_);
        return find(id) != nullptr;
    }
    size_t blocks() const {
        std::lock_guard<std::mutex> hold(mutex_);
        size_t count = 0;
        for (auto &entry : blocks_) count += entry.second.published ? 1 : 0;
        return count;
    }
    // What is stored for a shard of a published block; empty if it is not.
    std::vector<uint8_t> stored(const BlockId &id, uint32_t shard) const {
        std::lock_guard<std::mutex> hold(mutex_);
        const Copy *copy = find(id);
        return copy ? *(*copy)[shard] : std::vector<uint8_t>();
    }
    // Replaces it, to play a damaged store.
    void tamper(const BlockId &id, uint32_t shard, std::vector<uint8_t> bytes) {
        change([&] { (*blocks_.at(id).published)[shard] = std::move(bytes); });
    }
    void erase(const BlockId &id) {
        change([&] { blocks_.erase(id); });
    }

  private:
    friend class MemoryStore;
    using Copy = std::vector<std::optional<std::vector<uint8_t>>>;
    struct Block {
        std::optional<Copy> published;
        std::map<const void *, Copy> unfinished;  // by store: what one has is nothing to another
    };
    struct Fault {
        ucm_status status = UCM_OK;
        size_t skip = 0, count = 0;
        int os_errno = 0;
    };
    struct Item {
        const void *store;
        std::shared_ptr<ucm::Task> task;
        size_t i;
        bool dump;
        uint64_t epoch;
    };

    template <typename F>
    void change(F body) {
        std::lock_guard<std::mutex> hold(mutex_);
        body();
        changed_.notify_all();
    }
    const Copy *find(const BlockId &id) const {
        auto found = blocks_.find(id);
        return found != blocks_.end() && found->second.published ? &*found->second.published
                                                                 : nullptr;
    }
    Fault fault(Op op) {
        Fault &fault = faults_[op];
        if (fault.skip) {
            fault.skip--;
            return {};
        }
        if (!fault.count) return {};
        fault.count--;
        return fault;
    }

    mutable std::mutex mutex_;  // guards all below
    std::condition_variable changed_;
    std::unordered_map<BlockId, Block, ucm::BlockIdHash> blocks_;
    std::unordered_map<BlockId, bool, ucm::BlockIdHash> declined_;
    std::deque<Item> waiting_;
    std::map<Op, Fault> faults_;
    Counters counters_;
    std::chrono::microseconds delay_{0};
    size_t allowed_ = SIZE_MAX, busy_ = 0;
    uint64_t random_ = 1;
    bool reorder_ = false, hangs_ = false;
};

class MemoryStore final : public ucm::Store {
  public:
    MemoryStore(const ucm_open_args &args, std::shared_ptr<Memory> memory)
        : memory_(std::move(memory)),
          tasks_(args.layout),
          admission_(memory_->max_shards, UINT64_MAX) {
        if (args.layout) {
            shards_ = args.layout->shards_per_block;
            segments_.assign(args.layout->segment_bytes,
                             args.layout->segment_bytes + args.layout->n_segments);
        }
        threads_.start(memory_->threads, "memory", [this] { run(); });
    }

    uint64_t capabilities() const override { return memory_->capabilities; }

    ucm_status lookup(const ucm_lookup_args &a, ucm_error *err) override {
        std::lock_guard<std::mutex> hold(memory_->mutex_);
        memory_->counters_.lookups++;
        memory_->counters_.looked_up += a.n;
        const Memory::Fault fault = memory_->fault(Op::kLookup);
        if (fault.status) return ucm_fail(err, fault.status, fault.os_errno, "lookup told to fail");
        size_t all = 0, prefix = 0, last = 0;
        for (size_t i = 0; i < a.n; i++) {
            const bool here = memory_->find(BlockId::at(a.block_ids, i)) != nullptr;
            if (a.tiers) a.tiers[i] = here;
            if (!here) continue;
            all++;
            last = i + 1;
            if (prefix == i) prefix++;
        }
        if (a.hits)
            *a.hits = a.mode == UCM_LOOKUP_ALL ? all : a.mode == UCM_LOOKUP_PREFIX ? prefix : last;
        return UCM_OK;
    }

    ucm_status load(const ucm_transfer &t, ucm_task *task, ucm_error *err) override {
        return submit(t, false, task, err);
    }
    ucm_status dump(const ucm_transfer &t, ucm_task *task, ucm_error *err) override {
        return submit(t, true, task, err);
    }
    ucm_status cancel(ucm_task task, ucm_error *err) override { return tasks_.cancel(task, err); }

    ucm_status prefetch(const ucm_ids_args &, ucm_error *) override {
        memory_->change([&] { memory_->counters_.prefetches++; });
        return UCM_OK;
    }
    ucm_status touch(const ucm_ids_args &, ucm_error *) override {
        memory_->change([&] { memory_->counters_.touches++; });
        return UCM_OK;
    }

    ucm_status register_memory(const ucm_memory_args &a, ucm_error *) override {
        memory_->change(
            [&] { memory_->counters_.registered += a.release ? 0 - a.bytes : a.bytes; });
        return UCM_OK;
    }

    ucm_status remove(const ucm_ids_args &a, ucm_error *err) override {
        std::vector<Memory::Item> cancelled;
        {
            std::lock_guard<std::mutex> hold(memory_->mutex_);
            memory_->counters_.removes++;
            const Memory::Fault fault = memory_->fault(Op::kRemove);
            if (fault.status)
                return ucm_fail(err, fault.status, fault.os_errno, "remove told to fail");
            for (size_t k = 0; k < a.n; k++) {
                const BlockId id = BlockId::at(a.block_ids, k);
                memory_->blocks_.erase(id);
                auto &waiting = memory_->waiting_;
                for (auto item = waiting.begin(); item != waiting.end();) {
                    if (item->store == this && item->dump && item->task->id(item->i) == id) {
                        cancelled.push_back(std::move(*item));
                        item = waiting.erase(item);
                    } else {
                        ++item;
                    }
                }
            }
        }
        for (auto &item : cancelled) complete(item, ucm::result(UCM_CANCELLED));
        return UCM_OK;
    }

    ucm_status drain(const ucm_wait_args &a, ucm_report &report, ucm_error *) override {
        memory_->change([&] { memory_->counters_.drains++; });
        const ucm_status status = ledger_.drain(ucm::deadline_after_ms(a.timeout_ms), report);
        report.unfinished = unfinished();
        return status;
    }

    ucm_status close(const ucm_wait_args &a, ucm_report &report, ucm_error *) override {
        const bool idle = tasks_.close(ucm::deadline_after_ms(a.timeout_ms));
        ledger_.drain(0, report);
        report.unfinished = unfinished();
        if (!idle) return UCM_PENDING;
        memory_->change([&] { stop_ = true; });
        threads_.join();
        // What was not published dies with the handle.
        memory_->change([&] {
            for (auto &entry : memory_->blocks_) entry.second.unfinished.erase(this);
        });
        return UCM_OK;
    }

  private:
    ucm_status submit(const ucm_transfer &t, bool dump, ucm_task *number, ucm_error *err) {
        {
            std::lock_guard<std::mutex> hold(memory_->mutex_);
            if (memory_->busy_) {
                memory_->busy_--;
                memory_->counters_.busy++;
                return ucm_fail(err, UCM_BUSY, 0, "told to be busy");
            }
        }
        ucm_status status;
        auto task = tasks_.accept(t, dump, admission_, number, &status, err);
        if (!task) return status;
        const uint64_t epoch = dump ? ledger_.accept(task->n()) : 0;
        memory_->change([&] {
            auto &counters = memory_->counters_;
            (dump ? counters.dump_transfers : counters.load_transfers)++;
            for (size_t i = 0; i < task->n(); i++)
                memory_->waiting_.push_back({this, task, i, dump, epoch});
            counters.most_waiting =
                std::max<uint64_t>(counters.most_waiting, memory_->waiting_.size());
        });
        return UCM_OK;
    }

    void run() {
        for (;;) {
            Memory::Item item;
            ucm_result result;
            {
                std::unique_lock<std::mutex> hold(memory_->mutex_);
                auto ready = [&] { return memory_->allowed_ && waits(); };
                memory_->changed_.wait(hold, [&] { return ready() || stop_; });
                if (stop_) return;
                if (memory_->delay_.count()) {
                    const auto delay = memory_->delay_;
                    hold.unlock();
                    std::this_thread::sleep_for(delay);
                    hold.lock();
                    if (!ready()) continue;
                }
                if (memory_->allowed_ != SIZE_MAX) memory_->allowed_--;
                item = take();
                result = item.dump ? dump_one(item) : load_one(item);
            }
            complete(item, result);
        }
    }

    // The rest: with memory_->mutex_ held.
    bool waits() const {
        for (auto &item : memory_->waiting_)
            if (may_go(item)) return true;
        return false;
    }

    bool may_go(const Memory::Item &item) const {
        return item.store == this && !(item.dump && memory_->hangs_);
    }

    Memory::Item take() {
        auto &waiting = memory_->waiting_;
        std::vector<size_t> mine;
        for (size_t k = 0; k < waiting.size(); k++) {
            if (may_go(waiting[k])) mine.push_back(k);
            if (!memory_->reorder_ && !mine.empty()) break;
        }
        size_t which = mine.front();
        if (memory_->reorder_) {
            memory_->random_ = memory_->random_ * 6364136223846793005u + 1442695040888963407u;
            which = mine[size_t(memory_->random_ >> 33) % mine.size()];
        }
        Memory::Item item = std::move(waiting[which]);
        waiting.erase(waiting.begin() + std::ptrdiff_t(which));
        return item;
    }

    ucm_result dump_one(const Memory::Item &item) {
        const ucm::Task &task = *item.task;
        if (const ucm_status refused = task.refused()) return ucm::result(refused);
        const Memory::Fault fault = memory_->fault(Op::kDump);
        if (fault.status) return ucm::result(fault.status, 0, fault.os_errno);
        memory_->counters_.dumped++;
        if (memory_->declined_.count(task.id(item.i)) && !task.replace())
            return ucm::result(UCM_OK, 0, 0, UCM_RESULT_DECLINED);
        Memory::Block &block = memory_->blocks_[task.id(item.i)];
        if (task.replace()) memory_->counters_.replaced++;
        auto mine = block.unfinished.find(this);
        if (block.published && !task.replace() && mine == block.unfinished.end())
            return ucm::result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
        if (mine == block.unfinished.end())
            mine = block.unfinished.emplace(this, Memory::Copy(shards_)).first;
        auto &slot = mine->second[task.shard(item.i)];
        if (!slot) slot = gather(task, item.i);
        for (auto &shard : mine->second)
            if (!shard) return ucm::result(UCM_OK);
        block.published = std::move(mine->second);
        block.unfinished.erase(this);
        return ucm::result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
    }

    ucm_result load_one(const Memory::Item &item) {
        const ucm::Task &task = *item.task;
        if (const ucm_status refused = task.refused()) return ucm::result(refused);
        const Memory::Fault fault = memory_->fault(Op::kLoad);
        if (fault.status) return ucm::result(fault.status, 0, fault.os_errno);
        const Memory::Copy *copy = memory_->find(task.id(item.i));
        if (!copy) return ucm::result(UCM_NOT_FOUND);
        const std::vector<uint8_t> &bytes = *(*copy)[task.shard(item.i)];
        if (bytes.size() > tasks_.capacity()) return ucm::result(UCM_INCOMPATIBLE);
        size_t at = 0;
        for (size_t k = 0; k < segments_.size() && at < bytes.size(); k++) {
            const size_t part = std::min<size_t>(segments_[k], bytes.size() - at);
            std::memcpy(task.addresses(item.i)[k], bytes.data() + at, part);
            at += part;
        }
        memory_->counters_.loaded++;
        return ucm::result(UCM_OK, bytes.size());
    }

    std::vector<uint8_t> gather(const ucm::Task &task, size_t i) const {
        std::vector<uint8_t> bytes;
        for (size_t k = 0; k < segments_.size() && bytes.size() < task.length(i); k++) {
            const size_t part = std::min<size_t>(segments_[k], task.length(i) - bytes.size());
            const auto *from = static_cast<const uint8_t *>(task.addresses(i)[k]);
            bytes.insert(bytes.end(), from, from + part);
        }
        return bytes;
    }

    void complete(const Memory::Item &item, const ucm_result &result) {
        if (item.dump) {
            const bool kept = result.status == UCM_OK && !(result.flags & UCM_RESULT_DECLINED);
            ledger_.end(item.epoch, kept, 0, !kept);
        }
        item.task->complete(item.i, result);
    }

    uint64_t unfinished() const {
        std::lock_guard<std::mutex> hold(memory_->mutex_);
        uint64_t count = 0;
        for (auto &entry : memory_->blocks_)
            for (auto &copy : entry.second.unfinished)
                for (auto &shard : copy.second) count += copy.first == this && shard ? 1 : 0;
        return count;
    }

    std::shared_ptr<Memory> memory_;
    ucm::Tasks tasks_;
    ucm::Ledger ledger_;
    ucm::Admission admission_;
    uint32_t shards_ = 0;
    bool stop_ = false;  // guarded by memory_->mutex_
    std::vector<uint64_t> segments_;
    ucm::Threads threads_;
};

}  // namespace ucm_test
