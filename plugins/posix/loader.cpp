// SPDX-License-Identifier: MIT
#include "loader.h"

#include <algorithm>

#include "failpoint.h"

namespace ucm::posix {
namespace {

bool all_zero(const uint8_t *bytes, size_t n) {
    return n == 0 || (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, n - 1) == 0);
}

}  // namespace

void Loader::run() {
    Busy busy(context_.metrics, kLoadBusyNs);
    Directory *directory = context_.directories.of(id_);
    if (const ucm_status refused = task_.refused(); refused != UCM_OK)
        fail_all(refused);
    else if (!directory)
        fail_all(UCM_NOT_FOUND);
    else
        load(*directory);
}

void Loader::load(Directory &directory) {
    OpenBlock block(directory, scratch_);
    const BlockState state = open_block(context_, directory, id_, scratch_, block);
    switch (state) {
        case BlockState::kAbsent:
            return fail_all(UCM_NOT_FOUND);
        case BlockState::kFailed:
            return fail_all(status_of_errno(block.error), block.error);
        case BlockState::kMisfit:
            return fail_all(UCM_INCOMPATIBLE);
        case BlockState::kCorrupt:
            break;
        case BlockState::kFits:
            context_.metrics.add(kLoadInBytes, block_header_bytes(context_.shape.shard_count));
            load_shards(block);
    }
    if (state == BlockState::kFits && corrupt_.empty()) return directory.loaded(id_, block.st);
    UCM_FAILPOINT("posix.before_quarantine");
    if (directory.quarantine(id_, block.st.st_dev, block.st.st_ino))
        context_.metrics.add(kQuarantinedBlocks, 1);
    UCM_FAILPOINT("posix.quarantined");
    const size_t bad = state == BlockState::kCorrupt ? job_.size() : corrupt_.size();
    context_.metrics.add(kCorruptShards, bad);
    context_.log.write(UCM_LOG_WARN, "%zu shards of block %s fail their check", bad,
                       id_.hex().c_str());
    if (state == BlockState::kCorrupt) return fail_all(UCM_CORRUPT);
    for (const Placed &shard : corrupt_) finish(shard, UCM_CORRUPT, 0);
}

void Loader::load_shards(OpenBlock &block) {
    std::vector<Placed> all;
    all.reserve(job_.size());
    for (size_t i = 0; i < job_.size(); i++) {
        const size_t index = job_.index(i);
        all.push_back({index, block.header.table[task_.shard(index)], task_.addresses(index)});
    }
    std::stable_sort(all.begin(), all.end(), [](const Placed &a, const Placed &b) {
        return a.entry.offset < b.entry.offset;
    });
    for (size_t next = 0; next < all.size();) {
        std::vector<Placed> run = next_run(block, all, &next);
        if (const ucm_status refused = task_.refused(); refused != UCM_OK)
            for (const Placed &shard : run) finish(shard, refused, 0);
        else
            load_run(block, run);
    }
}

std::vector<Placed> Loader::next_run(const OpenBlock &block, const std::vector<Placed> &all,
                                     size_t *next) const {
    std::vector<Placed> run{all[(*next)++]};
    uint64_t end = run[0].entry.offset + run[0].bytes(), bytes = run[0].bytes();
    const bool bounces = block.file.bounces(context_.rows, run[0]);
    while (*next < all.size() && run.size() < kRunShards && bytes > 0) {
        const Placed &shard = all[*next];
        if (shard.entry.offset != end || bytes + shard.bytes() > kRunBytes ||
            block.file.bounces(context_.rows, shard) != bounces)
            break;
        run.push_back(shard);
        bytes += shard.bytes();
        end += shard.bytes();
        ++*next;
    }
    return run;
}

void Loader::load_run(OpenBlock &block, std::vector<Placed> &run) {
    if (run[0].bytes() > 0 && block.file.read_run(context_.rows, run) != 0) {
        for (const Placed &shard : run) load_alone(block, shard);
        return;
    }
    std::vector<Placed> bad;
    for (const Placed &shard : run) {
        if (sound(shard))
            finish(shard, UCM_OK, 0);
        else
            bad.push_back(shard);
    }
    for (const Placed &shard : bad) load_alone(block, shard);
}

// The second and last try.
void Loader::load_alone(OpenBlock &block, const Placed &shard) {
    std::vector<Placed> run{shard};
    const int error = shard.bytes() > 0 ? block.file.read_run(context_.rows, run) : 0;
    if (error == kEndOfFile || (error == 0 && !sound(run[0])))
        corrupt_.push_back(shard);
    else if (error != 0)
        finish(shard, status_of_errno(error, UCM_NOT_FOUND), error);
    else
        finish(run[0], UCM_OK, 0);
}

bool Loader::sound(const Placed &shard) {
    const ShardEntry &entry = shard.entry;
    return all_zero(shard.page + shard.in_page, size_t(shard.bytes() - entry.length)) &&
           context_.rows.checksum(scratch_.pieces, id_, task_.shard(shard.index), shard.addresses,
                                  entry.length) == entry.checksum;
}

void Loader::finish(const Placed &shard, ucm_status status, int error) {
    const bool ok = status == UCM_OK;
    if (ok) context_.metrics.add(kLoadInBytes, shard.bytes());
    complete(context_, job_, shard.index, result(status, ok ? shard.entry.length : 0, error));
}

void Loader::fail_all(ucm_status status, int error) {
    for (size_t i = 0; i < job_.size(); i++)
        complete(context_, job_, job_.index(i), result(status, 0, error));
}

}  // namespace ucm::posix
