// SPDX-License-Identifier: MIT
//
// Many threads on one store, and many tasks. Threads count what is wrong; the test looks
// afterwards.
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "pipelines.h"

using namespace ucm_test;

namespace {

struct Faults {
    std::atomic<int> bytes{0}, statuses{0}, overruns{0}, calls{0};
    int total() const { return bytes + statuses + overruns + calls; }
};

void mixed_operations(Stack &stack, unsigned seed, int operations, Faults &faults) {
    std::mt19937 random(seed);
    const uint32_t shards = stack.geometry().shards;
    for (int k = 0; k < operations; k++) {
        std::vector<BlockId> ids;
        for (size_t i = 0; i < 1 + random() % 4; i++) ids.push_back(make_id(random() % 40));
        const unsigned what = random() % 10;
        if (what < 4) {
            Move move(stack, shards_of(ids, shards));
            if (move.dump_patiently() != UCM_OK) faults.calls++;
            move.wait(-1);
            for (auto &result : move.results())
                if (result.status != UCM_OK && result.status != UCM_CANCELLED) faults.statuses++;
        } else if (what < 8 && stack.can(UCM_CAP_LOADS)) {
            Move move(stack, shards_of(ids, shards));
            if (move.load_patiently() != UCM_OK) faults.calls++;
            move.wait(-1);
            if (move.overrun()) faults.overruns++;
            for (size_t i = 0; i < move.n(); i++) {
                const ucm_status status = move.result(i).status;
                if (status != UCM_OK && status != UCM_NOT_FOUND) faults.statuses++;
                if (status == UCM_OK && (!move.same(i) || !move.result(i).length)) faults.bytes++;
            }
        } else if (what == 8 && stack.can(UCM_CAP_REMOVE)) {
            if (stack.remove({ids[0]}) != UCM_OK) faults.calls++;
        } else {
            stack.lookup(ids);
            stack.metrics();
            if (random() % 8 == 0 && stack.drain() != UCM_OK) faults.calls++;
        }
    }
}

size_t entries(const char *folder) {
    const std::filesystem::directory_iterator all(folder);
    return size_t(std::distance(begin(all), end(all)));
}

// A store's thread may still close a file whose shards are done.
bool settles_at(const char *folder, size_t most) {
    for (int i = 0; i < 1000 && entries(folder) > most; i++)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return entries(folder) <= most;
}

uint64_t resident_bytes() {
    uint64_t size = 0, resident = 0;
    std::ifstream("/proc/self/statm") >> size >> resident;
    return resident * uint64_t(sysconf(_SC_PAGESIZE));
}

}  // namespace

TEST_CASE("sixteen threads share one store", "[threads]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{3, {3000, 100}, UCM_DTYPE_BF16});
    Faults faults;
    std::vector<std::thread> threads;
    for (unsigned k = 0; k < 16; k++)
        threads.emplace_back(
            [&, k] { mixed_operations(*pipeline, k, kSanitizer ? 25 : 60, faults); });
    for (auto &thread : threads) thread.join();
    CAPTURE(faults.bytes, faults.statuses, faults.overruns, faults.calls);
    REQUIRE(faults.total() == 0);
    const auto ids = make_ids(40);
    REQUIRE(all_ok(pipeline->dump(ids)));
    if (pipeline->can(UCM_CAP_KEEPS)) REQUIRE(pipeline->hits(ids, UCM_LOOKUP_ALL) == 40);
    if (pipeline->can(UCM_CAP_LOADS)) REQUIRE(pipeline->loads_back(ids));
    REQUIRE(pipeline->close().status == UCM_OK);
}

TEST_CASE("threads that dump the same blocks publish each once and whole", "[threads]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{4, {3000}});
    const auto ids = make_ids(16);
    std::atomic<int> bad{0};
    std::vector<std::thread> threads;
    for (unsigned k = 0; k < 8; k++)
        threads.emplace_back([&, k] {
            auto shards = shards_of(ids, 4);
            std::shuffle(shards.begin(), shards.end(), std::mt19937(k));
            Move move(*pipeline, shards);
            if (move.dump_patiently() != UCM_OK || move.wait(-1) != UCM_OK) bad++;
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(bad == 0);
    if (pipeline->can(UCM_CAP_KEEPS)) REQUIRE(pipeline->hits(ids, UCM_LOOKUP_ALL) == 16);
    if (pipeline->can(UCM_CAP_LOADS)) REQUIRE(pipeline->loads_back(ids));
    if (!pipeline->can(UCM_CAP_PERSISTENT)) return;
    REQUIRE(pipeline->drain() == UCM_OK);
    pipeline.open();
    REQUIRE(pipeline->loads_back(ids));
}

TEST_CASE("ten thousand tasks leave nothing behind", "[threads]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    const bool loads = pipeline->can(UCM_CAP_LOADS);
    const int tasks = kSanitizer ? 1000 : 10000;
    std::vector<std::unique_ptr<Move>> window;
    auto run = [&](int count) {
        for (int k = 0; k < count; k++) {
            auto move =
                std::make_unique<Move>(*pipeline, shards_of({make_id(uint64_t(k % 64))}, 2));
            const bool dump = !loads || k % 3 == 0;
            REQUIRE((dump ? move->dump_patiently() : move->load_patiently()) == UCM_OK);
            window.push_back(std::move(move));
            if (window.size() == 16) window.clear();  // waits
        }
        window.clear();
        REQUIRE(pipeline->drain() == UCM_OK);
    };
    run(tasks / 5);
    const size_t files = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    const uint64_t resident = resident_bytes();
    run(tasks);
    REQUIRE(settles_at("/proc/self/fd", files));
    REQUIRE(settles_at("/proc/self/task", threads));
    if (!kSanitizer) REQUIRE(resident_bytes() < resident + (4 << 20));
}

TEST_CASE("opening and closing leaves no thread and no file open", "[threads]") {
    FOR_EACH_PIPELINE(layers);
    Pipeline pipeline(layers, Geometry{2, {1000}});
    pipeline->close();
    const size_t files = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    for (int k = 0; k < 20; k++) {
        pipeline.open();
        REQUIRE(all_ok(pipeline->dump(make_ids(2))));
        REQUIRE(pipeline->close().status == UCM_OK);
    }
    REQUIRE(entries("/proc/self/fd") == files);
    REQUIRE(entries("/proc/self/task") == threads);
}
