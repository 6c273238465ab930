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

namespace ucm::posix {

// What is kept of unfinished blocks before the one that rested longest is abandoned.
struct DraftLimits {
    size_t blocks = 65536;
    uint64_t bytes = UINT64_MAX;
    int64_t idle_ns = 600ll * 1000000000;
};

// An unfinished block: a temporary file and what is in it.
struct Draft {
    Directory *directory = nullptr;
    std::string temporary;  // "": not begun
    bool replace = false;   // publish over what is there
    bool ragged = false;    // the file may be longer than `end`
    std::vector<bool> have;
    size_t stored = 0;                           // set in have
    uint64_t answered = 0;                       // shards that done called UCM_OK, duplicates too
    uint64_t end = 0;                            // where the next payload goes
    uint64_t reserved = 0, published_bytes = 0;  // of the quota; what the published file takes
    uint32_t depth = kUnknownDepth;
    std::vector<ShardEntry> table;
    int64_t rests_since_ns = 0;

    bool begun() const { return !temporary.empty(); }
};

// The unfinished blocks of one store, and the dumps that wait to add to them. One thread at a time
// works on a block.
class Dumper {
  public:
    Dumper(Context &context, Ledger &ledger, DraftLimits limits)
        : context_(context), ledger_(ledger), limits_(limits) {}

    void accept(Job job);
    // Until stop, and until nothing waits any more.
    void work(Scratch &scratch);
    void stop() { ready_.close(); }
    // Ends or cancels the accepted dumps of these ids. False: some still run at the deadline.
    bool drop(const std::vector<BlockId> &ids, int64_t deadline_ns);
    // Of blocks that rest too long, or of all. Returns when the next one will be due.
    int64_t abandon_idle();
    void abandon_all();
    uint64_t unfinished_shards() const { return unfinished_.load(); }

  private:
    struct Block {
        std::deque<Job> waiting;
        bool scheduled = false;  // in ready_ or worked on
        bool running = false;
        uint64_t runs = 0;
        std::atomic<bool> dropped{false};  // by drop, while it runs
        bool resting = false;              // in resting_
        std::list<BlockId>::iterator place;
        Draft draft;  // of the thread that runs it; guarded by mutex_ while none does
    };
    // The work on one job. Shards go by their number within it.
    struct Run {
        Run(Job &j, Block &b, Scratch &s)
            : job(j), block(b), scratch(s), id(j.id()), results(j.size(), result(UCM_PENDING)) {}

        Job &job;
        Block &block;
        Scratch &scratch;
        const BlockId id;
        std::vector<ucm_result> results;               // UCM_PENDING: not decided
        std::vector<size_t> fresh;                     // not in the draft yet
        std::vector<std::pair<size_t, size_t>> twins;  // of a fresh one in this job
        std::vector<size_t> written;
        bool abandoned = false;
    };

    void run(Block &block, Job &job, Scratch &scratch);
    bool end_run(const BlockId &id, Block &block);
    void decide(Run &run);
    bool begin(Run &run, Directory &directory);
    bool admits(const Run &run, Directory &directory);
    Draft empty_draft(Directory &directory, bool replace) const;
    void choose(Run &run);
    int open_temporary(Run &run, File &file);
    int make_temporary(Run &run, File &file);
    void write_fresh(Run &run, File &file);
    int reserve(Run &run, const std::vector<Placed> &placed);
    std::vector<Placed> next_run(Run &run, const File &file, size_t from,
                                 std::vector<size_t> &which);
    void settle(Run &run, File &file);
    void finish(Run &run, File &file);
    int publish(Run &run, File &file);
    int put_in_place(Run &run, const struct stat &mine);
    ucm_status refused(const Run &run) const;
    static void fail(Run &run, const std::vector<size_t> &which, ucm_status status, int error);
    void answer(Run &run);

    void rest(const BlockId &id, Block &block);
    void wake(Block &block);
    void discard(Draft &draft);
    void abandon(const BlockId &id, Draft &draft, const char *why);
    void abandon_excess();

    Context &context_;
    Ledger &ledger_;
    const DraftLimits limits_;
    Queue<BlockId> ready_;
    std::atomic<uint64_t> unfinished_{0};  // shards answered in all drafts
    std::mutex mutex_;                     // guards all below, and Block as said there
    std::condition_variable ended_;
    std::unordered_map<BlockId, Block, BlockIdHash> blocks_;
    std::list<BlockId> resting_;  // longest first
    uint64_t resting_bytes_ = 0;
};

}  // namespace ucm::posix
