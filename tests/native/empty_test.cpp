// SPDX-License-Identifier: MIT
#include <catch2/catch.hpp>
#include <cstring>

#include "harness.h"

using namespace ucm_test;

TEST_CASE("Empty takes every dump and finds nothing", "[empty]") {
    Stack stack({"Empty"}, {}, Geometry{4, {5000, 300}});
    const auto ids = make_ids(8);
    const auto dumped = stack.dump(ids);
    REQUIRE(all_ok(dumped));
    for (auto &result : dumped) REQUIRE(result.flags == 0);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(8, false));
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>(8, 0));
    for (int32_t mode : {UCM_LOOKUP_ALL, UCM_LOOKUP_PREFIX, UCM_LOOKUP_LAST})
        REQUIRE(stack.hits(ids, mode) == 0);
    REQUIRE(all_are(stack.load(ids), UCM_NOT_FOUND));
    REQUIRE(stack.remove(ids) == UCM_OK);
}

TEST_CASE("Empty is done inside the call", "[empty]") {
    Stack stack({"Empty"}, {}, Geometry{1, {64}});
    Move move(stack, shards_of(make_ids(1024), 1));
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.finished());
    REQUIRE(move.task == 0);
}

TEST_CASE("Empty keeps nothing, so nothing is stored or lost", "[empty]") {
    Stack stack({"Empty"}, {}, Geometry{2, {64}});
    stack.dump(make_ids(3));
    ucm_report report{};
    report.struct_size = sizeof report;
    REQUIRE(stack.drain(&report) == UCM_OK);
    REQUIRE(report.stored + report.lost + report.pending + report.unfinished == 0);
    REQUIRE(stack.metrics()["dump_shards_total"] == 6);
    REQUIRE(stack.metrics()["dump_bytes_total"] == 6 * 64);
    REQUIRE(stack.close().status == UCM_OK);
}

TEST_CASE("Empty opens for lookup only", "[empty]") {
    Geometry geometry;
    geometry.lookup_only = true;
    Stack stack({"Empty"}, {}, geometry);
    REQUIRE(stack.lookup(make_ids(2)) == std::vector<bool>(2, false));
}
