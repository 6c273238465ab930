// SPDX-License-Identifier: MIT
#include "ledger.h"

#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <sstream>

#include "block_file.h"
#include "clock.h"
#include "failpoint.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

static_assert(__BYTE_ORDER == __LITTLE_ENDIAN, "the structs are written as they are");

constexpr char kLedgerMagic[] = "UCMLEDGR";
constexpr uint32_t kLedgerVersion = 1;
constexpr uint64_t kPage = 4096, kFirstSlots = 16, kMostWriters = 1024;
constexpr uint64_t kGrant = 64ull << 20;
constexpr int64_t kPatience = 2 * kSecond, kLittlePatience = 100 * kMs;
constexpr int64_t kFreeLook = 100 * kMs;  // at a ledger without a limit
constexpr int64_t kWaitForRoom = 10 * kSecond, kPoll = 5 * kMs;
constexpr int64_t kTellEvery = 10 * kSecond, kCheckEvery = 2 * kSecond;
constexpr int64_t kTouchedAfter = 100 * kMs;  // a ledger whose writers had left
// Beyond all errnos: reasons of our own.
constexpr int kCounting = 10000, kTooLarge = 10001;

uint64_t check_of(const LedgerPage &page) {
    return XXH3_64bits(&page, offsetof(LedgerPage, check));
}

uint64_t check_of(const LedgerAccount &account, const LedgerPage &page) {
    return XXH3_64bits_withSeed(&account, offsetof(LedgerAccount, check),
                                XXH3_64bits(page.nonce, sizeof page.nonce));
}

bool sound(const LedgerPage &page) {
    return std::memcmp(page.magic, kLedgerMagic, sizeof page.magic) == 0 &&
           page.check == check_of(page);
}

bool same_nonce(const uint8_t *a, const uint8_t *b) {
    return std::memcmp(a, b, sizeof LedgerPage::nonce) == 0;
}

uint64_t offset_of(size_t slot) {
    return kPage + slot * sizeof(LedgerAccount);
}

int64_t real_ns() {
    return clock_ns(CLOCK_REALTIME);
}

std::string gib(uint64_t bytes) {
    char text[32];
    snprintf(text, sizeof text, "%.3g GiB", double(bytes) / double(1u << 30));
    return text;
}

std::string last_part(const std::string &path) {
    return path.substr(path.rfind('/') + 1);
}

LedgerPage new_page() {
    LedgerPage page{};
    std::memcpy(page.magic, kLedgerMagic, sizeof page.magic);
    page.version = kLedgerVersion;
    page.flags = kCountFirst;
    if (getrandom(page.nonce, sizeof page.nonce, 0) != ssize_t(sizeof page.nonce)) {
        const int64_t now = real_ns();  // as good as any: it need only differ
        std::memcpy(page.nonce, &now, sizeof now);
    }
    return page;
}

}  // namespace

Quota::Quota(const std::string &directory, WriterFolder &writer, const Access &access,
             const QuotaOptions &options, const Logger &log)
    : directory_(directory),
      writer_(writer),
      access_(access),
      options_(options),
      log_(log),
      process_(::getpid()),
      file_(directory + "/.ucm/ledger", writer, access_) {
    if (options_.capacity) check_locks();
}

Quota::~Quota() {
    if (::getpid() == process_) leave();
}

// A limit that others cannot see is none.
void Quota::check_locks() {
    if (const std::string why = local_locks(directory_); !why.empty())
        throw Error(UCM_UNAVAILABLE, std::string(options_.option) + ": " + why);
    const int error = file_.try_lock(offset_of(kFirstSlots));
    if (error == 0) file_.unlock();
    if (error != 0 && error != EAGAIN)
        throw Error(status_of_errno(error) == UCM_NO_SPACE ? UCM_NO_SPACE : UCM_UNAVAILABLE,
                    std::string(options_.option) + ": cannot lock " + file_.path() + ": " +
                        errno_text(error) +
                        "; a limit needs open-file-description locks: leave it out, or use "
                        "another file system" +
                        who_owns(file_.path(), error),
                    error);
}

// body(session) returns 0 or an errno; what it has changed is written in either case.
template <typename Body>
int Quota::change(int64_t patience_ns, Body body) {
    Session s;
    int error = 0, written = 0;
    {
        std::lock_guard<std::mutex> hold(file_mutex_);
        if (error = begin(s, patience_ns); error != 0) return error;
        error = body(s);
        UCM_FAILPOINT("ledger.changed");
        written = commit(s);
        file_.unlock();
    }
    if (written == 0) tell_limit(s);
    return error ? error : written;
}

