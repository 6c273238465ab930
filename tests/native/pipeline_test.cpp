// SPDX-License-Identifier: MIT
//
// What the contract promises of every pipeline. Expectations follow the published capabilities.
#include <sys/wait.h>
#include <unistd.h>

#include <catch2/catch.hpp>
#include <random>

#include "pipelines.h"

using namespace ucm_test;

namespace {

bool published(const ucm_result &result) {
    return result.status == UCM_OK && (result.flags & UCM_RESULT_PUBLISHED);
}

void require_stored(Stack &stack, const std::vector<BlockId> &ids) {
    if (stack.can(UCM_CAP_KEEPS)) {
        REQUIRE(stack.lookup(ids) == std::vector<bool>(ids.size(), true));
        REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == ids.size());
    }
    if (stack.can(UCM_CAP_LOADS)) REQUIRE(stack.loads_back(ids));
}

void require_absent(Stack &stack, const std::vector<BlockId> &ids) {
    REQUIRE(stack.lookup(ids) == std::vector<bool>(ids.size(), false));
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>(ids.size(), 0));
    for (int32_t mode : {UCM_LOOKUP_ALL, UCM_LOOKUP_PREFIX, UCM_LOOKUP_LAST})
        REQUIRE(stack.hits(ids, mode) == 0);
    if (stack.can(UCM_CAP_LOADS)) REQUIRE(all_are(stack.load(ids), UCM_NOT_FOUND));
}

}  // namespace

TEST_CASE("blocks come back bit for bit, now and after close and open", "[pipeline][shapes]") {
    FOR_EACH_PIPELINE(layers);
    Geometry aligned{2, {8192}};
    aligned.pages = true;
    Geometry pages{3, {5000}};
    pages.pages = true;
    Geometry unaligned{3, {4096, 4096}, UCM_DTYPE_BF16};
    unaligned.misalign = 3;
    const Geometry geometry = GENERATE_COPY(values<Geometry>({
        Geometry{1, {4096}},
        Geometry{1, {1}},
        Geometry{4, {5000}},
        Geometry{64, {257}},
        Geometry{3, {5000, 300, 1}},
        Geometry{2, {70000, 66000}, UCM_DTYPE_BF16},
        Geometry{2, {70001, 131072}, UCM_DTYPE_FP16},
        Geometry{2, {70000}, UCM_DTYPE_FP32},
        Geometry{2, {9999, 4096}, UCM_DTYPE_FP8_E4M3},
        Geometry{2, {9999}, UCM_DTYPE_FP8_E5M2},
        aligned,
        pages,
        unaligned,
    }));
    CAPTURE(geometry.shards, geometry.segments, geometry.dtype, geometry.pages, geometry.misalign);
    Pipeline pipeline(layers, geometry);
    const auto ids = make_ids(5);
    require_absent(*pipeline, ids);
    REQUIRE(all_ok(pipeline->dump(ids)));
    require_stored(*pipeline, ids);
    ucm_report report;
    REQUIRE(pipeline->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    REQUIRE(report.pending == 0);
    REQUIRE(report.unfinished == 0);
    if (pipeline->can(UCM_CAP_PERSISTENT)) {
        REQUIRE(report.stored == ids.size() * geometry.shards);
        pipeline.open();
        require_stored(*pipeline, ids);
    }
    REQUIRE(pipeline->close().status == UCM_OK);
}

TEST_CASE("lookups answer all, prefix and last", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {100}});
    const auto ids = make_ids(10);
    REQUIRE(all_ok(pipeline->dump({ids[0], ids[1], ids[2], ids[5], ids[7]})));
    REQUIRE(pipeline->hits({}, UCM_LOOKUP_ALL) == 0);
    if (!pipeline->can(UCM_CAP_KEEPS)) return;
    REQUIRE(pipeline->hits(ids, UCM_LOOKUP_ALL) == 5);
    REQUIRE(pipeline->hits(ids, UCM_LOOKUP_PREFIX) == 3);
    REQUIRE(pipeline->hits(ids, UCM_LOOKUP_LAST) == 8);
    const std::vector<BlockId> tail(ids.begin() + 3, ids.end());
    REQUIRE(pipeline->hits(tail, UCM_LOOKUP_PREFIX) == 0);
    REQUIRE(pipeline->hits({ids[8], ids[9]}, UCM_LOOKUP_LAST) == 0);
    REQUIRE(pipeline->hits({ids[0], ids[0]}, UCM_LOOKUP_PREFIX) == 2);
    const auto tiers = pipeline->tiers(ids);
    for (size_t i = 0; i < ids.size(); i++) {
        const bool here = i < 3 || i == 5 || i == 7;
        REQUIRE((tiers[i] != 0) == here);
        REQUIRE(tiers[i] <= layers.size());
    }
}

