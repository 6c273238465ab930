// SPDX-License-Identifier: MIT
#include "dump_path.h"

#include "failpoint.h"

namespace ucm::cache {
namespace {

// Where nothing can be moved below, a block of which no shard came for so long makes way.
constexpr int64_t kStaleNs = 10ll * 1000000000;
constexpr size_t kPassShards = 64;
constexpr uint64_t kPassBytes = 4u << 20;
constexpr int64_t kForeignNs = 20 * 1000000;  // for a change that may go unheard

}  // namespace

void DumpPath::start() {
    threads_.start(1, "ucm-cache-dump", [this] {
        core_.take_cores();
        run();
    });
}

void DumpPath::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
        core_.wakeups.dumps.notify_all();
    }
    threads_.join();
}

void DumpPath::push(const JobRef &job, uint64_t inline_bytes) {
    Lock lock(core_.mutex);
    size_t row = 0;
    while (jobs_.empty() && row < job->rows.size() && inline_bytes) {
        const size_t next = pass(job, row, std::min(inline_bytes, kPassBytes), lock);
        if (next == row) break;
        for (; row < next; row++) inline_bytes -= std::min(inline_bytes, job->task->length(row));
    }
    if (row == job->rows.size()) {
        if (flushing_) {
            const Table::Hold hold(table_);
            writer_.request_unsaved(SIZE_MAX);
        }
        return;
    }
    jobs_.emplace_back(job, row);
    look_at_ns_ = std::min(look_at_ns_, job->task->deadline_ns());
    core_.wakeups.dumps.notify_all();
}

void DumpPath::flush(bool begin) {
    Lock lock(core_.mutex);
    const Table::Hold hold(table_);
    flushing_ += begin ? 1 : -1u;
    if (begin) writer_.request_unsaved(SIZE_MAX);
}

void DumpPath::cancel(const IdSet &ids) {
    for (auto &each : jobs_)
        for (size_t row = each.second; row < each.first->rows.size(); row++)
            if (each.first->rows[row] == Row::kTodo && ids.count(each.first->task->id(row)))
                each.first->rows[row] = Row::kDropped;
    cancelled();
}

void DumpPath::cancelled() {
    look_at_ns_ = 0;
    core_.wakeups.dumps.notify_all();
}

// Rows that are cancelled, dropped or too late, wherever they are in the queue.
void DumpPath::answer_refused(Lock &lock) {
    if (look_at_ns_ > monotonic_ns()) return;
    look_at_ns_ = INT64_MAX;
    Outcome outcome;
    for (auto &[job, first] : jobs_)
        if (cache::answer_refused(core_, job, first, outcome))
            look_at_ns_ = std::min(look_at_ns_, job->task->deadline_ns());
    outcome.give(lock, core_.log);
}

void DumpPath::run() {
    Lock lock(core_.mutex);
    for (;;) {
        core_.wakeups.dumps.wait(lock, [&] { return !jobs_.empty() || stopping_; });
        if (jobs_.empty()) return;
        const auto job = jobs_.front();
        process(job.first, job.second, lock);
        jobs_.pop_front();
        core_.wakeups.idle.notify_all();
        if (flushing_) {
            const Table::Hold hold(table_);
            writer_.request_unsaved(SIZE_MAX);
        }
    }
}

void DumpPath::process(const JobRef &job, size_t row, Lock &lock) {
    while (row < job->rows.size()) {
        answer_refused(lock);
        const uint64_t version = core_.version;
        const size_t next = pass(job, row, kPassBytes, lock);
        if (next == row && core_.version == version) {
            core_.wakeups.dumps_want_room = true;
            table_.want(true);
            // Frames that others hold must come free, unless there are to be more soon, for dumps.
            const bool more = table_.may_grow() && !table_.dumps_hold_all();
            if (core_.segment.shared() && !more && !table_.header().pressure.exchange(1))
                table_.ring_members();
            const int64_t soon_ns = monotonic_ns() + kForeignNs;
            wait_until(core_.wakeups.dumps, lock,
                       core_.segment.shared() ? std::min(soon_ns, look_at_ns_) : look_at_ns_);
            core_.wakeups.dumps_want_room = false;
        }
        row = next;
    }
}

