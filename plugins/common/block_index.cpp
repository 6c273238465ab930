// SPDX-License-Identifier: MIT
#include "block_index.h"

#include <fcntl.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <map>
#include <new>

#include "clock.h"
#include "files.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

constexpr uint64_t kMostBlocks = 32ull << 20;  // in memory; of the rest the files are asked
constexpr size_t kMostDoubts = 16384;          // the oldest ones stay absent until a round
constexpr int64_t kHearEveryNs = 50 * kMs;     // over a network
constexpr int64_t kHeardWithinNs = 100 * kMs;  // for what was heard to be good for an answer
constexpr size_t kTellAtOnce = 16;             // so that it costs a block less than a call
constexpr int64_t kAppendEveryNs = 50 * kMs, kAppendJitterNs = 50 * kMs;
constexpr int64_t kDoubtNs = 5 * kSecond;  // over a network, where old attributes are believed
constexpr int64_t kWakeEveryNs = kSecond, kPauseNs = kSecond;
constexpr int64_t kAskedNs = 60 * kSecond;  // no lookups for so long: no rounds
constexpr int64_t kRoundNs = 30 * kSecond, kNetworkRoundNs = 300 * kSecond;
constexpr int64_t kRoundShare = 100;          // a round takes at most so small a part of the time
constexpr int64_t kSameTimeNs = 2 * kSecond;  // two changes further apart have different times

uint64_t hash_of(const BlockId &id) {
    const uint64_t hash = XXH3_64bits(id.bytes, sizeof id.bytes);
    return hash ? hash : 1;
}

size_t folder_of(const BlockId &id) {
    return size_t(id.bytes[0]) << 4 | id.bytes[1] >> 4;
}

std::string folder_name(size_t number) {
    static const char digits[] = "0123456789abcdef";
    return {digits[number >> 8], digits[number >> 4 & 15], digits[number & 15]};
}

int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// False: it is no name of n hex digits.
bool parse_hex(const char *name, size_t digits, uint8_t *out) {
    if (strnlen(name, digits + 1) != digits) return false;
    for (size_t i = 0; i < digits; i++) {
        const int value = digit(name[i]);
        if (value < 0) return false;
        out[i / 2] = uint8_t(i % 2 ? out[i / 2] | value : value << 4);
    }
    return true;
}

// False: not all of it was read. Many foreign files may be there.
template <typename Each>
bool each_entry(const std::string &path, const std::atomic<bool> &stop, Each each) {
    Dir dir(opendir(path.c_str()), closedir);
    if (!dir) return false;
    errno = 0;
    while (const dirent *entry = readdir(dir.get())) {
        if (stop) return false;
        each(*entry);
        errno = 0;
    }
    return errno == 0;
}

// As it is on the server, whatever a network file system remembers. 0 or an errno.
int look_at(const std::string &path, bool local, struct statx &out) {
    const int flags = local ? AT_STATX_SYNC_AS_STAT : AT_STATX_FORCE_SYNC;
    const unsigned mask = STATX_TYPE | STATX_SIZE | STATX_MTIME;
    return ::statx(AT_FDCWD, path.c_str(), flags, mask, &out) == 0 ? 0 : errno;
}

}  // namespace

size_t HashTable::home(uint64_t hash) const {
    return size_t(((hash >> 32) * capacity_) >> 32);
}

bool HashTable::has(uint64_t hash) const {
    if (size_ == 0) return false;
    size_t at = home(hash);
    while (slots_[at] != 0 && slots_[at] != hash) at = next(at);
    return slots_[at] == hash;
}

bool HashTable::insert(uint64_t hash) {
    if ((size_t(size_) + 1) * 4 > size_t(capacity_) * 3) grow(capacity_ + capacity_ / 4 + 8);
    size_t at = home(hash);
    while (slots_[at] != 0 && slots_[at] != hash) at = next(at);
    if (slots_[at] == hash) return false;
    slots_[at] = hash;
    size_++;
    return true;
}

bool HashTable::erase(uint64_t hash) {
    if (!has(hash)) return false;
    size_t gap = home(hash);
    while (slots_[gap] != hash) gap = next(gap);
    // What follows moves up, as far as it is not at its home.
    for (size_t at = next(gap); slots_[at] != 0; at = next(at)) {
        const size_t from_home = (at + capacity_ - home(slots_[at])) % capacity_;
        if (from_home < (at + capacity_ - gap) % capacity_) continue;
        slots_[gap] = slots_[at];
        gap = at;
    }
    slots_[gap] = 0;
    size_--;
    return true;
}

