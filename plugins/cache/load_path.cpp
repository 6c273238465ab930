// SPDX-License-Identifier: MIT
#include "load_path.h"

#include <numeric>

#include "failpoint.h"

namespace ucm::cache {
namespace {

constexpr size_t kThreads = 2;
constexpr size_t kPieceShards = 64;  // planned at once, and at most in one lower load
constexpr uint64_t kPieceBytes = 2u << 20;
constexpr int64_t kSlowNs = 10ll * 1000000000;
constexpr int64_t kSilences = 3;  // as many as there are failures before the breaker opens
constexpr size_t kMostTouches = 4096, kMostAsked = 4096;
constexpr size_t kMostArrivals = 64;  // ended in one go
// A thread wakes for so many, for the last of a fill, or when the first of them has waited so long.
constexpr size_t kArrivals = 8;
constexpr int64_t kGatherNs = 300000;

// A failure that is about the task that asked, not about the shard.
bool personal(ucm_status status) {
    return status == UCM_TIMEOUT || status == UCM_CANCELLED;
}

}  // namespace

struct LoadPath::Arriving {
    BlockRef block;
    uint32_t shard;
    std::vector<Waiter> waiters;
};

// One lower load into slots.
struct LoadPath::Fill {
    explicit Fill(LoadPath &path) : owner(path) {}

    ucm_transfer transfer();

    LoadPath &owner;
    JobRef planner;  // NULL: a prefetch, or several tasks
    std::deque<Arriving> shards;
    std::vector<ucm_result> results;
    std::vector<uint8_t> ids;
    std::vector<uint32_t> indexes, depths;
    std::vector<void *> addresses;
    uint64_t tag = 0;
    int32_t priority = -1;
    int64_t deadline_ns = 0, sent_ns = 0;
    size_t landed = 0, ended = 0;
    ucm_status best = UCM_IO;
    bool probe = false;
};

ucm_transfer LoadPath::Fill::transfer() {
    ids.clear();
    indexes.clear();
    addresses.clear();
    Table &table = owner.core_.table;
    for (auto &each : shards) {
        const BlockId id = table.id(each.block.record);
        ids.insert(ids.end(), id.bytes, id.bytes + UCM_BLOCK_ID_BYTES);
        indexes.push_back(each.shard);
        addresses.push_back(table.slot(each.block.record, each.shard));
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
        if (!personal(result->status)) path.heard_ns_ = monotonic_ns();
        const size_t waiting = path.arrived_.size();
        const bool last = ++fill->landed == fill->shards.size();
        if (last || waiting == 1) path.arrived_due_ns_ = last ? 0 : monotonic_ns() + kGatherNs;
        if (last || waiting == 1 || waiting % kArrivals == 0) path.core_.wakeups.loads.notify_one();
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
    t.tag = tag;
    t.priority = priority;
    t.deadline_ns = deadline_ns;
    return t;
}

void LoadPath::start() {
    threads_.start(kThreads, "ucm-cache-load", [this] {
        core_.take_cores();
        run();
    });
    threads_.start(1, "ucm-cache-ask", [this] { run_expected(); });
}

void LoadPath::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
        core_.wakeups.loads.notify_all();
        core_.wakeups.expected.notify_all();
    }
    threads_.join();
}

// A device copies by itself, and must not read what is filled anew: what it reads is pinned, where
// a copy by the processor is looked at afterwards.
std::vector<LoadPath::Hit> LoadPath::pin(const JobRef &job, const std::vector<Hit> &hits,
                                         std::vector<size_t> &missed) {
    std::vector<Hit> pinned;
    const Lock lock(core_.mutex);
    const Table::Hold hold(table_);
    for (auto &hit : hits) {
        if (table_.pin(hit.block, job->task->shard(hit.row)))
            pinned.push_back(hit);
        else
            missed.push_back(hit.row);
    }
    return pinned;
}

void LoadPath::unpin(const std::vector<Hit> &hits) {
    const Lock lock(core_.mutex);
    const Table::Hold hold(table_);
    for (auto &hit : hits) table_.unpin(hit.block.record);
}