TEST_CASE("shards may come in any order over many tasks", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{5, {3000, 200}, UCM_DTYPE_BF16});
    const auto ids = make_ids(12);
    auto shards = shards_of(ids, 5);
    std::shuffle(shards.begin(), shards.end(), std::mt19937(7));
    std::vector<std::unique_ptr<Move>> moves;
    for (size_t from = 0; from < shards.size(); from += 7) {
        const size_t to = std::min(from + 7, shards.size());
        moves.push_back(std::make_unique<Move>(
            *pipeline, std::vector<Shard>(shards.begin() + long(from), shards.begin() + long(to))));
        REQUIRE(moves.back()->dump_patiently() == UCM_OK);
    }
    size_t publications = 0;
    for (auto &move : moves) {
        REQUIRE(move->wait() == UCM_OK);
        for (auto &result : move->results()) publications += published(result);
    }
    if (pipeline->can(UCM_CAP_KEEPS)) REQUIRE(publications >= ids.size());
    require_stored(*pipeline, ids);
}

TEST_CASE("a block that misses a shard is invisible, whichever it is", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {3000}});
    for (uint32_t missing = 0; missing < 4; missing++) {
        CAPTURE(missing);
        const BlockId id = make_id(missing);
        std::vector<Shard> rest;
        for (uint32_t index = 4; index-- > 0;)
            if (index != missing) rest.push_back({id, index});
        Move most(*pipeline, rest);
        REQUIRE(most.dump() == UCM_OK);
        REQUIRE(most.wait() == UCM_OK);
        for (auto &result : most.results()) REQUIRE_FALSE(published(result));
        require_absent(*pipeline, {id});
        Move last(*pipeline, {{id, missing}});
        REQUIRE(last.dump() == UCM_OK);
        REQUIRE(last.wait() == UCM_OK);
        if (pipeline->can(UCM_CAP_KEEPS)) REQUIRE(published(last.result(0)));
        require_stored(*pipeline, {id});
    }
}

TEST_CASE("half a block is not there after close and open, and can be dumped again", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{3, {3000}});
    const auto ids = make_ids(4);
    std::vector<Shard> halves;
    for (const BlockId &id : ids) {
        halves.push_back({id, 2});
        halves.push_back({id, 0});
    }
    {
        Move move(*pipeline, halves);
        REQUIRE(move.dump() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
    }
    ucm_report report;
    pipeline->drain(&report, 0);
    const Closed closed = pipeline->close();
    REQUIRE(closed.status == UCM_OK);
    if (pipeline.has("Posix"))
        REQUIRE(report.lost + closed.report.lost + closed.report.unfinished >= halves.size());
    pipeline.open();
    require_absent(*pipeline, ids);
    REQUIRE(all_ok(pipeline->dump(ids)));
    require_stored(*pipeline, ids);
}

TEST_CASE("the first copy of a shard wins", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    const BlockId id = make_id(0);
    Move twice(*pipeline, {{id, 0}, {id, 0}, {id, 1}}, {600, 300, 1000});
    REQUIRE(twice.dump() == UCM_OK);
    REQUIRE(twice.wait() == UCM_OK);
    Move again(*pipeline, {{id, 0}, {id, 1}}, {10, 20});
    REQUIRE(again.dump() == UCM_OK);
    REQUIRE(again.wait() == UCM_OK);
    if (pipeline->can(UCM_CAP_KEEPS))
        for (auto &result : again.results()) REQUIRE(published(result));
    if (!pipeline->can(UCM_CAP_LOADS)) return;
    for (int pass = 0; pass < 2; pass++) {
        Move load(*pipeline, {{id, 0}, {id, 1}});
        REQUIRE(load.load() == UCM_OK);
        REQUIRE(load.wait() == UCM_OK);
        REQUIRE(load.result(0).length == 600);
        REQUIRE(load.result(1).length == 1000);
        REQUIRE(load.same(0));
        REQUIRE(load.same(1));
        if (!pipeline->can(UCM_CAP_PERSISTENT)) break;
        REQUIRE(pipeline->close().status == UCM_OK);
        if (pass == 0) pipeline.open();
    }
}

