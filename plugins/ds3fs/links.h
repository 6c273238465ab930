// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "writer_lock.h"

namespace ucm::ds3fs {

// A name that a daemon shows of what it was told, in MOUNT/3fs-virt/iovs: gone with that daemon.
class Link {
  public:
    Link(std::shared_ptr<const ForkClosed> folder, const std::string &where,
         const std::string &name)
        : folder_(std::move(folder)), where_(where), name_(name) {}

    // Something is late: it is worth a look.
    void doubt() { doubted_ = true; }
    // By so many looks, a second apart, its daemon is gone. At the first nothing may come any more;
    // from the second on nothing moves: a process ends a while after its mount does.
    int gone() const { return gone_; }
    // Another daemon serves the mount.
    bool replaced() const { return replaced_; }

    // These ask the daemon, and hang if it does.
    bool there() const;
    bool missing() const;
    void look(int64_t now_ns);
    bool due(int64_t now_ns) const { return doubted_ && now_ns >= due_ns_; }

  private:
    const std::shared_ptr<const ForkClosed> folder_;  // of the daemon, whoever is mounted there now
    const std::string where_, name_;
    std::atomic<bool> doubted_{false}, replaced_{false};
    std::atomic<int> gone_{0};
    int64_t due_ns_ = 0;  // of who looks: when to do it again
};

// All links of a store. One thread looks for the others, since a daemon that hangs may hold it up.
class Links {
  public:
    std::shared_ptr<Link> add(const std::string &folder, const std::string &name);
    // To be called often; looks at a link that is doubted once a second.
    void look();

  private:
    std::vector<std::shared_ptr<Link>> living();

    std::mutex mutex_;  // guards all below; never held during a system call on the mount
    std::shared_ptr<const ForkClosed> folder_;  // of the latest link
    std::vector<std::weak_ptr<Link>> links_;
};

}  // namespace ucm::ds3fs
