// SPDX-License-Identifier: MIT
#pragma once

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <string>

namespace ucm {

using Dir = std::unique_ptr<DIR, int (*)(DIR *)>;

// "." and ".." are left out; NULL has none.
template <typename Each>
void for_each_name(DIR *dir, Each each) {
    while (const dirent *entry = dir ? readdir(dir) : nullptr) {
        const std::string name = entry->d_name;
        if (name != "." && name != "..") each(name);
    }
}

// Calls each(descriptor of the folder, name) for its entries; a link is not followed. A network
// file system asks its server what the folder has, instead of answering from what it knew a minute
// ago.
template <typename Each>
void each_in(int parent, const std::string &name, Each each) {
    const int fd = ::openat(parent, name.c_str(),
                            O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return;
    struct statx now;
    ::statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_MTIME, &now);
    Dir dir(fdopendir(fd), closedir);
    if (!dir) ::close(fd);
    for_each_name(dir.get(), [&](const std::string &entry) { each(fd, entry); });
}

// Lower-case digits, so many.
inline bool is_hex(const std::string &name, size_t digits) {
    return name.size() == digits && name.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// All of it: 0 or an errno.
inline int write_whole(int fd, const void *data, size_t bytes, uint64_t offset) {
    const auto *from = static_cast<const uint8_t *>(data);
    while (bytes > 0) {
        const ssize_t put = ::pwrite(fd, from, bytes, off_t(offset));
        if (put < 0 && errno == EINTR) continue;
        if (put <= 0) return put == 0 ? EIO : errno;
        from += put;
        offset += uint64_t(put);
        bytes -= size_t(put);
    }
    return 0;
}

}  // namespace ucm
