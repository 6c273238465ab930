// SPDX-License-Identifier: MIT
#include "load_path.h"

#include "failpoint.h"

namespace ucm::cache {
namespace {

constexpr size_t kThreads = 2;
constexpr size_t kPieceShards = 64;  // planned at once, and at most in one lower load
constexpr int64_t kBusyNs = 5 * 1000000;

// A failure that is about the task that asked, not about the shard.
bool personal(ucm_status status) {
    return status == UCM_TIMEOUT || status == UCM_CANCELLED;
}

}  // namespace

struct LoadPath::Arriving {
    BlockRef block;  // pinned
    uint32_t shard, slot;
    std::vector<Waiter> waiters;
};

// One lower load into slots.
struct LoadPath::Fill {
    Fill(LoadPath &path, JobRef job) : owner(path), planner(std::move(job)) {}

    ucm_transfer transfer();

    LoadPath &owner;
    const JobRef planner;  // NULL: a prefetch
    std::deque<Arriving> shards;
    std::vector<ucm_result> results;
    std::vector<uint8_t> ids;
    std::vector<uint32_t> indexes, depths;
    std::vector<void *> addresses;
};

ucm_transfer LoadPath::Fill::transfer() {
    ids.clear();
    indexes.clear();
    addresses.clear();
    for (auto &each : shards) {
        ids.insert(ids.end(), each.block->id.bytes, each.block->id.bytes + UCM_BLOCK_ID_BYTES);
        indexes.push_back(each.shard);
        addresses.push_back(owner.core_.index.pool().bytes(each.slot));
    }
    ucm_transfer t{};
    t.struct_size = sizeof t;
    t.n = shards.size();
    t.block_ids = ids.data();
    t.shard_index = indexes.data();
    t.addresses = addresses.data();
    t.done = [](void *ctx, size_t i, const ucm_result *result) {
        auto *fill = static_cast<Fill *>(ctx);
        LoadPath &path = fill->owner;
        ucm_copy(&fill->results[i], sizeof(ucm_result), result);
        Lock lock(path.core_.mutex);
        path.arrived_.emplace_back(path.fills_.at(fill), i);
        path.core_.wakeups.loads.notify_one();
    };
    t.finished = [](void *ctx) {
        auto *fill = static_cast<Fill *>(ctx);
        LoadPath &path = fill->owner;
        std::shared_ptr<Fill> last;  // freed after the lock
        Lock lock(path.core_.mutex);
        auto found = path.fills_.find(fill);
        last = std::move(found->second);
        path.fills_.erase(found);
        path.busy_until_ns_ = 0;
        path.core_.wakeups.loads.notify_one();
        path.core_.wakeups.idle.notify_all();
    };
    t.ctx = this;
    t.depths = depths.empty() ? nullptr : depths.data();
    if (planner) {
        t.tag = planner->task->tag();
        t.priority = planner->task->priority();
        t.deadline_ns = planner->task->deadline_ns();
    } else {
        t.priority = -1;
    }
    return t;
}

void LoadPath::start() {
    threads_.start(kThreads, "ucm-cache-load", [this] { run(); });
}

void LoadPath::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
        core_.wakeups.loads.notify_all();
    }
    threads_.join();
}

void LoadPath::push(const JobRef &job) {
    Lock lock(core_.mutex);
    jobs_[job->task->number()] = job;
    job->timer = timers_.emplace(job->task->deadline_ns(), job);
    const size_t most =
        std::min<size_t>(kPieceShards, std::max(core_.index.pool().total() / 4, 1u));
    for (size_t row = 0; row < job->rows.size();) {
        Piece piece{job, {}};
        for (; row < job->rows.size() && piece.rows.size() < most; row++) piece.rows.push_back(row);
        pieces_.push_back(std::move(piece));
        core_.wakeups.loads.notify_one();
    }
}

void LoadPath::cancel(ucm_task number) {
    Lock lock(core_.mutex);
    auto found = jobs_.find(number);
    if (found == jobs_.end()) return;
    expired_.push_back(found->second);
    core_.wakeups.loads.notify_one();
}

void LoadPath::prefetch(const std::vector<BlockId> &ids) {
    Lock lock(core_.mutex);
    const size_t most = core_.index.pool().total() / core_.config.shards_per_block;
    for (auto &id : ids) {
        if (prefetches_.size() >= most || !pieces_.empty() || !parked_.empty()) return;
        prefetches_.push_back(id);
        core_.wakeups.loads.notify_one();
    }
}

bool LoadPath::idle() const {
    return pieces_.empty() && parked_.empty() && arrived_.empty() && refused_.empty() &&
           prefetches_.empty() && fills_.empty() && working_ == 0;
}

void LoadPath::run() {
    Lock lock(core_.mutex);
    for (;;) {
        working_++;
        const bool worked = step(lock);
        working_--;
        if (worked) continue;
        if (idle()) core_.wakeups.idle.notify_all();
        if (stopping_) return;
        wait_until(core_.wakeups.loads, lock, next_wake());
    }
}

