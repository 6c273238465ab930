// SPDX-License-Identifier: MIT
//
// The protocol of the shared memory from the inside: several members over one mapping, so that
// ThreadSanitizer sees what processes would do to each other.
#include "../../plugins/cache/table.h"

#include <unistd.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <deque>
#include <fstream>
#include <random>
#include <sstream>
#include <thread>

#include "../../plugins/cache/host_copy.h"
#include "harness.h"

using namespace ucm_test;
using namespace ucm::cache;

namespace {

Shape shape_of(uint32_t frames, uint32_t shards = 4) {
    Shape shape{};
    shape.shards_per_block = shards;
    shape.capacity = shape.raw_capacity = 600;
    shape.slot_bytes = 4096;
    shape.keeps = shape.loads = true;
    shape.frames = frames;
    return shape;
}

struct Memory_ {
    explicit Memory_(uint32_t frames)
        : log(host.c(), "Cache"), segment(shape_of(frames), "", log) {}
    Host host;
    ucm::Logger log;
    Segment segment;
};

// As above, in a file, which grows from two frames on.
struct SharedMemory {
    explicit SharedMemory(uint32_t frames)
        : log(host.c(), "Cache"), shape(shape_of(frames)), segment(shape, name(), log) {}
    ~SharedMemory() { segment.empty_handed(); }
    static std::string name() { return "table-test-" + std::to_string(getpid()); }
    Host host;
    ucm::Logger log;
    const Shape shape;
    Segment segment;
};

uint8_t byte_of(const BlockId &id, uint32_t shard) {
    return uint8_t(id.bytes[0] * 7 + shard);
}

// What a process does with the table, without stores below: dumps whole blocks and "stores" them,
// fills blocks, reads them, removes them.
struct Actor {
    Actor(Segment &segment, uint32_t member, unsigned seed)
        : table(segment, false, member), random(seed) {}

    void fill_slot(uint32_t record, uint32_t shard, const BlockId &id) {
        std::vector<uint8_t> bytes(600, byte_of(id, shard));
        copy_bytes(table.slot(record, shard), bytes.data(), bytes.size(), false);
    }

    void dump(const BlockId &id) {
        BlockRef block;
        {
            const Table::Hold hold(table);
            if (table.gathering(id)) return;
            const uint32_t record = table.take(Taking::kDump, id);
            if (record == kNone) return;
            block = table.start(record, id, State::kGathering);
            for (uint32_t s = 0; s < 4; s++) table.put(record, s, ShardState::kCopying);
        }
        for (uint32_t s = 0; s < 4; s++) fill_slot(block.record, s, id);
        {
            const Table::Hold hold(table);
            if (table.state(block) != State::kGathering) {
                for (uint32_t s = 0; s < 4; s++) table.vacate(block.record, s);
                return;
            }
            for (uint32_t s = 0; s < 4; s++) table.arrived(block.record, s, 600, 600);
            table.publish(block.record);
            if (table.older_is_on_its_way(block.record)) {
                table.detach(block.record, UCM_CANCELLED);
                return;
            }
            table.begin_writing(block.record);
        }
        std::this_thread::yield();
        const Table::Hold hold(table);
        if (table.state(block) == State::kDirty) table.settle(block.record);
        table.end_writing(block.record);
    }

    void load(const BlockId &id) {
        BlockRef block = table.find(id);
        const uint32_t shard = random() % 4;
        if (block && state_of(table.word(block.record, shard)) == ShardState::kHere) {
            uint8_t bytes[600];
            copy_bytes(bytes, table.slot(block.record, shard), sizeof bytes, false);
            const uint64_t length = table.length(block.record, shard);
            if (!table.valid(block)) return;
            table.used(block.record, shard);
            read++;
            for (const uint8_t byte : bytes) wrong += byte != byte_of(id, shard);
            wrong += length != 600;
            return;
        }
        {
            const Table::Hold hold(table);
            block = table.visible(id);
            if (!block) {
                const uint32_t record = table.take(Taking::kLoad, id);
                if (record == kNone) return;
                block = table.start(record, id, State::kClean);
            }
            if (state_of(table.word(block.record, shard)) != ShardState::kAbsent) return;
            table.put(block.record, shard, ShardState::kLoading);
        }
        fill_slot(block.record, shard, id);
        const Table::Hold hold(table);
        if (random() % 8)
            table.arrived(block.record, shard, 600, 600);
        else
            table.vacate(block.record, shard);
    }

