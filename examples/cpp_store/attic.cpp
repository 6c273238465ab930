// SPDX-License-Identifier: MIT
//
// Attic - a StoreV1 store in C++: blocks live in vectors of this process, the oldest go first when
// attic_mb is reached, whether they are complete or not.
//
// Copying needs no thread of its own, so a transfer is over when load or dump returns, and nothing
// is ever pending.
#include <algorithm>
#include <cstring>
#include <list>
#include <map>
#include <mutex>
#include <numeric>
#include <string>
#include <vector>

#include "ucm/store_v1.hpp"

namespace {

using Id = std::string;
using Shards = std::map<uint32_t, std::vector<unsigned char>>;

constexpr uint64_t kShardOverhead = 256;  // so that empty shards are bounded too

const ucm_option kOptions[] = {
    {"attic_mb", UCM_TYPE_INT, 0, "256", "1..1048576", "MiB", "Memory for blocks."},
};

Id id_at(const uint8_t *ids, size_t i) {
    return Id(reinterpret_cast<const char *>(ids) + i * UCM_BLOCK_ID_BYTES, UCM_BLOCK_ID_BYTES);
}

class Attic final : public ucm::Store {
  public:
    explicit Attic(const ucm_open_args &args)
        : limit_(uint64_t(ucm::Values(args)[0].i) << 20),
          shards_per_block_(args.layout ? args.layout->shards_per_block : 0) {
        if (args.layout)
            segments_.assign(args.layout->segment_bytes,
                             args.layout->segment_bytes + args.layout->n_segments);
        capacity_ = std::accumulate(segments_.begin(), segments_.end(), uint64_t(0));
        if ((capacity_ + kShardOverhead) * shards_per_block_ > limit_)
            throw ucm::Error(UCM_INVALID, "attic_mb: a block is larger than that; raise it");
    }

    uint64_t capabilities() const override {
        return UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_REMOVE;
    }

    ucm_status lookup(const ucm_lookup_args &args, ucm_error *) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        size_t count = 0, prefix = args.n, last = 0;
        for (size_t i = 0; i < args.n; i++) {
            const bool here = published_.count(id_at(args.block_ids, i)) != 0;
            if (args.tiers) args.tiers[i] = here;
            if (here) count++, last = i + 1;
            if (!here) prefix = std::min(prefix, i);
        }
        if (args.hits)
            *args.hits = args.mode == UCM_LOOKUP_ALL      ? count
                         : args.mode == UCM_LOOKUP_PREFIX ? prefix
                                                          : last;
        return UCM_OK;
    }

    ucm_status load(const ucm_transfer &t, ucm_task *task, ucm_error *) override {
        return each(t, task, [&](size_t i) { return load_one(t, i); });
    }

    ucm_status dump(const ucm_transfer &t, ucm_task *task, ucm_error *) override {
        return each(t, task, [&](size_t i) { return dump_one(t, i); });
    }

    ucm_status remove(const ucm_ids_args &args, ucm_error *) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (size_t i = 0; i < args.n; i++) forget(id_at(args.block_ids, i));
        return UCM_OK;
    }

    ucm_status drain(const ucm_wait_args &, ucm_report &report, ucm_error *) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        report.stored = stored_;
        report.lost = lost_;
        report.pending = 0;
        report.unfinished = 0;
        for (const auto &[id, shards] : gathering_) report.unfinished += shards.size();
        stored_ = lost_ = 0;
        return UCM_OK;
    }

    ucm_status close(const ucm_wait_args &args, ucm_report &report, ucm_error *err) override {
        return drain(args, report, err);
    }

  private:
    // The work is done under the lock, done is called outside.
    template <typename F>
    ucm_status each(const ucm_transfer &t, ucm_task *task, F one) {
        if (task) *task = 0;
        for (size_t i = 0; i < t.n; i++) {
            ucm_result result;
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                result = one(i);
            }
            t.done(t.ctx, i, &result);
        }
        t.finished(t.ctx);
        return UCM_OK;
    }

    ucm_result load_one(const ucm_transfer &t, size_t i) {
        const auto found = published_.find(id_at(t.block_ids, i));
        if (found == published_.end()) return ucm::result(UCM_NOT_FOUND);
        const auto &bytes = found->second.at(t.shard_index[i]);
        size_t at = 0;
        for (size_t k = 0; k < segments_.size(); k++) {
            const size_t part = std::min<size_t>(segments_[k], bytes.size() - at);
            memcpy(t.addresses[i * segments_.size() + k], bytes.data() + at, part);
            at += part;
        }
        return ucm::result(UCM_OK, bytes.size());
    }

    ucm_result dump_one(const ucm_transfer &t, size_t i) {
        const Id id = id_at(t.block_ids, i);
        stored_++;
        const bool replaces = (t.flags & UCM_TRANSFER_REPLACE) != 0;
        if (published_.count(id) && !replaces && !gathering_.count(id))
            return ucm::result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
        while (used_ + capacity_ + kShardOverhead > limit_) forget(by_age_.front());
        Shards &block = gathering_[id];
        if (block.empty()) by_age_.push_back(id);
        if (!block.count(t.shard_index[i])) block[t.shard_index[i]] = gathered(t, i);
        if (block.size() < shards_per_block_) return ucm::result(UCM_OK);
        used_ -= bytes_of(published_[id]);
        published_[id] = std::move(block);
        gathering_.erase(id);
        return ucm::result(UCM_OK, 0, 0, UCM_RESULT_PUBLISHED);
    }

    std::vector<unsigned char> gathered(const ucm_transfer &t, size_t i) {
        uint64_t left = t.lengths ? t.lengths[i] : capacity_;
        std::vector<unsigned char> bytes;
        bytes.reserve(left);
        used_ += left + kShardOverhead;
        for (size_t k = 0; k < segments_.size(); k++) {
            const auto *from = static_cast<unsigned char *>(t.addresses[i * segments_.size() + k]);
            const uint64_t part = std::min(left, segments_[k]);
            bytes.insert(bytes.end(), from, from + part);
            left -= part;
        }
        return bytes;
    }

    static uint64_t bytes_of(const Shards &shards) {
        uint64_t sum = 0;
        for (const auto &[index, bytes] : shards) sum += bytes.size() + kShardOverhead;
        return sum;
    }

    void forget(const Id id) {
        by_age_.remove(id);
        if (const auto it = gathering_.find(id); it != gathering_.end()) {
            used_ -= bytes_of(it->second);
            lost_ += it->second.size();
            stored_ -= std::min<uint64_t>(stored_, it->second.size());
            gathering_.erase(it);
        }
        if (const auto it = published_.find(id); it != published_.end()) {
            used_ -= bytes_of(it->second);
            published_.erase(it);
        }
    }

    const uint64_t limit_;
    const uint32_t shards_per_block_;
    std::vector<uint64_t> segments_;
    uint64_t capacity_ = 0;

    std::mutex mutex_;                // guards all below
    std::map<Id, Shards> published_;  // blocks that are complete
    std::map<Id, Shards> gathering_;  // blocks that miss shards
    std::list<Id> by_age_;            // ids of both
    uint64_t used_ = 0;               // bytes
    uint64_t stored_ = 0, lost_ = 0;  // shards since the last report
};

}  // namespace

UCM_STORE_PLUGIN(Attic, "Attic", "0.1.0", "Keeps blocks in the memory of one process.", 0, kOptions,
                 nullptr)
