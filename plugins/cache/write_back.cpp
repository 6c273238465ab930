// SPDX-License-Identifier: MIT
#include "write_back.h"

#include <algorithm>

#include "block_file.h"
#include "failpoint.h"

namespace ucm::cache {
namespace {

constexpr size_t kBatchShards = 128;
constexpr uint32_t kRetries = 3;
constexpr int64_t kFirstDelayNs = 10 * 1000000;  // then ten times as long each time
constexpr int64_t kIdleNs = 600ll * 1000000000;
constexpr size_t kMostNamed = 10;
// A burst of dumps has ended when none was copied for so long; writing waits for it at most.
constexpr int64_t kQuietNs = 1000000;
constexpr int64_t kMostQuietNs = 50 * 1000000;

bool passing(ucm_status status) {
    switch (status) {
        case UCM_UNAVAILABLE:
        case UCM_NO_SPACE:
        case UCM_IO:
        case UCM_BUSY:
        case UCM_TIMEOUT:
        case UCM_CANCELLED:
            return true;
        default:
            return false;
    }
}

std::string why_failed(const ucm_result &result) {
    std::string why = std::string("the store below failed: ") + status_name(result.status);
    return result.os_errno ? why + ", " + errno_text(result.os_errno) : why;
}

bool unsaved_word(uint32_t word) {
    return state_of(word) == ShardState::kHere && !below_of(word);
}

}  // namespace

// One lower dump of the shards of some blocks.
struct WriteBack::Batch {
    struct Part {
        BlockRef block;
        std::vector<uint32_t> shards;
        size_t first;  // index of its first shard in the arrays
    };

    explicit Batch(WriteBack &writer) : owner(writer) {}

    size_t n() const { return indexes.size(); }
    ucm_transfer transfer();
    ucm_status best() const {
        for (auto &each : results)
            if (!Breaker::down(each.status)) return each.status;
        return results.empty() ? UCM_OK : results.front().status;
    }

    WriteBack &owner;
    std::vector<Part> parts;
    bool replace = false;
    uint64_t tag = 0, bytes = 0;
    std::vector<uint8_t> ids;
    std::vector<uint32_t> indexes, depths;
    std::vector<void *> addresses;
    std::vector<uint64_t> lengths, raw_lengths;
    std::vector<ucm_result> results;
};

ucm_transfer WriteBack::Batch::transfer() {
    ucm_transfer t{};
    t.struct_size = sizeof t;
    t.flags = replace ? uint64_t(UCM_TRANSFER_REPLACE) : 0;
    t.n = n();
    t.block_ids = ids.data();
    t.shard_index = indexes.data();
    t.addresses = addresses.data();
    t.lengths = lengths.data();
    t.raw_lengths = raw_lengths.data();
    t.done = [](void *ctx, size_t i, const ucm_result *result) {
        ucm_copy(&static_cast<Batch *>(ctx)->results[i], sizeof(ucm_result), result);
    };
    t.finished = [](void *ctx) {
        auto *batch = static_cast<Batch *>(ctx);
        batch->owner.ended(*batch);
    };
    t.ctx = this;
    t.depths = depths.data();
    t.tag = tag;
    t.priority = -1;
    return t;
}

void WriteBack::start() {
    lost_seen_ = table_.header().lost_blocks.load();
    threads_.start(1, "ucm-cache-write", [this] { run(); });
}

void WriteBack::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
        core_.wakeups.writes.notify_all();
    }
    threads_.join();
}

void WriteBack::account(const BlockRef &block, uint32_t shard, uint64_t epoch) {
    works_[block].accounts.push_back({shard, epoch});
}

bool WriteBack::waits_for(const std::vector<Account> &accounts, uint32_t shard) {
    return std::any_of(accounts.begin(), accounts.end(),
                       [&](const Account &each) { return each.shard == shard; });
}

void WriteBack::account_again(const BlockRef &block, uint32_t shard, uint64_t epoch) {
    const bool gathers = table_.state(block) == State::kGathering;
    const bool open = gathers ? !below_of(table_.word(block.record, shard))
                              : table_.state(block) == State::kDirty;
    if (!core_.lower_keeps || !open) return core_.ledger.end(epoch, 1, 0, 0);
    auto &accounts = works_[block].accounts;
    if (waits_for(accounts, shard)) return core_.ledger.end(epoch, 1, 0, 0);
    accounts.push_back({shard, epoch});
    if (gathers) touched(block);
}

void WriteBack::answer_later(const BlockRef &block, const JobRef &job, size_t row) {
    Work &work = works_[block];
    work.last_job = job;
    work.last_row = row;
    last_.push_back(block);
    last_until_ns_ = std::min(last_until_ns_, job->task->deadline_ns());
    request(block);
    queued_since_ns_ = 0;  // somebody waits for it
    core_.wakeups.writes.notify_one();
}