    void remove(const BlockId &id) {
        const Table::Hold hold(table);
        for (const BlockRef block : {table.visible(id), table.gathering(id)})
            if (block) table.detach(block.record, UCM_CANCELLED, kRemoved);
    }

    void act(int operations) {
        for (int k = 0; k < operations; k++) {
            const BlockId id = make_id(random() % 24);
            const unsigned what = random() % 16;
            if (what < 4)
                dump(id);
            else if (what < 15)
                load(id);
            else
                remove(id);
        }
    }

    Table table;
    std::mt19937 random;
    size_t wrong = 0, read = 0;
};

// Every record is in one state, in the chain and list that it belongs to.
void require_sound(Table &table, uint32_t frames) {
    const Table::Hold hold(table);
    uint32_t used = 0;
    table.each([&](uint32_t r) {
        used += r < frames;
        const State state = table.record(r).state.load();
        REQUIRE(state == State::kClean);
        REQUIRE(table.record(r).users == 0);
        const BlockRef seen = table.visible(table.id(r));
        REQUIRE(seen.record == r);
    });
    REQUIRE(table.free_frames() + used == frames);
    REQUIRE(table.header().small.size + table.header().main.size == used);
    REQUIRE(table.header().held.load() == 0);
}

}  // namespace

TEST_CASE("members over one memory never read a wrong byte, and lose no frame", "[table]") {
    const uint32_t frames = GENERATE(4u, 16u);
    Memory_ memory(frames);
    std::vector<std::unique_ptr<Actor>> actors;
    for (uint32_t m = 0; m < 4; m++)
        actors.push_back(std::make_unique<Actor>(memory.segment, m, m + 1));
    std::vector<std::thread> threads;
    for (auto &actor : actors) threads.emplace_back([&] { actor->act(kSanitizer ? 2000 : 20000); });
    for (auto &thread : threads) thread.join();
    size_t read = 0;
    for (auto &actor : actors) {
        CHECK(actor->wrong == 0);
        read += actor->read;
    }
    CHECK(read > 100);
    require_sound(actors[0]->table, frames);
}

TEST_CASE("what is derived can be derived again at any time", "[table]") {
    Memory_ memory(16);
    Actor actor(memory.segment, 0, 7);
    for (int round = 0; round < 50; round++) {
        actor.act(100);
        const Table::Hold hold(actor.table);
        actor.table.rebuild();
    }
    CHECK(actor.wrong == 0);
    require_sound(actor.table, 16);
}

TEST_CASE("a generation that moved makes a copy worth nothing", "[table]") {
    Memory_ memory(4);
    Actor actor(memory.segment, 0, 1);
    actor.dump(make_id(1));
    const BlockRef block = actor.table.find(make_id(1));
    REQUIRE(block);
    REQUIRE(actor.table.valid(block));
    actor.remove(make_id(1));
    REQUIRE_FALSE(actor.table.valid(block));
    REQUIRE_FALSE(actor.table.find(make_id(1)));
}

TEST_CASE("a spilled block gives its frame away and takes one again", "[table]") {
    Memory_ memory(4);
    Table table(memory.segment, false, 0);
    const Table::Hold hold(table);
    const BlockId id = make_id(1);
    const uint32_t first = table.take(Taking::kDump, id);
    const BlockRef block = table.start(first, id, State::kGathering);
    table.put(first, 0, ShardState::kCopying);
    table.arrived(first, 0, 600, 600);
    REQUIRE_FALSE(table.spill(first));  // it is not below
    table.below(first, 0, true);
    REQUIRE(table.spill(first));
    REQUIRE(table.free_frames() == 4);
    REQUIRE_FALSE(table.same(block));
    REQUIRE(table.is_spilled(id));
    table.rebuild();
    REQUIRE(table.is_spilled(id));
    const uint32_t second = table.take(Taking::kDump, id);
    const BlockRef again = table.unspill(second, id);
    REQUIRE(table.gathering(id) == again);
    REQUIRE_FALSE(table.is_spilled(id));
    REQUIRE(below_of(table.word(second, 0)));
    REQUIRE(table.record(second).have == 1);
    for (uint32_t shard = 1; shard < 4; shard++) {
        table.put(second, shard, ShardState::kCopying);
        table.arrived(second, shard, 600, 600);
    }
    REQUIRE(table.complete(second));
    REQUIRE_FALSE(table.whole(second));
}

