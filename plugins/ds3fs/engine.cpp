// SPDX-License-Identifier: MIT
#include "engine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <mutex>

#include "block_file.h"
#include "clock.h"

namespace ucm::ds3fs {
namespace {

using files::Io;

constexpr int64_t kSliceNs = kMs;     // of a wait: so soon a thread sees new work, and a deadline
constexpr int64_t kLookNs = 5 * kMs;  // between two looks for requests that are late
constexpr char kShm[] = "/dev/shm/";
constexpr int kReapAtOnce = 64, kSpareEntries = 64;

// What comes back with a completion: slot and piece, and which life of the slot they belong to.
const void *tag(size_t slot, size_t piece, uint32_t life) {
    return reinterpret_cast<const void *>(uint64_t(life) << 32 | uint64_t(piece) << 16 | slot);
}

// 3FS has tried again itself; and a hole is not what was written.
int64_t result_of(int64_t result) {
    if (result == -EINTR || result == -EAGAIN) return -EIO;
    return result == -ENODATA ? 0 : result;
}

std::string ring_name(bool reads) {
    return reads ? ".r0.t0.f10" : ".w0.t0";  // flags are in binary
}

}  // namespace

Rings::Rings(Shared &shared, size_t bytes, int entries, bool writes) : library_(shared.library) {
    const std::string where = iovs_folder(shared.mount_point);
    const int error = -library_.iovcreate(&iov_, shared.mount_point.c_str(), bytes, 0, shared.numa);
    if (error != 0)
        throw Error(UCM_UNAVAILABLE,
                    "3FS takes no memory of " + std::to_string(bytes) + " bytes (" +
                        errno_text(error) + "); look at " + where +
                        ", at the free bytes of /dev/shm and at the daemon's log",
                    error);
    madvise(iov_.base, iov_.size, MADV_DONTFORK);
    try {
        take_file(shared.links);
        make_ring(shared, read_, entries, true);
        if (writes) make_ring(shared, write_, entries, false);
    } catch (...) {
        destroy();
        throw;
    }
}

void Rings::make_ring(const Shared &shared, Ior &ring, int entries, bool reads) {
    // Not a request waits for others: a batch that is not full would wait for ever.
    const int error = -library_.iorcreate4(&ring, shared.mount_point.c_str(), entries, reads, 0, 0,
                                           shared.numa, reads ? kForbidReadHoles : 0);
    if (error != 0) {
        ring.handle = nullptr;
        throw Error(UCM_UNAVAILABLE,
                    "3FS makes no ring (" + errno_text(error) +
                        "); is the daemon of the mount running? Look at " +
                        iovs_folder(shared.mount_point),
                    error);
    }
    if (const int got = library_.io_entries(&ring); got < entries)
        throw Error(UCM_UNAVAILABLE, "3FS made a ring of " + std::to_string(got) +
                                         " entries where " + std::to_string(entries) +
                                         " were asked for");
}

// The file of the memory is needed by nobody who has it mapped: so a kill leaves none behind, and
// nobody else opens it. Before, all of it is allocated, as the daemon's pinning does too: to touch
// what /dev/shm has no room for would end the process.
void Rings::take_file(Links &links) {
    const std::string folder = iovs_folder(iov_.mount_point), name = id_text(iov_.id);
    char target[256];
    const ssize_t n = ::readlink((folder + "/" + name).c_str(), target, sizeof target - 1);
    if (n <= 0) return;
    link_ = links.add(folder, name);
    target[n] = 0;
    if (std::strncmp(target, kShm, sizeof kShm - 1) != 0) return;
    const int fd = ::open(target, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0) return;
    const int error = ::posix_fallocate(fd, 0, off_t(iov_.size));
    ::close(fd);
    ::unlink(target);
    if (error == 0) return;
    throw Error(UCM_UNAVAILABLE,
                "no room for " + std::to_string(iov_.size) + " bytes in /dev/shm (" +
                    errno_text(error) + "); make it larger, or lower stream_number",
                error);
}

Rings::~Rings() {
    destroy();
}

void Rings::destroy() {
    if (write_.handle) destroy_ring(write_, false);
    if (read_.handle) destroy_ring(read_, true);
    if (iov_.base) library_.iovdestroy(&iov_);
}

// The library looks for the name with its flags in decimal, and would leave the ring to the daemon.
void Rings::destroy_ring(Ior &ring, bool reads) {
    const std::string name = id_text(ring.iov.id) + ring_name(reads);
    ::unlink((iovs_folder(ring.mount_point) + "/" + name).c_str());
    library_.iordestroy(&ring);
}

UsrbioEngine::UsrbioEngine(Shared &shared, size_t depth, size_t slot_bytes, bool writes)
    : shared_(shared), slot_bytes_(slot_bytes), writes_(writes), requests_(depth) {
    rings_ = make_rings();
}

// Requests that were given up take entries as well; and without buffers one may be of many pieces.
std::unique_ptr<Rings> UsrbioEngine::make_rings() const {
    const int entries = int(2 * requests_.size()) + kSpareEntries;
    return std::make_unique<Rings>(shared_, requests_.size() * slot_bytes_, entries, writes_);
}

// Memory that requests may still move bytes to is left to them.
UsrbioEngine::~UsrbioEngine() {
    static std::mutex mutex;  // guards left
    static auto *left = new std::vector<std::unique_ptr<Rings>>;
    const Link *link = rings_->link();
    if (running_[0] + running_[1] > 0 && !(link && link->missing())) {
        shared_.log.write(UCM_LOG_WARN,
                          "%zu requests that were given up have not ended: their memory and ring "
                          "stay until the process ends",
                          running_[0] + running_[1]);
        std::lock_guard<std::mutex> hold(mutex);
        left->push_back(std::move(rings_));
        return;
    }
    forget_all();
}

void UsrbioEngine::start(Io &io) {
    Request &request = requests_[io.slot];
    const bool cut = cut_off();  // then its pieces may be of rings that are gone
    if (cut || request.stuck) {
        io.result = cut ? -ENOTCONN : -ETIME;
        return finished_.push_back(&io);
    }
    if (io.way == Io::Way::kSync) {
        // fdatasync would not tell others how long the file is.
        io.result = ::fsync(io.fd) == 0 ? 0 : -errno;
        return finished_.push_back(&io);
    }
    request.io = &io;
    request.life++;
    request.write = io.way == Io::Way::kWrite;
    request.direct = false;
    request.prepared = request.running = 0;
    request.offset = io.offset;
    lay_out(request);
    request.fd = io.fd;
    request.since_ns = monotonic_ns();
    waiting_.push_back(io.slot);
    prepare();
}

// Neighbours in memory are one request.
void UsrbioEngine::lay_out(Request &request) const {
    request.pieces.clear();
    for (size_t i = 0; i < request.io->n; i++) {
        const iovec &piece = request.io->pieces[i];
        if (!request.pieces.empty()) {
            iovec &last = request.pieces.back();
            if (static_cast<uint8_t *>(last.iov_base) + last.iov_len == piece.iov_base) {
                last.iov_len += piece.iov_len;
                continue;
            }
        }
        request.pieces.push_back(piece);
    }
    request.results.assign(request.pieces.size(), 0);
}

const Iov *UsrbioEngine::iov_of(const iovec &piece) const {
    const Iov &own = rings_->iov();
    const auto *at = static_cast<const uint8_t *>(piece.iov_base);
    if (at >= own.base && at < own.base + own.size) return &own;
    return shared_.memory.find(piece.iov_base, piece.iov_len);
}

// As many pieces as the rings take.
void UsrbioEngine::prepare() {
    while (!waiting_.empty()) {
        const size_t slot = waiting_.front();
        Request &request = requests_[slot];
        if (!prepare_pieces(slot, request)) return;
        waiting_.pop_front();
        if (request.running == 0) end(request);
    }
}

// False: the ring is full.
bool UsrbioEngine::prepare_pieces(size_t slot, Request &request) {
    while (request.prepared < request.pieces.size()) {
        const iovec &piece = request.pieces[request.prepared];
        const Iov *iov = iov_of(piece);
        const int got = shared_.library.prep_io(
            &rings_->ring(request.write), iov, !request.write, piece.iov_base, request.fd,
            request.offset, piece.iov_len, tag(slot, request.prepared, request.life));
        if (got == -EAGAIN) return false;
        if (got < 0) {
            request.results[request.prepared] = got;
            request.prepared = request.pieces.size();
            break;
        }
        hinted_ = false;
        request.prepared++;
        request.running++;
        request.offset += piece.iov_len;
        running_[request.write]++;
        shared_.running++;
        shared_.requests++;
        if (iov == &rings_->iov())
            shared_.bytes += piece.iov_len;
        else
            request.direct = true;
    }
    return true;
}

bool UsrbioEngine::submit() {
    if (hinted_) return true;
    hinted_ = true;
    for (const bool write : {false, true}) {
        if (running_[write] == 0) continue;
        shared_.submits++;
        shared_.library.submit_ios(&rings_->ring(write));
    }
    return true;
}

Io *UsrbioEngine::finish(bool wait) {
    if (finished_.empty()) {
        if (!reap(0) && wait) reap(kSliceNs);
        look_around();
    }
    if (finished_.empty()) return nullptr;
    Io *io = finished_.front();
    finished_.pop_front();
    return io;
}

void UsrbioEngine::move(Io &io) {
    start(io);
    submit();
    for (;;) {
        const auto found = std::find(finished_.begin(), finished_.end(), &io);
        if (found != finished_.end()) {
            finished_.erase(found);
            return;
        }
        reap(kSliceNs);
        look_around();
    }
}

// True: something was.
bool UsrbioEngine::reap(int64_t wait_ns) {
    size_t got = 0;
    for (const bool write : {false, true})
        if (running_[write] > 0) got += reap_ring(write, got > 0 ? 0 : wait_ns);
    if (got > 0) prepare();
    if (!hinted_ && wait_ns > 0) submit();
    return got > 0;
}

size_t UsrbioEngine::reap_ring(bool write, int64_t wait_ns) {
    Cqe entries[kReapAtOnce];
    const int64_t until_ns = clock_ns(CLOCK_REALTIME) + wait_ns;
    const timespec until{until_ns / kSecond, until_ns % kSecond};
    const int got = shared_.library.wait_for_ios(&rings_->ring(write), entries, kReapAtOnce,
                                                 wait_ns > 0 ? 1 : 0, &until);
    for (int i = 0; i < got; i++) took(entries[i], write);
    if (got < 0 && wait_ns > 0) {
        const timespec pause{0, kSliceNs};
        nanosleep(&pause, nullptr);
    }
    return size_t(std::max(got, 0));
}

void UsrbioEngine::took(const Cqe &entry, bool write) {
    const uint64_t word = reinterpret_cast<uint64_t>(entry.userdata);
    const size_t slot = word & 0xffff, piece = word >> 16 & 0xffff;
    if (slot >= requests_.size() || requests_[slot].life != uint32_t(word >> 32) ||
        piece >= requests_[slot].results.size() || requests_[slot].running == 0) {
        shared_.log.write(UCM_LOG_ERROR, "3FS finished a request that nobody made");
        return;
    }
    Request &request = requests_[slot];
    request.results[piece] = result_of(entry.result);
    request.running--;
    running_[write]--;
    shared_.running--;
    if (entry.result == -EBADF) shared_.descriptors.unknown(request.fd);
    if (request.running > 0) return;
    if (request.stuck) return free(request);
    if (request.prepared == request.results.size()) end(request);
}

// Of pieces in order: what the whole of them has moved.
void UsrbioEngine::end(Request &request) {
    Io &io = *request.io;
    int64_t total = 0;
    for (size_t i = 0; i < request.pieces.size(); i++) {
        const int64_t got = request.results[i];
        if (got < 0 && total == 0) total = got;
        if (got > 0) total += got;
        if (got < int64_t(request.pieces[i].iov_len)) break;
    }
    io.result = total;
    request.io = nullptr;
    finished_.push_back(&io);
}

void UsrbioEngine::free(Request &request) {
    request.stuck = false;
    shared_.stuck--;
    shared_.descriptors.let_go(request.fd);
}

void UsrbioEngine::look_around() {
    const int64_t now = monotonic_ns();
    if (now < look_ns_) return;
    look_ns_ = now + kLookNs;
    bool doubtful = false;
    for (size_t slot = 0; slot < requests_.size(); slot++) {
        Request &request = requests_[slot];
        const int64_t age_ns = request.io ? now - request.since_ns : 0;
        if (request.io && !request.direct && age_ns >= shared_.request_ns) {
            shared_.log.write(UCM_LOG_WARN, "a %s was not finished in %lld ms and is given up",
                              request.write ? "write" : "read",
                              static_cast<long long>(shared_.request_ns / kMs));
            give_up(slot, request, ETIME);
        }
        doubtful = doubtful || request.stuck || age_ns >= std::min(kSecond, shared_.request_ns);
    }
    if (doubtful && rings_->link()) rings_->link()->doubt();
    cut_off();
}

void UsrbioEngine::give_up(size_t slot, Request &request, int error) {
    waiting_.erase(std::remove(waiting_.begin(), waiting_.end(), slot), waiting_.end());
    shared_.given_up++;
    request.io->result = -error;
    finished_.push_back(request.io);
    request.io = nullptr;
    if (request.running == 0) return;
    request.stuck = true;
    shared_.stuck++;
    shared_.descriptors.hold(request.fd);
}

// True: the daemon is gone. Rings are made anew where nobody is about to use what is in the old
// ones: what was started is over, with an error.
bool UsrbioEngine::cut_off() {
    const Link *link = rings_->link();
    if (!link || link->gone() == 0) return false;
    const bool unused = end_all() && std::all_of(finished_.begin(), finished_.end(),
                                                 [](const Io *io) { return io->result < 0; });
    const int64_t now = monotonic_ns();
    if (unused && link->replaced() && now >= renew_ns_) {
        renew_ns_ = now + kSecond;
        renew();
    }
    return true;
}

// False: some may still move bytes to memory of others.
bool UsrbioEngine::end_all() {
    bool all = true;
    const bool sure = rings_->link()->gone() > 1;
    for (size_t slot = 0; slot < requests_.size(); slot++) {
        Request &request = requests_[slot];
        if (!request.io) continue;
        if (sure || !request.direct)
            give_up(slot, request, ENOTCONN);
        else
            all = false;
    }
    return all;
}

void UsrbioEngine::forget_all() {
    shared_.running -= running_[0] + running_[1];
    running_[0] = running_[1] = 0;
    for (size_t slot = 0; slot < requests_.size(); slot++) {
        Request &request = requests_[slot];
        request.running = 0;
        if (request.stuck) free(request);
        if (request.io) give_up(slot, request, ENOTCONN);
    }
}

// Another daemon serves the mount, and knows nothing of what this one was told.
void UsrbioEngine::renew() {
    try {
        rings_ = make_rings();
    } catch (const Error &error) {
        shared_.log.write(UCM_LOG_WARN, "%s: %s", shared_.mount_point.c_str(), error.what());
        return;
    }
    forget_all();
    shared_.descriptors.drop_idle();
    shared_.memory.tell_again(shared_.log);
    shared_.log.write(UCM_LOG_WARN, "%s: another daemon serves it; there are new rings",
                      shared_.mount_point.c_str());
}

}  // namespace ucm::ds3fs