TEST_CASE("REPLACE makes a new copy of a published block", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    const BlockId id = make_id(0);
    Move first(*pipeline, {{id, 0}, {id, 1}}, {100, 200});
    REQUIRE(first.dump() == UCM_OK);
    REQUIRE(first.wait() == UCM_OK);
    Move half(*pipeline, {{id, 0}}, {300});
    half.transfer.flags = UCM_TRANSFER_REPLACE;
    REQUIRE(half.dump() == UCM_OK);
    REQUIRE(half.wait() == UCM_OK);
    Move rest(*pipeline, {{id, 1}}, {400});
    rest.transfer.flags = UCM_TRANSFER_REPLACE;
    REQUIRE(rest.dump() == UCM_OK);
    REQUIRE(rest.wait() == UCM_OK);
    if (pipeline->can(UCM_CAP_KEEPS)) REQUIRE(published(rest.result(0)));
    if (!pipeline->can(UCM_CAP_LOADS)) return;
    for (int pass = 0; pass < 2; pass++) {
        Move load(*pipeline, {{id, 0}, {id, 1}});
        REQUIRE(load.load() == UCM_OK);
        REQUIRE(load.wait() == UCM_OK);
        REQUIRE(load.result(0).length == 300);
        REQUIRE(load.result(1).length == 400);
        REQUIRE(load.same(0));
        REQUIRE(load.same(1));
        if (!pipeline->can(UCM_CAP_PERSISTENT)) break;
        pipeline->drain();
        REQUIRE(pipeline->close().status == UCM_OK);
        if (pass == 0) pipeline.open();
    }
}

TEST_CASE("a transfer of nothing is fine", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers);
    Move dump(*pipeline, {}), load(*pipeline, {});
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(dump.wait() == UCM_OK);
    if (!pipeline->can(UCM_CAP_LOADS)) return;
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(load.wait() == UCM_OK);
}

TEST_CASE("shards may be shorter than their capacity, and empty", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    const Geometry geometry{4, {4096, 1000}, UCM_DTYPE_BF16};
    Pipeline pipeline(layers, geometry);
    const auto ids = make_ids(4);
    const auto shards = shards_of(ids, 4);
    const std::vector<uint64_t> choices = {0, 1, 4095, 4096, 4097, 5095, 5096, 2, 777};
    std::vector<uint64_t> lengths;
    for (size_t i = 0; i < shards.size(); i++) lengths.push_back(choices[i % choices.size()]);
    {
        Move move(*pipeline, shards, lengths);
        REQUIRE(move.dump() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
    }
    if (!pipeline->can(UCM_CAP_LOADS)) return;
    for (int pass = 0; pass < 2; pass++) {
        Move move(*pipeline, shards);
        REQUIRE(move.load() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
        REQUIRE_FALSE(move.overrun());
        for (size_t i = 0; i < shards.size(); i++) {
            CAPTURE(i);
            REQUIRE(move.result(i).length == lengths[i]);
            REQUIRE(move.same(i));
        }
        if (!pipeline->can(UCM_CAP_PERSISTENT)) break;
        REQUIRE(pipeline->close().status == UCM_OK);
        if (pass == 0) pipeline.open();
    }
}

TEST_CASE("a shard that is absent fails alone", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {3000}});
    const auto ids = make_ids(9);
    for (size_t i = 0; i < ids.size(); i += 2) REQUIRE(all_ok(pipeline->dump({ids[i]})));
    if (!pipeline->can(UCM_CAP_LOADS)) return;
    Move move(*pipeline, shards_of(ids, 2));
    REQUIRE(move.load() == UCM_OK);
    REQUIRE(move.wait() == UCM_NOT_FOUND);
    for (size_t i = 0; i < move.n(); i++) {
        const bool there = i / 2 % 2 == 0;
        REQUIRE(move.result(i).status == (there ? UCM_OK : UCM_NOT_FOUND));
        REQUIRE(move.result(i).length == (there ? 3000 : 0));
        if (there) REQUIRE(move.same(i));
    }
}

