// SPDX-License-Identifier: MIT
#include "shared_file.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>

#include "clock.h"
#include "files.h"

namespace ucm {
namespace {

constexpr int64_t kTryEveryNs = 1000000;

// Puts the file where there is none yet; EEXIST: there is one.
int put_in_place(const std::string &aside, const std::string &path) {
    if (::renameat2(AT_FDCWD, aside.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0)
        return 0;
    if (errno != EINVAL && errno != ENOSYS) return errno;
    return ::link(aside.c_str(), path.c_str()) == 0 ? 0 : errno;
}

}  // namespace

int SharedFile::open(uint64_t bytes) {
    for (int turn = 0; turn < 10; turn++) {
        const int fd = ::open(path_.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
        if (fd >= 0) {
            fd_.set(fd);
            return 0;
        }
        if (errno != ENOENT) return errno;
        const int error = make(bytes);
        if (error != 0 && error != EEXIST) return error;
    }
    return ENOENT;
}

int SharedFile::make(uint64_t bytes) {
    int fd = -1;
    std::string aside;
    for (int turn = 0; fd < 0 && turn < 2; turn++) {
        aside = writer_.temporary("shared");
        fd = ::open(aside.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        if (fd >= 0 || errno != ENOENT) break;
        try {
            writer_.renew();
        } catch (const Error &error) {
            return error.os_errno() ? error.os_errno() : EIO;
        }
    }
    if (fd < 0) return errno;
    int error = access_.apply(fd);
    // Later writes must not fail for want of room.
    if (error == 0 && bytes > 0) error = ::posix_fallocate(fd, 0, off_t(bytes));
    // Closed first: NFS keeps an open file under another name instead of deleting it.
    if (::close(fd) != 0 && error == 0) error = errno;
    if (error == 0) error = put_in_place(aside, path_);
    ::unlink(aside.c_str());
    return error;
}

int SharedFile::try_lock(uint64_t bytes) {
    for (int turn = 0; turn < 10; turn++) {
        if (fd() < 0)
            if (const int error = open(bytes); error != 0) return error;
        const int error = lock_file(fd());
        // ESTALE: a network file system's word for a file that is gone.
        if (error != 0 && error != ESTALE) return error;
        if (error == 0 && leads_to(path_, fd())) return 0;
        fd_.close();
    }
    return ESTALE;
}

int SharedFile::lock(uint64_t bytes, int64_t give_up_ns) {
    for (;;) {
        const int error = try_lock(bytes);
        if (error != EAGAIN || monotonic_ns() >= give_up_ns) return error;
        const timespec pause{0, kTryEveryNs};
        nanosleep(&pause, nullptr);
    }
}

int SharedFile::read(void *data, size_t bytes, uint64_t offset) const {
    for (;;) {
        const ssize_t got = ::pread(fd(), data, bytes, off_t(offset));
        if (got == ssize_t(bytes)) return 0;
        if (got >= 0) return EIO;
        if (errno != EINTR) return errno;
    }
}

int SharedFile::write(const void *data, size_t bytes, uint64_t offset) const {
    return write_whole(fd(), data, bytes, offset);
}

}  // namespace ucm