// Copies what is here; what went meanwhile is `missed`. Any thread, no lock.
void LoadPath::copy_out(const JobRef &job, std::vector<Hit> hits, std::vector<size_t> &missed) {
    const Task &task = *job->task;
    if (table_.device()) hits = pin(job, hits, missed);
    if (hits.empty()) return;
    std::vector<cache::Piece> pieces;
    pieces.reserve(hits.size());
    for (auto &hit : hits) {
        const uint32_t record = hit.block.record, shard = task.shard(hit.row);
        const uint64_t length = std::min(table_.length(record, shard), core_.config.capacity);
        pieces.push_back({table_.slot(record, shard), task.addresses(hit.row), length});
    }
    core_.pin_ready();
    ucm_status status;
    {
        Busy<kMetrics> busy(core_.metrics, kLoadBusyNs);
        status = core_.device->scatter(pieces.data(), pieces.size(), task.event());
    }
    if (table_.device() && status != UCM_PENDING) unpin(hits);  // else the device may still read
    if (status == UCM_PENDING) status = UCM_IO;
    const int64_t now_ns = monotonic_ns();
    for (size_t k = 0; k < hits.size(); k++) {
        const Hit &hit = hits[k];
        if (!table_.device() && !table_.valid(hit.block)) {
            missed.push_back(hit.row);
            continue;
        }
        table_.used(hit.block.record, task.shard(hit.row));
        if (core_.lower_keeps && table_.stale_below(hit.block.record, now_ns)) {
            const std::lock_guard<std::mutex> hold(touches_mutex_);
            if (touches_.size() < kMostTouches) touches_.push_back(task.id(hit.row));
        }
        if (status == UCM_OK) {
            core_.metrics.add(kHitShards, 1);
            core_.metrics.add(kLoadShards, 1);
            core_.metrics.add(kLoadBytes, pieces[k].length);
        }
        job->answer(hit.row, result(status, status == UCM_OK ? pieces[k].length : 0));
    }
}

// Before anybody else knows of the job. Rows that are left are in `left`.
void LoadPath::serve_here(const JobRef &job, uint64_t most_bytes, std::vector<size_t> &left) {
    const Task &task = *job->task;
    std::vector<Hit> hits;
    uint64_t bytes = 0;
    for (size_t row = 0; row < task.n(); row++) {
        if (bytes < most_bytes && task.refused() == UCM_OK) {
            const BlockRef block = table_.find(task.id(row));
            if (block &&
                state_of(table_.word(block.record, task.shard(row))) == ShardState::kHere) {
                bytes += table_.length(block.record, task.shard(row));
                hits.push_back({block, row});
                job->rows[row] = Row::kTaken;
                continue;
            }
        }
        left.push_back(row);
    }
    if (hits.empty()) return;
    // The job may end with its last row; what is counted here is not looked at then.
    job->untaken = left.size();
    std::vector<size_t> missed;
    copy_out(job, std::move(hits), missed);
    for (const size_t row : missed) {
        job->rows[row] = Row::kTodo;
        left.push_back(row);
    }
    job->untaken += missed.size();
}

void LoadPath::push(const JobRef &job, uint64_t inline_bytes) {
    std::vector<size_t> left;
    serve_here(job, inline_bytes, left);
    if (left.empty()) return;
    Lock lock(core_.mutex);
    jobs_[job->task->number()] = job;
    job->timer = timers_.emplace(job->task->deadline_ns(), job);
    const uint64_t capacity = core_.config.capacity;
    const uint32_t shards = table_.shards();
    const size_t frames = std::max(table_.header().frames / 4, 1u);
    const size_t most = std::min<size_t>(
        {kPieceShards, std::max<size_t>(kPieceBytes / std::max<uint64_t>(capacity, 1), shards),
         frames * shards});
    for (size_t k = 0; k < left.size();) {
        Part piece{job, {}};
        for (; k < left.size() && piece.rows.size() < most; k++) piece.rows.push_back(left[k]);
        queue(std::move(piece));
    }
}

