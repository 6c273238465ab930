// SPDX-License-Identifier: MIT
//
// The blocks of a segment: which are here, in which frame, who moves them. What several processes
// do to it at once is in docs/shared-cache.md.
#pragma once

#include <algorithm>
#include <functional>
#include <utility>
#include <vector>

#include "segment.h"

namespace ucm::cache {

// A record as it was when it was found; worth nothing once its generation is another one.
struct BlockRef {
    uint32_t record = kNone, generation = 0;

    explicit operator bool() const { return record != kNone; }
    bool operator==(const BlockRef &other) const {
        return record == other.record && generation == other.generation;
    }
};

struct BlockRefHash {
    size_t operator()(const BlockRef &block) const {
        return (uint64_t(block.generation) << 32 | block.record) * 0x9e3779b97f4a7c15u >> 7;
    }
};

enum class Taking { kDump, kLoad, kPrefetch };

constexpr uint8_t kUnsure = 2;

// What can be seen of a segment without its mutex, by any thread.
class Index {
  public:
    // Of a mapping of the first part of a segment.
    explicit Index(const uint8_t *base);

    // The visible block of that id. `sure`: nothing changed meanwhile, so that "none" is true.
    BlockRef find(const BlockId &id, bool *sure = nullptr) const;
    // here[i] becomes 1 for those that are visible and whole, 0 for others; kUnsure where that
    // could not be told, because somebody was changing something there all the time.
    void find_whole(const uint8_t *ids, size_t n, uint8_t *here) const;

  private:
    size_t bucket(const BlockId &id) const {
        return BlockIdHash()(id) >> 16 & (header_.buckets - 1);
    }

    const Header &header_;
    const std::atomic<uint32_t> *const stripes_, *const buckets_;
    const Record *const records_;
};

class Table {
  public:
    // `device`: copies go on by themselves, and may outlive their process for a while.
    // Tests play several members over one mapping.
    Table(Segment &segment, bool device, uint32_t member = kNone);

    // Without the mutex, by any thread.

    BlockRef find(const BlockId &id) const { return index_.find(id); }
    void find_whole(const uint8_t *ids, size_t n, uint8_t *here) const {
        index_.find_whole(ids, n, here);
    }
    // Is what was copied from it since it was found what it should be?
    bool valid(const BlockRef &block) const;
    bool same(const BlockRef &block) const {
        return records_[block.record].generation.load(std::memory_order_acquire) ==
               block.generation;
    }
    uint32_t word(uint32_t record, uint32_t shard) const {
        return info(record, shard).word.load(std::memory_order_acquire);
    }
    uint64_t length(uint32_t record, uint32_t shard) const {
        return info(record, shard).length.load(std::memory_order_relaxed);
    }
    uint64_t raw_length(uint32_t record, uint32_t shard) const {
        return info(record, shard).raw_length.load(std::memory_order_relaxed);
    }
    uint8_t *slot(uint32_t record, uint32_t shard) const {
        return segment_.frame(record) + shard * slot_bytes_;
    }
    // A load found this shard. A pass over the shards of a block counts once.
    void used(uint32_t record, uint32_t shard) const;
    void touched(uint32_t record) const;
    // Has nobody told the store below for so long that this block is in use? Then it is noted.
    bool stale_below(uint32_t record, int64_t now_ns) const;

    // With the mutex.
    class Hold {
      public:
        explicit Hold(Table &table);
        ~Hold();  // rings, where something changed that others wait for
        Hold(const Hold &) = delete;

      private:
        Table &table_;
    };

