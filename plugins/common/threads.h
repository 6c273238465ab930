// SPDX-License-Identifier: MIT
#pragma once

#include <pthread.h>
#include <signal.h>

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

    void close() {
        std::lock_guard<std::mutex> hold(mutex_);
        closed_ = true;
        ready_.notify_all();
    }

  private:
    std::mutex mutex_;  // guards items_ and closed_
    std::condition_variable ready_;
    std::deque<T> items_;
    bool closed_ = false;
};

// Named threads that block every signal, so that the host's handlers run on the host's threads.
class Threads {
  public:
    ~Threads() { join(); }

    template <typename F>
    void start(size_t count, const char *name, F body) {
        sigset_t all, before;
        sigfillset(&all);
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
