// SPDX-License-Identifier: MIT
#include <catch2/catch.hpp>
#include <thread>

#include "harness.h"

using namespace ucm_test;

namespace {

bool published(const ucm_result &result) {
    return (result.flags & UCM_RESULT_PUBLISHED) != 0;
}

ucm_report drained(Stack &stack) {
    ucm_report report{};
    report.struct_size = sizeof report;
    REQUIRE(stack.drain(&report) == UCM_OK);
    return report;
}

ucm_result dump_one(Stack &stack, const BlockId &id, uint32_t shard, uint64_t flags = 0) {
    Move move(stack, {{id, shard}});
    move.transfer.flags = flags;
    REQUIRE(move.dump() == UCM_OK);
    move.wait();
    return move.result(0);
}

}  // namespace

TEST_CASE("Fake sees a block once all of its shards came, in any order", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{3, {64}});
    const auto ids = make_ids(2);
    for (uint32_t shard : {2u, 0u, 2u}) {
        REQUIRE_FALSE(published(dump_one(stack, ids[0], shard)));
        REQUIRE_FALSE(stack.lookup(ids)[0]);
    }
    REQUIRE(drained(stack).unfinished == 2);
    REQUIRE(published(dump_one(stack, ids[0], 1)));
    REQUIRE(stack.lookup(ids) == std::vector<bool>({true, false}));
    REQUIRE(published(dump_one(stack, ids[0], 1)));  // a duplicate says so too
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 2);
    REQUIRE(report.unfinished == 0);
}

TEST_CASE("Fake says PUBLISHED of every shard of a block dumped whole", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{4, {64}});
    for (auto &result : stack.dump(make_ids(5))) {
        REQUIRE(result.status == UCM_OK);
        REQUIRE(published(result));
    }
}

TEST_CASE("Fake answers the three kinds of lookup", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{1, {64}});
    const auto ids = make_ids(6);
    stack.dump({ids[0], ids[1], ids[4]});
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 3);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_PREFIX) == 2);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_LAST) == 5);
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>({1, 1, 0, 0, 1, 0}));
}

TEST_CASE("Fake has no bytes to load", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{1, {64}});
    REQUIRE(stack.can(UCM_CAP_KEEPS));
    REQUIRE_FALSE(stack.can(UCM_CAP_LOADS));
    Move move(stack, shards_of(make_ids(1), 1));
    REQUIRE(move.load() == UCM_UNSUPPORTED);
}

TEST_CASE("Fake forgets the oldest block beyond buffer_number", "[fake]") {
    Stack stack({"Fake"}, {{"buffer_number", "3"}}, Geometry{1, {64}});
    const auto ids = make_ids(5);
    for (auto &id : ids) dump_one(stack, id, 0);
    REQUIRE(stack.lookup(ids) == std::vector<bool>({false, false, true, true, true}));
    REQUIRE(stack.remove({ids[3]}) == UCM_OK);
    dump_one(stack, ids[0], 0);
    REQUIRE(stack.lookup(ids) == std::vector<bool>({true, false, true, false, true}));
    // A block that was removed and came again counts from its second time.
    dump_one(stack, ids[3], 0);
    REQUIRE(stack.lookup(ids) == std::vector<bool>({true, false, false, true, true}));
    REQUIRE(stack.metrics()["remembered_blocks"] == 3);
}

TEST_CASE("a transfer of more blocks than Fake remembers is still published", "[fake]") {
    Stack stack({"Fake"}, {{"buffer_number", "2"}}, Geometry{1, {64}});
    for (auto &result : stack.dump(make_ids(5))) REQUIRE(published(result));
    REQUIRE(stack.metrics()["remembered_blocks"] == 2);
}

TEST_CASE("Fake removes finished and unfinished blocks", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{2, {64}});
    const auto ids = make_ids(2);
    stack.dump({ids[0]});
    dump_one(stack, ids[1], 0);
    REQUIRE(stack.remove(ids) == UCM_OK);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(2, false));
    REQUIRE_FALSE(published(dump_one(stack, ids[1], 1)));
}

TEST_CASE("a replacement in Fake is complete again before it counts as published", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{2, {64}});
    const auto ids = make_ids(1);
    stack.dump(ids);
    dump_one(stack, ids[0], 0, UCM_TRANSFER_REPLACE);
    REQUIRE(stack.lookup(ids)[0]);  // the old one stays until then
    REQUIRE(drained(stack).unfinished == 1);
    REQUIRE(published(dump_one(stack, ids[0], 1, UCM_TRANSFER_REPLACE)));
    REQUIRE(drained(stack).unfinished == 0);
}

TEST_CASE("Fake bounds its unfinished blocks and counts what it gives up", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{2, {1}});
    const auto ids = make_ids(65536 + 10);
    std::vector<Shard> first;
    for (auto &id : ids) first.push_back({id, 0});
    Move move(stack, first);
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(stack.metrics()["abandoned_blocks_total"] == 10);
    const ucm_report report = drained(stack);
    REQUIRE(report.lost == 10);
    REQUIRE(report.unfinished == 65536);
    REQUIRE(stack.close().report.unfinished == 65536);
}

TEST_CASE("threads that dump the shards of the same blocks in Fake publish each", "[fake]") {
    Stack stack({"Fake"}, {}, Geometry{8, {64}});
    const auto ids = make_ids(200);
    std::vector<std::thread> threads;
    for (uint32_t k = 0; k < 4; k++)
        threads.emplace_back([&, k] {
            for (auto &id : ids)
                for (uint32_t shard = k; shard < 8; shard += 4) {
                    Move move(stack, {{id, shard}});
                    if (move.dump() != UCM_OK) throw ucm::Error(UCM_INTERNAL, "dump");
                }
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 200);
}
