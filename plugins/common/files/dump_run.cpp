// SPDX-License-Identifier: MIT
#include "dump_run.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include <algorithm>

#include "failpoint.h"

namespace ucm::files {
namespace {

// 0 or an errno; a first copy does not take the place of another.
int name_it(const std::string &from, const std::string &to, bool replace) {
    if (::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), replace ? 0 : RENAME_NOREPLACE) ==
        0)
        return 0;
    if (replace || (errno != EINVAL && errno != ENOSYS)) return errno;
    if (::link(from.c_str(), to.c_str()) != 0) return errno;
    ::unlink(from.c_str());
    return 0;
}

}  // namespace

bool DumpRun::begin(BlockId &id) {
    Busy busy(context_.metrics, kDumpBusyNs);
    return take(id) && guarded([this] { return start(); });
}

// False: it was dropped.
bool DumpRun::take(const BlockId &id) {
    block_ = dumper_.take(id, job_);
    if (!block_) return false;
    id_ = id;
    results_.assign(job_.size(), result(UCM_PENDING));
    fresh_.clear();
    twins_.clear();
    written_.clear();
    from_ = 0;
    sealed_ = abandoned_ = ending_ = false;
    return true;
}

void DumpRun::refuse(BlockId &id) {
    if (!take(id)) return;
    for (ucm_result &one : results_) one = result(UCM_UNAVAILABLE);
    end();
}

bool DumpRun::resume() {
    Busy busy(context_.metrics, kDumpBusyNs);
    return guarded([this] {
        if (stage_ == Stage::kSync) return publish(io_.result < 0 ? int(-io_.result) : 0);
        file_->took(io_);
        // What was given up may still be written: into this file, which so can be no block.
        if (file_->error() == ETIME)
            return break_off(UCM_TIMEOUT, ETIME, "a write was not finished in time");
        if (file_->next(io_)) return true;
        if (stage_ == Stage::kHeader) return after_header();
        took_payload();
        return next_payload();
    });
}

template <typename Step>
bool DumpRun::guarded(Step step) {
    try {
        return step();
    } catch (const Error &e) {
        if (ending_) throw;
        return break_off(e.status(), e.os_errno(), e.what());
    } catch (const std::exception &e) {
        if (ending_) throw;
        return break_off(UCM_UNAVAILABLE, ENOMEM, e.what());
    }
}

bool DumpRun::break_off(ucm_status status, int error, const char *why) {
    context_.log.write(UCM_LOG_ERROR, "dump of block %s: %s", id_.hex().c_str(), why);
    for (ucm_result &one : results_) one = result(status, 0, error);
    abandoned_ = block_->draft.begun();
    if (abandoned_)
        dumper_.abandon(id_, block_->draft, why);
    else
        dumper_.discard(block_->draft);
    return end();
}

bool DumpRun::start() {
    if (const ucm_status status = refused(); status != UCM_OK) {
        for (ucm_result &one : results_) one = result(status);
        return end();
    }
    Draft &draft = block_->draft;
    Directory &directory = *context_.directories.of(id_);
    if (!draft.begun() && !begin_draft(directory)) return end();
    if (job_.task().replace()) draft.replace = true;
    choose();
    if (fresh_.empty()) return end();
    file_.emplace(directory, scratch_);
    if (const int error = open_temporary(); error != 0) {
        context_.log.write(UCM_LOG_WARN, "cannot write block %s in %s: %s", id_.hex().c_str(),
                           directory.path().c_str(), errno_text(error).c_str());
        fail(fresh_, status_of_errno(error), error);
        return end();
    }
    return next_payload();
}

// False: the block is published, nothing is to be done.
bool DumpRun::begin_draft(Directory &directory) {
    BlockState state = BlockState::kAbsent;
    if (!job_.task().replace()) {
        OpenBlock published(directory, scratch_);
        state = open_block(context_, directory, id_, scratch_, published);
        if (state == BlockState::kFits) {
            const int error = make_lasting(published);
            for (ucm_result &one : results_)
                one = error == 0 ? result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED)
                                 : result(status_of_errno(error), 0, error);
            directory.published(id_, false);
            return false;
        }
        if (published.error == ETIME) {
            for (ucm_result &one : results_) one = result(UCM_TIMEOUT, 0, ETIME);
            return false;
        }
    }
    if (!job_.task().replace() && state == BlockState::kAbsent && !admitted(directory)) {
        for (ucm_result &one : results_) one = result(UCM_OK, 0, 0, UCM_RESULT_DECLINED);
        return false;
    }
    block_->draft = Draft(directory, context_.shape.shard_count, state != BlockState::kAbsent);
    return true;
}