int Quota::begin(Session &s, int64_t patience_ns) {
    const int error = file_.lock(offset_of(kFirstSlots), monotonic_ns() + patience_ns);
    if (error != 0) return error;
    UCM_FAILPOINT("ledger.locked");
    int failed = read_all(s);
    if (failed == 0 && !is_mine(s)) failed = enter(s);
    if (failed != 0) file_.unlock();
    sum_up(s);
    return failed;
}

int Quota::read_all(Session &s) {
    struct stat st{};
    if (::fstat(file_.fd(), &st) != 0) return errno;
    LedgerPage page{};
    const int error = file_.read(&page, sizeof page, 0);
    if (error != 0 && error != EIO) return error;
    if (error != 0 || !sound(page)) {
        page = new_page();
    } else if (page.version != kLedgerVersion) {
        return EPROTONOSUPPORT;
    } else if (page.inode != st.st_ino) {
        page = new_page();  // a copy
    }
    const int64_t changed_ns = int64_t(st.st_ctim.tv_sec) * kSecond + st.st_ctim.tv_nsec;
    s.was_clean = page.flags & kClean;
    if (s.was_clean && std::abs(changed_ns - page.left_ns) > kTouchedAfter)
        page.flags |= kCountFirst;
    page.inode = st.st_ino;
    page.slots = uint32_t(std::min<uint64_t>(page.slots, kMostWriters));
    s.page = page;
    s.accounts.resize(page.slots);
    for (size_t i = 0; i < s.accounts.size(); i++) {
        LedgerAccount &account = s.accounts[i];
        const int failed = file_.read(&account, sizeof account, offset_of(i));
        if (failed != 0 && failed != EIO) return failed;
        account.writer[sizeof account.writer - 1] = 0;
        if (failed == 0 && account.check == check_of(account, page)) continue;
        account = LedgerAccount{};
        s.page.flags |= kCountFirst;
    }
    return 0;
}

bool Quota::is_mine(const Session &s) const {
    std::lock_guard<std::mutex> hold(mutex_);
    return joined_ && same_nonce(s.page.nonce, seen_.nonce) && slot_ < s.accounts.size() &&
           name_ == s.accounts[slot_].writer && s.accounts[slot_].granted == in_file_ &&
           name_ == last_part(writer_.path()) && (s.page.flags & kClean) == 0;
}

// For the first time, or because the ledger knows this writer no more, or not as it is.
int Quota::enter(Session &s) {
    bury(s);
    const std::string name = last_part(writer_.path());
    if (name.size() >= sizeof LedgerAccount::writer) return ENAMETOOLONG;
    size_t living = 0, mine = s.accounts.size(), free = s.accounts.size();
    for (size_t i = 0; i < s.accounts.size(); i++) {
        const std::string other = s.accounts[i].writer;
        if (other.empty())
            free = std::min(free, i);
        else if (other == name || other == name_)
            mine = i;
        else
            living++;
    }
    // Nobody can have kept the account of what went on.
    if (living == 0 && !s.was_clean) s.page.flags |= kCountFirst;
    if (mine == s.accounts.size()) mine = free;
    if (mine == kMostWriters) return EUSERS;
    if (mine == s.accounts.size()) {
        if (mine >= kFirstSlots)
            if (const int error = ::posix_fallocate(file_.fd(), 0, off_t(offset_of(mine + 1))))
                return error;
        s.accounts.emplace_back();
        s.page.slots++;
    }
    s.mine = slot_ = mine;
    s.page.flags &= ~uint32_t(kClean);
    LedgerAccount &account = s.accounts[mine];
    account = LedgerAccount{};
    std::memcpy(account.writer, name.c_str(), name.size());
    name_ = name;
    account.capacity = options_.capacity;
    std::lock_guard<std::mutex> hold(mutex_);
    // What is written already may have been counted too.
    granted_ = reserved_ + published_;
    if (granted_ > 0) s.page.flags |= kTooHigh;
    account.granted = uint64_t(granted_);
    return 0;
}

