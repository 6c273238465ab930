// SPDX-License-Identifier: MIT
#include <atomic>
#include <catch2/catch.hpp>
#include <random>
#include <thread>

#include "harness.h"

using namespace ucm_test;

namespace {

constexpr uint64_t kPage = 4096;
const Geometry kFour{4, {5000}};  // two pages a slot

// The option that gives room for exactly so many shards.
std::string room_for(uint64_t shards, const Geometry &geometry = kFour) {
    const uint64_t bytes = shards * ((geometry.capacity() + kPage - 1) / kPage) * kPage;
    char text[64];
    snprintf(text, sizeof text, "%.17g", double(bytes) / 1073741824.0);
    return text;
}

Options with_room(uint64_t shards, const Geometry &geometry = kFour) {
    return {{"cache_buffer_capacity_gb", room_for(shards, geometry)}};
}

bool published(const ucm_result &result) {
    return (result.flags & UCM_RESULT_PUBLISHED) != 0;
}

std::unique_ptr<Move> dumping(Stack &stack, std::vector<Shard> shards, uint64_t flags = 0) {
    auto move = std::make_unique<Move>(stack, std::move(shards));
    move->transfer.flags = flags;
    if (move->dump_patiently() != UCM_OK) throw ucm::Error(UCM_INTERNAL, move->error.message);
    return move;
}

std::unique_ptr<Move> loading(Stack &stack, std::vector<Shard> shards, int64_t deadline_ns = 0) {
    auto move = std::make_unique<Move>(stack, std::move(shards));
    move->transfer.deadline_ns = deadline_ns;
    if (move->load_patiently() != UCM_OK) throw ucm::Error(UCM_INTERNAL, move->error.message);
    return move;
}

ucm_result dump_one(Stack &stack, const BlockId &id, uint32_t shard, uint64_t flags = 0) {
    auto move = dumping(stack, {{id, shard}}, flags);
    move->wait();
    return move->result(0);
}

ucm_report drained(Stack &stack, ucm_status expected = UCM_OK, int64_t timeout_ms = 60000) {
    ucm_report report{};
    REQUIRE(stack.drain(&report, timeout_ms) == expected);
    return report;
}

// Puts blocks below, and nothing into the cache that is tested afterwards.
void store_below(const std::shared_ptr<Memory> &memory, const std::vector<BlockId> &ids,
                 const Geometry &geometry = kFour) {
    Stack stack({"Memory"}, {}, geometry, memory);
    if (!all_ok(stack.dump(ids))) throw ucm::Error(UCM_INTERNAL, "store_below");
}

}  // namespace

TEST_CASE("a dump is done when it is copied, and stored below later", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(3);
    stack.memory().hold();
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.memory().blocks() == 0);
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>(3, 1));
    REQUIRE(stack.loads_back(ids));
    const ucm_report waiting = drained(stack, UCM_PENDING, 0);
    REQUIRE(waiting.pending >= 12);
    stack.memory().release();
    REQUIRE(drained(stack).stored == 12);
    REQUIRE(stack.memory().blocks() == 3);
    for (auto &id : ids)
        for (uint32_t shard = 0; shard < 4; shard++)
            REQUIRE(stack.memory().stored(id, shard) == contents(id, shard, 5000));
    REQUIRE(stack.metrics()["frames_dirty"] == 0);
    REQUIRE(stack.memory().counters().load_transfers == 0);
}

TEST_CASE("a block is seen when its last shard came, in any order", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(1);
    for (uint32_t shard : {3u, 0u, 3u, 2u}) {
        const ucm_result result = dump_one(stack, ids[0], shard);
        REQUIRE(result.status == UCM_OK);
        REQUIRE_FALSE(published(result));
        REQUIRE_FALSE(stack.lookup(ids)[0]);
        REQUIRE(all_are(stack.load(ids), UCM_NOT_FOUND));
    }
    REQUIRE(published(dump_one(stack, ids[0], 1)));
    REQUIRE(stack.lookup(ids)[0]);
    REQUIRE(stack.loads_back(ids));
    REQUIRE(published(dump_one(stack, ids[0], 0)));  // ignored
}

TEST_CASE("a block that comes shard by shard is written below once, whole", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(4);
    for (uint32_t shard = 0; shard < 4; shard++) {
        std::vector<Shard> layer;
        for (auto &id : ids) layer.push_back({id, shard});
        REQUIRE(dumping(stack, layer)->wait() == UCM_OK);
    }
    drained(stack);
    REQUIRE(stack.memory().counters().dumped == 16);
    REQUIRE(stack.memory().counters().dump_transfers <= 4);
}

TEST_CASE("lengths are kept, from nothing to capacity", "[cache]") {
    const Geometry geometry{3, {300, 5000}};
    Stack stack({"Cache", "Memory"}, with_room(64, geometry), geometry);
    const auto ids = make_ids(1);
    const std::vector<uint64_t> lengths = {0, 301, 5300};
    Move move(stack, shards_of(ids, 3), lengths);
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
    drained(stack);
    for (uint32_t shard = 0; shard < 3; shard++)
        REQUIRE(stack.memory().stored(ids[0], shard).size() == lengths[shard]);
    Stack second({"Cache", "Memory"}, with_room(64, geometry), geometry,
                 std::make_shared<Memory>());
    auto loaded = loading(stack, shards_of(ids, 3));
    REQUIRE(loaded->wait() == UCM_OK);
    for (size_t i = 0; i < 3; i++) {
        REQUIRE(loaded->result(i).length == lengths[i]);
        REQUIRE(loaded->same(i));
    }
    REQUIRE_FALSE(loaded->overrun());
}