    const Record &record(uint32_t number) const { return records_[number]; }
    Record &record(uint32_t number) { return records_[number]; }
    BlockId id(uint32_t record) const;
    BlockRef ref(uint32_t record) const {
        return {record, records_[record].generation.load(std::memory_order_relaxed)};
    }
    State state(const BlockRef &block) const {
        return same(block) ? records_[block.record].state.load(std::memory_order_relaxed)
                           : State::kFree;
    }
    bool whole(uint32_t record) const {
        return records_[record].here.load(std::memory_order_relaxed) == shards_;
    }
    bool complete(uint32_t record) const { return records_[record].have == shards_; }
    bool flagged(uint32_t record, uint32_t flag) const {
        return (records_[record].flags.load(std::memory_order_relaxed) & flag) != 0;
    }
    void flag(uint32_t record, uint32_t flag, bool on = true);
    uint32_t owner(uint32_t record) const {
        return records_[record].owner.load(std::memory_order_relaxed);
    }
    bool mine(uint32_t record) const { return owner(record) == member_; }
    bool partly_below(uint32_t record) const;
    // Who brought a shard reports its loss, until somebody else is handed that.
    uint32_t reporter(uint32_t record, uint32_t shard) const {
        return info(record, shard).reporter & ~kHanded;
    }
    bool handed(uint32_t record, uint32_t shard) const {
        return (info(record, shard).reporter & kHanded) != 0;
    }
    void report_by(uint32_t record, uint32_t shard, uint32_t member, bool handed) {
        info(record, shard).reporter = member | (handed ? kHanded : 0u);
    }

    BlockRef visible(const BlockId &id) const { return search(id, kSeen); }
    BlockRef gathering(const BlockId &id) const { return search(id, kGathers); }
    // Is another copy of this block being written below, or to be written before this one?
    bool older_is_on_its_way(uint32_t record) const;

    // A free record with a frame for this block, if need be of an evicted one. kNone: there is none
    // now.
    uint32_t take(Taking what, const BlockId &id);
    bool dumps_hold_all() const {
        return header_.held.load(std::memory_order_relaxed) >= held_most();
    }
    // So many, so that loads find room beside any number of dumps, and what is in use stays.
    uint32_t held_most() const {
        return std::max(1u, (may_grow() ? header_.frames : frames_ready()) / 2);
    }
    // Of a taken record; it is this member's.
    BlockRef start(uint32_t record, const BlockId &id, State state);
    // The block that gathers under this id; if it was spilled, in a frame again from now on.
    // `taken` is used up.
    BlockRef unspill(uint32_t taken, const BlockId &id);
    bool is_spilled(const BlockId &id) const { return bool(search(id, kSpills)); }
    void put(uint32_t record, uint32_t shard, ShardState state);
    void arrived(uint32_t record, uint32_t shard, uint64_t length, uint64_t raw_length);
    void vacate(uint32_t record, uint32_t shard);
    void below(uint32_t record, uint32_t shard, bool is);
    void begin_writing(uint32_t record);
    void end_writing(uint32_t record);

    // Gathering and whole: from now on it is what is seen; dirty, and this member's.
    void publish(uint32_t record);
    // Dirty or gathering: stored below now, or need not be. Visible and clean.
    void settle(uint32_t record);
    // From whatever it is to gone; its frame is free when nobody uses it any more.
    void detach(uint32_t record, ucm_status end, uint32_t flags = 0);
    // All that is here of an unfinished block lies below: gives its frame away. False: it cannot
    // be.
    bool spill(uint32_t record);
    // What this member has below of a spilled block is given up.
    void forget_spilled(const BlockId &id);

    // Every record, whose state is not free.
    template <typename F>
    void each(F body) {
        for (uint32_t r = 0; r < header_.records; r++)
            if (records_[r].state.load(std::memory_order_relaxed) != State::kFree) body(r);
    }
    // What was given up since `seen`, which moves on; false: more than can be told.
    bool lost_since(uint64_t &seen, std::vector<BlockRef> &lost) const;

    // More frames: between the two calls the segment allocates them, without the mutex. `count` 0:
    // there are to be no more, or somebody makes them now.
    struct Growth {
        uint32_t first = 0, count = 0;
    };
    Growth begin_growth();
    void end_growth(const Growth &growth, bool allocated);
    // Are there to be more frames soon, as far as is known? Nobody waits for a slow grower: it may
    // be stopped.
    bool may_grow() const;
    bool another_grows() const {
        const uint32_t grower = header_.grower.load(std::memory_order_relaxed);
        return grower != kNone && grower != member_;
    }
    uint32_t free_frames() const { return header_.frame_list.size; }