void Quota::bury(Session &s) const {
    const std::string here = machine_prefix(), host = host_prefix(), me = last_part(writer_.path());
    for (size_t i = 0; i < s.accounts.size(); i++) {
        LedgerAccount &account = s.accounts[i];
        const std::string name = account.writer;
        if (name.empty() || name == me || name == name_ || writer_lives(directory_, name)) continue;
        s.page.used += account.granted;
        s.page.added += account.granted;
        // After a power cut nothing is sure.
        const bool other_boot =
            name.compare(0, host.size(), host) == 0 && name.compare(0, here.size(), here) != 0;
        s.page.flags |= other_boot ? uint32_t(kCountFirst) : uint32_t(kTooHigh);
        account = LedgerAccount{};
        s.changed.push_back(i);
    }
}

// What follows from the accounts.
void Quota::sum_up(Session &s) const {
    s.page.granted = s.page.limit = s.page.writers = 0;
    s.mine = slot_;
    for (const LedgerAccount &account : s.accounts) {
        if (!account.writer[0]) continue;
        s.page.writers++;
        s.page.granted += account.granted;
        if (account.capacity && (s.page.limit == 0 || account.capacity < s.page.limit))
            s.page.limit = account.capacity;
    }
}

// Page first: killed in between, bytes count twice and never not at all.
int Quota::commit(Session &s) {
    LedgerAccount &account = s.accounts[s.mine];
    int64_t published = 0;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        published = published_;
        account.granted = uint64_t(std::max<int64_t>(0, granted_ + s.grant - published));
        const int64_t clock = std::max(real_ns(), stamp_ns_);
        if (s.page.clock_ns < clock || s.page.clock_ns > real_ns() + kDay) s.page.clock_ns = clock;
    }
    if (too_high_.exchange(false)) s.page.flags |= kTooHigh;
    s.page.used += uint64_t(published);
    s.page.added += uint64_t(published);
    sum_up(s);
    s.page.check = check_of(s.page);
    account.check = check_of(account, s.page);
    int error = file_.write(&s.page, sizeof s.page, 0);
    UCM_FAILPOINT("ledger.page_written");
    if (error == 0) error = file_.write(&account, sizeof account, offset_of(s.mine));
    for (size_t i = 0; error == 0 && i < s.changed.size(); i++) {
        LedgerAccount &other = s.accounts[s.changed[i]];
        if (s.changed[i] == s.mine) continue;
        other.check = check_of(other, s.page);
        error = file_.write(&other, sizeof other, offset_of(s.changed[i]));
    }
    // A power cut must not bring the clean state back.
    if (error == 0 && s.was_clean && ::fdatasync(file_.fd()) != 0) error = errno;
    if (error != 0) return error;
    std::lock_guard<std::mutex> hold(mutex_);
    published_ -= published;
    granted_ += s.grant - published;
    in_file_ = account.granted;
    seen_ = s.page;
    joined_ = true;
    handed_in_ns_ = looked_ns_ = monotonic_ns();
    return 0;
}

void Quota::tell_limit(const Session &s) {
    if (s.page.limit == 0 || s.page.limit == options_.capacity) return;
    if (told_limit_.exchange(s.page.limit) == s.page.limit) return;
    for (const LedgerAccount &account : s.accounts) {
        if (account.capacity != s.page.limit) continue;
        log_.write(UCM_LOG_WARN, "%s: %s is limited to %s by writer %s; this store asks for %s",
                   options_.option, directory_.c_str(), gib(s.page.limit).c_str(), account.writer,
                   options_.capacity ? gib(options_.capacity).c_str() : "no limit");
        return;
    }
}

// The page alone, without a lock; to be called with mutex_ held. False: it has to be locked.
bool Quota::look() {
    struct stat st{};
    LedgerPage page{};
    const int fd = file_.fd();
    if (!joined_ || fd < 0 || ::fstat(fd, &st) != 0 || st.st_nlink == 0 ||
        file_.read(&page, sizeof page, 0) != 0 || !sound(page) ||
        !same_nonce(page.nonce, seen_.nonce) || page.inode != st.st_ino || page.flags & kClean)
        return false;
    seen_ = page;
    looked_ns_ = monotonic_ns();
    return true;
}

bool Quota::take(uint64_t bytes) {
    std::lock_guard<std::mutex> hold(mutex_);
    // Without a limit nothing depends on news, so each tick's are enough.
    const bool free = joined_ && seen_.limit == 0 && monotonic_ns() - looked_ns_ < 2 * kFreeLook;
    if ((!free && !look()) || seen_.limit != granted_under_) return false;
    if (granted_ - reserved_ - published_ < int64_t(bytes)) return false;
    reserved_ += int64_t(bytes);
    spent_ns_ = monotonic_ns();
    return true;
}

