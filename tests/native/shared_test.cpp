// SPDX-License-Identifier: MIT
//
// Several stores over one segment, as processes of one engine have it.
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <thread>

#include "harness.h"

using namespace ucm_test;

namespace {

const Geometry kFour{4, {5000}};

// A name of its own, whose segment is gone with it.
struct Name {
    Name() {
        static int next = 0;
        text = "test-" + std::to_string(getpid()) + "-" + std::to_string(next++);
    }
    ~Name() { unlink(path().c_str()); }
    std::string path() const {
        return "/dev/shm/ucm-cache-" + std::to_string(geteuid()) + "-" + text;
    }
    bool exists() const { return access(path().c_str(), F_OK) == 0; }
    std::string text;
};

Options frames(double count, Options more = {}) {
    char text[64];
    snprintf(text, sizeof text, "%.17g", count * 4 * 8192 / 1073741824.0);
    more["cache_buffer_capacity_gb"] = text;
    return more;
}

std::unique_ptr<Stack> open(const Name &name, const std::shared_ptr<Memory> &memory,
                            double count = 64, Geometry geometry = kFour) {
    return std::make_unique<Stack>(std::vector<std::string>{"Cache", "Memory"}, frames(count),
                                   geometry, memory, name.text);
}

std::string refusal(const Name &name, const std::shared_ptr<Memory> &memory, Geometry geometry) {
    try {
        open(name, memory, 64, geometry);
    } catch (const ucm::Error &error) {
        return error.what();
    }
    return "";
}

bool dump_one(Stack &stack, const Shard &shard) {
    Move move(stack, {shard});
    return move.dump_patiently() == UCM_OK && move.wait() == UCM_OK;
}

void store_below(const std::shared_ptr<Memory> &memory, const std::vector<BlockId> &ids) {
    Stack stack({"Memory"}, {}, kFour, memory);
    if (!all_ok(stack.dump(ids))) throw ucm::Error(UCM_INTERNAL, "store_below");
}

}  // namespace

TEST_CASE("what one store dumps the others have at once", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    memory->hold();
    const auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(10);
    REQUIRE(all_ok(a->dump(ids)));
    REQUIRE(b->tiers(ids) == std::vector<uint8_t>(10, 1));
    REQUIRE(b->loads_back(ids));
    REQUIRE(memory->counters().loaded == 0);
    memory->release();
    REQUIRE(a->drain() == UCM_OK);
    REQUIRE(memory->blocks() == 10);
}

TEST_CASE("a segment is its user's alone, and goes with its last store", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    auto a = open(name, memory), b = open(name, memory);
    struct stat st{};
    REQUIRE(stat(name.path().c_str(), &st) == 0);
    REQUIRE((st.st_mode & 0777) == 0600);
    REQUIRE(a->metrics()["members"] == 2);
    a.reset();
    REQUIRE(name.exists());
    b.reset();
    REQUIRE_FALSE(name.exists());
}

TEST_CASE("a store of another shape is refused by what differs", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory);
    Geometry other = kFour;
    other.shards = 8;
    const std::string text = refusal(name, memory, other);
    CHECK(text.find("shards of a block: 4 there, 8 here") != std::string::npos);
    CHECK(text.find(name.path()) != std::string::npos);
    CHECK(text.find("pid " + std::to_string(getpid())) != std::string::npos);
    Options named = frames(64, {{"model", "other"}});
    REQUIRE_THROWS_WITH(Stack({"Cache", "Memory"}, named, kFour, memory, name.text),
                        Catch::Contains("namespace, model or fingerprint"));
}

TEST_CASE("a segment in use that is of another version, or spoiled, is refused by what differs",
          "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory);
    const int fd = ::open(name.path().c_str(), O_RDWR);
    REQUIRE(fd >= 0);
    const auto refused = [&](auto value, off_t at) {
        decltype(value) saved;
        REQUIRE(pread(fd, &saved, sizeof saved, at) == sizeof saved);
        REQUIRE(pwrite(fd, &value, sizeof value, at) == sizeof value);
        const std::string text = refusal(name, memory, kFour);
        REQUIRE(pwrite(fd, &saved, sizeof saved, at) == sizeof saved);
        return text;
    };
    const std::string pid = "pid " + std::to_string(getpid());
    CHECK_THAT(refused(uint32_t(9), 8),
               Catch::Contains("version: 9 there, ") && Catch::Contains(pid));
    CHECK_THAT(refused(uint64_t(1), 336),
               Catch::Contains("bytes of the file") && Catch::Contains(pid));
    CHECK_THAT(refused('u', 0), Catch::Contains("not those of a segment"));
    ::close(fd);
    REQUIRE_FALSE(refusal(name, memory, {8, {5000}}).empty());
    REQUIRE(refusal(name, memory, kFour).empty());
}

