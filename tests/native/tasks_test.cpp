// SPDX-License-Identifier: MIT
//
// What every layer is built from: tasks, ledger, admission, pools and queues; and the waiter of
// ucm/task_v1.h.

#include <catch2/catch.hpp>
#include <set>
#include <thread>

#include "buffers.h"
#include "clock.h"
#include "harness.h"
#include "metrics.h"
#include "task.h"
#include "threads.h"

using namespace ucm_test;

namespace {

// A transfer of n shards, one segment each, that counts its callbacks.
struct Counted {
    explicit Counted(size_t n, uint64_t bytes = 100) : done(n), memory(n * bytes) {
        for (size_t i = 0; i < n; i++) {
            const BlockId id = make_id(i);
            ids.insert(ids.end(), id.bytes, id.bytes + sizeof id.bytes);
            indexes.push_back(uint32_t(i));
            addresses.push_back(memory.data() + i * bytes);
        }
        transfer.struct_size = sizeof transfer;
        transfer.n = n;
        transfer.block_ids = ids.data();
        transfer.shard_index = indexes.data();
        transfer.addresses = addresses.data();
        transfer.ctx = this;
        transfer.done = [](void *ctx, size_t i, const ucm_result *result) {
            auto *self = static_cast<Counted *>(ctx);
            if (self->finished) self->late = true;
            self->done[i]++;
            self->status = result->status;
        };
        transfer.finished = [](void *ctx) {
            auto *self = static_cast<Counted *>(ctx);
            for (auto &count : self->done)
                if (count != 1) self->early = true;
            self->finished++;
        };
    }
    ucm_transfer transfer{};
    std::vector<std::atomic<int>> done;
    std::atomic<int> finished{0}, status{-1};
    std::atomic<bool> early{false}, late{false};
    std::vector<uint8_t> memory, ids;
    std::vector<uint32_t> indexes;
    std::vector<void *> addresses;
};

struct TasksFixture {
    Layout layout{Geometry{1 << 14, {100}}};
    ucm::Tasks tasks{&layout.c};
    ucm::Admission admission{8, 1u << 20};
    ucm_status status = UCM_INTERNAL;
    ucm_task number = 0;
    std::shared_ptr<ucm::Task> accept(Counted &counted, bool dump = false) {
        return tasks.accept(counted.transfer, dump, admission, &number, &status, nullptr);
    }
};

}  // namespace

