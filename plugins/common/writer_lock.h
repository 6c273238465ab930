// SPDX-License-Identifier: MIT
//
// The folder of temporary files of one writer in a storage directory, alive as long as a lock on a
// file in it is held: the kernel drops the lock of the dead, and another writer sweeps up.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <vector>

#include "access.h"
#include "ucm/store_v1.hpp"

namespace ucm {

// A descriptor that a forked child closes: a child that kept it would keep the lock of a dead
// parent, or the space of a deleted file. -1: none.
class ForkClosed {
  public:
    ForkClosed();
    ~ForkClosed();
    ForkClosed(const ForkClosed &) = delete;
    ForkClosed &operator=(const ForkClosed &) = delete;

    int get() const { return fd_.load(std::memory_order_relaxed); }
    void set(int fd) { fd_.store(fd, std::memory_order_release); }
    // 0 or the errno of close(2).
    int close();
    // To another owner, still open.
    int release() { return fd_.exchange(-1); }

  private:
    std::atomic<int> fd_{-1};
};

class WriterFolder {
  public:
    // Makes .ucm/writers/<name> in the directory, and sweeps up after dead writers.
    WriterFolder(std::string directory, const Access &access);
    // Removes the folder and all in it.
    ~WriterFolder();

    std::string path() const;
    // A path that was never given out before.
    std::string temporary(const std::string &stem);
    // Makes a new folder if the present one is gone.
    void renew();

  private:
    void create();
    bool try_lock(const std::string &path);

    const std::string directory_;
    const Access access_;
    mutable std::mutex mutex_;  // guards path_ and next_, and renew against itself
    std::string path_;
    uint64_t next_ = 0;
    ForkClosed lock_;
};

// Removes folders of writers that are dead.
void sweep_writers(const std::string &directory);
// Does a living writer hold the lock of this folder of a writer? Where that cannot be told: yes.
bool writer_lives(const std::string &directory, const std::string &name);

// "<host>-<boot>-", how this machine's writers' names begin until it boots again.
const std::string &machine_prefix();
std::string host_prefix();  // "<host>-"

// Takes an open-file-description lock of the whole file, or of `count` bytes of it: 0, EAGAIN where
// another has it, or why locks do not work here.
int lock_file(int fd, uint64_t first = 0, uint64_t count = 0);
void unlock_file(int fd, uint64_t first = 0, uint64_t count = 0);
bool leads_to(const std::string &path, int fd);
std::vector<std::string> names_in(const std::string &path);

}  // namespace ucm
