// SPDX-License-Identifier: MIT
#include "write_filter.h"

#include <algorithm>

#include "clock.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

constexpr size_t kIdsPerTable = 1u << 19;
constexpr size_t kBits = 32 * kIdsPerTable, kProbes = 4;
constexpr size_t kDeclined = 65536;

}  // namespace

SeenIds::SeenIds() : now_(kBits / 64), before_(kBits / 64) {}

bool SeenIds::meet(const BlockId &id) {
    const XXH128_hash_t hash = XXH3_128bits(id.bytes, sizeof id.bytes);
    bool in_now = true, in_before = true;
    size_t at[kProbes];
    for (size_t i = 0; i < kProbes; i++) {
        at[i] = size_t(hash.low64 + i * (hash.high64 | 1)) % kBits;
        in_now = in_now && now_[at[i] / 64] >> at[i] % 64 & 1;
        in_before = in_before && before_[at[i] / 64] >> at[i] % 64 & 1;
    }
    if (in_now) return true;
    if (count_ == kIdsPerTable) {
        now_.swap(before_);
        std::fill(now_.begin(), now_.end(), 0);
        count_ = 0;
    }
    for (const size_t bit : at) now_[bit / 64] |= uint64_t(1) << bit % 64;
    count_++;
    return in_before;
}

WriteFilter::WriteFilter(const WriteFilterOptions &options) : options_(options) {
    if (options_.second_sight) seen_ = std::make_unique<SeenIds>();
}

bool WriteFilter::admits(const BlockId &id, const std::vector<uint32_t> &shards,
                         uint32_t shards_per_block, uint32_t writers) {
    if (!seen_ && options_.bytes_per_s == 0) return true;
    std::lock_guard<std::mutex> hold(mutex_);
    if (follows(id, shards)) return false;
    const bool known = !seen_ || seen_->meet(id);
    pay(writers);
    const double rate = double(options_.bytes_per_s) / std::max(1u, writers);
    if (known && (options_.bytes_per_s == 0 || debt_ <= rate)) return true;
    decline(id, shards, shards_per_block);
    return false;
}

// Are these more shards of a block that was declined?
bool WriteFilter::follows(const BlockId &id, const std::vector<uint32_t> &shards) {
    const auto found = declined_.find(id);
    if (found == declined_.end()) return false;
    Declined &block = found->second;
    bool again = false;
    for (const uint32_t shard : shards) again = again || block.shards[shard];
    if (!again) {
        for (const uint32_t shard : shards) {
            block.count += !block.shards[shard];
            block.shards[shard] = true;
        }
    }
    if (again || block.count == block.shards.size()) {
        ages_.erase(block.age);
        declined_.erase(found);
    }
    return !again;
}

void WriteFilter::decline(const BlockId &id, const std::vector<uint32_t> &shards,
                          uint32_t shards_per_block) {
    Declined block;
    block.shards.resize(shards_per_block);
    for (const uint32_t shard : shards) {
        block.count += !block.shards[shard];
        block.shards[shard] = true;
    }
    if (block.count == shards_per_block) return;
    if (declined_.size() == kDeclined) {
        declined_.erase(ages_.front());
        ages_.pop_front();
    }
    block.age = ages_.insert(ages_.end(), id);
    declined_.emplace(id, std::move(block));
}

// Writers share the rate.
void WriteFilter::pay(uint32_t writers) {
    const int64_t now = monotonic_ns();
    const double rate = double(options_.bytes_per_s) / std::max(1u, writers);
    if (paid_ns_) debt_ = std::max(0.0, debt_ - rate * double(now - paid_ns_) / 1e9);
    paid_ns_ = now;
}

void WriteFilter::wrote(uint64_t bytes, uint32_t writers) {
    if (options_.bytes_per_s == 0) return;
    std::lock_guard<std::mutex> hold(mutex_);
    pay(writers);
    debt_ += double(bytes);
}

}  // namespace ucm
