// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "engine.h"
#include "writer_lock.h"

namespace ucm::files {

// What a store of block files stands on: how bytes move, and what is true of files there. Any
// thread, unless said otherwise.
class Medium {
  public:
    virtual ~Medium() = default;

    // Once, before the others, when the directories are open; `direct`: all of them take O_DIRECT.
    // `header_bytes`: of the blocks. Throws. Returns how bytes will move, for the log.
    virtual std::string start(bool direct, uint64_t header_bytes) = 0;
    virtual size_t load_threads() const = 0;
    virtual size_t dump_threads() const = 0;
    // For one of these threads; throws.
    virtual std::unique_ptr<Engine> engine(bool loads) = 0;

    // Both return 0 or an errno. A descriptor that is opened here is closed here.
    virtual int open(const std::string &path, int flags, ForkClosed &fd);
    virtual int close(ForkClosed &fd) { return fd.close(); }

    // Until fsync the size of a file that was written is another one to stat, here and on other
    // hosts; and a file that another host removed can be opened for a while.
    virtual bool sizes_lag() const { return false; }
    // True: transfers from and to this memory need no buffer. On release every one has ended.
    virtual bool take_memory(void *, uint64_t) { return true; }
    virtual void release_memory(void *, uint64_t) {}
    // The block's file at this path is deleted, or another one: room for it is wanted back soon.
    virtual void deleted(const std::string &) {}
    // The file system is.
    virtual void full() {}
    // Small chores, every 20 ms or so.
    virtual void tidy() {}
    // Its own metrics: `most` values at the most.
    virtual void count(uint64_t *, size_t) const {}
};

}  // namespace ucm::files
