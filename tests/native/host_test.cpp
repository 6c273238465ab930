// SPDX-License-Identifier: MIT
//
// What the Python package does in C: ends of tasks told through one descriptor.

#include <poll.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <set>
#include <thread>
#include <vector>

extern "C" {
#include "_host.h"
}

namespace {

// Ends its transfers on threads of their own, when it is told to, or at once.
struct LateStore {
    LateStore() {
        ops.struct_size = sizeof ops;
        ops.dump = [](ucm_store *store, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
            auto *self = reinterpret_cast<LateStore *>(store);
            if (self->busy-- > 0) return ucm_fail(err, UCM_BUSY, 0, "the queue is full");
            if (task) *task = 0;
            const auto end = [copy = *t, status = self->status] {
                ucm_result result{};
                result.struct_size = sizeof result;
                result.status = status;
                for (size_t i = 0; i < copy.n; i++) copy.done(copy.ctx, i, &result);
                copy.finished(copy.ctx);
            };
            if (self->at_once) {
                end();
                return ucm_status(UCM_OK);
            }
            self->threads.emplace_back([self, end] {
                while (!self->go) std::this_thread::yield();
                end();
            });
            return ucm_status(UCM_OK);
        };
        base.struct_size = sizeof base;
        base.ops = &ops;
        base.capacity = base.raw_capacity = 64;
        base.shards_per_block = 1;
    }
    void join() {
        go = true;
        for (std::thread &thread : threads) thread.join();
        threads.clear();
    }

    ucm_store base{};  // first: what the wrappers are given
    ucm_store_ops ops{};
    std::atomic<bool> go{false};
    int busy = 0;
    bool at_once = false;
    ucm_status status = UCM_OK;
    std::vector<std::thread> threads;
};

ucmh_submitted submitted(LateStore &store, int64_t busy_ms = 1000) {
    static const uint8_t id[UCM_BLOCK_ID_BYTES] = {};
    static const uint32_t shard = 0;
    static uint64_t memory[8];
    const uint64_t address = reinterpret_cast<uintptr_t>(memory);
    ucmh_submitted out{};
    ucmh_submit(&store.base, 1, 1, id, &shard, &address, nullptr, nullptr, nullptr, 0, 0, 0, 0, 0,
                busy_ms, &out);
    return out;
}

ucmh_task *submit(LateStore &store, int64_t busy_ms = 1000) {
    return submitted(store, busy_ms).task;
}

bool readable(const ucmh_events *events) {
    pollfd waiting{ucmh_events_fd(events), POLLIN, 0};
    return poll(&waiting, 1, 0) == 1;
}

void take(ucmh_events *events, std::multiset<uint64_t> &tokens) {
    for (ucmh_event *event = ucmh_events_take(events); event;) {
        tokens.insert(event->token);
        ucmh_event *next = event->next;
        ucmh_event_free(event);
        event = next;
    }
}

ucmh_events *shared_events() {
    static ucmh_events *events = ucmh_events_new();
    return events;
}

}  // namespace

TEST_CASE("An end is told once, to whoever watched before it", "[host]") {
    LateStore store;
    ucmh_events *events = shared_events();
    std::multiset<uint64_t> tokens;
    ucmh_task *task = submit(store), *unwatched = submit(store);
    CHECK(ucmh_task_watch(task, events, 7) == 0);
    CHECK(ucmh_task_watch(task, events, 8) == 0);
    CHECK_FALSE(readable(events));
    store.join();
    CHECK(readable(events));
    take(events, tokens);
    CHECK(tokens == std::multiset<uint64_t>{7});
    CHECK_FALSE(readable(events));
    CHECK(ucmh_task_watch(task, events, 9) == 1);
    CHECK(ucmh_task_watch(unwatched, events, 9) == 1);
    CHECK(ucmh_task_wait(task, 0) == UCM_OK);
    ucmh_task_free(task);
    ucmh_task_free(unwatched);
}

TEST_CASE("A task may be freed while its transfer runs, watched or not", "[host]") {
    LateStore store;
    std::multiset<uint64_t> tokens;
    ucmh_task *task = submit(store), *unwatched = submit(store);
    CHECK(ucmh_task_watch(task, shared_events(), 7) == 0);
    ucmh_task_free(task);
    ucmh_task_free(unwatched);
    store.join();
    take(shared_events(), tokens);
    CHECK(tokens == std::multiset<uint64_t>{7});
}

TEST_CASE("A transfer that was refused leaves nothing", "[host]") {
    LateStore store;
    store.busy = 1 << 30;
    CHECK(submit(store, 5) == nullptr);
    store.busy = 3;
    ucmh_task *task = submit(store);
    store.join();
    CHECK(ucmh_task_wait(task, -1) == UCM_OK);
    ucmh_task_free(task);
}

TEST_CASE("A submit tells of what has ended already", "[host]") {
    LateStore store;
    const ucmh_submitted late = submitted(store);
    CHECK(late.ended == UCM_PENDING);
    store.at_once = true;
    const ucmh_submitted good = submitted(store);
    store.status = UCM_IO;
    const ucmh_submitted bad = submitted(store);
    CHECK(good.ended == UCM_OK);
    CHECK(bad.ended == UCM_IO);
    store.join();
    for (const ucmh_submitted &each : {late, good, bad}) {
        CHECK(ucmh_task_wait(each.task, -1) == (each.task == bad.task ? UCM_IO : UCM_OK));
        ucmh_task_free(each.task);
    }
}

TEST_CASE("No end is lost between threads that watch, tell and take", "[host]") {
    ucmh_events *events = shared_events();
    constexpr size_t kTasks = 400;
    std::atomic<size_t> told{0}, ended{0};
    std::atomic<bool> stop{false};
    auto reader = [&] {
        while (!stop) {
            pollfd waiting{ucmh_events_fd(events), POLLIN, 0};
            if (poll(&waiting, 1, 1) < 1) continue;
            std::multiset<uint64_t> tokens;
            take(events, tokens);
            told += tokens.size();
        }
    };
    std::thread readers[] = {std::thread(reader), std::thread(reader)};
    for (size_t round = 0; round < kTasks / 40; round++) {
        LateStore store;
        std::vector<ucmh_task *> tasks;
        for (size_t i = 0; i < 40; i++) tasks.push_back(submit(store));
        store.go = true;
        for (ucmh_task *task : tasks) {
            if (ucmh_task_watch(task, events, 1) == 1) ended++;
            ucmh_task_free(task);
        }
        store.join();
    }
    while (told + ended < kTasks) std::this_thread::yield();
    stop = true;
    for (std::thread &thread : readers) thread.join();
    CHECK(told + ended == kTasks);
}
