// SPDX-License-Identifier: MIT
#include "file.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace ucm::posix {
namespace {

uint64_t total(const std::vector<Placed> &run) {
    uint64_t bytes = 0;
    for (const Placed &shard : run) bytes += shard.bytes();
    return bytes;
}

// Copies between a flat buffer and pieces, going on at piece *at, byte *into.
template <typename Copy>
void walk(const std::vector<iovec> &pieces, size_t *at, size_t *into, uint64_t bytes, Copy copy) {
    for (uint64_t done = 0; done < bytes;) {
        const iovec &piece = pieces[*at];
        const size_t part = size_t(std::min<uint64_t>(piece.iov_len - *into, bytes - done));
        copy(static_cast<uint8_t *>(piece.iov_base) + *into, done, part);
        done += part;
        *into += part;
        if (*into == piece.iov_len) {
            ++*at;
            *into = 0;
        }
    }
}

}  // namespace

void Rows::append(std::vector<iovec> &pieces, void *const *addresses, uint64_t length) const {
    for (size_t i = 0; length > 0; i++) {
        const uint64_t part = std::min(length, segments_[i]);
        pieces.push_back({addresses[i], size_t(part)});
        length -= part;
    }
}

bool Rows::aligned(void *const *addresses, uint64_t length) const {
    for (size_t i = 0; length > 0; i++) {
        const uint64_t part = std::min(length, segments_[i]);
        length -= part;
        if (reinterpret_cast<uintptr_t>(addresses[i]) % UCM_ALIGNMENT) return false;
        if (length > 0 && part % UCM_ALIGNMENT) return false;
    }
    return true;
}

uint8_t *Rows::at(void *const *addresses, uint64_t offset) const {
    size_t i = 0;
    while (offset >= segments_[i]) offset -= segments_[i++];
    return static_cast<uint8_t *>(addresses[i]) + offset;
}

uint64_t Rows::checksum(std::vector<iovec> &pieces, const BlockId &id, uint32_t shard,
                        void *const *addresses, uint64_t length) const {
    pieces.clear();
    append(pieces, addresses, length);
    return payload_checksum(id, shard, length, pieces.data(), pieces.size());
}

int File::open(const std::string &path, int flags) {
    close();
    flags |= O_CLOEXEC;
    direct_ = directory_.direct();
    int fd = ::open(path.c_str(), flags | (direct_ ? O_DIRECT : 0), 0600);
    if (fd < 0 && errno == EINVAL && direct_) {
        // Some file systems make the file first and refuse then.
        fd = ::open(path.c_str(), flags & ~O_EXCL, 0600);
        if (fd >= 0) directory_.refuse_direct();
        direct_ = false;
    }
    if (fd < 0) return errno;
    scratch_.fd.set(fd);
    return 0;
}

int File::create(const std::string &path) {
    int error = open(path, O_WRONLY | O_CREAT | O_EXCL);
    if (error != 0) return error;
    error = directory_.access().apply(scratch_.fd.get());
    if (error != 0) {
        close();
        ::unlink(path.c_str());
    }
    return error;
}

bool File::went_buffered() {
    const int flags = fcntl(scratch_.fd.get(), F_GETFL);
    if (!direct_ || flags < 0 || fcntl(scratch_.fd.get(), F_SETFL, flags & ~O_DIRECT) != 0)
        return false;
    direct_ = false;
    directory_.refuse_direct();
    return true;
}

int File::cut(uint64_t bytes) const {
    return ::ftruncate(scratch_.fd.get(), off_t(bytes)) == 0 ? 0 : errno;
}

int File::write(const void *data, uint64_t bytes, uint64_t offset) {
    iovec piece{const_cast<void *>(data), size_t(bytes)};
    uint64_t moved = 0;
    return move(Way::kWrite, &piece, 1, offset, &moved);
}

int File::read(void *data, uint64_t bytes, uint64_t offset, uint64_t *got) {
    iovec piece{data, size_t(bytes)};
    *got = 0;
    const int error = move(Way::kRead, &piece, 1, offset, got);
    return error == kEndOfFile ? 0 : error;
}