void LoadPath::queue(Part piece, bool front) {
    auto &queue = pieces_[piece.job->task->priority()];
    front ? queue.push_front(std::move(piece)) : queue.push_back(std::move(piece));
    core_.wakeups.loads.notify_one();
}

size_t LoadPath::queued() const {
    size_t count = 0;
    for (auto &entry : pieces_) count += entry.second.size();
    return count;
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
    const size_t most = table_.header().frames;
    for (auto &id : ids) {
        if (expected_.size() + prefetches_.size() >= most) break;
        expected_.push_back(id);
    }
    core_.wakeups.expected.notify_one();
}

// Where what could be probed has come here by itself, and callers load only what a lookup finds, no
// load is refused any more that would say what else to probe.
void LoadPath::seek_probe(const uint8_t *ids, size_t n) {
    if (core_.load_breaker.until_ns() > monotonic_ns()) return;
    const Lock lock(core_.mutex);
    if (can_probe_ || core_.load_breaker.ask() != Breaker::Says::kProbe) return;
    sought_.clear();
    for (size_t i = 0; i < std::min(n, kMostAsked); i++) sought_.push_back(BlockId::at(ids, i));
    core_.wakeups.expected.notify_one();
}

// Before anything makes way for a block it is known to be there. A lookup below may take its time,
// so no thread that others wait for asks.
void LoadPath::run_expected() {
    Lock lock(core_.mutex);
    for (;;) {
        core_.wakeups.expected.wait(
            lock, [&] { return stopping_ || !expected_.empty() || !sought_.empty(); });
        if (stopping_) return;
        const bool seeks = !sought_.empty();
        std::vector<BlockId> ids = std::exchange(sought_, {});
        if (!seeks) {
            const auto end =
                expected_.begin() + std::ptrdiff_t(std::min(expected_.size(), kMostAsked));
            ids.assign(expected_.begin(), end);
            expected_.erase(expected_.begin(), end);
        }
        if (core_.load_breaker.open() != seeks) continue;
        asking_ = true;
        lock.unlock();
        const std::vector<uint8_t> tiers = ask_below(ids);
        lock.lock();
        asking_ = false;
        if (seeks) set_probe(ids, tiers);
        for (size_t i = 0; i < ids.size() && !seeks && !core_.closing; i++)
            if (tiers[i]) prefetches_.push_back(ids[i]);
        core_.wakeups.loads.notify_one();
        core_.wakeups.idle.notify_all();
    }
}

std::vector<uint8_t> LoadPath::ask_below(const std::vector<BlockId> &ids) const {
    std::vector<uint8_t> tiers(ids.size());
    size_t hits = 0;
    ucm_lookup_args args{};
    args.struct_size = sizeof args;
    args.mode = UCM_LOOKUP_ALL;
    args.n = ids.size();
    args.block_ids = ids.front().bytes;
    args.hits = &hits;
    args.tiers = tiers.data();
    if (ucm_lookup(core_.lower, &args, nullptr) != UCM_OK) tiers.assign(ids.size(), 0);
    return tiers;
}

// What is nowhere says nothing about loads, so only what was found is probed.
void LoadPath::set_probe(const std::vector<BlockId> &ids, const std::vector<uint8_t> &tiers) {
    const Table::Hold hold(table_);
    for (size_t i = 0; i < ids.size(); i++) {
        const BlockRef block = table_.visible(ids[i]);
        for (uint32_t shard = 0; shard < table_.shards() && tiers[i] && !can_probe_; shard++) {
            if (block && state_of(table_.word(block.record, shard)) != ShardState::kAbsent)
                continue;
            to_probe_ = {ids[i], shard};
            can_probe_ = true;
        }
    }
}

void LoadPath::pass_touches() {
    std::vector<BlockId> ids;
    {
        const std::lock_guard<std::mutex> hold(touches_mutex_);
        ids.swap(touches_);
    }
    if (ids.empty()) return;
    ucm_ids_args args{};
    args.struct_size = sizeof args;
    args.n = ids.size();
    args.block_ids = ids.front().bytes;
    ucm_touch(core_.lower, &args, nullptr);
}

