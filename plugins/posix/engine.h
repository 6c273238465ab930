// SPDX-License-Identifier: MIT
//
// Ways to move bytes between memory and open files: one interface, an engine for each thread.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace ucm::posix {

// One request to the kernel. It and its pieces stay where they are until it is finished.
struct Io {
    enum class Way { kRead, kWrite, kSync };  // kSync: fdatasync

    Way way = Way::kRead;
    int fd = -1;
    iovec *pieces = nullptr;
    unsigned n = 0;  // at most IOV_MAX
    uint64_t offset = 0;
    int64_t result = 0;  // bytes moved, perhaps fewer than asked for, or a negative errno
    size_t slot = 0;     // of whoever started it
};

// Used by one thread.
class Engine {
  public:
    virtual ~Engine() = default;
    // Most requests at once; at 1 start returns when the bytes have moved.
    virtual size_t depth() const = 0;
    // Hands it to the kernel now, or with others at the next finish.
    virtual void start(Io &io) = 0;
    // One that is finished, or NULL. With `wait` it comes back with one; some must run.
    virtual Io *finish(bool wait) = 0;
    // Becomes readable when a request that runs is finished; -1 at depth 1.
    virtual int fd() const { return -1; }
    // What was started goes to the kernel. False: not all of it; a finish that waits tries again.
    virtual bool submit() { return true; }
};

// Runs the system call here and now.
void move_now(Io &io);

struct EngineChoice {
    std::string name;  // "psync", "aio" or "io_uring"
    size_t load_threads = 1, dump_threads = 1;
    size_t under_way = 1;  // of loads, and of dumps; all threads together
    std::string why;       // for the log

    // For each of so many threads.
    size_t depth(size_t threads) const;
};

// What posix_io_engine asks for, on this machine. `direct`: all directories take O_DIRECT.
// Throws where a named engine is not to be had; "auto" takes another.
EngineChoice choose_engine(const std::string &wanted, size_t concurrency, bool direct);
// Throws where the kernel has no room for one more.
std::unique_ptr<Engine> make_engine(const std::string &name, size_t depth);

// NULL and an errno in *error: the kernel refuses; ENOSYS also where it is not built in.
std::unique_ptr<Engine> make_aio(size_t depth, int *error);
std::unique_ptr<Engine> make_uring(size_t depth, int *error);

}  // namespace ucm::posix