int64_t LoadPath::next_wake() const {
    int64_t at_ns = timers_.empty() ? INT64_MAX : timers_.begin()->first;
    if (!refused_.empty()) at_ns = std::min(at_ns, busy_until_ns_);
    return at_ns;
}

// One piece of work, the most urgent one; false: there is none.
bool LoadPath::step(Lock &lock) {
    const int64_t now_ns = monotonic_ns();
    unpark();
    if (!arrived_.empty()) {
        const auto next = std::move(arrived_.front());
        arrived_.pop_front();
        arrive(next.first, next.second, lock);
    } else if (!expired_.empty()) {
        const JobRef job = std::move(expired_.front());
        expired_.pop_front();
        expire(job, lock);
    } else if (!timers_.empty() && timers_.begin()->first < now_ns) {
        const JobRef job = timers_.begin()->second;
        expire(job, lock);
    } else if (!refused_.empty() && busy_until_ns_ <= now_ns) {
        const auto fill = std::move(refused_.front());
        refused_.pop_front();
        submit(fill, lock);
    } else if (!pieces_.empty()) {
        Piece piece = std::move(pieces_.front());
        pieces_.pop_front();
        plan(std::move(piece), lock);
    } else if (!prefetches_.empty()) {
        const BlockId id = prefetches_.front();
        prefetches_.pop_front();
        plan_prefetch(id, lock);
    } else {
        return false;
    }
    return true;
}

void LoadPath::unpark() {
    if (parked_.empty() || parked_at_version_ == core_.index.room_version()) return;
    while (!parked_.empty()) {
        pieces_.push_front(std::move(parked_.back()));
        parked_.pop_back();
    }
    core_.wakeups.loads_want_room = false;
}

// From here on the row is the caller's to answer.
void LoadPath::claim(Job &job, size_t row) {
    job.rows[row] = Row::kTaken;
    if (--job.untaken) return;
    timers_.erase(job.timer);
    jobs_.erase(job.task->number());
}

// False: no slot; the row is as it was.
bool LoadPath::plan_row(const JobRef &job, size_t row, std::vector<Hit> &hits, Fill &fill,
                        Outcome &outcome) {
    if (job->rows[row] != Row::kTodo) return true;
    const Task &task = *job->task;
    const BlockId id = task.id(row);
    const uint32_t shard = task.shard(row);
    if (const ucm_status refused = task.refused()) {
        claim(*job, row);
        outcome.answers.push_back({job, row, result(refused)});
        return true;
    }
    BlockRef block = core_.index.visible(id);
    const ShardEntry entry = block ? block->shards[shard] : ShardEntry();
    if (entry.state == ShardState::kHere) {
        claim(*job, row);
        core_.index.pin(*block);
        Eviction::used(*block, shard);
        hits.push_back({block, entry.slot, core_.index.pool().info(entry.slot).length, row});
        core_.metrics.add(kHitShards, 1);
        return true;
    }
    if (entry.state == ShardState::kLoading) {
        job->rows[row] = Row::kWaiting;
        arriving_.at(entry.slot)->waiters.push_back({job, row});
        core_.metrics.add(kMissShards, 1);
        return true;
    }
    if (!core_.lower_loads) {
        claim(*job, row);
        outcome.answers.push_back({job, row, result(UCM_NOT_FOUND)});
        core_.metrics.add(kMissShards, 1);
        return true;
    }
    const uint32_t slot = core_.index.slot_for_load();
    if (slot == kNoSlot) return false;
    block = core_.index.visible(id);  // may have been evicted for it
    if (!block) block = core_.index.start_filling(id);
    core_.index.put(*block, shard, slot, ShardState::kLoading);
    core_.index.pin(*block);
    job->rows[row] = Row::kWaiting;
    fill.shards.push_back({block, shard, slot, {{job, row}}});
    fill.depths.push_back(task.depth(row));
    arriving_[slot] = &fill.shards.back();
    core_.metrics.add(kMissShards, 1);
    return true;
}

void LoadPath::plan(Piece piece, Lock &lock) {
    std::vector<Hit> hits;
    Outcome outcome;
    const auto fill = std::make_shared<Fill>(*this, piece.job);
    size_t next = 0;
    while (next < piece.rows.size() && plan_row(piece.job, piece.rows[next], hits, *fill, outcome))
        next++;
    if (next < piece.rows.size()) {
        piece.rows.erase(piece.rows.begin(), piece.rows.begin() + std::ptrdiff_t(next));
        parked_.push_back({piece.job, std::move(piece.rows)});
        parked_at_version_ = core_.index.room_version();
        core_.wakeups.loads_want_room = true;
    }
    launch(fill, lock);
    copy_hits(piece.job, hits, lock);
    outcome.give(lock, core_.log);
}