bool LoadPath::idle() const {
    return queued() == 0 && parked_.empty() && arrived_.empty() && refused_.empty() &&
           expected_.empty() && !asking_ && prefetches_.empty() && fills_.empty() &&
           foreign_.empty() && working_ == 0;
}

void LoadPath::look_again() {
    if (foreign_.empty()) return;
    const int64_t now_ns = monotonic_ns();
    std::vector<Foreign> still;
    for (auto &each : foreign_) {
        Job &job = *each.waiter.job;
        const size_t row = each.waiter.row;
        if (job.rows[row] != Row::kWaiting) continue;  // its time was over
        const uint32_t shard = job.task->shard(row);
        const bool loading =  // a zombie was given up already
            table_.state(each.block) == State::kClean &&
            state_of(table_.word(each.block.record, shard)) == ShardState::kLoading &&
            member_of(table_.word(each.block.record, shard)) != table_.member();
        if (loading && now_ns - each.since_ns < kSlowNs) {
            still.push_back(each);
            continue;
        }
        if (loading) {
            const Table::Hold hold(table_);
            if (table_.many_zombies()) {
                each.since_ns = now_ns;
                still.push_back(each);
                continue;
            }
            table_.detach(each.block.record, UCM_NOT_FOUND);
        }
        job.rows[row] = Row::kTodo;
        queue({each.waiter.job, {row}}, true);
    }
    foreign_ = std::move(still);
    core_.wakeups.idle.notify_all();
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
    if (!arrived_.empty()) at_ns = std::min(at_ns, arrived_due_ns_);
    if (core_.load_breaker.open()) return std::min(at_ns, probe_at());
    if (!fills_.empty()) at_ns = std::min(at_ns, heard_ns_ + patience_ns());
    return at_ns;
}

// One piece of work, the most urgent one; false: there is none.
bool LoadPath::step(Lock &lock) {
    const int64_t now_ns = monotonic_ns();
    unpark();
    while (!pieces_.empty() && pieces_.begin()->second.empty()) pieces_.erase(pieces_.begin());
    if (arrived_.size() >= kArrivals || (!arrived_.empty() && arrived_due_ns_ <= now_ns)) {
        arrive(lock);
    } else if (!expired_.empty()) {
        const JobRef job = std::move(expired_.front());
        expired_.pop_front();
        expire(job, lock);
    } else if (!timers_.empty() && timers_.begin()->first < now_ns) {
        const JobRef job = timers_.begin()->second;
        expire(job, lock);
    } else if (step_below(now_ns, lock)) {
        return true;
    } else if (!pieces_.empty()) {
        plan(lock);
    } else if (!prefetches_.empty() && (table_.prefetch_fits() || core_.load_breaker.open())) {
        const BlockId id = prefetches_.front();
        prefetches_.pop_front();
        if (prefetches_.empty() && parked_.empty()) core_.wakeups.loads_want_room = false;
        plan_prefetch(id, lock);
    } else {
        if (!prefetches_.empty()) want_room();
        return false;
    }
    return true;
}

// What the store below was, or is, to be told again, and what it does not say.
bool LoadPath::step_below(int64_t now_ns, Lock &lock) {
    if (!refused_.empty() && busy_until_ns_ <= now_ns) {
        const auto fill = std::move(refused_.front());
        refused_.pop_front();
        submit(fill, lock);
        return true;
    }
    if (core_.load_breaker.open()) {
        if (probe_at() > now_ns) return false;
        plan_probe(lock);
        return true;
    }
    if (fills_.empty() || heard_ns_ + patience_ns() > now_ns) return false;
    count_silence(lock);
    return true;
}

// How long the store below may have loads and answer none of them, until that counts as a failure.
int64_t LoadPath::patience_ns() const {
    return std::min(core_.config.timeout_ms, kSlowNs / kSilences / 1000000) * 1000000;
}

