// SPDX-License-Identifier: MIT
#include "memory.h"

#include <fcntl.h>
#include <inttypes.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>

#include "block_file.h"

namespace ucm::ds3fs {
namespace {

// Where in which file of /dev/shm the memory is; "" where it is not, or not in one piece.
std::string file_of(const uint8_t *base, uint64_t bytes, uint64_t *offset) {
    std::ifstream maps("/proc/self/maps");
    const uint64_t first = reinterpret_cast<uint64_t>(base), end = first + bytes;
    for (std::string line; std::getline(maps, line);) {
        uint64_t from = 0, to = 0, at = 0;
        char access[5] = "";
        int name = 0;
        if (sscanf(line.c_str(), "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %*s %*s %n", &from, &to,
                   access, &at, &name) < 4 ||
            first < from || first >= to)
            continue;
        const std::string path = line.substr(size_t(name));
        if (end > to || access[3] != 's' || path.compare(0, 9, "/dev/shm/") != 0) return "";
        *offset = at + (first - from);
        return path;
    }
    return "";
}

}  // namespace

SharedMemory::~SharedMemory() {
    for (const Range &range : ranges_) ::unlink(range.link.c_str());
}

bool SharedMemory::add(const std::string &mount_point, void *base, uint64_t bytes,
                       const Logger &log) {
    Range range;
    range.base = static_cast<uint8_t *>(base);
    range.bytes = bytes;
    uint64_t offset = 0;
    range.path = file_of(range.base, bytes, &offset);
    if (range.path.empty()) return false;
    const int fd = ::open(range.path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    struct stat st{};
    int error = fd < 0 || ::fstat(fd, &st) != 0 ? errno : 0;
    // The daemon pins all of the file: what of it has no memory yet gets it now, or never.
    if (error == 0) error = ::posix_fallocate(fd, 0, st.st_size);
    if (fd >= 0) ::close(fd);
    if (error == 0 && getrandom(range.iov.id, sizeof range.iov.id, 0) != sizeof range.iov.id)
        error = EIO;
    range.link = iovs_folder(mount_point) + "/" + id_text(range.iov.id);
    if (error == 0 && ::symlink(range.path.c_str(), range.link.c_str()) != 0) error = errno;
    if (error != 0) {
        log.write(UCM_LOG_WARN, "ds3fs_zero_copy: 3FS cannot have %s (%s); it is copied instead",
                  range.path.c_str(), errno_text(error).c_str());
        return false;
    }
    range.iov.base = range.base - offset;
    range.iov.size = size_t(st.st_size);
    range.iov.numa = -1;
    std::strncpy(range.iov.mount_point, mount_point.c_str(), sizeof range.iov.mount_point - 1);
    std::lock_guard<std::shared_mutex> hold(mutex_);
    ranges_.push_back(std::move(range));
    return true;
}

void SharedMemory::remove(void *base, uint64_t bytes) {
    std::string link;
    {
        std::lock_guard<std::shared_mutex> hold(mutex_);
        for (auto range = ranges_.begin(); range != ranges_.end(); ++range) {
            if (range->base != base || range->bytes != bytes) continue;
            link = range->link;
            ranges_.erase(range);
            break;
        }
    }
    if (!link.empty()) ::unlink(link.c_str());
}

const Iov *SharedMemory::find(const void *memory, uint64_t bytes) const {
    const auto *at = static_cast<const uint8_t *>(memory);
    std::shared_lock<std::shared_mutex> hold(mutex_);
    for (const Range &range : ranges_)
        if (at >= range.base && bytes <= range.bytes &&
            uint64_t(at - range.base) <= range.bytes - bytes)
            return &range.iov;
    return nullptr;
}

void SharedMemory::tell_again(const Logger &log) const {
    std::shared_lock<std::shared_mutex> hold(mutex_);
    for (const Range &range : ranges_)
        if (::symlink(range.path.c_str(), range.link.c_str()) != 0 && errno != EEXIST)
            log.write(UCM_LOG_WARN, "3FS cannot have %s: %s", range.path.c_str(),
                      errno_text(errno).c_str());
}

}  // namespace ucm::ds3fs