void HashTable::reserve(size_t n) {
    grow(n + n / 3 + 2);
}

void HashTable::grow(size_t capacity) {
    std::unique_ptr<uint64_t[]> before(new uint64_t[capacity]());
    before.swap(slots_);
    const uint32_t n = capacity_;
    capacity_ = uint32_t(capacity);
    size_ = 0;
    for (uint32_t i = 0; i < n; i++)
        if (before[i] != 0) insert(before[i]);
}

struct BlockIndex::Hold {
    explicit Hold(const Folder &folder) : held(folder.held) {
        while (held.exchange(true, std::memory_order_acquire)) sched_yield();
    }
    ~Hold() { held.store(false, std::memory_order_release); }
    Hold(const Hold &) = delete;
    std::atomic<bool> &held;
};

std::shared_ptr<BlockIndex> BlockIndex::of(const std::string &directory, const DirectoryId &id,
                                           const std::string &space) {
    static auto *mutex = new std::mutex;  // guards all
    static auto *all = new std::map<std::string, std::weak_ptr<BlockIndex>>;
    struct stat st{};
    std::string key = ::stat(directory.c_str(), &st) == 0 ? "" : directory;
    key += std::to_string(st.st_dev) + ":" + std::to_string(st.st_ino) + ":" + space + ":";
    key.append(reinterpret_cast<const char *>(id.data()), id.size());
    std::lock_guard<std::mutex> hold(*mutex);
    for (auto at = all->begin(); at != all->end();)
        at = at->second.expired() && at->first != key ? all->erase(at) : std::next(at);
    std::weak_ptr<BlockIndex> &known = (*all)[key];
    std::shared_ptr<BlockIndex> index = known.lock();
    if (!index) {
        index = std::make_shared<BlockIndex>(directory + "/" + space, file_system_of(directory));
        known = index;
    }
    return index;
}

BlockIndex::BlockIndex(std::string space_path, const FileSystem &file_system, uint32_t ring_slots)
    : path_(std::move(space_path)),
      file_system_(file_system),
      ring_(path_, file_system.local, ring_slots),
      folders_(new Folder[kFolders]),
      seen_(kFolders) {}

bool BlockIndex::hear() {
    if (!file_system_.private_locks.empty()) return false;
    const int64_t now = monotonic_ns();
    asked_ns_.store(now, std::memory_order_relaxed);
    if (file_system_.local) hear_now();
    return walk_wanted(now);
}

bool BlockIndex::heard_within(int64_t ns) const {
    return monotonic_ns() - heard_ns_.load(std::memory_order_acquire) <= ns;
}

void BlockIndex::await_news() {
    if (file_system_.local || !file_system_.private_locks.empty()) return;
    if (heard_within(kHeardWithinNs)) return;
    if (!deaf_) {
        std::unique_lock<std::mutex> hold(await_mutex_);
        if (news_.wait_for(hold, std::chrono::nanoseconds(kHeardWithinNs),
                           [&] { return heard_within(kHeardWithinNs); }))
            return;
        deaf_ = true;
    }
    epoch_ = 0;
}

void BlockIndex::hear_if_due() {
    if (!file_system_.local && !heard_within(kHearEveryNs)) hear_now();
}

void BlockIndex::hear_now() {
    std::lock_guard<std::mutex> hold(hear_mutex_);
    const int64_t now = monotonic_ns();
    std::vector<Change> news;
    switch (ring_.read(news)) {
        case Recent::News::kSame:
            for (const Change &change : news) hear_of(change);
            epoch_ = latest_;
            break;
        case Recent::News::kLost:
            epoch_ = ++latest_;
            break;
        case Recent::News::kGone:
        case Recent::News::kFailed:
            epoch_ = 0;
    }
    heard_ns_.store(now, std::memory_order_release);
    deaf_ = false;
    if (file_system_.local) return;
    std::lock_guard<std::mutex> awaited(await_mutex_);
    news_.notify_all();
}

// What is heard may be older than what this process did since: then the file is asked.
void BlockIndex::hear_of(const Change &change) {
    const bool add = change.what == Change::kPublished;
    Folder &folder = folders_[folder_of(change.id)];
    Hold hold(folder);  // nobody may see, or settle, the doubt without what it is of
    const bool unsure = !add || (doubt_count_ > 0 && doubted(change.id));
    if (unsure) doubt(change.id);
    apply(folder, hash_of(change.id), add && !unsure);
}

