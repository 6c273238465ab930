// SPDX-License-Identifier: MIT
#include "dumper.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>

#include "failpoint.h"

namespace ucm::posix {

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

void Dumper::work(Scratch &scratch) {
    BlockId id;
    while (ready_.pop(id)) {
        Job job;
        Block *block;
        {
            std::lock_guard<std::mutex> hold(mutex_);
            block = &blocks_.at(id);
            if (block->waiting.empty()) {  // dropped
                block->scheduled = false;
                rest(id, *block);
                continue;
            }
            job = std::move(block->waiting.front());
            block->waiting.pop_front();
            block->running = true;
        }
        run(*block, job, scratch);
        while (!end_run(id, *block)) {
        }
        end_job(context_, job);
        abandon_excess();
    }
}

// False: the block was dropped meanwhile. It still counts as running while its file is deleted, so
// that it is gone when remove returns.
bool Dumper::end_run(const BlockId &id, Block &block) {
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

void Dumper::run(Block &block, Job &job, Scratch &scratch) {
    Busy busy(context_.metrics, kDumpBusyNs);
    Run run(job, block, scratch);
    std::vector<size_t> all(job.size());
    for (size_t i = 0; i < all.size(); i++) all[i] = i;
    try {
        if (const ucm_status status = refused(run); status != UCM_OK)
            fail(run, all, status, 0);
        else
            decide(run);
    } catch (const Error &e) {
        context_.log.write(UCM_LOG_ERROR, "dump of block %s: %s", run.id.hex().c_str(), e.what());
        fail(run, all, e.status(), e.os_errno());
    } catch (const std::exception &e) {
        context_.log.write(UCM_LOG_ERROR, "dump of block %s: %s", run.id.hex().c_str(), e.what());
        fail(run, all, UCM_UNAVAILABLE, ENOMEM);
    }
    answer(run);
}

void Dumper::decide(Run &run) {
    Draft &draft = run.block.draft;
    Directory &directory = *context_.directories.of(run.id);
    if (!draft.begun() && !begin(run, directory)) return;
    if (run.job.task().replace()) draft.replace = true;
    choose(run);
    if (run.fresh.empty()) return;
    File file(directory, run.scratch);
    if (const int error = open_temporary(run, file); error != 0)
        return fail(run, run.fresh, status_of_errno(error), error);
    write_fresh(run, file);
    settle(run, file);
}

// False: the block is published, nothing is to be done.
bool Dumper::begin(Run &run, Directory &directory) {
    BlockState state = BlockState::kAbsent;
    if (!run.job.task().replace()) {
        OpenBlock published(directory, run.scratch);
        state = open_block(context_, directory, run.id, run.scratch, published);
    }
    if (state == BlockState::kFits) {
        for (ucm_result &one : run.results) one = result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
        return false;
    }
    if (!run.job.task().replace() && state == BlockState::kAbsent && !admits(run, directory)) {
        for (ucm_result &one : run.results) one = result(UCM_OK, 0, 0, UCM_RESULT_DECLINED);
        return false;
    }
    run.block.draft = empty_draft(directory, state != BlockState::kAbsent);
    return true;
}

bool Dumper::admits(const Run &run, Directory &directory) {
    const uint32_t count = context_.shape.shard_count;
    std::vector<uint32_t> shards;
    for (size_t i = 0; i < run.job.size(); i++)
        shards.push_back(run.job.task().shard(run.job.index(i)));
    if (directory.admits(run.id, shards, count)) return true;
    if (std::find(shards.begin(), shards.end(), 0u) != shards.end())
        context_.metrics.add(kDeclinedBlocks, 1);
    return false;
}

Draft Dumper::empty_draft(Directory &directory, bool replace) const {
    Draft draft;
    draft.directory = &directory;
    draft.replace = replace;
    draft.have.assign(context_.shape.shard_count, false);
    draft.table.resize(context_.shape.shard_count);
    draft.end = block_header_bytes(context_.shape.shard_count);
    return draft;
}

// Sorts the shards of the job into new ones, those that are there, and twins of new ones.
void Dumper::choose(Run &run) {
    const Draft &draft = run.block.draft;
    const Task &task = run.job.task();
    std::unordered_map<uint32_t, size_t> first;
    for (size_t i = 0; i < run.results.size(); i++) {
        if (run.results[i].status != UCM_PENDING) continue;
        const uint32_t shard = task.shard(run.job.index(i));
        if (draft.have[shard]) {
            run.results[i] = result(UCM_OK);
            continue;
        }
        const auto [found, inserted] = first.emplace(shard, i);
        if (inserted)
            run.fresh.push_back(i);
        else
            run.twins.emplace_back(i, found->second);
    }
}

int Dumper::open_temporary(Run &run, File &file) {
    Draft &draft = run.block.draft;
    if (!draft.begun()) return make_temporary(run, file);
    const int error = file.open(draft.temporary, O_WRONLY);
    if (status_of_errno(error, UCM_NOT_FOUND) != UCM_NOT_FOUND) return error;
    // Somebody deleted it: the block starts again, with this job.
    Draft again = empty_draft(*draft.directory, draft.replace);
    abandon(run.id, draft, "its temporary file is gone");
    draft = std::move(again);
    for (ucm_result &one : run.results) one = result(UCM_PENDING);
    run.fresh.clear();
    run.twins.clear();
    choose(run);
    return make_temporary(run, file);
}

int Dumper::make_temporary(Run &run, File &file) {
    Draft &draft = run.block.draft;
    for (int turn = 0;; turn++) {
        const std::string path = draft.directory->temporary(run.id);
        const int error = file.create(path);
        if (error == 0) {
            draft.temporary = path;
            UCM_FAILPOINT("posix.temporary_made");
            context_.metrics.add(kUnfinishedBlocks, 1);
            return 0;
        }
        if (turn > 0 || status_of_errno(error, UCM_NOT_FOUND) != UCM_NOT_FOUND) return error;
        draft.directory->renew_writer();
    }
}

ucm_status Dumper::refused(const Run &run) const {
    return run.block.dropped.load() ? UCM_CANCELLED : run.job.task().refused();
}

void Dumper::fail(Run &run, const std::vector<size_t> &which, ucm_status status, int error) {
    for (size_t i : which) run.results[i] = result(status, 0, error);
}

std::vector<Placed> Dumper::next_run(Run &run, const File &file, size_t from,
                                     std::vector<size_t> &which) {
    const Task &task = run.job.task();
    std::vector<Placed> placed;
    uint64_t end = run.block.draft.end, bytes = 0;
    bool bounces = false;
    which.clear();
    for (size_t k = from; k < run.fresh.size() && placed.size() < kRunShards; k++) {
        const size_t index = run.job.index(run.fresh[k]);
        Placed shard{index, {}, task.addresses(index)};
        shard.entry.length = task.length(index);
        shard.entry.raw_length = task.raw_length(index);
        const bool empty = shard.entry.length == 0, mode = file.bounces(context_.rows, shard);
        if (!placed.empty() && (empty || placed.front().bytes() == 0 || mode != bounces ||
                                bytes + shard.bytes() > kRunBytes))
            break;
        bounces = mode;
        shard.entry.offset = empty ? 0 : end;
        shard.entry.checksum = context_.rows.checksum(run.scratch.pieces, run.id, task.shard(index),
                                                      shard.addresses, shard.entry.length);
        end += shard.bytes();
        bytes += shard.bytes();
        placed.push_back(shard);
        which.push_back(run.fresh[k]);
    }
    return placed;
}

void Dumper::write_fresh(Run &run, File &file) {
    Draft &draft = run.block.draft;
    const Task &task = run.job.task();
    std::vector<size_t> which;
    for (size_t from = 0; from < run.fresh.size();) {
        if (const ucm_status status = refused(run); status != UCM_OK) {
            for (; from < run.fresh.size(); from++) run.results[run.fresh[from]] = result(status);
            break;
        }
        std::vector<Placed> placed = next_run(run, file, from, which);
        if (const int error = reserve(run, placed); error != 0) {
            for (; from < run.fresh.size(); from++)
                run.results[run.fresh[from]] = result(status_of_errno(error), 0, error);
            break;
        }
        uint64_t moved = 0;
        const int error = placed[0].bytes() > 0 ? file.write_run(context_.rows, placed, &moved) : 0;
        UCM_FAILPOINT("posix.payload_written");
        context_.metrics.add(kDumpOutBytes, moved);
        draft.directory->wrote(moved);
        if (error == ENOSPC) draft.directory->was_full();
        for (size_t k = 0; k < placed.size(); k++) {
            if (error != 0 && moved < placed[k].bytes()) {
                // It fails alone: the next ones are tried at its place.
                run.results[which[k]] = result(status_of_errno(error), 0, error);
                draft.ragged = true;
                from++;
                break;
            }
            moved -= placed[k].bytes();
            const uint32_t shard = task.shard(placed[k].index);
            draft.have[shard] = true;
            draft.table[shard] = placed[k].entry;
            draft.stored++;
            draft.end += placed[k].bytes();
            if (draft.depth == kUnknownDepth) draft.depth = task.depth(placed[k].index);
            run.written.push_back(which[k]);
            from++;
        }
    }
}

// Room for a run, and for the header before it.
int Dumper::reserve(Run &run, const std::vector<Placed> &placed) {
    Draft &draft = run.block.draft;
    uint64_t end = draft.end;
    for (const Placed &shard : placed) end += shard.bytes();
    if (end <= draft.reserved) return 0;
    const int error = draft.directory->reserve(end - draft.reserved, run.job.task().deadline_ns());
    if (error == 0) draft.reserved = end;
    return error;
}

// After the writing: the block is published, or put aside, or given up.
void Dumper::settle(Run &run, File &file) {
    Draft &draft = run.block.draft;
    if (draft.stored == draft.have.size()) return finish(run, file);
    if (draft.ragged) draft.ragged = file.cut(draft.end) != 0;
    if (const int error = file.close(); error != 0) {
        // A network file system tells only now, and not which of the writes failed.
        const Task &task = run.job.task();
        fail(run, run.written, status_of_errno(error), error);
        for (size_t i : run.written) {
            const size_t index = run.job.index(i);
            draft.have[task.shard(index)] = false;
            draft.stored--;
            draft.end -= round_up(task.length(index));
        }
        draft.ragged = true;
        run.written.clear();
    }
    for (size_t i : run.written) run.results[i] = result(UCM_OK);
    if (draft.stored == 0) discard(draft);
}

// All shards are there.
void Dumper::finish(Run &run, File &file) {
    Draft &draft = run.block.draft;
    if (run.block.dropped.load()) {
        fail(run, run.written, UCM_CANCELLED, 0);
        return discard(draft);
    }
    if (const int error = publish(run, file); error != 0) {
        if (error == ENOSPC) draft.directory->was_full();
        fail(run, run.written, status_of_errno(error), error);
        run.abandoned = true;
        return abandon(run.id, draft, ("it cannot be published: " + errno_text(error)).c_str());
    }
    for (size_t i : run.written) run.results[i] = result(UCM_OK);
    for (ucm_result &one : run.results)
        if (one.status == UCM_OK) one.flags |= UCM_RESULT_PUBLISHED;
    discard(draft);
}

int Dumper::publish(Run &run, File &file) {
    Draft &draft = run.block.draft;
    BlockHeader header;
    header.id = run.id;
    header.file_bytes = draft.end;
    header.raw_capacity = context_.shape.raw_capacity;
    header.encoding = context_.shape.encoding;
    header.published_ns = uint64_t(clock_ns(CLOCK_REALTIME));
    header.depth = draft.depth;
    header.space = context_.shape.space;
    header.table = draft.table;
    const uint64_t bytes = block_header_bytes(context_.shape.shard_count);
    encode_block_header(header, run.scratch.header.base());
    struct stat mine{};
    UCM_FAILPOINT("posix.before_header");
    int error = file.write(run.scratch.header.base(), bytes, 0);
    UCM_FAILPOINT("posix.header_written");
    if (error == 0 && draft.ragged) error = file.cut(draft.end);
    if (error == 0) error = file.stat(mine);
    if (error == 0) draft.directory->stamp_new(file.fd());
    // A network file system may tell only now that there was no room.
    const int at_close = file.close();
    if (error == 0) error = at_close;
    if (error == 0) error = put_in_place(run, mine);
    if (error == 0) context_.metrics.add(kDumpOutBytes, bytes);
    return error;
}

int Dumper::put_in_place(Run &run, const struct stat &mine) {
    Draft &draft = run.block.draft;
    Directory &directory = *draft.directory;
    const std::string name = directory.block_path(run.id);
    for (int turn = 0;; turn++) {
        UCM_FAILPOINT("posix.before_publish");
        const int failed = draft.replace ? ::rename(draft.temporary.c_str(), name.c_str())
                                         : ::link(draft.temporary.c_str(), name.c_str());
        int error = failed ? errno : 0;
        struct stat there{};
        // A network file system may repeat a request that has succeeded.
        if (error != 0 && ::stat(name.c_str(), &there) == 0 && there.st_ino == mine.st_ino &&
            there.st_dev == mine.st_dev)
            error = 0;
        if (error == 0) {
            UCM_FAILPOINT("posix.published");
            context_.metrics.add(kPublishedBlocks, 1);
            draft.published_bytes = file_bytes(mine);
            return 0;
        }
        if (turn == 4) return error;
        if (error == ENOENT) {
            if (const int made = directory.make_block_folder(run.id); made != 0) return made;
        } else if (error == EEXIST) {
            OpenBlock other(directory, run.scratch);
            const BlockState state = open_block(context_, directory, run.id, run.scratch, other);
            if (state == BlockState::kFits) return 0;  // another writer was first
            draft.replace = state != BlockState::kAbsent;
        } else {
            return error;
        }
    }
}

void Dumper::answer(Run &run) {
    for (const auto &[twin, first] : run.twins) run.results[twin] = run.results[first];
    uint64_t good = 0;
    for (const ucm_result &one : run.results)
        good += one.status == UCM_OK && !(one.flags & UCM_RESULT_DECLINED);
    ledger_.end(run.job.batch->epoch, good, 0, run.results.size() - good);
    if (run.block.draft.begun()) {
        run.block.draft.answered += good;
        unfinished_ += good;
    }
    if (run.abandoned) ledger_.lose_stored(good);
    for (size_t i = 0; i < run.results.size(); i++)
        complete(context_, run.job, run.job.index(i), run.results[i]);
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

// The temporary file goes; a published block stays.
void Dumper::discard(Draft &draft) {
    if (draft.begun()) {
        UCM_FAILPOINT("posix.before_discard");
        // What cannot be deleted goes on counting.
        if (::unlink(draft.temporary.c_str()) == 0 || errno == ENOENT)
            draft.directory->settle(draft.reserved, draft.published_bytes);
        unfinished_ -= draft.answered;
        context_.metrics.add(kUnfinishedBlocks, uint64_t(-1));
    }
    draft = Draft{};
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
        Draft draft;
        BlockId id;
        {
            std::lock_guard<std::mutex> hold(mutex_);
            if (resting_.size() <= limits_.blocks && resting_bytes_ <= limits_.bytes) return;
            if (resting_.size() < 2) return;
            id = resting_.front();
            Block &block = blocks_.at(id);
            wake(block);
            std::swap(draft, block.draft);
            blocks_.erase(id);
        }
        abandon(id, draft, "too many blocks are unfinished");
    }
}

void Dumper::abandon_all() {
    for (auto &[id, block] : blocks_)
        if (block.draft.begun()) abandon(id, block.draft, "the store is closing");
    blocks_.clear();
    resting_.clear();
}

}  // namespace ucm::posix