// Takes rows from `first` on, as many as there is room for, copies and answers them; returns the
// first that is left.
size_t DumpPath::pass(const JobRef &job, size_t first, uint64_t most_bytes, Lock &lock) {
    Outcome outcome;
    std::vector<Copy> copies;
    size_t row = first;
    uint64_t bytes = 0;
    {
        const Table::Hold hold(table_);
        for (; row < job->rows.size() && copies.size() < kPassShards && bytes < most_bytes; row++) {
            if (job->rows[row] == Row::kTaken) continue;
            const Taken taken = take(job, row, copies, outcome);
            if (taken == Taken::kWait || (taken == Taken::kNoRoom && !copies.empty())) break;
            if (taken == Taken::kNoRoom) {
                if (make_room(job->task->id(row), outcome)) break;
                answer(job, row, result(UCM_NO_SPACE), outcome);
            }
            if (taken == Taken::kCopy) bytes += job->task->length(row);
            job->rows[row] = Row::kTaken;
        }
    }
    if (!copies.empty()) {
        core_.dumping++;
        lock.unlock();
        UCM_FAILPOINT("cache.reserved");
        const ucm_status copied = copy(job, copies);
        UCM_FAILPOINT("cache.filled");
        lock.lock();
        core_.dumping--;
        core_.dumped_ns = monotonic_ns();
        const Table::Hold hold(table_);
        for (auto &each : copies) land(job, each, copied, outcome);
    }
    outcome.give(lock, core_.log);
    return row;
}

void DumpPath::answer(const JobRef &job, size_t row, const ucm_result &answer, Outcome &outcome) {
    if (answer.status != UCM_OK) core_.ledger.end(job->epoch, 0, 0, 1);
    outcome.answers.push_back({job, row, answer});
}

DumpPath::Taken DumpPath::take(const JobRef &job, size_t row, std::vector<Copy> &copies,
                               Outcome &outcome) {
    const Task &task = *job->task;
    const BlockId id = task.id(row);
    const uint32_t shard = task.shard(row);
    const ucm_status refused = job->rows[row] == Row::kDropped ? UCM_CANCELLED : task.refused();
    if (refused != UCM_OK) {
        answer(job, row, result(refused), outcome);
        return Taken::kAnswered;
    }
    BlockRef block = joined(job, row, outcome);
    if (!block && table_.is_spilled(id)) {
        const uint32_t record = table_.take(Taking::kDump, id);
        if (record == kNone) return Taken::kNoRoom;
        block = table_.unspill(record, id);
        writer_.saved(block);
    }
    const BlockRef visible = table_.visible(id);
    const bool published = !block && visible && table_.whole(visible.record) && !task.replace();
    const uint32_t word = block ? table_.word(block.record, shard) : 0;
    // Done means there: a copy that runs in another thread may fail, and its process may die.
    if (state_of(word) == ShardState::kCopying) return Taken::kWait;
    if (published || below_of(word) || state_of(word) != ShardState::kAbsent) {
        writer_.account_again(block ? block : visible, shard, job->epoch);
        answer(job, row, result(UCM_OK, 0, 0, published ? uint32_t(UCM_RESULT_PUBLISHED) : 0u),
               outcome);
        return Taken::kAnswered;
    }
    if (!block) {
        const uint32_t record = table_.take(Taking::kDump, id);
        if (record == kNone) return Taken::kNoRoom;
        block = table_.start(record, id, State::kGathering);
        table_.record(record).depth = task.depth(row);
        table_.record(record).tag = task.tag();
        table_.flag(record, kReplace, task.replace());
    }
    table_.put(block.record, shard, ShardState::kCopying);
    copies.push_back({block, row});
    return Taken::kCopy;
}

// False: this shard must not have any. Frames that come free, now or later, are announced.
bool DumpPath::make_room(const BlockId &id, Outcome &outcome) {
    if (table_.may_grow() && !table_.dumps_hold_all()) {
        table_.ring(table_.member());  // whoever watches lets it grow
        return true;
    }
    if (writer_.spill(outcome)) return true;
    if (core_.lower_keeps) {
        writer_.make_room();
        return true;
    }
    if (!table_.dumps_hold_all()) return true;  // copies that run will end
    // Unfinished blocks hold all, and nothing below takes them: those that began first go on.
    uint32_t oldest = kNone, newest = kNone;
    const BlockRef own = table_.gathering(id);
    table_.each([&](uint32_t r) {
        const Record &record = table_.record(r);
        if (record.state.load() != State::kGathering) return;
        if (oldest == kNone || record.touched_ns < table_.record(oldest).touched_ns) oldest = r;
        if (r != own.record && (newest == kNone || record.number > table_.record(newest).number))
            newest = r;
    });
    const bool stale = oldest != kNone && oldest != own.record &&
                       table_.record(oldest).touched_ns < monotonic_ns() - kStaleNs;
    const uint32_t victim = stale ? oldest : newest;
    if (victim == kNone) return false;
    if (!stale && (!own || table_.record(own.record).number > table_.record(victim).number))
        return false;
    writer_.lose(table_.ref(victim), UCM_NO_SPACE, "unfinished blocks fill the cache", outcome);
    return true;
}