void WriteBack::cancelled() {
    if (last_.empty()) return;
    last_until_ns_ = 0;
    core_.wakeups.writes.notify_one();
}

// Last shards whose callers wait no longer: they are accepted like any others, and not published.
void WriteBack::answer_overdue(Outcome &outcome) {
    if (last_until_ns_ > monotonic_ns()) return;
    last_until_ns_ = INT64_MAX;
    std::vector<BlockRef> still;
    for (auto &block : last_) {
        auto found = works_.find(block);
        if (found == works_.end() || !found->second.last_job) continue;
        const Task &task = *found->second.last_job->task;
        if (task.refused() != UCM_OK) {
            answer_last(found->second, UCM_OK, 0, outcome);
            continue;
        }
        still.push_back(block);
        last_until_ns_ = std::min(last_until_ns_, task.deadline_ns());
    }
    last_ = std::move(still);
}

void WriteBack::not_unsaved(Work &work) {
    if (!work.unsaved) return;
    work.unsaved = false;
    unsaved_.erase(work.unsaved_at);
}

void WriteBack::not_saved(Work &work) {
    if (!work.saved) return;
    work.saved = false;
    saved_.erase(work.saved_at);
}

void WriteBack::touched(const BlockRef &block) {
    if (!core_.lower_keeps || !table_.mine(block.record)) return;
    Work &work = works_[block];
    not_unsaved(work);
    work.unsaved = true;
    work.unsaved_at = unsaved_.insert(unsaved_.end(), block);
}

void WriteBack::request(const BlockRef &block) {
    Work &work = works_[block];
    not_unsaved(work);
    if (work.queued || table_.flagged(block.record, kWriting)) return;  // its end looks again
    work.queued = true;
    const bool first = queue_.empty();
    if (first) queued_since_ns_ = monotonic_ns();
    queue_.push_back(block);
    // Amid a burst the writer sleeps until it is over, and is not woken for every block.
    if (first || quiet_until() <= monotonic_ns()) core_.wakeups.writes.notify_one();
}

void WriteBack::request_unsaved(size_t most_shards) {
    if (!core_.lower_keeps) return;
    for (size_t shards = 0; shards < most_shards && !unsaved_.empty();) {
        const BlockRef block = unsaved_.front();
        if (table_.state(block) != State::kGathering) {
            not_unsaved(works_[block]);
            continue;
        }
        shards += table_.record(block.record).here.load();
        request(block);
    }
}

void WriteBack::make_room() {
    if (in_flight_ == 0 && queue_.empty()) request_unsaved(kBatchShards);
}

void WriteBack::saved(const BlockRef &block) {
    Work &work = works_[block];
    if (work.saved) return;
    work.saved = true;
    work.saved_at = saved_.insert(saved_.end(), block);
}

bool WriteBack::spill(Outcome &outcome) {
    for (size_t left = saved_.size(); left-- > 0;) {
        const BlockRef block = saved_.front();
        not_saved(works_[block]);
        if (table_.state(block) != State::kGathering) continue;
        if (table_.header().spill_list.size == 0) lose_oldest_spilled(outcome);
        if (!table_.spill(block.record)) {
            if (table_.record(block.record).users) saved(block);
            continue;
        }
        // All that is here is below; of a block of another member that may not be settled yet.
        end_accounts(block, End::kStored);
        return true;
    }
    return false;
}

// Whoever has nothing to give leaves it to others.
void WriteBack::relieve(Outcome &outcome) {
    if (!table_.header().pressure.load()) return;
    if (spill(outcome)) table_.header().pressure.store(0);
    make_room();
}

void WriteBack::lose_oldest_spilled(Outcome &outcome) {
    uint32_t oldest = kNone;
    table_.each([&](uint32_t r) {
        const Record &record = table_.record(r);
        if (record.state.load() != State::kSpilled || !table_.mine(r)) return;
        if (oldest == kNone || record.touched_ns < table_.record(oldest).touched_ns) oldest = r;
    });
    if (oldest != kNone) lose_spilled(oldest, outcome);
}

void WriteBack::lose_spilled(uint32_t record, Outcome &outcome) {
    const BlockId id = table_.id(record);
    core_.metrics.add(kAbandonedBlocks, 1);
    outcome.warnings.push_back("block " + id.hex() + " is given up: its other shards did not come");
    table_.forget_spilled(id);
}

void WriteBack::wait_submitted(Lock &lock) {
    const uint64_t mine = calls_begun_;
    core_.wakeups.idle.wait(lock, [&] { return calls_ended_ >= mine; });
}

