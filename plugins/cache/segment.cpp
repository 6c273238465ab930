// SPDX-License-Identifier: MIT
#include "segment.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <tuple>

#include "failpoint.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace ucm::cache {
namespace {

const char kFolder[] = "/dev/shm/";
constexpr int64_t kJoinNs = 20ll * 1000000000;
constexpr int64_t kUnsavedKeptNs = 600ll * 1000000000;
constexpr uint64_t kMostStepBytes = 64u << 20, kSteps = 64;
constexpr uint64_t kJoinByte = 0, kMemberByte = 1, kVisitByte = kMemberByte + kMembers;
constexpr size_t kMostNamedGone = 10;
constexpr uint64_t kMostSpillBytes = 16u << 20, kMostSpills = 4096;

std::string prefix() {
    return "ucm-cache-" + std::to_string(geteuid()) + "-";
}

// Anybody may put a FIFO there: that is not waited for.
int open_file(const std::string &path, int flags) {
    return ::open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
}

// Does somebody else hold one of these bytes? Where that cannot be told: yes.
bool held_by_another(int fd, uint64_t first, uint64_t count) {
    struct flock lock{};
    lock.l_type = F_WRLCK;
    lock.l_whence = SEEK_SET;
    lock.l_start = off_t(first);
    lock.l_len = off_t(count);
    return fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

// `doing`: what those do that hold this byte.
void lock_byte(int fd, uint64_t byte, const std::string &path, const char *doing) {
    const int64_t until_ns = monotonic_ns() + kJoinNs;
    for (;;) {
        const int error = lock_file(fd, byte, 1);
        if (error == 0) return;
        if (error != EAGAIN || monotonic_ns() > until_ns)
            throw Error(UCM_UNAVAILABLE,
                        path + ": another process has held its lock for 20 s while " + doing +
                            "; look at the processes that use this unique_id",
                        error);
        usleep(2000);
    }
}

struct JoinLock {
    explicit JoinLock(int descriptor, const std::string &path) : fd(descriptor) {
        lock_byte(fd, kJoinByte, path, "joining");
    }
    ~JoinLock() { unlock_file(fd, kJoinByte, 1); }
    JoinLock(const JoinLock &) = delete;
    const int fd;
};

uint32_t power_of_two(uint64_t at_least) {
    uint32_t value = 64;
    while (value < at_least) value *= 2;
    return value;
}

// FNV-1a, the same in every build.
uint64_t hash_of(const std::string &text) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (const unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
    return hash;
}

uint64_t pid_namespace() {
    struct stat st{};
    return ::stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0;
}

// As posix_fallocate, which a signal may interrupt.
int allocate_bytes(int fd, uint64_t from, uint64_t bytes) {
    int error;
    do error = posix_fallocate(fd, off_t(from), off_t(bytes));
    while (error == EINTR);
    return error;
}

void keep_private(void *memory, uint64_t bytes) {
    madvise(memory, bytes, MADV_DONTFORK);
    madvise(memory, bytes, MADV_DONTDUMP);
}

// Whoever still looks into it learns that it is gone, and its frames are free at once.
void end_segment(int fd, Header &header) {
    header.phase.store(SegmentPhase::kRemoved, std::memory_order_release);
    while (ftruncate(fd, off_t(header.data_at)) != 0 && errno == EINTR) {
    }
}

void remove_file(const std::string &path, int fd, Header *header) {
    if (header) end_segment(fd, *header);
    UCM_FAILPOINT("segment.before_unlink");
    ::unlink(path.c_str());
}

// The sizes and places of all parts.
void lay_out(Header &header, const Shape &shape) {
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kSegmentVersion;
    header.header_bytes = sizeof(Header);
    header.shards_per_block = shape.shards_per_block;
    header.capacity = shape.capacity;
    header.raw_capacity = shape.raw_capacity;
    header.slot_bytes = shape.slot_bytes;
    std::strncpy(header.encoding, shape.encoding.c_str(), sizeof header.encoding - 1);
    header.identity = hash_of(shape.identity);
    header.pid_namespace = pid_namespace();
    std::strncpy(header.label, shape.identity.c_str(), sizeof header.label - 1);
    header.keeps = shape.keeps;
    header.loads = shape.loads;
    header.frames = shape.frames;
    const uint64_t spill_bytes = sizeof(Record) + sizeof(ShardInfo) * shape.shards_per_block;
    header.records = shape.frames +
                     uint32_t(std::clamp<uint64_t>(kMostSpillBytes / spill_bytes, 2, kMostSpills));
    header.buckets = power_of_two(2 * uint64_t(header.records));
    header.ghosts = power_of_two(8 * uint64_t(header.frames));
    uint64_t at = round_up(sizeof(Header));
    const auto part = [&](uint64_t bytes) {
        const uint64_t here = at;
        at += round_up(bytes);
        return here;
    };
    header.members_at = part(sizeof(Member) * kMembers);
    header.stripes_at = part(sizeof(uint32_t) * kStripes);
    header.buckets_at = part(sizeof(uint32_t) * header.buckets);
    header.ghosts_at = part(sizeof(Ghost) * header.ghosts);
    header.records_at = part(sizeof(Record) * header.records);
    header.shards_at = part(sizeof(ShardInfo) * uint64_t(header.records) * shape.shards_per_block);
    header.data_at = round_up(at, kHugePageBytes);
    header.bytes = header.data_at + shape.frames * shape.frame_bytes();
}

void make_mutex(pthread_mutex_t &mutex, bool shared) {
    std::memset(&mutex, 0, sizeof mutex);
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    if (shared) pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}

// Memory that is all zero becomes an empty cache.
void make_empty(uint8_t *base, const Shape &shape, uint32_t ready, bool shared) {
    Header &header = *reinterpret_cast<Header *>(base);
    lay_out(header, shape);
    make_mutex(header.mutex, shared);
    header.grower = kNone;
    for (Queue *each : {&header.frame_list, &header.spill_list, &header.small, &header.main})
        each->first = each->last = kNone;
    auto *buckets = reinterpret_cast<std::atomic<uint32_t> *>(base + header.buckets_at);
    for (uint32_t k = 0; k < header.buckets; k++)
        buckets[k].store(kNone, std::memory_order_relaxed);
    auto *records = reinterpret_cast<Record *>(base + header.records_at);
    const auto give = [&](Queue &list, uint32_t r) {
        records[r].next.store(kNone, std::memory_order_relaxed);
        if (list.last != kNone) records[list.last].next.store(r, std::memory_order_relaxed);
        if (list.first == kNone) list.first = r;
        list.last = r;
        list.size++;
    };
    for (uint32_t r = 0; r < ready; r++) give(header.frame_list, r);
    for (uint32_t r = header.frames; r < header.records; r++) give(header.spill_list, r);
    header.frames_ready.store(ready, std::memory_order_relaxed);
}

// What waits in a segment that nobody lives in, mapped from its beginning: blocks to be stored, and
// those that were removed while they were written, to be removed below again.
struct Waiting {
    explicit Waiting(const uint8_t *base) {
        const auto &header = *reinterpret_cast<const Header *>(base);
        const auto *records = reinterpret_cast<const Record *>(base + header.records_at);
        for (uint32_t r = 0; r < header.records; r++) {
            const Record &record = records[r];
            const State state = record.state.load(std::memory_order_relaxed);
            const uint32_t again = kRemoved | kWriting;
            const bool stores = state == State::kGathering || state == State::kSpilled ||
                                (state == State::kDirty && header.keeps);
            const bool removes = state == State::kZombie &&
                                 (record.flags.load(std::memory_order_relaxed) & again) == again;
            if (stores || removes) (stores ? unsaved : removed).push_back(id_of(record));
        }
    }
    Waiting() = default;

    bool any() const { return !unsaved.empty() || !removed.empty(); }
    // For the log, when nobody will do it.
    std::string text() const {
        std::string all = std::to_string(unsaved.size()) + " blocks that were stored nowhere else" +
                          names(unsaved);
        if (!removed.empty())
            all += ", and " + std::to_string(removed.size()) +
                   " that were removed and may be stored all the same" + names(removed);
        return all;
    }

    std::vector<BlockId> unsaved, removed;

  private:
    static std::string names(const std::vector<BlockId> &ids) {
        std::string all;
        for (size_t k = 0; k < ids.size() && k < kMostNamedGone; k++)
            all += (k ? ", " : ": ") + ids[k].hex();
        return ids.size() > kMostNamedGone ? all + " and others" : all;
    }
};

bool sane(const Header &header, uint64_t file_bytes) {
    return std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 &&
           header.version == kSegmentVersion && header.header_bytes == sizeof(Header) &&
           header.bytes == file_bytes && header.data_at <= header.bytes &&
           header.shards_at < header.data_at;
}

std::string there_and_here(const char *what, uint64_t there, uint64_t here) {
    return there == here ? ""
                         : std::string(what) + ": " + std::to_string(there) + " there, " +
                               std::to_string(here) + " here";
}

// Why a file that is not sane is not.
std::string spoiled(const Header &it, uint64_t file_bytes) {
    if (std::memcmp(it.magic, kMagic, sizeof kMagic) != 0)
        return "its first bytes: they are not those of a segment";
    std::string text = there_and_here("version", it.version, kSegmentVersion);
    if (text.empty()) text = there_and_here("bytes of the header", it.header_bytes, sizeof(Header));
    if (text.empty() && file_bytes != it.bytes)
        text = "bytes of the file: " + std::to_string(file_bytes) + ", of which its header says " +
               std::to_string(it.bytes);
    return text.empty() ? "the places of its parts" : text;
}

// What all who use a segment must agree on, as far as it is known here; "": nothing differs.
std::string differs(const Header &it, const Shape &shape) {
    std::string text;
    if (shape.shards_per_block) {
        text = there_and_here("shards of a block", it.shards_per_block, shape.shards_per_block);
        if (text.empty()) text = there_and_here("bytes of a shard", it.capacity, shape.capacity);
        if (text.empty())
            text = there_and_here("bytes of a raw shard", it.raw_capacity, shape.raw_capacity);
        if (text.empty() && shape.encoding != it.encoding)
            text = "encoding: \"" + std::string(it.encoding) + "\" there, \"" + shape.encoding +
                   "\" here";
    }
    const size_t known = std::min(shape.identity.size(), sizeof it.label - 1);
    const bool same = shape.any_fingerprint
                          ? std::strncmp(it.label, shape.identity.c_str(), known) == 0
                          : hash_of(shape.identity) == it.identity;
    if (text.empty() && !same)
        text = "namespace, model or fingerprint: \"" + std::string(it.label) + "\" there, \"" +
               shape.identity + "\" here";
    return text;
}

// What members must agree on beyond that. Those of another PID namespace matter while they live.
std::string members_differ(const Header &it, const Shape &shape, bool alive) {
    std::string text = differs(it, shape);
    if (text.empty() && alive && pid_namespace() != it.pid_namespace)
        text = "PID namespace: the processes of one segment must see each other's PIDs";
    for (const auto &[what, there, here] :
         {std::tuple{"does the store below keep blocks", it.keeps != 0, shape.keeps},
          std::tuple{"can the store below load", it.loads != 0, shape.loads}})
        if (text.empty() && there != here)
            text = std::string(what) + ": " + std::to_string(there) + " there, " +
                   std::to_string(here) + " here";
    return text;
}

// The first part of the segment that is at this path, of this user, ready, and meant; its bytes are
// in `bytes`. NULL: there is none, or none that is meant: then `difference` says why.
uint8_t *map_first_part(int fd, int protection, const Shape &wanted, uint64_t &bytes,
                        std::string &difference) {
    struct stat st{};
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() ||
        uint64_t(st.st_size) <= sizeof(Header))
        return nullptr;
    const uint64_t page = round_up(sizeof(Header));
    void *head = mmap(nullptr, page, PROT_READ, MAP_SHARED, fd, 0);
    if (head == MAP_FAILED) return nullptr;
    const Header &header = *static_cast<const Header *>(head);
    const bool good = header.phase.load(std::memory_order_acquire) == SegmentPhase::kReady &&
                      sane(header, uint64_t(st.st_size));
    if (good) difference = differs(header, wanted);
    bytes = header.data_at;
    void *all = MAP_FAILED;
    if (good && difference.empty()) all = mmap(nullptr, bytes, protection, MAP_SHARED, fd, 0);
    munmap(head, page);
    if (all == MAP_FAILED) return nullptr;
    keep_private(all, bytes);
    return static_cast<uint8_t *>(all);
}

}  // namespace