// Fills scratch_.pieces; each shard becomes whole pages.
void File::lay_out(const Rows &rows, std::vector<Placed> &run, Way way, bool bounced) {
    auto &pieces = scratch_.pieces;
    pieces.clear();
    const bool whole_pages = direct_ && !bounced;
    size_t number = 0;
    for (Placed &shard : run) {
        const uint64_t length = shard.entry.length;
        shard.page = scratch_.page(number++);
        shard.in_page = whole_pages ? length % UCM_ALIGNMENT : 0;
        const size_t in_page = size_t(shard.in_page), padding = size_t(shard.bytes() - length);
        rows.append(pieces, shard.addresses, length - in_page);
        if (in_page + padding > 0) pieces.push_back({shard.page, in_page + padding});
        if (way == Way::kRead) continue;
        if (in_page > 0)
            std::memcpy(shard.page, rows.at(shard.addresses, length - in_page), in_page);
        std::memset(shard.page + in_page, 0, padding);
    }
}

int File::move(Way way, iovec *pieces, size_t n, uint64_t offset, uint64_t *moved) {
    const int fd = scratch_.fd.get();
    while (n > 0) {
        const int count = int(std::min<size_t>(n, IOV_MAX));
        const ssize_t got = way == Way::kWrite ? ::pwritev(fd, pieces, count, off_t(offset))
                                               : ::preadv(fd, pieces, count, off_t(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EINVAL && went_buffered()) continue;
        if (got < 0) return errno;
        if (got == 0) return way == Way::kWrite ? EIO : kEndOfFile;
        offset += uint64_t(got);
        *moved += uint64_t(got);
        for (size_t left = size_t(got); left > 0;) {
            const size_t part = std::min(left, pieces->iov_len);
            pieces->iov_base = static_cast<uint8_t *>(pieces->iov_base) + part;
            pieces->iov_len -= part;
            left -= part;
            if (pieces->iov_len > 0) break;
            pieces++;
            n--;
        }
    }
    return 0;
}

int File::move_bounced(Way way, uint64_t bytes, uint64_t offset, uint64_t *moved) {
    uint8_t *buffer = scratch_.bounce.base();
    size_t at = 0, into = 0;
    while (bytes > 0) {
        const uint64_t part = std::min<uint64_t>(bytes, scratch_.bounce.bytes());
        if (way == Way::kWrite)
            walk(scratch_.pieces, &at, &into, part,
                 [&](uint8_t *piece, uint64_t from, size_t size) {
                     std::memcpy(buffer + from, piece, size);
                 });
        iovec whole{buffer, size_t(part)};
        const int error = move(way, &whole, 1, offset, moved);
        if (error != 0) return error;
        if (way == Way::kRead)
            walk(scratch_.pieces, &at, &into, part,
                 [&](uint8_t *piece, uint64_t from, size_t size) {
                     std::memcpy(piece, buffer + from, size);
                 });
        bytes -= part;
        offset += part;
    }
    return 0;
}

int File::write_run(const Rows &rows, std::vector<Placed> &run, uint64_t *moved) {
    *moved = 0;
    const bool bounced = bounces(rows, run.front());
    lay_out(rows, run, Way::kWrite, bounced);
    const uint64_t offset = run.front().entry.offset;
    if (bounced) return move_bounced(Way::kWrite, total(run), offset, moved);
    return move(Way::kWrite, scratch_.pieces.data(), scratch_.pieces.size(), offset, moved);
}

int File::read_run(const Rows &rows, std::vector<Placed> &run) {
    uint64_t moved = 0;
    const bool bounced = bounces(rows, run.front());
    lay_out(rows, run, Way::kRead, bounced);
    const uint64_t offset = run.front().entry.offset;
    const int error =
        bounced ? move_bounced(Way::kRead, total(run), offset, &moved)
                : move(Way::kRead, scratch_.pieces.data(), scratch_.pieces.size(), offset, &moved);
    if (error != 0) return error;
    for (const Placed &shard : run)
        if (shard.in_page > 0)
            std::memcpy(rows.at(shard.addresses, shard.entry.length - shard.in_page), shard.page,
                        size_t(shard.in_page));
    return 0;
}

}  // namespace ucm::posix
