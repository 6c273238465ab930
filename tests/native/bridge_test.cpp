// SPDX-License-Identifier: MIT
//
// Stores in Python, without Python: threads stand in for those that pull and answer.

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <catch2/catch.hpp>
#include <chrono>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

extern "C" {
#include "_bridge.h"
}
#include "ucm/task_v1.h"

namespace {

constexpr uint64_t kBytes = 64;
constexpr uint64_t kAll = ~uint64_t(0);

struct Transfer {
    explicit Transfer(size_t count, uint8_t id = 1)
        : n(count), ids(n * UCM_BLOCK_ID_BYTES, id), indexes(n), memory(n * kBytes) {
        for (size_t i = 0; i < n; i++) addresses.push_back(memory.data() + i * kBytes);
        waiter = ucm_waiter_new(n, nullptr, nullptr);
    }
    Transfer(const Transfer &) = delete;
    ~Transfer() { ucm_waiter_forget(waiter); }
    ucm_status dump(ucm_store *store, int64_t deadline_ns = 0) {
        ucm_transfer t{};
        t.struct_size = sizeof t;
        t.n = n;
        t.block_ids = ids.data();
        t.shard_index = indexes.data();
        t.addresses = addresses.data();
        t.deadline_ns = deadline_ns;
        return ucm_waiter_submit(waiter, ucm_dump, store, &t, &task, nullptr);
    }
    ucm_status wait() { return ucm_waiter_wait(waiter, -1); }
    ucm_status dump_as_python(ucm_store *store, int64_t deadline_ns) {
        if (n > 1) ucmb_expect(store);
        ucmb_python_submits();
        const ucm_status status = dump(store, deadline_ns);
        ucmb_python_submitted();
        return status;
    }
    ucm_status wait_as_python() {
        ucmb_python_waits();
        return wait();
    }

    size_t n;
    std::vector<uint8_t> ids;
    std::vector<uint32_t> indexes;
    std::vector<uint8_t> memory;
    std::vector<void *> addresses;
    ucm_waiter *waiter;
    ucm_task task = 0;
};

// A bridge with its workers; `work` says what they answer, and may wait.
class Bridged {
  public:
    explicit Bridged(
        int threads, std::function<void()> work = [] {}, size_t max_shards = 1000,
        std::function<void()> call = [] {})
        : work_(std::move(work)), call_(std::move(call)) {
        ucm_layout layout{};
        layout.capacity = layout.raw_capacity = kBytes;
        layout.shards_per_block = layout.n_segments = 1;
        ucmb_settings settings{};
        settings.layout = &layout;
        settings.capabilities = UCM_CAP_REMOVE | UCM_CAP_CANCEL;
        settings.methods = kAll;
        settings.threads = threads;
        settings.max_shards = max_shards;
        settings.max_bytes = 1 << 30;
        bridge_ = ucmb_new(&settings);
        for (int i = 0; i <= threads; i++)
            workers_.emplace_back([this, last = i == threads] { serve(last); });
    }
    Bridged(const Bridged &) = delete;
    ~Bridged() {
        for (std::thread &worker : workers_) worker.join();
    }

    ucm_store *store() { return ucmb_store(bridge_); }
    ucmb_bridge *c() { return bridge_; }
    ucm_status close(int64_t timeout_ms = -1) {
        const ucm_wait_args args = {sizeof args, 0, timeout_ms};
        ucm_report report{};
        report.struct_size = sizeof report;
        return ucm_close(store(), &args, &report, nullptr);
    }

  private:
    void serve(bool calls_only) {
        ucmb_job *job = nullptr;
        while (job || (job = ucmb_pull(bridge_, calls_only))) {
            if (job->kind > UCMB_DUMP) {
                if (job->kind == UCMB_LOOKUP) call_();
                if (job->kind == UCMB_LOOKUP) job->tiers[0] = 1;
                job = ucmb_answer_pull(bridge_, calls_only, job, UCM_OK, 0, "");
                continue;
            }
            work_();
            while (ucmb_job *next = job->next) {
                ucmb_end(bridge_, job, nullptr, nullptr, nullptr, nullptr);
                job = next;
            }
            job = ucmb_end_pull(bridge_, calls_only, job, nullptr, nullptr, nullptr, nullptr);
        }
        ucmb_leave(bridge_);
    }