std::string segment_path(const std::string &unique_id) {
    if (unique_id.empty()) return "";
    static const char digits[] = "0123456789ABCDEF";
    std::string name;
    for (const unsigned char c : unique_id) {
        if (isalnum(c) || c == '.' || c == '_' || c == '-') {
            name += char(c);
        } else {
            name += '%';
            name += digits[c >> 4];
            name += digits[c & 15];
        }
    }
    name = prefix() + name;
    if (name.size() > 255)
        throw Error(UCM_INVALID, "unique_id is too long for a name in " + std::string(kFolder) +
                                     "; use at most 200 letters and digits");
    return kFolder + name;
}

Segment::Segment(const Shape &shape, const std::string &unique_id, const Logger &log)
    : log_(log), path_(segment_path(unique_id)) {
    frame_bytes_ = shape.frame_bytes();
    try {
        path_.empty() ? make_private(shape) : join(shape);
        // So much ahead of use, and so fine, that a small cache is not larger than what is in it.
        const uint64_t step = std::min(kMostStepBytes, data_bytes_ / kSteps);
        step_frames_ = uint32_t(std::max<uint64_t>(1, step / frame_bytes_));
    } catch (...) {
        unmap();
        file_.close();
        throw;
    }
}

void Segment::make_private(const Shape &shape) {
    Header sizes{};
    lay_out(sizes, shape);
    head_bytes_ = sizes.data_at;
    void *head = mmap(nullptr, head_bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (head == MAP_FAILED)
        throw Error(UCM_UNAVAILABLE, "cannot map the index of the cache", errno);
    base_ = static_cast<uint8_t *>(head);
    keep_private(base_, head_bytes_);
    make_empty(base_, shape, shape.frames, false);
    map(0, sizes.bytes - sizes.data_at);
    header().phase.store(SegmentPhase::kReady, std::memory_order_release);
}

// The frames, on a huge page; a forked child gets none of it.
void Segment::map(uint64_t data_at, uint64_t bytes) {
    data_bytes_ = bytes;
    reserved_bytes_ = round_up(bytes, kHugePageBytes) + kHugePageBytes;
    void *place = mmap(nullptr, reserved_bytes_, shared() ? PROT_NONE : PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED)
        throw Error(UCM_UNAVAILABLE, "cannot map " + std::to_string(bytes) + " bytes of memory",
                    errno);
    reserved_ = static_cast<uint8_t *>(place);
    data_ = reserved_ + (round_up(reinterpret_cast<uint64_t>(reserved_), kHugePageBytes) -
                         reinterpret_cast<uint64_t>(reserved_));
    if (shared() && mmap(data_, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file_.get(),
                         off_t(data_at)) == MAP_FAILED)
        throw Error(UCM_UNAVAILABLE, path_ + ": cannot map its frames", errno);
    madvise(data_, bytes, MADV_HUGEPAGE);
    keep_private(data_, bytes);
}

void Segment::unmap() {
    if (reserved_) munmap(reserved_, reserved_bytes_);
    if (base_) munmap(base_, head_bytes_);
    reserved_ = data_ = base_ = nullptr;
}

void Segment::join(const Shape &shape) {
    sweep_others();
    while (!open_once(shape)) {
        unmap();
        file_.close();
    }
}

// False: what was found there has just been removed, or was removed here; to be tried again.
bool Segment::open_once(const Shape &shape) {
    const int fd = open_file(path_, O_RDWR | O_CREAT);
    if (fd < 0)
        throw Error(UCM_UNAVAILABLE,
                    path_ + ": cannot be opened or made: " + std::strerror(errno) +
                        "; set share_buffer_enable: false where there is no shared memory",
                    errno);
    file_.set(fd);
    struct stat st{};
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_uid != geteuid() || (st.st_mode & 077))
        throw Error(UCM_UNAVAILABLE,
                    path_ +
                        ": is not a file of this user alone; remove it, or use another "
                        "unique_id");
    const JoinLock lock(fd, path_);
    if (!leads_to(path_, fd) || fstat(fd, &st) != 0) return false;
    if (st.st_size == 0) {
        create(shape);
        return take_member();
    }
    bool whole = uint64_t(st.st_size) >= sizeof(Header);
    if (whole) {
        head_bytes_ = round_up(sizeof(Header));
        void *head = mmap(nullptr, head_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (head == MAP_FAILED) throw Error(UCM_UNAVAILABLE, path_ + ": cannot be mapped", errno);
        base_ = static_cast<uint8_t *>(head);
        whole = header().phase.load(std::memory_order_acquire) == SegmentPhase::kReady;
    }
    const bool alive = held_by_another(fd, kMemberByte, kMembers);
    const bool fits = whole && sane(header(), uint64_t(st.st_size));
    const std::string difference = !whole ? ""
                                   : fits ? members_differ(header(), shape, alive)
                                          : spoiled(header(), uint64_t(st.st_size));
    if (whole && difference.empty()) {
        const uint64_t head = header().data_at, data_at = header().data_at, all = header().bytes;
        munmap(base_, head_bytes_);
        base_ = nullptr;
        void *place = mmap(nullptr, head, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (place == MAP_FAILED) throw Error(UCM_UNAVAILABLE, path_ + ": cannot be mapped", errno);
        base_ = static_cast<uint8_t *>(place);
        head_bytes_ = head;
        keep_private(base_, head_bytes_);
        map(data_at, all - data_at);
        if (header().pid_namespace != pid_namespace()) move_here();
        found_ = true;
        return take_member();
    }
    if (alive)
        throw Error(UCM_INVALID,
                    path_ + ": is in use by living processes (" +
                        living_pids(whole ? uint64_t(st.st_size) : 0) + ") with other settings (" +
                        difference +
                        "); give this engine another unique_id, or stop those processes");
    Waiting waiting;
    if (fits) {
        void *all = mmap(nullptr, header().data_at, PROT_READ, MAP_SHARED, fd, 0);
        if (all != MAP_FAILED) {
            waiting = Waiting(static_cast<uint8_t *>(all));
            munmap(all, header().data_at);
        }
    }
    log_.write(whole ? UCM_LOG_WARN : UCM_LOG_INFO,
               "%s was left by processes that are dead%s%s; it is removed, with %s", path_.c_str(),
               difference.empty() ? "" : " and differs in ", difference.c_str(),
               fits ? waiting.text().c_str() : "whatever was in it");
    remove_file(path_, fd, whole && fits ? &header() : nullptr);
    return false;
}

// Into this PID namespace, with the join lock held. That no member lives, in whatever namespace,
// say the locks of the file, which the kernel drops after it has seen to the dead's mutexes; those
// who visit are kept out by theirs.
void Segment::move_here() {
    lock_byte(file_.get(), kVisitByte, path_, "removing blocks");
    header().pid_namespace = UINT64_MAX;  // who dies before the end leaves it to the next
    header().broken.store(1, std::memory_order_release);
    make_mutex(header().mutex, true);
    UCM_FAILPOINT("segment.moved");
    header().pid_namespace = pid_namespace();
    unlock_file(file_.get(), kVisitByte, 1);
}

void Segment::create(const Shape &shape) {
    if (!shape.refusal.empty()) {
        ::unlink(path_.c_str());
        throw Error(UCM_INVALID, shape.refusal);
    }
    Header sizes{};
    lay_out(sizes, shape);
    UCM_FAILPOINT("segment.made");
    head_bytes_ = sizes.data_at;
    int error = ftruncate(file_.get(), off_t(sizes.bytes)) == 0 ? 0 : errno;
    if (!error) error = allocate_bytes(file_.get(), 0, sizes.data_at);
    const uint32_t least = std::min(shape.frames, 2u);
    if (!error) error = allocate_bytes(file_.get(), sizes.data_at, least * shape.frame_bytes());
    if (error) {
        ::unlink(path_.c_str());
        throw Error(UCM_UNAVAILABLE,
                    path_ + ": no room for " +
                        std::to_string(sizes.data_at + least * shape.frame_bytes()) +
                        " bytes: " + std::strerror(error) +
                        "; make /dev/shm larger, or set share_buffer_enable: false",
                    error);
    }
    void *head = mmap(nullptr, head_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, file_.get(), 0);
    if (head == MAP_FAILED) throw Error(UCM_UNAVAILABLE, path_ + ": cannot be mapped", errno);
    base_ = static_cast<uint8_t *>(head);
    keep_private(base_, head_bytes_);
    make_empty(base_, shape, least, true);
    map(sizes.data_at, sizes.bytes - sizes.data_at);
    UCM_FAILPOINT("segment.before_ready");
    header().phase.store(SegmentPhase::kReady, std::memory_order_release);
}

// "pid 1234, 1240", of those that live; for a message. Members have the same place in every
// version.
std::string Segment::living_pids(uint64_t file_bytes) const {
    constexpr uint64_t kBytes = sizeof(Member) * kMembers;
    if (file_bytes < sizeof(Header) || std::memcmp(header().magic, kMagic, sizeof kMagic) != 0)
        return "unknown";
    const uint64_t at = header().members_at, bytes = round_up(at + kBytes);
    if (file_bytes < kBytes || at > file_bytes - kBytes || at % alignof(Member)) return "unknown";
    std::string text;
    void *all = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file_.get(), 0);
    if (all == MAP_FAILED) return "unknown";
    const auto *members = reinterpret_cast<const Member *>(static_cast<uint8_t *>(all) + at);
    for (uint32_t m = 0; m < kMembers; m++)
        if (held_by_another(file_.get(), kMemberByte + m, 1))
            text += (text.empty() ? "pid " : ", ") + std::to_string(members[m].pid);
    munmap(all, bytes);
    return text;
}

// With the join lock held. The place of a dead member stays as it is, for Table::adopt.
bool Segment::take_member() {
    for (const bool clean : {true, false}) {
        for (uint32_t m = 0; m < kMembers; m++) {
            Member &member = at<Member>(header().members_at)[m];
            if (clean && member.joined.load(std::memory_order_acquire)) continue;
            if (lock_file(file_.get(), kMemberByte + m, 1) != 0) continue;
            member_ = m;
            return true;
        }
    }
    throw Error(UCM_UNAVAILABLE, path_ + ": " + std::to_string(kMembers) +
                                     " stores use it already; give some of them another unique_id");
}

bool Segment::dead(uint32_t member) const {
    return shared() && member != member_ && !held_by_another(file_.get(), kMemberByte + member, 1);
}

int Segment::allocate(uint32_t first, uint32_t count) const {
    if (!shared()) return 0;
    const uint64_t from = first * frame_bytes_, bytes = count * frame_bytes_;
    struct statvfs fs{};
    // Others live in /dev/shm too, and die when it is full.
    if (fstatvfs(file_.get(), &fs) == 0 && fs.f_blocks &&
        fs.f_bavail * fs.f_frsize < bytes + fs.f_blocks * fs.f_frsize / 16)
        return ENOSPC;
    const int error = allocate_bytes(file_.get(), header().data_at + from, bytes);
    UCM_FAILPOINT("segment.grown");
    return error;
}

// Whole huge pages only; the rest of the last one comes with the next step.
void Segment::collapse(uint32_t first, uint32_t count) const {
    if (!shared()) return;
    const uint64_t from = first * frame_bytes_, bytes = count * frame_bytes_;
    const uint64_t begin = from / kHugePageBytes * kHugePageBytes,
                   end = (from + bytes) / kHugePageBytes * kHugePageBytes;
    if (end > begin) madvise(data_ + begin, end - begin, MADV_COLLAPSE);
}

std::unique_ptr<Segment> Segment::visit(const Shape &wanted, const std::string &unique_id,
                                        const Logger &log) {
    std::unique_ptr<Segment> it(new Segment(segment_path(unique_id), log));
    const int fd = open_file(it->path_, O_RDWR);
    if (fd < 0 && (errno == ENOENT || errno == EACCES || errno == ELOOP)) return nullptr;
    if (fd < 0) throw Error(UCM_UNAVAILABLE, it->path_ + ": cannot be opened", errno);
    it->file_.set(fd);
    std::string difference;
    it->base_ = map_first_part(fd, PROT_READ | PROT_WRITE, wanted, it->head_bytes_, difference);
    if (!it->base_) return nullptr;
    lock_byte(fd, kVisitByte, it->path_, "removing blocks");
    if (it->header().pid_namespace != pid_namespace())
        throw Error(UCM_UNSUPPORTED,
                    it->path_ +
                        ": its processes are in another PID namespace, from which nothing can be "
                        "removed there; remove through one of them");
    return it;
}

Segment::~Segment() {
    if (shared() && member_ != kNobody && file_.get() >= 0) leave();
    unmap();
    file_.close();
}

void Segment::leave() {
    try {
        const JoinLock lock(file_.get(), path_);
        if (empty_handed_)
            at<Member>(header().members_at)[member_].joined.store(0, std::memory_order_release);
        UCM_FAILPOINT("segment.left");
        if (held_by_another(file_.get(), kMemberByte, kMembers)) return;
        const Waiting waiting(base_);
        if (!leads_to(path_, file_.get())) {  // nobody can go on with it
            end_segment(file_.get(), header());
            if (waiting.any())
                log_.write(UCM_LOG_WARN, "%s had been removed by somebody; it is gone, with %s",
                           path_.c_str(), waiting.text().c_str());
        } else if (!waiting.any()) {
            remove_file(path_, file_.get(), &header());
        }
    } catch (const Error &error) {
        log_.write(UCM_LOG_WARN, "%s", error.what());
    }
}

// Segments of this user that nobody lives in: gone, if nothing in them waits to be stored or they
// have waited long enough.
void Segment::sweep_others() const {
    for (const std::string &name : names_in(kFolder)) {
        const std::string path = kFolder + name;
        if (name.compare(0, prefix().size(), prefix()) != 0 || path == path_) continue;
        ForkClosed file;
        file.set(open_file(path, O_RDWR));
        struct stat st{};
        if (file.get() < 0 || fstat(file.get(), &st) != 0 || !S_ISREG(st.st_mode) ||
            st.st_uid != geteuid())
            continue;
        if (lock_file(file.get(), kJoinByte, 1) != 0 ||
            held_by_another(file.get(), kMemberByte, kMembers) || !leads_to(path, file.get()))
            continue;
        Waiting waiting;
        bool recent = false, of_another_version = false, holds = false;
        void *head = MAP_FAILED;
        if (uint64_t(st.st_size) >= round_up(sizeof(Header)))
            head = mmap(nullptr, round_up(sizeof(Header)), PROT_READ | PROT_WRITE, MAP_SHARED,
                        file.get(), 0);
        if (head != MAP_FAILED) {
            auto &header = *static_cast<Header *>(head);
            if (header.phase.load() == SegmentPhase::kReady && sane(header, uint64_t(st.st_size))) {
                const uint64_t bytes = header.data_at;
                recent = clock_ns(CLOCK_BOOTTIME) - header.used_ns.load() < kUnsavedKeptNs;
                void *all = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
                if (all != MAP_FAILED) {
                    waiting = Waiting(static_cast<uint8_t *>(all));
                    munmap(all, bytes);
                }
            }
            const bool known = sane(header, uint64_t(st.st_size));
            of_another_version = std::memcmp(header.magic, kMagic, sizeof kMagic) == 0 &&
                                 header.version != kSegmentVersion;
            // What is in it only that version knows, which may come back.
            if (of_another_version)
                recent = clock_ns(CLOCK_REALTIME) - st.st_mtime * 1000000000ll < kUnsavedKeptNs;
            holds = waiting.any() || of_another_version;
            if (!holds || !recent) remove_file(path, file.get(), known ? &header : nullptr);
            munmap(head, round_up(sizeof(Header)));
        } else {
            remove_file(path, file.get(), nullptr);
        }
        if (holds && recent) continue;
        log_.write(holds ? UCM_LOG_WARN : UCM_LOG_INFO,
                   "%s was left by processes that are dead%s; it is removed, with %s", path.c_str(),
                   of_another_version ? ", of another version" : "",
                   of_another_version ? "whatever was in it" : waiting.text().c_str());
    }
}

void SegmentView::drop() {
    if (base_) munmap(base_, bytes_);
    base_ = nullptr;
}

const uint8_t *SegmentView::look() {
    const auto removed = [this] {
        return reinterpret_cast<const Header *>(base_)->phase.load(std::memory_order_acquire) !=
               SegmentPhase::kReady;
    };
    if (base_ && removed()) drop();
    if (path_.empty() || monotonic_ns() < next_try_ns_) return base_;
    next_try_ns_ = monotonic_ns() + 50 * 1000000;
    struct stat st{};
    const bool there = ::stat(path_.c_str(), &st) == 0;
    // Those who use it may go on for long when somebody has taken it from its path.
    if (base_ && there && st.st_ino == inode_) return base_;
    drop();
    const int fd = there ? open_file(path_, O_RDONLY) : -1;
    if (fd < 0) return nullptr;
    inode_ = fstat(fd, &st) == 0 ? st.st_ino : 0;
    std::string difference;
    base_ = map_first_part(fd, PROT_READ, wanted_, bytes_, difference);
    ::close(fd);
    if (!difference.empty() && !std::exchange(told_, true))
        warning_ = path_ + " is not looked into, for it differs in " + difference;
    return base_;
}

}  // namespace ucm::cache