void LoadPath::count_silence(Lock &lock) {
    heard_ns_ = monotonic_ns();
    Outcome outcome;
    tell_breaker(UCM_TIMEOUT, outcome);
    outcome.give(lock, core_.log);
}

void LoadPath::unpark() {
    if (parked_.empty() || parked_at_version_ == core_.version) return;
    while (!parked_.empty()) {
        queue(std::move(parked_.back()), true);
        parked_.pop_back();
    }
    core_.wakeups.loads_want_room = !prefetches_.empty();
}

void LoadPath::want_room() {
    core_.wakeups.loads_want_room = true;
    table_.want(true);
}

// From here on the row is the caller's to answer.
void LoadPath::claim(Job &job, size_t row) {
    job.rows[row] = Row::kTaken;
    if (--job.untaken) return;
    timers_.erase(job.timer);
    jobs_.erase(job.task->number());
}

LoadPath::Planned LoadPath::plan_row(const Waiter &waiter, Hits &hits, Fill &fill,
                                     Outcome &outcome) {
    const auto &[job, row] = waiter;
    if (job->rows[row] != Row::kTodo) return Planned::kYes;
    const Task &task = *job->task;
    const BlockId id = task.id(row);
    const uint32_t shard = task.shard(row);
    const auto answer = [&](ucm_status status) {
        claim(*job, row);
        outcome.answers.push_back({job, row, result(status)});
        return Planned::kYes;
    };
    if (const ucm_status refused = task.refused()) return answer(refused);
    BlockRef block = table_.visible(id);
    const uint32_t word = block ? table_.word(block.record, shard) : 0;
    const bool down = core_.lower_loads && core_.load_breaker.open();
    if (state_of(word) == ShardState::kHere) {
        claim(*job, row);
        if (hits.empty() || hits.back().first != job) hits.push_back({job, {}});
        hits.back().second.push_back({block, row});
        return Planned::kYes;
    }
    const auto missed = [&] { core_.metrics.add(kMissShards, 1); };  // not those that try again
    if (state_of(word) == ShardState::kLoading && !down) {
        missed();
        job->rows[row] = Row::kWaiting;
        core_.metrics.add(kCoalescedShards, 1);
        if (member_of(word) == table_.member())
            arriving_.at({block.record, shard})->waiters.push_back(waiter);
        else
            foreign_.push_back({waiter, block, monotonic_ns()});
        table_.want(true);
        return Planned::kYes;
    }
    if (!core_.lower_loads || down) {
        missed();
        if (down && state_of(word) == ShardState::kAbsent) {
            to_probe_ = {id, shard};
            can_probe_ = true;
        }
        return answer(down ? UCM_UNAVAILABLE : UCM_NOT_FOUND);
    }
    if (!may_fill(block, fill)) return Planned::kNoRoom;
    if (!block) {
        const uint32_t record = table_.take(Taking::kLoad, id);
        if (record == kNone) return Planned::kNoRoom;
        block = table_.start(record, id, State::kClean);
    }
    missed();
    job->rows[row] = Row::kWaiting;
    begin(fill, block, shard, {waiter});
    fill.depths.push_back(task.depth(row));
    if (fill.shards.size() == 1) {
        fill.planner = job;
        fill.tag = task.tag();
        fill.priority = task.priority();
        fill.deadline_ns = task.deadline_ns();
    } else if (fill.planner != job) {
        fill.planner = nullptr;
        fill.priority = std::max(fill.priority, task.priority());
        fill.deadline_ns = std::max(fill.deadline_ns, task.deadline_ns());
    }
    return Planned::kYes;
}

// Is there a frame to be filled more? One that is filled alone needs none to be left for dumps.
bool LoadPath::may_fill(const BlockRef &block, const Fill &fill) const {
    if (block && table_.record(block.record).loading) return true;
    const bool alone = fills_.empty() && refused_.empty() && fill.shards.empty();
    return alone || !table_.loads_hold_all();
}