TEST_CASE("layerwise dumps of more blocks than fit go below early and are published there",
          "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(16), kFour);
    const auto ids = make_ids(40);
    std::vector<size_t> flagged(ids.size());
    for (uint32_t shard = 0; shard < 4; shard++) {
        std::vector<Shard> layer;
        for (auto &id : ids) layer.push_back({id, shard});
        auto move = dumping(stack, layer);
        REQUIRE(move->wait() == UCM_OK);
        for (size_t i = 0; i < ids.size(); i++) flagged[i] += published(move->result(i));
    }
    for (size_t count : flagged) REQUIRE(count == 1);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(40, true));
    const ucm_report report = drained(stack);
    REQUIRE(report.lost == 0);
    REQUIRE(report.stored == 160);
    REQUIRE(report.unfinished == 0);
    REQUIRE(stack.memory().blocks() == 40);
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("who brings the last shard of a block that lies below waits no longer than its deadline",
          "[cache]") {
    const bool cancelled = GENERATE(false, true);
    Stack stack({"Cache", "Memory"}, with_room(16), kFour);
    const auto ids = make_ids(8);
    for (uint32_t shard = 0; shard < 3; shard++)
        for (auto &id : ids) REQUIRE(dump_one(stack, id, shard).status == UCM_OK);
    REQUIRE(drained(stack).unfinished == 24);
    stack.memory().hang_dumps(true);
    Move last(stack, {{ids[0], 3}});
    last.transfer.deadline_ns = ucm::monotonic_ns() + (cancelled ? 20000 : 1000) * 1000000ll;
    REQUIRE(last.dump_patiently() == UCM_OK);
    REQUIRE(stack.memory().wait_for_waiting(1));
    if (cancelled) REQUIRE(ucm_cancel(stack.top(), last.task, nullptr) == UCM_OK);
    REQUIRE(last.wait() == UCM_OK);
    REQUIRE_FALSE(published(last.result(0)));
    REQUIRE(drained(stack, UCM_PENDING, 0).pending >= 1);
    stack.memory().hang_dumps(false);
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(stack.memory().published(ids[0]));
    REQUIRE(stack.loads_back({ids[0]}));
}

TEST_CASE("a drain takes unfinished blocks below, where they are counted", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(2);
    dump_one(stack, ids[0], 1);
    dump_one(stack, ids[1], 2);
    dump_one(stack, ids[1], 3);
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 3);
    REQUIRE(report.unfinished == 3);
    for (uint32_t shard : {0u, 2u}) dump_one(stack, ids[0], shard);
    // All of it is here still, so it is seen at once.
    REQUIRE(published(dump_one(stack, ids[0], 3)));
    REQUIRE(stack.loads_back({ids[0]}));
    REQUIRE(drained(stack).stored == 3);
    REQUIRE(stack.memory().published(ids[0]));
}

TEST_CASE("a block that the store below gave up half-way is written again", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(1);
    dump_one(stack, ids[0], 0);
    drained(stack);
    stack.memory().erase(ids[0]);
    for (uint32_t shard = 1; shard < 4; shard++) dump_one(stack, ids[0], shard);
    const ucm_report report = drained(stack);
    REQUIRE(report.lost == 0);
    REQUIRE(stack.memory().published(ids[0]));
}

TEST_CASE("a failure below that passes is tried again", "[cache]") {
    const ucm_status status = GENERATE(as<ucm_status>(), UCM_IO, UCM_NO_SPACE, UCM_UNAVAILABLE);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(2);
    stack.memory().fail(Op::kDump, status, 1, 3, ENOSPC);
    REQUIRE(all_ok(stack.dump(ids)));
    const ucm_report report = drained(stack);
    REQUIRE(report.lost == 0);
    REQUIRE(report.pending == 0);
    REQUIRE(stack.memory().blocks() == 2);
}

TEST_CASE("a block that cannot be stored is given up, counted and named", "[cache]") {
    const ucm_status status = GENERATE(as<ucm_status>(), UCM_NO_SPACE, UCM_INVALID);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(2);
    stack.memory().fail(Op::kDump, status, 0, 100000, EIO);
    REQUIRE(all_ok(stack.dump({ids[0]})));
    const ucm_report report = drained(stack);
    REQUIRE(report.lost == 4);
    REQUIRE(report.pending == 0);
    REQUIRE_FALSE(stack.lookup(ids)[0]);
    REQUIRE(stack.metrics()["lost_shards_total"] == 4);
    REQUIRE(stack.metrics()["frames_dirty"] == 0);
    stack.memory().fail(Op::kDump, UCM_OK, 0, 0);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(stack.memory().blocks() == 2);
    REQUIRE(stack.host().logged(ids[0].hex()));
}

TEST_CASE("a block that is published is stored, whatever a shard of it ends with that was there",
          "[cache]") {
    auto memory = std::make_shared<Memory>();
    memory->hold();
    memory->fail(Op::kDump, UCM_IO, 0, 1);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    const auto ids = make_ids(1);
    REQUIRE(all_ok(stack.dump(ids)));
    memory->release(4);
    // Once more, of which only the first is missing.
    REQUIRE(eventually([&] { return memory->counters().dump_transfers == 2; }));
    memory->fail(Op::kDump, UCM_IO, 1, SIZE_MAX);
    memory->release();
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 4);
    REQUIRE(report.lost == 0);
    REQUIRE(stack.metrics()["lost_shards_total"] == 0);
    REQUIRE(memory->counters().dump_transfers == 2);
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("drains amid an outage do not delay what is tried after them", "[cache]") {
    auto memory = std::make_shared<Memory>();
    memory->hold();
    memory->fail(Op::kDump, UCM_IO, 0, SIZE_MAX);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    REQUIRE(all_ok(stack.dump(make_ids(1))));
    const auto sent = [&](uint64_t transfers) {
        return eventually([&] { return memory->counters().dump_transfers >= transfers; });
    };
    uint64_t n = 0;
    while (stack.metrics()["breaker_open"] == 0) {
        REQUIRE(sent(++n));
        memory->release(4);
    }
    // What fails while somebody drains counts, and this is the last that may.
    REQUIRE(sent(n + 1));
    std::thread waits([&] { stack.drain(nullptr, 500); });
    usleep(100000);
    memory->release(4);
    waits.join();
    memory->release();
    REQUIRE(sent(n + 6));
    memory->fail(Op::kDump, UCM_OK, 0, 0);
    REQUIRE(eventually([&] { return memory->blocks() == 1; }));
    REQUIRE(drained(stack).lost == 0);
}

TEST_CASE("a block that the store below declines stays here as long as there is room", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(3);
    stack.memory().decline({ids[0], ids[1]});
    REQUIRE(all_ok(stack.dump(ids)));
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 4);
    REQUIRE(report.lost == 0);
    REQUIRE(report.unfinished == 0);
    REQUIRE(stack.memory().blocks() == 1);
    REQUIRE(stack.memory().counters().dumped == 12);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(3, true));
    REQUIRE(stack.loads_back(ids));
    REQUIRE(stack.metrics()["declined_blocks_total"] == 2);
    REQUIRE(stack.metrics()["frames_dirty"] == 0);
    const auto more = make_ids(40, 100);
    for (const BlockId &id : more) REQUIRE(all_ok(stack.dump({id})));
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(stack.metrics()["evicted_blocks_total"] > 0);
    REQUIRE(stack.memory().counters().dumped == 12 + 160);
}

