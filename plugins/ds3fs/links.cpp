// SPDX-License-Identifier: MIT
#include "links.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <cerrno>

#include "clock.h"

namespace ucm::ds3fs {

bool Link::there() const {
    struct stat st{};
    return ::fstatat(folder_->get(), name_.c_str(), &st, AT_SYMLINK_NOFOLLOW) == 0;
}

bool Link::missing() const {
    return !there() && (errno == ENOENT || errno == ENOTCONN);
}

void Link::look(int64_t now_ns) {
    struct stat st{};
    due_ns_ = now_ns + kSecond;
    const bool gone = missing();
    replaced_ = gone && ::lstat(where_.c_str(), &st) == 0;
    gone_ = gone ? gone_ + 1 : 0;
    doubted_ = gone;
}

std::shared_ptr<Link> Links::add(const std::string &folder, const std::string &name) {
    std::shared_ptr<const ForkClosed> known;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        known = folder_;
    }
    auto link = std::make_shared<Link>(known, folder, name);
    if (!known || !link->there()) {
        auto opened = std::make_shared<ForkClosed>();
        opened->set(::open(folder.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
        link = std::make_shared<Link>(opened, folder, name);
        known = opened;
    }
    std::lock_guard<std::mutex> hold(mutex_);
    folder_ = known;
    links_.push_back(link);
    return link;
}

std::vector<std::shared_ptr<Link>> Links::living() {
    std::lock_guard<std::mutex> hold(mutex_);
    std::vector<std::shared_ptr<Link>> found;
    std::vector<std::weak_ptr<Link>> rest;
    for (const auto &one : links_)
        if (auto link = one.lock()) {
            found.push_back(std::move(link));
            rest.push_back(one);
        }
    links_.swap(rest);
    return found;
}

void Links::look() {
    const auto links = living();
    const int64_t now = monotonic_ns();
    bool gone = false;
    std::vector<Link *> rest;
    for (const auto &link : links) {
        if (!link->due(now)) {
            rest.push_back(link.get());
            continue;
        }
        link->look(now);
        gone = gone || link->gone() > 0;
    }
    // All have one daemon: what one finds out the others know at once, so that no thread fails what
    // others do well.
    for (Link *link : rest)
        if (gone) link->look(now);
}

}  // namespace ucm::ds3fs