// Within a session. 0: bytes are reserved.
int Quota::grant(Session &s, uint64_t bytes) {
    const uint64_t limit = s.page.limit;
    std::unique_lock<std::mutex> hold(mutex_);
    // What was granted under another limit is not to be spent.
    if (limit != granted_under_) give_back();
    granted_under_ = limit;
    const int64_t balance = granted_ - reserved_ - published_;
    if (balance < int64_t(bytes)) {
        const uint64_t need = uint64_t(int64_t(bytes) - balance);
        uint64_t room = UINT64_MAX, step = kGrant;
        if (limit) {
            if (bytes > limit) return kTooLarge;
            if (s.page.flags & kCountFirst) return kCounting;
            const uint64_t others = s.page.granted - s.accounts[s.mine].granted;
            const uint64_t total = s.page.used + others + uint64_t(std::max<int64_t>(0, granted_));
            room = limit > total ? limit - total : 0;
            step = std::min(kGrant, limit / (16 * s.page.writers)) / kPage * kPage;
        }
        if (need > room) {
            s.page.wanted = std::max(s.page.wanted, need);
            return EDQUOT;
        }
        s.grant = int64_t(std::min(room, std::max(need, step)));
    }
    reserved_ += int64_t(bytes);
    spent_ns_ = monotonic_ns();
    return 0;
}

int Quota::ask(uint64_t bytes) {
    const bool limited = options_.capacity || seen().limit;
    bool reserved = false;
    const int error = change(limited ? kPatience : kLittlePatience, [&](Session &s) {
        int answer = grant(s, bytes);
        if (answer == EDQUOT || answer == kTooLarge) {
            bury(s);
            sum_up(s);
            answer = grant(s, bytes);
        }
        reserved = answer == 0;
        return answer;
    });
    if (error == 0) return 0;
    std::lock_guard<std::mutex> hold(mutex_);
    if (reserved) reserved_ -= int64_t(bytes);
    if (limited || error >= kCounting || error == EDQUOT) return error;
    // Nobody is known to set a limit, so a ledger that cannot be used stops nobody.
    joined_ = false;
    reserved_ += int64_t(bytes);
    return 0;
}

int Quota::reserve(uint64_t bytes, int64_t deadline_ns, const std::function<bool()> &refused) {
    if (bytes == 0 || take(bytes)) return 0;
    const int64_t give_up_ns = deadline_ns ? deadline_ns : monotonic_ns() + kWaitForRoom;
    for (;;) {
        const int error = ask(bytes);
        if (error == 0) return 0;
        const bool helps = options_.collects || seen().flags & kTooHigh;
        if (error == kCounting || (error == EDQUOT && helps)) {
            wake();
            if (await_room(bytes, give_up_ns, refused)) continue;
            if (refused()) return error == kCounting ? EBUSY : error;
        }
        return told(error, bytes);
    }
}

// True: it is worth to ask again.
bool Quota::await_room(uint64_t bytes, int64_t give_up_ns, const std::function<bool()> &refused) {
    const int64_t ask_again_ns = monotonic_ns() + kSecond;  // somebody may have died
    std::unique_lock<std::mutex> hold(mutex_);
    while (!closed_ && !hopeless(seen_) && !refused() && monotonic_ns() < give_up_ns) {
        room_.wait_for(hold, std::chrono::nanoseconds(kPoll));
        if (!look() || monotonic_ns() > ask_again_ns) return true;
        if (seen_.flags & kCountFirst) continue;
        if (seen_.limit == 0 || seen_.used + seen_.granted + bytes <= seen_.limit ||
            granted_ - reserved_ - published_ >= int64_t(bytes))
            return true;
    }
    return false;
}