bool BlockIndex::walk_wanted(int64_t now_ns) const {
    if (walking_.load(std::memory_order_relaxed)) return false;
    if (!file_system_.local && now_ns - heard_ns_ >= kHearEveryNs) return true;
    const uint32_t epoch = epoch_.load(std::memory_order_relaxed);
    if (epoch == 0) return now_ns >= wake_ns_.load(std::memory_order_relaxed);
    return epoch != round_epoch_.load(std::memory_order_relaxed) ||
           (file_system_.local && doubt_count_.load(std::memory_order_relaxed) > 0);
}

BlockIndex::Answer BlockIndex::find(const BlockId &id) const {
    const uint32_t epoch = epoch_.load(std::memory_order_acquire);
    if (epoch == 0) return Answer::kUnsure;
    const Folder &folder = folders_[folder_of(id)];
    Hold hold(folder);
    if (folder.epoch != epoch) return Answer::kUnsure;
    if (folder.table.has(hash_of(id))) return Answer::kPresent;
    const bool unsure = doubt_count_.load(std::memory_order_acquire) > 0 && doubted(id);
    return unsure ? Answer::kUnsure : Answer::kAbsent;
}

bool BlockIndex::look(const BlockId &id) {
    bool learned;
    return look(id, &learned);
}

// *learned: the index knows it as well; otherwise something else happened in that folder.
bool BlockIndex::look(const BlockId &id, bool *learned) {
    *learned = true;
    Folder &folder = folders_[folder_of(id)];
    uint32_t removals;
    {
        Hold hold(folder);
        removals = folder.removals;
    }
    const std::string path = path_ + "/" + block_name(id);
    struct statx file{};
    // Of a block that may have come or gone, what a network file system remembers will not do.
    const bool fresh = doubt_count_.load(std::memory_order_acquire) > 0 && doubted(id);
    if (const int error = look_at(path, file_system_.local || !fresh, file); error != 0) {
        if (absent(error)) return false;
        throw Error(status_of_errno(error),
                    "cannot look up " + path + ": " + errno_text(error) + who_owns(path, error),
                    error);
    }
    if (!S_ISREG(file.stx_mode) || file.stx_size < UCM_ALIGNMENT ||
        file.stx_size % UCM_ALIGNMENT != 0)
        return false;
    Hold hold(folder);
    *learned = folder.removals == removals;
    if (*learned) apply(folder, hash_of(id), true);
    return true;
}

// To be called with the folder held.
void BlockIndex::apply(Folder &folder, uint64_t hash, bool add) {
    try {
        if (!add) folder.removals++;
        if (folder.meanwhile) folder.meanwhile->push_back({hash, add});
        if (!folder.listed) return;
        if (add && folder.table.insert(hash)) {
            if (++blocks_ > kMostBlocks) forget(folder);
        } else if (!add && folder.table.erase(hash)) {
            blocks_--;
        }
    } catch (const std::bad_alloc &) {
        folder.meanwhile.reset();
        forget(folder);
    }
}

// To be called with the folder held.
void BlockIndex::forget(Folder &folder) {
    blocks_ -= folder.table.size();
    folder.table = HashTable();
    folder.listed = false;
    folder.epoch = 0;
}

void BlockIndex::published(const BlockId &id, bool anew, const Maker *maker) {
    if (!file_system_.private_locks.empty()) return;
    const bool told = !anew && find(id) == Answer::kPresent;
    {
        Folder &folder = folders_[folder_of(id)];
        Hold hold(folder);
        apply(folder, hash_of(id), true);
    }
    if (told) return;
    const size_t noted = ring_.note(id, Change::kPublished);
    if (file_system_.local && noted >= kTellAtOnce) ring_.flush(maker);
}

// Also waits for what another thread is just appending.
void BlockIndex::tell(const Maker *maker) {
    if (file_system_.local && file_system_.private_locks.empty()) ring_.flush(maker);
}

void BlockIndex::removed(const BlockId &id, const Maker *maker) {
    if (!file_system_.private_locks.empty()) return;
    missed(id);
    ring_.note(id, Change::kRemoved);
    if (file_system_.local) ring_.flush(maker);
}

// Another process may have published it anew, and have been heard already: the file is asked.
void BlockIndex::missed(const BlockId &id) {
    Folder &folder = folders_[folder_of(id)];
    Hold hold(folder);
    doubt(id);
    apply(folder, hash_of(id), false);
}