bool DumpRun::admitted(Directory &directory) {
    std::vector<uint32_t> shards;
    for (size_t i = 0; i < job_.size(); i++) shards.push_back(job_.task().shard(job_.index(i)));
    if (directory.admits(id_, shards, context_.shape.shard_count)) return true;
    // Of the jobs of a block one has the first shard.
    if (std::find(shards.begin(), shards.end(), 0u) != shards.end())
        context_.metrics.add(kDeclinedBlocks, 1);
    return false;
}

// Sorts the shards of the job into new ones, those that are there, and twins of new ones.
void DumpRun::choose() {
    const Draft &draft = block_->draft;
    const Task &task = job_.task();
    std::unordered_map<uint32_t, size_t> first;
    for (size_t i = 0; i < results_.size(); i++) {
        if (results_[i].status != UCM_PENDING) continue;
        const uint32_t shard = task.shard(job_.index(i));
        if (draft.have[shard]) {
            results_[i] = result(UCM_OK);
            continue;
        }
        const auto [found, inserted] = first.emplace(shard, i);
        if (inserted)
            fresh_.push_back(i);
        else
            twins_.emplace_back(i, found->second);
    }
}

int DumpRun::open_temporary() {
    Draft &draft = block_->draft;
    if (!draft.begun()) return make_temporary();
    const int error = file_->open(draft.temporary, O_WRONLY);
    if (status_of_errno(error, UCM_NOT_FOUND) != UCM_NOT_FOUND) return error;
    // Somebody deleted it: the block starts again, with this job.
    Draft again(*draft.directory, context_.shape.shard_count, draft.replace);
    dumper_.abandon(id_, draft, "its temporary file is gone");
    draft = std::move(again);
    for (ucm_result &one : results_) one = result(UCM_PENDING);
    fresh_.clear();
    twins_.clear();
    choose();
    return make_temporary();
}

