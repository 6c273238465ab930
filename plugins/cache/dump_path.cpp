// SPDX-License-Identifier: MIT
#include "dump_path.h"

#include "failpoint.h"

namespace ucm::cache {
namespace {

// Where nothing can be moved below, a block of which no shard came for so long makes way.
constexpr int64_t kStaleNs = 10ll * 1000000000;

}  // namespace

void DumpPath::start() {
    threads_.start(1, "ucm-cache-dump", [this] { run(); });
}

void DumpPath::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
        core_.wakeups.dumps.notify_all();
    }
    threads_.join();
}

void DumpPath::push(const JobRef &job) {
    Lock lock(core_.mutex);
    jobs_.push_back(job);
    core_.wakeups.dumps.notify_all();
}

void DumpPath::flush(bool begin) {
    Lock lock(core_.mutex);
    flushing_ += begin ? 1 : -1u;
    if (begin) writer_.request_unsaved(SIZE_MAX);
}

void DumpPath::cancel(const IdSet &ids) {
    for (auto &job : jobs_)
        for (size_t row = 0; row < job->rows.size(); row++)
            if (job->rows[row] == Row::kTodo && ids.count(job->task->id(row)))
                job->rows[row] = Row::kDropped;
    core_.wakeups.dumps.notify_all();
}

void DumpPath::run() {
    Lock lock(core_.mutex);
    for (;;) {
        core_.wakeups.dumps.wait(lock, [&] { return !jobs_.empty() || stopping_; });
        if (jobs_.empty()) return;
        const JobRef job = jobs_.front();
        process(job, lock);
        jobs_.pop_front();
        if (flushing_) writer_.request_unsaved(SIZE_MAX);
    }
}

void DumpPath::process(const JobRef &job, Lock &lock) {
    for (size_t row = 0; row < job->rows.size(); row++) {
        Outcome outcome;
        ucm_result answer = result(UCM_OK);
        const bool now = take(job, row, lock, outcome, answer);
        job->rows[row] = Row::kTaken;
        if (now) {
            if (answer.status != UCM_OK) core_.ledger.end(job->epoch, 0, 0, 1);
            outcome.answers.push_back({job, row, answer});
        }
        outcome.give(lock, core_.log);
    }
}

// False: the row is answered when its block is published.
bool DumpPath::take(const JobRef &job, size_t row, Lock &lock, Outcome &outcome,
                    ucm_result &answer) {
    const Task &task = *job->task;
    const BlockId id = task.id(row);
    for (;;) {
        const ucm_status refused = job->rows[row] == Row::kDropped ? UCM_CANCELLED : task.refused();
        if (refused != UCM_OK) {
            answer = result(refused);
            return true;
        }
        const BlockRef visible = core_.index.visible(id);
        const BlockRef gathering = joined(job, row, outcome);
        const bool published = !gathering && visible && visible->whole() && !task.replace();
        const ShardEntry entry = gathering ? gathering->shards[task.shard(row)] : ShardEntry();
        if (published || entry.below || entry.state != ShardState::kAbsent) {
            core_.ledger.end(job->epoch, 1, 0, 0);
            answer = result(UCM_OK, 0, 0, published ? uint32_t(UCM_RESULT_PUBLISHED) : 0u);
            return true;
        }
        const uint32_t slot = core_.index.slot_for_dump();
        if (slot != kNoSlot) return copy(job, row, slot, lock, outcome, answer);
        const uint64_t room_before = core_.index.room_version();
        if (!make_room(id, outcome)) {
            answer = result(UCM_NO_SPACE);
            return true;
        }
        if (core_.index.room_version() != room_before) continue;
        core_.wakeups.dumps_want_room = true;
        wait_until(core_.wakeups.dumps, lock, task.deadline_ns());
        core_.wakeups.dumps_want_room = false;
    }
}

