// SPDX-License-Identifier: MIT
#include "medium.h"

#include <stdlib.h>
#include <sys/resource.h>

#include <algorithm>

#include "files/file.h"

namespace ucm::ds3fs {
namespace {

constexpr rlim_t kOtherFiles = 64;
constexpr rlim_t kMostIdle = 1024, kIdlePerRequest = 16;

rlim_t soft_limit() {
    rlimit limit{};
    return getrlimit(RLIMIT_NOFILE, &limit) == 0 ? limit.rlim_cur : 1024;
}

// A registered file takes two descriptors.
size_t most_idle(size_t requests) {
    return size_t(std::min({soft_limit() / 16, kMostIdle, kIdlePerRequest * requests}));
}

}  // namespace

UsrbioMedium::UsrbioMedium(const Settings &settings, const ucm_value &directories,
                           const Logger &log)
    : settings_(settings),
      shared_(Library::open(settings.library), log, most_idle(settings.requests)) {
    shared_.numa = settings.numa;
    shared_.request_ns = settings.request_ms * 1000000;
    const rlim_t needed = 4 * rlim_t(settings.requests) + kOtherFiles;
    if (soft_limit() < needed)
        throw Error(UCM_UNAVAILABLE,
                    "stream_number: " + std::to_string(settings.requests) +
                        " loads and as many dumps may need " + std::to_string(needed) +
                        " descriptors, and the limit of open files (RLIMIT_NOFILE) is " +
                        std::to_string(soft_limit()) +
                        "; raise it with ulimit -n, or lower "
                        "stream_number");
    find_mount(directories);
}

void UsrbioMedium::find_mount(const ucm_value &directories) {
    std::string first;
    for (size_t i = 0; i < directories.count; i++) {
        const std::string given = directories.strings[i];
        char *real = realpath(given.c_str(), nullptr);
        if (!real) continue;  // whoever opens it says why
        const std::string path = real;
        ::free(real);
        char point[kMountPointBytes] = "";
        const int n = shared_.library.extract_mount_point(point, sizeof point, path.c_str());
        if (n <= 0)
            throw Error(UCM_UNAVAILABLE,
                        "storage_backends: " + given +
                            " is on no mount of 3FS whose daemon runs; mount it, or use Posix");
        if (size_t(n) > sizeof point)
            throw Error(UCM_UNAVAILABLE, "storage_backends: the mount point of " + given + " has " +
                                             std::to_string(n - 1) +
                                             " characters; 3FS takes 255 at the most");
        if (shared_.mount_point.empty()) {
            shared_.mount_point = point;
            first = given;
        } else if (shared_.mount_point != point) {
            throw Error(UCM_INVALID, "storage_backends: " + first + " is on " +
                                         shared_.mount_point + ", and " + given + " is on " +
                                         point + "; name directories of one mount");
        }
    }
}

std::string UsrbioMedium::start(bool, uint64_t header_bytes) {
    const size_t each = std::min(settings_.ring_entries, settings_.requests);
    threads_ = (settings_.requests + each - 1) / each;
    slot_bytes_ = files::Scratch::bytes(header_bytes);
    const uint64_t bytes = 2 * threads_ * each * slot_bytes_;
    return "3FS at " + shared_.mount_point + ": " + std::to_string(threads_) +
           " threads for loads and as many for dumps, " + std::to_string(each) +
           " requests under way at once for each, in " + std::to_string(bytes >> 20) +
           " MiB of registered memory";
}

std::unique_ptr<files::Engine> UsrbioMedium::engine(bool loads) {
    const size_t each = std::min(settings_.ring_entries, settings_.requests);
    return std::make_unique<UsrbioEngine>(shared_, each, slot_bytes_, !loads);
}

void UsrbioMedium::count(uint64_t *values, size_t most) const {
    const uint64_t all[kMediumMetrics] = {shared_.requests,
                                          shared_.running,
                                          shared_.stuck,
                                          shared_.given_up,
                                          shared_.submits,
                                          shared_.bytes,
                                          shared_.descriptors.registrations(),
                                          shared_.descriptors.registered()};
    std::copy_n(all, std::min<size_t>(most, kMediumMetrics), values);
}

}  // namespace ucm::ds3fs