TEST_CASE("what is no segment of this user is not used", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    REQUIRE(symlink("/etc/passwd", name.path().c_str()) == 0);
    CHECK_FALSE(refusal(name, memory, kFour).empty());
    unlink(name.path().c_str());
    const int fd = ::open(name.path().c_str(), O_CREAT | O_RDWR, 0644);
    REQUIRE(fd >= 0);
    fchmod(fd, 0644);
    ::close(fd);
    CHECK(refusal(name, memory, kFour).find("of this user alone") != std::string::npos);
}

TEST_CASE("without a unique_id, or with share_buffer_enable off, memory is private", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    Stack a({"Cache", "Memory"}, frames(64, {{"share_buffer_enable", "false"}}), kFour, memory,
            name.text);
    REQUIRE_FALSE(name.exists());
    REQUIRE(all_ok(a.dump(make_ids(2))));
    REQUIRE(a.metrics()["members"] == 1);
}

TEST_CASE("a block that several stores want is read below once", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(16);
    store_below(memory, ids);
    std::vector<std::unique_ptr<Stack>> stacks;
    for (int k = 0; k < 4; k++) stacks.push_back(open(name, memory));
    memory->hold();
    std::vector<std::unique_ptr<Move>> moves;
    for (auto &stack : stacks) {
        moves.push_back(std::make_unique<Move>(*stack, shards_of(ids, 4)));
        REQUIRE(moves.back()->load_patiently() == UCM_OK);
    }
    REQUIRE(memory->wait_for_waiting(64));
    memory->release();
    for (auto &move : moves) {
        REQUIRE(move->wait() == UCM_OK);
        for (size_t i = 0; i < move->n(); i++) REQUIRE(move->same(i));
    }
    REQUIRE(memory->counters().loaded == 64);
}

