// SPDX-License-Identifier: MIT
#include "hotness.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>

#include "clock.h"

namespace ucm {
namespace {

constexpr size_t kWaiting = 65536;  // as many as a store's queue holds shards
constexpr int64_t kHour = 3600ll * 1000000000;

timespec time_of(int64_t ns) {
    return {ns / 1000000000, ns % 1000000000};
}

}  // namespace

int64_t modified_ns(const struct stat &st) {
    return int64_t(st.st_mtim.tv_sec) * 1000000000 + st.st_mtim.tv_nsec;
}

void Hotness::used(const std::string &path, const struct stat &file) {
    const LedgerPage page = quota_.seen();
    const int64_t every_ns = page.eviction_age_ns ? page.eviction_age_ns / 8
                             // What the ledger says is not known from the start.
                             : page.limit || quota_.options().capacity ? 0
                                                                       : kHour;
    const int64_t now_ns = std::max(clock_ns(CLOCK_REALTIME), page.clock_ns);
    if (now_ns - modified_ns(file) >= every_ns) touched(path);
}

void Hotness::touched(const std::string &path) {
    std::lock_guard<std::mutex> hold(mutex_);
    if (waiting_.size() < kWaiting) waiting_.push_back(path);
}

void Hotness::stamp_new(int fd) {
    if (!quota_.clock_is_behind()) return;
    const timespec times[2] = {{0, UTIME_OMIT}, time_of(quota_.stamp_ns())};
    ::futimens(fd, times);
}

void Hotness::tick() {
    std::vector<std::string> paths;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        paths.swap(waiting_);
    }
    // In the order of use; of a block that came often the last one counts.
    std::unordered_map<std::string, size_t> last;
    for (size_t i = 0; i < paths.size(); i++) last[paths[i]] = i;
    for (size_t i = 0; i < paths.size(); i++)
        if (last[paths[i]] == i) stamp(paths[i]);
}

void Hotness::stamp(const std::string &path) const {
    timespec times[2] = {{0, UTIME_OMIT}, time_of(quota_.stamp_ns())};
    if (::utimensat(AT_FDCWD, path.c_str(), times, 0) == 0 || errno != EPERM) return;
    // Another user's file takes no other time than now's, which must not be earlier than its own.
    struct stat st{};
    if (::stat(path.c_str(), &st) != 0 || modified_ns(st) > clock_ns(CLOCK_REALTIME)) return;
    times[0] = times[1] = {0, UTIME_NOW};
    ::utimensat(AT_FDCWD, path.c_str(), times, 0);
}

}  // namespace ucm