void WriteBack::run() {
    Lock lock(core_.mutex);
    for (;;) {
        Outcome outcome;
        const int64_t now_ns = monotonic_ns();
        while (!delayed_.empty() && delayed_.begin()->first <= now_ns) {
            queue_.push_back(delayed_.begin()->second);
            delayed_.erase(delayed_.begin());
        }
        answer_overdue(outcome);
        if (!ended_.empty()) {
            const auto batch = std::move(ended_.front());
            ended_.pop_front();
            {
                const Table::Hold hold(table_);
                finish(*batch, outcome);
            }
            while (!doubtful_.empty()) ask_below(lock, outcome);
        } else if (!to_remove_.empty() && now_ns >= remove_at_ns_) {
            remove_again(lock, outcome);
        } else if (!queue_.empty() && in_flight_ < core_.config.running_shards &&
                   now_ns >= busy_until_ns_ && now_ns >= quiet_until() &&
                   (core_.impatient || core_.dump_breaker.ask() != Breaker::Says::kNo)) {
            std::shared_ptr<Batch> batch;
            {
                const Table::Hold hold(table_);
                batch = build();
            }
            if (batch) submit(batch, lock);
            core_.wakeups.dumps.notify_all();
        } else if (outcome.answers.empty()) {
            if (idle()) core_.wakeups.idle.notify_all();
            if (stopping_) return;
            core_.wakeups.writes_want_change = !held_back_.empty();
            if (!held_back_.empty()) table_.want(true);
            wait_until(core_.wakeups.writes, lock, next_wake());
            core_.wakeups.writes_want_change = false;
            try_held_back();
        }
        outcome.give(lock, core_.log);
    }
}

int64_t WriteBack::next_wake() const {
    int64_t at_ns = last_until_ns_;
    if (!delayed_.empty()) at_ns = std::min(at_ns, delayed_.begin()->first);
    if (!to_remove_.empty()) at_ns = std::min(at_ns, remove_at_ns_);
    if (!held_back_.empty()) at_ns = std::min(at_ns, monotonic_ns() + 100 * 1000000);
    if (!queue_.empty() && in_flight_ < core_.config.running_shards)
        at_ns = std::min(at_ns, std::max({busy_until_ns_, quiet_until(),
                                          core_.impatient ? 0 : core_.dump_breaker.until_ns()}));
    return at_ns;
}

// Writing takes the cores and the memory's speed that a burst of dumps wants: it goes first, unless
// much is waiting already, or somebody is.
int64_t WriteBack::quiet_until() const {
    if (core_.impatient || drains_ || queue_.size() > table_.header().frames_ready.load() / 4)
        return 0;
    const int64_t most_ns = queued_since_ns_ + kMostQuietNs;
    return core_.dumping ? most_ns : std::min(most_ns, core_.dumped_ns + kQuietNs);
}

void WriteBack::try_held_back() {
    for (auto &block : held_back_) queue_.push_back(block);
    held_back_.clear();
}

std::shared_ptr<WriteBack::Batch> WriteBack::build() {
    auto batch = std::make_shared<Batch>(*this);
    while (!queue_.empty() && batch->n() < kBatchShards) {
        const BlockRef block = queue_.front();
        const State state = table_.state(block);
        const bool alive =
            (state == State::kGathering || state == State::kDirty) && table_.mine(block.record);
        if (alive && batch->n() && table_.flagged(block.record, kReplace) != batch->replace) break;
        queue_.pop_front();
        if (!alive) {
            auto found = works_.find(block);
            if (found != works_.end()) found->second.queued = false;
            continue;
        }
        if (table_.older_is_on_its_way(block.record)) {
            held_back_.push_back(block);
            continue;
        }
        works_[block].queued = false;
        add(*batch, block);
    }
    if (batch->n() == 0) return nullptr;
    batch->results.resize(batch->n(), result(UCM_INTERNAL));
    in_flight_ += batch->n();
    running_[batch.get()] = batch;
    return batch;
}

void WriteBack::add(Batch &batch, const BlockRef &block) {
    Batch::Part part{block, {}, batch.n()};
    const uint32_t r = block.record;
    const BlockId id = table_.id(r);
    for (uint32_t shard = 0; shard < table_.shards(); shard++) {
        if (!unsaved_word(table_.word(r, shard))) continue;
        part.shards.push_back(shard);
        batch.ids.insert(batch.ids.end(), id.bytes, id.bytes + UCM_BLOCK_ID_BYTES);
        batch.indexes.push_back(shard);
        batch.depths.push_back(table_.record(r).depth);
        batch.addresses.push_back(table_.slot(r, shard));
        batch.lengths.push_back(table_.length(r, shard));
        batch.raw_lengths.push_back(table_.raw_length(r, shard));
        batch.bytes += table_.length(r, shard);
    }
    not_unsaved(works_[block]);
    table_.flag(r, kFlush, false);
    if (part.shards.empty()) return;
    batch.replace = table_.flagged(r, kReplace);
    if (!batch.tag) batch.tag = table_.record(r).tag;
    table_.begin_writing(r);
    batch.parts.push_back(std::move(part));
}

