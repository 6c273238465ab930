// SPDX-License-Identifier: MIT
//
// What lies in a segment, as docs/shared-cache.md says. All of it is found by offsets: each process
// maps it somewhere else.
#pragma once

#include <pthread.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "task.h"

namespace ucm::cache {

constexpr char kMagic[8] = {'U', 'C', 'M', 'C', 'A', 'C', 'H', 'E'};
constexpr uint32_t kSegmentVersion = 2;
constexpr uint32_t kMembers = 64, kNobody = kMembers;  // who visits is no member
constexpr uint32_t kStripes = 1024;
constexpr uint32_t kLostRing = 4096;
constexpr uint32_t kNone = UINT32_MAX;

enum class SegmentPhase : uint32_t { kBuilding, kReady, kRemoved };

enum class State : uint32_t {
    kFree,
    kClean,      // visible, whole or in part; may be evicted
    kGathering,  // shards of dumps come in; nobody sees it
    kDirty,      // visible and whole, not stored below yet
    kZombie,     // in nobody's sight, its frame still in use
    kSpilled     // no frame: what an unfinished block has below
};

enum RecordFlag : uint32_t {
    kWriting = 1u << 0,   // its owner writes it below now
    kReplace = 1u << 1,   // goes below with UCM_TRANSFER_REPLACE
    kRemoved = 1u << 2,   // zombie: the block was removed
    kDeclined = 1u << 3,  // the store below does not want it
    kLost = 1u << 4,      // zombie or free: given up
    kFlush = 1u << 5,     // gathering: somebody drains; its owner is to write what there is
};

// One word of a shard: its state, who moves it, and whether the store below has it too.
enum class ShardState : uint32_t { kAbsent, kCopying, kLoading, kHere };
constexpr uint32_t kShardState = 0xff, kShardBelow = 1u << 8, kShardMember = 16;

constexpr uint32_t shard_word(ShardState state, uint32_t member, bool below) {
    return uint32_t(state) | (below ? kShardBelow : 0u) | member << kShardMember;
}
constexpr ShardState state_of(uint32_t word) {
    return ShardState(word & kShardState);
}
constexpr bool below_of(uint32_t word) {
    return (word & kShardBelow) != 0;
}
constexpr uint32_t member_of(uint32_t word) {
    return word >> kShardMember;
}

// A block's place in memory or, spilled, the memory of what lies below. Record i owns frame i.
struct alignas(64) Record {
    // What lookups and hits read without the mutex. Written with it, the first three only while the
    // stripe's sequence is odd.
    std::atomic<uint64_t> id[2];
    std::atomic<uint32_t> next;  // of the chain, or of the free list
    std::atomic<State> state;
    std::atomic<uint32_t> generation;
    std::atomic<uint32_t> here;  // shards
    // Written by hits, without the mutex.
    std::atomic<uint32_t> uses, last_used;
    std::atomic<int64_t> touched_below_ns;

    // With the mutex only.
    std::atomic<uint32_t> flags, owner;
    uint32_t have;   // shards here or below
    uint32_t users;  // shards that are being moved, the write below, and pins
    uint32_t queue, before, after;
    uint32_t depth;
    uint32_t end;      // a ucm_status: why it is gone
    uint32_t loading;  // of users: shards that are read from below
    uint64_t tag, number;
    int64_t touched_ns;  // its last shard
    int64_t rest_until_ns;
    uint64_t pins;  // a bit for each member of which copies of a device read its frame
};
static_assert(sizeof(Record) == 128);

inline BlockId id_of(const Record &record) {
    BlockId id;
    for (int k = 0; k < 2; k++) {
        const uint64_t half = record.id[k].load(std::memory_order_relaxed);
        std::memcpy(id.bytes + 8 * k, &half, sizeof half);
    }
    return id;
}

struct ShardInfo {
    std::atomic<uint64_t> length, raw_length;
    std::atomic<uint32_t> word;
    // With the mutex only. Of what is here and not published below: the member whose report has it
    // if it is lost. It has an account of it, unless kHanded is set, or the shard lies below.
    uint32_t reporter;
};
constexpr uint32_t kHanded = 1u << 31;

constexpr uint32_t kJoined = 1, kLeaving = 2;  // 0: nobody has the place

struct alignas(64) Member {
    std::atomic<uint32_t> joined;  // set last by join, cleared last by leave or by who cleans up
    std::atomic<uint32_t> bell;    // a futex
    uint32_t device;               // its copies are made by a device
    uint32_t reserved;
    int64_t pid;  // for people only
};

struct Queue {
    uint32_t first, last;
    std::atomic<uint32_t> size;  // read without the mutex by who counts
};

struct Header {
    char magic[8];
    uint32_t version, header_bytes;
    std::atomic<SegmentPhase> phase;
    uint32_t shards_per_block;
    uint64_t capacity, raw_capacity, slot_bytes;
    char encoding[UCM_ENCODING_BYTES];
    uint64_t identity;         // hash of namespace, model and fingerprint
    uint64_t pid_namespace;    // the mutex names its owner by a number of this one
    char label[128];           // for people only
    uint32_t keeps, loads;     // can the store below
    uint32_t frames, records;  // in all
    uint32_t buckets, ghosts;  // powers of two
    uint64_t members_at, stripes_at, buckets_at, ghosts_at, records_at, shards_at, data_at, bytes;
    std::atomic<uint64_t> wanting;  // a bit for each member that waits for its bell
    std::atomic<int64_t> used_ns;   // CLOCK_BOOTTIME of the last sign of life

    alignas(64) pthread_mutex_t mutex;     // guards all that follows, and what Record says
    std::atomic<uint32_t> frames_ready;    // allocated
    std::atomic<uint32_t> grower;          // member that allocates more now, or kNone
    Queue frame_list, spill_list;          // free records, longest free first
    Queue small, main;                     // clean ones, next to go first
    std::atomic<uint32_t> held;            // frames of what gathers or is dirty
    std::atomic<uint32_t> pressure;        // dumps of somebody find no frame
    uint32_t resting;                      // zombies into which I/O of the dead may still land
    std::atomic<uint64_t> changes;         // of owners, by others than the owner
    std::atomic<int64_t> grower_since_ns;  // may_grow reads both without the mutex
    uint64_t next_number;
    uint64_t small_left, main_left;  // evictions from each queue
    uint32_t small_target;           // blocks; 0: not chosen yet
    std::atomic<uint32_t> loading;   // frames that are filled from below
    std::atomic<uint32_t> broken;    // what is derived may be: the mutex was made anew
    std::atomic<uint64_t> evicted, lost_blocks;
    // What was given up lately: generation << 32 | record.
    uint64_t lost[kLostRing];
};

// `ucm inspect --memory` reads these; other places are another version.
static_assert(offsetof(Header, encoding) == 48 && offsetof(Header, label) == 128 &&
              offsetof(Header, members_at) == 280 && offsetof(Header, bytes) == 336 &&
              offsetof(Header, used_ns) == 352 && offsetof(Header, frames_ready) == 424 &&
              offsetof(Header, frame_list) == 432 && offsetof(Record, state) == 20 &&
              offsetof(Member, pid) == 16 && sizeof(Member) == 64);

// 16 bits of a hash, 1 of the queue that it left (1: main), 47 of its number there; 0: none.
using Ghost = uint64_t;
constexpr uint32_t kGhostWays = 4;  // places where one may be

}  // namespace ucm::cache