TEST_CASE("a store that cannot load says so in its capabilities", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{1, {100}});
    if (pipeline->can(UCM_CAP_LOADS)) return;
    pipeline->dump(make_ids(1));
    Move move(*pipeline, {{make_id(0), 0}});
    const ucm_status status = move.load();
    if (status == UCM_OK) {
        const ucm_status end = move.wait();
        REQUIRE((end == UCM_NOT_FOUND || end == UCM_UNSUPPORTED || end == UCM_OK));
        if (end == UCM_OK) REQUIRE(move.same(0));
    } else {
        REQUIRE(status == UCM_UNSUPPORTED);
    }
}

TEST_CASE("more than fits any pool goes through, batch by batch", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {512 << 10}, UCM_DTYPE_BF16});
    const auto ids = make_ids(10);
    for (auto &result : pipeline->dump(ids)) REQUIRE(result.status == UCM_OK);
    ucm_report report;
    REQUIRE(pipeline->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    if (pipeline->can(UCM_CAP_PERSISTENT)) require_stored(*pipeline, ids);
}

TEST_CASE("BUSY accepts nothing, and the room comes back", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {64}});
    const auto ids = make_ids(800);
    std::vector<std::unique_ptr<Move>> moves;
    for (size_t from = 0; from < ids.size(); from += 8) {
        const std::vector<BlockId> part(ids.begin() + long(from), ids.begin() + long(from) + 8);
        moves.push_back(std::make_unique<Move>(*pipeline, shards_of(part, 4)));
        const ucm_status status = moves.back()->dump();
        REQUIRE((status == UCM_OK || status == UCM_BUSY));
        if (status == UCM_BUSY) REQUIRE(moves.back()->dump_patiently() == UCM_OK);
    }
    for (auto &move : moves) REQUIRE(move->wait() == UCM_OK);
    if (pipeline->can(UCM_CAP_KEEPS)) REQUIRE(pipeline->hits(ids, UCM_LOOKUP_PREFIX) == 800);
}

TEST_CASE("BUSY below is never the result of a shard", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.back() != "Memory" || layers.size() == 1) return;
    Pipeline pipeline(layers, Geometry{3, {3000}});
    const auto ids = make_ids(10);
    pipeline.memory().busy(20);
    REQUIRE(all_ok(pipeline->dump(ids)));
    REQUIRE(pipeline->drain() == UCM_OK);
    REQUIRE(pipeline.memory().counters().busy > 0);
    REQUIRE(pipeline.memory().blocks() == ids.size());
    pipeline.open();
    pipeline.memory().busy(20);
    REQUIRE(pipeline->loads_back(ids));
}

TEST_CASE("what completes below in any order arrives whole", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.back() != "Memory") return;
    Pipeline pipeline(layers, Geometry{6, {3000}, UCM_DTYPE_BF16});
    pipeline.memory().reorder(true);
    const auto ids = make_ids(20);
    REQUIRE(all_ok(pipeline->dump(ids)));
    REQUIRE(pipeline->drain() == UCM_OK);
    pipeline.open();
    REQUIRE(pipeline->loads_back(ids));
}

TEST_CASE("a shard that fails below fails alone, with its errno", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.back() != "Memory") return;
    Pipeline pipeline(layers, Geometry{2, {3000}});
    const auto ids = make_ids(8);
    REQUIRE(all_ok(pipeline->dump(ids)));
    REQUIRE(pipeline->drain() == UCM_OK);
    pipeline.open();
    pipeline.memory().fail(Op::kLoad, UCM_IO, 5, 1, EIO);
    const auto results = pipeline->load(ids);
    size_t failed = 0;
    for (auto &result : results) {
        if (result.status == UCM_OK) continue;
        failed++;
        REQUIRE(result.status == UCM_IO);
        REQUIRE(result.os_errno == EIO);
        REQUIRE(result.length == 0);
    }
    REQUIRE(failed == 1);
    REQUIRE(pipeline->loads_back(ids));
}