void WriteBack::submit(const std::shared_ptr<Batch> &batch, Lock &lock) {
    const ucm_transfer transfer = batch->transfer();
    calls_begun_++;
    lock.unlock();
    ucm_error error{};
    error.struct_size = sizeof error;
    UCM_FAILPOINT("cache.before_write_back");
    const ucm_status status = ucm_dump(core_.lower, &transfer, nullptr, &error);
    UCM_FAILPOINT("cache.handed_down");
    if (status != UCM_OK && status != UCM_BUSY)
        core_.log.write(UCM_LOG_WARN, "the store below refuses a dump: %s", error.message);
    lock.lock();
    calls_ended_++;
    core_.wakeups.idle.notify_all();
    if (status == UCM_OK) {
        core_.metrics.add(kDumpOutBytes, batch->bytes);
        return;
    }
    if (status == UCM_BUSY) return take_back(*batch);
    for (auto &each : batch->results) each = result(status, 0, error.os_errno);
    ended_.push_back(batch);
    running_.erase(batch.get());
}

// To the head of the queue, in the same order; what was removed meanwhile is left out next time.
void WriteBack::take_back(Batch &batch) {
    const Table::Hold hold(table_);
    for (size_t k = batch.parts.size(); k-- > 0;) {
        const BlockRef &block = batch.parts[k].block;
        works_[block].queued = true;
        queue_.push_front(block);
        table_.end_writing(block.record);
    }
    in_flight_ -= batch.n();
    // Something of ours may have finished since the call: then its wake-up came too early.
    busy_until_ns_ = ended_.empty() ? monotonic_ns() + kBusyNs : 0;
    running_.erase(&batch);
}

// From the store below, on any thread.
void WriteBack::ended(Batch &batch) {
    Lock lock(core_.mutex);
    auto found = running_.find(&batch);
    ended_.push_back(std::move(found->second));
    running_.erase(found);
    busy_until_ns_ = 0;
    core_.wakeups.writes.notify_one();
}

void WriteBack::finish(Batch &batch, Outcome &outcome) {
    in_flight_ -= batch.n();
    const Breaker::Turn turn = core_.dump_breaker.report(batch.best());
    if (turn == Breaker::Turn::kOpened) {
        core_.metrics.add(kBreakerOpened, 1);
        outcome.warnings.push_back(
            "the store below takes no dumps: they stay in memory until it does");
    } else if (turn == Breaker::Turn::kClosed) {
        outcome.warnings.push_back("the store below takes dumps again");
    }
    for (auto &part : batch.parts) {
        const BlockRef &block = part.block;
        const State state = table_.state(block);
        if (state == State::kGathering || state == State::kDirty) {
            judge(block, part.shards, batch.results.data() + part.first, outcome);
        } else if (table_.flagged(block.record, kRemoved)) {
            to_remove_.push_back(block);
            continue;
        }
        table_.end_writing(block.record);
    }
    // Nobody else can end what a member writes, so a block has no new owner before that.
    for (auto &each : std::exchange(to_leave_, {})) leave_to(each.first, each.second);
    relieve(outcome);
    try_held_back();
    core_.wakeups.dumps.notify_all();
    core_.wakeups.idle.notify_all();
}

