// SPDX-License-Identifier: MIT
#include "table.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <climits>
#include <cstring>

#include "failpoint.h"

namespace ucm::cache {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;
constexpr auto kAcquire = std::memory_order_acquire;
constexpr auto kRelease = std::memory_order_release;

constexpr int kAttempts = 1000, kPatience = 50;
constexpr uint32_t kMostUses = 3;
constexpr uint32_t kGentleSteps = 64;
// The kernel ends a process's own reads before it drops its lock; those of network file systems
// and devices may be later.
constexpr int64_t kRestNs = 5ll * 1000000000;
constexpr int64_t kTouchBelowNs = 60ll * 1000000000;
constexpr Ghost kGhostOfMain = Ghost(1) << 47, kGhostNumber = kGhostOfMain - 1;
constexpr int64_t kNoGrowthNs = 10ll * 1000000000;
constexpr int64_t kSlowGrowthNs = 200 * 1000000;

// ThreadSanitizer does not know fences; x86 needs none here but the compiler's.
void full_fence() {
#if !defined(__SANITIZE_THREAD__)
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

bool seen(State state) {
    return state == State::kClean || state == State::kDirty;
}

uint64_t half(const BlockId &id, int which) {
    uint64_t value;
    std::memcpy(&value, id.bytes + 8 * which, 8);
    return value;
}

bool has_id(const Record &record, const BlockId &id) {
    return record.id[0].load(kAcquire) == half(id, 0) && record.id[1].load(kAcquire) == half(id, 1);
}

// Readers of this stripe look again. One inside another is part of that.
class StripeChange {
  public:
    explicit StripeChange(std::atomic<uint32_t> &sequence)
        : sequence_(sequence), outer_((sequence.load(kRelaxed) & 1) == 0) {
        if (outer_) sequence_.fetch_add(1, std::memory_order_acq_rel);
    }
    ~StripeChange() {
        if (outer_) sequence_.fetch_add(1, kRelease);
    }

  private:
    std::atomic<uint32_t> &sequence_;
    const bool outer_;
};

}  // namespace

Index::Index(const uint8_t *base)
    : header_(*reinterpret_cast<const Header *>(base)),
      stripes_(reinterpret_cast<const std::atomic<uint32_t> *>(base + header_.stripes_at)),
      buckets_(reinterpret_cast<const std::atomic<uint32_t> *>(base + header_.buckets_at)),
      records_(reinterpret_cast<const Record *>(base + header_.records_at)) {}

BlockRef Index::find(const BlockId &id, bool *sure) const {
    const size_t b = bucket(id);
    if (sure) *sure = true;
    for (int attempt = 0; attempt < kAttempts; attempt++) {
        const uint32_t before = stripes_[b % kStripes].load(kAcquire);
        if (attempt > kPatience) sched_yield();  // who changes it may wait for this core
        if (before & 1) continue;
        BlockRef found;
        uint32_t steps = 0, r = buckets_[b].load(kAcquire);
        while (r < header_.records && steps++ < header_.records) {
            const Record &each = records_[r];
            // First: of a record that becomes free now, the old one.
            const uint32_t generation = each.generation.load(kAcquire);
            if (has_id(each, id) && seen(each.state.load(kAcquire))) {
                found = {r, generation};
                break;
            }
            r = each.next.load(kAcquire);
        }
        if (stripes_[b % kStripes].load(kAcquire) == before) return found;
    }
    if (sure) *sure = false;
    return {};
}

void Index::find_whole(const uint8_t *ids, size_t n, uint8_t *here) const {
    constexpr size_t kAhead = 16;
    for (size_t first = 0; first < n; first += kAhead) {
        const size_t end = std::min(n, first + kAhead);
        for (size_t i = first; i < end; i++)
            __builtin_prefetch(&buckets_[bucket(BlockId::at(ids, i))]);
        for (size_t i = first; i < end; i++) {
            const uint32_t r = buckets_[bucket(BlockId::at(ids, i))].load(kRelaxed);
            if (r < header_.records) __builtin_prefetch(&records_[r]);
        }
        for (size_t i = first; i < end; i++) {
            bool sure = false;
            const BlockRef block = find(BlockId::at(ids, i), &sure);
            here[i] =
                !sure
                    ? kUnsure
                    : block &&
                          records_[block.record].here.load(kAcquire) == header_.shards_per_block &&
                          records_[block.record].generation.load(kAcquire) == block.generation;
        }
    }
}

Table::Table(Segment &segment, bool device, uint32_t member)
    : segment_(segment),
      index_(segment.at<uint8_t>(0)),
      header_(segment.header()),
      members_(segment.at<Member>(header_.members_at)),
      stripes_(segment.at<std::atomic<uint32_t>>(header_.stripes_at)),
      buckets_(segment.at<std::atomic<uint32_t>>(header_.buckets_at)),
      ghosts_(segment.at<Ghost>(header_.ghosts_at)),
      records_(segment.at<Record>(header_.records_at)),
      infos_(segment.at<ShardInfo>(header_.shards_at)),
      member_(member == kNone ? segment.member() : member),
      shards_(header_.shards_per_block),
      device_(device),
      slot_bytes_(header_.slot_bytes) {}

Table::Hold::Hold(Table &table) : table_(table) {
    const int error = pthread_mutex_lock(&table.header_.mutex);
    if (error && error != EOWNERDEAD)
        throw Error(UCM_INTERNAL, "the mutex of the cache cannot be locked", error);
    if (error || table.header_.broken.load(kRelaxed)) {
        table.rebuild();
        table.header_.broken.store(0, kRelaxed);
    }
    if (error) pthread_mutex_consistent(&table.header_.mutex);
}

Table::Hold::~Hold() {
    const bool ring = table_.rings_;
    table_.rings_ = false;
    pthread_mutex_unlock(&table_.header_.mutex);
    full_fence();  // a new generation is seen before new bytes in the frame
    if (ring) table_.ring_all();
}

void Table::changed() {
    rings_ = true;
    if (on_change) on_change();
}

// Lookups and hits.

bool Table::valid(const BlockRef &block) const {
#if !defined(__SANITIZE_THREAD__)
    std::atomic_thread_fence(kAcquire);  // the copy ends before the look
#endif
    return same(block);
}

void Table::used(uint32_t record, uint32_t shard) const {
    Record &each = records_[record];
    const uint32_t last = each.last_used.load(kRelaxed);
    if (last == kNone || shard <= last) touched(record);
    if (last != shard) each.last_used.store(shard, kRelaxed);
}

void Table::touched(uint32_t record) const {
    Record &each = records_[record];
    const uint32_t uses = each.uses.load(kRelaxed);
    if (uses < kMostUses) each.uses.store(uses + 1, kRelaxed);
}

bool Table::stale_below(uint32_t record, int64_t now_ns) const {
    Record &each = records_[record];
    int64_t last = each.touched_below_ns.load(kRelaxed);
    return now_ns - last > kTouchBelowNs &&
           each.touched_below_ns.compare_exchange_strong(last, now_ns, kRelaxed);
}

// Chains and records.

BlockId Table::id(uint32_t record) const {
    return id_of(records_[record]);
}

BlockRef Table::search(const BlockId &id, Sight sight) const {
    for (uint32_t r = buckets_[bucket(id)].load(kRelaxed); r != kNone;
         r = records_[r].next.load(kRelaxed)) {
        const State state = records_[r].state.load(kRelaxed);
        const bool fits = sight == kSeen      ? seen(state)
                          : sight == kGathers ? state == State::kGathering
                                              : state == State::kSpilled;
        if (fits && has_id(records_[r], id)) return ref(r);
    }
    return {};
}

bool Table::older_is_on_its_way(uint32_t record) const {
    const BlockId mine = id(record);
    for (uint32_t r = buckets_[bucket(mine)].load(kRelaxed); r != kNone;
         r = records_[r].next.load(kRelaxed)) {
        if (r == record || !has_id(records_[r], mine)) continue;
        if (flagged(r, kWriting)) return true;
        if (records_[r].state.load(kRelaxed) == State::kDirty &&
            records_[r].number < records_[record].number)
            return true;
    }
    return false;
}

bool Table::partly_below(uint32_t record) const {
    bool is = flagged(record, kWriting);
    for (uint32_t shard = 0; shard < shards_ && !is; shard++) is = below_of(word(record, shard));
    return is;
}

void Table::flag(uint32_t record, uint32_t flag, bool on) {
    const uint32_t flags = records_[record].flags.load(kRelaxed);
    records_[record].flags.store(on ? flags | flag : flags & ~flag, kRelease);
}

void Table::link(uint32_t record) {
    const size_t b = bucket(id(record));
    const StripeChange change(stripe(b));
    records_[record].next.store(buckets_[b].load(kRelaxed), kRelease);
    buckets_[b].store(record, kRelease);
}

void Table::unlink(uint32_t record) {
    const size_t b = bucket(id(record));
    const StripeChange change(stripe(b));
    std::atomic<uint32_t> *from = &buckets_[b];
    for (uint32_t r = from->load(kRelaxed); r != kNone; r = from->load(kRelaxed)) {
        if (r == record) {
            from->store(records_[r].next.load(kRelaxed), kRelease);
            return;
        }
        from = &records_[r].next;
    }
}

// To the end of its list of free ones.
void Table::give(uint32_t record) {
    Queue &list = record < header_.frames ? header_.frame_list : header_.spill_list;
    records_[record].next.store(kNone, kRelease);
    if (list.size == 0)
        list.first = record;
    else
        records_[list.last].next.store(record, kRelease);
    list.last = record;
    list.size++;
}

void Table::set_state(uint32_t record, State state) {
    Record &each = records_[record];
    const State before = each.state.load(kRelaxed);
    const auto held = [&](State s) {
        return record < header_.frames && (s == State::kGathering || s == State::kDirty);
    };
    if (held(state) != held(before)) header_.held.fetch_add(held(state) ? 1 : -1u, kRelaxed);
    each.state.store(state, kRelease);
}

// Its owner has it to itself: nothing of what it was is left.
void Table::clear(uint32_t record) {
    Record &each = records_[record];
    each.here.store(0, kRelaxed);
    each.uses.store(0, kRelaxed);
    each.last_used.store(kNone, kRelaxed);
    each.touched_below_ns.store(0, kRelaxed);
    each.flags.store(0, kRelaxed);
    each.owner.store(member_, kRelaxed);
    each.have = each.users = each.loading = 0;
    each.queue = kNoQueue;
    each.depth = kUnknownDepth;
    each.end = UCM_CANCELLED;
    each.tag = 0;
    each.number = header_.next_number++;
    each.touched_ns = monotonic_ns();
    each.rest_until_ns = 0;
    each.pins = 0;
    for (uint32_t shard = 0; shard < shards_; shard++) info(record, shard).word.store(0, kRelaxed);
}

void Table::name(uint32_t record, const BlockId &id) {
    const StripeChange change(stripe(bucket(id)));
    for (int k = 0; k < 2; k++) records_[record].id[k].store(half(id, k), kRelease);
}

BlockRef Table::start(uint32_t record, const BlockId &id, State state) {
    clear(record);
    name(record, id);
    set_state(record, state);
    link(record);
    UCM_FAILPOINT("cache.started");
    if (state == State::kClean) enqueue(record);
    return ref(record);
}

// Its frame may be filled anew: whoever still copies from it finds another generation.
void Table::free(uint32_t record) {
    Record &each = records_[record];
    each.generation.fetch_add(1, kRelease);  // first: a free record is never what it was
    unlink(record);
    set_state(record, State::kFree);
    UCM_FAILPOINT("cache.released");
    give(record);
    changed();
}

// Nobody moves anything of it now, perhaps.
void Table::unused(uint32_t record) {
    Record &each = records_[record];
    changed();
    if (each.users || each.rest_until_ns) return;
    const State state = each.state.load(kRelaxed);
    if (state == State::kZombie) return free(record);
    if (state == State::kClean && each.here.load(kRelaxed) == 0) detach(record, UCM_NOT_FOUND);
    if (state == State::kGathering && each.have == 0) detach(record, UCM_CANCELLED);
}

// A shard more, or less, of it is being read from below.
void Table::count_loading(uint32_t record, bool more) {
    uint32_t &loading = records_[record].loading;
    if (more && loading++ == 0) header_.loading.fetch_add(1, kRelaxed);
    if (!more && --loading == 0) header_.loading.fetch_sub(1, kRelaxed);
}

void Table::put(uint32_t record, uint32_t shard, ShardState state) {
    ShardInfo &each = info(record, shard);
    records_[record].users++;
    if (state == ShardState::kLoading) count_loading(record, true);
    each.word.store(shard_word(state, member_, below_of(each.word.load(kRelaxed))), kRelease);
}

void Table::arrived(uint32_t record, uint32_t shard, uint64_t length, uint64_t raw_length) {
    Record &each = records_[record];
    ShardInfo &info = this->info(record, shard);
    const uint32_t before = info.word.load(kRelaxed);
    const bool below = below_of(before);
    if (state_of(before) == ShardState::kLoading) count_loading(record, false);
    info.length.store(length, kRelaxed);
    info.raw_length.store(raw_length, kRelaxed);
    info.reporter = member_;
    info.word.store(shard_word(ShardState::kHere, 0, below), kRelease);
    each.here.fetch_add(1, kRelease);
    if (!below) each.have++;
    each.users--;
    unused(record);
}

void Table::vacate(uint32_t record, uint32_t shard) {
    ShardInfo &each = info(record, shard);
    const uint32_t before = each.word.load(kRelaxed);
    if (state_of(before) == ShardState::kLoading) count_loading(record, false);
    each.word.store(shard_word(ShardState::kAbsent, 0, below_of(before)), kRelease);
    records_[record].users--;
    unused(record);
}

void Table::below(uint32_t record, uint32_t shard, bool is) {
    ShardInfo &each = info(record, shard);
    const uint32_t word = each.word.load(kRelaxed);
    if (below_of(word) == is) return;
    if (state_of(word) != ShardState::kHere) records_[record].have += is ? 1 : -1u;
    each.word.store(shard_word(state_of(word), member_of(word), is), kRelease);
}

bool Table::pin(const BlockRef &block, uint32_t shard) {
    if (!same(block) || state_of(word(block.record, shard)) != ShardState::kHere) return false;
    if (pinned_[block.record]++) return true;
    records_[block.record].pins |= uint64_t(1) << member_;
    records_[block.record].users++;
    return true;
}

void Table::unpin(uint32_t record) {
    const auto found = pinned_.find(record);
    if (--found->second) return;
    pinned_.erase(found);
    records_[record].pins &= ~(uint64_t(1) << member_);
    records_[record].users--;
    unused(record);
}

void Table::begin_writing(uint32_t record) {
    flag(record, kWriting);
    records_[record].users++;
}

void Table::end_writing(uint32_t record) {
    flag(record, kWriting, false);
    records_[record].users--;
    unused(record);
}

void Table::publish(uint32_t record) {
    // What its owner writes now, or has below in part, only the owner can complete there.
    const bool keep = partly_below(record);
    const StripeChange change(stripe(bucket(id(record))));
    if (const BlockRef old = visible(id(record))) detach(old.record, UCM_CANCELLED);
    if (!keep) records_[record].owner.store(member_, kRelease);
    set_state(record, State::kDirty);
    UCM_FAILPOINT("cache.published");
    changed();
}

void Table::settle(uint32_t record) {
    const StripeChange change(stripe(bucket(id(record))));
    const BlockRef old = visible(id(record));
    if (old && old.record != record) detach(old.record, UCM_CANCELLED);
    set_state(record, State::kClean);
    UCM_FAILPOINT("cache.settled");
    enqueue(record);
    unused(record);
}

void Table::detach(uint32_t record, ucm_status end, uint32_t flags) {
    Record &each = records_[record];
    const State state = each.state.load(kRelaxed);
    if (state == State::kZombie || state == State::kFree) return;
    if (each.queue != kNoQueue) unqueue(record);
    each.end = uint32_t(end);
    flag(record, flags);
    if (flags & kLost)
        header_.lost[header_.lost_blocks.fetch_add(1, kRelease) % kLostRing] =
            uint64_t(each.generation.load(kRelaxed)) << 32 | record;
    set_state(record, State::kZombie);
    UCM_FAILPOINT("cache.detached");
    unused(record);
}

bool Table::lost_since(uint64_t &seen, std::vector<BlockRef> &lost) const {
    const uint64_t now = header_.lost_blocks.load(kAcquire);
    const bool all = now - seen <= kLostRing;
    for (uint64_t k = all ? seen : now - kLostRing; k < now; k++) {
        const uint64_t entry = header_.lost[k % kLostRing];
        lost.push_back({uint32_t(entry), uint32_t(entry >> 32)});
    }
    seen = now;
    return all;
}

// Spilled blocks.

// An unfinished block goes on in another record: what it is, and what of it lies below.
void Table::continue_as(uint32_t to, uint32_t from) {
    Record &target = records_[to];
    const Record &source = records_[from];
    for (uint32_t shard = 0; shard < shards_; shard++)
        if (below_of(word(from, shard)))
            info(to, shard).word.store(shard_word(ShardState::kAbsent, 0, true), kRelaxed);
    target.have = source.have;
    target.owner.store(source.owner.load(kRelaxed), kRelaxed);
    target.flags.store(source.flags.load(kRelaxed) & kReplace, kRelaxed);
    target.depth = source.depth;
    target.tag = source.tag;
    target.number = source.number;
}

bool Table::spill(uint32_t record) {
    Record &each = records_[record];
    if (each.state.load(kRelaxed) != State::kGathering || each.users || complete(record))
        return false;
    for (uint32_t shard = 0; shard < shards_; shard++) {
        const uint32_t w = word(record, shard);
        if (state_of(w) != ShardState::kAbsent && !below_of(w)) return false;
    }
    const uint32_t to = header_.spill_list.first;
    if (header_.spill_list.size == 0) return false;
    header_.spill_list.first = records_[to].next.load(kRelaxed);
    header_.spill_list.size--;
    clear(to);
    continue_as(to, record);
    records_[to].touched_ns = each.touched_ns;
    name(to, id(record));
    set_state(to, State::kSpilled);
    link(to);
    UCM_FAILPOINT("cache.spilled");
    free(record);
    return true;
}

BlockRef Table::unspill(uint32_t taken, const BlockId &id) {
    const BlockRef from = search(id, kSpills);
    start(taken, id, State::kGathering);
    continue_as(taken, from.record);
    UCM_FAILPOINT("cache.unspilled");
    free(from.record);
    return ref(taken);
}

void Table::forget_spilled(const BlockId &id) {
    if (const BlockRef block = search(id, kSpills)) free(block.record);
}

// Frames.

uint32_t Table::take(Taking what, const BlockId &id) {
    recall(id);
    if (what == Taking::kDump && dumps_hold_all()) return kNone;
    while (header_.frame_list.size == 0)
        if (may_grow() || !evict(what)) return kNone;
    const uint32_t record = header_.frame_list.first;
    header_.frame_list.first = records_[record].next.load(kRelaxed);
    header_.frame_list.size--;
    return record;
}

bool Table::evict(Taking what) {
    const uint32_t record = victim(what);
    if (record == kNone) return false;
    header_.evicted.fetch_add(1, kRelaxed);
    detach(record, UCM_NOT_FOUND);
    return true;
}

bool Table::may_grow() const {
    const int64_t now_ns = monotonic_ns();
    if (frames_ready() >= header_.frames || now_ns <= no_growth_until_ns_) return false;
    return header_.grower.load(kRelaxed) == kNone ||
           now_ns - header_.grower_since_ns.load(kRelaxed) < kSlowGrowthNs;
}

Table::Growth Table::begin_growth() {
    Growth growth;
    if (!may_grow() || header_.grower != kNone) return growth;
    header_.grower_since_ns.store(monotonic_ns(), kRelaxed);
    header_.grower = member_;
    growth.first = frames_ready();
    growth.count = std::min(segment_.step_frames(), header_.frames - growth.first);
    return growth;
}

void Table::end_growth(const Growth &growth, bool allocated) {
    header_.grower = kNone;
    if (!allocated) no_growth_until_ns_ = monotonic_ns() + kNoGrowthNs;
    if (!allocated) return changed();
    for (uint32_t k = 0; k < growth.count; k++) give(growth.first + k);
    header_.frames_ready.store(growth.first + growth.count, kRelease);
    changed();
}

// Eviction: S3-FIFO over clean blocks, with a small queue whose size follows what is missed. New
// blocks pass through the small queue, and only those that are used there, or come back soon after
// they left, reach the main queue. See docs/eviction.md.

void Table::append(Queue &queue, uint32_t record, QueueNumber number) {
    Record &each = records_[record];
    each.before = queue.last;
    each.after = kNone;
    if (queue.last == kNone)
        queue.first = record;
    else
        records_[queue.last].after = record;
    queue.last = record;
    queue.size++;
    each.queue = number;
}

void Table::unqueue(uint32_t record) {
    Record &each = records_[record];
    Queue &queue = each.queue == kSmall ? header_.small : header_.main;
    (each.before == kNone ? queue.first : records_[each.before].after) = each.after;
    (each.after == kNone ? queue.last : records_[each.after].before) = each.before;
    queue.size--;
    each.queue = kNoQueue;
}

void Table::recall(const BlockId &id) {
    if (id == recalled_ && returns_) return;
    recalled_ = id;
    returns_ = remembered(id);
}

void Table::enqueue(uint32_t record) {
    recall(id(record));
    if (std::exchange(returns_, false))
        append(header_.main, record, kMain);
    else
        append(header_.small, record, kSmall);
}

void Table::to_back(Queue &queue, uint32_t record) {
    const auto number = QueueNumber(records_[record].queue);
    unqueue(record);
    append(queue, record, number);
}

// One step over the front of a queue: kNone if that one stays.
uint32_t Table::examine(bool small, bool gentle, uint32_t &busy) {
    Queue &queue = small ? header_.small : header_.main;
    const uint32_t record = queue.first;
    Record &each = records_[record];
    const uint32_t uses = each.uses.load(kRelaxed);
    if (each.users || (gentle && uses)) {
        busy++;
        to_back(queue, record);
        return kNone;
    }
    if (uses && small) {
        each.uses.store(uses - 1, kRelaxed);
        unqueue(record);
        append(header_.main, record, kMain);
        return kNone;
    }
    if (uses) {
        each.uses.store(uses - 1, kRelaxed);
        to_back(queue, record);
        return kNone;
    }
    remember(id(record), !small);
    return record;
}

// A block that nobody moves. A load leaves alone what is in main while all of a large small queue
// is being filled, so that loads in flight do not flush what is used; a prefetch leaves all that
// is used.
uint32_t Table::victim(Taking what) {
    Queue &small = header_.small, &main = header_.main;
    const bool gentle = what == Taking::kPrefetch;
    uint32_t busy_small = 0, busy_main = 0, steps = 0;
    for (;;) {
        const bool small_left = busy_small < small.size;
        // What is used in main stays for a round more, up to kMostUses rounds.
        const bool main_left = !gentle && busy_main < (kMostUses + 1) * main.size;
        if (!small_left && !main_left) return kNone;
        if (gentle && ++steps > kGentleSteps) return kNone;
        if (what != Taking::kDump && small.size >= target() && !small_left) return kNone;
        // What dumps hold enters small when it is stored: a stream of dumps passes through there.
        const bool small_is_large = small.size + header_.held.load(kRelaxed) >= target();
        const bool from_small = small_left && (small_is_large || !main_left);
        const uint32_t record = examine(from_small, gentle, from_small ? busy_small : busy_main);
        if (record != kNone) return record;
    }
}

uint32_t Table::target() const {
    return header_.small_target ? header_.small_target : std::max(1u, frames_ready() / 2);
}

void Table::remember(const BlockId &id, bool main) {
    const uint64_t hash = BlockIdHash()(id);
    Ghost *const ways = ghosts_ + (hash >> 16 & (header_.ghosts - kGhostWays));
    // The one that would be forgotten first: those of main live an eighth as long.
    const auto age = [&](Ghost ghost) {
        if (!ghost) return UINT64_MAX;
        const bool of_main = (ghost & kGhostOfMain) != 0;
        const uint64_t left = of_main ? header_.main_left : header_.small_left;
        return (left - (ghost & kGhostNumber)) * (of_main ? 8 : 1);
    };
    Ghost *oldest = ways;
    for (uint32_t k = 1; k < kGhostWays; k++)
        if (age(ways[k]) > age(*oldest)) oldest = &ways[k];
    const uint64_t left = main ? ++header_.main_left : ++header_.small_left;
    *oldest = (hash >> 48 << 48) | (main ? kGhostOfMain : 0) | (left & kGhostNumber);
}

// Is it to go to the main queue at once? What comes back moves the border between the two.
bool Table::remembered(const BlockId &id) {
    const uint64_t hash = BlockIdHash()(id);
    Ghost *const ways = ghosts_ + (hash >> 16 & (header_.ghosts - kGhostWays));
    const uint32_t frames = frames_ready();
    const uint64_t near = std::max(1u, frames / 4);
    const uint32_t least = std::max(1u, frames / 50),
                   most = std::max(1u, uint32_t(uint64_t(frames) * 6 / 10));
    for (const bool main : {false, true}) {
        for (uint32_t k = 0; k < kGhostWays; k++) {
            if (!ways[k] || ways[k] >> 48 != hash >> 48) continue;
            if (((ways[k] & kGhostOfMain) != 0) != main) continue;
            const uint64_t left = main ? header_.main_left : header_.small_left;
            const uint64_t age = left - (ways[k] & kGhostNumber);
            ways[k] = 0;
            if (age >= (main ? near : 2 * uint64_t(frames))) continue;
            if (main)
                header_.small_target = target() > least + 4 ? target() - 4 : least;
            else if (age < near)
                header_.small_target = std::min(most, target() + 2);
            return true;
        }
    }
    return false;
}

// The dead.

Table::Inheritance Table::adopt() {
    Inheritance all;
    if (begun_ && bell(member_).joined.load(kRelaxed) == kLeaving) return all;
    const int64_t now_ns = monotonic_ns();
    std::vector<uint32_t> dead;
    for (uint32_t m = 0; m < kMembers; m++)
        if (bell(m).joined.load(kAcquire) && segment_.dead(m)) dead.push_back(m);
    // Whoever had this member's place is dead: its lock could be taken.
    if (!begun_) dead.push_back(member_);
    begun_ = true;
    // Who died in its first look here may own records, and had not joined yet.
    const auto gone = [&](uint32_t m) {
        return std::find(dead.begin(), dead.end(), m) != dead.end() ||
               (m < kMembers && m != member_ && bell(m).joined.load(kAcquire) == 0);
    };
    // Is this shard of a block that ends here in nobody else's report?
    const auto lost_with = [&](uint32_t r, uint32_t shard, bool orphan) {
        const uint32_t w = word(r, shard);
        const bool here = state_of(w) == ShardState::kHere;
        if (!header_.keeps) return here;
        return below_of(w) ? orphan && (!here || gone(reporter(r, shard)))
                           : here && gone(reporter(r, shard));
    };
    if (dead.empty()) return all;
    each([&](uint32_t r) {
        Record &record = records_[r];
        const State state = record.state.load(kRelaxed);
        const bool orphan = gone(record.owner.load(kRelaxed));
        if (state == State::kSpilled) {
            if (!orphan) return;
            all.lost.push_back({id(r), record.have});
            return free(r);
        }
        const auto left_by_dead = [&](uint32_t w) {
            const ShardState is = state_of(w);
            return (is == ShardState::kCopying || is == ShardState::kLoading) && gone(member_of(w));
        };
        // What the dead one's device still reads goes to nobody.
        for (uint64_t pins = record.pins; pins; pins &= pins - 1) {
            const auto m = uint32_t(__builtin_ctzll(pins));
            if (!gone(m)) continue;
            record.pins &= ~(uint64_t(1) << m);
            record.users--;
        }
        const bool unsaved = state == State::kGathering || state == State::kDirty;
        uint32_t lost = 0;
        bool rests = false;
        for (uint32_t shard = 0; shard < shards_ && record.users; shard++) {
            const uint32_t w = word(r, shard);
            rests = rests || (left_by_dead(w) &&
                              (state_of(w) == ShardState::kLoading || bell(member_of(w)).device));
        }
        if (rests) {  // noted before the words that say why are gone
            record.rest_until_ns = now_ns + kRestNs;
            header_.resting++;
        }
        for (uint32_t shard = 0; shard < shards_ && record.users; shard++) {
            const uint32_t w = word(r, shard);
            if (!left_by_dead(w)) continue;
            info(r, shard).word.store(shard_word(ShardState::kAbsent, 0, below_of(w)), kRelease);
            if (state_of(w) == ShardState::kLoading) count_loading(r, false);
            record.users--;
        }
        if (orphan && flagged(r, kWriting)) {
            if (state == State::kZombie && flagged(r, kRemoved)) {
                // Nobody writes this id before it has been removed below.
                record.owner.store(member_, kRelease);
                all.removed.push_back(ref(r));
            } else {
                flag(r, kWriting, false);
                record.users--;
            }
        }
        if (rests) {
            for (uint32_t shard = 0; shard < shards_ && unsaved; shard++)
                lost += lost_with(r, shard, orphan);
            detach(r, UCM_NOT_FOUND, state == State::kGathering ? uint32_t(kLost) : 0u);
        } else if (orphan && unsaved) {
            for (uint32_t shard = 0; shard < shards_; shard++) {
                const uint32_t w = word(r, shard);
                if (state_of(w) != ShardState::kHere)
                    lost += below_of(w);
                else if (gone(reporter(r, shard)))
                    report_by(r, shard, member_, true);
                below(r, shard, false);
            }
            record.owner.store(member_, kRelease);
            UCM_FAILPOINT("cache.adopted");
            if (record.have || record.users)
                all.records.push_back(ref(r));
            else
                detach(r, UCM_CANCELLED, kLost);
        } else {
            bool any = false;
            for (uint32_t shard = 0; shard < shards_ && unsaved; shard++) {
                const uint32_t w = word(r, shard);
                if (state_of(w) != ShardState::kHere || !gone(reporter(r, shard))) continue;
                // What lies below is its owner's.
                report_by(r, shard, below_of(w) ? owner(r) : member_, !below_of(w));
                any = any || !below_of(w);
            }
            if (any) all.brought.push_back(ref(r));
            unused(r);
        }
        if (lost) all.lost.push_back({id(r), lost});
    });
    header_.changes.fetch_add(1, kRelease);
    for (uint32_t m : dead) {
        if (header_.grower == m) header_.grower = kNone;
        all.members += bell(m).joined.load(kRelaxed) != 0;
        header_.wanting.fetch_and(~(uint64_t(1) << m));
        bell(m).joined.store(0, kRelease);
    }
    bell(member_).pid = getpid();
    bell(member_).device = device_;
    bell(member_).joined.store(kJoined, kRelease);
    changed();
    return all;
}

int64_t Table::wake_resting(int64_t now_ns) {
    int64_t next = INT64_MAX;
    if (header_.resting == 0) return next;
    uint32_t still = 0;
    each([&](uint32_t r) {
        Record &record = records_[r];
        if (!record.rest_until_ns) return;
        if (record.rest_until_ns > now_ns) {
            still++;
            next = std::min(next, record.rest_until_ns);
            return;
        }
        record.rest_until_ns = 0;
        unused(r);
    });
    header_.resting = still;
    return next;
}

uint32_t Table::members() const {
    uint32_t count = 0;
    for (uint32_t m = 0; m < kMembers; m++) count += bell(m).joined.load(kRelaxed) != 0;
    return count;
}

uint32_t Table::another_member() const {
    for (uint32_t m = 0; m < kMembers; m++)
        if (m != member_ && bell(m).joined.load(kAcquire) == kJoined && !segment_.dead(m)) return m;
    return kNone;
}

void Table::begin_leaving() {
    bell(member_).joined.store(kLeaving, kRelease);
}

void Table::hand_over(uint32_t record, uint32_t member) {
    records_[record].owner.store(member, kRelease);
    header_.changes.fetch_add(1, kRelease);
    ring(member);
}

bool Table::many_zombies() const {
    uint32_t zombies = 0;
    for (uint32_t r = 0; r < header_.frames; r++)
        zombies += records_[r].state.load(kRelaxed) == State::kZombie;
    return zombies >= std::max(1u, header_.frames / 16);
}

void Table::recount(uint32_t r) {
    Record &record = records_[r];
    uint32_t here = 0;
    record.have = record.users = record.loading = 0;
    for (uint32_t shard = 0; shard < shards_; shard++) {
        const uint32_t w = word(r, shard);
        const ShardState is = state_of(w);
        here += is == ShardState::kHere;
        record.have += is == ShardState::kHere || below_of(w);
        record.users += is == ShardState::kCopying || is == ShardState::kLoading;
        record.loading += is == ShardState::kLoading;
    }
    record.here.store(here, kRelease);
    record.users += flagged(r, kWriting) + uint32_t(__builtin_popcountll(record.pins));
}

// Two records of one id, because a process died between making one and ending the other: one of
// them becomes a zombie.
void Table::merge_duplicate(uint32_t r) {
    const State state = records_[r].state.load(kRelaxed);
    if (state == State::kZombie) return;
    const bool sight = seen(state);
    const BlockRef other = sight ? search(id(r), kSeen) : search(id(r), kGathers);
    const BlockRef spilled = sight ? BlockRef() : search(id(r), kSpills);
    const uint32_t rival = other ? other.record : spilled.record;
    if (rival == kNone) return;
    const auto better = [&](uint32_t a, uint32_t b) {
        const State x = records_[a].state.load(kRelaxed), y = records_[b].state.load(kRelaxed);
        if (sight) return x != y ? x == State::kDirty : records_[a].number > records_[b].number;
        return x != y ? x == State::kGathering : records_[a].number < records_[b].number;
    };
    const uint32_t loser = better(r, rival) ? rival : r, winner = loser == r ? rival : r;
    if (records_[loser].state.load(kRelaxed) == State::kSpilled) {
        for (uint32_t shard = 0; shard < shards_; shard++)
            if (below_of(word(loser, shard))) below(winner, shard, true);
        if (flagged(loser, kReplace)) flag(winner, kReplace);
        records_[winner].owner.store(owner(loser), kRelease);
    }
    records_[loser].state.store(State::kZombie, kRelease);
}

void Table::rebuild() {
    for (uint32_t k = 0; k < kStripes; k++)
        stripes_[k].store((stripes_[k].load(kRelaxed) | 1), kRelease);
    for (uint32_t b = 0; b < header_.buckets; b++) buckets_[b].store(kNone, kRelease);
    for (Queue *each : {&header_.frame_list, &header_.spill_list, &header_.small, &header_.main}) {
        each->first = each->last = kNone;
        each->size = 0;
    }
    header_.resting = 0;
    std::vector<uint32_t> clean, free_ones;
    for (uint32_t r = 0; r < header_.records; r++) {
        Record &record = records_[r];
        if (record.state.load(kRelaxed) == State::kFree) {
            if (r < frames_ready() || r >= header_.frames) free_ones.push_back(r);
            continue;
        }
        recount(r);
        // Whoever brought the last shard may have died before it said so.
        if (record.state.load(kRelaxed) == State::kGathering && whole(r))
            record.state.store(header_.keeps ? State::kDirty : State::kClean, kRelease);
        merge_duplicate(r);
        const size_t b = bucket(id(r));
        record.next.store(buckets_[b].load(kRelaxed), kRelease);
        buckets_[b].store(r, kRelease);
    }
    uint32_t held = 0, loading = 0;
    for (uint32_t r = 0; r < header_.records; r++) {
        Record &record = records_[r];
        const State state = record.state.load(kRelaxed);
        held += r < header_.frames && (state == State::kGathering || state == State::kDirty);
        header_.resting += state != State::kFree && record.rest_until_ns;
        loading += state != State::kFree && record.loading;
        if (state == State::kClean) clean.push_back(r);
    }
    header_.held.store(held, kRelaxed);
    header_.loading.store(loading, kRelaxed);
    std::sort(clean.begin(), clean.end(),
              [&](uint32_t a, uint32_t b) { return records_[a].number < records_[b].number; });
    for (uint32_t r : clean) {
        const bool main = records_[r].queue == kMain;
        append(main ? header_.main : header_.small, r, main ? kMain : kSmall);
    }
    for (uint32_t k = 0; k < kStripes; k++) stripes_[k].fetch_add(1, kRelease);
    for (uint32_t r : free_ones) {
        records_[r].generation.fetch_add(1, kRelease);
        give(r);
    }
    for (uint32_t r = 0; r < header_.records; r++)
        if (records_[r].state.load(kRelaxed) == State::kZombie) unused(r);
    header_.changes.fetch_add(1, kRelease);
    changed();
}

// Bells.

void Table::listen(uint32_t seen, int64_t timeout_ns) const {
    const timespec time{timeout_ns / 1000000000, timeout_ns % 1000000000};
    syscall(SYS_futex, &bell(member_).bell, FUTEX_WAIT, seen, &time, nullptr, 0);
}

void Table::ring(uint32_t member) const {
    bell(member).bell.fetch_add(1, std::memory_order_seq_cst);
    syscall(SYS_futex, &bell(member).bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void Table::want(bool is) {
    const uint64_t bit = uint64_t(1) << member_;
    if (((header_.wanting.load(std::memory_order_seq_cst) & bit) != 0) == is) return;
    is ? header_.wanting.fetch_or(bit) : header_.wanting.fetch_and(~bit);
}

void Table::ring_all() const {
    uint64_t wanting = header_.wanting.load(std::memory_order_seq_cst);
    if (member_ != kNobody) wanting &= ~(uint64_t(1) << member_);
    for (; wanting; wanting &= wanting - 1) ring(uint32_t(__builtin_ctzll(wanting)));
}

void Table::ring_members() const {
    for (uint32_t m = 0; m < kMembers; m++)
        if (m != member_ && bell(m).joined.load(kAcquire)) ring(m);
}

}  // namespace ucm::cache
