// SPDX-License-Identifier: MIT
#include "write_back.h"

#include "failpoint.h"

namespace ucm::cache {
namespace {

constexpr size_t kBatchShards = 128;
constexpr uint32_t kRetries = 3;
constexpr int64_t kFirstDelayNs = 10 * 1000000;  // then ten times as long each time
constexpr int64_t kBusyNs = 5 * 1000000;
constexpr int64_t kIdleNs = 600ll * 1000000000;

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

bool unsaved(const ShardEntry &entry) {
    return entry.state == ShardState::kHere && !entry.below;
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

void WriteBack::request(const BlockRef &block) {
    core_.index.not_unsaved(*block);
    if (block->queued || block->writing) return;  // its end looks again
    block->queued = true;
    queue_.push_back(block);
    core_.wakeups.writes.notify_one();
}

void WriteBack::request_unsaved(size_t most_shards) {
    if (!core_.lower_keeps) return;
    for (size_t shards = 0; shards < most_shards;) {
        const BlockRef block = core_.index.oldest_unsaved();
        if (!block) return;
        shards += block->here;
        request(block);
    }
}

void WriteBack::make_room() {
    if (in_flight_ == 0 && queue_.empty()) request_unsaved(kBatchShards);
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
            queue_.push_back(std::move(delayed_.begin()->second));
            delayed_.erase(delayed_.begin());
        }
        abandon_idle(outcome);
        if (!ended_.empty()) {
            const auto batch = std::move(ended_.front());
            ended_.pop_front();
            finish(*batch, outcome);
            while (!doubtful_.empty()) ask_below(lock, outcome);
        } else if (!queue_.empty() && in_flight_ < core_.config.running_shards &&
                   now_ns >= busy_until_ns_) {
            if (const auto batch = build()) submit(batch, lock);
            core_.wakeups.dumps.notify_all();
        } else if (outcome.warnings.empty()) {
            if (idle()) core_.wakeups.idle.notify_all();
            if (stopping_) return;
            wait_until(core_.wakeups.writes, lock, next_wake());
        }
        outcome.give(lock, core_.log);
    }
}

int64_t WriteBack::next_wake() const {
    int64_t at_ns = INT64_MAX;
    if (!delayed_.empty()) at_ns = delayed_.begin()->first;
    if (!queue_.empty() && in_flight_ < core_.config.running_shards)
        at_ns = std::min(at_ns, busy_until_ns_);
    if (const BlockRef oldest = core_.index.oldest_gathering())
        if (!oldest->complete()) at_ns = std::min(at_ns, oldest->touched_ns + kIdleNs);
    return at_ns;
}

std::shared_ptr<WriteBack::Batch> WriteBack::build() {
    auto batch = std::make_shared<Batch>(*this);
    while (!queue_.empty() && batch->n() < kBatchShards) {
        const BlockRef block = queue_.front();
        if (block->phase != Phase::kGone && batch->n() && block->replace != batch->replace) break;
        queue_.pop_front();
        block->queued = false;
        if (block->phase == Phase::kGone) continue;
        if (older_is_on_its_way(block)) {
            block->queued = true;
            held_back_[block->id].push_back(block);
            continue;
        }
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
    for (uint32_t shard = 0; shard < block->shards.size(); shard++) {
        const ShardEntry &entry = block->shards[shard];
        if (!unsaved(entry)) continue;
        const SlotInfo &info = core_.index.pool().info(entry.slot);
        part.shards.push_back(shard);
        batch.ids.insert(batch.ids.end(), block->id.bytes, block->id.bytes + UCM_BLOCK_ID_BYTES);
        batch.indexes.push_back(shard);
        batch.depths.push_back(block->depth);
        batch.addresses.push_back(core_.index.pool().bytes(entry.slot));
        batch.lengths.push_back(info.length);
        batch.raw_lengths.push_back(info.raw_length);
        batch.bytes += info.length;
    }
    if (part.shards.empty()) return;
    batch.replace = block->replace;
    if (!batch.tag) batch.tag = block->tag;
    block->writing = true;
    core_.index.not_unsaved(*block);
    core_.index.pin(*block);
    in_flight_ids_.insert(block->id);
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
    for (size_t k = batch.parts.size(); k-- > 0;) {
        const BlockRef &block = batch.parts[k].block;
        written(block);
        if (block->phase == Phase::kGone) {
            let_newer_go(block->id);
            continue;
        }
        block->queued = true;
        queue_.push_front(block);
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
    for (auto &part : batch.parts) {
        const BlockRef &block = part.block;
        written(block);
        if (block->phase != Phase::kGone)
            judge(block, part.shards, batch.results.data() + part.first, outcome);
        let_newer_go(block->id);
    }
    core_.wakeups.dumps.notify_all();
}

void WriteBack::written(const BlockRef &block) {
    block->writing = false;
    in_flight_ids_.erase(block->id);
    core_.index.unpin(block);
}

bool WriteBack::older_is_on_its_way(const BlockRef &block) const {
    if (in_flight_ids_.count(block->id)) return true;
    const BlockRef seen = core_.index.visible(block->id);
    return seen && seen != block && seen->phase == Phase::kDirty;
}

void WriteBack::let_newer_go(const BlockId &id) {
    auto found = held_back_.find(id);
    if (found == held_back_.end()) return;
    const auto waiting = std::move(found->second);
    held_back_.erase(found);
    for (auto &block : waiting) {
        block->queued = false;
        request(block);
    }
}

void WriteBack::judge(const BlockRef &block, const std::vector<uint32_t> &shards,
                      const ucm_result *results, Outcome &outcome) {
    bool published = false, refused = false;
    for (size_t k = 0; k < shards.size(); k++) {
        if (results[k].status != UCM_OK) {
            if (passing(results[k].status) && again(block)) return;
            char why[64];
            snprintf(why, sizeof why, "the store below failed: status %d, errno %d",
                     results[k].status, results[k].os_errno);
            return lose(block, results[k].status, why, outcome);
        }
        published = published || (results[k].flags & UCM_RESULT_PUBLISHED);
        refused = refused || (results[k].flags & UCM_RESULT_DECLINED);
    }
    if (refused) return declined(block, outcome);
    if (published && block->complete()) return stored(block, outcome);
    bool more = false;
    for (uint32_t shard : shards) block->shards[shard].below = true;
    for (auto &entry : block->shards) more = more || unsaved(entry);
    if (!block->complete()) {
        // From here on these shards are the lower store's to count.
        for (uint32_t shard : shards) {
            SlotInfo &info = core_.index.pool().info(block->shards[shard].slot);
            if (!info.accounted) core_.ledger.end(info.epoch, 1, 0, 0);
            info.accounted = true;
        }
        core_.index.saved(block);
        // Published already, with shards of an earlier dump: the rest are duplicates.
        if (published) block->replace = false;
        if (more && !block->unsaved) request(block);  // was asked for while it was being written
        return;
    }
    if (more) return request(block);
    if (!block->whole() || !again(block)) doubtful_.push_back(block);
}

void WriteBack::stored(const BlockRef &block, Outcome &outcome) {
    UCM_FAILPOINT("cache.stored");
    settle_accounts(*block, false);
    if (block->last_job) {
        outcome.answers.push_back({std::move(block->last_job), block->last_row,
                                   result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED)});
        block->last_job = nullptr;
    }
    if (block->phase == Phase::kGathering)
        if (const BlockRef old = core_.index.visible(block->id)) drop(old, outcome);
    core_.index.settle(block);
    let_newer_go(block->id);
}

// The store below does not want it: nothing is lost, and nothing is stored. What is whole stays
// here as long as there is room.
void WriteBack::declined(const BlockRef &block, Outcome &outcome) {
    block->declined = true;
    core_.metrics.add(kDeclinedBlocks, 1);
    for (auto &entry : block->shards) {
        if (entry.state != ShardState::kHere) continue;
        SlotInfo &info = core_.index.pool().info(entry.slot);
        if (!info.accounted) core_.ledger.end(info.epoch, 0, 0, 1);
        info.accounted = true;
    }
    if (block->last_job) {
        outcome.answers.push_back({std::move(block->last_job), block->last_row,
                                   result(UCM_OK, 0, 0, UCM_RESULT_DECLINED)});
        block->last_job = nullptr;
    }
    if (block->whole())
        core_.index.settle(block);
    else
        core_.index.detach(block, UCM_CANCELLED);
    let_newer_go(block->id);
}

// The store below took every shard and said of none of the last ones that the block is published.
// It may be nevertheless, where a replacement by somebody else was left unfinished there.
void WriteBack::ask_below(Lock &lock, Outcome &outcome) {
    const BlockRef block = std::move(doubtful_.back());
    doubtful_.pop_back();
    size_t hits = 0;
    if (!block->replace) {
        ucm_lookup_args args{};
        args.struct_size = sizeof args;
        args.n = 1;
        args.block_ids = block->id.bytes;
        args.hits = &hits;
        lock.unlock();
        if (ucm_lookup(core_.lower, &args, nullptr) != UCM_OK) hits = 0;
        lock.lock();
    }
    if (block->phase == Phase::kGone) return;
    if (hits) return stored(block, outcome);
    lose(block, UCM_IO, "the store below took its shards and did not publish it", outcome);
}

// False: it was tried often enough.
bool WriteBack::again(const BlockRef &block) {
    if (block->tries == kRetries) return false;
    int64_t delay_ns = kFirstDelayNs;
    for (uint32_t k = 0; k < block->tries; k++) delay_ns *= 10;
    block->tries++;
    // The store below may have given up all of the block, so all of it goes again if it is here.
    if (block->whole())
        for (auto &entry : block->shards) entry.below = false;
    core_.index.not_unsaved(*block);
    block->queued = true;
    delayed_.emplace(monotonic_ns() + delay_ns, block);
    return true;
}

void WriteBack::abandon_idle(Outcome &outcome) {
    const int64_t before_ns = monotonic_ns() - kIdleNs;
    for (;;) {
        const BlockRef oldest = core_.index.oldest_gathering();
        if (!oldest || oldest->complete() || oldest->touched_ns > before_ns) return;
        lose(oldest, UCM_TIMEOUT, "its other shards did not come", outcome);
    }
}

void WriteBack::lose(const BlockRef &block, ucm_status status, const char *why, Outcome &outcome) {
    if (block->last_job) {
        SlotInfo &info = core_.index.pool().info(
            block->shards[block->last_job->task->shard(block->last_row)].slot);
        core_.ledger.end(info.epoch, 0, 0, 1);
        info.accounted = true;
        outcome.answers.push_back({std::move(block->last_job), block->last_row, result(status)});
        block->last_job = nullptr;
    }
    const uint64_t lost = settle_accounts(*block, true);
    core_.metrics.add(kLostShards, lost);
    if (block->phase == Phase::kGathering) core_.metrics.add(kAbandonedBlocks, 1);
    outcome.warnings.push_back("block " + block->id.hex() + " is given up with " +
                               std::to_string(lost) +
                               " shards that are stored nowhere else: " + why);
    core_.index.detach(block, status);
    let_newer_go(block->id);
}

void WriteBack::drop(const BlockRef &block, Outcome &outcome) {
    if (block->last_job) {
        outcome.answers.push_back(
            {std::move(block->last_job), block->last_row, result(UCM_CANCELLED)});
        block->last_job = nullptr;
    }
    settle_accounts(*block, false);
    core_.index.detach(block, UCM_CANCELLED);
    let_newer_go(block->id);
}

// Ends what the ledger still waits for; how many shards are lost by it.
uint64_t WriteBack::settle_accounts(Block &block, bool lost) {
    uint64_t count = 0;
    for (auto &entry : block.shards) {
        if (entry.state != ShardState::kHere) continue;
        SlotInfo &info = core_.index.pool().info(entry.slot);
        if (!info.accounted) {
            core_.ledger.end(info.epoch, lost ? 0 : 1, lost ? 1 : 0, 0);
            count++;
        } else if (lost && !core_.lower_keeps) {
            core_.ledger.lose_stored(1);
            count++;
        }
        info.accounted = true;
    }
    return count;
}

}  // namespace ucm::cache