// What a dump of ours may have published after its block was removed. Until then nobody else writes
// that block; so a store that is down may take its time, but not while this one closes.
void WriteBack::remove_again(Lock &lock, Outcome &outcome) {
    std::vector<uint8_t> ids;
    const size_t n = to_remove_.size();
    for (auto &block : to_remove_) {
        const BlockId id = table_.id(block.record);
        ids.insert(ids.end(), id.bytes, id.bytes + UCM_BLOCK_ID_BYTES);
    }
    ucm_ids_args args{};
    args.struct_size = sizeof args;
    args.n = n;
    args.block_ids = ids.data();
    lock.unlock();
    const ucm_status status = ucm_remove(core_.lower, &args, nullptr);
    lock.lock();
    const bool counts = !Breaker::down(status) || core_.impatient;
    if (passing(status) && (!counts || removal_tries_ < kRetries)) {
        int64_t delay_ns = kFirstDelayNs;
        for (uint32_t k = 0; k < removal_tries_ && k + 1 < kRetries; k++) delay_ns *= 10;
        removal_tries_++;
        remove_at_ns_ = monotonic_ns() + delay_ns;
        return;
    }
    removal_tries_ = 0;
    remove_at_ns_ = 0;
    const Table::Hold hold(table_);
    for (size_t k = 0; k < n; k++) {
        if (status != UCM_OK)
            outcome.warnings.push_back(
                "block " + table_.id(to_remove_[k].record).hex() +
                " was removed while it was written, and may be stored again: the store below "
                "cannot remove it: " +
                status_name(status));
        // What was read from there meanwhile goes as well; a newer dump waits and is not clean.
        const BlockRef visible = table_.visible(table_.id(to_remove_[k].record));
        if (visible && table_.state(visible) == State::kClean)
            table_.detach(visible.record, UCM_NOT_FOUND);
        table_.end_writing(to_remove_[k].record);
    }
    to_remove_.erase(to_remove_.begin(), to_remove_.begin() + std::ptrdiff_t(n));
    try_held_back();
}

void WriteBack::judge(const BlockRef &block, const std::vector<uint32_t> &shards,
                      const ucm_result *results, Outcome &outcome) {
    const uint32_t r = block.record;
    bool published = false, refused = false;
    for (size_t k = 0; k < shards.size(); k++) {
        if (results[k].status != UCM_OK) continue;
        published = published || (results[k].flags & UCM_RESULT_PUBLISHED);
        refused = refused || (results[k].flags & UCM_RESULT_DECLINED);
    }
    // Also where a shard failed: then the store below had it, from an earlier try.
    if (published && !refused && table_.complete(r)) return stored(block, outcome);
    for (size_t k = 0; k < shards.size(); k++) {
        const ucm_status status = results[k].status;
        if (status == UCM_OK) continue;
        if (passing(status) && again(block, Breaker::down(status))) return;
        const uint32_t heir = core_.closing ? table_.another_member() : kNone;
        if (Breaker::down(status) && heir != kNone && table_.whole(r))
            return void(to_leave_.emplace_back(block, heir));
        return lose(block, status, why_failed(results[k]).c_str(), outcome);
    }
    if (refused) return declined(block, outcome);
    bool more = false;
    for (uint32_t shard : shards) table_.below(r, shard, true);
    for (uint32_t shard = 0; shard < table_.shards(); shard++)
        more = more || unsaved_word(table_.word(r, shard));
    Work &work = works_[block];
    if (!table_.complete(r)) {
        // From here on these shards are the lower store's to count.
        auto &accounts = work.accounts;
        for (size_t k = accounts.size(); k-- > 0;) {
            if (std::find(shards.begin(), shards.end(), accounts[k].shard) == shards.end())
                continue;
            core_.ledger.end(accounts[k].epoch, 1, 0, 0);
            accounts.erase(accounts.begin() + std::ptrdiff_t(k));
        }
        saved(block);
        // Published already, with shards of an earlier dump: the rest are duplicates.
        if (published) table_.flag(r, kReplace, false);
        if (!more || (work.unsaved && !table_.flagged(r, kFlush))) return;
    } else if (!more) {
        if (!table_.whole(r) || !again(block, false)) doubtful_.push_back(block);
        return;
    }
    // Was asked for while it was being written.
    not_unsaved(work);
    if (!work.queued) queue_.push_back(block);
    work.queued = true;
}

void WriteBack::answer_last(Work &work, ucm_status status, uint32_t flags, Outcome &outcome) {
    if (!work.last_job) return;
    outcome.answers.push_back(
        {std::move(work.last_job), work.last_row, result(status, 0, 0, flags)});
    work.last_job = nullptr;
}

// Ends what the ledger still waits for; how many shards that were.
uint64_t WriteBack::end_accounts(const BlockRef &block, End end) {
    auto found = works_.find(block);
    if (found == works_.end()) return 0;
    const uint64_t n = found->second.accounts.size();
    for (auto &each : found->second.accounts)
        core_.ledger.end(each.epoch, end == End::kStored, end == End::kLost, end == End::kDeclined);
    not_unsaved(found->second);
    not_saved(found->second);
    works_.erase(found);
    core_.wakeups.idle.notify_all();
    return n;
}

void WriteBack::stored(const BlockRef &block, Outcome &outcome) {
    UCM_FAILPOINT("cache.stored");
    answer_last(works_[block], UCM_OK, UCM_RESULT_PUBLISHED, outcome);
    end_accounts(block, End::kStored);
    const BlockRef old = table_.visible(table_.id(block.record));
    if (old && !(old == block)) drop(old, outcome);
    table_.settle(block.record);
}