TEST_CASE("what the store below refuses to keep is told or counted as lost", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.back() != "Memory") return;
    Pipeline pipeline(layers, Geometry{2, {3000}});
    const auto ids = make_ids(4);
    pipeline.memory().fail(Op::kDump, UCM_NO_SPACE, 0, 1000, ENOSPC);
    const auto results = pipeline->dump(ids);
    ucm_report report;
    REQUIRE(pipeline->drain(&report) == UCM_OK);
    size_t failed = 0;
    for (auto &result : results) {
        failed += result.status != UCM_OK;
        if (result.status != UCM_OK) REQUIRE(result.status == UCM_NO_SPACE);
    }
    REQUIRE(failed + report.lost == ids.size() * 2);
    REQUIRE(pipeline.memory().blocks() == 0);
    pipeline.memory().fail(Op::kDump, UCM_OK, 0, 0);
    pipeline.open();
    REQUIRE(all_ok(pipeline->dump(ids)));
    require_stored(*pipeline, ids);
}

TEST_CASE("cancel ends every shard once", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {20000}});
    const auto ids = make_ids(64);
    Move move(*pipeline, shards_of(ids, 4));
    if (!pipeline->can(UCM_CAP_CANCEL)) {
        REQUIRE(ucm_cancel(pipeline->top(), 1, nullptr) == UCM_UNSUPPORTED);
        REQUIRE(move.dump() == UCM_OK);
        REQUIRE(move.task == 0);
        return;
    }
    if (pipeline.has("Memory")) pipeline.memory().hold();
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.task != 0);
    const ucm_status status = ucm_cancel(pipeline->top(), move.task, nullptr);
    REQUIRE((status == UCM_OK || status == UCM_NOT_FOUND));
    pipeline.memory().release();
    const ucm_status end = move.wait();
    REQUIRE((end == UCM_OK || end == UCM_CANCELLED));
    for (auto &result : move.results())
        REQUIRE((result.status == UCM_OK || result.status == UCM_CANCELLED));
    pipeline->drain();
    REQUIRE(ucm_cancel(pipeline->top(), move.task, nullptr) == UCM_NOT_FOUND);
    REQUIRE(ucm_cancel(pipeline->top(), 1u << 30, nullptr) == UCM_NOT_FOUND);
    REQUIRE(all_ok(pipeline->dump(ids)));
    require_stored(*pipeline, ids);
}

TEST_CASE("a deadline that has passed moves no bytes, and hurts nobody later", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {3000}});
    const auto ids = make_ids(4);
    Move late(*pipeline, shards_of(ids, 2));
    late.transfer.deadline_ns = 1;
    REQUIRE(late.dump() == UCM_OK);
    late.wait();
    for (auto &result : late.results())
        REQUIRE((result.status == UCM_OK || result.status == UCM_TIMEOUT));
    REQUIRE(all_ok(pipeline->dump(ids)));
    require_stored(*pipeline, ids);
    if (!pipeline->can(UCM_CAP_LOADS)) return;
    Move load(*pipeline, shards_of(ids, 2));
    load.transfer.deadline_ns = 1;
    REQUIRE(load.load() == UCM_OK);
    load.wait();
    for (size_t i = 0; i < load.n(); i++) {
        REQUIRE((load.result(i).status == UCM_OK || load.result(i).status == UCM_TIMEOUT));
        if (load.result(i).status == UCM_OK) REQUIRE(load.same(i));
    }
    REQUIRE(pipeline->loads_back(ids));
}

TEST_CASE("removed blocks are absent, finished or not, and may come again", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {3000}});
    const auto ids = make_ids(6);
    if (!pipeline->can(UCM_CAP_REMOVE)) {
        REQUIRE(pipeline->remove(ids) == UCM_UNSUPPORTED);
        return;
    }
    REQUIRE(all_ok(pipeline->dump(ids)));
    const std::vector<BlockId> gone = {ids[0], ids[2], ids[5], make_id(77)};
    const bool drained = GENERATE(false, true);
    if (drained) pipeline->drain();
    REQUIRE(pipeline->remove(gone) == UCM_OK);
    require_absent(*pipeline, gone);
    require_stored(*pipeline, {ids[1], ids[3], ids[4]});
    pipeline->drain();
    require_absent(*pipeline, gone);

    const BlockId half = make_id(100);
    Move one(*pipeline, {{half, 1}});
    REQUIRE(one.dump() == UCM_OK);
    REQUIRE(one.wait() == UCM_OK);
    REQUIRE(pipeline->remove({half}) == UCM_OK);
    Move other(*pipeline, {{half, 0}});
    REQUIRE(other.dump() == UCM_OK);
    REQUIRE(other.wait() == UCM_OK);
    require_absent(*pipeline, {half});

    REQUIRE(all_ok(pipeline->dump(ids)));
    require_stored(*pipeline, ids);
    if (!pipeline->can(UCM_CAP_PERSISTENT)) return;
    pipeline.open();
    require_stored(*pipeline, ids);
    require_absent(*pipeline, {half, make_id(77)});
}

