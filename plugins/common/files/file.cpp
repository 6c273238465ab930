// SPDX-License-Identifier: MIT
#include "file.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "byte_kernels.h"

namespace ucm::files {
namespace {

// So much is added to a checksum and copied at a time: the copy finds it in the cache, and fetches
// the next meanwhile.
constexpr size_t kStepBytes = 4u << 10;

const void *end_of(const iovec &piece) {
    return static_cast<const uint8_t *>(piece.iov_base) + piece.iov_len;
}

void copy_and_add(uint8_t *to, const uint8_t *from, size_t n, PayloadChecksum *sum) {
    for (size_t done = 0; done < n; done += kStepBytes) {
        const size_t step = std::min(kStepBytes, n - done);
        if (sum) sum->add(from + done, step);
        byte_kernels().copy(to + done, from + done, step);
    }
}

}  // namespace

bool all_zero(const uint8_t *bytes, size_t n) {
    return n == 0 || (bytes[0] == 0 && std::memcmp(bytes, bytes + 1, n - 1) == 0);
}

void DirectMemory::add(const void *base, uint64_t bytes) {
    std::lock_guard<std::shared_mutex> hold(mutex_);
    ranges_.emplace(reinterpret_cast<uintptr_t>(base), bytes);
}

bool DirectMemory::remove(const void *base, uint64_t bytes) {
    std::lock_guard<std::shared_mutex> hold(mutex_);
    const auto same = ranges_.equal_range(reinterpret_cast<uintptr_t>(base));
    for (auto range = same.first; range != same.second; ++range) {
        if (range->second != bytes) continue;
        ranges_.erase(range);
        return true;
    }
    return false;
}

bool DirectMemory::covers(const void *memory, uint64_t bytes) const {
    if (all_) return true;
    const uintptr_t at = reinterpret_cast<uintptr_t>(memory);
    std::shared_lock<std::shared_mutex> hold(mutex_);
    auto range = ranges_.upper_bound(at);
    if (range == ranges_.begin()) return false;
    --range;
    return bytes <= range->second && at - range->first <= range->second - bytes;
}

void Rows::append(std::vector<iovec> &pieces, void *const *addresses, uint64_t length) const {
    for (size_t i = 0; length > 0; i++) {
        const uint64_t part = std::min(length, segments_[i]);
        // Neighbours, as slots of one frame are, become one: the kernel looks at each by itself.
        if (!pieces.empty() && end_of(pieces.back()) == addresses[i])
            pieces.back().iov_len += part;
        else
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

bool Rows::all_in(const DirectMemory &memory, void *const *addresses, uint64_t length) const {
    for (size_t i = 0; length > 0; i++) {
        const uint64_t part = std::min(length, segments_[i]);
        if (!memory.covers(addresses[i], part)) return false;
        length -= part;
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

void Rows::gather(void *const *addresses, uint64_t offset, uint64_t bytes, uint8_t *to,
                  PayloadChecksum *sum) const {
    each_part(addresses, offset, bytes, [&](const uint8_t *memory, uint64_t before, size_t part) {
        copy_and_add(to + before, memory, part, sum);
    });
    byte_kernels().settle();
}

void Rows::scatter(const uint8_t *from, uint64_t bytes, void *const *addresses, uint64_t offset,
                   PayloadChecksum *sum) const {
    each_part(addresses, offset, bytes, [&](uint8_t *memory, uint64_t before, size_t part) {
        copy_and_add(memory, from + before, part, sum);
    });
    byte_kernels().settle();
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
    Medium &medium = scratch_.medium;
    int error = medium.open(path, flags | (direct_ ? O_DIRECT : 0), scratch_.fd);
    if (error == EINVAL && direct_) {
        // Some file systems make the file first and refuse then.
        error = medium.open(path, flags & ~O_EXCL, scratch_.fd);
        if (error == 0) directory_.refuse_direct();
        direct_ = false;
    }
    return error;
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

bool File::gone() const {
    struct statx now{};
    const int fd = scratch_.fd.get();
    if (::statx(fd, "", AT_EMPTY_PATH | AT_STATX_FORCE_SYNC, STATX_NLINK, &now) != 0)
        return status_of_errno(errno, UCM_NOT_FOUND) == UCM_NOT_FOUND;
    return now.stx_nlink == 0;
}

int File::read(void *data, uint64_t bytes, uint64_t offset, uint64_t *got) {
    scratch_.pieces.assign(1, {data, size_t(bytes)});
    way_ = Io::Way::kRead;
    buffered_ = false;
    error_ = 0;
    offset_ = offset;
    left_ = bytes;
    moved_ = piece_ = 0;
    move();
    *got = moved_;
    return error_ == kEndOfFile ? 0 : error_;
}

void File::prepare_write(const Rows &rows, const BlockId &id, std::vector<Placed> &run,
                         uint64_t header) {
    prepare(Io::Way::kWrite, rows, id, run, header);
}

void File::prepare_read(const Rows &rows, const BlockId &id, std::vector<Placed> &run,
                        uint64_t header) {
    prepare(Io::Way::kRead, rows, id, run, header);
}

void File::prepare(Io::Way way, const Rows &rows, const BlockId &id, std::vector<Placed> &run,
                   uint64_t header) {
    way_ = way;
    rows_ = &rows;
    id_ = id;
    run_ = &run;
    buffered_ = !run.empty() && run.front().buffered;
    error_ = 0;
    moved_ = piece_ = chunk_ = chunk_left_ = shard_ = in_shard_ = 0;
    offset_ = header > 0 || run.empty() ? 0 : run.front().entry.offset;
    left_ = header;
    for (const Placed &shard : run) left_ += shard.bytes();
    if (buffered_) {
        next_chunk(header);
    } else {
        scratch_.pieces.clear();
        if (header > 0) scratch_.pieces.push_back({scratch_.header(), size_t(header)});
        lay_out();
    }
    // Where there is none, the write says so again.
    if (way == Io::Way::kWrite && direct_ && scratch_.makes_room && !run.empty())
        ::fallocate(scratch_.fd.get(), 0, off_t(offset_), off_t(left_));
}

// Each shard becomes whole pages; its end that fills none goes through a page of its own.
void File::lay_out() {
    auto &pieces = scratch_.pieces;
    size_t number = 0;
    for (Placed &shard : *run_) {
        const uint64_t length = shard.entry.length;
        shard.page = scratch_.page(number++);
        shard.in_page = length % UCM_ALIGNMENT;
        const size_t in_page = size_t(shard.in_page), padding = size_t(shard.bytes() - length);
        rows_->append(pieces, shard.addresses, length - in_page);
        if (in_page + padding > 0) pieces.push_back({shard.page, in_page + padding});
        if (way_ == Io::Way::kRead) continue;
        if (in_page > 0) rows_->gather(shard.addresses, length - in_page, in_page, shard.page);
        std::memset(shard.page + in_page, 0, padding);
        shard.entry.checksum =
            rows_->checksum(scratch_.memory, id_, shard.shard, shard.addresses, length);
    }
}

// Only a shard that is longer than the buffer has more than one.
void File::next_chunk(uint64_t header) {
    chunk_ = std::min(left_ - header, kRunBytes);
    chunk_left_ = header + chunk_;
    if (way_ == Io::Way::kWrite) pass(chunk_, true);
    scratch_.pieces.assign(1, {scratch_.buffer() - header, size_t(chunk_left_)});
    piece_ = 0;
}

// Between the buffer and the memory of the shards, from where the last chunk ended.
void File::pass(uint64_t bytes, bool checksums) {
    for (uint8_t *buffer = scratch_.buffer(); bytes > 0;) {
        Placed &shard = (*run_)[shard_];
        const uint64_t part = std::min(bytes, shard.bytes() - in_shard_);
        pass_part(shard, in_shard_, part, buffer, checksums);
        buffer += part;
        bytes -= part;
        in_shard_ += part;
        if (in_shard_ < shard.bytes()) continue;
        if (checksums)
            (way_ == Io::Way::kWrite ? shard.entry.checksum : shard.checksum) = scratch_.sum.end();
        shard_++;
        in_shard_ = 0;
    }
}

void File::pass_part(Placed &shard, uint64_t offset, uint64_t bytes, uint8_t *buffer,
                     bool checksums) {
    const bool write = way_ == Io::Way::kWrite;
    const uint64_t length = shard.entry.length;
    const uint64_t payload = offset < length ? std::min(bytes, length - offset) : 0;
    PayloadChecksum *sum = checksums ? &scratch_.sum : nullptr;
    if (offset == 0 && sum) sum->begin(id_, shard.shard, length);
    if (payload > 0 && write) rows_->gather(shard.addresses, offset, payload, buffer, sum);
    if (payload > 0 && !write) rows_->scatter(buffer, payload, shard.addresses, offset, sum);
    const size_t padding = size_t(bytes - payload);
    if (write)
        std::memset(buffer + payload, 0, padding);
    else
        shard.padded = all_zero(buffer + payload, padding);
}

void File::take_in(bool checksums) {
    if (buffered_) return pass(chunk_, checksums);
    for (Placed &shard : *run_) {
        const uint64_t length = shard.entry.length;
        if (shard.in_page > 0)
            rows_->scatter(shard.page, shard.in_page, shard.addresses, length - shard.in_page);
        if (!checksums) continue;
        shard.padded = all_zero(shard.page + shard.in_page, size_t(shard.bytes() - length));
        shard.checksum =
            rows_->checksum(scratch_.memory, id_, shard.shard, shard.addresses, length);
    }
}

bool File::next(Io &io) {
    if (error_ != 0 || left_ == 0) return false;
    if (buffered_ && chunk_left_ == 0) {
        if (way_ == Io::Way::kRead) pass(chunk_, true);
        next_chunk(0);
    }
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
}

void File::advance(uint64_t bytes) {
    offset_ += bytes;
    moved_ += bytes;
    left_ -= bytes;
    chunk_left_ -= std::min(bytes, chunk_left_);
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
    io.slot = scratch_.slot;
    while (next(io)) {
        scratch_.engine.move(io);
        took(io);
    }
}

}  // namespace ucm::files