void LoadPath::plan_prefetch(const BlockId &id, Lock &lock) {
    for (uint32_t shard = 0; shard < core_.config.shards_per_block;) {
        const auto fill = std::make_shared<Fill>(*this, nullptr);
        for (; shard < core_.config.shards_per_block; shard++) {
            BlockRef block = core_.index.visible(id);
            if (block && block->shards[shard].state != ShardState::kAbsent) continue;
            const uint32_t slot =
                fill->shards.size() < kPieceShards ? core_.index.slot_for_load() : kNoSlot;
            if (slot == kNoSlot) break;
            block = core_.index.visible(id);
            if (!block) block = core_.index.start_filling(id);
            core_.index.put(*block, shard, slot, ShardState::kLoading);
            core_.index.pin(*block);
            fill->shards.push_back({block, shard, slot, {}});
            arriving_[slot] = &fill->shards.back();
        }
        if (fill->shards.empty() || !parked_.empty()) shard = core_.config.shards_per_block;
        launch(fill, lock);
    }
}

void LoadPath::copy_hits(const JobRef &job, const std::vector<Hit> &hits, Lock &lock) {
    if (hits.empty()) return;
    lock.unlock();
    for (auto &hit : hits) {
        {
            Busy<kMetrics> busy(core_.metrics, kLoadBusyNs);
            core_.copy.scatter(job->task->addresses(hit.row), core_.index.pool().bytes(hit.slot),
                               hit.length);
        }
        core_.metrics.add(kLoadShards, 1);
        core_.metrics.add(kLoadBytes, hit.length);
        job->answer(hit.row, result(UCM_OK, hit.length));
    }
    lock.lock();
    for (auto &hit : hits) core_.index.unpin(hit.block);
}

void LoadPath::launch(const std::shared_ptr<Fill> &fill, Lock &lock) {
    if (fill->shards.empty()) return;
    fill->results.resize(fill->shards.size(), result(UCM_INTERNAL));
    submit(fill, lock);
}

void LoadPath::submit(const std::shared_ptr<Fill> &fill, Lock &lock) {
    fills_[fill.get()] = fill;
    lock.unlock();
    UCM_FAILPOINT("cache.before_fill");
    const ucm_transfer transfer = fill->transfer();
    ucm_error error{};
    error.struct_size = sizeof error;
    const ucm_status status = ucm_load(core_.lower, &transfer, nullptr, &error);
    lock.lock();
    if (status == UCM_OK) return;
    fills_.erase(fill.get());
    if (status == UCM_BUSY) {
        busy_until_ns_ = monotonic_ns() + kBusyNs;
        refused_.push_back(fill);
        return;
    }
    for (size_t k = 0; k < fill->shards.size(); k++) {
        fill->results[k] = result(status, 0, error.os_errno);
        arrived_.emplace_back(fill, k);
    }
}

void LoadPath::arrive(const std::shared_ptr<Fill> &fill, size_t k, Lock &lock) {
    Arriving &each = fill->shards[k];
    ucm_result &answer = fill->results[k];
    answer.flags = 0;
    if (answer.status == UCM_OK && answer.length > core_.config.capacity)
        answer = result(UCM_INCOMPATIBLE);
    const bool ok = answer.status == UCM_OK;
    arriving_.erase(each.slot);
    std::vector<Waiter> waiters;
    for (auto &waiter : each.waiters) {
        if (waiter.job->rows[waiter.row] != Row::kWaiting) continue;  // its time was over
        if (personal(answer.status) && waiter.job != fill->planner) {
            waiter.job->rows[waiter.row] = Row::kTodo;
            pieces_.push_back({waiter.job, {waiter.row}});
            core_.wakeups.loads.notify_one();
            continue;
        }
        claim(*waiter.job, waiter.row);
        waiters.push_back(waiter);
    }
    if (ok) {
        core_.index.pool().info(each.slot).length = answer.length;
        core_.index.arrived(*each.block, each.shard);
    } else {
        answer.length = 0;
        core_.index.vacate(*each.block, each.shard);
    }
    lock.unlock();
    UCM_FAILPOINT("cache.arrived");
    if (ok) core_.metrics.add(kLoadInBytes, answer.length);
    for (auto &waiter : waiters) {
        if (ok) {
            Busy<kMetrics> busy(core_.metrics, kLoadBusyNs);
            core_.copy.scatter(waiter.job->task->addresses(waiter.row),
                               core_.index.pool().bytes(each.slot), answer.length);
            core_.metrics.add(kLoadShards, 1);
            core_.metrics.add(kLoadBytes, answer.length);
        }
        waiter.job->answer(waiter.row, answer);
    }
    lock.lock();
    core_.index.unpin(each.block);
}

// The store below fills slots, not the caller's memory, so the caller need not wait for it.
void LoadPath::expire(const JobRef &job, Lock &lock) {
    Outcome outcome;
    const ucm_status refused = job->task->refused();
    for (size_t row = 0; row < job->rows.size() && refused != UCM_OK; row++) {
        if (job->rows[row] == Row::kTaken) continue;
        claim(*job, row);
        outcome.answers.push_back({job, row, result(refused)});
    }
    outcome.give(lock, core_.log);
}

}  // namespace ucm::cache