TEST_CASE("unfinished blocks that the store below declines make way, and their dumps are told",
          "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(16), kFour);
    const auto ids = make_ids(40);
    stack.memory().decline(ids);
    std::vector<std::unique_ptr<Move>> moves;
    for (uint32_t shard = 0; shard < 4; shard++) {
        std::vector<Shard> layer;
        for (auto &id : ids) layer.push_back({id, shard});
        moves.push_back(dumping(stack, layer));
        REQUIRE(moves.back()->wait() == UCM_OK);
    }
    const ucm_report report = drained(stack);
    REQUIRE(report.stored == 0);
    REQUIRE(report.lost == 0);
    REQUIRE(report.pending == 0);
    REQUIRE(stack.memory().blocks() == 0);
    REQUIRE(stack.metrics()["frames_dirty"] == 0);
    REQUIRE(stack.metrics()["lost_shards_total"] == 0);
}

TEST_CASE("what no slot can be had for waits, and a full queue is BUSY", "[cache]") {
    auto options = with_room(8);
    options["waiting_queue_depth"] = "16";
    Stack stack({"Cache", "Memory"}, options, kFour);
    stack.memory().hold();
    std::vector<std::unique_ptr<Move>> moves;
    ucm_status status = UCM_OK;
    for (uint64_t k = 0; status == UCM_OK; k++) {
        REQUIRE(k < 20);
        moves.push_back(std::make_unique<Move>(stack, shards_of(make_ids(1, k), 4)));
        status = moves.back()->dump();
    }
    REQUIRE(status == UCM_BUSY);
    stack.memory().release();
    REQUIRE(moves.back()->dump_patiently() == UCM_OK);
    for (auto &move : moves) REQUIRE(move->wait() == UCM_OK);
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(stack.memory().blocks() == moves.size());
}

TEST_CASE("a dump that waits for room too long is told so", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(8), kFour);
    stack.memory().hold();
    auto first = dumping(stack, shards_of(make_ids(1), 4));
    REQUIRE(first->wait() == UCM_OK);
    Move late(stack, shards_of(make_ids(2, 1), 4));
    late.transfer.deadline_ns = ucm::monotonic_ns() + 20000000;
    REQUIRE(late.dump() == UCM_OK);
    REQUIRE(late.wait() == UCM_TIMEOUT);
    Move stopped(stack, shards_of(make_ids(2, 1), 4));
    REQUIRE(stopped.dump() == UCM_OK);
    REQUIRE(ucm_cancel(stack.top(), stopped.task, nullptr) == UCM_OK);
    REQUIRE(stopped.wait() == UCM_CANCELLED);
    stack.memory().release();
    REQUIRE(drained(stack).lost == 0);
}

TEST_CASE("a dump behind one that waits for room is cancelled, or told that it is late, at once",
          "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(8), kFour);
    stack.memory().hold();
    auto first = dumping(stack, shards_of(make_ids(1), 4));
    REQUIRE(first->wait() == UCM_OK);
    auto stuck = dumping(stack, shards_of(make_ids(2, 1), 4));
    Move late(stack, shards_of(make_ids(2, 3), 4));
    late.transfer.deadline_ns = ucm::monotonic_ns() + 20000000;
    REQUIRE(late.dump() == UCM_OK);
    REQUIRE(late.wait() == UCM_TIMEOUT);
    auto stopped = dumping(stack, shards_of(make_ids(2, 5), 4));
    REQUIRE(ucm_cancel(stack.top(), stopped->task, nullptr) == UCM_OK);
    REQUIRE(stopped->wait() == UCM_CANCELLED);
    auto removed = dumping(stack, shards_of(make_ids(2, 7), 4));
    REQUIRE(stack.remove({make_ids(2, 7)[1]}) == UCM_OK);
    stack.memory().release();
    REQUIRE(removed->wait() == UCM_CANCELLED);
    REQUIRE(stuck->wait() == UCM_OK);  // nothing of it was late
    for (size_t row = 0; row < 8; row++)
        REQUIRE(removed->result(row).status == (row < 4 ? UCM_OK : UCM_CANCELLED));
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(stack.memory().blocks() == 4);
}

TEST_CASE("a replacement is gathered whole and replaces the block below too", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(1);
    stack.memory().hold();  // the first copy is still on its way when the second comes
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE_FALSE(published(dump_one(stack, ids[0], 0, UCM_TRANSFER_REPLACE)));
    REQUIRE(stack.loads_back(ids));  // the old one
    for (auto &result : stack.dump(ids, UCM_TRANSFER_REPLACE)) REQUIRE(result.status == UCM_OK);
    stack.memory().release();
    const ucm_report report = drained(stack);
    REQUIRE(report.lost == 0);
    REQUIRE(report.pending == 0);
    REQUIRE(stack.memory().counters().replaced == 4);
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a miss is read below once and then found here", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(5);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>(5, 2));
    REQUIRE(stack.loads_back(ids));
    REQUIRE(memory->counters().loaded == 20);
    REQUIRE(memory->counters().load_transfers <= 2);
    // Who asked is answered a moment before everybody has it.
    for (int k = 0; k < 1000 && stack.tiers(ids) != std::vector<uint8_t>(5, 1); k++)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>(5, 1));
    REQUIRE(stack.loads_back(ids));
    REQUIRE(memory->counters().loaded == 20);
    REQUIRE(stack.metrics()["hit_shards_total"] == 20);
    REQUIRE(stack.metrics()["miss_shards_total"] == 20);
}

TEST_CASE("shards that several tasks ask for at once are read once", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(4);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    std::vector<std::unique_ptr<Move>> moves;
    for (int k = 0; k < 5; k++) moves.push_back(loading(stack, shards_of(ids, 4)));
    REQUIRE(memory->wait_for_waiting(16));
    memory->release();
    for (auto &move : moves) {
        REQUIRE(move->wait() == UCM_OK);
        for (size_t i = 0; i < move->n(); i++) REQUIRE(move->same(i));
    }
    REQUIRE(memory->counters().loaded == 16);
}

