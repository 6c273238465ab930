// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <vector>

#include "buffers.h"
#include "frame.h"
#include "log.h"
#include "metrics.h"
#include "pace.h"
#include "task.h"
#include "threads.h"
#include "ucm/store_v1.hpp"

namespace ucm::compress {

enum Option { kOptionCodec, kOptionDtype, kOptionConcurrency, kOptionAllowLossy };
enum OwnMetric {
    kTiles = kStandardMetrics,  // by TileCodec
    kRawShards = kTiles + kTileCodecs,
    kBadFrames,
    kMemory,
    kCodec,
    kAllMetrics
};

class CompressStore;
struct Lane;

// Shards of one task on their way through the store below, each with its buffer. Made once and used
// again.
struct Piece {
    Piece(CompressStore *store, Lane *lane, size_t most);

    size_t n() const { return shards.size(); }

    CompressStore *const store;
    Lane *const lane;
    std::shared_ptr<Task> task;
    uint64_t epoch = 0;
    uint64_t number = 0;
    bool running = false;  // guarded by the lane's mutex
    bool replace = false;
    std::vector<size_t> shards;  // indexes in the task; the arrays below are parallel to it
    std::vector<uint8_t> ids;
    std::vector<uint32_t> indexes, depths;
    std::vector<void *> buffers;
    std::vector<uint64_t> frames, raw_lengths;  // frames: their lengths
    std::atomic<uint64_t> moved{0};             // bytes, by the store below
    uint64_t period = 0;                        // of Pace, 0: none
    std::atomic<size_t> holders{0};             // its shards, and the lower store until finished
};

// Transfers of one direction: what was accepted, and the buffers and pieces that move it.
struct Lane {
    Lane(CompressStore *store, ucm_store *lower, bool dumps, uint64_t buffer_bytes, size_t threads);

    struct Work {
        std::shared_ptr<Task> task;
        uint64_t epoch;
        size_t next;
        std::vector<bool> removed;  // by shard; empty: none
        bool in_order = false;      // a shard comes twice: one piece at a time, the first wins
    };
    struct Frame {
        Piece *piece;
        size_t i;
    };

    // Work of one thread that others may take part in; lives on its stack.
    struct Shared {
        const std::function<void(size_t, FrameCoder &)> &work;
        const size_t n;
        size_t next, helpers;
    };

    const bool dumps;
    const size_t threads;
    size_t buffers;  // free ones; guarded by mutex
    BufferPool pool;
    const Registered registered;  // the pool, with the store below
    size_t piece_most;
    std::vector<std::unique_ptr<Piece>> pieces;

    std::mutex mutex;  // guards all below
    std::condition_variable wake, ended, helped;
    std::deque<Work> queue;
    std::vector<Piece *> idle;   // pieces
    std::vector<Piece *> busy;   // refused below with UCM_BUSY, oldest first
    std::vector<Frame> arrived;  // to decode; a ring, as long as there are buffers
    size_t arrived_first = 0, arrived_count = 0;
    std::vector<Shared *> shared;  // with parts that nobody does yet
    uint64_t next_number = 1;
    int64_t retry_ns = 0;  // when to submit busy pieces again
    int64_t sweep_ns = 0;  // when to look for cancelled and late tasks
    bool stopping = false;
};

// The threads of a lane, for one of them.
class LaneTeam final : public Team {
  public:
    LaneTeam(Lane &lane, FrameCoder &own) : lane_(lane), own_(own) {}
    void run(size_t n, const std::function<void(size_t, FrameCoder &)> &work) override;
    // With lane.mutex held on entry and exit, and counted in helpers: does parts of the work.
    static void help(Lane::Shared &shared, Lane &lane, FrameCoder &own,
                     std::unique_lock<std::mutex> &hold);

  private:
    Lane &lane_;
    FrameCoder &own_;
};

// A layer that stores frames (docs/frame-format.md) in place of shards. Dump threads encode into
// buffers and hand these to the store below; load threads hand it buffers and decode what arrives.
class CompressStore final : public Store {
  public:
    explicit CompressStore(const ucm_open_args &args);
    ~CompressStore() override;

    uint64_t capabilities() const override;
    ucm_status lookup(const ucm_lookup_args &, ucm_error *) override;
    ucm_status load(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status dump(const ucm_transfer &, ucm_task *, ucm_error *) override;
    ucm_status cancel(ucm_task, ucm_error *) override;
    ucm_status prefetch(const ucm_ids_args &, ucm_error *) override;
    ucm_status touch(const ucm_ids_args &, ucm_error *) override;
    ucm_status remove(const ucm_ids_args &, ucm_error *) override;
    ucm_status drain(const ucm_wait_args &, ucm_report &, ucm_error *) override;
    ucm_status metrics(const ucm_metrics_args &, ucm_error *) override;
    ucm_status close(const ucm_wait_args &, ucm_report &, ucm_error *) override;

    static void lower_layout(const ucm_layout_args &, ucm_layout &);

  private:
    // What a thread does next.
    struct Step {
        enum Kind { kStop, kHelp, kDecode, kSubmit, kFill, kRefuse } kind = kStop;
        Lane::Shared *shared = nullptr;
        Lane::Frame frame{};
        Piece *piece = nullptr;
        Lane::Work work{};  // kRefuse: shards from next to until
        size_t until = 0;
        ucm_status status = UCM_OK;
    };

    void start_threads();
    void run(Lane &lane, FrameCoder &coder);
    Step next_step(Lane &lane);
    bool choose(Lane &lane, int64_t now, Step &step);
    bool refuse(Lane &lane, int64_t now, Step &step);
    bool cut(Lane &lane, Step &step);

    void refuse_shards(const Lane &lane, const Step &step);
    void encode(Piece &piece, FrameCoder &coder);
    void decode(Piece &piece, size_t i, FrameCoder &coder);
    void submit(Piece &piece);
    ucm_status hand_over(Piece &piece, ucm_error *err);
    void complete(Piece &piece, size_t i, const ucm_result &result);
    void give(Lane &lane, void *buffer);
    void drop(Piece &piece);
    static void on_done(void *piece, size_t i, const ucm_result *result);
    static void on_finished(void *piece);

    ucm_status accept(const ucm_transfer &, Lane &, ucm_task *, ucm_error *);
    void forget_queued(const std::unordered_set<BlockId, BlockIdHash> &ids);
    ucm_status wait_for_dumps(const std::unordered_set<BlockId, BlockIdHash> &ids,
                              int64_t deadline_ns, ucm_error *);
    bool closed(ucm_error *) const;

    bool suspected(const BlockId &id) const;
    void suspect(const BlockId &id);
    void clear(const BlockId &id);

    const Logger log_;
    ucm_store *const lower_;
    Pace pace_;
    Tasks tasks_;
    Metrics<kAllMetrics> metrics_;
    Ledger ledger_;  // dump shards until the store below has accepted them
    Admission load_admission_, dump_admission_;
    std::atomic<bool> closing_{false};

    mutable std::mutex suspects_mutex_;                  // guards the two below
    std::unordered_set<BlockId, BlockIdHash> suspects_;  // stored frames that are to be replaced
    std::deque<BlockId> suspects_order_;
    std::atomic<size_t> suspects_count_{0};

    // Absent where the store was opened for lookup only.
    std::unique_ptr<Geometry> geometry_;
    std::unique_ptr<Lane> loads_, dumps_;
    std::vector<std::unique_ptr<FrameCoder>> coders_;
    Threads threads_;
};

}  // namespace ucm::compress
