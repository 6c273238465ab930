// SPDX-License-Identifier: MIT
#include "engine.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "medium.h"

namespace ucm::files {

void move_now(Io &io) {
    const int count = int(io.n);
    do {
        switch (io.way) {
            case Io::Way::kRead:
                io.result = ::preadv(io.fd, io.pieces, count, off_t(io.offset));
                break;
            case Io::Way::kWrite:
                io.result = ::pwritev(io.fd, io.pieces, count, off_t(io.offset));
                break;
            case Io::Way::kSync:
                io.result = ::fdatasync(io.fd);
                break;
        }
        if (io.result < 0) io.result = -errno;
    } while (io.result == -EINTR);
}

int Medium::open(const std::string &path, int flags, ForkClosed &fd) {
    const int number = ::open(path.c_str(), flags, 0600);
    if (number < 0) return errno;
    fd.set(number);
    return 0;
}

}  // namespace ucm::files
