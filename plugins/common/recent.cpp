// SPDX-License-Identifier: MIT
#include "recent.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include "block_file.h"
#include "clock.h"
#include "failpoint.h"
#include "files.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

constexpr char kRecentMagic[8] = {'U', 'C', 'M', 'R', 'E', 'C', 'N', 'T'};
constexpr uint32_t kRecentVersion = 1, kMostSlots = 1u << 20;
constexpr uint64_t kRecords = 4096;  // where the slots begin
constexpr size_t kListed = 4096;     // changes that wait to be appended
constexpr size_t kOwnRanges = 1024;  // forgotten ones are only heard again
constexpr int kLockTries = 6, kYields = 3, kReadTries = 3, kTurns = 4;
constexpr useconds_t kLockPauseUs = 50;
constexpr int64_t kBusyNs = 5000000;
constexpr int64_t kForbiddenNs = 60ll * 1000000000;

bool no_locks(int error) {
    return error == ENOLCK || error == EINVAL || error == EOPNOTSUPP || error == ENOSYS;
}

// 0, EAGAIN when another holds it, or why locks do not work here.
int set_lock(int fd, short type) {
    struct flock lock{};
    lock.l_type = type;
    lock.l_whence = SEEK_SET;
    if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return 0;
    return errno == EACCES ? EAGAIN : errno;
}

// What is beyond the end reads as zeros.
int read_whole(int fd, void *data, size_t bytes, uint64_t offset) {
    auto *to = static_cast<uint8_t *>(data);
    while (bytes > 0) {
        const ssize_t got = ::pread(fd, to, bytes, off_t(offset));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) std::memset(to, 0, bytes);
        if (got == 0) return 0;
        to += got;
        offset += uint64_t(got);
        bytes -= size_t(got);
    }
    return 0;
}

}  // namespace

struct Recent::Header {
    char magic[8];
    uint32_t version, slots;
    std::array<uint8_t, 16> nonce;
    uint64_t head;  // records ever written; also those that were lost
    uint8_t zero[16];
    uint64_t check;

    uint64_t checksum() const { return XXH3_64bits(this, offsetof(Header, check)); }
};

struct Recent::Record {
    uint64_t number;
    BlockId id;
    uint8_t what, zero[3];
    uint32_t check;

    uint32_t checksum(const std::array<uint8_t, 16> &nonce) const {
        const uint64_t seed = XXH3_64bits(nonce.data(), nonce.size());
        return uint32_t(XXH3_64bits_withSeed(this, offsetof(Record, check), seed));
    }
};

Recent::Recent(std::string space, bool local, uint32_t slots)
    : space_(std::move(space)), local_(local), slots_(slots) {
    static_assert(sizeof(Header) == 64);
    static_assert(sizeof(Record) == sizeof(Slot));
}

// Returns 0 or an errno. Whoever may write holds the file open for both.
int Recent::open(int flags) {
    if (fd_.get() >= 0) return 0;
    flags |= O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK;
    int fd = ::open(path().c_str(), flags);
    if (fd < 0) return errno;
    struct stat st{};
    if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        ::close(fd);
        return EINVAL;
    }
    if (st.st_dev != device_ || st.st_ino != inode_) known_ = false;
    device_ = st.st_dev;
    inode_ = st.st_ino;
    fd_.set(fd);
    return 0;
}

// Makes sure that fd_ is the file that the path leads to now.
int Recent::follow() {
    if (!local_) {  // what others wrote is seen by who opens the file anew
        fd_.close();
        return open(O_RDONLY);
    }
    if (fd_.get() >= 0) {
        struct stat st{};
        const int error = ::stat(path().c_str(), &st) == 0 ? 0 : errno;
        if (error == 0 && st.st_dev == device_ && st.st_ino == inode_) return 0;
        fd_.close();
        if (error != 0) return error;
    }
    const int error = open(O_RDWR);
    return error == EACCES || error == EROFS || error == EPERM ? open(O_RDONLY) : error;
}

// 0; EBADMSG where it is torn; ENOTSUP where it is another version's; or why it cannot be read.
int Recent::read_header(Header &header) const {
    for (int turn = 0; turn < kReadTries; turn++) {
        if (const int error = read_whole(fd_.get(), &header, sizeof header, 0); error != 0)
            return error;
        if (std::memcmp(header.magic, kRecentMagic, sizeof kRecentMagic) != 0 ||
            header.check != header.checksum())
            continue;
        const bool ours =
            header.version == kRecentVersion && header.slots >= 2 && header.slots <= kMostSlots;
        return ours ? 0 : ENOTSUP;
    }
    return EBADMSG;
}