// False: this shard must not have any. Slots that come free, now or later, are announced.
bool DumpPath::make_room(const BlockId &id, Outcome &outcome) {
    if (core_.lower_keeps) {
        writer_.make_room();
        return true;
    }
    if (!core_.index.dumps_hold_all()) return true;  // copies that run will end
    // Unfinished blocks hold all, and nothing below takes them: those that began first go on.
    const BlockRef own = core_.index.gathering(id);
    const BlockRef oldest = core_.index.oldest_gathering();
    const bool stale = oldest && oldest != own && oldest->touched_ns < monotonic_ns() - kStaleNs;
    const BlockRef victim = stale ? oldest : core_.index.newest_gathering_but(own.get());
    if (!victim || (!stale && (!own || own->number > victim->number))) return false;
    writer_.lose(victim, UCM_NO_SPACE, "unfinished blocks fill the cache", outcome);
    return true;
}

// The unfinished block that this row belongs to, if it has begun.
BlockRef DumpPath::joined(const JobRef &job, size_t row, Outcome &outcome) {
    BlockRef block = core_.index.gathering(job->task->id(row));
    if (!block || block->replace || !job->task->replace()) return block;
    block->replace = !block->partly_below();
    if (block->replace) return block;
    // Part of it went below as an ordinary dump, which cannot become a replacement.
    writer_.lose(block, UCM_CANCELLED, "a replacement of it begins", outcome);
    return nullptr;
}

BlockRef DumpPath::gathering_for(const JobRef &job, size_t row, Outcome &outcome) {
    const Task &task = *job->task;
    const BlockId id = task.id(row);
    BlockRef block = core_.index.gathering(id);
    if (!block) {
        while (core_.index.gatherings() >= core_.config.max_unfinished)
            writer_.lose(core_.index.oldest_gathering(), UCM_NO_SPACE, "too many unfinished blocks",
                         outcome);
        block = core_.index.start_gathering(id);
        block->depth = task.depth(row);
        block->tag = task.tag();
        block->replace = task.replace();
    }
    return block;
}

bool DumpPath::copy(const JobRef &job, size_t row, uint32_t slot, Lock &lock, Outcome &outcome,
                    ucm_result &answer) {
    const Task &task = *job->task;
    const BlockRef block = gathering_for(job, row, outcome);
    const uint32_t shard = task.shard(row);
    core_.index.put(*block, shard, slot, ShardState::kCopying);
    core_.index.pin(*block);
    lock.unlock();
    UCM_FAILPOINT("cache.reserved");
    {
        Busy<kMetrics> busy(core_.metrics, kDumpBusyNs);
        core_.copy.gather(core_.index.pool().bytes(slot), task.addresses(row), task.length(row));
    }
    UCM_FAILPOINT("cache.filled");
    lock.lock();
    if (block->phase == Phase::kGone) {
        answer = result(block->end);
        if (block->declined) {
            core_.ledger.end(job->epoch, 0, 0, 1);
            answer = result(UCM_OK, 0, 0, UCM_RESULT_DECLINED);
        }
        core_.index.unpin(block);
        return true;
    }
    const bool now = landed(block, job, row, outcome, answer);
    core_.index.unpin(block);
    return now;
}

bool DumpPath::landed(const BlockRef &block, const JobRef &job, size_t row, Outcome &outcome,
                      ucm_result &answer) {
    const Task &task = *job->task;
    const uint32_t shard = task.shard(row);
    SlotInfo &info = core_.index.pool().info(block->shards[shard].slot);
    info = {task.length(row), task.raw_length(row), job->epoch, !core_.lower_keeps};
    if (!core_.lower_keeps) core_.ledger.end(job->epoch, 1, 0, 0);
    core_.index.arrived(*block, shard);
    core_.index.touched(block, monotonic_ns());
    core_.metrics.add(kDumpShards, 1);
    core_.metrics.add(kDumpBytes, task.length(row));
    if (!block->complete()) return true;
    if (!block->whole()) {
        block->last_job = job;
        block->last_row = row;
        writer_.request(block);
        return false;
    }
    if (const BlockRef old = core_.index.visible(block->id)) writer_.drop(old, outcome);
    core_.index.publish(block);
    UCM_FAILPOINT("cache.published");
    if (core_.lower_keeps)
        writer_.request(block);
    else
        core_.index.settle(block);
    answer = result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
    return true;
}

}  // namespace ucm::cache
