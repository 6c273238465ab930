// SPDX-License-Identifier: MIT
#include "store.h"

namespace ucm {
namespace {

constexpr uint64_t kUnfinishedBytes = 64u << 20;  // of bitmaps, at most
constexpr size_t kUnfinishedBlocks = 65536;
constexpr int64_t kIdleNs = 600ll * 1000000000;

size_t unfinished_limit(uint32_t shards_per_block) {
    const uint64_t bytes_each = sizeof(BlockId) + shards_per_block / 8 + 128;
    return std::min<size_t>(kUnfinishedBlocks, kUnfinishedBytes / bytes_each);
}

}  // namespace

FakeStore::FakeStore(const ucm_open_args &args)
    : shards_per_block_(args.layout ? args.layout->shards_per_block : 0),
      capacity_(args.layout ? args.layout->capacity : 0),
      max_blocks_(size_t(Values(args)[kBufferNumber].i)),
      max_unfinished_(unfinished_limit(shards_per_block_)) {}

ucm_status FakeStore::lookup(const ucm_lookup_args &args, ucm_error *) {
    size_t hits = 0;
    if (args.tiers) std::fill_n(args.tiers, args.n, uint8_t(0));
    std::lock_guard<std::mutex> hold(mutex_);
    for (size_t i = 0; i < args.n; i++) {
        const bool present = published_.count(BlockId::at(args.block_ids, i)) != 0;
        if (!present && args.mode == UCM_LOOKUP_PREFIX) break;
        if (!present) continue;
        if (args.tiers) args.tiers[i] = 1;
        hits = args.mode == UCM_LOOKUP_LAST ? i + 1 : hits + 1;
    }
    if (args.hits) *args.hits = hits;
    return UCM_OK;
}

ucm_status FakeStore::load(const ucm_transfer &, ucm_task *, ucm_error *err) {
    return ucm_fail(err, UCM_UNSUPPORTED, 0, "Fake keeps ids only; it has no bytes to load");
}

ucm_status FakeStore::dump(const ucm_transfer &t, ucm_task *task, ucm_error *) {
    const bool replace = (t.flags & UCM_TRANSFER_REPLACE) != 0;
    std::vector<bool> published(t.n);
    uint64_t bytes = 0;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        const int64_t now_ns = monotonic_ns();
        for (size_t i = 0; i < t.n; i++) {
            take(BlockId::at(t.block_ids, i), t.shard_index[i], replace, now_ns);
            bytes += t.lengths ? t.lengths[i] : capacity_;
        }
        for (size_t i = 0; i < t.n; i++)
            published[i] = published_.count(BlockId::at(t.block_ids, i)) != 0;
        stored_ += t.n;
        trim();
    }
    metrics_.add(kDumpShards, t.n);
    metrics_.add(kDumpBytes, bytes);
    if (task) *task = 0;
    for (size_t i = 0; i < t.n; i++) {
        const ucm_result answer =
            result(UCM_OK, 0, 0, published[i] ? uint32_t(UCM_RESULT_PUBLISHED) : 0u);
        t.done(t.ctx, i, &answer);
    }
    t.finished(t.ctx);
    return UCM_OK;
}

void FakeStore::take(const BlockId &id, uint32_t shard, bool replace, int64_t now_ns) {
    auto found = unfinished_.find(id);
    if (found == unfinished_.end()) {
        if (!replace && published_.count(id)) return;
        abandon_old(now_ns);
        found = unfinished_.emplace(id, Unfinished()).first;
        found->second.seen.resize(shards_per_block_);
        found->second.age = age_.insert(age_.end(), id);
    }
    Unfinished &block = found->second;
    if (block.seen[shard]) return;
    block.seen[shard] = true;
    block.last_ns = now_ns;
    age_.splice(age_.end(), age_, block.age);
    unfinished_shards_++;
    if (++block.count < shards_per_block_) return;
    erase(found);
    publish(id);
}

void FakeStore::publish(const BlockId &id) {
    const auto made = published_.emplace(id, next_number_);
    if (!made.second) return;  // replaced
    fifo_.emplace_back(next_number_++, id);
}

void FakeStore::abandon_old(int64_t now_ns) {
    while (!age_.empty()) {
        auto oldest = unfinished_.find(age_.front());
        if (unfinished_.size() < max_unfinished_ && now_ns - oldest->second.last_ns < kIdleNs)
            return;
        lost_ += oldest->second.count;
        metrics_.add(kAbandonedBlocks, 1);
        erase(oldest);
    }
}

// After the results are known, so that a transfer of more blocks than fit says PUBLISHED of each.
void FakeStore::trim() {
    auto removed = [&](const std::pair<uint64_t, BlockId> &entry) {
        auto found = published_.find(entry.second);
        return found == published_.end() || found->second != entry.first;
    };
    while (!fifo_.empty() && (published_.size() > max_blocks_ || removed(fifo_.front()))) {
        if (!removed(fifo_.front())) published_.erase(fifo_.front().second);
        fifo_.pop_front();
    }
    if (fifo_.size() > 2 * max_blocks_ + 64) {
        std::deque<std::pair<uint64_t, BlockId>> kept;
        for (auto &entry : fifo_)
            if (!removed(entry)) kept.push_back(entry);
        fifo_.swap(kept);
    }
    metrics_.set(kRememberedBlocks, published_.size());
}

void FakeStore::erase(UnfinishedMap::iterator found) {
    unfinished_shards_ -= found->second.count;
    age_.erase(found->second.age);
    unfinished_.erase(found);
}

ucm_status FakeStore::remove(const ucm_ids_args &args, ucm_error *) {
    std::lock_guard<std::mutex> hold(mutex_);
    for (size_t i = 0; i < args.n; i++) {
        const BlockId id = BlockId::at(args.block_ids, i);
        auto found = unfinished_.find(id);
        if (found != unfinished_.end()) erase(found);
        published_.erase(id);
    }
    trim();
    return UCM_OK;
}

ucm_status FakeStore::drain(const ucm_wait_args &, ucm_report &report, ucm_error *) {
    std::lock_guard<std::mutex> hold(mutex_);
    fill(report);
    return UCM_OK;
}

ucm_status FakeStore::close(const ucm_wait_args &, ucm_report &report, ucm_error *) {
    std::lock_guard<std::mutex> hold(mutex_);
    fill(report);
    return UCM_OK;
}

void FakeStore::fill(ucm_report &report) {
    report.stored = stored_;
    report.lost = lost_;
    report.pending = 0;
    report.unfinished = unfinished_shards_;
    stored_ = lost_ = 0;
}

ucm_status FakeStore::metrics(const ucm_metrics_args &args, ucm_error *) {
    return metrics_.copy(args);
}

}  // namespace ucm