TEST_CASE("a shard that fails below fails alone, and is not remembered", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(2);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->fail(Op::kLoad, UCM_CORRUPT, 5, 1, EIO);
    auto move = loading(stack, shards_of(ids, 4));
    REQUIRE(move->wait() == UCM_CORRUPT);
    size_t bad = 0;
    for (size_t i = 0; i < move->n(); i++) {
        if (move->result(i).status == UCM_OK)
            REQUIRE(move->same(i));
        else
            bad++;
    }
    REQUIRE(bad == 1);
    REQUIRE(stack.loads_back(ids));
    REQUIRE(memory->counters().loaded == 8);
    REQUIRE(all_are(stack.load(make_ids(1, 99)), UCM_NOT_FOUND));
    REQUIRE_FALSE(stack.lookup(make_ids(1, 99))[0]);
    REQUIRE(stack.metrics()["frames_free"] == 16 - 2);
}

TEST_CASE("a shard below that is longer than its capacity is INCOMPATIBLE", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(1);
    store_below(memory, ids);
    memory->tamper(ids[0], 2, std::vector<uint8_t>(6000));
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    const auto results = stack.load(ids);
    REQUIRE(results[2].status == UCM_INCOMPATIBLE);
    REQUIRE(results[1].status == UCM_OK);
}

TEST_CASE("a load of more than fits runs batch after batch", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(100);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(8), kFour, memory);
    memory->reorder(true);
    auto other = loading(stack, shards_of(ids, 4));
    REQUIRE(stack.loads_back(ids));
    REQUIRE(other->wait() == UCM_OK);
    REQUIRE(stack.metrics()["evicted_blocks_total"] > 0);
}

TEST_CASE("loads are served while every slot that dumps may hold is held", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(10);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(8), kFour, memory);
    memory->fail(Op::kDump, UCM_NO_SPACE, 0, 1u << 30);
    std::vector<std::unique_ptr<Move>> dumps;
    for (uint64_t k = 0; k < 6; k++)
        dumps.push_back(dumping(stack, shards_of(make_ids(1, 100 + k), 4)));
    REQUIRE(stack.loads_back(ids));
    memory->fail(Op::kDump, UCM_OK, 0, 0);
    for (auto &move : dumps) REQUIRE(move->wait() == UCM_OK);
}

TEST_CASE("no load waits for write-back, though the store below hangs over it", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto cold = make_ids(30), dirty = make_ids(4, 200);
    store_below(memory, cold);
    Stack stack({"Cache", "Memory"}, with_room(32), kFour, memory);
    memory->hang_dumps(true);
    REQUIRE(all_ok(stack.dump(dirty)));  // all that dumps may hold
    auto waits = dumping(stack, shards_of(make_ids(4, 300), 4));
    REQUIRE(memory->wait_for_waiting(16));
    for (const int32_t priority : {0, 1}) {
        for (const auto &ids : {dirty, cold, std::vector<BlockId>{cold[1]}}) {
            Move move(stack, shards_of(ids, 4));
            move.transfer.priority = priority;
            REQUIRE(move.load_patiently() == UCM_OK);
            REQUIRE(move.wait() == UCM_OK);
            for (size_t i = 0; i < move.n(); i++) REQUIRE(move.same(i));
        }
    }
    REQUIRE(memory->waiting() == 16);
    REQUIRE_FALSE(waits->finished());
    memory->hang_dumps(false);
    REQUIRE(waits->wait() == UCM_OK);
    REQUIRE(drained(stack).lost == 0);
}

TEST_CASE("an urgent load overtakes those that wait for room", "[cache]") {
    const auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(25);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    Move patient(stack, shards_of({ids.begin(), ids.end() - 1}, 4));
    REQUIRE(patient.load() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(32));  // half of the frames
    Move urgent(stack, shards_of({ids.back()}, 4));
    urgent.transfer.priority = 1;
    REQUIRE(urgent.load() == UCM_OK);
    memory->release(4);  // room for one block: the urgent one
    while (memory->counters().loaded < 4) std::this_thread::sleep_for(std::chrono::milliseconds(2));
    REQUIRE(memory->wait_for_waiting(32));  // 28 of the patient ones, then the urgent one's
    memory->release(32);
    const bool first = urgent.wait(60000) == UCM_OK && !patient.finished();
    memory->release();
    REQUIRE(first);
    REQUIRE(patient.wait() == UCM_OK);
    REQUIRE(stack.metrics()["miss_shards_total"] == 100);  // tried again is not missed again
}

// Moves two blocks that lie here already; returns how many of the 8 shards the caller's own thread
// copied: it says so before the call returns.
size_t copied_by_the_caller(Stack &stack,
                            ucm_status (*start)(ucm_store *, const ucm_transfer *, ucm_task *,
                                                ucm_error *),
                            const std::vector<BlockId> &ids, int32_t priority) {
    struct Seen {
        std::thread::id caller = std::this_thread::get_id();
        std::atomic<size_t> here{0}, ended{0};
        std::atomic<bool> finished{false};
    } seen;
    Move memory(stack, shards_of(ids, 4));
    ucm_transfer t = memory.transfer;
    t.priority = priority;
    t.ctx = &seen;
    t.done = [](void *ctx, size_t, const ucm_result *result) {
        auto *seen = static_cast<Seen *>(ctx);
        if (result->status == UCM_OK) seen->ended++;
        if (std::this_thread::get_id() == seen->caller) seen->here++;
    };
    t.finished = [](void *ctx) { static_cast<Seen *>(ctx)->finished = true; };
    ucm_task task = 0;
    if (start(stack.top(), &t, &task, nullptr) != UCM_OK) throw ucm::Error(UCM_INTERNAL, "start");
    while (!seen.finished) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (seen.ended != 8) throw ucm::Error(UCM_INTERNAL, "a shard failed");
    return seen.here;
}

TEST_CASE("a caller who says that it does not wait, by a priority below 0, copies nothing itself",
          "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64));
    const auto urgent = make_ids(2), background = make_ids(2, 100);
    REQUIRE(copied_by_the_caller(stack, ucm_dump, urgent, 0) == 8);
    REQUIRE(copied_by_the_caller(stack, ucm_dump, background, -1) == 0);
    for (auto &ids : {urgent, background}) {
        REQUIRE(copied_by_the_caller(stack, ucm_load, ids, 0) == 8);
        REQUIRE(copied_by_the_caller(stack, ucm_load, ids, -1) == 0);
    }
    REQUIRE(stack.metrics()["miss_shards_total"] == 0);
}

