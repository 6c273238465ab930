// SPDX-License-Identifier: MIT
//
// The file `recent` of a space: a ring of what was last published and removed, by which processes
// tell each other. A hint: it may be lost, torn or replaced at any time, and then whoever reads it
// looks into the folders again. See docs/block-format.md.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "access.h"
#include "task.h"
#include "writer_lock.h"

namespace ucm {

constexpr uint32_t kRingSlots = 65536;

struct Change {
    enum What : uint8_t { kPublished = 1, kRemoved = 2 };
    BlockId id;
    What what;
};

// Who makes files where there are none: a handle that writes.
struct Maker {
    WriterFolder &writer;
    const Access &access;
};

// The ring of one space, for all handles of this process: they share its lock.
class Recent {
  public:
    Recent(std::string space, bool local, uint32_t slots = kRingSlots);
    Recent(const Recent &) = delete;

    enum class News {
        kSame,    // what is new was appended to `out`, in its order
        kLost,    // something is not known: look into the folders again
        kGone,    // there is no file, so nobody tells
        kFailed,  // it cannot be read for now
    };
    // What others wrote since the last call.
    News read(std::vector<Change> &out);

    // Puts it on the list of what is to be appended.
    // Returns how many are on it now.
    size_t note(const BlockId &id, Change::What what);
    bool noted() const { return noted_.load(std::memory_order_relaxed); }
    // Appends the list. Where there is no file the maker makes one; without a maker it is dropped,
    // since then nobody reads. False: it stays on the list, to be tried again.
    bool flush(const Maker *maker);
    // Makes the file where there is none. False: it could not.
    bool make(const Maker &maker);

    // "" or why there cannot be a ring here.
    std::string impossible() const;

  private:
    struct Header;
    struct Record;
    using Slot = std::array<uint8_t, 32>;

    std::string path() const { return space_ + "/recent"; }
    int open(int flags);
    int follow();
    int read_header(Header &header) const;
    News adopt(const Header &header);
    bool read_records(const Header &header, std::vector<Change> &out);
    bool mine(uint64_t number);
    int append(const std::vector<Change> &batch, bool lost, const Maker *maker);
    int lock();
    int write(Header header, const std::vector<Change> &batch, bool lost);
    int build(const Maker &maker, std::string &temporary);
    int make_file(const Maker &maker, bool replace);
    void forbid(int error);

    const std::string space_;
    const bool local_;
    const uint32_t slots_;  // of a new one

    std::mutex list_mutex_;  // guards list_ and lost_
    std::vector<Change> list_;
    bool lost_ = false;  // some that should be on it are not
    std::atomic<bool> noted_{false};

    std::mutex file_mutex_;  // guards all below, and the file from lock to unlock
    ForkClosed fd_;
    bool known_ = false;  // the next ones are of the file that was read before
    dev_t device_ = 0;
    ino_t inode_ = 0;
    std::array<uint8_t, 16> nonce_{};
    uint64_t position_ = 0;                          // the last record that was read
    Slot last_{};                                    // what stood in its slot
    std::deque<std::pair<uint64_t, uint64_t>> own_;  // first and last number of what we wrote
    int64_t forbidden_until_ns_ = 0;                 // none is made before, since locks failed
    int64_t busy_until_ns_ = 0;                      // another held the lock for too long

    mutable std::mutex told_mutex_;  // guards impossible_
    std::string impossible_;
};

}  // namespace ucm
