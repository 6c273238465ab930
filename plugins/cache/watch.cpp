// SPDX-License-Identifier: MIT
#include "watch.h"

#include <cerrno>
#include <cstring>

#include "failpoint.h"

namespace ucm::cache {
namespace {

constexpr int64_t kCheckNs = 500 * 1000000;         // for the dead
constexpr int64_t kWaitingCheckNs = 100 * 1000000;  // while something is waited for
constexpr int64_t kTidyNs = 60ll * 1000000000;
constexpr int64_t kOthersGrowNs = 5ll * 1000000000, kOthersLookNs = 20 * 1000000;

}  // namespace

void Watch::start() {
    threads_.start(1, "ucm-cache-watch", [this] { run(); });
}

void Watch::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
    }
    table_.ring(table_.member());
    threads_.join();
}

bool Watch::waiting() const {
    return core_.wakeups.dumps_want_room || core_.wakeups.loads_want_room ||
           core_.wakeups.writes_want_change || loads_.waits_for_others();
}

void Watch::adopt(Outcome &outcome) {
    const Table::Hold hold(table_);
    const Table::Inheritance all = table_.adopt();
    writer_.adopt(all, outcome);
    if (table_.changed_hands()) writer_.find_own();
}

void Watch::run() {
    Lock lock(core_.mutex);
    while (!stopping_) {
        const uint32_t seen = table_.rings();
        Outcome outcome;
        const int64_t now_ns = monotonic_ns();
        if (now_ns >= next_check_ns_) check(lock, outcome);
        if (now_ns >= next_tidy_ns_) tidy(lock, outcome);
        relieve(outcome);
        loads_.look_again();
        core_.changed();
        grow(lock, outcome, core_.segment.step_frames());
        table_.want(waiting());
        outcome.give(lock, core_.log);
        const int64_t pause_ns = waiting() ? kWaitingCheckNs : kCheckNs;
        next_check_ns_ = std::min(next_check_ns_, monotonic_ns() + pause_ns);
        lock.unlock();
        table_.listen(seen, pause_ns);
        lock.lock();
    }
    table_.want(false);
}

void Watch::check(Lock &, Outcome &outcome) {
    next_check_ns_ = monotonic_ns() + kCheckNs;
    core_.segment.alive();
    if (core_.segment.orphaned() && !std::exchange(told_orphaned_, true))
        outcome.warnings.push_back(core_.segment.path() +
                                   " was removed by somebody while it is in use: processes that "
                                   "start now will not share it with this one");
    const Table::Hold hold(table_);
    const Table::Inheritance all = table_.adopt();
    writer_.adopt(all, outcome);
    // Under pressure no frame must be one that only who took it for this member knew of.
    if (table_.changed_hands() || table_.header().pressure.load()) writer_.find_own();
    writer_.settle_foreign(outcome);
    writer_.flush_for_drains();
    table_.wake_resting(monotonic_ns());
}

void Watch::relieve(Outcome &outcome) {
    if (!table_.header().pressure.load()) return;
    const Table::Hold hold(table_);
    writer_.relieve(outcome);
}

void Watch::tidy(Lock &lock, Outcome &outcome) {
    next_tidy_ns_ = monotonic_ns() + kTidyNs;
    {
        const Table::Hold hold(table_);
        writer_.abandon_idle(outcome);
    }
    lock.unlock();
    loads_.pass_touches();
    if (core_.segment.shared()) core_.segment.sweep_others();
    lock.lock();
}

void Watch::grow_all(Lock &lock, Outcome &outcome) {
    uint32_t frames = 0;
    int64_t until_ns = 0;
    for (;;) {
        grow(lock, outcome, UINT32_MAX);
        if (!table_.another_grows()) return;
        if (frames != table_.frames_ready()) until_ns = monotonic_ns() + kOthersGrowNs;
        frames = table_.frames_ready();
        if (monotonic_ns() > until_ns) {
            outcome.warnings.push_back(
                core_.segment.path() +
                ": another process has been making room in it for 5 s; what it makes later is "
                "pinned when it is used, and copies wait for that; look at the processes that use "
                "this unique_id");
            return;
        }
        lock.unlock();
        table_.listen(table_.rings(), kOthersLookNs);
        lock.lock();
        adopt(outcome);
    }
}

// Room ahead of use.
void Watch::grow(Lock &lock, Outcome &outcome, uint32_t ahead) {
    while (!stopping_) {
        Table::Growth growth;
        {
            const Table::Hold hold(table_);
            if (table_.free_frames() < ahead) growth = table_.begin_growth();
        }
        if (growth.count == 0) return;
        lock.unlock();
        int error = core_.segment.allocate(growth.first, growth.count);
        while (error == ENOSPC && growth.count > 1)  // a part, rather than nothing
            error = core_.segment.allocate(growth.first, growth.count /= 2);
        lock.lock();
        {
            const Table::Hold hold(table_);
            table_.end_growth(growth, error == 0);
        }
        if (error) {
            if (!std::exchange(told_full_, true))
                outcome.warnings.push_back(
                    core_.segment.path() + " cannot grow beyond " +
                    std::to_string(growth.first * core_.segment.frame_bytes() >> 20) +
                    " MiB: " + std::strerror(error) + "; make /dev/shm larger for more cache");
            return;
        }
        lock.unlock();
        core_.segment.collapse(growth.first, growth.count);
        core_.pin_ready();
        lock.lock();
    }
}

}  // namespace ucm::cache