Recent::News Recent::read(std::vector<Change> &out) {
    std::lock_guard<std::mutex> hold(file_mutex_);
    News news = News::kSame;
    Header header;
    int error = follow();
    if (error == 0) error = read_header(header);
    if (error == 0) {
        if (!known_ || header.nonce != nonce_ || header.head < position_ ||
            header.head - position_ >= header.slots)
            news = adopt(header);
        else if (header.head != position_ && !read_records(header, out) &&
                 !read_records(header, out))
            news = adopt(header);
    } else if (error == EBADMSG && known_) {
        // It is being written, or whoever writes next replaces it.
    } else if (error == EBADMSG || error == ENOTSUP || absent(error)) {
        known_ = false;
        news = News::kGone;
    } else {
        news = News::kFailed;
    }
    if (!local_) fd_.close();
    return news;
}

Recent::News Recent::adopt(const Header &header) {
    nonce_ = header.nonce;
    position_ = header.head;
    own_.clear();
    last_ = {};
    const uint64_t slot = position_ > 0 ? (position_ - 1) % header.slots : 0;
    known_ = read_whole(fd_.get(), last_.data(), last_.size(), kRecords + slot * sizeof(Slot)) == 0;
    return News::kLost;
}

// False: they are not what must have been written since.
bool Recent::read_records(const Header &header, std::vector<Change> &out) {
    // The last one that was read comes again, to show that this is the same past.
    const uint64_t first = position_ > 0 ? position_ : 1, n = header.head - first + 1;
    std::vector<Slot> slots(n);
    for (uint64_t done = 0; done < n;) {
        const uint64_t at = (first + done - 1) % header.slots;
        const uint64_t part = std::min(n - done, header.slots - at);
        if (read_whole(fd_.get(), slots[done].data(), part * sizeof(Slot),
                       kRecords + at * sizeof(Slot)) != 0)
            return false;
        done += part;
    }
    if (position_ > 0 && slots[0] != last_) return false;
    const size_t before = out.size();
    for (uint64_t i = position_ > 0 ? 1 : 0; i < n; i++) {
        Record record;
        std::memcpy(&record, slots[i].data(), sizeof record);
        if (record.number != first + i || record.check != record.checksum(nonce_)) {
            out.resize(before);
            return false;
        }
        if (mine(record.number)) continue;
        if (record.what == Change::kPublished || record.what == Change::kRemoved)
            out.push_back({record.id, Change::What(record.what)});
    }
    last_ = slots[n - 1];
    position_ = header.head;
    return true;
}

// To be asked in the order of numbers.
bool Recent::mine(uint64_t number) {
    while (!own_.empty() && own_.front().second < number) own_.pop_front();
    return !own_.empty() && own_.front().first <= number;
}

size_t Recent::note(const BlockId &id, Change::What what) {
    std::lock_guard<std::mutex> hold(list_mutex_);
    if (list_.size() >= kListed) {
        list_.clear();
        lost_ = true;
    }
    list_.push_back({id, what});
    noted_ = true;
    return list_.size();
}

bool Recent::flush(const Maker *maker) {
    // Whoever waits here finds that the one before has taken its changes along.
    std::lock_guard<std::mutex> hold(file_mutex_);
    if (monotonic_ns() < busy_until_ns_) return false;
    std::vector<Change> batch;
    bool lost;
    {
        std::lock_guard<std::mutex> listed(list_mutex_);
        if (!noted_) return true;
        batch.swap(list_);
        lost = lost_;
        lost_ = noted_ = false;
    }
    const int error = append(batch, lost, maker);
    if (!local_) fd_.close();
    if (error == 0 || absent(error)) return true;
    std::lock_guard<std::mutex> listed(list_mutex_);
    if (error == EAGAIN && batch.size() + list_.size() <= kListed) {
        list_.insert(list_.begin(), batch.begin(), batch.end());
        lost_ = lost_ || lost;
        noted_ = true;
        return false;
    }
    lost_ = true;  // the next one to be appended says so
    return true;
}

int Recent::append(const std::vector<Change> &batch, bool lost, const Maker *maker) {
    for (int turn = 0; turn < kTurns; turn++) {
        int error = open(O_RDWR);
        if (absent(error)) {
            if (!maker) return ENOENT;
            if (error = make_file(*maker, false); error != 0) return error;
            continue;
        }
        if (error == 0) error = lock();
        if (error != 0) return error;
        struct stat st{};
        Header header;
        if (::stat(path().c_str(), &st) != 0 || st.st_ino != inode_ || st.st_dev != device_) {
            fd_.close();
            continue;
        }
        error = read_header(header);
        if (error == 0) error = write(header, batch, lost);
        if (error == EBADMSG && maker) {
            error = make_file(*maker, true);
            fd_.close();
            if (error == 0) continue;
        }
        set_lock(fd_.get(), F_UNLCK);
        return error == ENOTSUP ? ENOENT : error;
    }
    return EAGAIN;
}

