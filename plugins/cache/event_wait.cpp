// SPDX-License-Identifier: MIT
#include "event_wait.h"

#include <algorithm>
#include <chrono>
#include <map>
#include <set>
#include <thread>

namespace ucm::cache {
namespace {

constexpr int64_t kAskNs = 200000;  // and at least half of the time nothing is asked

}  // namespace

void EventWait::start() {
    if (core_.device->events()) threads_.start(1, "ucm-cache-event", [this] { run(); });
}

void EventWait::stop() {
    {
        Lock lock(core_.mutex);
        stopping_ = true;
        changed_.notify_all();
    }
    threads_.join();
}

bool EventWait::push(const JobRef &job) {
    const uint64_t event = job->task->event();
    if (!event || !core_.device->late(event)) return false;
    Lock lock(core_.mutex);
    waiting_.push_back(job);
    changed_.notify_all();
    return true;
}

void EventWait::cancel(const IdSet &ids) {
    for (auto &job : waiting_)
        for (size_t row = 0; job->dump && row < job->rows.size(); row++)
            if (job->rows[row] == Row::kTodo && ids.count(job->task->id(row)))
                job->rows[row] = Row::kDropped;
}

void EventWait::run() {
    Lock lock(core_.mutex);
    for (;;) {
        changed_.wait(lock, [&] { return !waiting_.empty() || stopping_; });
        if (waiting_.empty()) return;
        const int64_t begun_ns = monotonic_ns();
        look(lock);
        if (waiting_.empty()) continue;
        const int64_t pause_ns = std::max(kAskNs, monotonic_ns() - begun_ns);
        lock.unlock();
        std::this_thread::sleep_for(std::chrono::nanoseconds(pause_ns));
        lock.lock();
    }
}

void EventWait::look(Lock &lock) {
    Outcome outcome;
    std::vector<JobRef> left;
    for (auto &job : waiting_)
        if (answer_refused(core_, job, 0, outcome)) left.push_back(job);
    waiting_ = left;
    outcome.give(lock, core_.log);
    lock.unlock();
    std::map<uint64_t, bool> late;  // several tasks may wait for one
    std::set<JobRef> gone;
    for (auto &job : left) {
        const uint64_t event = job->task->event();
        const auto [known, is_new] = late.try_emplace(event, false);
        if (is_new) known->second = core_.device->late(event);
        if (known->second) continue;
        job->dump ? dumps_.push(job, 0) : loads_.push(job, 0);
        gone.insert(job);
    }
    lock.lock();
    // Only now: a remove finds a dump in one place or the other.
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(),
                                  [&](const JobRef &job) { return gone.count(job) != 0; }),
                   waiting_.end());
}

}  // namespace ucm::cache
