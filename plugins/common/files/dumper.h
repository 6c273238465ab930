// SPDX-License-Identifier: MIT
#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "job.h"
#include "threads.h"

namespace ucm::files {

// What is kept of unfinished blocks before the one that rested longest is abandoned.
struct DraftLimits {
    size_t blocks = 65536;
    uint64_t bytes = UINT64_MAX;
    int64_t idle_ns = 600ll * 1000000000;
};

// An unfinished block: a temporary file and what is in it.
struct Draft {
    Draft() = default;
    Draft(Directory &where, uint32_t shards, bool replaces)
        : directory(&where),
          replace(replaces),
          have(shards),
          end(block_header_bytes(shards)),
          table(shards) {}

    Directory *directory = nullptr;
    std::string temporary;  // "": not begun
    bool replace = false;   // publish over what is there
    bool in_place = false;  // published: the temporary name is gone
    bool ragged = false;    // the file may be longer than `end`
    std::vector<bool> have;
    size_t stored = 0;      // set in have
    uint64_t answered = 0;  // shards that done called UCM_OK, duplicates too
    uint64_t end = 0;       // where the next payload goes
    uint64_t reserved = 0;  // of the directory's quota
    uint64_t claimed = 0;   // what its file may grow to
    uint32_t depth = kUnknownDepth;
    std::vector<ShardEntry> table;
    int64_t rests_since_ns = 0;

    bool begun() const { return !temporary.empty(); }
};

// The unfinished blocks of one store, and the dumps that wait to add to them. One thread at a time
// works on a block; see DumpRun.
class Dumper {
  public:
    struct Block {
        std::deque<Job> waiting;
        bool scheduled = false;  // in ready() or worked on
        bool running = false;
        uint64_t runs = 0;
        std::atomic<bool> dropped{false};  // by drop, while it runs
        bool resting = false;              // in resting_
        std::list<BlockId>::iterator place;
        Draft draft;  // of the thread that runs it; guarded by mutex_ while none does
    };

    Dumper(Context &context, Ledger &ledger, DraftLimits limits)
        : context_(context), ledger_(ledger), limits_(limits) {}

    void accept(Job job);
    // Blocks with a job that waits. Closed by stop; then what waits is still worked on.
    Queue<BlockId> &ready() { return ready_; }
    void stop() { ready_.close(); }

    // The next job of a block from ready(), for one thread until end_run; NULL: it was dropped.
    Block *take(const BlockId &id, Job &job);
    void end_run(const BlockId &id, Block &block);
    // The temporary file goes; a published block stays.
    void discard(Draft &draft);
    void abandon(const BlockId &id, Draft &draft, const char *why);
    void count_answered(Draft &draft, uint64_t shards);
    // Of a draft that will stay for a while: false, if all such would take more than their limit,
    // and none rests that could be abandoned for it.
    bool claim(Draft &draft, uint64_t bytes);

    // Ends or cancels the accepted dumps of these ids. False: some still run at the deadline.
    bool drop(const std::vector<BlockId> &ids, int64_t deadline_ns);
    // Of blocks that rest too long, or of all. Returns when the next one will be due.
    int64_t abandon_idle();
    void abandon_all();
    uint64_t unfinished_shards() const { return unfinished_.load(); }

  private:
    bool end_run_once(const BlockId &id, Block &block);
    void rest(const BlockId &id, Block &block);
    void wake(Block &block);
    void abandon_excess();
    bool abandon_oldest(const char *why);

    Context &context_;
    Ledger &ledger_;
    const DraftLimits limits_;
    Queue<BlockId> ready_;
    std::atomic<uint64_t> unfinished_{0};  // shards answered in all drafts
    std::atomic<uint64_t> claimed_{0};     // bytes, by all drafts
    std::mutex mutex_;                     // guards all below, and Block as said there
    std::condition_variable ended_;
    std::unordered_map<BlockId, Block, BlockIdHash> blocks_;
    std::list<BlockId> resting_;  // longest first
    uint64_t resting_bytes_ = 0;
};

}  // namespace ucm::files
