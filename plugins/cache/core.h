// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <vector>

#include "breaker.h"
#include "config.h"
#include "device.h"
#include "job.h"
#include "table.h"
#include "threads.h"

namespace ucm::cache {

using Lock = std::unique_lock<std::mutex>;

constexpr int64_t kBusyNs = 5 * 1000000;  // after BUSY from below, before the next try

// Who is to look again when something changed under Core::mutex.
struct Wakeups {
    std::condition_variable dumps;     // the dump thread: a job, room, a cancel
    std::condition_variable writes;    // the writer: a block, the end of a lower dump
    std::condition_variable loads;     // the load threads: a job, an arrival, room
    std::condition_variable expected;  // who asks below for what is to be prefetched
    std::condition_variable idle;      // close, drain and remove
    bool dumps_want_room = false, loads_want_room = false, writes_want_change = false;
};

// What the dump, write-back and load paths of one store share.
//
// Locks. `mutex` comes first; with it held, the table's (Table::Hold) and the ledger's are taken,
// each alone. Those of Tasks and Admission are taken alone. No lock at all is held while bytes are
// copied, while a job is answered, while something is logged, and during any call into the lower
// store. Everything in Table that needs its mutex is called with both.
struct Core {
    Core(const ucm_open_args &args, const Shape &shape, const std::string &unique_id)
        : log(args.host, "Cache"),
          config(args, shape),
          lower(args.lower),
          lower_keeps(shape.keeps),
          lower_loads(shape.loads),
          segment(shape, unique_id, log),
          device(make_device(*args.layout, log)),
          table(segment, args.layout->memory != UCM_MEMORY_HOST),
          registered(lower, segment.data(), segment.data_bytes()) {
        table.on_change = [this] { changed(); };
    }

    // The thread that calls goes where cpu_affinity_cores says.
    void take_cores() const {
        if (const int error = use_cores(config.cores))
            log.write(UCM_LOG_WARN, "cpu_affinity_cores: a thread cannot go there: %s",
                      std::strerror(error));
    }

    // With `mutex`: frames came free, or shards came or went, here or in another process.
    void changed() {
        version++;
        if (wakeups.dumps_want_room) wakeups.dumps.notify_all();
        if (wakeups.loads_want_room) wakeups.loads.notify_one();
        if (wakeups.writes_want_change) wakeups.writes.notify_one();
    }

    // Before slots are given to the device: pins what memory has come for since. With no lock.
    void pin_ready() {
        const uint32_t ready = table.frames_ready();
        if (!table.device() || pinned_frames.load(std::memory_order_acquire) >= ready) return;
        Lock lock(pin_mutex);
        pinned.wait(lock, [&] { return !pinning; });
        const uint32_t first = pinned_frames.load();
        if (first >= ready) return;
        pinning = true;
        lock.unlock();
        const uint64_t bytes = segment.frame_bytes();
        device->pin(segment.frame(first), (ready - first) * bytes);
        lock.lock();
        pinning = false;
        pinned_frames.store(ready, std::memory_order_release);
        pinned.notify_all();
    }

    const Logger log;
    const Config config;
    ucm_store *const lower;
    const bool lower_keeps, lower_loads;
    Metrics<kMetrics> metrics;
    Ledger ledger;
    // Of the store below: one may be able to read what it cannot write.
    Breaker dump_breaker, load_breaker;
    // Somebody drains, or closes: nothing waits any more until a store that is down works again.
    std::atomic<uint32_t> impatient{0};
    std::atomic<bool> closing{false};

    std::mutex mutex;  // guards Wakeups, version, dumping, and the queues of the paths
    Wakeups wakeups;
    uint64_t version = 0;
    // Dumps that are copied just now, and when the last ended: nothing is written below meanwhile.
    uint32_t dumping = 0;
    int64_t dumped_ns = 0;
    Segment segment;
    const std::unique_ptr<Device> device;  // ends before the memory that it has pinned
    Table table;
    const Registered registered;  // with the store below

    std::mutex pin_mutex;  // guards `pinning`: one thread pins, who wants to copy waits
    std::condition_variable pinned;
    bool pinning = false;
    std::atomic<uint32_t> pinned_frames{0};  // those before it are, or cannot be
};

// A result that is decided under the lock and given after it.
struct Answer {
    JobRef job;
    size_t row;
    ucm_result result;
};

struct Outcome {
    std::vector<Answer> answers;
    std::vector<std::string> warnings;

    // Gives all of it, with the lock let go meanwhile.
    void give(Lock &lock, const Logger &log) {
        if (answers.empty() && warnings.empty()) return;
        lock.unlock();
        for (auto &warning : warnings) log.write(UCM_LOG_WARN, "%s", warning.c_str());
        for (auto &answer : answers) answer.job->answer(answer.row, answer.result);
        answers.clear();
        warnings.clear();
        lock.lock();
    }
};

// Of a task of which nothing moves yet, from row `first` on: those that are dropped, or all, where
// it is cancelled or too late. False: nothing is left of it. With Core::mutex.
inline bool answer_refused(Core &core, const JobRef &job, size_t first, Outcome &outcome) {
    const ucm_status refused = job->task->refused();
    bool left = false;
    for (size_t row = first; row < job->rows.size(); row++) {
        const bool dropped = job->rows[row] == Row::kDropped;
        if (job->rows[row] == Row::kTaken) continue;
        left = left || (!dropped && refused == UCM_OK);
        if (!dropped && refused == UCM_OK) continue;
        job->rows[row] = Row::kTaken;
        if (job->dump) core.ledger.end(job->epoch, 0, 0, 1);
        outcome.answers.push_back({job, row, result(dropped ? UCM_CANCELLED : refused)});
    }
    return left;
}

// Sleeps until until_ns at the latest; INT64_MAX: for as long as it takes.
inline void wait_until(std::condition_variable &changed, Lock &lock, int64_t until_ns) {
    if (until_ns == INT64_MAX) return changed.wait(lock);
    const int64_t left = until_ns - monotonic_ns();
    if (left > 0) changed.wait_for(lock, std::chrono::nanoseconds(left));
}

}  // namespace ucm::cache