TEST_CASE("a caller does not wait longer than its deadline, and what comes late is kept",
          "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(2);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    auto patient = loading(stack, shards_of({ids[0]}, 4));
    REQUIRE(memory->wait_for_waiting(4));
    auto hurried = loading(stack, shards_of({ids[0]}, 4), ucm::monotonic_ns() + 20000000);
    REQUIRE(hurried->wait() == UCM_TIMEOUT);
    REQUIRE_FALSE(patient->finished());
    Move stopped(stack, shards_of({ids[0]}, 4));
    REQUIRE(stopped.load() == UCM_OK);
    REQUIRE(ucm_cancel(stack.top(), stopped.task, nullptr) == UCM_OK);
    REQUIRE(stopped.wait() == UCM_CANCELLED);
    memory->release();
    REQUIRE(patient->wait() == UCM_OK);
    REQUIRE(memory->counters().loaded == 4);
    REQUIRE(stack.loads_back({ids[0]}));
    REQUIRE(memory->counters().loaded == 4);
}

TEST_CASE("timeout_ms bounds a load that has no deadline", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(1);
    store_below(memory, ids);
    auto options = with_room(64);
    options["timeout_ms"] = "30";
    Stack stack({"Cache", "Memory"}, options, kFour, memory);
    memory->hold();
    REQUIRE(all_are(stack.load(ids), UCM_TIMEOUT));
    memory->release();
}

TEST_CASE("a store below that answers no load is taken to be down, and leaves room", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto below = make_ids(32), hot = make_ids(3, 100), more = make_ids(6, 200);
    store_below(memory, below);
    auto options = with_room(64);  // 16 blocks
    options["timeout_ms"] = "300";
    Stack stack({"Cache", "Memory"}, options, kFour, memory);
    REQUIRE(all_ok(stack.dump(hot)));
    drained(stack);
    memory->hold();
    for (size_t k = 0; k < 32 && stack.metrics()["breaker_open"] == 0; k += 4)
        for (const auto &end :
             stack.load(std::vector<BlockId>(below.begin() + int(k), below.begin() + int(k) + 4)))
            REQUIRE((end.status == UCM_TIMEOUT || end.status == UCM_UNAVAILABLE));
    REQUIRE(stack.metrics()["breaker_open"] == 1);
    // Misses fail at once, those that somebody reads already too; half of the memory is left.
    REQUIRE(all_are(stack.load(below), UCM_UNAVAILABLE));
    REQUIRE(memory->waiting() <= 8 * 4);
    REQUIRE(stack.loads_back(hot));
    REQUIRE(all_ok(stack.dump(more)));
    REQUIRE(stack.loads_back(more));
    memory->release();
    REQUIRE(eventually([&] { return stack.metrics()["breaker_open"] == 0; }));
    REQUIRE(stack.loads_back(below));
    REQUIRE(stack.metrics()["breaker_opened_total"] == 1);
}

TEST_CASE("while loads fail, lookups and dumps that work do not say that they work again",
          "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto below = make_ids(4);
    store_below(memory, below);
    Stack stack({"Cache", "Memory"}, with_room(256), kFour, memory);
    memory->fail(Op::kLoad, UCM_IO, 0, SIZE_MAX);
    while (stack.metrics()["breaker_open"] == 0) stack.load({below[0]});
    for (int k = 0; k < 30; k++) {
        stack.lookup(below);
        REQUIRE(all_ok(stack.dump(make_ids(1, 100 + size_t(k)))));
        drained(stack);
        REQUIRE(all_are(stack.load(below), UCM_UNAVAILABLE));
    }
    REQUIRE(stack.metrics()["breaker_opened_total"] == 1);
    memory->fail(Op::kLoad, UCM_OK, 0, 0);
    REQUIRE(eventually([&] { return stack.metrics()["breaker_open"] == 0; }));  // nobody asks
    REQUIRE(stack.loads_back(below));
}

TEST_CASE("loads that work again are found out though only what is here is loaded", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto below = make_ids(4);
    store_below(memory, below);
    Stack stack({"Cache", "Memory"}, with_room(256), kFour, memory);
    memory->fail(Op::kLoad, UCM_IO, 0, SIZE_MAX);
    while (stack.metrics()["breaker_open"] == 0) stack.load({below[0]});
    REQUIRE(all_ok(stack.dump({below[0]})));  // the only block that a load was refused of
    drained(stack);
    const uint64_t before = memory->counters().lookups;
    REQUIRE(eventually([&] {
        REQUIRE_FALSE(stack.lookup(below)[3]);  // it is below, but cannot be had
        return memory->counters().lookups > before;
    }));
    memory->fail(Op::kLoad, UCM_OK, 0, 0);
    REQUIRE(eventually([&] { return stack.lookup(below) == std::vector<bool>(4, true); }));
    REQUIRE(stack.loads_back(below));
    REQUIRE(stack.metrics()["breaker_opened_total"] == 1);
}

TEST_CASE("slots that are being filled hold up close, though nobody waits for them", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(1);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    auto move = loading(stack, shards_of(ids, 4));
    REQUIRE(memory->wait_for_waiting(4));
    REQUIRE(ucm_cancel(stack.top(), move->task, nullptr) == UCM_OK);
    REQUIRE(move->wait() == UCM_CANCELLED);
    REQUIRE(stack.close(0).status == UCM_PENDING);
    memory->release();
    REQUIRE(stack.close().status == UCM_OK);
}

TEST_CASE("a task is not failed by the deadline or cancel of another one", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(1);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    auto first = loading(stack, shards_of(ids, 4));
    REQUIRE(memory->wait_for_waiting(4));
    auto second = loading(stack, shards_of(ids, 4));
    memory->fail(Op::kLoad, GENERATE(as<ucm_status>(), UCM_TIMEOUT, UCM_CANCELLED), 0, 4);
    memory->release();
    REQUIRE(first->wait() != UCM_OK);
    REQUIRE(second->wait() == UCM_OK);
}

