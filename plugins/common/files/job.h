// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "block_file.h"
#include "directory.h"
#include "file.h"
#include "log.h"
#include "medium.h"
#include "metrics.h"
#include "task.h"

namespace ucm::files {

// Those of every store of block files (metrics.inc); a medium's follow.
enum Metric {
    kCorruptShards = kStandardMetrics,
    kQuarantinedBlocks,
    kPublishedBlocks,
    kAbandonedBlocks,
    kUnfinishedBlocks,
    kLookupStats,
    kIndexBlocks,
    kIndexListed,
    kDeclinedBlocks,
    kEvictedBlocks,
    kEvictedBytes,
    kQuotaUsed,
    kQuotaLimit,
    kFileMetrics
};
constexpr size_t kMediumMetrics = 8;  // what a medium may count besides

// What is synced before a block is published: nothing, its file, or its folder too.
enum class Durability { kNone, kData, kFull };

// What every part of one open store uses.
struct Context {
    Context(const ucm_open_args &args, const char *layer, Medium &medium, const ucm_value &paths,
            const Wanted &wanted, const char *durability_word, bool verify, bool zero_copy);

    const char *const layer;
    Medium &medium;
    const bool lookup_only;
    const Logger log;
    Directories directories;
    const Durability durability;
    const bool verifies;
    const BlockShape shape;
    const Rows rows;
    DirectMemory direct_memory;
    Metrics<kFileMetrics + kMediumMetrics> metrics;
};

// A task in its jobs.
struct Batch {
    std::shared_ptr<Task> task;
    std::vector<uint32_t> order;   // indexes of the task, block by block
    std::vector<uint32_t> starts;  // of each job in order, and its end
    std::atomic<size_t> jobs_left{0};
    std::atomic<size_t> untold{0};  // jobs that may publish still; of a dump
    uint64_t epoch = 0;             // of the ledger; dump
    int64_t start_ns = 0;
    bool dump = false;
};

// The shards of one block in one task.
struct Job {
    std::shared_ptr<Batch> batch;
    size_t number = 0;

    Task &task() const { return *batch->task; }
    size_t size() const { return batch->starts[number + 1] - batch->starts[number]; }
    size_t index(size_t i) const { return batch->order[batch->starts[number] + i]; }
    BlockId id() const { return task().id(index(0)); }
};

// Groups a transfer by block, in order of first appearance.
std::shared_ptr<Batch> split(const ucm_transfer &transfer, bool dump);
void log_dispatch(const Context &context, const Batch &batch);

// Counts the result and hands it on; to be called without locks.
void complete(Context &context, const Job &job, size_t index, const ucm_result &result);
// Before the shards of a dump are completed: the last job of a transfer tells other processes what
// all of them have published.
void tell_if_last(Context &context, const Job &job);
// After the last shard of the job.
void end_job(const Context &context, const Job &job);

enum class BlockState { kFits, kAbsent, kMisfit, kCorrupt, kFailed };

// A published block's file.
struct OpenBlock {
    OpenBlock(Directory &directory, Scratch &scratch) : file(directory, scratch) {}

    File file;
    BlockHeader header;
    struct stat st{};
    int error = 0;  // kFailed

    // kUnknownBytes: what the kernel says is not to be believed.
    uint64_t bytes(const Context &context) const {
        return context.medium.sizes_lag() ? kUnknownBytes : uint64_t(st.st_size);
    }
};
// kFits: it is a file, whatever is in it.
BlockState open_file(Directory &directory, const BlockId &id, OpenBlock &out);
// Reads its header, and reads one that looks bad once more.
BlockState judge_block(const Context &context, const BlockId &id, Scratch &scratch, OpenBlock &out);
// Both.
BlockState open_block(const Context &context, Directory &directory, const BlockId &id,
                      Scratch &scratch, OpenBlock &out);

}  // namespace ucm::files
