// SPDX-License-Identifier: MIT
#include "dumper.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>

#include "failpoint.h"

namespace ucm::files {

void Dumper::accept(Job job) {
    const BlockId id = job.id();
    std::lock_guard<std::mutex> hold(mutex_);
    Block &block = blocks_[id];
    block.waiting.push_back(std::move(job));
    if (block.scheduled) return;
    block.scheduled = true;
    wake(block);
    ready_.push(id);
}

Dumper::Block *Dumper::take(const BlockId &id, Job &job) {
    std::lock_guard<std::mutex> hold(mutex_);
    Block &block = blocks_.at(id);
    if (block.waiting.empty()) {
        block.scheduled = false;
        rest(id, block);
        return nullptr;
    }
    job = std::move(block.waiting.front());
    block.waiting.pop_front();
    block.running = true;
    return &block;
}

void Dumper::end_run(const BlockId &id, Block &block) {
    while (!end_run_once(id, block)) {
    }
    abandon_excess();
}

// False: the block was dropped meanwhile. It still counts as running while its file is deleted, so
// that it is gone when remove returns.
bool Dumper::end_run_once(const BlockId &id, Block &block) {
    Draft removed;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (!block.dropped.exchange(false)) {
            block.running = false;
            block.runs++;
            if (block.waiting.empty()) {
                block.scheduled = false;
                rest(id, block);
            } else {
                ready_.push(id);
            }
            ended_.notify_all();
            return true;
        }
        std::swap(removed, block.draft);
    }
    discard(removed);
    return false;
}

// To be called with the mutex held, when no work is left for the block.
void Dumper::rest(const BlockId &id, Block &block) {
    if (!block.draft.begun()) {
        blocks_.erase(id);
        return;
    }
    block.draft.rests_since_ns = monotonic_ns();
    block.place = resting_.insert(resting_.end(), id);
    block.resting = true;
    resting_bytes_ += block.draft.end;
}

void Dumper::wake(Block &block) {
    if (!block.resting) return;
    block.resting = false;
    resting_.erase(block.place);
    resting_bytes_ -= block.draft.end;
}

void Dumper::discard(Draft &draft) {
    if (draft.begun()) {
        UCM_FAILPOINT("posix.before_discard");
        const bool gone =
            draft.in_place || ::unlink(draft.temporary.c_str()) == 0 || errno == ENOENT;
        // What cannot be deleted goes on taking room, until somebody counts again.
        if (gone) draft.directory->settle(draft.reserved, 0);
        unfinished_ -= draft.answered;
        context_.metrics.add(kUnfinishedBlocks, uint64_t(-1));
    } else if (draft.reserved > 0) {
        draft.directory->settle(draft.reserved, 0);
    }
    claimed_ -= draft.claimed;
    draft = Draft{};
}

bool Dumper::claim(Draft &draft, uint64_t bytes) {
    while (claimed_.fetch_add(bytes) + bytes > limits_.bytes) {
        claimed_ -= bytes;
        if (!abandon_oldest("too many blocks are unfinished")) return false;
    }
    draft.claimed = bytes;
    return true;
}

void Dumper::count_answered(Draft &draft, uint64_t shards) {
    if (!draft.begun()) return;
    draft.answered += shards;
    unfinished_ += shards;
}

void Dumper::abandon(const BlockId &id, Draft &draft, const char *why) {
    ledger_.lose_stored(draft.answered);
    context_.metrics.add(kAbandonedBlocks, 1);
    context_.log.write(UCM_LOG_WARN, "unfinished block %s is abandoned with %zu of %zu shards: %s",
                       id.hex().c_str(), draft.stored, draft.have.size(), why);
    discard(draft);
}

bool Dumper::drop(const std::vector<BlockId> &ids, int64_t deadline_ns) {
    std::vector<Job> cancelled;
    std::vector<Draft> drafts;
    std::vector<std::pair<BlockId, uint64_t>> running;
    std::unique_lock<std::mutex> hold(mutex_);
    for (const BlockId &id : ids) {
        const auto found = blocks_.find(id);
        if (found == blocks_.end()) continue;
        Block &block = found->second;
        for (Job &job : block.waiting) cancelled.push_back(std::move(job));
        block.waiting.clear();
        if (block.running) {
            block.dropped = true;
            running.emplace_back(id, block.runs);
            continue;
        }
        wake(block);
        drafts.push_back(std::move(block.draft));
        block.draft = Draft{};
        if (!block.scheduled) blocks_.erase(found);
    }
    hold.unlock();
    for (Draft &draft : drafts) discard(draft);
    for (const Job &job : cancelled) {
        ledger_.end(job.batch->epoch, 0, 0, job.size());
        tell_if_last(context_, job);
        for (size_t i = 0; i < job.size(); i++)
            complete(context_, job, job.index(i), result(UCM_CANCELLED));
        end_job(context_, job);
    }
    hold.lock();
    for (const auto &[id, runs] : running) {
        for (;;) {
            const auto found = blocks_.find(id);
            if (found == blocks_.end() || !found->second.running || found->second.runs != runs)
                break;
            const int64_t left = deadline_ns ? deadline_ns - monotonic_ns() : 1000000000;
            if (left <= 0) return false;
            ended_.wait_for(hold, std::chrono::nanoseconds(std::min<int64_t>(left, 1000000000)));
        }
    }
    return true;
}

int64_t Dumper::abandon_idle() {
    const int64_t now = monotonic_ns();
    for (;;) {
        Draft draft;
        BlockId id;
        {
            std::lock_guard<std::mutex> hold(mutex_);
            if (resting_.empty()) return now + limits_.idle_ns;
            id = resting_.front();
            Block &block = blocks_.at(id);
            const int64_t due = block.draft.rests_since_ns + limits_.idle_ns;
            if (due > now) return due;
            wake(block);
            std::swap(draft, block.draft);
            blocks_.erase(id);
        }
        abandon(id, draft, "no shard came for a long time");
    }
}

void Dumper::abandon_excess() {
    for (;;) {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            if (resting_.size() <= limits_.blocks && resting_bytes_ <= limits_.bytes) return;
            if (resting_.size() < 2) return;
        }
        abandon_oldest("too many blocks are unfinished");
    }
}

// False: none rests.
bool Dumper::abandon_oldest(const char *why) {
    Draft draft;
    BlockId id;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (resting_.empty()) return false;
        id = resting_.front();
        Block &block = blocks_.at(id);
        wake(block);
        std::swap(draft, block.draft);
        blocks_.erase(id);
    }
    abandon(id, draft, why);
    return true;
}

void Dumper::abandon_all() {
    for (auto &[id, block] : blocks_)
        if (block.draft.begun()) abandon(id, block.draft, "the store is closing");
    blocks_.clear();
    resting_.clear();
}

}  // namespace ucm::files
