// SPDX-License-Identifier: MIT
#include "descriptors.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "clock.h"

namespace ucm::ds3fs {
namespace {

constexpr int64_t kIdleNs = 10ll * 1000000000;
constexpr size_t kMostSpoilt = 4096;

// Does the name still lead to this file? As sure as an open would be.
bool leads_there(const std::string &path, dev_t device, ino_t inode) {
    struct stat st{};
    return ::lstat(path.c_str(), &st) == 0 && st.st_dev == device && st.st_ino == inode;
}

}  // namespace

Descriptors::~Descriptors() {
    drop_idle();
    for (auto &[number, file] : files_) file.descriptor.release();
    for (const int number : spoilt_) ::close(number);
}

int Descriptors::open(const std::string &path, int flags, ForkClosed &fd) {
    const bool reads = (flags & O_ACCMODE) == O_RDONLY;
    if (reads && lend_idle(path, fd)) return 0;
    int number = ::open(path.c_str(), flags, 0600);
    if (number < 0 && (errno == EMFILE || errno == ENFILE)) {
        drop_idle();
        number = ::open(path.c_str(), flags, 0600);
    }
    if (number < 0) return errno;
    struct stat st{};
    int error = ::fstat(number, &st) == 0 ? 0 : errno;
    const bool file = error == 0 && S_ISREG(st.st_mode);
    if (file) error = register_one(number);
    if (error == EMFILE) {
        drop_idle();
        error = register_one(number);
    }
    if (error != 0) {
        ::close(number);
        if (flags & O_EXCL) ::unlink(path.c_str());
        return error;
    }
    fd.set(number);
    if (!file) return 0;  // whoever opened it will see what it is
    std::lock_guard<std::mutex> hold(mutex_);
    File &made = files_[number];
    made.path = path;
    made.kept = reads && most_idle_ > 0;
    made.device = st.st_dev;
    made.inode = st.st_ino;
    return 0;
}

// What was open when a daemon died can never be deregistered, and its number, and that of the
// library's duplicate, not be registered again. So such numbers are kept from use.
int Descriptors::register_one(int &number) {
    std::vector<int> spoilt;
    int error = library_.reg_fd(number, 0);
    while (error == EINVAL && spoilt.size() < kMostSpoilt) {
        const int other = fcntl(number, F_DUPFD_CLOEXEC, 0);
        if (other < 0) error = errno;
        if (other < 0) break;
        spoilt.push_back(number);
        number = other;
        error = library_.reg_fd(number, 0);
    }
    keep_from_use(spoilt);
    if (error > 0) return error;
    registrations_++;
    registered_++;
    return 0;
}

void Descriptors::keep_from_use(const std::vector<int> &numbers) {
    if (numbers.empty()) return;
    const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    std::lock_guard<std::mutex> hold(mutex_);
    for (const int number : numbers) {
        if (nothing < 0 || ::dup3(nothing, number, O_CLOEXEC) < 0) {
            ::close(number);
            continue;
        }
        spoilt_.push_back(number);
    }
    if (nothing >= 0) ::close(nothing);
}

bool Descriptors::lend_idle(const std::string &path, ForkClosed &fd) {
    for (;;) {
        int number = -1;
        dev_t device = 0;
        ino_t inode = 0;
        {
            std::lock_guard<std::mutex> hold(mutex_);
            const auto found = idle_.find(path);
            if (found == idle_.end()) return false;
            number = found->second;
            idle_.erase(found);
            by_age_.remove(number);
            device = files_.at(number).device;
            inode = files_.at(number).inode;
        }
        const bool same = leads_there(path, device, inode);
        std::unique_lock<std::mutex> hold(mutex_);
        if (same) {
            fd.set(files_.at(number).descriptor.release());
            return true;
        }
        std::list<Files::node_type> gone;
        gone.push_back(files_.extract(number));
        hold.unlock();
        forget(gone);
    }
}

int Descriptors::close(ForkClosed &fd) {
    const int number = fd.get();
    if (number < 0) return 0;
    std::unique_lock<std::mutex> hold(mutex_);
    const auto found = files_.find(number);
    if (found == files_.end()) {
        hold.unlock();
        return fd.close();
    }
    File &file = found->second;
    if (file.held > 0) {
        file.let_go = true;
        file.descriptor.set(fd.release());
        return 0;
    }
    if (!file.kept) {
        const Files::node_type gone = files_.extract(found);
        hold.unlock();
        library_.dereg_fd(number);
        registered_--;
        return fd.close();
    }
    file.descriptor.set(fd.release());
    file.since_ns = monotonic_ns();
    idle_.emplace(file.path, number);
    by_age_.push_back(number);
    const auto excess = take_idle(most_idle_, 0);
    hold.unlock();
    forget(excess);
    return 0;
}

void Descriptors::hold(int fd) {
    std::lock_guard<std::mutex> hold(mutex_);
    const auto found = files_.find(fd);
    if (found != files_.end()) found->second.held++;
}

void Descriptors::unknown(int fd) {
    std::lock_guard<std::mutex> hold(mutex_);
    const auto found = files_.find(fd);
    if (found != files_.end()) found->second.kept = false;
}

void Descriptors::let_go(int fd) {
    std::list<Files::node_type> gone;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        const auto found = files_.find(fd);
        if (found == files_.end() || --found->second.held > 0 || !found->second.let_go) return;
        gone.push_back(files_.extract(found));
    }
    forget(gone);
}

void Descriptors::forget(const std::list<Files::node_type> &gone) {
    for (const Files::node_type &node : gone) {
        library_.dereg_fd(node.key());
        registered_--;
        node.mapped().descriptor.close();
    }
}

// To be called with the mutex held: all but the latest `most`, and those from before.
std::list<Descriptors::Files::node_type> Descriptors::take_idle(size_t most, int64_t before_ns) {
    std::list<Files::node_type> gone;
    while (!by_age_.empty()) {
        const auto found = files_.find(by_age_.front());
        if (by_age_.size() <= most && found->second.since_ns >= before_ns) break;
        const auto same = idle_.equal_range(found->second.path);
        for (auto it = same.first; it != same.second; ++it) {
            if (it->second != found->first) continue;
            idle_.erase(it);
            break;
        }
        by_age_.pop_front();
        gone.push_back(files_.extract(found));
    }
    return gone;
}

void Descriptors::tidy() {
    std::unique_lock<std::mutex> hold(mutex_);
    const auto gone = take_idle(most_idle_, monotonic_ns() - kIdleNs);
    hold.unlock();
    forget(gone);
}

void Descriptors::drop_idle(const std::string &path) {
    std::list<Files::node_type> gone;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        const auto same = idle_.equal_range(path);
        for (auto it = same.first; it != same.second; ++it) {
            by_age_.remove(it->second);
            gone.push_back(files_.extract(it->second));
        }
        idle_.erase(same.first, same.second);
    }
    forget(gone);
}

void Descriptors::drop_idle() {
    std::unique_lock<std::mutex> hold(mutex_);
    const auto gone = take_idle(0, 0);
    hold.unlock();
    forget(gone);
}

}  // namespace ucm::ds3fs
