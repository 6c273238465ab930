// SPDX-License-Identifier: MIT
#include "index.h"

#include <cassert>

#include "failpoint.h"

namespace ucm::cache {

void BlockIndex::room() {
    room_version_++;
    if (wakeups_.dumps_want_room) wakeups_.dumps.notify_all();
    if (wakeups_.loads_want_room) wakeups_.loads.notify_one();
}

uint32_t BlockIndex::take(bool patient) {
    while (pool_.free() == 0)
        if (!evict(patient)) return kNoSlot;
    return pool_.take();
}

bool BlockIndex::evict(bool patient) {
    Block *block = eviction_.victim(patient);
    if (!block) return false;
    evicted_++;
    detach(visible_.at(block->id), UCM_NOT_FOUND);
    return true;
}

uint32_t BlockIndex::slot_for_load() {
    return take(true);
}

uint32_t BlockIndex::slot_for_dump() {
    for (;;) {
        const uint32_t slot = dumps_hold_all() ? kNoSlot : take(false);
        if (slot != kNoSlot || !free_saved()) return slot;
    }
}

bool BlockIndex::free_saved() {
    while (!saved_.empty()) {
        const BlockRef block = saved_.front();
        not_saved(*block);
        if (block->phase != Phase::kGathering || block->complete() || block->pins) continue;
        bool freed = false;
        for (uint32_t shard = 0; shard < block->shards.size(); shard++) {
            if (!block->shards[shard].below || block->shards[shard].slot == kNoSlot) continue;
            block->here--;
            free_slot(*block, shard);
            freed = true;
        }
        if (freed) return true;
    }
    return false;
}

BlockRef BlockIndex::start_filling(const BlockId &id) {
    auto block = std::make_shared<Block>(id, config_.shards_per_block);
    visible_.emplace(id, block);
    eviction_.insert(*block);
    return block;
}

BlockRef BlockIndex::start_gathering(const BlockId &id) {
    auto block = std::make_shared<Block>(id, config_.shards_per_block);
    block->phase = Phase::kGathering;
    block->held = true;
    block->number = next_number_++;
    block->touched_ns = monotonic_ns();
    block->age = age_.insert(age_.end(), block);
    gathering_.emplace(id, block);
    return block;
}

void BlockIndex::put(Block &block, uint32_t shard, uint32_t slot, ShardState state) {
    block.shards[shard].slot = slot;
    block.shards[shard].state = state;
    block.slots++;
    if (block.held) held_++;
}

void BlockIndex::arrived(Block &block, uint32_t shard) {
    ShardEntry &entry = block.shards[shard];
    entry.state = ShardState::kHere;
    block.here++;
    if (!entry.below) block.have++;
}

void BlockIndex::vacate(Block &block, uint32_t shard) {
    free_slot(block, shard);
}

void BlockIndex::unpin(const BlockRef &block) {
    if (--block->pins) return;
    if (block->phase == Phase::kGone) free_slots(*block);
    if (block->phase == Phase::kClean && block->slots == 0) detach(block, UCM_NOT_FOUND);
    room();
}

void BlockIndex::touched(const BlockRef &block, int64_t now_ns) {
    block->touched_ns = now_ns;
    age_.splice(age_.end(), age_, block->age);
    not_unsaved(*block);
    block->unsaved = true;
    block->unsaved_at = unsaved_.insert(unsaved_.end(), block);
}

BlockRef BlockIndex::newest_gathering_but(const Block *other) const {
    BlockRef newest;
    for (auto &block : age_)
        if (block.get() != other && (!newest || block->number > newest->number)) newest = block;
    return newest;
}

void BlockIndex::not_unsaved(Block &block) {
    if (!block.unsaved) return;
    block.unsaved = false;
    unsaved_.erase(block.unsaved_at);
}

void BlockIndex::saved(const BlockRef &block) {
    not_saved(*block);
    block->saved = true;
    block->saved_at = saved_.insert(saved_.end(), block);
}

void BlockIndex::not_saved(Block &block) {
    if (!block.saved) return;
    block.saved = false;
    saved_.erase(block.saved_at);
}

void BlockIndex::forget_gathering(Block &block) {
    not_unsaved(block);
    not_saved(block);
    age_.erase(block.age);
    gathering_.erase(block.id);
}

void BlockIndex::show(const BlockRef &block) {
    if (BlockRef old = visible(block->id)) detach(old, UCM_NOT_FOUND);
    visible_.emplace(block->id, block);
}

void BlockIndex::publish(const BlockRef &block) {
    assert(block->phase == Phase::kGathering && block->whole());
    forget_gathering(*block);
    show(block);
    block->phase = Phase::kDirty;
}

void BlockIndex::settle(const BlockRef &block) {
    if (block->phase == Phase::kGathering) {
        forget_gathering(*block);
        show(block);
    }
    held_ -= block->slots;
    block->held = false;
    block->phase = Phase::kClean;
    eviction_.insert(*block);
    if (block->slots == 0 && block->pins == 0) detach(block, UCM_NOT_FOUND);
    room();
}

void BlockIndex::detach(const BlockRef &block, ucm_status end) {
    const BlockRef keep = block;  // `block` may be the map's own
    if (keep->phase == Phase::kGone) return;
    if (keep->phase == Phase::kGathering) {
        forget_gathering(*keep);
    } else {
        visible_.erase(keep->id);
        eviction_.erase(*keep);
    }
    keep->phase = Phase::kGone;
    keep->end = end;
    if (keep->pins == 0) free_slots(*keep);
    room();
}

void BlockIndex::free_slot(Block &block, uint32_t shard) {
    ShardEntry &entry = block.shards[shard];
    pool_.give(entry.slot);
    UCM_FAILPOINT("cache.released");
    entry.slot = kNoSlot;
    entry.state = ShardState::kAbsent;
    block.slots--;
    if (block.held) held_--;
    room();
}

void BlockIndex::free_slots(Block &block) {
    for (uint32_t shard = 0; shard < block.shards.size() && block.slots; shard++)
        if (block.shards[shard].slot != kNoSlot) free_slot(block, shard);
}

}  // namespace ucm::cache