// The store below does not want it: nothing is lost, and nothing is stored. What is whole stays
// here as long as there is room.
void WriteBack::declined(const BlockRef &block, Outcome &outcome) {
    table_.flag(block.record, kDeclined);
    core_.metrics.add(kDeclinedBlocks, 1);
    answer_last(works_[block], UCM_OK, UCM_RESULT_DECLINED, outcome);
    end_accounts(block, End::kDeclined);
    if (table_.whole(block.record))
        table_.settle(block.record);
    else
        table_.detach(block.record, UCM_CANCELLED);
}

// The store below took every shard and said of none of the last ones that the block is published.
// It may be nevertheless, where a replacement by somebody else was left unfinished there.
void WriteBack::ask_below(Lock &lock, Outcome &outcome) {
    const BlockRef block = doubtful_.back();
    size_t hits = 0;
    bool ask = false;
    BlockId id;
    {
        const Table::Hold hold(table_);
        ask = table_.same(block) && !table_.flagged(block.record, kReplace);
        if (ask) id = table_.id(block.record);
    }
    if (ask) {
        ucm_lookup_args args{};
        args.struct_size = sizeof args;
        args.n = 1;
        args.block_ids = id.bytes;
        args.hits = &hits;
        lock.unlock();
        if (ucm_lookup(core_.lower, &args, nullptr) != UCM_OK) hits = 0;
        lock.lock();
    }
    doubtful_.erase(std::find(doubtful_.begin(), doubtful_.end(), block));
    const Table::Hold hold(table_);
    const State state = table_.state(block);
    if (state != State::kGathering && state != State::kDirty) return;
    if (hits) return stored(block, outcome);
    lose(block, UCM_IO, "the store below took its shards and did not publish it", outcome);
}

// False: it was tried often enough. While the store below is known to be down, nothing counts.
bool WriteBack::again(const BlockRef &block, bool down) {
    Work &work = works_[block];
    const bool counts = !(down && core_.dump_breaker.open() && !core_.impatient);
    if (counts && work.tries == kRetries) return false;
    // The store below may have given up all of the block, so all of it goes again if it is here.
    if (table_.whole(block.record))
        for (uint32_t shard = 0; shard < table_.shards(); shard++)
            table_.below(block.record, shard, false);
    not_unsaved(work);
    work.queued = true;
    if (!counts) {
        queue_.push_back(block);  // the breaker says when, or a drain or a close that begins
        return true;
    }
    int64_t delay_ns = kFirstDelayNs;
    for (uint32_t k = 0; k < work.tries; k++) delay_ns *= 10;
    work.tries++;
    delayed_.emplace(monotonic_ns() + delay_ns, block);
    return true;
}

void WriteBack::abandon_idle(Outcome &outcome) {
    const int64_t before_ns = monotonic_ns() - kIdleNs;
    std::vector<BlockRef> old;
    table_.each([&](uint32_t r) {
        const Record &record = table_.record(r);
        const State state = record.state.load();
        if (!table_.mine(r) || record.touched_ns > before_ns || table_.flagged(r, kWriting)) return;
        if (state == State::kGathering && !table_.complete(r)) old.push_back(table_.ref(r));
        if (state == State::kSpilled) lose_spilled(r, outcome);
    });
    for (auto &block : old) lose(block, UCM_TIMEOUT, "its other shards did not come", outcome);
}

void WriteBack::lose(const BlockRef &block, ucm_status status, const char *why, Outcome &outcome) {
    const uint32_t r = block.record;
    Work &work = works_[block];
    if (work.last_job) {
        // This one is told so; it is not lost behind anybody's back.
        const uint32_t shard = work.last_job->task->shard(work.last_row);
        for (size_t k = 0; k < work.accounts.size(); k++) {
            if (work.accounts[k].shard != shard) continue;
            core_.ledger.end(work.accounts[k].epoch, 0, 0, 1);
            work.accounts.erase(work.accounts.begin() + std::ptrdiff_t(k));
            break;
        }
        answer_last(work, status, 0, outcome);
    }
    account_handed(block);
    uint64_t lost = end_accounts(block, End::kLost);
    uint64_t without_account = 0, of_others = 0;
    if (!core_.lower_keeps) without_account = table_.record(r).here.load();
    for (uint32_t shard = 0; shard < table_.shards() && core_.lower_keeps; shard++) {
        const uint32_t reporter = table_.reporter(r, shard);
        if (!unsaved_word(table_.word(r, shard)) || reporter == table_.member()) continue;
        (table_.absent(reporter) ? without_account : of_others)++;
    }
    core_.ledger.lose_stored(without_account);
    lost += without_account;
    core_.metrics.add(kLostShards, lost);
    if (table_.state(block) == State::kGathering) core_.metrics.add(kAbandonedBlocks, 1);
    outcome.warnings.push_back("block " + table_.id(r).hex() + " is given up with " +
                               std::to_string(lost + of_others) +
                               " shards that are stored nowhere else: " + why);
    table_.detach(r, status, kLost);
}

