// SPDX-License-Identifier: MIT
#pragma once

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace ucm {

// Work for threads, first in first out. What is put in is bounded by whoever admits tasks.
template <typename T>
class Queue {
  public:
    void push(T item) {
        std::lock_guard<std::mutex> hold(mutex_);
        items_.push_back(std::move(item));
        ready_.notify_one();
        ring();
    }

    // False: closed and empty.
    bool pop(T &item) {
        std::unique_lock<std::mutex> hold(mutex_);
        ready_.wait(hold, [&] { return !items_.empty() || closed_; });
        if (items_.empty()) return false;
        item = std::move(items_.front());
        items_.pop_front();
        return true;
    }

    // False: there is nothing now.
    bool try_pop(T &item) {
        std::lock_guard<std::mutex> hold(mutex_);
        if (items_.empty()) return false;
        item = std::move(items_.front());
        items_.pop_front();
        return true;
    }

    bool closed() {
        std::lock_guard<std::mutex> hold(mutex_);
        return closed_;
    }

    void close() {
        std::lock_guard<std::mutex> hold(mutex_);
        closed_ = true;
        ready_.notify_all();
        ring();
    }

    // For threads that wait for other things besides, with poll(2): from listen, if it is true, to
    // hush the eventfd `bell` becomes readable when something is put in or the queue is closed.
    bool listen(int bell) {
        std::lock_guard<std::mutex> hold(mutex_);
        if (!items_.empty() || closed_) return false;
        bells_.push_back(bell);
        return true;
    }
    void hush(int bell) {
        {
            std::lock_guard<std::mutex> hold(mutex_);
            for (size_t i = bells_.size(); i-- > 0;)
                if (bells_[i] == bell) bells_.erase(bells_.begin() + long(i));
        }
        eventfd_t rings;
        eventfd_read(bell, &rings);
    }

  private:
    void ring() {
        while (!bells_.empty()) {
            eventfd_write(bells_.back(), 1);
            bells_.pop_back();
            if (!closed_) return;
        }
    }

    std::mutex mutex_;  // guards all below
    std::condition_variable ready_;
    std::deque<T> items_;
    bool closed_ = false;
    std::vector<int> bells_;  // of those that listen; one is rung for each item
};

// The calling thread runs on these cores from now on; none: where it may. 0 or an errno.
inline int use_cores(const std::vector<int> &cores) {
    if (cores.empty()) return 0;
    cpu_set_t set;
    CPU_ZERO(&set);
    for (const int core : cores) CPU_SET(size_t(core), &set);
    return pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

// Named threads that block every signal, so that the host's handlers run on the host's threads,
// but for those of a crash: blocked, they would end the process before anybody can report it.
class Threads {
  public:
    ~Threads() { join(); }

    template <typename F>
    void start(size_t count, const char *name, F body) {
        sigset_t all, before;
        sigfillset(&all);
        for (const int crash : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT}) sigdelset(&all, crash);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        try {
            for (size_t i = 0; i < count; i++) {
                threads_.emplace_back(body);
                pthread_setname_np(threads_.back().native_handle(),
                                   std::string(name).substr(0, 15).c_str());
            }
        } catch (...) {
            pthread_sigmask(SIG_SETMASK, &before, nullptr);
            throw;
        }
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }

    void join() {
        for (auto &thread : threads_) thread.join();
        threads_.clear();
    }

  private:
    std::vector<std::thread> threads_;
};

}  // namespace ucm