void LoadPath::begin(Fill &fill, const BlockRef &block, uint32_t shard,
                     std::vector<Waiter> waiters) {
    table_.put(block.record, shard, ShardState::kLoading);
    fill.shards.push_back({block, shard, std::move(waiters)});
    arriving_[{block.record, shard}] = &fill.shards.back();
}

// Pieces of one priority, of as many tasks as fit into one lower load.
void LoadPath::plan(Lock &lock) {
    auto &urgent = pieces_.begin()->second;
    Hits hits;
    Outcome outcome;
    const auto fill = std::make_shared<Fill>(*this);
    size_t rows = 0;
    bool room = true;
    // What more there is to copy is left to the other threads.
    const auto enough = [&] {
        const uint64_t found = std::accumulate(
            hits.begin(), hits.end(), uint64_t(0),
            [](uint64_t n, const auto &of_job) { return n + of_job.second.size(); });
        return found * core_.config.capacity >= kPieceBytes;
    };
    {
        const Table::Hold hold(table_);
        while (room && !urgent.empty() && rows + urgent.front().rows.size() <= kPieceShards &&
               !enough()) {
            Part piece = std::move(urgent.front());
            urgent.pop_front();
            size_t next = 0;
            for (; next < piece.rows.size(); next++) {
                room =
                    plan_row({piece.job, piece.rows[next]}, hits, *fill, outcome) == Planned::kYes;
                if (!room) break;
            }
            rows += piece.rows.size();
            if (room) continue;
            piece.rows.erase(piece.rows.begin(), piece.rows.begin() + std::ptrdiff_t(next));
            parked_.push_back(std::move(piece));
            parked_at_version_ = core_.version;
            want_room();
            if (table_.may_grow()) table_.ring(table_.member());
        }
        if (urgent.empty()) pieces_.erase(pieces_.begin());
    }
    launch(fill, lock);
    copy_hits(hits, lock);
    outcome.give(lock, core_.log);
}

void LoadPath::plan_prefetch(const BlockId &id, Lock &lock) {
    if (core_.load_breaker.open()) return;
    const auto fill = std::make_shared<Fill>(*this);
    {
        const Table::Hold hold(table_);
        BlockRef block = table_.visible(id);
        for (uint32_t shard = 0; shard < table_.shards(); shard++) {
            if (block && state_of(table_.word(block.record, shard)) != ShardState::kAbsent)
                continue;
            if (!block) {
                const uint32_t record = table_.take(Taking::kPrefetch, id);
                if (record == kNone) break;
                block = table_.start(record, id, State::kClean);
            }
            begin(*fill, block, shard, {});
        }
    }
    launch(fill, lock);
}

// When the store below is to be asked whether it loads again; the breaker is open.
int64_t LoadPath::probe_at() const {
    if (!can_probe_ || core_.closing) return INT64_MAX;
    const int64_t at_ns = core_.load_breaker.until_ns();
    return probing_ ? std::max(at_ns, probed_ns_ + kSlowNs) : at_ns;
}

// By a load of its own, of one shard, so that no caller has to wait for a store that is down.
void LoadPath::plan_probe(Lock &lock) {
    if (core_.load_breaker.ask() != Breaker::Says::kProbe) return;
    const auto &[id, shard] = to_probe_;
    const auto fill = std::make_shared<Fill>(*this);
    fill->probe = true;
    {
        const Table::Hold hold(table_);
        BlockRef block = table_.visible(id);
        if (block && state_of(table_.word(block.record, shard)) != ShardState::kAbsent)
            can_probe_ = false;  // until a load is refused, or a lookup finds more
        if (!can_probe_ || !may_fill(block, *fill)) return;
        if (!block) {
            const uint32_t record = table_.take(Taking::kLoad, id);
            if (record == kNone && table_.may_grow()) table_.ring(table_.member());
            if (record == kNone) return;
            block = table_.start(record, id, State::kClean);
        }
        begin(*fill, block, shard, {});
    }
    probing_ = true;
    probed_ns_ = monotonic_ns();
    launch(fill, lock);
}