void WriteBack::drop(const BlockRef &block, Outcome &outcome, uint32_t flags) {
    auto found = works_.find(block);
    if (found != works_.end()) answer_last(found->second, UCM_CANCELLED, 0, outcome);
    end_accounts(block, End::kStored);
    table_.detach(block.record, UCM_CANCELLED, flags);
}

void WriteBack::adopt(const Table::Inheritance &all, Outcome &outcome) {
    if (all.records.empty() && all.brought.empty() && all.removed.empty() && all.lost.empty())
        return;
    uint64_t lost = 0;
    for (size_t k = 0; k < all.lost.size(); k++) {
        lost += all.lost[k].shards;
        if (k < kMostNamed)
            outcome.warnings.push_back("block " + all.lost[k].id.hex() + " has lost " +
                                       std::to_string(all.lost[k].shards) +
                                       " shards with a process that is dead");
    }
    if (all.lost.size() > kMostNamed)
        outcome.warnings.push_back(std::to_string(all.lost.size() - kMostNamed) +
                                   " more blocks have lost shards with it");
    core_.ledger.lose_stored(lost);
    core_.metrics.add(kLostShards, lost);
    for (auto &block : all.brought) account_handed(block);
    size_t dirty = 0;
    for (auto &block : all.records) {
        const uint32_t r = block.record;
        if (table_.state(block) == State::kGathering && table_.whole(r)) table_.publish(r);
        const bool is_dirty = table_.state(block) == State::kDirty;
        account_handed(block);
        dirty += is_dirty && core_.lower_keeps;
        if (!is_dirty)
            touched(block);
        else
            core_.lower_keeps ? request(block) : table_.settle(r);
    }
    to_remove_.insert(to_remove_.end(), all.removed.begin(), all.removed.end());
    core_.wakeups.writes.notify_one();
    core_.metrics.add(kAdoptedBlocks, dirty);
    outcome.warnings.push_back(
        std::to_string(all.members) + " stores that shared " + core_.segment.path() +
        " are dead: " + std::to_string(dirty) + " blocks that they had accepted are stored now, " +
        std::to_string(all.records.size() - dirty) + " wait for other shards, " +
        std::to_string(lost) + " shards of unfinished blocks are lost");
}

// Shards that are here of a block, and that others accepted: from now on this store's to report,
// and waited for by its drains.
void WriteBack::account_handed(const BlockRef &block) {
    if (!core_.lower_keeps) return;
    const uint32_t r = block.record;
    for (uint32_t shard = 0; shard < table_.shards(); shard++) {
        if (!table_.handed(r, shard) || table_.reporter(r, shard) != table_.member()) continue;
        if (!unsaved_word(table_.word(r, shard))) continue;
        table_.report_by(r, shard, table_.member(), false);
        auto &accounts = works_[block].accounts;
        if (!waits_for(accounts, shard)) accounts.push_back({shard, core_.ledger.accept(1)});
    }
}

// Blocks of this member that it does not know of: somebody handed them over, completed them, or
// took frames for them and left.
void WriteBack::find_own() {
    table_.each([&](uint32_t r) {
        const State state = table_.record(r).state.load();
        if (!table_.mine(r) || (state != State::kDirty && state != State::kGathering)) return;
        const BlockRef block = table_.ref(r);
        bool unsaved = false;
        for (uint32_t shard = 0; shard < table_.shards(); shard++)
            unsaved = unsaved || unsaved_word(table_.word(r, shard));
        account_handed(block);
        if (state == State::kDirty || table_.complete(r) || table_.flagged(r, kFlush))
            request(block);
        else if (!unsaved)
            saved(block);
        else if (!works_[block].unsaved && !works_[block].queued)
            touched(block);
    });
}

void WriteBack::drain(bool begins) {
    const Lock lock(core_.mutex);
    const Table::Hold hold(table_);
    drains_ += begins ? 1 : -1u;
    if (begins && table_.changed_hands()) find_own();
    if (begins) flush_for_drains();
}

void WriteBack::flush_for_drains() {
    if (drains_ == 0) return;
    request_unsaved(SIZE_MAX);
    for (auto &entry : works_) {
        const uint32_t r = entry.first.record;
        if (table_.state(entry.first) != State::kGathering || table_.mine(r)) continue;
        if (entry.second.accounts.empty()) continue;
        table_.flag(r, kFlush);
        table_.hand_over(r, table_.owner(r));  // which is told so
    }
}