int DumpRun::make_temporary() {
    Draft &draft = block_->draft;
    for (int turn = 0;; turn++) {
        const std::string path = draft.directory->temporary(id_);
        const int error = file_->create(path);
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

ucm_status DumpRun::refused() const {
    return block_->dropped.load() ? UCM_CANCELLED : job_.task().refused();
}

void DumpRun::fail(const std::vector<size_t> &which, ucm_status status, int error) {
    for (size_t i : which) results_[i] = result(status, 0, error);
}

// True: a run is on its way.
bool DumpRun::next_payload() {
    while (from_ < fresh_.size()) {
        ucm_status status = refused();
        int error = 0;
        if (status == UCM_OK) {
            next_run();
            error = reserve();
            if (error != 0) status = status_of_errno(error);
            if (error != 0 && refused() == UCM_CANCELLED) {
                status = UCM_CANCELLED;
                error = 0;
            }
        }
        if (status != UCM_OK) {
            for (; from_ < fresh_.size(); from_++)
                results_[fresh_[from_]] = result(status, 0, error);
            break;
        }
        sealed_ = whole_in_run() && File::at_once(run_);
        const uint64_t header = sealed_ ? block_header_bytes(context_.shape.shard_count) : 0;
        stage_ = Stage::kPayload;
        file_->prepare_write(context_.rows, id_, run_, header);
        if (sealed_) encode_header();  // it has the checksums
        if (file_->next(io_)) return true;
        took_payload();
    }
    return settle();
}

void DumpRun::next_run() {
    const Task &task = job_.task();
    uint64_t end = block_->draft.end, bytes = 0;
    run_.clear();
    which_.clear();
    for (size_t k = from_; k < fresh_.size() && run_.size() < kRunShards; k++) {
        const size_t index = job_.index(fresh_[k]);
        Placed shard{index, task.shard(index), {}, task.addresses(index)};
        shard.entry.length = task.length(index);
        shard.entry.raw_length = task.raw_length(index);
        const bool empty = shard.entry.length == 0;
        shard.buffered = file_->buffered(context_.rows, shard);
        if (!run_.empty() &&
            (empty || run_.front().bytes() == 0 || shard.buffered != run_.front().buffered ||
             bytes + shard.bytes() > kRunBytes))
            break;
        shard.entry.offset = empty ? 0 : end;
        end += shard.bytes();
        bytes += shard.bytes();
        run_.push_back(shard);
        which_.push_back(fresh_[k]);
    }
}

// Then header and payload are one request.
bool DumpRun::whole_in_run() const {
    const Draft &draft = block_->draft;
    return draft.stored == 0 && !draft.ragged && run_.size() == draft.have.size() &&
           run_.front().bytes() > 0;
}

int DumpRun::reserve() {
    Draft &draft = block_->draft;
    uint64_t need = draft.end;
    for (const Placed &shard : run_) need += shard.bytes();
    if (need <= draft.reserved) return 0;
    // Blocks in the making must not crowd out those that are made.
    const uint64_t whole = whole_block_bytes(context_.shape.shard_count, context_.shape.capacity);
    if (draft.reserved == 0 && !whole_in_run() && !dumper_.claim(draft, whole)) return EDQUOT;
    // Those behind it, whose deadline is about the same, are to be told the same and not TIMEOUT.
    const int64_t deadline_ns = job_.task().deadline_ns();
    const int64_t left_ns = deadline_ns - job_.batch->start_ns;
    const int error = draft.directory->reserve(need - draft.reserved,
                                               deadline_ns ? deadline_ns - left_ns / 10 : 0,
                                               [this] { return refused() != UCM_OK; });
    if (error == 0) draft.reserved = need;
    return error;
}

void DumpRun::was_full() {
    block_->draft.directory->was_full();
    context_.medium.full();
}

void DumpRun::took_payload() {
    Draft &draft = block_->draft;
    const Task &task = job_.task();
    const int error = file_->error();
    const uint64_t header = sealed_ ? block_header_bytes(context_.shape.shard_count) : 0;
    uint64_t moved = std::max(file_->moved(), header) - header;
    UCM_FAILPOINT("posix.payload_written");
    context_.metrics.add(kDumpOutBytes, moved);
    draft.directory->wrote(moved);
    if (error != 0) {
        sealed_ = false;
        context_.log.write(UCM_LOG_WARN, "cannot write %s: %s", draft.temporary.c_str(),
                           errno_text(error).c_str());
    }
    if (status_of_errno(error) == UCM_NO_SPACE) was_full();
    for (size_t k = 0; k < run_.size(); k++) {
        if (error != 0 && moved < run_[k].bytes()) {
            // It fails alone: the next ones are tried at its place.
            results_[which_[k]] = result(status_of_errno(error), 0, error);
            draft.ragged = true;
            from_++;
            break;
        }
        moved -= run_[k].bytes();
        const uint32_t shard = run_[k].shard;
        draft.have[shard] = true;
        draft.table[shard] = run_[k].entry;
        draft.stored++;
        draft.end += run_[k].bytes();
        if (draft.depth == kUnknownDepth) draft.depth = task.depth(run_[k].index);
        written_.push_back(which_[k]);
        from_++;
    }
}

// After the writing: the block is published, or put aside, or given up.
bool DumpRun::settle() {
    Draft &draft = block_->draft;
    if (draft.stored < draft.have.size()) return put_aside();
    if (block_->dropped.load()) {
        fail(written_, UCM_CANCELLED, 0);
        dumper_.discard(draft);
        return end();
    }
    if (sealed_) return sync();
    encode_header();
    UCM_FAILPOINT("posix.before_header");
    stage_ = Stage::kHeader;
    run_.clear();
    file_->prepare_write(context_.rows, id_, run_, block_header_bytes(context_.shape.shard_count));
    return file_->next(io_);
}

bool DumpRun::put_aside() {
    Draft &draft = block_->draft;
    if (draft.ragged) draft.ragged = file_->cut(draft.end) != 0;
    if (const int error = file_->close(); error != 0) {
        // A network file system tells only now, and not which of the writes failed.
        const Task &task = job_.task();
        fail(written_, status_of_errno(error), error);
        for (size_t i : written_) {
            const size_t index = job_.index(i);
            draft.have[task.shard(index)] = false;
            draft.stored--;
            draft.end -= round_up(task.length(index));
        }
        draft.ragged = true;
        written_.clear();
    }
    for (size_t i : written_) results_[i] = result(UCM_OK);
    if (draft.stored == 0) dumper_.discard(draft);
    return end();
}

// Of the draft, or of what it will be with the run.
void DumpRun::encode_header() {
    const Draft &draft = block_->draft;
    const Task &task = job_.task();
    BlockHeader header;
    header.id = id_;
    header.file_bytes = draft.end;
    header.raw_capacity = context_.shape.raw_capacity;
    header.encoding = context_.shape.encoding;
    header.published_ns = uint64_t(clock_ns(CLOCK_REALTIME));
    header.depth = draft.depth;
    header.space = context_.shape.space;
    header.table = draft.table;
    if (sealed_) {
        for (const Placed &shard : run_) {
            header.table[shard.shard] = shard.entry;
            header.file_bytes += shard.bytes();
            if (header.depth == kUnknownDepth) header.depth = task.depth(shard.index);
        }
    }
    encode_block_header(header, scratch_.header());
}

bool DumpRun::after_header() {
    UCM_FAILPOINT("posix.header_written");
    if (file_->error() != 0) return publish(file_->error());
    return sync();
}

bool DumpRun::sync() {
    Draft &draft = block_->draft;
    context_.metrics.add(kDumpOutBytes, block_header_bytes(context_.shape.shard_count));
    if (draft.ragged)
        if (const int error = file_->cut(draft.end); error != 0) return publish(error);
    if (context_.durability == Durability::kNone && !context_.medium.sizes_lag()) return publish(0);
    stage_ = Stage::kSync;
    io_.way = Io::Way::kSync;
    io_.fd = file_->fd();
    return true;
}

bool DumpRun::publish(int error) {
    Draft &draft = block_->draft;
    struct stat mine{};
    if (error == 0) error = file_->stat(mine);
    if (error == 0) draft.directory->stamp_new(file_->fd());
    // A network file system may tell only now that there was no room.
    const int at_close = file_->close();
    if (error == 0) error = at_close;
    if (error == 0) error = put_in_place(mine);
    if (error != 0) {
        if (status_of_errno(error) == UCM_NO_SPACE) was_full();
        fail(written_, status_of_errno(error), error);
        abandoned_ = true;
        dumper_.abandon(id_, draft,
                        ("it cannot be published as " + draft.directory->block_path(id_) + ": " +
                         errno_text(error))
                            .c_str());
        return end();
    }
    for (size_t i : written_) results_[i] = result(UCM_OK);
    for (ucm_result &one : results_)
        if (one.status == UCM_OK) one.flags |= UCM_RESULT_PUBLISHED;
    dumper_.discard(draft);
    return end();
}

int DumpRun::put_in_place(const struct stat &mine) {
    Draft &draft = block_->draft;
    Directory &directory = *draft.directory;
    const std::string name = directory.block_path(id_);
    for (int turn = 0;; turn++) {
        UCM_FAILPOINT("posix.before_publish");
        int error = name_it(draft.temporary, name, draft.replace);
        struct stat there{};
        // A network file system may repeat a request that has succeeded.
        if (error != 0 && ::stat(name.c_str(), &there) == 0 && there.st_ino == mine.st_ino &&
            there.st_dev == mine.st_dev)
            error = 0;
        if (error == 0) {
            UCM_FAILPOINT("posix.published");
            directory.settle(draft.reserved, file_bytes(mine));
            if (draft.replace) context_.medium.deleted(name);
            if (draft.replace) directory.shrank();
            draft.reserved = 0;
            draft.in_place = true;
            directory.published(id_);
            context_.metrics.add(kPublishedBlocks, 1);
            return context_.durability == Durability::kFull ? directory.sync_block(id_) : 0;
        }
        if (turn == 4) return error;
        if (error == ENOENT) {
            if (const int made = directory.make_block_folder(id_); made != 0) return made;
        } else if (error == EEXIST) {
            OpenBlock other(directory, scratch_);
            const BlockState state = open_block(context_, directory, id_, scratch_, other);
            if (state == BlockState::kFits) {  // another writer was first
                directory.published(id_, false);
                return make_lasting(other);
            }
            draft.replace = state != BlockState::kAbsent;
        } else {
            return error;
        }
    }
}

// Whoever wrote it may have promised less.
int DumpRun::make_lasting(OpenBlock &block) {
    if (context_.durability == Durability::kNone) return 0;
    if (::fdatasync(block.file.fd()) != 0) return errno;
    return context_.durability == Durability::kFull ? context_.directories.of(id_)->sync_block(id_)
                                                    : 0;
}

// False, for those who end the job with it.
bool DumpRun::end() {
    ending_ = true;
    for (const auto &[twin, first] : twins_) results_[twin] = results_[first];
    uint64_t good = 0;
    for (const ucm_result &one : results_)
        good += one.status == UCM_OK && !(one.flags & UCM_RESULT_DECLINED);
    // Whoever waits for the end of these shards finds the rest counted.
    dumper_.count_answered(block_->draft, good);
    if (abandoned_) ledger_.lose_stored(good);
    ledger_.end(job_.batch->epoch, good, 0, results_.size() - good);
    file_.reset();
    tell_if_last(context_, job_);
    for (size_t i = 0; i < results_.size(); i++)
        complete(context_, job_, job_.index(i), results_[i]);
    dumper_.end_run(id_, *block_);
    end_job(context_, job_);
    job_ = Job{};
    return false;
}

}  // namespace ucm::files
