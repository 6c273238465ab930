// SPDX-License-Identifier: MIT
//
// What the C example promises beyond the contract: its limits.
#include <catch2/catch.hpp>

#include "harness.h"

using namespace ucm_test;

namespace {
const Options kOneMiB = {{"heap_capacity_mb", "1"}};
}

TEST_CASE("Heap gives up the least recently used blocks", "[heap]") {
    Stack stack({"Heap"}, kOneMiB, Geometry{2, {128 << 10}});  // four blocks fit
    const auto ids = make_ids(6);
    REQUIRE(all_ok(stack.dump({ids[0], ids[1], ids[2], ids[3]})));
    REQUIRE(stack.loads_back({ids[0]}));
    REQUIRE(stack.touch({ids[1]}) == UCM_OK);
    REQUIRE(all_ok(stack.dump({ids[4], ids[5]})));
    REQUIRE(stack.lookup(ids) == std::vector<bool>({true, true, false, false, true, true}));
    REQUIRE(stack.loads_back({ids[0], ids[1], ids[4], ids[5]}));
    auto metrics = stack.metrics();
    REQUIRE(metrics["evicted_blocks_total"] == 2);
    REQUIRE(metrics["blocks"] == 4);
    REQUIRE(metrics["bytes"] == 1 << 20);
}

TEST_CASE("Heap abandons unfinished blocks when it must, and counts their shards", "[heap]") {
    Stack stack({"Heap"}, kOneMiB, Geometry{2, {64}});
    const auto ids = make_ids(1100);
    std::vector<Shard> halves;
    for (const BlockId &id : ids) halves.push_back({id, 0});
    Move move(stack, halves);
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
    ucm_report report;
    REQUIRE(stack.drain(&report) == UCM_OK);
    REQUIRE(report.unfinished == 1024);
    REQUIRE(report.lost == 1100 - 1024);
    REQUIRE(stack.metrics()["abandoned_blocks_total"] == 1100 - 1024);
    Move rest(stack, {{ids[0], 1}, {ids[1099], 1}});  // abandoned, and still waited for
    REQUIRE(rest.dump() == UCM_OK);
    REQUIRE(rest.wait() == UCM_OK);
    REQUIRE(stack.lookup({ids[0], ids[1099]}) == std::vector<bool>({false, true}));
}

TEST_CASE("Heap refuses a block that can never fit, and says what to do", "[heap]") {
    try {
        Stack stack({"Heap"}, kOneMiB, Geometry{2, {600 << 10}});
        FAIL("opened");
    } catch (const ucm::Error &error) {
        REQUIRE(error.status() == UCM_INVALID);
        REQUIRE(std::string(error.what()) ==
                "heap_capacity_mb is 1, less than one block of 1228800 bytes; set it higher");
    }
}