TEST_CASE("a task ends after its last shard, whatever threads complete it", "[tasks]") {
    TasksFixture f;
    Counted counted(1000);
    auto task = f.accept(counted);
    REQUIRE(f.status == UCM_OK);
    REQUIRE(f.number != 0);
    std::atomic<size_t> next{0};
    std::vector<std::thread> threads;
    for (int k = 0; k < 4; k++)
        threads.emplace_back([&] {
            for (size_t i; (i = next++) < 1000;) task->complete(i, ucm::result(UCM_OK, 100));
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(counted.finished == 1);
    REQUIRE_FALSE(counted.early);
    REQUIRE_FALSE(counted.late);
    REQUIRE(f.tasks.close(0));
}

TEST_CASE("a task keeps copies of the arrays of its transfer", "[tasks]") {
    TasksFixture f;
    std::shared_ptr<ucm::Task> task;
    Counted counted(2);
    {
        std::vector<uint64_t> lengths = {7, 0}, raw = {9, 1};
        std::vector<uint32_t> depths = {3, 4};
        std::vector<uint8_t> ids = counted.ids;
        ucm_transfer t = counted.transfer;
        t.block_ids = ids.data();
        t.lengths = lengths.data();
        t.raw_lengths = raw.data();
        t.depths = depths.data();
        t.flags = UCM_TRANSFER_REPLACE;
        t.tag = 11;
        task = f.tasks.accept(t, true, f.admission, nullptr, &f.status, nullptr);
        ids.assign(ids.size(), 0);
        lengths.assign(2, 99);
        raw.assign(2, 99);
        depths.assign(2, 99);
    }
    REQUIRE(task->id(1) == make_id(1));
    REQUIRE(task->shard(1) == 1);
    REQUIRE(task->length(0) == 7);
    REQUIRE(task->raw_length(0) == 9);
    REQUIRE(task->length(1) == 0);
    REQUIRE(task->depth(1) == 4);
    REQUIRE(task->tag() == 11);
    REQUIRE(task->replace());
    REQUIRE(task->addresses(1)[0] == counted.addresses[1]);
    task->complete(0, ucm::result(UCM_OK));
    task->complete(1, ucm::result(UCM_OK));
}

TEST_CASE("without lengths a shard is as long as its capacity", "[tasks]") {
    TasksFixture f;
    Counted counted(1);
    auto task = f.accept(counted, true);
    REQUIRE(task->length(0) == 100);
    REQUIRE(task->raw_length(0) == 100);
    REQUIRE(task->depth(0) == ucm::kUnknownDepth);
    task->complete(0, ucm::result(UCM_OK));
}

TEST_CASE("a transfer of nothing is finished at once, without done", "[tasks]") {
    TasksFixture f;
    Counted counted(0);
    REQUIRE_FALSE(f.accept(counted));
    REQUIRE(f.status == UCM_OK);
    REQUIRE(counted.finished == 1);
    REQUIRE(f.tasks.close(0));
}

TEST_CASE("a full queue is BUSY and its room is free before finished", "[tasks]") {
    TasksFixture f;
    Counted large(100), small(1);
    auto task = f.accept(large);  // overshoots the limit of 8
    REQUIRE(f.status == UCM_OK);
    REQUIRE_FALSE(f.accept(small));
    REQUIRE(f.status == UCM_BUSY);
    REQUIRE(small.finished == 0);
    for (size_t i = 0; i + 1 < 100; i++) task->complete(i, ucm::result(UCM_OK));
    auto other = f.accept(small);
    REQUIRE(f.status == UCM_OK);
    other->complete(0, ucm::result(UCM_OK));
    task->complete(99, ucm::result(UCM_OK));
    REQUIRE(f.admission.enter(8, 0));
}

TEST_CASE("the queue is bounded in bytes too", "[tasks]") {
    ucm::Admission admission(1000, 100);
    REQUIRE(admission.enter(1, 99));
    REQUIRE(admission.enter(1, 5000));
    REQUIRE_FALSE(admission.enter(1, 1));
    admission.leave(1, 5000);
    REQUIRE(admission.enter(1, 1));
}

TEST_CASE("cancel and deadline refuse shards that have not started", "[tasks]") {
    TasksFixture f;
    Counted counted(1);
    auto task = f.accept(counted);
    REQUIRE(task->refused() == UCM_OK);
    REQUIRE(f.tasks.cancel(f.number, nullptr) == UCM_OK);
    REQUIRE(task->refused() == UCM_CANCELLED);
    task->complete(0, ucm::result(UCM_CANCELLED));
    REQUIRE(f.tasks.cancel(f.number, nullptr) == UCM_NOT_FOUND);
    REQUIRE(f.tasks.cancel(12345, nullptr) == UCM_NOT_FOUND);

    Counted late(1);
    late.transfer.deadline_ns = ucm::monotonic_ns() - 1;
    task = f.accept(late);
    REQUIRE(task->refused() == UCM_TIMEOUT);
    task->complete(0, ucm::result(UCM_TIMEOUT));
}

TEST_CASE("a task whose finished runs cannot be cancelled any more", "[tasks]") {
    static TasksFixture *fixture;
    static ucm_status answer;
    TasksFixture f;
    fixture = &f;
    Counted counted(1);
    counted.transfer.finished = [](void *) {
        answer = fixture->tasks.cancel(fixture->number, nullptr);
    };
    auto task = f.accept(counted);
    task->complete(0, ucm::result(UCM_OK));
    REQUIRE(answer == UCM_NOT_FOUND);
}

TEST_CASE("closing refuses new tasks and waits for the running ones", "[tasks]") {
    TasksFixture f;
    Counted counted(1), refused(1), nothing(0);
    auto task = f.accept(counted);
    REQUIRE_FALSE(f.tasks.close(0));
    f.accept(refused);
    REQUIRE(f.status == UCM_CLOSED);
    f.accept(nothing);
    REQUIRE(f.status == UCM_CLOSED);
    REQUIRE(nothing.finished == 0);
    std::thread completer([&] { task->complete(0, ucm::result(UCM_OK)); });
    REQUIRE(f.tasks.close(INT64_MAX));
    REQUIRE(counted.finished == 1);
    completer.join();
}

TEST_CASE("drain waits for what was accepted before it, not for what comes later", "[ledger]") {
    ucm::Ledger ledger;
    const uint64_t before = ledger.accept(3);
    ucm_report report{};
    ucm_status status = UCM_INTERNAL;
    std::thread drainer([&] { status = ledger.drain(INT64_MAX, report); });
    uint64_t early = 0, after;
    while ((after = ledger.accept(1)) == before) early++;  // the drain has not begun yet
    ledger.end(before, 1, 1, 1);
    if (early) ledger.end(before, early, 0, 0);
    drainer.join();
    REQUIRE(status == UCM_OK);
    REQUIRE(report.stored == 1 + early);
    REQUIRE(report.lost == 1);
    REQUIRE(report.pending == 0);
    REQUIRE(ledger.drain(0, report) == UCM_PENDING);
    REQUIRE(report.pending == 1);
    ledger.end(after, 1, 0, 0);
    REQUIRE(ledger.drain(INT64_MAX, report) == UCM_OK);
}

TEST_CASE("a report counts since the previous one", "[ledger]") {
    ucm::Ledger ledger;
    ucm_report report{};
    ledger.end(ledger.accept(4), 3, 0, 1);
    REQUIRE(ledger.drain(0, report) == UCM_OK);
    REQUIRE(report.stored == 3);
    REQUIRE(report.lost == 0);
    ledger.lose_stored(2);
    REQUIRE(ledger.drain(0, report) == UCM_OK);
    REQUIRE(report.stored == 0);
    REQUIRE(report.lost == 2);
}

TEST_CASE("a pool gives page-aligned buffers, each once", "[buffers]") {
    ucm::BufferPool pool(5000, 3);
    REQUIRE(pool.bytes_each() == 8192);
    std::set<uint8_t *> taken;
    while (uint8_t *buffer = pool.take()) {
        REQUIRE(reinterpret_cast<uintptr_t>(buffer) % UCM_ALIGNMENT == 0);
        std::memset(buffer, 0xff, pool.bytes_each());
        taken.insert(buffer);
    }
    REQUIRE(taken.size() == 3);
    pool.give(*taken.begin());
    REQUIRE(pool.take() == *taken.begin());
}

TEST_CASE("memory that cannot be had is an error that names its size", "[buffers]") {
    try {
        ucm::Mapping mapping(uint64_t(1) << 60);
        FAIL("mapped an exbibyte");
    } catch (const ucm::Error &error) {
        REQUIRE(error.status() == UCM_UNAVAILABLE);
        REQUIRE(error.os_errno() == ENOMEM);
        REQUIRE(std::string(error.what()).find("1152921504606846976") != std::string::npos);
    }
}

TEST_CASE("a queue keeps its order and gives out the rest after close", "[queue]") {
    ucm::Queue<int> queue;
    for (int i = 0; i < 3; i++) queue.push(i);
    queue.close();
    int item = -1;
    for (int i = 0; i < 3; i++) {
        REQUIRE(queue.pop(item));
        REQUIRE(item == i);
    }
    REQUIRE_FALSE(queue.pop(item));
}

TEST_CASE("every item of a queue reaches one thread", "[queue]") {
    ucm::Queue<int> queue;
    std::atomic<int> sum{0};
    ucm::Threads threads;
    threads.start(4, "a name of more than fifteen letters", [&] {
        for (int item; queue.pop(item);) sum += item;
    });
    for (int i = 1; i <= 1000; i++) queue.push(i);
    queue.close();
    threads.join();
    REQUIRE(sum == 500500);
}

TEST_CASE("threads of a plugin block all signals but those of a crash", "[queue]") {
    sigset_t blocked, ours;
    sigemptyset(&blocked);
    ucm::Threads threads;
    threads.start(1, "signals", [&] { pthread_sigmask(SIG_SETMASK, nullptr, &blocked); });
    threads.join();
    REQUIRE(sigismember(&blocked, SIGTERM) == 1);
    REQUIRE(sigismember(&blocked, SIGUSR1) == 1);
    for (const int crash : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT})
        REQUIRE(sigismember(&blocked, crash) == 0);
    pthread_sigmask(SIG_SETMASK, nullptr, &ours);
    REQUIRE(sigismember(&ours, SIGTERM) == 0);
}

TEST_CASE("metrics copy no more than was asked for", "[metrics]") {
    ucm::Metrics<3> metrics;
    metrics.add(0, 5);
    metrics.add(0, 6);
    metrics.set(2, 9);
    uint64_t values[4] = {77, 77, 77, 77};
    metrics.copy({sizeof(ucm_metrics_args), 0, 2, values});
    REQUIRE(values[0] == 11);
    REQUIRE(values[2] == 77);
    metrics.copy({sizeof(ucm_metrics_args), 0, 4, values});
    REQUIRE(values[2] == 9);
    REQUIRE(values[3] == 77);
}

namespace {

struct Waited {
    Stack stack{{"Memory"}, {}, Geometry{1, {64}}};
    std::vector<uint8_t> bytes = std::vector<uint8_t>(64, 7);
    void *address = bytes.data();
    BlockId id = make_id(1);
    uint32_t index = 0;
    ucm_transfer transfer{};
    std::atomic<int> released{0};
    ucm_waiter *waiter =
        ucm_waiter_new(1, [](void *user) { ++*static_cast<std::atomic<int> *>(user); }, &released);

    Waited() {
        transfer.struct_size = sizeof transfer;
        transfer.n = 1;
        transfer.block_ids = id.bytes;
        transfer.shard_index = &index;
        transfer.addresses = &address;
    }
    ucm_status dump() {
        return ucm_waiter_submit(waiter, ucm_dump, stack.top(), &transfer, nullptr, nullptr);
    }
};

}  // namespace

TEST_CASE("a wait whose time is over may be repeated", "[waiter]") {
    Waited w;
    w.stack.memory().hold();
    REQUIRE(w.dump() == UCM_OK);
    REQUIRE(ucm_waiter_check(w.waiter) == UCM_PENDING);
    REQUIRE(ucm_waiter_wait(w.waiter, 0) == UCM_PENDING);
    REQUIRE(ucm_waiter_wait(w.waiter, 1) == UCM_PENDING);
    REQUIRE(w.released == 0);
    w.stack.memory().release();
    REQUIRE(ucm_waiter_wait(w.waiter, -1) == UCM_OK);
    REQUIRE(ucm_waiter_wait(w.waiter, 0) == UCM_OK);
    REQUIRE(ucm_waiter_check(w.waiter) == UCM_OK);
    REQUIRE((w.waiter->results[0].flags & UCM_RESULT_PUBLISHED));
    w.stack.close();
    REQUIRE(w.released == 1);
    ucm_waiter_forget(w.waiter);
}

TEST_CASE("a forgotten transfer runs on and says when its memory is free", "[waiter]") {
    Waited w;
    w.stack.memory().hold();
    REQUIRE(w.dump() == UCM_OK);
    ucm_waiter_forget(w.waiter);
    REQUIRE(w.released == 0);
    w.stack.memory().release();
    REQUIRE(w.stack.drain() == UCM_OK);
    REQUIRE(w.stack.close().status == UCM_OK);
    REQUIRE(w.released == 1);
    REQUIRE(w.stack.memory().published(w.id));
}

TEST_CASE("forgetting after the end frees", "[waiter]") {
    Waited w;
    REQUIRE(w.dump() == UCM_OK);
    REQUIRE(ucm_waiter_wait(w.waiter, -1) == UCM_OK);
    ucm_waiter_forget(w.waiter);
    w.stack.close();
    REQUIRE(w.released == 1);
}

TEST_CASE("a waiter that was never used or was refused can be forgotten", "[waiter]") {
    Waited w;
    w.stack.memory().busy(1);
    REQUIRE(w.dump() == UCM_BUSY);
    REQUIRE(ucm_waiter_check(w.waiter) == UCM_PENDING);
    REQUIRE(w.dump() == UCM_OK);  // the same one again
    REQUIRE(ucm_waiter_wait(w.waiter, -1) == UCM_OK);
    ucm_waiter_forget(w.waiter);
    ucm_waiter_forget(ucm_waiter_new(0, nullptr, nullptr));
}

TEST_CASE("a shard that is told twice, or never, is an internal error", "[waiter]") {
    const auto start = [](ucm_store *, const ucm_transfer *t, ucm_task *, ucm_error *) {
        ucm_result result{};
        result.struct_size = sizeof result;
        for (size_t i : {0, 1, 1}) t->done(t->ctx, i, &result);
        t->finished(t->ctx);
        return ucm_status(UCM_OK);
    };
    ucm_waiter *waiter = ucm_waiter_new(3, nullptr, nullptr);
    ucm_transfer transfer{};
    REQUIRE(ucm_waiter_submit(waiter, start, nullptr, &transfer, nullptr, nullptr) == UCM_OK);
    REQUIRE(ucm_waiter_wait(waiter, -1) == UCM_INTERNAL);
    REQUIRE(waiter->results[0].status == UCM_OK);
    REQUIRE(waiter->results[1].status == UCM_INTERNAL);
    REQUIRE(waiter->results[2].status == UCM_INTERNAL);
    ucm_waiter_forget(waiter);
}

TEST_CASE("many threads wait for one transfer", "[waiter]") {
    Waited w;
    w.stack.memory().hold();
    w.stack.memory().fail(Op::kDump, UCM_NO_SPACE, 0, 1, ENOSPC);
    REQUIRE(w.dump() == UCM_OK);
    std::atomic<int> saw{0};
    std::vector<std::thread> threads;
    for (int k = 0; k < 4; k++)
        threads.emplace_back([&] { saw += ucm_waiter_wait(w.waiter, -1) == UCM_NO_SPACE; });
    w.stack.memory().release();
    for (auto &thread : threads) thread.join();
    REQUIRE(saw == 4);
    REQUIRE(w.waiter->results[0].os_errno == ENOSPC);
    ucm_waiter_forget(w.waiter);
}

TEST_CASE("the test store is a store", "[memory]") {
    Stack stack({"Memory"}, {}, Geometry{3, {5000, 300}, UCM_DTYPE_BF16});
    const auto ids = make_ids(5);
    stack.memory().reorder(true);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    stack.memory().reorder(false);
    stack.memory().fail(Op::kLoad, UCM_IO, 4, 1, EIO);
    const auto results = stack.load(ids);
    REQUIRE(results[4].status == UCM_IO);
    REQUIRE(results[5].status == UCM_OK);
    ucm_report report;
    REQUIRE(stack.drain(&report) == UCM_OK);
    REQUIRE(report.stored == 15);
}