// Shards of an unfinished block that its owner has stored, and whose end its store below reports.
void WriteBack::settle_stored(const BlockRef &block, Work &work) {
    const auto is_below = [&](const Account &each) {
        return below_of(table_.word(block.record, each.shard));
    };
    if (table_.mine(block.record)) return;
    for (auto &each : work.accounts) {
        if (!is_below(each)) continue;
        core_.ledger.end(each.epoch, 1, 0, 0);
        if (table_.reporter(block.record, each.shard) == table_.member())
            table_.report_by(block.record, each.shard, table_.owner(block.record), false);
    }
    work.accounts.erase(std::remove_if(work.accounts.begin(), work.accounts.end(), is_below),
                        work.accounts.end());
}

void WriteBack::settle_foreign(Outcome &outcome) {
    std::vector<BlockRef> lost;
    const bool all = table_.lost_since(lost_seen_, lost);
    std::vector<BlockRef> over;
    for (auto &entry : works_) {
        const State state = table_.state(entry.first);
        if (state == State::kGathering) settle_stored(entry.first, entry.second);
        if (state == State::kGathering || state == State::kDirty) continue;
        over.push_back(entry.first);
    }
    for (auto &block : over) {
        const bool gone = table_.state(block) != State::kClean;
        const bool is_lost =
            gone && (!all || std::find(lost.begin(), lost.end(), block) != lost.end());
        Work &work = works_[block];
        answer_last(work, is_lost ? UCM_IO : UCM_OK, is_lost ? 0u : uint32_t(UCM_RESULT_PUBLISHED),
                    outcome);
        const uint64_t n = end_accounts(block, is_lost ? End::kLost : End::kStored);
        if (is_lost) core_.metrics.add(kLostShards, n);
    }
}

// Its store below may work. It reports what this one does not any more.
void WriteBack::leave_to(const BlockRef &block, uint32_t member) {
    end_accounts(block, End::kStored);
    for (uint32_t shard = 0; shard < table_.shards(); shard++) {
        const uint32_t reporter = table_.reporter(block.record, shard);
        const bool here = state_of(table_.word(block.record, shard)) == ShardState::kHere;
        if (here && (reporter == table_.member() || table_.absent(reporter)))
            table_.report_by(block.record, shard, member, true);
        table_.below(block.record, shard, false);
    }
    const Record &record = table_.record(block.record);
    if (record.have == 0 && record.users == 0)
        return table_.detach(block.record, UCM_CANCELLED, kLost);
    table_.hand_over(block.record, member);
}

// Shards of a block of another member: that one reports them.
void WriteBack::hand_back(const BlockRef &block) {
    const uint32_t r = block.record, owner = table_.owner(r);
    for (auto &each : works_[block].accounts)
        if (table_.reporter(r, each.shard) == table_.member())
            table_.report_by(r, each.shard, owner, true);
    end_accounts(block, End::kStored);
    table_.hand_over(r, owner);
}

bool WriteBack::leave(Outcome &outcome) {
    bool more = false;
    table_.begin_leaving();
    settle_foreign(outcome);
    std::vector<BlockRef> of_others;
    for (auto &entry : works_)
        if (!table_.mine(entry.first.record) && !entry.second.accounts.empty())
            of_others.push_back(entry.first);
    for (auto &block : of_others) hand_back(block);
    const uint32_t heir = core_.lower_keeps ? table_.another_member() : kNone;
    std::vector<BlockRef> mine;
    table_.each([&](uint32_t r) {
        if (table_.record(r).state.load() == State::kGathering && table_.mine(r) &&
            !table_.complete(r))
            mine.push_back(table_.ref(r));
    });
    size_t named = 0;
    for (auto &block : mine) {
        if (heir != kNone) {
            // What is below of it is given up there; what is here is all that is needed.
            const bool writes = table_.flagged(block.record, kWriting);
            if (!writes) leave_to(block, heir);
            more = more || writes;
            continue;
        }
        Outcome quiet;
        const bool name = named++ < kMostNamed;
        lose(block, UCM_CLOSED, "the store closes before its last shard came",
             name ? outcome : quiet);
        for (auto &answer : quiet.answers) outcome.answers.push_back(std::move(answer));
    }
    if (named > kMostNamed)
        outcome.warnings.push_back(std::to_string(named - kMostNamed) +
                                   " more unfinished blocks are given up as the store closes");
    table_.each([&](uint32_t r) {
        if (table_.record(r).state.load() == State::kSpilled && table_.mine(r))
            table_.forget_spilled(table_.id(r));
    });
    return more;
}

}  // namespace ucm::cache