    std::function<void()> work_, call_;
    ucmb_bridge *bridge_;
    std::vector<std::thread> workers_;
};

ucm_status lookup(ucm_store *store, size_t *hits = nullptr, int64_t deadline_ns = 0) {
    const uint8_t id[UCM_BLOCK_ID_BYTES] = {};
    ucm_lookup_args args{};
    args.struct_size = sizeof args;
    args.n = 1;
    args.block_ids = id;
    args.hits = hits;
    args.deadline_ns = deadline_ns;
    return ucm_lookup(store, &args, nullptr);
}

ucm_status drain(ucm_store *store, ucm_report &report, int64_t timeout_ms = -1) {
    const ucm_wait_args args = {sizeof args, 0, timeout_ms};
    report.struct_size = sizeof report;
    return ucm_drain(store, &args, &report, nullptr);
}

ucm_status remove(ucm_store *store) {
    const uint8_t id[UCM_BLOCK_ID_BYTES] = {};
    ucm_ids_args args{};
    args.struct_size = sizeof args;
    args.n = 1;
    args.block_ids = id;
    return ucm_remove(store, &args, nullptr);
}

struct Gate {
    std::atomic<bool> open{false};
    std::atomic<int> inside{0};
    std::function<void()> pass() {
        return [this] {
            inside++;
            while (!open) std::this_thread::yield();
        };
    }
    void await() {
        while (inside == 0) std::this_thread::yield();
    }
};

}  // namespace

TEST_CASE("What threads of all kinds ask at once is answered once each", "[bridge]") {
    Bridged bridged(3, [] {}, 40);
    std::atomic<int> ended{0}, cancelled{0}, drained{0};
    std::vector<std::thread> threads;
    for (int k = 0; k < 4; k++)
        threads.emplace_back([&, k] {
            for (int i = 0; i < 300; i++) {
                Transfer transfer(size_t(1 + i % 3));
                const auto dump = k % 2 ? &Transfer::dump : &Transfer::dump_as_python;
                while ((transfer.*dump)(bridged.store(), i % 7 ? 0 : 1) == UCM_BUSY)
                    std::this_thread::yield();
                if (i % 5 == k) ucm_cancel(bridged.store(), transfer.task, nullptr);
                const ucm_status status = k % 2 ? transfer.wait() : transfer.wait_as_python();
                ended += status == UCM_OK;
                cancelled += status == UCM_CANCELLED || status == UCM_TIMEOUT;
            }
        });
    for (int k = 0; k < 2; k++)
        threads.emplace_back([&] {
            ucm_report report{};
            for (int i = 0; i < 100; i++) drained += drain(bridged.store(), report) == UCM_OK;
        });
    threads.emplace_back([&] {
        ucm_report report{};
        for (int i = 0; i < 100; i++) {
            size_t hits = 0;
            CHECK(lookup(bridged.store(), &hits) == UCM_OK);
            CHECK(hits == 1);
            CHECK(remove(bridged.store()) == UCM_OK);
            CHECK(drain(bridged.store(), report) == UCM_OK);
        }
    });
    for (std::thread &thread : threads) thread.join();
    CHECK(ended + cancelled == 1200);
    CHECK(drained == 200);
    CHECK(bridged.close() == UCM_OK);
}

