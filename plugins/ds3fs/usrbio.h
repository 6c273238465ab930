// SPDX-License-Identifier: MIT
//
// The client library of 3FS, as much of it as is used here. It is opened at run time; its structs
// are declared from their layout, which 3FS keeps stable for users of its C API.
#pragma once

#include <sys/types.h>
#include <time.h>

#include <cstddef>
#include <cstdint>
#include <string>

namespace ucm::ds3fs {

// Memory that the daemon of the mount has mapped too.
struct Iov {
    uint8_t *base;
    void *handle;
    char id[16];
    char mount_point[256];
    size_t size;
    size_t block_size;
    int numa;
};
static_assert(sizeof(Iov) == 312 && offsetof(Iov, handle) == 8 && offsetof(Iov, id) == 16 &&
              offsetof(Iov, mount_point) == 32 && offsetof(Iov, size) == 288 &&
              offsetof(Iov, block_size) == 296 && offsetof(Iov, numa) == 304);

// A ring of requests, for reading or for writing.
struct Ior {
    Iov iov;
    void *handle;
    char mount_point[256];
    bool for_read;
    int io_depth;
    int priority;
    int timeout;
    uint64_t flags;
};
static_assert(sizeof(Ior) == 600 && offsetof(Ior, handle) == 312 &&
              offsetof(Ior, mount_point) == 320 && offsetof(Ior, for_read) == 576 &&
              offsetof(Ior, io_depth) == 580 && offsetof(Ior, priority) == 584 &&
              offsetof(Ior, timeout) == 588 && offsetof(Ior, flags) == 592);

struct Cqe {
    int32_t index;
    int32_t reserved;
    int64_t result;  // bytes, or a negative errno
    const void *userdata;
};
static_assert(sizeof(Cqe) == 24 && offsetof(Cqe, result) == 8 && offsetof(Cqe, userdata) == 16);

constexpr uint64_t kForbidReadHoles = 2;  // of iorcreate4: else a hole reads as zeros
constexpr size_t kMountPointBytes = sizeof Iov::mount_point;

struct Library {
    // Finds it as dlopen(3) does; opened once for each name, and kept. Throws UNAVAILABLE.
    static const Library &open(const std::string &name);
    // Why it must not be opened with this hard limit of open files, or "": it makes a table of that
    // size, and takes the limit as an int.
    static std::string refusal(uint64_t hard_limit);

    // Its length and one more, or -1: the path is on no 3FS. The path must exist.
    int (*extract_mount_point)(char *mount_point, int size, const char *path);
    // These return 0 or a negative errno.
    int (*iovcreate)(Iov *, const char *mount_point, size_t size, size_t block_size, int numa);
    int (*iorcreate4)(Ior *, const char *mount_point, int entries, bool for_read, int io_depth,
                      int timeout, int numa, uint64_t flags);
    void (*iovdestroy)(Iov *);
    void (*iordestroy)(Ior *);
    int (*io_entries)(const Ior *);
    // <= 0: registered; > 0: an errno. EINVAL: this number is registered already.
    int (*reg_fd)(int fd, uint64_t flags);
    void (*dereg_fd)(int fd);
    // Of one ring by one thread. >= 0: it may run from now on; -EAGAIN: the ring is full.
    int (*prep_io)(const Ior *, const Iov *, bool read, void *memory, int fd, size_t offset,
                   uint64_t length, const void *userdata);
    int (*submit_ios)(const Ior *);
    // How many it has filled in, perhaps none. The instant is CLOCK_REALTIME; NULL: for ever.
    int (*wait_for_ios)(const Ior *, Cqe *, int most, int least, const timespec *until);
};

// "6f1c...-...": how the daemon calls an id in <mount point>/3fs-virt/iovs.
std::string id_text(const char (&id)[16]);
std::string iovs_folder(const std::string &mount_point);

}  // namespace ucm::ds3fs