TEST_CASE("drain covers what was accepted before it", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {20000}});
    uint64_t stored = 0;
    for (uint64_t round = 0; round < 3; round++) {
        Move move(*pipeline, shards_of(make_ids(16, round * 16), 4));
        REQUIRE(move.dump_patiently() == UCM_OK);
        ucm_report report;
        REQUIRE(pipeline->drain(&report) == UCM_OK);
        REQUIRE(report.pending == 0);
        REQUIRE(report.lost == 0);
        stored += report.stored;
        REQUIRE(move.wait() == UCM_OK);
    }
    const Closed closed = pipeline->close();
    REQUIRE(closed.status == UCM_OK);
    REQUIRE(closed.report.lost == 0);
    if (pipeline.has("Posix") || pipeline.has("Memory") || pipeline.has("Heap"))
        REQUIRE(stored + closed.report.stored == 3 * 16 * 4);
}

TEST_CASE("drain without time answers PENDING while work is held below", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.back() != "Memory") return;
    Pipeline pipeline(layers, Geometry{2, {3000}});
    pipeline.memory().hold();
    Move move(*pipeline, shards_of(make_ids(3), 2));
    REQUIRE(move.dump() == UCM_OK);
    ucm_report report;
    REQUIRE(pipeline->drain(&report, 0) == UCM_PENDING);
    REQUIRE(report.pending > 0);
    REQUIRE(report.pending <= layers.size() * 6);  // each layer counts its own
    pipeline.memory().release();
    REQUIRE(pipeline->drain(&report) == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
    REQUIRE(pipeline.memory().blocks() == 3);
}

TEST_CASE("close finishes what was accepted", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {20000}, UCM_DTYPE_BF16});
    const auto old_ids = make_ids(16, 1000), ids = make_ids(64);
    REQUIRE(all_ok(pipeline->dump(old_ids)));
    const bool loads = pipeline->can(UCM_CAP_LOADS);
    const bool persistent = pipeline->can(UCM_CAP_PERSISTENT);
    Move load(*pipeline, shards_of(old_ids, 4));
    if (loads) REQUIRE(load.load_patiently() == UCM_OK);
    std::vector<std::unique_ptr<Move>> dumps;
    for (size_t i = 0; i < ids.size(); i += 16) {
        const std::vector<BlockId> part(ids.begin() + long(i), ids.begin() + long(i) + 16);
        dumps.push_back(std::make_unique<Move>(*pipeline, shards_of(part, 4)));
        REQUIRE(dumps.back()->dump_patiently() == UCM_OK);
    }
    const Closed closed = pipeline->close();
    REQUIRE(closed.status == UCM_OK);
    REQUIRE(closed.report.lost == 0);
    REQUIRE(closed.report.pending == 0);
    for (auto &dump : dumps) {
        REQUIRE(dump->finished());
        REQUIRE(all_ok(dump->results()));
    }
    if (loads) {
        REQUIRE(load.finished());
        for (size_t i = 0; i < load.n(); i++) REQUIRE(load.same(i));
    }
    if (!persistent) return;
    pipeline.open();
    require_stored(*pipeline, ids);
}

TEST_CASE("close without time leaves the store, and may be called again", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.back() != "Memory") return;
    Pipeline pipeline(layers, Geometry{2, {3000}});
    pipeline.memory().hold();
    Move move(*pipeline, shards_of(make_ids(3), 2));
    REQUIRE(move.dump() == UCM_OK);
    Closed closed = pipeline->close(0);
    REQUIRE(closed.status == UCM_PENDING);
    if (pipeline->top()) {  // else the upper layer was done, and is gone
        Move refused(*pipeline, {{make_id(9), 0}});
        REQUIRE(refused.dump() == UCM_CLOSED);
    }
    pipeline.memory().release();
    closed = pipeline->close();
    REQUIRE(closed.status == UCM_OK);
    REQUIRE(closed.report.lost == 0);
    REQUIRE(move.finished());
    REQUIRE(pipeline.memory().blocks() == 3);
}