// Workers and callers look for each other before they sleep, or sleep, as it comes.
TEST_CASE("Calls that come one right after another are answered too", "[bridge]") {
    for (const int threads : {1, 3}) {
        Bridged bridged(threads);
        for (int i = 0; i < 1000; i++) {
            Transfer transfer(size_t(1 + i % 2));
            REQUIRE(transfer.dump_as_python(bridged.store(), 0) == UCM_OK);
            CHECK(transfer.wait_as_python() == UCM_OK);
            CHECK(lookup(bridged.store()) == UCM_OK);
        }
        CHECK(bridged.close() == UCM_OK);
    }
}

TEST_CASE("A transfer waits for no call while a worker has nothing to do", "[bridge]") {
    using namespace std::chrono;
    std::atomic<int> taken{0}, wanted{0}, stuck{0};
    Bridged bridged(
        2, [&] { taken++; }, 1000,
        [&] {
            const auto until = steady_clock::now() + 5s;
            while (taken < wanted && steady_clock::now() < until) std::this_thread::yield();
            stuck += taken < wanted;
        });
    for (int round = 1; round <= 300 && !stuck; round++) {
        Transfer transfer(1);
        wanted = round;
        REQUIRE(transfer.dump(bridged.store()) == UCM_OK);
        REQUIRE(lookup(bridged.store()) == UCM_OK);
        REQUIRE(transfer.wait() == UCM_OK);
    }
    CHECK(stuck == 0);
    REQUIRE(bridged.close() == UCM_OK);
}

TEST_CASE("While every worker hangs, what waits ends and what is asked too", "[bridge]") {
    Gate gate;
    Bridged bridged(1, gate.pass());
    Transfer first(1), late(1), unwanted(1);
    ucm_report report{};
    REQUIRE(first.dump(bridged.store()) == UCM_OK);
    gate.await();
    REQUIRE(late.dump(bridged.store(), 1) == UCM_OK);
    CHECK(late.wait() == UCM_TIMEOUT);
    REQUIRE(unwanted.dump(bridged.store()) == UCM_OK);
    CHECK(ucm_cancel(bridged.store(), unwanted.task, nullptr) == UCM_OK);
    CHECK(unwanted.wait() == UCM_CANCELLED);
    CHECK(drain(bridged.store(), report, 0) == UCM_PENDING);
    CHECK(report.pending == 1);
    CHECK(bridged.close(0) == UCM_PENDING);
    CHECK(lookup(bridged.store()) == UCM_CLOSED);
    gate.open = true;
    CHECK(first.wait() == UCM_OK);
    CHECK(bridged.close() == UCM_OK);
}

TEST_CASE("At the end of Python what waits and what comes is closed", "[bridge]") {
    Gate gate;
    Bridged bridged(1, gate.pass());
    Transfer first(1), second(1), third(1);
    REQUIRE(first.dump(bridged.store()) == UCM_OK);
    gate.await();
    REQUIRE(second.dump(bridged.store()) == UCM_OK);
    std::thread remover([&] { CHECK(remove(bridged.store()) != UCM_PENDING); });
    ucmb_shut(bridged.c());
    remover.join();
    CHECK(second.wait() == UCM_CLOSED);
    CHECK(third.dump(bridged.store()) == UCM_CLOSED);
    CHECK(lookup(bridged.store()) == UCM_CLOSED);
    CHECK(bridged.close(0) == UCM_PENDING);
    gate.open = true;
    CHECK(first.wait() == UCM_OK);
    CHECK(bridged.close() == UCM_OK);
}

TEST_CASE("A forked child is refused without a lock", "[bridge]") {
    Bridged bridged(1);
    const pid_t child = fork();
    if (child == 0) {
        Transfer transfer(1);
        const bool refused = lookup(bridged.store()) == UCM_INVALID &&
                             transfer.dump(bridged.store()) == UCM_INVALID &&
                             bridged.close() == UCM_INVALID;
        _exit(refused ? 0 : 1);
    }
    int status = 1;
    waitpid(child, &status, 0);
    CHECK(status == 0);
    CHECK(lookup(bridged.store()) == UCM_OK);
    CHECK(bridged.close() == UCM_OK);
}