// The unfinished block that this row belongs to, if it has begun.
BlockRef DumpPath::joined(const JobRef &job, size_t row, Outcome &outcome) {
    const BlockId id = job->task->id(row);
    const BlockRef block = table_.gathering(id);
    if (!job->task->replace()) return block;
    if (table_.is_spilled(id)) table_.forget_spilled(id);
    if (!block || table_.flagged(block.record, kReplace)) return block;
    if (!table_.partly_below(block.record)) {
        table_.flag(block.record, kReplace);
        return block;
    }
    // Part of it went below as an ordinary dump, which cannot become a replacement.
    writer_.lose(block, UCM_CANCELLED, "a replacement of it begins", outcome);
    return {};
}

ucm_status DumpPath::copy(const JobRef &job, const std::vector<Copy> &copies) {
    std::vector<Piece> pieces;
    pieces.reserve(copies.size());
    for (auto &each : copies)
        pieces.push_back({table_.slot(each.block.record, job->task->shard(each.row)),
                          job->task->addresses(each.row), job->task->length(each.row)});
    core_.pin_ready();
    Busy<kMetrics> busy(core_.metrics, kDumpBusyNs);
    return core_.device->gather(pieces.data(), pieces.size(), job->task->event());
}

void DumpPath::land(const JobRef &job, const Copy &each, ucm_status copied, Outcome &outcome) {
    const Task &task = *job->task;
    const uint32_t r = each.block.record, shard = task.shard(each.row);
    ucm_result end = result(copied);
    if (copied == UCM_PENDING) {
        // A device may still write there: the slot stays as it is while this process lives.
        if (table_.state(each.block) == State::kGathering)
            writer_.lose(each.block, UCM_IO, "a copy from the device broke down", outcome);
        return answer(job, each.row, result(UCM_IO), outcome);
    }
    if (table_.state(each.block) != State::kGathering) {
        if (copied == UCM_OK) end = result(ucm_status(table_.record(r).end));
        if (copied == UCM_OK && table_.flagged(r, kDeclined)) {
            core_.ledger.end(job->epoch, 0, 0, 1);
            end = result(UCM_OK, 0, 0, UCM_RESULT_DECLINED);
        }
        table_.vacate(r, shard);
        return answer(job, each.row, end, outcome);
    }
    if (copied != UCM_OK) {
        table_.vacate(r, shard);
        return answer(job, each.row, end, outcome);
    }
    if (landed(job, each, outcome, end)) answer(job, each.row, end, outcome);
}

// False: the row is answered when its block is published.
bool DumpPath::landed(const JobRef &job, const Copy &each, Outcome &outcome, ucm_result &end) {
    const Task &task = *job->task;
    const BlockRef &block = each.block;
    const uint32_t r = block.record, shard = task.shard(each.row);
    table_.arrived(r, shard, task.length(each.row), task.raw_length(each.row));
    table_.record(r).touched_ns = monotonic_ns();
    if (core_.lower_keeps)
        writer_.account(block, shard, job->epoch);
    else
        core_.ledger.end(job->epoch, 1, 0, 0);
    core_.metrics.add(kDumpShards, 1);
    core_.metrics.add(kDumpBytes, task.length(each.row));
    if (!table_.complete(r)) {
        writer_.touched(block);
        return true;
    }
    if (!table_.whole(r)) {
        if (table_.mine(r)) {
            writer_.answer_later(block, job, each.row);
            return false;
        }
        table_.hand_over(r, table_.owner(r));  // which is told so
        return true;
    }
    if (const BlockRef old = table_.visible(task.id(each.row))) writer_.drop(old, outcome);
    table_.publish(r);
    if (!core_.lower_keeps)
        table_.settle(r);
    else if (table_.mine(r))
        writer_.request(block);
    else
        table_.hand_over(r, table_.owner(r));
    end = result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
    return true;
}

}  // namespace ucm::cache
