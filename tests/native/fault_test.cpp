// SPDX-License-Identifier: MIT
#include <atomic>
#include <catch2/catch.hpp>
#include <cstdio>
#include <thread>

#include "harness.h"

using namespace ucm_test;

namespace {

const Geometry kFour{4, {3000, 200}};

// Rules that can be changed while a store is open.
class Control {
  public:
    void put(const std::string &rules) {
        const std::string aside = path() + ".new";
        FILE *file = fopen(aside.c_str(), "w");
        REQUIRE(file);
        fputs(rules.c_str(), file);
        fclose(file);
        REQUIRE(rename(aside.c_str(), path().c_str()) == 0);
    }
    std::string path() const { return directory_.path() + "/rules"; }

  private:
    TempDir directory_;
};

Stack faulty(const std::string &rules) {
    return Stack({"Fault", "Memory"}, {{"fault_rules", rules}}, kFour);
}

}  // namespace

TEST_CASE("Fault keeps the layout and the capabilities of what is below", "[fault]") {
    Geometry geometry{3, {8192}, UCM_DTYPE_BF16};
    geometry.pages = true;
    Stack stack({"Fault", "Memory"}, {}, geometry);
    REQUIRE(stack.store(0)->capabilities == (stack.store(1)->capabilities & ~UCM_CAP_EVENTS));
    const ucm_layout &above = stack.layout(0), &below = stack.layout(1);
    REQUIRE(below.flags == above.flags);
    REQUIRE(below.n_planes == above.n_planes);
    REQUIRE(below.capacity == above.capacity);
    REQUIRE(all_ok(stack.dump(make_ids(2))));
    REQUIRE(stack.loads_back(make_ids(2)));
}

TEST_CASE("shards that Fault lets through go below in their places", "[fault]") {
    Stack stack = faulty("dump:io every=3; load:corrupt every=5");
    const auto ids = make_ids(5);
    const auto dumped = stack.dump(ids);
    for (size_t i = 0; i < dumped.size(); i++)
        REQUIRE(dumped[i].status == (i % 3 == 2 ? UCM_IO : UCM_OK));
    for (int turn = 0; turn < 20; turn++) stack.dump(ids);
    Move move(stack, shards_of(ids, 4));
    REQUIRE(move.load() == UCM_OK);
    move.wait();
    for (size_t i = 0; i < move.n(); i++) {
        REQUIRE(move.result(i).status == (i % 5 == 4 ? UCM_CORRUPT : UCM_OK));
        if (i % 5 != 4) REQUIRE(move.same(i));
    }
    REQUIRE_FALSE(move.overrun());
}

TEST_CASE("a bit that Fault flips in a dump is flipped in a copy", "[fault]") {
    Stack stack = faulty("dump:flip at=2");
    const auto ids = make_ids(1);
    Move move(stack, shards_of(ids, 4));
    REQUIRE(move.dump() == UCM_OK);
    move.wait();
    REQUIRE(move.same(1));
    Move back(stack, shards_of(ids, 4));
    REQUIRE(back.load() == UCM_OK);
    back.wait();
    for (size_t i = 0; i < 4; i++) REQUIRE(back.same(i) == (i != 1));
}

TEST_CASE("close ends what hangs, and what is delayed", "[fault]") {
    Stack stack = faulty("dump:hang every=2; dump:delay ms=3600000 every=3");
    const auto ids = make_ids(3);
    Move move(stack, shards_of(ids, 4));
    REQUIRE(move.dump() == UCM_OK);
    REQUIRE(move.wait(20) == UCM_PENDING);
    REQUIRE(stack.close().status == UCM_OK);
    REQUIRE(move.finished());
    for (size_t i = 0; i < move.n(); i++)
        REQUIRE(move.result(i).status == (i % 2 ? UCM_CANCELLED : UCM_OK));
}

TEST_CASE("a task of which a shard hangs can be cancelled, and hangs on", "[fault]") {
    Control control;
    control.put("load:hang at=1");
    Stack stack({"Fault", "Memory"}, {{"fault_control", control.path()}}, kFour);
    const auto ids = make_ids(1);
    REQUIRE(all_ok(stack.dump(ids)));
    Move move(stack, shards_of(ids, 4));
    REQUIRE(move.load() == UCM_OK);
    while (stack.metrics()["held_shards"] == 0) std::this_thread::yield();
    if (stack.can(UCM_CAP_CANCEL)) REQUIRE(ucm_cancel(stack.top(), move.task, nullptr) == UCM_OK);
    REQUIRE_FALSE(move.finished());
    control.put("");
    REQUIRE(move.wait() != UCM_PENDING);
    REQUIRE(move.same(0));
}

TEST_CASE("rules change under many threads, and every shard still ends once", "[fault]") {
    Control control;
    control.put("");
    Stack stack({"Fault", "Memory"}, {{"fault_control", control.path()}, {"fault_seed", "7"}},
                kFour);
    const auto ids = make_ids(16);
    REQUIRE(all_ok(stack.dump(ids)));
    std::atomic<int> left{4};
    std::vector<std::thread> threads;
    for (int k = 0; k < 4; k++)
        threads.emplace_back([&] {
            for (int turn = 0; turn < 40; turn++) {
                Move move(stack, shards_of(ids, 4));
                if (move.load_patiently() == UCM_OK) move.wait();
            }
            left--;
        });
    for (int turn = 0; left; turn++) {
        static const char *const rules[] = {
            "load:hang p=0.05", "load:delay ms=1 p=0.2; load:hang p=0.02", "load:busy p=0.5",
            "load:io p=0.3; load:flip p=0.1; load:short p=0.1", ""};
        control.put(rules[turn % 5]);
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    for (auto &thread : threads) thread.join();
    control.put("");
    REQUIRE(stack.loads_back(ids));
    REQUIRE(stack.metrics()["held_shards"] == 0);
}

TEST_CASE("Fault passes on that a block was declined", "[fault]") {
    Stack stack = faulty("dump:delay ms=1 every=2");
    const auto ids = make_ids(2);
    stack.memory().decline({ids[0]});
    const auto results = stack.dump(ids);
    for (size_t i = 0; i < 8; i++) {
        REQUIRE(results[i].status == UCM_OK);
        REQUIRE(((results[i].flags & UCM_RESULT_DECLINED) != 0) == (i < 4));
    }
}