TEST_CASE("a process that died between two records of one block leaves one of them", "[table]") {
    Memory_ memory(8);
    Table table(memory.segment, false, 0);
    const Table::Hold hold(table);
    const BlockId id = make_id(1);
    const auto whole = [&](State state) {
        const uint32_t r = table.take(Taking::kDump, id);
        table.start(r, id, state);
        for (uint32_t shard = 0; shard < 4; shard++) {
            table.put(r, shard, ShardState::kCopying);
            table.arrived(r, shard, 600, 600);
        }
        return r;
    };
    const uint32_t old = whole(State::kClean), fresh = whole(State::kGathering);
    // Killed when its last shard was there, before it said that the block is whole.
    table.rebuild();
    REQUIRE(table.record(fresh).state.load() == State::kDirty);
    REQUIRE(table.visible(id).record == fresh);
    REQUIRE(table.record(old).state.load() == State::kFree);
}

TEST_CASE("it evicts as ucm replay says", "[table]") {
    // The figures of the policy `cache` on this trace; tests/replay/test_policies.py has the same.
    struct Expected {
        uint32_t frames;
        size_t hits, prefix_hits;
    };
    const auto expected =
        GENERATE(Expected{50, 278, 270}, Expected{200, 726, 686}, Expected{400, 1273, 1144});
    std::ifstream trace(std::string(UCM_TEST_FILES) + "/data/trace-200.jsonl");
    REQUIRE(trace);
    Memory_ memory(expected.frames);
    Table table(memory.segment, false, 0);
    size_t hits = 0, prefix_hits = 0;
    for (std::string line; std::getline(trace, line);) {
        const size_t begin = line.find('[', line.find("hash_ids")), end = line.find(']', begin);
        std::istringstream ids(line.substr(begin + 1, end - begin - 1));
        bool leading = true;
        for (std::string text; std::getline(ids, text, ',');) {
            const BlockId id = make_id(std::stoull(text));
            const Table::Hold hold(table);
            if (const BlockRef block = table.find(id)) {
                table.used(block.record, 0);
                hits++;
                prefix_hits += leading;
                continue;
            }
            leading = false;
            const uint32_t record = table.take(Taking::kLoad, id);
            REQUIRE(record != kNone);
            table.start(record, id, State::kClean);
            table.put(record, 0, ShardState::kLoading);
            table.arrived(record, 0, 600, 600);
        }
    }
    // Here the one that goes is chosen before it is known who comes.
    CHECK(double(hits) == Approx(double(expected.hits)).epsilon(0.03));
    CHECK(double(prefix_hits) == Approx(double(expected.prefix_hits)).epsilon(0.03));
}

TEST_CASE("what is used stays, however many dumps wait to be stored", "[table]") {
    Memory_ memory(16);
    Table table(memory.segment, false, 0);
    const Table::Hold hold(table);
    const auto begin = [&](uint64_t number, Taking what, State state) {
        const uint32_t r = table.take(what, make_id(number));
        REQUIRE(r != kNone);
        table.start(r, make_id(number), state);
        for (uint32_t shard = 0; shard < 4; shard++) {
            table.put(r, shard,
                      state == State::kClean ? ShardState::kLoading : ShardState::kCopying);
            table.arrived(r, shard, 600, 600);
        }
        return r;
    };
    for (uint64_t k = 0; k < 4; k++) table.used(begin(k, Taking::kLoad, State::kClean), 0);
    std::deque<uint32_t> dirty;
    for (uint64_t k = 100; k < 200; k++) {
        if (table.dumps_hold_all()) {
            table.settle(dirty.front());
            dirty.pop_front();
        }
        dirty.push_back(begin(k, Taking::kDump, State::kGathering));
        table.publish(dirty.back());
    }
    for (uint64_t k = 0; k < 4; k++) REQUIRE(table.visible(make_id(k)));
}

TEST_CASE("a replacement that a process died over is one still", "[table]") {
    Memory_ memory(4);
    Table table(memory.segment, false, 0);
    const Table::Hold hold(table);
    const BlockId id = make_id(1);
    const uint32_t first = table.take(Taking::kDump, id);
    table.start(first, id, State::kGathering);
    table.flag(first, kReplace);
    table.put(first, 0, ShardState::kCopying);
    table.arrived(first, 0, 600, 600);
    table.below(first, 0, true);
    REQUIRE(table.spill(first));
    // Killed when the block had a frame again, and nothing of what is below was said there.
    const uint32_t again = table.take(Taking::kDump, id);
    table.start(again, id, State::kGathering);
    table.rebuild();
    REQUIRE(table.gathering(id).record == again);
    REQUIRE_FALSE(table.is_spilled(id));
    REQUIRE(below_of(table.word(again, 0)));
    REQUIRE(table.flagged(again, kReplace));
}