void BlockIndex::doubt(const BlockId &id) {
    const int64_t due = monotonic_ns() + (file_system_.local ? 0 : kDoubtNs);
    std::lock_guard<std::mutex> hold(doubt_mutex_);
    const bool fresh = doubts_.insert_or_assign(id, Doubt{due, next_doubt_++}).second;
    if (fresh) doubt_order_.push_back(id);
    if (doubts_.size() > kMostDoubts) {
        doubts_.erase(doubt_order_.front());
        doubt_order_.pop_front();
    }
    doubt_count_.store(doubts_.size(), std::memory_order_release);
}

bool BlockIndex::doubted(const BlockId &id) const {
    std::lock_guard<std::mutex> hold(doubt_mutex_);
    return doubts_.count(id) > 0;
}

void BlockIndex::settle_doubts(const std::atomic<bool> &stop) {
    for (size_t left = kMostDoubts; left > 0 && !stop; left--) {
        BlockId id;
        Doubt now;
        {
            std::lock_guard<std::mutex> hold(doubt_mutex_);
            if (doubt_order_.empty()) return;
            id = doubt_order_.front();
            now = doubts_.at(id);
            if (now.due_ns > monotonic_ns()) return;
        }
        hear_if_due();
        bool learned;
        try {
            look(id, &learned);
        } catch (const Error &) {
            return;  // later
        }
        std::lock_guard<std::mutex> hold(doubt_mutex_);
        if (doubt_order_.empty() || !(doubt_order_.front() == id)) continue;
        doubt_order_.pop_front();
        if (learned && doubts_.at(id).number == now.number)
            doubts_.erase(id);
        else
            doubt_order_.push_back(id);
        doubt_count_.store(doubts_.size(), std::memory_order_release);
    }
}

void BlockIndex::tidy(const Maker *maker, bool now) {
    if (!ring_.noted()) return;
    const int64_t at = monotonic_ns();
    if (!file_system_.local && !now && at < append_ns_) return;
    ring_.flush(maker);
    append_ns_ = at + kAppendEveryNs + at % kAppendJitterNs;
}

int64_t BlockIndex::walk(const std::atomic<bool> &stop, const Maker *maker, const Logger &log) {
    std::unique_lock<std::mutex> hold(walk_mutex_, std::try_to_lock);
    if (!hold) return kPauseNs;
    warn_once(log);
    if (!file_system_.private_locks.empty()) return kPauseNs;
    walking_ = true;
    bool again = false;
    try {
        again = walk_now(stop, maker);
    } catch (const std::exception &error) {
        log.write(UCM_LOG_WARN, "%s: cannot be listed: %s", path_.c_str(), error.what());
    }
    walking_ = false;
    return again ? 0 : kPauseNs;
}

// True: what it did is out of date already.
bool BlockIndex::walk_now(const std::atomic<bool> &stop, const Maker *maker) {
    const int64_t asked = monotonic_ns();
    if (asked_ns_ == 0 || asked - asked_ns_ > kAskedNs) return false;
    if (file_system_.local)
        hear_now();
    else
        hear_if_due();
    settle_doubts(stop);
    const int64_t start = monotonic_ns();
    wake_ns_ = start + kWakeEveryNs;
    if (epoch_ == 0 && maker && ring_.make(*maker)) hear_now();
    const uint32_t epoch = epoch_;
    if (epoch == 0 || (epoch == round_epoch_ && start < round_due_ns_)) return false;
    if (!round(stop, epoch)) return false;
    const int64_t end = monotonic_ns();
    round_epoch_ = epoch;
    round_due_ns_ = end + std::max(file_system_.local ? kRoundNs : kNetworkRoundNs,
                                   kRoundShare * (end - start));
    return epoch != epoch_ && !stop;
}

void BlockIndex::warn_once(const Logger &log) {
    if (warned_) return;
    std::string why = ring_.impossible();
    if (!file_system_.private_locks.empty())
        why = "the mount option '" + file_system_.private_locks + "' keeps locks to this machine";
    if (why.empty()) return;
    warned_ = true;
    log.write(UCM_LOG_WARN,
              "%s: %s, so processes cannot tell each other what they store; each lookup asks the "
              "file system for each block",
              path_.c_str(), why.c_str());
}