TEST_CASE("wrong arguments are refused before anything starts", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    const BlockId id = make_id(0);
    const auto refused = [&](ucm_status expected, ucm_status status, Move &move) {
        REQUIRE(status == expected);
        REQUIRE_FALSE(move.finished());
        REQUIRE(move.error.code == expected);
        REQUIRE(move.error.message[0]);
    };
    Move index(*pipeline, {{id, 2}});
    refused(UCM_INVALID, index.dump(), index);
    refused(UCM_INVALID, index.load(), index);
    Move flag(*pipeline, {{id, 0}});
    flag.transfer.flags = uint64_t(1) << 40;
    refused(UCM_UNSUPPORTED, flag.dump(), flag);
    refused(UCM_UNSUPPORTED, flag.load(), flag);
    flag.transfer.flags = UCM_TRANSFER_EVENT;
    refused(UCM_UNSUPPORTED, flag.dump(), flag);
    Move lengths(*pipeline, {{id, 0}});
    const uint64_t length = 10;
    lengths.transfer.lengths = &length;
    refused(UCM_INVALID, lengths.load(), lengths);

    size_t hits = 0;
    ucm_lookup_args args{};
    args.struct_size = sizeof args;
    args.n = 1;
    args.block_ids = id.bytes;
    args.hits = &hits;
    args.flags = uint64_t(1) << 40;
    REQUIRE(ucm_lookup(pipeline->top(), &args, nullptr) == UCM_UNSUPPORTED);
    ucm_ids_args ids_args{};
    ids_args.struct_size = sizeof ids_args;
    ids_args.flags = uint64_t(1) << 40;
    if (pipeline->can(UCM_CAP_REMOVE))
        REQUIRE(ucm_remove(pipeline->top(), &ids_args, nullptr) == UCM_UNSUPPORTED);
    require_absent(*pipeline, {id});
}

TEST_CASE("opened for lookup only, a store looks up and moves nothing", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    const auto ids = make_ids(3);
    REQUIRE(all_ok(pipeline->dump(ids)));
    REQUIRE(pipeline->drain() == UCM_OK);
    Geometry geometry{2, {1000}};
    geometry.lookup_only = true;
    if (layers.back() == "Memory") return;  // one store a Memory
    auto reader = pipeline.beside(geometry);
    REQUIRE(reader->top()->capacity == 0);
    REQUIRE(reader->top()->shards_per_block == 0);
    if (pipeline->can(UCM_CAP_PERSISTENT)) {
        REQUIRE(reader->lookup(ids) == std::vector<bool>(3, true));
        REQUIRE(reader->hits(ids, UCM_LOOKUP_PREFIX) == 3);
    }
    REQUIRE(reader->lookup({make_id(50)}) == std::vector<bool>(1, false));
    Move move(*reader, {{ids[0], 0}});
    REQUIRE(move.dump() == UCM_UNSUPPORTED);
    REQUIRE(move.load() == UCM_UNSUPPORTED);
    REQUIRE(reader->prefetch(ids) == UCM_OK);
    REQUIRE(reader->touch(ids) == UCM_OK);
    REQUIRE(reader->drain() == UCM_OK);
    reader->metrics();
    REQUIRE(reader->close().status == UCM_OK);
}

TEST_CASE("hints change nothing", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    const auto ids = make_ids(3);
    Move move(*pipeline, shards_of(ids, 2));
    const std::vector<uint32_t> depths = {0, 0, 1, 1, 2, 2};
    move.transfer.depths = depths.data();
    move.transfer.tag = 99;
    move.transfer.priority = -5;
    move.transfer.deadline_ns = INT64_MAX;
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
    REQUIRE(pipeline->prefetch(ids) == UCM_OK);
    REQUIRE(pipeline->touch(ids) == UCM_OK);
    REQUIRE(pipeline->prefetch({make_id(50)}) == UCM_OK);
    require_stored(*pipeline, ids);
}

