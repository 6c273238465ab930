// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <list>
#include <unordered_map>
#include <vector>

#include "eviction.h"
#include "pool.h"

namespace ucm::cache {

// Who is to look again when something changed under Core::mutex.
struct Wakeups {
    std::condition_variable dumps;   // the dump thread: a job, room, a cancel
    std::condition_variable writes;  // the writer: a block, the end of a lower dump
    std::condition_variable loads;   // the load threads: a job, an arrival, room
    std::condition_variable idle;    // close and remove
    bool dumps_want_room = false, loads_want_room = false;
};

// Which blocks are here, where their shards lie, and which slots may be had. Two maps: what lookups
// and loads see, and what dumps gather; a block moves from the second to the first when it is
// complete. All of it is guarded by Core::mutex.
class BlockIndex {
  public:
    BlockIndex(const Config &config, Wakeups &wakeups)
        : config_(config), wakeups_(wakeups), pool_(config) {}

    BlockRef visible(const BlockId &id) const { return find(visible_, id); }
    BlockRef gathering(const BlockId &id) const { return find(gathering_, id); }
    SlotPool &pool() { return pool_; }
    size_t gatherings() const { return gathering_.size(); }
    uint32_t held() const { return held_; }
    uint64_t evicted() const { return evicted_; }
    uint64_t room_version() const { return room_version_; }

    // A slot, if need be of an evicted block. kNoSlot: no room now; room_version will change.
    uint32_t slot_for_load();
    // As well of shards that are saved below; within the limit on what dumps hold.
    uint32_t slot_for_dump();
    bool dumps_hold_all() const { return held_ >= config_.held_slots; }

    // A new block that loads fill; clean from its beginning.
    BlockRef start_filling(const BlockId &id);
    BlockRef start_gathering(const BlockId &id);
    void put(Block &block, uint32_t shard, uint32_t slot, ShardState state);
    void arrived(Block &block, uint32_t shard);
    void vacate(Block &block, uint32_t shard);
    void pin(Block &block) { block.pins++; }
    void unpin(const BlockRef &block);

    // Gathering: a shard came. Moves the block to the end of the lists below.
    void touched(const BlockRef &block, int64_t now_ns);
    BlockRef oldest_gathering() const { return age_.empty() ? nullptr : age_.front(); }
    BlockRef newest_gathering_but(const Block *other) const;
    BlockRef oldest_unsaved() const { return unsaved_.empty() ? nullptr : unsaved_.front(); }
    void not_unsaved(Block &block);
    // Gathering: some shards lie below as well; their slots may be taken.
    void saved(const BlockRef &block);

    // Gathering and whole: from now on it is what is seen; dirty.
    void publish(const BlockRef &block);
    // Dirty, or gathering: stored below now, or need not be. Visible and clean.
    void settle(const BlockRef &block);
    // From whatever it is to gone.
    void detach(const BlockRef &block, ucm_status end);

    template <typename F>
    void each_gathering(F body) {
        const auto copy = age_;
        for (auto &block : copy) body(block);
    }

  private:
    using Map = std::unordered_map<BlockId, BlockRef, BlockIdHash>;
    static BlockRef find(const Map &map, const BlockId &id) {
        auto found = map.find(id);
        return found == map.end() ? nullptr : found->second;
    }

    uint32_t take(bool patient);
    bool evict(bool patient);
    bool free_saved();
    void show(const BlockRef &block);
    void not_saved(Block &block);
    void forget_gathering(Block &block);
    void free_slot(Block &block, uint32_t shard);
    void free_slots(Block &block);
    void room();

    const Config &config_;
    Wakeups &wakeups_;
    SlotPool pool_;
    Eviction eviction_;
    Map visible_, gathering_;
    std::list<BlockRef> age_;      // all that gather, longest without a new shard first
    std::list<BlockRef> unsaved_;  // those with shards that are here only and not being written
    std::list<BlockRef> saved_;    // those that may have shards both here and below
    uint32_t held_ = 0;            // slots of blocks with held
    uint64_t evicted_ = 0, room_version_ = 0, next_number_ = 0;
};

}  // namespace ucm::cache
