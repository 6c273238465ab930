// SPDX-License-Identifier: MIT
//
// Ways to move bytes between memory and open files: one interface, an engine for each thread.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace ucm::files {

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

// Runs the system call here and now.
void move_now(Io &io);

// Used by one thread.
class Engine {
  public:
    virtual ~Engine() = default;
    // Most requests at once; at 1 start returns when the bytes have moved.
    virtual size_t depth() const = 0;
    // Work comes, and nothing is under way: the last moment to change what memory() answers.
    virtual void begin() {}
    // Hands it to the kernel now, or with others at the next finish.
    virtual void start(Io &io) = 0;
    // One that is finished, or NULL. With `wait`, while some run, it comes back with one; one that
    // has nothing to poll may come back with NULL after a millisecond.
    virtual Io *finish(bool wait) = 0;
    // Becomes readable when a request that runs is finished; -1: nothing tells.
    virtual int fd() const { return -1; }
    // What was started goes to the kernel. False: not all of it; a finish that waits tries again.
    virtual bool submit() { return true; }
    // Starts it and comes back when it is finished, whatever else runs.
    virtual void move(Io &io) { move_now(io); }
    // What all its requests of this slot go through; NULL: any memory will do.
    virtual uint8_t *memory(size_t) const { return nullptr; }
    // A request of the slot was given back with ETIME and may still move bytes: until that is over
    // its memory rests, and every other request is given back the same way.
    virtual bool stuck(size_t) const { return false; }
};

}  // namespace ucm::files
