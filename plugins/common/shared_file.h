// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "access.h"
#include "writer_lock.h"

namespace ucm {

// A small file of a storage directory that writers change in turn, under an open-file-description
// lock. Such a lock does not exclude users of one descriptor from each other: whoever owns this has
// a mutex around lock..unlock.
class SharedFile {
  public:
    SharedFile(std::string path, WriterFolder &writer, const Access &access)
        : path_(std::move(path)), writer_(writer), access_(access) {}

    const std::string &path() const { return path_; }
    int fd() const { return fd_.get(); }

    // Both return 0 or an errno; EAGAIN: another has the lock. Once locked, the path leads to this
    // file; one that is missing is made, of zeros.
    int open(uint64_t bytes);
    int try_lock(uint64_t bytes);
    // Until give_up_ns.
    int lock(uint64_t bytes, int64_t give_up_ns);
    void unlock() { unlock_file(fd()); }

    // Exactly so many bytes: 0 or an errno; EIO where the file is shorter.
    int read(void *data, size_t bytes, uint64_t offset) const;
    int write(const void *data, size_t bytes, uint64_t offset) const;

  private:
    int make(uint64_t bytes);

    const std::string path_;
    WriterFolder &writer_;
    const Access &access_;
    ForkClosed fd_;
};

}  // namespace ucm