int Quota::told(int error, uint64_t bytes) {
    const int status = error == kCounting || error == EAGAIN ? EBUSY
                       : error == kTooLarge                  ? EDQUOT
                                                             : error;
    LedgerPage page{};
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (told_ns_ && monotonic_ns() - told_ns_ < kTellEvery) return status;
        told_ns_ = monotonic_ns();
        page = seen_;
    }
    std::string text = file_.path() + ": ";
    if (error == kCounting)
        text = directory_ + " is being counted, so nothing can be written yet";
    else if (error == kTooLarge)
        text = std::string(options_.option) + ": a block of " + std::to_string(bytes) +
               " bytes or more does not fit in " + std::to_string(page.limit) + "; raise it";
    else if (error == EDQUOT)
        text = std::string(options_.option) + ": " + directory_ + " is full: " + gib(page.used) +
               " used, " + gib(page.granted) + " being written, of " + gib(page.limit) +
               (options_.collects ? "; raise it, or remove blocks"
                                  : "; nothing is collected, as posix_gc_enable is false");
    else if (error == EAGAIN)
        text += "another writer keeps it locked; is a process stopped?";
    else if (error == EUSERS)
        text += "more than " + std::to_string(kMostWriters) + " writers use this directory";
    else
        text += errno_text(error);
    log_.write(UCM_LOG_ERROR, "%s", text.c_str());
    return status;
}

void Quota::settle(uint64_t reserved, uint64_t bytes) {
    std::lock_guard<std::mutex> hold(mutex_);
    reserved_ -= int64_t(reserved);
    published_ += int64_t(bytes);
    spent_ns_ = monotonic_ns();
    room_.notify_all();
}

// The balance; to be called with mutex_ held, before a commit.
void Quota::give_back() {
    granted_ = std::min(granted_, reserved_ + published_);
}

void Quota::tick() {
    bool due = false;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (closed_) return;
        const int64_t now = monotonic_ns();
        const bool idle = now - spent_ns_ > kSecond && granted_ > reserved_ + published_;
        if (now - looked_ns_ > (seen_.limit ? 0 : kFreeLook)) due = !look();
        if (due && !joined_) looked_ns_ = now;  // where it fails, not again at once
        if (now - handed_in_ns_ > kSecond && (idle || published_ > 0 || too_high_)) due = true;
        if (idle && due) give_back();
    }
    if (!due) due = somebody_died();
    // Whoever keeps it locked now will not for long.
    if (due)
        change(0, [&](Session &s) {
            bury(s);
            return 0;
        });
    const LedgerPage page = seen();
    bool in_vain;
    {
        std::lock_guard<std::mutex> hold(mutex_);
        in_vain = hopeless(page);
    }
    if (has_work(page) && !in_vain) wake();
}

bool Quota::somebody_died() {
    {
        std::lock_guard<std::mutex> hold(mutex_);
        const int64_t now = monotonic_ns();
        if (seen_.writers < 2 || now - checked_ns_ < kCheckEvery) return false;
        checked_ns_ = now;
    }
    std::lock_guard<std::mutex> hold(file_mutex_);
    for (size_t i = 0, n = seen().slots; i < n; i++) {
        LedgerAccount account{};
        if (file_.read(&account, sizeof account, offset_of(i)) != 0) return false;
        account.writer[sizeof account.writer - 1] = 0;
        if (account.writer[0] && name_ != account.writer &&
            !writer_lives(directory_, account.writer))
            return true;
    }
    return false;
}

bool Quota::has_work(const LedgerPage &page) const {
    if (page.limit == 0) return false;
    if (page.flags & kCountFirst) return true;
    const double start = options_.trigger * double(page.limit);
    if (page.wanted && page.flags & kTooHigh) return true;
    return options_.collects && (page.wanted || double(page.used + page.granted) > start);
}

// The last round found nothing, and nothing has come since.
bool Quota::hopeless(const LedgerPage &page) const {
    return hopeless_ && page.added == hopeless_added_ && !(page.flags & kCountFirst);
}

void Quota::wake() const {
    if (wake_) wake_();
}

void Quota::close() {
    std::lock_guard<std::mutex> hold(mutex_);
    closed_ = true;
    room_.notify_all();
}

LedgerPage Quota::seen() const {
    std::lock_guard<std::mutex> hold(mutex_);
    return seen_;
}

LedgerPage Quota::now() {
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (look()) return seen_;
    }
    change(kPatience, [](Session &) { return 0; });
    return seen();
}

bool Quota::clock_is_behind() const {
    const int64_t real = real_ns();
    std::lock_guard<std::mutex> hold(mutex_);
    return std::max(seen_.clock_ns, stamp_ns_) > real && seen_.clock_ns <= real + kDay;
}

int64_t Quota::stamp_ns() {
    const int64_t real = real_ns();
    std::lock_guard<std::mutex> hold(mutex_);
    const bool sane = seen_.clock_ns <= real + kDay && stamp_ns_ <= real + kDay;
    const int64_t last = sane ? std::max(stamp_ns_, seen_.clock_ns) : 0;
    return stamp_ns_ = std::max(real, last + 1000);
}

