// SPDX-License-Identifier: MIT
#pragma once

#include <mutex>
#include <vector>

#include "copy.h"
#include "index.h"
#include "log.h"

namespace ucm::cache {

using Lock = std::unique_lock<std::mutex>;

// What the dump, write-back and load paths of one store share.
//
// Locks. `mutex` comes first; with it held, only the ledger's own is taken. Those of Tasks and
// Admission are taken alone. No lock at all is held while bytes are copied, while a job is
// answered, while something is logged, and during any call into the lower store.
struct Core {
    explicit Core(const ucm_open_args &args)
        : config(args),
          copy(*args.layout),
          log(args.host, "Cache"),
          lower(args.lower),
          lower_keeps((lower->capabilities & UCM_CAP_KEEPS) != 0),
          lower_loads((lower->capabilities & UCM_CAP_LOADS) != 0),
          index(config, wakeups),
          registered(lower, index.pool().mapping()) {}

    const Config config;
    const RowCopy copy;
    const Logger log;
    ucm_store *const lower;
    const bool lower_keeps, lower_loads;
    Metrics<kMetrics> metrics;
    Ledger ledger;

    std::mutex mutex;  // guards index with its pool, every Block, and the queues of the paths
    Wakeups wakeups;
    BlockIndex index;
    const Registered registered;  // with the store below
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

// Sleeps until until_ns at the latest; INT64_MAX: for as long as it takes.
inline void wait_until(std::condition_variable &changed, Lock &lock, int64_t until_ns) {
    if (until_ns == INT64_MAX) return changed.wait(lock);
    const int64_t left = until_ns - monotonic_ns();
    if (left > 0) changed.wait_for(lock, std::chrono::nanoseconds(left));
}

}  // namespace ucm::cache
