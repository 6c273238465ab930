// SPDX-License-Identifier: MIT
#pragma once

#include <list>
#include <shared_mutex>
#include <string>

#include "log.h"
#include "usrbio.h"

namespace ucm::ds3fs {

// Shared memory of others, such as Cache's segment, that the daemon has mapped too: requests take
// its addresses as they are. Any thread.
class SharedMemory {
  public:
    ~SharedMemory();

    // False: the daemon cannot have it; the log says why, unless it is no shared memory at all.
    bool add(const std::string &mount_point, void *base, uint64_t bytes, const Logger &log);
    // No request uses it any more.
    void remove(void *base, uint64_t bytes);
    // What it lies in until remove, or NULL.
    const Iov *find(const void *memory, uint64_t bytes) const;
    // To a daemon that knows nothing of it.
    void tell_again(const Logger &log) const;

  private:
    struct Range {
        uint8_t *base = nullptr;
        uint64_t bytes = 0;
        Iov iov{};  // of the whole file
        std::string link, path;
    };

    mutable std::shared_mutex mutex_;  // guards ranges_
    std::list<Range> ranges_;
};

}  // namespace ucm::ds3fs
