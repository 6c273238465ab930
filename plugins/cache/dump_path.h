// SPDX-License-Identifier: MIT
#pragma once

#include <deque>
#include <unordered_set>

#include "write_back.h"

namespace ucm::cache {

using IdSet = std::unordered_set<BlockId, BlockIdHash>;

// Copies accepted dumps into frames. Small ones at once, on the caller's thread; the rest in the
// order in which they came, on a thread that waits for room while loads go on elsewhere.
class DumpPath {
  public:
    DumpPath(Core &core, WriteBack &writer) : core_(core), writer_(writer) {}
    ~DumpPath() { stop(); }

    void start();
    void stop();  // once every job is answered

    // `inline_bytes`: how much of it the caller's thread may copy.
    void push(const JobRef &job, uint64_t inline_bytes);
    // While somebody drains, what is unfinished goes below as it comes.
    void flush(bool begin);

    // With Core::mutex held: shards of these that were accepted and not copied yet are cancelled.
    void cancel(const IdSet &ids);
    void cancelled();  // a job was

  private:
    struct Copy {
        BlockRef block;
        size_t row;
    };
    enum class Taken { kCopy, kAnswered, kNoRoom, kWait };

    void run();
    size_t pass(const JobRef &job, size_t first, uint64_t most_bytes, Lock &lock);
    void process(const JobRef &job, size_t first, Lock &lock);
    void answer_refused(Lock &lock);
    Taken take(const JobRef &job, size_t row, std::vector<Copy> &copies, Outcome &outcome);
    ucm_status copy(const JobRef &job, const std::vector<Copy> &copies);
    void land(const JobRef &job, const Copy &copy, ucm_status copied, Outcome &outcome);
    bool landed(const JobRef &job, const Copy &copy, Outcome &outcome, ucm_result &answer);
    bool make_room(const BlockId &id, Outcome &outcome);
    BlockRef joined(const JobRef &job, size_t row, Outcome &outcome);
    void answer(const JobRef &job, size_t row, const ucm_result &answer, Outcome &outcome);

    Core &core_;
    WriteBack &writer_;
    Table &table_ = core_.table;
    // All guarded by Core::mutex.
    std::deque<std::pair<JobRef, size_t>> jobs_;  // and the first row that is not copied
    int64_t look_at_ns_ = INT64_MAX;  // then a row of one of them may have waited too long
    uint32_t flushing_ = 0;
    bool stopping_ = false;
    Threads threads_;
};

}  // namespace ucm::cache
