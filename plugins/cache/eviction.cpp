// SPDX-License-Identifier: MIT
#include "eviction.h"

namespace ucm::cache {
namespace {

constexpr uint8_t kMostUses = 3;
constexpr size_t kFewestGhosts = 64;

}  // namespace

void Eviction::put(Block &block, Queue queue) {
    auto &list = queue == kSmall ? small_ : main_;
    block.queue = queue;
    block.place = list.insert(list.end(), &block);
}

void Eviction::insert(Block &block) {
    put(block, ghost_numbers_.erase(block.id) ? kMain : kSmall);
}

void Eviction::erase(Block &block) {
    if (block.queue == kNone) return;
    (block.queue == kSmall ? small_ : main_).erase(block.place);
    block.queue = kNone;
}

void Eviction::touched(Block &block) {
    if (block.uses < kMostUses) block.uses++;
}

void Eviction::used(Block &block, uint32_t shard) {
    if (block.last_used == UINT32_MAX || shard <= block.last_used) touched(block);
    block.last_used = shard;
}

// One step over the front of a queue: NULL if that one stays.
Block *Eviction::next(bool small, size_t &busy) {
    auto &list = small ? small_ : main_;
    Block &block = *list.front();
    if (block.pins) {
        busy++;
        list.splice(list.end(), list, list.begin());
        return nullptr;
    }
    if (block.uses && small) {
        block.uses = 0;
        erase(block);
        put(block, kMain);
        return nullptr;
    }
    if (block.uses) {
        block.uses--;
        list.splice(list.end(), list, list.begin());
        return nullptr;
    }
    erase(block);
    if (small) remember(block.id);
    return &block;
}

Block *Eviction::victim(bool patient) {
    size_t busy_small = 0, busy_main = 0;
    for (;;) {
        const bool small_left = busy_small < small_.size();
        // What is used in main stays for a round more, up to kMostUses rounds.
        const bool main_left = busy_main < (kMostUses + 1) * main_.size();
        if (!small_left && !main_left) return nullptr;
        const bool small_is_large = small_.size() * 10 >= small_.size() + main_.size();
        if (patient && small_is_large && !small_left && !small_.empty()) return nullptr;
        const bool small = small_left && (small_is_large || !main_left);
        if (Block *block = next(small, small ? busy_small : busy_main)) return block;
    }
}

void Eviction::remember(const BlockId &id) {
    ghosts_.emplace_back(id, next_ghost_);
    ghost_numbers_[id] = next_ghost_++;
    while (ghosts_.size() > std::max(kFewestGhosts, small_.size() + main_.size())) {
        auto found = ghost_numbers_.find(ghosts_.front().first);
        if (found != ghost_numbers_.end() && found->second == ghosts_.front().second)
            ghost_numbers_.erase(found);
        ghosts_.pop_front();
    }
}

}  // namespace ucm::cache