TEST_CASE("BUSY below is tried again, for loads and for dumps", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(6);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->busy(5);
    REQUIRE(stack.loads_back(ids));
    memory->busy(5);
    REQUIRE(all_ok(stack.dump(make_ids(6, 10))));
    REQUIRE(drained(stack).lost == 0);
    REQUIRE(memory->blocks() == 12);
    REQUIRE(memory->counters().busy == 10);
}

TEST_CASE("lookups ask below once, for what is not here", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(8);
    store_below(memory, {ids[1], ids[2], ids[5]});
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    REQUIRE(all_ok(stack.dump({ids[0], ids[3]})));
    drained(stack);
    const auto before = memory->counters();
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>({1, 2, 2, 1, 0, 2, 0, 0}));
    REQUIRE(memory->counters().lookups == before.lookups + 1);
    REQUIRE(memory->counters().looked_up == before.looked_up + 6);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 5);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_PREFIX) == 4);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_LAST) == 6);
    REQUIRE(stack.hits({ids[1], ids[3]}, UCM_LOOKUP_PREFIX) == 2);
    REQUIRE(stack.hits({ids[3], ids[4]}, UCM_LOOKUP_LAST) == 1);
    REQUIRE(stack.hits({}, UCM_LOOKUP_PREFIX) == 0);
    const auto counters = memory->counters();
    REQUIRE(stack.hits({ids[0], ids[3]}, UCM_LOOKUP_PREFIX) == 2);
    REQUIRE(memory->counters().lookups == counters.lookups);
}

TEST_CASE("a lookup that fails below is answered with what is here", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump({ids[0], ids[1]})));
    stack.memory().fail(Op::kLookup, UCM_IO, 0, 2);
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>({1, 1, 0}));
    REQUIRE(stack.hits(ids, UCM_LOOKUP_PREFIX) == 2);
}

TEST_CASE("half of a block here and half below is not a whole one", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(1);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    REQUIRE(loading(stack, {{ids[0], 1}, {ids[0], 2}})->wait() == UCM_OK);
    REQUIRE(stack.tiers(ids)[0] == 2);
    memory->erase(ids[0]);
    REQUIRE_FALSE(stack.lookup(ids)[0]);
    // A dump of it does not count the two shards that are left.
    REQUIRE_FALSE(published(dump_one(stack, ids[0], 0)));
    REQUIRE_FALSE(published(dump_one(stack, ids[0], 3)));
    REQUIRE_FALSE(stack.lookup(ids)[0]);
}

TEST_CASE("prefetch fills the cache", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(3);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    REQUIRE(stack.prefetch(ids) == UCM_OK);
    REQUIRE(memory->wait_for_waiting(12));
    auto move = loading(stack, shards_of(ids, 4));  // waits for the same shards
    memory->release();
    REQUIRE(move->wait() == UCM_OK);
    REQUIRE(memory->counters().loaded == 12);
    REQUIRE(stack.prefetch(make_ids(200, 50)) == UCM_OK);  // not there: no harm
    REQUIRE(stack.close().status == UCM_OK);
}

TEST_CASE("prefetch pushes out nothing that is used", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto used = make_ids(15), unused = make_ids(1, 50), others = make_ids(60, 100);
    store_below(memory, used);
    store_below(memory, others);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    for (int k = 0; k < 2; k++) REQUIRE(stack.loads_back(used));
    REQUIRE(all_ok(stack.dump(unused)));
    drained(stack);
    REQUIRE(stack.metrics()["frames_free"] == 0);
    REQUIRE(stack.prefetch(others) == UCM_OK);
    const int64_t until_ns = ucm::monotonic_ns() + 30ll * 1000000000;
    // What is asked for later comes later: then all of them had their turn.
    while (stack.tiers({others.back()})[0] != 1 && ucm::monotonic_ns() < until_ns)
        REQUIRE(stack.prefetch({others.back()}) == UCM_OK);
    REQUIRE(stack.tiers({others.back(), unused[0]}) == std::vector<uint8_t>({1, 2}));
    REQUIRE(stack.tiers(used) == std::vector<uint8_t>(15, 1));
}

TEST_CASE("prefetch of what is nowhere pushes nothing out", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto here = make_ids(16), last = make_ids(1, 100);
    store_below(memory, last);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);  // 16 blocks
    REQUIRE(all_ok(stack.dump(here)));
    drained(stack);
    const auto before = memory->counters();
    REQUIRE(stack.prefetch(make_ids(60, 200)) == UCM_OK);
    REQUIRE(eventually([&] { return memory->counters().looked_up >= before.looked_up + 16; }));
    // Of what is asked for later it is known that the rest had its turn.
    REQUIRE(stack.prefetch(last) == UCM_OK);
    REQUIRE(eventually([&] { return stack.metrics()["evicted_blocks_total"] >= 1; }));
    REQUIRE(eventually([&] { return stack.tiers(last)[0] == 1; }));
    REQUIRE(stack.metrics()["evicted_blocks_total"] == 1);
    REQUIRE(memory->counters().load_transfers == before.load_transfers + 1);
}

TEST_CASE("prefetch leaves room for loads and dumps", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto expected = make_ids(16), urgent = make_ids(1, 100), more = make_ids(6, 200);
    store_below(memory, expected);
    store_below(memory, urgent);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);  // 16 blocks
    memory->hold();
    REQUIRE(stack.prefetch(expected) == UCM_OK);
    REQUIRE(memory->wait_for_waiting(16));
    auto move = loading(stack, shards_of(urgent, 4));
    REQUIRE(memory->wait_for_waiting(20));
    REQUIRE(all_ok(stack.dump(more)));
    REQUIRE(memory->counters().load_transfers == 5);
    memory->release();
    REQUIRE(move->wait() == UCM_OK);
    // The others follow as frames come free.
    REQUIRE(eventually([&] { return stack.tiers({expected.back()})[0] == 1; }));
}

TEST_CASE("touch goes down", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    REQUIRE(stack.touch(make_ids(2)) == UCM_OK);
    REQUIRE(stack.memory().counters().touches == 1);
}

TEST_CASE("blocks that are used survive a scan of others", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto hot = make_ids(6), scan = make_ids(60, 100);
    store_below(memory, hot);
    store_below(memory, scan);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    for (int k = 0; k < 3; k++) REQUIRE(stack.loads_back(hot));
    REQUIRE(stack.loads_back(scan));
    REQUIRE(stack.tiers(hot) == std::vector<uint8_t>(6, 1));
}