void LoadPath::copy_hits(Hits &hits, Lock &lock) {
    if (hits.empty()) return;
    std::vector<Waiter> missed;
    lock.unlock();
    for (auto &[job, of_job] : hits) {
        std::vector<size_t> rows;
        copy_out(job, std::move(of_job), rows);
        for (const size_t row : rows) missed.push_back({job, row});
    }
    lock.lock();
    for (auto &[job, row] : missed) {
        if (job->untaken++ == 0) {
            jobs_[job->task->number()] = job;
            job->timer = timers_.emplace(job->task->deadline_ns(), job);
        }
        job->rows[row] = Row::kTodo;
        queue({job, {row}}, true);
    }
}

void LoadPath::launch(const std::shared_ptr<Fill> &fill, Lock &lock) {
    if (fill->shards.empty()) return;
    fill->results.resize(fill->shards.size(), result(UCM_INTERNAL));
    submit(fill, lock);
}

void LoadPath::submit(const std::shared_ptr<Fill> &fill, Lock &lock) {
    fill->sent_ns = monotonic_ns();
    if (fills_.empty()) heard_ns_ = fill->sent_ns;
    const Arriving &first = fill->shards.front();
    to_probe_ = {table_.id(first.block.record), first.shard};
    can_probe_ = true;
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
    arrived_due_ns_ = 0;
}

void LoadPath::fill_ended(Fill &fill, Outcome &outcome) {
    if (fill.probe) probing_ = false;
    // What the caller's own time did says nothing about the store below, unless that was long.
    const int64_t now_ns = monotonic_ns();
    const bool late = fill.deadline_ns && now_ns > fill.deadline_ns;
    if (fill.best == UCM_CANCELLED) return;
    if (fill.best == UCM_TIMEOUT && late && now_ns - fill.sent_ns < patience_ns() / 2) return;
    tell_breaker(fill.best, outcome);
}

void LoadPath::tell_breaker(ucm_status status, Outcome &outcome) {
    const Breaker::Turn turn = core_.load_breaker.report(status);
    if (turn == Breaker::Turn::kOpened) {
        core_.metrics.add(kBreakerOpened, 1);
        core_.changed();  // what is parked need not wait
        outcome.warnings.push_back(
            "the store below answers no loads: misses fail at once until it does");
    }
    if (turn != Breaker::Turn::kClosed) return;
    outcome.warnings.push_back("the store below answers loads again");
}

// A shard that came from below, and who waited for it.
struct LoadPath::Arrival {
    const Arriving &shard() const { return fill->shards[k]; }

    std::shared_ptr<Fill> fill;
    size_t k;
    ucm_result answer;
    std::vector<Waiter> waiters;
    bool stuck = false;  // a device may still read its slot, while this process lives
};

std::vector<LoadPath::Arrival> LoadPath::collect(Outcome &outcome) {
    std::vector<Arrival> arrivals;
    while (!arrived_.empty() && arrivals.size() < kMostArrivals) {
        Arrival each{std::move(arrived_.front().first), arrived_.front().second, {}, {}};
        arrived_.pop_front();
        Fill &fill = *each.fill;
        ucm_result &answer = each.answer;
        answer = fill.results[each.k];
        answer.flags = 0;
        if (answer.status == UCM_OK && answer.length > core_.config.capacity)
            answer = result(UCM_INCOMPATIBLE);
        if (answer.status != UCM_OK) answer.length = 0;
        if (!Breaker::down(answer.status) || fill.ended == 0) fill.best = answer.status;
        if (++fill.ended == fill.shards.size()) fill_ended(fill, outcome);
        arrivals.push_back(std::move(each));
    }
    return arrivals;
}