    struct Inheritance {
        std::vector<BlockRef> records;  // gathering and dirty ones that are this member's now
        std::vector<BlockRef> removed;  // to be removed below again, as if this member wrote them
        std::vector<BlockRef> brought;  // of others, with shards that this member reports now
        struct Lost {
            BlockId id;
            uint32_t shards;
        };
        std::vector<Lost> lost;  // what nobody else reports
        uint32_t members = 0;
    };
    // Takes over what dead members left, and what they moved. The first call makes this member one.
    Inheritance adopt();
    // Frees what rested long enough. When to come again, or INT64_MAX.
    int64_t wake_resting(int64_t now_ns);

    // Takes note of what came to belong to this member without its doing: true once each time.
    bool changed_hands() {
        const uint64_t now = header_.changes.load(std::memory_order_acquire);
        return std::exchange(changes_seen_, now) != now;
    }
    uint32_t members() const;
    // A living member other than this one that does not leave, or kNone.
    uint32_t another_member() const;
    // From here on nobody hands anything over to this member.
    void begin_leaving();
    // Is nobody there who could report anything?
    bool absent(uint32_t member) const {
        return member >= kMembers || !bell(member).joined.load(std::memory_order_acquire) ||
               segment_.dead(member);
    }
    void hand_over(uint32_t record, uint32_t member);
    // Zombies and frames that rest may take as many frames as loads are left.
    bool many_zombies() const;

    Header &header() const { return header_; }
    uint32_t member() const { return member_; }
    uint32_t shards() const { return shards_; }
    uint32_t frames_ready() const { return header_.frames_ready.load(std::memory_order_relaxed); }

    // This member's bell.
    void want(bool is);
    uint32_t rings() const { return bell(member_).bell.load(std::memory_order_seq_cst); }
    // Sleeps until the bell was rung after `seen`, for timeout_ns at most.
    void listen(uint32_t seen, int64_t timeout_ns) const;
    void ring(uint32_t member) const;
    void ring_all() const;      // who waits
    void ring_members() const;  // also who waits for nothing

    // Derives chains, lists and counters again from what the records say.
    void rebuild();

    // Told, with the mutex, when frames came free, shards came or went, or a block got a new state.
    std::function<void()> on_change;

  private:
    enum Sight { kSeen, kGathers, kSpills };
    enum QueueNumber : uint32_t { kNoQueue, kSmall, kMain };

    ShardInfo &info(uint32_t record, uint32_t shard) const {
        return infos_[uint64_t(record) * shards_ + shard];
    }
    Member &bell(uint32_t member) const { return members_[member]; }
    BlockRef search(const BlockId &id, Sight sight) const;
    size_t bucket(const BlockId &id) const {
        return BlockIdHash()(id) >> 16 & (header_.buckets - 1);
    }
    std::atomic<uint32_t> &stripe(size_t bucket) const { return stripes_[bucket % kStripes]; }
    void link(uint32_t record);
    void unlink(uint32_t record);
    void give(uint32_t record);
    void set_state(uint32_t record, State state);
    void clear(uint32_t record);
    void name(uint32_t record, const BlockId &id);
    void continue_as(uint32_t to, uint32_t from);
    void free(uint32_t record);
    void unused(uint32_t record);
    void changed();
    void recount(uint32_t record);
    void merge_duplicate(uint32_t record);

    void append(Queue &queue, uint32_t record, QueueNumber number);
    void unqueue(uint32_t record);
    void enqueue(uint32_t record);
    void recall(const BlockId &id);
    void to_back(Queue &queue, uint32_t record);
    bool evict(Taking what);
    uint32_t victim(Taking what);
    uint32_t examine(bool small, bool gentle, uint32_t &busy);
    uint32_t target() const;
    void remember(const BlockId &id, bool main);
    bool remembered(const BlockId &id);

    Segment &segment_;
    const Index index_;
    Header &header_;
    Member *const members_;
    std::atomic<uint32_t> *const stripes_, *const buckets_;
    Ghost *const ghosts_;
    Record *const records_;
    ShardInfo *const infos_;
    const uint32_t member_, shards_, device_;
    const uint64_t slot_bytes_;
    // Did the block for which the last frame was wanted leave lately? Asked before one makes way.
    BlockId recalled_{};
    bool returns_ = false;
    bool begun_ = false;
    int64_t no_growth_until_ns_ = 0;  // there was no room for more
    uint64_t changes_seen_ = 0;
    bool rings_ = false;  // guarded by the mutex: bells are to be rung when it is let go
};

}  // namespace ucm::cache
