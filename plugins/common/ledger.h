// SPDX-License-Identifier: MIT
//
// The quota of a storage directory: a file that all its writers share says how much is used, and
// what each of them may still write. See docs/block-format.md.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "log.h"
#include "shared_file.h"

namespace ucm {

struct QuotaOptions {
    const char *option = "posix_capacity_gb";  // what messages call it
    uint64_t capacity = 0;                     // bytes for this directory; 0: this writer sets none
    bool collects = true;
    double trigger = 0.9, recycle = 0.1;
};

// As they stand in the file.
struct LedgerPage {
    char magic[8];
    uint32_t version, flags;
    uint8_t nonce[16];  // another one: the file was made anew
    uint64_t inode;     // its own; another one: a copy
    uint64_t used;      // bytes of all that is in no account
    uint64_t added;     // ever, to `used`
    uint64_t granted;   // sum of the accounts
    uint64_t wanted;    // somebody waits for so much room; 0: nobody
    uint64_t limit;     // smallest capacity of a living writer; 0: none
    uint64_t rounds;    // of collecting
    int64_t clock_ns;   // highest stamp given out
    int64_t eviction_age_ns;
    int64_t left_ns;  // CLOCK_REALTIME when the last writer left
    uint32_t slots, writers;
    uint64_t check;
};
static_assert(sizeof(LedgerPage) == 128);

enum LedgerFlag : uint32_t {
    kCountFirst = 1,  // `used` may be too low: nothing is granted under a limit until it is counted
    kTooHigh = 2,     // `used` may be too high: to be counted before anything is evicted
    kClean = 4        // the last writer has left, and nothing has changed since
};

struct LedgerAccount {
    char writer[216];  // name of its folder; "": free
    uint64_t granted, capacity, zero[2];
    uint64_t check;
};
static_assert(sizeof(LedgerAccount) == 256);

// What a count must know of the time it began.
struct LedgerCount {
    uint8_t nonce[16] = {};
    uint64_t added = 0;
    std::vector<std::string> writers;  // whose temporary files are in their accounts
};

// The account of one writer in the ledger of one directory. Any thread may call.
class Quota {
  public:
    Quota(const std::string &directory, WriterFolder &writer, const Access &access,
          const QuotaOptions &options, const Logger &log);
    // What is reserved still counts: its files could not be deleted.
    ~Quota();
    Quota(const Quota &) = delete;
    Quota &operator=(const Quota &) = delete;

    const QuotaOptions &options() const { return options_; }

    // Room for bytes that are about to be written: 0 or an errno, which is told in the log; EDQUOT:
    // there is none, after waiting, where collecting may help, until the deadline (0: for 10
    // seconds) or until `refused` says that nobody wants it any more; it takes no lock.
    int reserve(uint64_t bytes, int64_t deadline_ns, const std::function<bool()> &refused);
    // What was reserved has become so many bytes of a published file, or nothing.
    void settle(uint64_t reserved, uint64_t bytes);
    // Bytes went, and nobody says how many.
    void too_high() { too_high_ = true; }

    // Every 20 ms or so: joins, hands in what was published, gives back what is not needed.
    void tick();
    // Called when there is something to collect or to count.
    void on_work(std::function<void()> wake) { wake_ = std::move(wake); }
    // Ends waiting for room.
    void close();
    void wake() const;

    // The ledger as it was last seen.
    LedgerPage seen() const;
    // A stamp for a file: the time, but never less than one that was given out before.
    int64_t stamp_ns();
    bool clock_is_behind() const;

    // For the collector. Those that return a number: 0 or an errno.
    LedgerPage now();  // as it is
    int begin_count(LedgerCount &count);
    int end_count(const LedgerCount &count, uint64_t bytes);
    int freed(uint64_t bytes);
    int end_round(bool too_high, bool hopeless, int64_t eviction_age_ns);
    int bury_dead();

  private:
    // The ledger while it is locked.
    struct Session {
        LedgerPage page{};
        std::vector<LedgerAccount> accounts;
        std::vector<size_t> changed;  // accounts that are not mine
        size_t mine = 0;
        int64_t grant = 0;
        bool was_clean = false;
    };

    template <typename Body>
    int change(int64_t patience_ns, Body body);
    int begin(Session &s, int64_t patience_ns);
    int read_all(Session &s);
    int enter(Session &s);
    bool is_mine(const Session &s) const;
    void bury(Session &s) const;
    int commit(Session &s);
    void sum_up(Session &s) const;
    int grant(Session &s, uint64_t bytes);
    int ask(uint64_t bytes);
    bool take(uint64_t bytes);
    void give_back();
    bool look();
    bool has_work(const LedgerPage &page) const;
    bool hopeless(const LedgerPage &page) const;
    bool await_room(uint64_t bytes, int64_t give_up_ns, const std::function<bool()> &refused);
    bool somebody_died();
    void tell_limit(const Session &s);
    int told(int error, uint64_t bytes);
    void check_locks();
    void leave();

    const std::string directory_;
    WriterFolder &writer_;
    const Access &access_;
    const QuotaOptions options_;
    const Logger &log_;
    const pid_t process_;
    std::function<void()> wake_;

    std::mutex file_mutex_;  // one user of file_ at a time, and of all here; before mutex_
    SharedFile file_;
    std::string name_;  // in my account
    size_t slot_ = 0;
    uint64_t in_file_ = 0;  // granted, as my account says

    mutable std::mutex mutex_;  // guards all below
    std::condition_variable room_;
    LedgerPage seen_{};
    bool joined_ = false, closed_ = false, hopeless_ = false;
    int64_t granted_ = 0, reserved_ = 0, published_ = 0;  // the latter two are parts of the first
    int64_t spent_ns_ = 0;                                // when something was last reserved
    int64_t told_ns_ = 0, stamp_ns_ = 0;
    int64_t looked_ns_ = 0, handed_in_ns_ = 0, checked_ns_ = 0;
    uint64_t hopeless_added_ = 0, granted_under_ = 0;  // the limit of the last grant
    std::atomic<bool> too_high_{false};
    std::atomic<uint64_t> told_limit_{0};
};

// "" or why locks in this directory reach this machine only, and what to change.
std::string local_locks(const std::string &directory);

}  // namespace ucm
