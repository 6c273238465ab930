// SPDX-License-Identifier: MIT
//
// Which blocks a space holds, in memory: 8 bytes a block in tables that are three quarters full.
// The folders are the truth. They are listed once in the background, then the ring of recent.h
// tells what changes, and slow rounds find what nobody told. See docs/block-format.md, "Lookup".
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "block_file.h"
#include "log.h"
#include "mounts.h"
#include "recent.h"

namespace ucm {

// A set of 64-bit hashes, none of them 0. A hash that two blocks share is one member.
class HashTable {
  public:
    bool has(uint64_t hash) const;
    // True: it was not there, or was.
    bool insert(uint64_t hash);
    bool erase(uint64_t hash);
    // Room for so many, in a table that holds nothing.
    void reserve(size_t n);
    size_t size() const { return size_; }
    size_t bytes() const { return capacity_ * sizeof(uint64_t); }

  private:
    size_t home(uint64_t hash) const;
    size_t next(size_t at) const { return at + 1 == capacity_ ? 0 : at + 1; }
    void grow(size_t capacity);

    std::unique_ptr<uint64_t[]> slots_;  // 0: free
    uint32_t size_ = 0, capacity_ = 0;
};

// The blocks of one space in one directory, for all handles of this process.
class BlockIndex {
  public:
    // `space` is "<namespace>/<32 hex>" below the directory. The same object while anybody has it.
    static std::shared_ptr<BlockIndex> of(const std::string &directory, const DirectoryId &id,
                                          const std::string &space);
    explicit BlockIndex(std::string space_path, const FileSystem &file_system,
                        uint32_t ring_slots = kRingSlots);

    enum class Answer { kPresent, kAbsent, kUnsure };
    // Hears what other processes did; to be called at the beginning of each lookup. True: there is
    // something for walk to do. Over a network walk hears, since that may hang; then await_news
    // waits for it, not for long.
    bool hear();
    void await_news();
    // Unsure: look has to tell.
    Answer find(const BlockId &id) const;
    // Asks the file system, and remembers the block if its file is there. Throws where that cannot
    // be told.
    bool look(const BlockId &id);

    // What this process did; others are told: of what was published by tell, some blocks later, or
    // by tidy. `anew`: it was not there before; otherwise only if it was not known. The maker may
    // be NULL.
    void published(const BlockId &id, bool anew, const Maker *maker);
    void removed(const BlockId &id, const Maker *maker);
    // Before a transfer is done.
    void tell(const Maker *maker);
    // A load found no file.
    void missed(const BlockId &id);

    // Appends to the ring what waits for it; `now`: even if it could wait for more.
    void tidy(const Maker *maker, bool now = false);
    // Lists and checks folders; returns how long to wait before the next time.
    int64_t walk(const std::atomic<bool> &stop, const Maker *maker, const Logger &log);

    uint64_t blocks() const { return blocks_.load(std::memory_order_relaxed); }
    uint64_t bytes() const;
    // Folders of which lookups need no look at the files, of kFolders.
    size_t listed() const;

    static constexpr size_t kFolders = 4096;

  private:
    struct Step {
        uint64_t hash;
        bool add;
    };
    // What is known of one folder.
    struct Folder {
        mutable std::atomic<bool> held{false};  // guards all below; never held for long
        bool listed = false;
        uint32_t epoch = 0;     // when it was last known to be right
        uint32_t removals = 0;  // counts them
        HashTable table;
        std::unique_ptr<std::vector<Step>> meanwhile;  // while it is being listed
    };
    struct Hold;
    // What the walker remembers of it.
    struct Seen {
        struct timespec changed{};
        int64_t since_ns = 0;  // seen with that time; 0: never
        bool trusted = false;  // the list is of that time for sure
    };

    bool look(const BlockId &id, bool *learned);
    void hear_of(const Change &change);
    void hear_if_due();
    bool heard_within(int64_t ns) const;
    void apply(Folder &folder, uint64_t hash, bool add);
    void hear_now();
    void doubt(const BlockId &id);
    bool doubted(const BlockId &id) const;
    void settle_doubts(const std::atomic<bool> &stop);
    void begin(Folder &folder);
    void cancel(Folder &folder);
    void install(Folder &folder, HashTable table, uint32_t epoch);
    void forget(Folder &folder);
    bool round(const std::atomic<bool> &stop, uint32_t epoch);
    void visit(size_t number, uint32_t epoch, const std::atomic<bool> &stop);
    bool list(const std::string &path, const std::atomic<bool> &stop, HashTable &out) const;
    bool walk_wanted(int64_t now_ns) const;
    bool walk_now(const std::atomic<bool> &stop, const Maker *maker);
    void warn_once(const Logger &log);

    const std::string path_;
    const FileSystem file_system_;
    Recent ring_;
    std::unique_ptr<Folder[]> folders_;
    std::atomic<uint64_t> blocks_{0};
    // All folders must have been seen since it became this; 0: nobody tells of changes.
    std::atomic<uint32_t> epoch_{0};
    std::atomic<int64_t> heard_ns_{0}, asked_ns_{0}, append_ns_{0}, wake_ns_{0};
    std::atomic<bool> walking_{false};

    std::atomic<bool> deaf_{false};  // nothing was heard though somebody waited

    std::mutex await_mutex_;  // guards nothing: for news_
    std::condition_variable news_;
    std::mutex hear_mutex_;  // guards latest_: the ring is read, and told on, by one at a time
    uint32_t latest_ = 0;    // the highest epoch that was

    mutable std::mutex doubt_mutex_;  // guards the three below
    struct Doubt {
        int64_t due_ns;
        uint64_t number;
    };
    std::unordered_map<BlockId, Doubt, BlockIdHash> doubts_;
    uint64_t next_doubt_ = 0;
    std::deque<BlockId> doubt_order_;
    std::atomic<size_t> doubt_count_{0};

    std::mutex walk_mutex_;  // guards all below: one thread walks
    std::vector<Seen> seen_;
    std::atomic<uint32_t> round_epoch_{0};  // of the last whole round
    int64_t round_due_ns_ = 0;
    bool warned_ = false;
};

}  // namespace ucm