// Never waits for long: who holds it may be stopped.
int Recent::lock() {
    for (int turn = 1;; turn++) {
        const int error = set_lock(fd_.get(), F_WRLCK);
        if (error != EAGAIN && !no_locks(error)) return error;
        if (error != EAGAIN || turn == kLockTries) {
            busy_until_ns_ = monotonic_ns() + kBusyNs;
            return EAGAIN;
        }
        if (turn <= kYields)
            sched_yield();
        else
            usleep(kLockPauseUs);
    }
}

int Recent::write(Header header, const std::vector<Change> &batch, bool lost) {
    const uint64_t n = batch.size(), first = header.head + 1 + (lost ? header.slots + 1 : 0);
    std::vector<Record> records(n);
    for (uint64_t i = 0; i < n; i++) {
        records[i] = {first + i, batch[i].id, uint8_t(batch[i].what), {}, 0};
        records[i].check = records[i].checksum(header.nonce);
    }
    int error = n < header.slots ? 0 : ENOSPC;
    for (uint64_t done = 0; error == 0 && done < n;) {
        const uint64_t at = (first + done - 1) % header.slots;
        const uint64_t part = std::min(n - done, header.slots - at);
        error = write_whole(fd_.get(), &records[done], part * sizeof(Record),
                            kRecords + at * sizeof(Record));
        done += part;
    }
    UCM_FAILPOINT("posix.ring_records");
    // Readers that are further behind than there are slots look into the folders.
    header.head = error == 0 ? first + n - 1 : header.head + header.slots + 1;
    header.check = header.checksum();
    if (const int failed = write_whole(fd_.get(), &header, sizeof header, 0); failed != 0)
        return failed == EAGAIN ? EIO : failed;
    UCM_FAILPOINT("posix.ring_appended");
    if (error != 0) return 0;
    if (!own_.empty() && own_.back().second + 1 == first)
        own_.back().second = header.head;
    else
        own_.emplace_back(first, header.head);
    if (own_.size() > kOwnRanges) own_.pop_front();
    return 0;
}

bool Recent::make(const Maker &maker) {
    std::lock_guard<std::mutex> hold(file_mutex_);
    return make_file(maker, false) == 0;
}

// A whole file beside its place; 0 or an errno.
int Recent::build(const Maker &maker, std::string &temporary) {
    temporary = maker.writer.temporary("recent");
    ForkClosed file;
    file.set(::open(temporary.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (file.get() < 0) return errno;
    Header header{};
    std::memcpy(header.magic, kRecentMagic, sizeof kRecentMagic);
    header.version = kRecentVersion;
    header.slots = slots_;
    if (::getrandom(header.nonce.data(), header.nonce.size(), 0) != ssize_t(header.nonce.size()))
        return EIO;
    header.check = header.checksum();
    int error = maker.access.apply(file.get());
    // It grows with its records, so that it takes little of a small quota.
    if (error == 0) error = write_whole(file.get(), &header, sizeof header, 0);
    // Nobody is to trust a ring that others cannot append to.
    if (error == 0 && no_locks(error = set_lock(file.get(), F_WRLCK))) forbid(error);
    const int closed = file.close();
    return error != 0 ? error : closed;
}

int Recent::make_file(const Maker &maker, bool replace) {
    if (monotonic_ns() < forbidden_until_ns_) return ENOENT;
    std::string temporary;
    int error = build(maker, temporary);
    if (error == ENOENT) {
        try {
            maker.writer.renew();
        } catch (const std::exception &) {
            return EIO;
        }
        error = build(maker, temporary);
    }
    UCM_FAILPOINT("posix.ring_made");
    if (error == 0 && replace) error = ::rename(temporary.c_str(), path().c_str()) ? errno : 0;
    if (error == 0 && !replace)
        error = ::linkat(AT_FDCWD, temporary.c_str(), AT_FDCWD, path().c_str(), 0) ? errno : 0;
    ::unlink(temporary.c_str());
    return error == EEXIST ? 0 : error;
}

void Recent::forbid(int error) {
    forbidden_until_ns_ = monotonic_ns() + kForbiddenNs;
    std::lock_guard<std::mutex> hold(told_mutex_);
    impossible_ = "the file system has no locks (" + errno_text(error) + ")";
}

std::string Recent::impossible() const {
    std::lock_guard<std::mutex> hold(told_mutex_);
    return impossible_;
}

}  // namespace ucm