TEST_CASE("shards of one block may come through several stores", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(8);
    for (uint32_t shard = 0; shard < 4; shard++) {
        std::vector<Shard> layer;
        for (auto &id : ids) layer.push_back({id, shard});
        Move move(shard % 2 ? *a : *b, layer);
        REQUIRE(move.dump_patiently() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
    }
    REQUIRE(a->lookup(ids) == std::vector<bool>(8, true));
    ucm_report report{};
    REQUIRE(a->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    REQUIRE(b->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    REQUIRE(memory->blocks() == 8);
    REQUIRE(memory->counters().dumped == 32);
    REQUIRE(b->loads_back(ids));
}

TEST_CASE("the same block dumped through several stores is written below once", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    memory->hold();
    const auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(8);
    REQUIRE(all_ok(a->dump(ids)));
    REQUIRE(all_ok(b->dump(ids)));
    // Its drain waits for the other's write.
    ucm_report report{};
    REQUIRE(b->drain(&report, 50) == UCM_PENDING);
    memory->release();
    REQUIRE(b->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    REQUIRE(memory->counters().dumped == 32);
}

TEST_CASE("more unfinished blocks than fit, of several stores, all get through", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory, 4), b = open(name, memory, 4);
    const auto of_a = make_ids(20), of_b = make_ids(20, 100);
    const auto work = [](Stack &stack, const std::vector<BlockId> &ids) {
        for (uint32_t shard = 0; shard < 4; shard++) {
            std::vector<Shard> layer;
            for (auto &id : ids) layer.push_back({id, shard});
            Move move(stack, layer);
            if (move.dump_patiently() != UCM_OK || move.wait() != UCM_OK) return false;
        }
        return true;
    };
    bool right_a = false, right_b = false;
    std::thread first([&] { right_a = work(*a, of_a); }), second([&] { right_b = work(*b, of_b); });
    first.join();
    second.join();
    REQUIRE(right_a);
    REQUIRE(right_b);
    REQUIRE(a->drain() == UCM_OK);
    REQUIRE(b->drain() == UCM_OK);
    REQUIRE(memory->blocks() == 40);
    REQUIRE(b->loads_back(of_a));
}

TEST_CASE("more unfinished blocks than fit, shard by shard of several stores, all get through",
          "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory, 4), b = open(name, memory, 4);
    const auto ids = make_ids(6);
    for (uint32_t shard = 0; shard < 4; shard++) {
        std::vector<Shard> layer;
        for (auto &id : ids) layer.push_back({id, shard});
        Move move(shard % 2 ? *b : *a, layer);
        REQUIRE(move.dump_patiently() == UCM_OK);
        REQUIRE(move.wait() == UCM_OK);
    }
    REQUIRE(a->drain() == UCM_OK);
    REQUIRE(b->drain() == UCM_OK);
    REQUIRE(memory->blocks() == 6);
    REQUIRE(b->loads_back(ids));
}

TEST_CASE("a frame that a store took for another's unfinished block comes free when it has left",
          "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory, 2);  // dumps may hold one of them
    auto b = open(name, memory, 2);
    const auto ids = make_ids(2);
    REQUIRE(dump_one(*a, {ids[0], 0}));
    REQUIRE(dump_one(*a, {ids[1], 0}));
    REQUIRE(dump_one(*b, {ids[0], 0}));  // it is below
    REQUIRE(b->close().report.lost == 0);
    REQUIRE(dump_one(*a, {ids[1], 1}));
    REQUIRE(a->drain() == UCM_OK);
}

TEST_CASE("what another store wrote below for one counts when its frame is taken", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory, 4), b = open(name, memory, 4);
    const auto dump = [](Stack &stack, const std::vector<BlockId> &ids, uint32_t shard) {
        for (auto &id : ids) {
            Move move(stack, {{id, shard}});
            REQUIRE(move.dump_patiently() == UCM_OK);
            REQUIRE(move.wait() == UCM_OK);
        }
    };
    for (uint64_t round = 0; round < 3; round++) {
        const auto ids = make_ids(1, 100 * round), more = make_ids(4, 100 * round + 10);
        dump(*a, ids, 0);
        REQUIRE(a->drain() == UCM_OK);
        dump(*a, more, 0);  // which take its frame
        REQUIRE(a->drain() == UCM_OK);
        const uint64_t before = memory->counters().dumped;
        dump(*b, ids, 1);
        b->drain(nullptr, 1);  // a is to write it
        while (memory->counters().dumped == before) std::this_thread::yield();
        dump(*b, make_ids(4, 100 * round + 20), 0);  // before b has looked at what a did
        REQUIRE(b->drain(nullptr, 10000) == UCM_OK);
    }
}

TEST_CASE("a drain waits for what another store brought before, of a block of one's own",
          "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory), b = open(name, memory);
    const BlockId id = make_id(1);
    REQUIRE(dump_one(*a, {id, 0}));
    REQUIRE(a->drain() == UCM_OK);
    REQUIRE(dump_one(*b, {id, 1}));
    REQUIRE(dump_one(*a, {id, 1}));
    REQUIRE(a->drain() == UCM_OK);
    REQUIRE(memory->counters().dumped == 2);
    ucm_report report{};
    REQUIRE(a->drain(&report) == UCM_OK);
    REQUIRE(report.pending == 0);
}

TEST_CASE("what one store removes is gone for all", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(6);
    REQUIRE(all_ok(a->dump(ids)));
    REQUIRE(b->remove(ids) == UCM_OK);
    REQUIRE(a->drain() == UCM_OK);
    REQUIRE(a->lookup(ids) == std::vector<bool>(6, false));
    REQUIRE(all_are(a->load(ids), UCM_NOT_FOUND));
}

TEST_CASE("what was removed while it was written is removed below, though that fails at first",
          "[shared]") {
    const ucm_status status = GENERATE(as<ucm_status>(), UCM_IO, UCM_INVALID);
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(2);
    memory->hold();
    REQUIRE(all_ok(a->dump(ids)));
    REQUIRE(memory->wait_for_waiting(8));
    REQUIRE(b->remove(ids) == UCM_OK);
    memory->fail(Op::kRemove, status, 0, status == UCM_IO ? 2 : 1);
    memory->release();
    if (status == UCM_IO) {
        REQUIRE(
            eventually([&] { return memory->counters().removes >= 4 && memory->blocks() == 0; }));
    } else {
        REQUIRE(eventually([&] { return a->host().logged(ids[0].hex() + " was removed while"); }));
    }
    REQUIRE(a->close().report.pending == 0);
    REQUIRE(b->metrics()["frames_free"] == b->metrics()["frames_ready"]);
}

TEST_CASE("a store that closes leaves unfinished blocks to the others", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(3);
    std::vector<Shard> first, rest;
    for (auto &shard : shards_of(ids, 4)) (shard.index == 0 ? first : rest).push_back(shard);
    Move half(*a, first);
    REQUIRE(half.dump_patiently() == UCM_OK);
    REQUIRE(half.wait() == UCM_OK);
    REQUIRE(a->close().report.lost == 0);
    Move other(*b, rest);
    REQUIRE(other.dump_patiently() == UCM_OK);
    REQUIRE(other.wait() == UCM_OK);
    REQUIRE(b->drain() == UCM_OK);
    REQUIRE(memory->blocks() == 3);
    REQUIRE(b->loads_back(ids));
}

TEST_CASE("what a store that closes leaves is in the reports of who has it then", "[shared]") {
    const bool whole = GENERATE(true, false);
    const Name name;
    const auto memory = std::make_shared<Memory>();
    auto a = open(name, memory);
    const auto b = open(name, memory);
    memory->fail(Op::kDump, UCM_IO, 0, 100000);
    const auto ids = make_ids(2);
    auto shards = shards_of(ids, 4);
    if (!whole) shards = {{ids[0], 0}, {ids[0], 1}, {ids[0], 2}};
    Move move(*a, shards);
    REQUIRE(move.dump_patiently() == UCM_OK);
    REQUIRE(move.wait() == UCM_OK);
    const ucm_report left = a->close().report;
    REQUIRE(left.lost == 0);
    REQUIRE(left.pending == 0);
    ucm_report report{};
    REQUIRE(b->drain(&report, 0) == UCM_PENDING);
    REQUIRE(report.lost == 0);
    REQUIRE(report.pending >= shards.size());  // below counts those that it is given just now, too
    const ucm_report closed = b->close().report;
    REQUIRE(closed.lost == shards.size());
    REQUIRE(closed.pending == 0);
    REQUIRE(b->host().logged(ids[0].hex() + " is given up with " + (whole ? "4" : "3")));
}

TEST_CASE("shards that several stores brought are lost in one report each", "[shared]") {
    const bool owner_first = GENERATE(true, false);
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory), b = open(name, memory);
    const auto ids = make_ids(1);
    REQUIRE(dump_one(*a, {ids[0], 0}));
    REQUIRE(dump_one(*b, {ids[0], 1}));
    REQUIRE(dump_one(*b, {ids[0], 2}));
    Stack &first = owner_first ? *a : *b, &second = owner_first ? *b : *a;
    const ucm_report left = first.close().report, last = second.close().report;
    REQUIRE(left.lost == 0);
    REQUIRE(left.pending == 0);
    REQUIRE(last.lost == 3);
    REQUIRE(last.pending == 0);
}

TEST_CASE("each store that lives reports what it brought, whoever gives the block up", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto a = open(name, memory), b = open(name, memory);
    memory->fail(Op::kDump, UCM_INVALID, 0, 100000);
    const auto ids = make_ids(1);
    for (uint32_t shard = 0; shard < 3; shard++)
        REQUIRE(dump_one(shard ? *b : *a, {ids[0], shard}));
    ucm_report report{};
    REQUIRE(a->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 1);
    REQUIRE(b->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 2);
    REQUIRE(a->metrics()["lost_shards_total"] == 1);
    REQUIRE(b->metrics()["lost_shards_total"] == 2);
    REQUIRE(a->host().logged("is given up with 3 shards"));
}

TEST_CASE("a lookup-only store sees a segment that comes, goes and comes again", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    memory->hold();
    Geometry looking = kFour;
    looking.lookup_only = true;
    Stack scheduler({"Cache", "Memory"}, frames(64), looking, memory, name.text);
    const auto ids = make_ids(4);
    const auto seen = [&](bool expected) {
        const int64_t until_ns = ucm::monotonic_ns() + 10ll * 1000000000;
        while (scheduler.lookup(ids)[0] != expected && ucm::monotonic_ns() < until_ns) usleep(1000);
        return scheduler.lookup(ids) == std::vector<bool>(4, expected);
    };
    REQUIRE(seen(false));
    for (int round = 0; round < 2; round++) {
        auto worker = open(name, memory);
        REQUIRE(all_ok(worker->dump(ids)));
        REQUIRE(seen(true));
        memory->release();
        REQUIRE(worker->drain() == UCM_OK);
        worker.reset();
        for (auto &id : ids) memory->erase(id);
        memory->hold();
        REQUIRE(seen(false));
    }
    memory->release();
}

std::unique_ptr<Stack> looking(const Name &name, const std::shared_ptr<Memory> &memory,
                               Options more = {}, Geometry geometry = kFour) {
    geometry.lookup_only = true;
    return std::make_unique<Stack>(std::vector<std::string>{"Cache", "Memory"}, more, geometry,
                                   memory, name.text);
}

TEST_CASE("what a lookup-only store removes is gone for all, whatever its state", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto worker = open(name, memory);
    const auto scheduler = looking(name, memory);
    REQUIRE(scheduler->can(UCM_CAP_REMOVE));
    const auto ids = make_ids(3);
    REQUIRE(all_ok(worker->dump({ids[0]})));
    REQUIRE(worker->drain() == UCM_OK);
    memory->hold();
    REQUIRE(all_ok(worker->dump({ids[1]})));  // on its way below
    Move part(*worker, {{ids[2], 1}});        // unfinished
    REQUIRE(part.dump_patiently() == UCM_OK);
    REQUIRE(part.wait() == UCM_OK);
    REQUIRE(scheduler->remove(ids) == UCM_OK);
    REQUIRE(scheduler->lookup(ids) == std::vector<bool>(3, false));
    REQUIRE(worker->lookup(ids) == std::vector<bool>(3, false));
    memory->release();
    REQUIRE(all_are(worker->load(ids), UCM_NOT_FOUND));
    ucm_report report{};
    REQUIRE(worker->drain(&report) == UCM_OK);
    REQUIRE(report.lost == 0);
    REQUIRE(memory->blocks() == 0);
    REQUIRE(all_ok(worker->dump(ids)));
    REQUIRE(worker->drain() == UCM_OK);
    REQUIRE(worker->loads_back(ids));
    REQUIRE(worker->metrics()["frames_free"] == worker->metrics()["frames_ready"] - 3);
    REQUIRE(worker->metrics()["members"] == 1);
}

TEST_CASE("a lookup-only store removes what is in memory alone", "[shared]") {
    if (!has_plugin("Empty")) return;
    const Name name;
    Stack worker({"Cache", "Empty"}, frames(64), kFour, nullptr, name.text);
    Geometry geometry = kFour;
    geometry.lookup_only = true;
    Stack scheduler({"Cache", "Empty"}, {}, geometry, nullptr, name.text);
    const auto ids = make_ids(4);
    REQUIRE(all_ok(worker.dump(ids)));
    REQUIRE(scheduler.remove({ids[0], ids[3]}) == UCM_OK);
    REQUIRE(worker.lookup(ids) == std::vector<bool>({false, true, true, false}));
}

TEST_CASE("a lookup-only store looks only into the segment that is meant", "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    memory->hold();
    const Options whose = {{"namespace", "team"}, {"model", "m"}, {"fingerprint", "f"}};
    Stack worker({"Cache", "Memory"}, frames(64, whose), kFour, memory, name.text);
    const auto ids = make_ids(2);
    REQUIRE(all_ok(worker.dump(ids)));
    const auto finds = [&](Options named, uint32_t shards = 0) {
        Geometry geometry = kFour;
        geometry.lookup_layout = shards != 0;
        if (shards) geometry.shards = shards;
        const auto scheduler = looking(name, memory, named, geometry);
        const auto found = scheduler->lookup(ids);
        CHECK(scheduler->lookup(ids) == found);
        if (!found[0]) {
            size_t told = 0;
            for (auto &line : scheduler->host().lines())
                told += line.message.find("is not looked into") != std::string::npos;
            CHECK(told == 1);
            CHECK(scheduler->remove(ids) == UCM_OK);  // of the other's, nothing
        }
        return found == std::vector<bool>(2, true);
    };
    CHECK(finds(whose, 4));
    CHECK(finds(whose));
    CHECK(finds({{"namespace", "team"}, {"model", "m"}}));  // whatever its fingerprint
    CHECK_FALSE(finds({{"namespace", "team"}, {"model", "m"}}, 4));
    CHECK_FALSE(finds({{"namespace", "team"}, {"model", "other"}}));
    CHECK_FALSE(finds({{"model", "m"}}));
    CHECK_FALSE(finds({{"namespace", "team"}, {"model", "m"}, {"fingerprint", "other"}}));
    CHECK_FALSE(finds(whose, 8));
    CHECK(worker.lookup(ids) == std::vector<bool>(2, true));
    memory->release();
}

TEST_CASE("a lookup-only store looks where the path leads, and nobody goes on with another segment",
          "[shared]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    const auto scheduler = looking(name, memory);
    const auto ids = make_ids(2);
    const auto sees = [&](bool first, bool second) {
        return eventually(
            [&] { return scheduler->lookup(ids) == std::vector<bool>{first, second}; });
    };
    auto old = open(name, memory);
    memory->hold();
    REQUIRE(all_ok(old->dump({ids[0]})));
    REQUIRE(sees(true, false));
    const int fd = ::open(name.path().c_str(), O_RDONLY);
    REQUIRE(fd >= 0);
    REQUIRE(unlink(name.path().c_str()) == 0);
    REQUIRE(sees(false, false));
    auto fresh = open(name, memory);
    REQUIRE(all_ok(fresh->dump({ids[1]})));
    REQUIRE(sees(false, true));
    memory->release();
    old.reset();
    const auto phase_of = [&] {
        uint32_t phase = 0;
        return pread(fd, &phase, sizeof phase, 16) == sizeof phase ? phase : UINT32_MAX;
    };
    CHECK(phase_of() == 2);
    ::close(fd);
    CHECK(name.exists());
    fresh.reset();
    CHECK_FALSE(name.exists());
}

TEST_CASE("a lookup-only store does not wait for a FIFO where its segment would be", "[shared]") {
    const Name name;
    REQUIRE(mkfifo(name.path().c_str(), 0600) == 0);
    const auto scheduler = looking(name, std::make_shared<Memory>());
    std::atomic<bool> found{false}, looked{false};
    std::thread thread([&] {
        found = scheduler->lookup(make_ids(1))[0];
        looked = true;
    });
    CHECK(eventually([&] { return looked.load(); }));
    const int fd = ::open(name.path().c_str(), O_RDWR);  // lets go who waits
    thread.join();
    ::close(fd);
    CHECK_FALSE(found);
}

TEST_CASE("many threads of several stores keep every byte right", "[shared][storm]") {
    const Name name;
    const auto memory = std::make_shared<Memory>();
    memory->reorder(true);
    const double count = GENERATE(3.0, 40.0);
    std::vector<std::unique_ptr<Stack>> stacks;
    for (int k = 0; k < 3; k++) stacks.push_back(open(name, memory, count));
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (size_t k = 0; k < 6; k++)
        threads.emplace_back([&, k] {
            Stack &stack = *stacks[k % stacks.size()];
            for (unsigned round = 0; round < (kSanitizer ? 20u : 60u); round++) {
                const auto ids = make_ids(4, (k * 5 + round * 7) % 30);
                if (round % 3 == 0) {
                    for (auto &result : stack.dump(ids))
                        wrong += result.status != UCM_OK && result.status != UCM_CANCELLED;
                } else if (round % 11 == 0) {
                    wrong += stack.remove({ids[0]}) != UCM_OK;
                } else {
                    Move move(stack, shards_of(ids, 4));
                    wrong += move.load_patiently() != UCM_OK;
                    move.wait();
                    for (size_t i = 0; i < move.n(); i++) {
                        const ucm_status status = move.result(i).status;
                        wrong += status == UCM_OK ? !move.same(i) : status != UCM_NOT_FOUND;
                    }
                }
            }
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(wrong == 0);
    for (auto &stack : stacks) REQUIRE(stack->drain() == UCM_OK);
    for (auto &stack : stacks) REQUIRE(stack->close().status == UCM_OK);
    REQUIRE_FALSE(name.exists());
}