TEST_CASE("a frame into which the dead may still read rests", "[table]") {
    Memory_ memory(4);
    Table dead(memory.segment, false, 1);
    BlockRef block;
    {
        const Table::Hold hold(dead);
        block = dead.start(dead.take(Taking::kLoad, make_id(1)), make_id(1), State::kClean);
        dead.put(block.record, 0, ShardState::kLoading);
    }
    Table next(memory.segment, false, 1);  // in the same place
    const Table::Hold hold(next);
    next.adopt();
    REQUIRE_FALSE(next.visible(make_id(1)));
    REQUIRE(next.state(block) == State::kZombie);
    const int64_t wake_ns = next.wake_resting(ucm::monotonic_ns());
    REQUIRE(wake_ns < INT64_MAX);
    next.rebuild();
    REQUIRE(next.state(block) == State::kZombie);
    REQUIRE(next.wake_resting(wake_ns) == INT64_MAX);
    REQUIRE(next.state(block) == State::kFree);
    REQUIRE(next.free_frames() == 4);
}

TEST_CASE("what the dead wrote of a removed block is removed before anybody writes it anew",
          "[table]") {
    Memory_ memory(4);
    const BlockId id = make_id(1);
    const auto dump = [&](Table &table) {
        const uint32_t r = table.take(Taking::kDump, id);
        table.start(r, id, State::kGathering);
        for (uint32_t shard = 0; shard < 4; shard++) {
            table.put(r, shard, ShardState::kCopying);
            table.arrived(r, shard, 600, 600);
        }
        table.publish(r);
        return r;
    };
    Table dead(memory.segment, false, 1);
    BlockRef block;
    {
        const Table::Hold hold(dead);
        block = dead.ref(dump(dead));
        dead.begin_writing(block.record);
        dead.detach(block.record, UCM_CANCELLED, kRemoved);
    }
    // However often who is to remove it dies over that.
    for (int k = 0; k < 2; k++) {
        Table next(memory.segment, false, 1);
        const Table::Hold hold(next);
        const Table::Inheritance all = next.adopt();
        REQUIRE(all.removed == std::vector<BlockRef>{block});
    }
    Table other(memory.segment, false, 2);
    const Table::Hold hold(other);
    const uint32_t fresh = dump(other);
    REQUIRE(other.older_is_on_its_way(fresh));
    other.end_writing(block.record);
    REQUIRE_FALSE(other.older_is_on_its_way(fresh));
    REQUIRE(other.state(block) == State::kFree);
}

TEST_CASE("a block of which nothing came is gone with the last who brought any of it", "[table]") {
    Memory_ memory(4);
    Table a(memory.segment, false, 0), dead(memory.segment, false, 1);
    BlockRef block;
    {
        const Table::Hold hold(a);
        a.adopt();
        block = a.start(a.take(Taking::kDump, make_id(1)), make_id(1), State::kGathering);
        a.put(block.record, 0, ShardState::kCopying);
    }
    {
        const Table::Hold hold(dead);
        dead.adopt();
        dead.put(block.record, 1, ShardState::kCopying);
    }
    Table next(memory.segment, false, 1);  // in the same place
    const Table::Hold hold(next);
    a.vacate(block.record, 0);
    REQUIRE(a.state(block) == State::kGathering);
    next.adopt();
    REQUIRE(a.state(block) == State::kFree);
    REQUIRE(a.free_frames() == 4);
}