TEST_CASE("what is removed is absent here and below, whatever its state", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump({ids[0]})));
    drained(stack);
    stack.memory().hold();
    REQUIRE(all_ok(stack.dump({ids[1]})));  // on its way below
    dump_one(stack, ids[2], 1);             // unfinished
    REQUIRE(stack.remove(ids) == UCM_OK);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(3, false));
    stack.memory().release();
    const ucm_report report = drained(stack);
    REQUIRE(report.pending == 0);
    REQUIRE(report.lost == 0);
    REQUIRE(stack.memory().blocks() == 0);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(3, false));
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    drained(stack);
    REQUIRE(stack.memory().blocks() == 3);
    REQUIRE(stack.metrics()["frames_free"] == 16 - 3);
}

TEST_CASE("a fill that began before a remove does not bring the block back", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(1);
    store_below(memory, ids);
    Stack stack({"Cache", "Memory"}, with_room(64), kFour, memory);
    memory->hold();
    auto move = loading(stack, shards_of(ids, 4));
    REQUIRE(memory->wait_for_waiting(4));
    memory->release(2);
    REQUIRE(stack.remove(ids) == UCM_OK);
    memory->release();
    move->wait();
    REQUIRE_FALSE(stack.lookup(ids)[0]);
    REQUIRE(all_are(stack.load(ids), UCM_NOT_FOUND));
    REQUIRE(stack.close().status == UCM_OK);
}

TEST_CASE("a remove cancels dumps of the block that wait for room", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(8), kFour);
    stack.memory().hold();
    const auto ids = make_ids(3);
    REQUIRE(dumping(stack, shards_of({ids[0]}, 4))->wait() == UCM_OK);
    auto move = dumping(stack, shards_of({ids[1], ids[2]}, 4));
    REQUIRE(stack.remove({ids[1]}) == UCM_OK);
    stack.memory().release();
    move->wait();
    for (size_t i = 4; i < 8; i++) REQUIRE(move->result(i).status == UCM_OK);
    drained(stack);
    REQUIRE_FALSE(stack.lookup(ids)[1]);
    REQUIRE_FALSE(stack.memory().published(ids[1]));
    REQUIRE(stack.memory().published(ids[2]));
}

TEST_CASE("over Empty it is a tier of memory", "[cache]") {
    if (!has_plugin("Empty")) return;
    Stack stack({"Cache", "Empty"}, with_room(64), kFour);
    REQUIRE(stack.can(UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_REMOVE | UCM_CAP_CANCEL));
    REQUIRE_FALSE(stack.can(UCM_CAP_WRITE_BACK));
    REQUIRE_FALSE(stack.can(UCM_CAP_PERSISTENT));
    const auto ids = make_ids(10);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>(10, 1));
    REQUIRE(stack.loads_back(ids));
    REQUIRE(stack.metrics(1)["dump_shards_total"] == 0);
    REQUIRE(stack.metrics()["frames_dirty"] == 0);
    REQUIRE(all_ok(stack.dump(make_ids(30, 100))));  // older ones make way
    REQUIRE(stack.metrics()["evicted_blocks_total"] == 24);
    dump_one(stack, make_id(500), 2);
    const ucm_report report = drained(stack);
    REQUIRE(report.stored + report.lost + report.pending == 0);
    REQUIRE(stack.metrics(1)["dump_shards_total"] == 0);
}

TEST_CASE("over Empty, unfinished blocks that do not fit make way and some still finish",
          "[cache]") {
    if (!has_plugin("Empty")) return;
    Stack stack({"Cache", "Empty"}, with_room(16), kFour);
    const auto ids = make_ids(40);
    for (uint32_t shard = 0; shard < 4; shard++) {
        std::vector<Shard> layer;
        for (auto &id : ids) layer.push_back({id, shard});
        auto move = dumping(stack, layer);
        move->wait();
        for (auto &result : move->results())
            REQUIRE((result.status == UCM_OK || result.status == UCM_NO_SPACE));
    }
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) > 0);
    std::vector<BlockId> seen;
    const auto found = stack.lookup(ids);
    for (size_t i = 0; i < ids.size(); i++)
        if (found[i]) seen.push_back(ids[i]);
    REQUIRE(stack.loads_back(seen));
    REQUIRE(drained(stack).lost == 0);  // those that found no room were told so
}

TEST_CASE("over Fake a miss is not asked for below, a lookup is", "[cache]") {
    if (!has_plugin("Fake")) return;
    Stack stack({"Cache", "Fake"}, with_room(16), kFour);
    const auto ids = make_ids(20);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(drained(stack).stored == 80);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(20, true));
    const auto tiers = stack.tiers(ids);
    for (size_t i = 0; i < ids.size(); i++) {
        if (tiers[i] == 1) REQUIRE(stack.loads_back({ids[i]}));
        if (tiers[i] == 2) REQUIRE(all_are(stack.load({ids[i]}), UCM_NOT_FOUND));
    }
}

TEST_CASE("a lookup-only Cache passes on, and adds a tier", "[cache]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(2);
    store_below(memory, {ids[1]});
    Geometry geometry = kFour;
    geometry.lookup_only = true;
    Stack stack({"Cache", "Memory"}, {}, geometry, memory);
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>({0, 2}));
    REQUIRE(stack.touch(ids) == UCM_OK);
    REQUIRE(stack.remove(ids) == UCM_OK);
    REQUIRE(stack.drain() == UCM_OK);
    REQUIRE(stack.close().status == UCM_OK);
}

TEST_CASE("a pool that cannot be is refused with what to do", "[cache]") {
    auto refused = [](const std::string &capacity) {
        try {
            Stack stack({"Cache", "Memory"}, {{"cache_buffer_capacity_gb", capacity}}, kFour);
        } catch (const ucm::Error &error) {
            return std::string(error.what());
        }
        return std::string();
    };
    for (const std::string &capacity : {room_for(7), std::string("1e9")})
        REQUIRE(refused(capacity).find("cache_buffer_capacity_gb") != std::string::npos);
    REQUIRE(refused(room_for(8)).empty());
    REQUIRE(refused("0").empty());
}