TEST_CASE("a forked child is refused, and its end hurts nobody", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    if (layers.front() == "Heap") return;  // there the host refuses
    Pipeline pipeline(layers, Geometry{2, {3000}});
    const auto ids = make_ids(4);
    REQUIRE(all_ok(pipeline->dump(ids)));
    ucm_transfer move = Move(*pipeline, {}).transfer;
    move.done = [](void *, size_t, const ucm_result *) { _exit(2); };
    move.finished = [](void *) { _exit(3); };
    ucm_wait_args wait{sizeof wait, 0, 0};
    uint8_t tier = 0;
    ucm_lookup_args lookup{};
    lookup.struct_size = sizeof lookup;
    lookup.n = 1;
    lookup.block_ids = ids[0].bytes;
    lookup.tiers = &tier;
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
        ucm_store *top = pipeline->top();
        const bool refused = ucm_lookup(top, &lookup, nullptr) == UCM_INVALID &&
                             ucm_load(top, &move, nullptr, nullptr) == UCM_INVALID &&
                             ucm_dump(top, &move, nullptr, nullptr) == UCM_INVALID &&
                             ucm_drain(top, &wait, nullptr, nullptr) == UCM_INVALID &&
                             ucm_close(top, &wait, nullptr, nullptr) == UCM_INVALID;
        _exit(refused ? 0 : 1);
    }
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(WIFEXITED(status));
    REQUIRE(WEXITSTATUS(status) == 0);
    require_stored(*pipeline, ids);
    REQUIRE(all_ok(pipeline->dump(make_ids(4, 100))));
    require_stored(*pipeline, make_ids(4, 100));
    REQUIRE(pipeline->close().status == UCM_OK);
}

TEST_CASE("metrics count what went through", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000, 24}});
    const auto ids = make_ids(5);
    REQUIRE(all_ok(pipeline->dump(ids)));
    if (pipeline->can(UCM_CAP_LOADS)) REQUIRE(pipeline->loads_back(ids));
    REQUIRE(pipeline->drain() == UCM_OK);
    bool reached = true;  // Cache writes nothing to a store that keeps nothing
    for (size_t depth = 0; depth < layers.size(); depth++) {
        if (depth && layers[depth - 1] == "Cache")
            reached = (pipeline->store(depth)->capabilities & UCM_CAP_KEEPS) != 0;
        if (layers[depth] == "Memory" || !reached) continue;
        CAPTURE(layers[depth]);
        auto metrics = pipeline->metrics(depth);
        REQUIRE(metrics.at("dump_shards_total") == 10);
        if (depth == 0) REQUIRE(metrics.at("dump_bytes_total") == 10 * 1024);
        if (depth == 0 && pipeline->can(UCM_CAP_LOADS)) {
            REQUIRE(metrics.at("load_shards_total") == 10);
            REQUIRE(metrics.at("load_bytes_total") == 10 * 1024);
        }
        if (metrics.count("failed_shards_total")) REQUIRE(metrics.at("failed_shards_total") == 0);
    }
}

TEST_CASE("layers publish only capabilities that they may take over", "[pipeline]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers);
    const uint64_t known = (UCM_CAP_EVENTS << 1) - 1;
    for (size_t depth = 0; depth < layers.size(); depth++)
        REQUIRE((pipeline->store(depth)->capabilities & ~known) == 0);
    for (size_t depth = 0; depth + 1 < layers.size(); depth++) {
        const uint64_t upper = pipeline->store(depth)->capabilities;
        const uint64_t lower = pipeline->store(depth + 1)->capabilities;
        for (uint64_t bit : {uint64_t(UCM_CAP_PERSISTENT), uint64_t(UCM_CAP_REMOVE)}) {
            CAPTURE(depth, bit);
            if (upper & bit) REQUIRE((lower & bit) != 0);
        }
    }
}

TEST_CASE("a layer registers its buffers with the store below, until it is closed", "[pipeline]") {
    const std::string layer = GENERATE("Cache", "Compress");
    if (!has_plugin(layer)) return;
    const auto memory = std::make_shared<Memory>();
    {
        Stack stack({layer, "Memory"}, {}, Geometry{}, memory);
        REQUIRE(memory->counters().registered > 0);
        stack.close();
    }
    REQUIRE(memory->counters().registered == 0);
}