// Those that still wait for it, from here on this thread's to answer; false: nobody does.
bool LoadPath::claim_waiters(Arrival &each) {
    each.waiters.clear();
    for (auto &waiter : std::exchange(each.fill->shards[each.k].waiters, {})) {
        if (waiter.job->rows[waiter.row] != Row::kWaiting) continue;  // its time was over
        if (personal(each.answer.status) && each.fill->planner != waiter.job) {
            waiter.job->rows[waiter.row] = Row::kTodo;
            queue({waiter.job, {waiter.row}});
            continue;
        }
        claim(*waiter.job, waiter.row);
        each.waiters.push_back(waiter);
    }
    return !each.waiters.empty();
}

// Copies for one task at once, from `first` on; returns where the next one begins. No lock is held.
size_t LoadPath::hand_out(std::vector<Arrival> &arrivals, size_t first, size_t which) {
    const JobRef &job = arrivals[first].waiters[which].job;
    const Task &task = *job->task;
    std::vector<cache::Piece> pieces;
    std::vector<std::pair<size_t, ucm_result>> rows;
    size_t next = first;
    for (; next < arrivals.size(); next++) {
        const Arrival &each = arrivals[next];
        if (each.waiters.size() <= which || each.waiters[which].job != job) break;
        const size_t row = each.waiters[which].row;
        rows.emplace_back(row, each.answer);
        if (each.answer.status != UCM_OK) continue;
        pieces.push_back({table_.slot(each.shard().block.record, each.shard().shard),
                          task.addresses(row), each.answer.length});
        core_.metrics.add(kLoadShards, 1);
        core_.metrics.add(kLoadBytes, each.answer.length);
    }
    ucm_status copied = UCM_OK;
    if (!pieces.empty()) {
        core_.pin_ready();
        Busy<kMetrics> busy(core_.metrics, kLoadBusyNs);
        copied = core_.device->scatter(pieces.data(), pieces.size(), task.event());
    }
    if (copied == UCM_PENDING) {
        for (size_t k = first; k < next; k++) arrivals[k].stuck = true;
        copied = UCM_IO;
    }
    for (auto &[row, answer] : rows)
        job->answer(row, answer.status == UCM_OK && copied != UCM_OK ? result(copied) : answer);
    return next;
}

// Who asks for these from now on begins anew; those who wait have been claimed.
void LoadPath::give_up(const std::vector<Arrival> &arrivals) {
    const Table::Hold hold(table_);
    for (auto &each : arrivals) {
        if (each.answer.status == UCM_OK) continue;
        arriving_.erase({each.shard().block.record, each.shard().shard});
        table_.vacate(each.shard().block.record, each.shard().shard);
    }
}

// Shards that came from below: into the memory of those that wait for them, while nobody can take
// the frame away; then everybody may have them.
void LoadPath::arrive(Lock &lock) {
    Outcome outcome;
    std::vector<Arrival> arrivals = collect(outcome);
    const auto claimed = [&] {
        bool any = false;
        for (auto &each : arrivals) any = claim_waiters(each) || any;
        return any;
    };
    bool more = claimed();
    give_up(arrivals);
    // Whoever sees the end of a load finds it counted.
    for (const auto &each : arrivals)
        if (each.answer.status == UCM_OK) core_.metrics.add(kLoadInBytes, each.answer.length);
    for (; more; more = claimed()) {
        lock.unlock();
        UCM_FAILPOINT("cache.arrived");
        for (size_t which = 0, left = 1; left; which++) {
            left = 0;
            for (size_t k = 0; k < arrivals.size();) {
                const bool waits = arrivals[k].waiters.size() > which;
                left += waits;
                k = waits ? hand_out(arrivals, k, which) : k + 1;
            }
        }
        lock.lock();
    }
    {
        const Table::Hold hold(table_);
        for (auto &each : arrivals) {
            if (each.answer.status != UCM_OK) continue;
            const Arriving &shard = each.shard();
            arriving_.erase({shard.block.record, shard.shard});
            if (each.stuck)
                table_.detach(shard.block.record, UCM_IO);
            else
                table_.arrived(shard.block.record, shard.shard, each.answer.length,
                               each.answer.length);
        }
    }
    UCM_FAILPOINT("cache.kept");
    outcome.give(lock, core_.log);
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