TEST_CASE("close finishes what was accepted, and says what it could not", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    stack.memory().hold();
    REQUIRE(all_ok(stack.dump(make_ids(2))));
    dump_one(stack, make_id(9), 1);
    const Closed first = stack.close(10);
    REQUIRE(first.status == UCM_PENDING);
    REQUIRE(first.report.pending == 8);
    REQUIRE(first.report.lost == 1);  // its block cannot become whole any more
    REQUIRE_THROWS_AS(stack.lookup(make_ids(1)), ucm::Error);
    stack.memory().release();
    const Closed last = stack.close();
    REQUIRE(last.status == UCM_OK);
    REQUIRE(last.report.lost == 1);
    REQUIRE(stack.memory().blocks() == 2);
}

TEST_CASE("a task is logged when it begins and when it ends", "[cache]") {
    Stack stack({"Cache", "Memory"}, with_room(64), kFour);
    REQUIRE(all_ok(stack.dump(make_ids(1))));
    REQUIRE(stack.loads_back(make_ids(1)));
    stack.close();
    REQUIRE(stack.host().logged("Cache task(1,DUMP,4,20000) dispatching."));
    REQUIRE(stack.host().logged("Cache task(1,DUMP,4,20000) finished, cost "));
    REQUIRE(stack.host().logged("Cache task(2,LOAD,4,20000) finished, cost "));
}

namespace {

struct Wrong {
    std::atomic<int> bytes{0}, statuses{0}, calls{0}, last{0};
    int total() const { return bytes + statuses + calls; }
};

bool expected(ucm_status status, bool faults) {
    return status == UCM_OK || status == UCM_NOT_FOUND || status == UCM_CANCELLED ||
           (faults && (status == UCM_IO || status == UCM_NO_SPACE || status == UCM_TIMEOUT ||
                       status == UCM_UNAVAILABLE));
}

// Dumps and loads of random shards, removes, prefetches, cancels, drains.
void storm(Stack &stack, unsigned seed, int operations, bool faults, Wrong &wrong) {
    std::mt19937 random(seed);
    const uint32_t shards = stack.geometry().shards;
    for (int k = 0; k < operations; k++) {
        std::vector<Shard> some;
        const auto first = random() % 30;
        for (auto &shard : shards_of(make_ids(1 + random() % 6, first), shards))
            if (random() % 4) some.push_back(shard);
        std::shuffle(some.begin(), some.end(), random);
        Move move(stack, some);
        if (random() % 4 == 0) move.transfer.deadline_ns = ucm::monotonic_ns() + random() % 2000000;
        const bool limited = move.transfer.deadline_ns != 0;
        const unsigned what = random() % 20;
        if (what < 7) {
            if (what == 0) move.transfer.flags = UCM_TRANSFER_REPLACE;
            if (move.dump_patiently() != UCM_OK) wrong.calls++;
        } else if (what < 15) {
            if (move.load_patiently() != UCM_OK) wrong.calls++;
        } else if (what == 15) {
            if (stack.remove(make_ids(2, first)) != UCM_OK) wrong.calls++;
        } else if (what == 16) {
            stack.prefetch(make_ids(3, first));
        } else if (what == 17) {
            if (stack.drain() != UCM_OK) wrong.calls++;
        } else {
            stack.touch(make_ids(4, first));
            stack.lookup(make_ids(30));
            stack.metrics();
        }
        if (what >= 15) continue;
        if (random() % 8 == 0) ucm_cancel(stack.top(), move.task, nullptr);
        move.wait(-1);
        for (size_t i = 0; i < move.n(); i++) {
            const ucm_status status = move.result(i).status;
            if (!expected(status, faults || limited) && !(what < 7 && status == UCM_NO_SPACE))
                wrong.statuses++, wrong.last = status * 100 + int(what);
            if (what >= 7 && status == UCM_OK && (!move.same(i) || !move.result(i).length))
                wrong.bytes++;
        }
    }
}

void run_storm(Stack &stack, bool faults, int operations = 150) {
    Wrong wrong;
    std::vector<std::thread> threads;
    for (unsigned k = 0; k < 6; k++)
        threads.emplace_back([&, k] { storm(stack, k + 1, operations, faults, wrong); });
    for (auto &thread : threads) thread.join();
    CHECK(wrong.bytes == 0);
    CHECK(wrong.last == 0);
    CHECK(wrong.statuses == 0);
    CHECK(wrong.calls == 0);
    const ucm_report report = drained(stack);
    CHECK(report.pending == 0);
    auto metrics = stack.metrics();
    CHECK(metrics["frames_dirty"] <= metrics["frames"]);
    REQUIRE(stack.close().status == UCM_OK);
}

}  // namespace

TEST_CASE("many threads over a pool of two blocks keep every byte right", "[cache][storm]") {
    const std::string bottom = GENERATE("Memory", "Empty", "Fake", "Posix");
    if (bottom != "Memory" && !has_plugin(bottom)) return;
    INFO("Cache|" << bottom);
    TempDir directory;
    auto options = with_room(GENERATE(8, 40));
    if (bottom == "Posix") options["storage_backends"] = directory.path();
    Stack stack({"Cache", bottom}, options, kFour);
    stack.memory().reorder(true);
    run_storm(stack, false);
}

TEST_CASE("many threads over a slow, busy and failing store keep every byte right",
          "[cache][storm]") {
    auto memory = std::make_shared<Memory>();
    memory->threads = 2;
    memory->max_shards = 24;
    memory->delay(std::chrono::microseconds(20));
    memory->reorder(true);
    Stack stack({"Cache", "Memory"}, with_room(12), kFour, memory);
    std::atomic<bool> stop{false};
    std::thread trouble([&] {
        std::mt19937 random(7);
        while (!stop) {
            memory->fail(Op::kDump, random() % 2 ? UCM_IO : UCM_NO_SPACE, random() % 20, 2);
            memory->fail(Op::kLoad, UCM_IO, random() % 20, 2);
            memory->busy(random() % 3);
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
    });
    Wrong wrong;
    std::vector<std::thread> threads;
    for (unsigned k = 0; k < 6; k++)
        threads.emplace_back([&, k] { storm(stack, k + 1, 60, true, wrong); });
    for (auto &thread : threads) thread.join();
    stop = true;
    trouble.join();
    memory->fail(Op::kDump, UCM_OK, 0, 0);
    CHECK(wrong.total() == 0);
    CHECK(drained(stack).pending == 0);
    REQUIRE(stack.close().status == UCM_OK);
}
