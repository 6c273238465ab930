// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <list>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "usrbio.h"
#include "writer_lock.h"

namespace ucm::ds3fs {

// Open files, each registered with the library once, for requests. Those for reading are kept for a
// while after they are let go, and lent to one user at a time. Any thread.
class Descriptors {
  public:
    Descriptors(const Library &library, size_t most_idle)
        : library_(library), most_idle_(most_idle) {}
    // Nothing is lent any more. What a request may still use stays open.
    ~Descriptors();

    // All of these return 0 or an errno.
    int open(const std::string &path, int flags, ForkClosed &fd);
    int close(ForkClosed &fd);

    // A request that was given up may still use the file, from hold to let_go; so long it stays
    // open.
    void hold(int fd);
    void let_go(int fd);

    // The daemon does not know it: it is not lent again.
    void unknown(int fd);

    // Closes what nobody has asked for in a while.
    void tidy();
    void drop_idle();
    void drop_idle(const std::string &path);
    uint64_t registrations() const { return registrations_.load(); }
    uint64_t registered() const { return registered_.load(); }

  private:
    struct File {
        std::string path;
        bool kept = false;  // idle, when its user lets go
        dev_t device = 0;
        ino_t inode = 0;
        size_t held = 0;        // by requests that were given up
        bool let_go = false;    // by its user
        int64_t since_ns = 0;   // idle
        ForkClosed descriptor;  // of one that is not lent
    };
    using Files = std::map<int, File>;

    bool lend_idle(const std::string &path, ForkClosed &fd);
    int register_one(int &number);
    void keep_from_use(const std::vector<int> &numbers);
    void forget(const std::list<Files::node_type> &gone);
    std::list<Files::node_type> take_idle(size_t most, int64_t before_ns);

    const Library &library_;
    const size_t most_idle_;
    std::atomic<uint64_t> registrations_{0}, registered_{0};
    std::mutex mutex_;  // guards all below; never held during a call of the library or the kernel
    Files files_;       // by descriptor
    std::multimap<std::string, int> idle_;  // by path
    std::vector<int> spoilt_;               // see register_one
    std::list<int> by_age_;                 // of idle_, longest first
};

}  // namespace ucm::ds3fs