TEST_CASE("what the dead brought is reported once, by who takes over or by who has it below",
          "[table]") {
    Memory_ memory(8);
    Table a(memory.segment, false, 0), dead(memory.segment, false, 1), b(memory.segment, false, 2);
    const Table::Hold hold(a);
    a.adopt();
    dead.adopt();
    b.adopt();
    const auto gather = [&](uint64_t k, Table &owner) {
        const uint32_t r = owner.take(Taking::kDump, make_id(k));
        owner.start(r, make_id(k), State::kGathering);
        return r;
    };
    const auto bring = [](Table &who, uint32_t r, uint32_t shard) {
        who.put(r, shard, ShardState::kCopying);
        who.arrived(r, shard, 600, 600);
    };
    // Of a: one of each, and one of the dead that is below by now.
    const uint32_t of_a = gather(1, a);
    bring(a, of_a, 0);
    bring(dead, of_a, 1);
    bring(dead, of_a, 2);
    a.below(of_a, 2, true);
    // Of the dead: one of each, one of the dead that is below, too, and one that is only there.
    const uint32_t of_dead = gather(2, dead);
    bring(b, of_dead, 0);
    bring(dead, of_dead, 1);
    bring(dead, of_dead, 2);
    dead.below(of_dead, 2, true);
    dead.below(of_dead, 3, true);
    const uint32_t spilled = gather(3, dead);
    bring(dead, spilled, 0);
    dead.below(spilled, 0, true);
    REQUIRE(dead.spill(spilled));
    Table next(memory.segment, false, 1);  // in the place of the dead
    const Table::Inheritance all = next.adopt();
    REQUIRE(all.brought == std::vector<BlockRef>{next.ref(of_a)});
    REQUIRE(all.records == std::vector<BlockRef>{next.ref(of_dead)});
    REQUIRE(all.lost.size() == 2);
    for (auto &each : all.lost) {
        REQUIRE((each.id == make_id(2) || each.id == make_id(3)));
        REQUIRE(each.shards == 1);
    }
    const auto reports = [&](uint32_t r, uint32_t shard, uint32_t who, bool handed) {
        return next.reporter(r, shard) == who && next.handed(r, shard) == handed;
    };
    REQUIRE(reports(of_a, 0, 0, false));
    REQUIRE(reports(of_a, 1, 1, true));
    REQUIRE(reports(of_a, 2, 0, false));
    REQUIRE(reports(of_dead, 0, 2, false));
    REQUIRE(reports(of_dead, 1, 1, true));
    REQUIRE(reports(of_dead, 2, 1, true));
}

TEST_CASE("nobody hands anything over to a member that leaves", "[table]") {
    Memory_ memory(4);
    Table a(memory.segment, false, 0), b(memory.segment, false, 1);
    const Table::Hold hold(a);
    a.adopt();
    b.adopt();
    REQUIRE(a.another_member() == 1);
    b.begin_leaving();
    REQUIRE(a.another_member() == kNone);
    REQUIRE(b.another_member() == 0);
    REQUIRE(a.members() == 2);
}

TEST_CASE("who finds no frame does not wait for a grower that is slow", "[table]") {
    SharedMemory memory(8);
    const uint32_t mine = memory.segment.member();
    Table a(memory.segment, false), b(memory.segment, false, mine + 1);
    const Table::Hold hold(a);
    a.adopt();
    const auto load = [&](uint64_t k) {
        const uint32_t r = a.take(Taking::kLoad, make_id(k));
        if (r == kNone) return false;
        a.start(r, make_id(k), State::kClean);
        a.put(r, 0, ShardState::kLoading);
        a.arrived(r, 0, 600, 600);
        return true;
    };
    REQUIRE(a.frames_ready() == 2);
    REQUIRE(load(0));
    REQUIRE(load(1));
    const Table::Growth growth = b.begin_growth();
    REQUIRE(growth.count > 0);
    // It began just now.
    b.header().grower_since_ns.store(ucm::monotonic_ns() + 60ll * 1000000000);
    REQUIRE_FALSE(load(2));
    REQUIRE(a.visible(make_id(0)));
    // It is stopped.
    b.header().grower_since_ns.store(ucm::monotonic_ns() - 60ll * 1000000000);
    for (uint64_t k = 2; k < 12; k++) REQUIRE(load(k));
    REQUIRE(a.begin_growth().count == 0);
    // It goes on.
    REQUIRE(memory.segment.allocate(growth.first, growth.count) == 0);
    b.end_growth(growth, true);
    REQUIRE(a.free_frames() == growth.count);
    REQUIRE(a.may_grow());
}

TEST_CASE("what a member had that went without handing it on is another's", "[table]") {
    SharedMemory memory(8);
    Table lives(memory.segment, false);
    {
        const Table::Hold hold(lives);
        lives.adopt();
    }
    BlockRef block;
    {
        Segment segment(memory.shape, SharedMemory::name(), memory.log);
        Table fails(segment, false);
        const Table::Hold hold(fails);
        fails.adopt();
        REQUIRE(fails.members() == 2);
        const uint32_t r = fails.take(Taking::kDump, make_id(1));
        block = fails.start(r, make_id(1), State::kGathering);
        fails.put(r, 0, ShardState::kCopying);
        fails.arrived(r, 0, 600, 600);
    }
    const Table::Hold hold(lives);
    const Table::Inheritance all = lives.adopt();
    REQUIRE(all.records == std::vector<BlockRef>{block});
    REQUIRE(lives.mine(block.record));
    REQUIRE(lives.members() == 1);
    lives.detach(block.record, UCM_CANCELLED);
}