int Quota::begin_count(LedgerCount &count) {
    return change(kPatience, [&](Session &s) {
        bury(s);
        std::memcpy(count.nonce, s.page.nonce, sizeof count.nonce);
        s.page.flags &= ~uint32_t(kTooHigh);  // from now on it is about what follows
        count.added = s.page.added;
        count.writers.clear();
        for (const LedgerAccount &account : s.accounts)
            if (account.writer[0]) count.writers.push_back(account.writer);
        return 0;
    });
}

int Quota::end_count(const LedgerCount &count, uint64_t bytes) {
    return change(kPatience, [&](Session &s) {
        if (!same_nonce(count.nonce, s.page.nonce)) return EAGAIN;
        s.page.used = bytes + (s.page.added - count.added);
        s.page.flags &= ~uint32_t(kCountFirst);
        return 0;
    });
}

int Quota::freed(uint64_t bytes) {
    const int error = change(kPatience, [&](Session &s) {
        s.page.used -= std::min(s.page.used, bytes);
        return 0;
    });
    std::lock_guard<std::mutex> hold(mutex_);
    hopeless_ = false;
    room_.notify_all();
    return error;
}

int Quota::end_round(bool too_high, bool hopeless, int64_t eviction_age_ns) {
    const int error = change(kPatience, [&](Session &s) {
        if (too_high) s.page.flags |= kTooHigh;
        if (eviction_age_ns) s.page.eviction_age_ns = eviction_age_ns;
        s.page.wanted = 0;
        s.page.rounds++;
        return 0;
    });
    std::lock_guard<std::mutex> hold(mutex_);
    hopeless_ = hopeless;
    hopeless_added_ = seen_.added;
    room_.notify_all();
    return error;
}

int Quota::bury_dead() {
    return change(kPatience, [&](Session &s) {
        bury(s);
        return 0;
    });
}

// The account is closed; of the last writer the ledger is made sure.
void Quota::leave() {
    {
        std::lock_guard<std::mutex> hold(mutex_);
        if (!joined_) return;
        give_back();
    }
    std::lock_guard<std::mutex> hold(file_mutex_);
    Session s;
    if (begin(s, kPatience) != 0) return;
    if (commit(s) == 0) {
        // What is left is in files that could not be deleted.
        LedgerAccount &account = s.accounts[s.mine];
        s.page.used += account.granted;
        s.page.added += account.granted;
        if (account.granted) s.page.flags |= kTooHigh;
        account = LedgerAccount{};
        sum_up(s);
        if (s.page.writers == 0) {
            s.page.flags |= kClean;
            s.page.left_ns = real_ns();
        }
        s.page.check = check_of(s.page);
        account.check = check_of(account, s.page);
        UCM_FAILPOINT("ledger.before_leave");
        if (file_.write(&s.page, sizeof s.page, 0) == 0 &&
            file_.write(&account, sizeof account, offset_of(s.mine)) == 0 && s.page.writers == 0)
            ::fdatasync(file_.fd());
    }
    file_.unlock();
}

std::string local_locks(const std::string &directory) {
    struct stat st{};
    if (::stat(directory.c_str(), &st) != 0) return "";
    const std::string device =
        std::to_string(major(st.st_dev)) + ":" + std::to_string(minor(st.st_dev));
    std::ifstream mounts("/proc/self/mountinfo");
    for (std::string line; std::getline(mounts, line);) {
        std::istringstream words(line);
        std::string id, parent, here, root, where, options, word;
        words >> id >> parent >> here >> root >> where >> options;
        if (here != device) continue;
        while (words >> word && word != "-") {
        }
        words >> word >> root;  // type, source
        if (word == "fuse.hf3fs")
            return directory +
                   " is on 3FS, where locks do not reach other hosts, and so no limit does; leave "
                   "it out, and let one host make room with ucm gc";
        words >> word;
        std::istringstream all(options + "," + word);
        for (std::string option; std::getline(all, option, ',');)
            if (option == "nolock" || option == "local_lock=all" || option == "local_lock=posix" ||
                option == "nobrl")
                return directory + " is mounted at " + where + " with " + option +
                       ", so that locks do not reach other hosts; mount it without";
    }
    return "";
}

}  // namespace ucm
