// SPDX-License-Identifier: MIT
#include "loader.h"

#include <fcntl.h>

#include <algorithm>

#include "failpoint.h"

namespace ucm::files {
bool Loader::begin(Job &job) {
    Busy busy(context_.metrics, kLoadBusyNs);
    take(job);
    return guarded([this] { return start(); });
}

void Loader::take(Job &job) {
    job_ = std::move(job);
    task_ = &job_.task();
    id_ = job_.id();
    served_ = false;
    told_.assign(job_.size(), false);
}

void Loader::refuse(Job &job) {
    take(job);
    fail_all(UCM_UNAVAILABLE);
}

bool Loader::resume() {
    Busy busy(context_.metrics, kLoadBusyNs);
    return guarded([this] { return go_on(); });
}

template <typename Step>
bool Loader::guarded(Step step) {
    try {
        return step();
    } catch (const std::exception &e) {
        context_.log.write(UCM_LOG_ERROR, "load of block %s: %s", id_.hex().c_str(), e.what());
        return fail_all(UCM_UNAVAILABLE, ENOMEM);
    }
}

bool Loader::start() {
    directory_ = context_.directories.of(id_);
    if (const ucm_status refused = task_->refused(); refused != UCM_OK) return fail_all(refused);
    if (!directory_) return fail_all(UCM_NOT_FOUND);
    block_.emplace(*directory_, scratch_);
    const BlockState state = open_file(*directory_, id_, *block_);
    if (state != BlockState::kFits) return end(state);
    guess();
    stage_ = Stage::kHeader;
    const uint64_t expected = block_header_bytes(context_.shape.shard_count);
    const uint64_t header = round_up(std::min(expected, block_->bytes(context_)));
    block_->file.prepare_read(context_.rows, id_, run_, header);
    if (block_->file.next(io_)) return true;
    return after_header();
}

// Most blocks were written whole: shard after shard, each as long as it can be, or, alone in its
// file, as long as the file says. Then header and payload come with one request.
void Loader::guess() {
    run_.clear();
    const uint64_t header = block_header_bytes(context_.shape.shard_count);
    const uint64_t whole = round_up(context_.shape.capacity), size = uint64_t(block_->st.st_size);
    const bool full = size == header + context_.shape.shard_count * whole;
    // Memory that takes whole pages only is served at once if the shard fills them.
    const bool alone = context_.shape.shard_count == 1 && !(full && scratch_.fenced);
    guessed_ = false;
    if (job_.size() > kRunShards || size <= header || size % UCM_ALIGNMENT) return;
    if (alone ? size - header > std::min(whole, kRunBytes)
              : !full || job_.size() * whole > kRunBytes)
        return;
    for (size_t i = 0; i < job_.size(); i++) {
        const size_t index = job_.index(i);
        if (task_->shard(index) != i) break;
        Placed shard{index, task_->shard(index), {}, task_->addresses(index)};
        shard.entry.offset = header + i * whole;
        // Alone, all but its last page is sure to be its own.
        shard.entry.length = alone ? size - header - UCM_ALIGNMENT + 1 : context_.shape.capacity;
        shard.buffered = block_->file.buffered(context_.rows, shard);
        if (i > 0 && shard.buffered != run_.front().buffered) break;
        run_.push_back(shard);
    }
    guessed_ = run_.size() == job_.size() && !run_.empty();
    if (!guessed_) run_.clear();
}

bool Loader::go_on() {
    block_->file.took(io_);
    if (block_->file.next(io_)) return true;
    if (stage_ == Stage::kHeader) return after_header();
    after_run();
    return start_run();
}

bool Loader::after_header() {
    OpenBlock &block = *block_;
    uint64_t need = 0;
    HeaderState header = HeaderState::kMore;
    const uint64_t expected = block_header_bytes(context_.shape.shard_count);
    const bool got = block.file.moved() >= expected;
    if (got)
        header = decode_block_header(scratch_.header(), expected, block.bytes(context_), id_,
                                     block.header, &need);
    BlockState state = BlockState::kFits;
    if (header != HeaderState::kSound || !context_.shape.fits(block.header)) {
        guessed_ = false;
        state = judge_block(context_, id_, scratch_, block);
    }
    if (state != BlockState::kFits) return end(state);
    context_.metrics.add(kLoadInBytes, expected);
    if (guessed_ && block.file.error() == 0 && guessed_right()) {
        next_ = all_.size();
        after_run();
        return start_run();
    }
    place();
    return start_run();
}

// Also sets what the header says better.
bool Loader::guessed_right() {
    all_.clear();
    for (Placed &shard : run_) {
        const ShardEntry &entry = block_->header.table[shard.shard];
        const uint64_t bytes = shard.bytes();
        if (entry.length == 0 || entry.offset != shard.entry.offset ||
            round_up(entry.length) != bytes)
            return false;
        if (shard.in_page > 0)
            shard.in_page = entry.length - (bytes - UCM_ALIGNMENT);
        else if (!block_->file.through_buffer() && entry.length != shard.entry.length)
            return false;
        shard.entry = entry;
    }
    return true;
}

void Loader::place() {
    all_.clear();
    next_ = 0;
    all_.reserve(job_.size());
    for (size_t i = 0; i < job_.size(); i++) {
        const size_t index = job_.index(i);
        const uint32_t shard = task_->shard(index);
        all_.push_back({index, shard, block_->header.table[shard], task_->addresses(index)});
        all_.back().buffered = block_->file.buffered(context_.rows, all_.back());
    }
    std::stable_sort(all_.begin(), all_.end(), [](const Placed &a, const Placed &b) {
        return a.entry.offset < b.entry.offset;
    });
}

// Takes the next shards that lie one after another.
void Loader::next_run() {
    run_.assign(1, all_[next_++]);
    uint64_t end = run_[0].entry.offset + run_[0].bytes(), bytes = run_[0].bytes();
    while (next_ < all_.size() && run_.size() < kRunShards && bytes > 0) {
        const Placed &shard = all_[next_];
        if (shard.entry.offset != end || bytes + shard.bytes() > kRunBytes ||
            shard.buffered != run_[0].buffered)
            break;
        run_.push_back(shard);
        bytes += shard.bytes();
        end += shard.bytes();
        next_++;
    }
}

// False: there is none any more, the job is over.
bool Loader::start_run() {
    while (next_ < all_.size()) {
        next_run();
        if (const ucm_status refused = task_->refused(); refused != UCM_OK) {
            for (const Placed &shard : run_) finish(shard, refused, 0);
            continue;
        }
        stage_ = Stage::kRun;
        block_->file.prepare_read(context_.rows, id_, run_, 0);
        if (block_->file.next(io_)) return true;
        after_run();
    }
    return end(BlockState::kFits);
}

void Loader::after_run() {
    if (block_->file.error() != 0) {
        for (const Placed &shard : run_) load_alone(shard);
        return;
    }
    block_->file.take_in(context_.verifies);
    std::vector<Placed> bad;
    for (const Placed &shard : run_) {
        if (shard.sound() || !context_.verifies)
            finish(shard, UCM_OK, 0);
        else
            bad.push_back(shard);
    }
    for (const Placed &shard : bad) load_alone(shard);
}

// The second and last try.
void Loader::load_alone(const Placed &shard) {
    std::vector<Placed> run{shard};
    int error = 0;
    if (shard.bytes() > 0) {
        block_->file.prepare_read(context_.rows, id_, run, 0);
        block_->file.move();
        error = block_->file.error();
        if (error == 0) block_->file.take_in(context_.verifies);
    }
    if (error == 0 && (run[0].sound() || !context_.verifies)) return finish(run[0], UCM_OK, 0);
    // The caller's memory may be another shard's too; then nothing is wrong with the file.
    if (error == 0 && load_by_own_memory(shard)) return finish(shard, UCM_OK, 0);
    if (error == 0 || error == kEndOfFile) return corrupt_.push_back(shard);
    context_.log.write(UCM_LOG_WARN, "cannot read shard %u of %s: %s", shard.shard,
                       directory_->block_path(id_).c_str(), errno_text(error).c_str());
    finish(shard, status_of_errno(error, UCM_NOT_FOUND), error);
}

bool Loader::load_by_own_memory(const Placed &shard) {
    if (scratch_.fenced) return load_by_buffer(shard);
    const ShardEntry &entry = shard.entry;
    const Mapping own(shard.bytes());
    uint64_t got = 0;
    if (block_->file.read(own.base(), shard.bytes(), entry.offset, &got) != 0 ||
        got != shard.bytes())
        return false;
    const iovec piece{own.base(), size_t(entry.length)};
    const bool sound =
        all_zero(own.base() + entry.length, size_t(shard.bytes() - entry.length)) &&
        payload_checksum(id_, shard.shard, entry.length, &piece, 1) == entry.checksum;
    if (sound) context_.rows.scatter(own.base(), entry.length, shard.addresses, 0);
    return sound;
}

bool Loader::load_by_buffer(const Placed &shard) {
    if (shard.buffered) return false;  // it was
    std::vector<Placed> run{shard};
    run[0].buffered = true;
    block_->file.prepare_read(context_.rows, id_, run, 0);
    block_->file.move();
    if (block_->file.error() != 0) return false;
    block_->file.take_in(true);
    return run[0].sound();
}

void Loader::finish(const Placed &shard, ucm_status status, int error) {
    const bool ok = status == UCM_OK;
    if (ok) context_.metrics.add(kLoadInBytes, shard.bytes());
    served_ = served_ || ok;
    const auto &order = job_.batch->order;
    const auto first = order.begin() + job_.batch->starts[job_.number];
    told_[size_t(std::lower_bound(first, first + long(job_.size()), shard.index) - first)] = true;
    complete(context_, job_, shard.index, result(status, ok ? shard.entry.length : 0, error));
}

// Those that are not told yet.
bool Loader::fail_all(ucm_status status, int error) {
    for (size_t i = 0; i < job_.size(); i++)
        if (!told_[i]) complete(context_, job_, job_.index(i), result(status, 0, error));
    corrupt_.clear();
    block_.reset();
    end_job(context_, job_);
    job_ = Job{};
    return false;
}

// False, for those who end the job with it.
bool Loader::end(BlockState state) {
    switch (state) {
        case BlockState::kAbsent:
            directory_->missed(id_);
            return fail_all(UCM_NOT_FOUND);
        case BlockState::kFailed:
            context_.log.write(UCM_LOG_WARN, "cannot read %s: %s",
                               directory_->block_path(id_).c_str(),
                               errno_text(block_->error).c_str());
            return fail_all(status_of_errno(block_->error), block_->error);
        case BlockState::kMisfit:
            return fail_all(UCM_INCOMPATIBLE);
        case BlockState::kCorrupt:
        case BlockState::kFits:
            break;
    }
    const bool all = state == BlockState::kCorrupt;
    if ((all || !corrupt_.empty()) && context_.medium.sizes_lag() && block_->file.gone()) {
        directory_->missed(id_);
        return fail_all(UCM_NOT_FOUND);
    }
    if (all || !corrupt_.empty()) {
        UCM_FAILPOINT("posix.before_quarantine");
        if (directory_->quarantine(id_, block_->st.st_dev, block_->st.st_ino))
            context_.metrics.add(kQuarantinedBlocks, 1);
        UCM_FAILPOINT("posix.quarantined");
        const size_t bad = all ? job_.size() : corrupt_.size();
        context_.metrics.add(kCorruptShards, bad);
        context_.log.write(UCM_LOG_WARN, "%zu shards of block %s fail their check", bad,
                           id_.hex().c_str());
        if (all) return fail_all(UCM_CORRUPT);
    } else if (served_) {
        directory_->loaded(id_, block_->st);
    }
    for (const Placed &shard : corrupt_) finish(shard, UCM_CORRUPT, 0);
    corrupt_.clear();
    block_.reset();
    end_job(context_, job_);
    job_ = Job{};
    return false;
}

}  // namespace ucm::files
