// SPDX-License-Identifier: MIT
#include "file.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace ucm::posix {
namespace {

// Goes over pieces from piece *at, byte *into on.
template <typename Each>
void walk(const std::vector<iovec> &pieces, size_t *at, size_t *into, uint64_t bytes, Each each) {
    for (uint64_t done = 0; done < bytes;) {
        const iovec &piece = pieces[*at];
        const size_t part = size_t(std::min<uint64_t>(piece.iov_len - *into, bytes - done));
        each(static_cast<uint8_t *>(piece.iov_base) + *into, done, part);
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

template <typename Each>
void Rows::each_part(void *const *addresses, uint64_t offset, uint64_t bytes, Each each) const {
    size_t i = 0;
    while (offset >= segments_[i]) offset -= segments_[i++];
    for (uint64_t done = 0; done < bytes; i++, offset = 0) {
        const uint64_t part = std::min(bytes - done, segments_[i] - offset);
        each(static_cast<uint8_t *>(addresses[i]) + offset, done, size_t(part));
        done += part;
    }
}

void Rows::gather(void *const *addresses, uint64_t offset, uint64_t bytes, uint8_t *to) const {
    each_part(addresses, offset, bytes, [&](const uint8_t *memory, uint64_t before, size_t part) {
        std::memcpy(to + before, memory, part);
    });
}

void Rows::scatter(const uint8_t *from, uint64_t bytes, void *const *addresses,
                   uint64_t offset) const {
    each_part(addresses, offset, bytes, [&](uint8_t *memory, uint64_t before, size_t part) {
        std::memcpy(memory, from + before, part);
    });
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
    // What is left of a request that was cut short may be no whole pages; that says nothing.
    if (offset_ % UCM_ALIGNMENT == 0 && left_ % UCM_ALIGNMENT == 0) directory_.refuse_direct();
    return true;
}

int File::cut(uint64_t bytes) const {
    return ::ftruncate(scratch_.fd.get(), off_t(bytes)) == 0 ? 0 : errno;
}

int File::read(void *data, uint64_t bytes, uint64_t offset, uint64_t *got) {
    scratch_.pieces.assign(1, {data, size_t(bytes)});
    way_ = Io::Way::kRead;
    bounced_ = false;
    error_ = 0;
    offset_ = offset;
    left_ = bytes;
    moved_ = piece_ = 0;
    move();
    *got = moved_;
    return error_ == kEndOfFile ? 0 : error_;
}

void File::prepare_write(const Rows &rows, std::vector<Placed> &run, uint64_t header) {
    prepare(Io::Way::kWrite, rows, run, header);
}

void File::prepare_read(const Rows &rows, std::vector<Placed> &run, uint64_t header) {
    prepare(Io::Way::kRead, rows, run, header);
}

void File::prepare(Io::Way way, const Rows &rows, std::vector<Placed> &run, uint64_t header) {
    way_ = way;
    bounced_ = !run.empty() && bounces(rows, run.front());
    auto &pieces = scratch_.pieces;
    pieces.clear();
    if (header > 0) pieces.push_back({scratch_.header.base(), size_t(header)});
    lay_out(rows, run);
    error_ = 0;
    moved_ = piece_ = memory_ = into_ = chunk_ = begun_ = 0;
    left_ = 0;
    for (const iovec &piece : pieces) left_ += piece.iov_len;
    offset_ = header > 0 || run.empty() ? 0 : run.front().entry.offset;
    if (bounced_) std::swap(scratch_.pieces, scratch_.memory);
    // Where there is none, the write says so again.
    if (way == Io::Way::kWrite && direct_ && scratch_.makes_room && !run.empty())
        ::fallocate(scratch_.fd.get(), 0, off_t(offset_), off_t(left_));
}

// Each shard becomes whole pages; its end that fills none goes through a page of its own.
void File::lay_out(const Rows &rows, std::vector<Placed> &run) {
    auto &pieces = scratch_.pieces;
    size_t number = 0;
    for (Placed &shard : run) {
        const uint64_t length = shard.entry.length;
        shard.page = scratch_.page(number++);
        shard.in_page = length % UCM_ALIGNMENT;
        const size_t in_page = size_t(shard.in_page), padding = size_t(shard.bytes() - length);
        rows.append(pieces, shard.addresses, length - in_page);
        if (in_page + padding > 0) pieces.push_back({shard.page, in_page + padding});
        if (way_ == Io::Way::kRead) continue;
        if (in_page > 0) rows.gather(shard.addresses, length - in_page, in_page, shard.page);
        std::memset(shard.page + in_page, 0, padding);
    }
}

void File::fill_bounce() {
    chunk_ = std::min<uint64_t>(left_, scratch_.bounce.bytes());
    begun_ = 0;
    uint8_t *buffer = scratch_.bounce.base();
    if (way_ == Io::Way::kWrite)
        walk(scratch_.memory, &memory_, &into_, chunk_,
             [&](const uint8_t *piece, uint64_t from, size_t size) {
                 std::memcpy(buffer + from, piece, size);
             });
    scratch_.pieces.assign(1, {buffer, size_t(chunk_)});
    piece_ = 0;
}

void File::empty_bounce() {
    const uint8_t *buffer = scratch_.bounce.base();
    if (way_ == Io::Way::kRead)
        walk(scratch_.memory, &memory_, &into_, begun_,
             [&](uint8_t *piece, uint64_t from, size_t size) {
                 std::memcpy(piece, buffer + from, size);
             });
    chunk_ = begun_ = 0;
}

bool File::next(Io &io) {
    if (error_ != 0 || left_ == 0) return false;
    if (bounced_ && chunk_ == 0) fill_bounce();
    io.way = way_;
    io.fd = scratch_.fd.get();
    io.pieces = scratch_.pieces.data() + piece_;
    io.n = unsigned(std::min<size_t>(scratch_.pieces.size() - piece_, IOV_MAX));
    io.offset = offset_;
    return true;
}

void File::took(const Io &io) {
    const int64_t got = io.result;
    if (got == -EINTR || got == -EAGAIN) return;
    if (got == -EINVAL && went_buffered()) return;
    if (got < 0)
        error_ = int(-got);
    else if (got == 0)
        error_ = way_ == Io::Way::kWrite ? EIO : kEndOfFile;
    else
        advance(uint64_t(got));
    if (bounced_ && (error_ != 0 || begun_ == chunk_)) empty_bounce();
}

void File::advance(uint64_t bytes) {
    offset_ += bytes;
    moved_ += bytes;
    left_ -= bytes;
    begun_ += bytes;
    while (bytes > 0) {
        iovec &piece = scratch_.pieces[piece_];
        const size_t part = size_t(std::min<uint64_t>(bytes, piece.iov_len));
        piece.iov_base = static_cast<uint8_t *>(piece.iov_base) + part;
        piece.iov_len -= part;
        bytes -= part;
        if (piece.iov_len == 0) piece_++;
    }
}

void File::move() {
    Io io;
    while (next(io)) {
        move_now(io);
        took(io);
    }
}

void File::fill_in(const Rows &rows, const std::vector<Placed> &run) {
    for (const Placed &shard : run)
        if (shard.in_page > 0)
            rows.scatter(shard.page, shard.in_page, shard.addresses,
                         shard.entry.length - shard.in_page);
}

}  // namespace ucm::posix