// Of all folders. False: it came to an early end.
bool BlockIndex::round(const std::atomic<bool> &stop, uint32_t epoch) {
    std::vector<bool> there(kFolders, false);
    for (size_t i = 0; i < kFolders; i++) begin(folders_[i]);
    const bool read = each_entry(path_, stop, [&](const dirent &entry) {
        uint8_t number[2];
        if (parse_hex(entry.d_name, 3, number)) there[size_t(number[0]) << 4 | number[1] >> 4] = 1;
    });
    const size_t start = size_t(monotonic_ns()) % kFolders;
    for (size_t k = 0; k < kFolders && read && !stop && epoch == epoch_; k++) {
        const size_t number = (start + k) % kFolders;
        hear_if_due();
        if (there[number]) {
            visit(number, epoch, stop);
        } else {
            install(folders_[number], HashTable(), epoch);
            seen_[number] = Seen();
        }
    }
    for (size_t i = 0; i < kFolders; i++) cancel(folders_[i]);
    return read && !stop && epoch == epoch_;
}

void BlockIndex::visit(size_t number, uint32_t epoch, const std::atomic<bool> &stop) {
    Folder &folder = folders_[number];
    Seen &seen = seen_[number];
    const std::string path = path_ + "/" + folder_name(number);
    begin(folder);
    const int64_t now = monotonic_ns();
    struct statx st{};
    const int error = look_at(path, file_system_.local, st);
    if (error != 0) {
        if (absent(error)) install(folder, HashTable(), epoch);
        seen = Seen();
        return;
    }
    const bool same = seen.since_ns != 0 && seen.changed.tv_sec == st.stx_mtime.tv_sec &&
                      seen.changed.tv_nsec == long(st.stx_mtime.tv_nsec);
    if (same && seen.trusted) {
        Hold hold(folder);
        if (folder.listed) {
            folder.epoch = epoch;
            return;
        }
    }
    // A change after this listing will have another time if this one is old enough by now.
    seen.trusted = same && now - seen.since_ns >= kSameTimeNs;
    if (!same) seen.since_ns = now;
    seen.changed = {time_t(st.stx_mtime.tv_sec), long(st.stx_mtime.tv_nsec)};
    HashTable table;
    if (list(path, stop, table))
        install(folder, std::move(table), epoch);
    else
        seen = Seen();
}

bool BlockIndex::list(const std::string &path, const std::atomic<bool> &stop,
                      HashTable &out) const {
    std::vector<uint64_t> hashes;
    const std::string folder = path.substr(path.size() - 3);
    const bool whole = each_entry(path, stop, [&](const dirent &entry) {
        BlockId id;
        if (entry.d_type != DT_REG && entry.d_type != DT_UNKNOWN) return;
        if (folder.compare(0, 3, entry.d_name, 3) == 0 && parse_hex(entry.d_name, 32, id.bytes))
            hashes.push_back(hash_of(id));
    });
    if (!whole) return false;
    out.reserve(hashes.size());
    for (const uint64_t hash : hashes) out.insert(hash);
    return true;
}

void BlockIndex::begin(Folder &folder) {
    auto steps = std::make_unique<std::vector<Step>>();
    Hold hold(folder);
    folder.meanwhile.swap(steps);
}

void BlockIndex::cancel(Folder &folder) {
    std::unique_ptr<std::vector<Step>> steps;
    Hold hold(folder);
    folder.meanwhile.swap(steps);
}

void BlockIndex::install(Folder &folder, HashTable table, uint32_t epoch) {
    Hold hold(folder);
    const auto steps = std::move(folder.meanwhile);
    if (!steps) return;  // they did not fit in memory
    forget(folder);
    folder.table = std::move(table);
    folder.listed = true;
    folder.epoch = epoch;
    if ((blocks_ += folder.table.size()) > kMostBlocks) return forget(folder);
    for (const Step &step : *steps) apply(folder, step.hash, step.add);
}

uint64_t BlockIndex::bytes() const {
    uint64_t bytes = sizeof *this + kFolders * (sizeof(Folder) + sizeof(Seen));
    for (size_t i = 0; i < kFolders; i++) {
        Hold hold(folders_[i]);
        bytes += folders_[i].table.bytes();
    }
    return bytes;
}

size_t BlockIndex::listed() const {
    const uint32_t epoch = epoch_;
    size_t listed = 0;
    for (size_t i = 0; i < kFolders; i++) {
        Hold hold(folders_[i]);
        listed += epoch != 0 && folders_[i].epoch == epoch;
    }
    return listed;
}

}  // namespace ucm
