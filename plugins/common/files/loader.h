// SPDX-License-Identifier: MIT
#pragma once

#include <optional>

#include "job.h"

namespace ucm::files {

// Serves jobs of loads, one at a time: header, runs of shards, checksums. What goes wrong is tried
// again, and cleaned up, by system calls of the thread itself.
class Loader {
  public:
    Loader(Context &context, Scratch &scratch) : context_(context), scratch_(scratch) {}

    // See Lane.
    bool begin(Job &job);
    bool resume();
    Io &io() { return io_; }
    void refuse(Job &job);

  private:
    enum class Stage { kHeader, kRun };

    template <typename Step>
    bool guarded(Step step);
    void take(Job &job);
    bool start();
    bool go_on();
    void guess();
    bool after_header();
    bool guessed_right();
    void place();
    void next_run();
    bool start_run();
    void after_run();
    void load_alone(const Placed &shard);
    bool load_by_own_memory(const Placed &shard);
    bool load_by_buffer(const Placed &shard);
    void finish(const Placed &shard, ucm_status status, int error);
    bool fail_all(ucm_status status, int error = 0);
    bool end(BlockState state);

    Context &context_;
    Scratch &scratch_;
    Io io_;

    // Of the job that runs.
    Job job_;
    Task *task_ = nullptr;
    BlockId id_{};
    Directory *directory_ = nullptr;
    std::optional<OpenBlock> block_;
    Stage stage_ = Stage::kHeader;
    bool guessed_ = false;
    bool served_ = false;          // a shard was loaded
    std::vector<bool> told_;       // by number in the job
    std::vector<Placed> all_;      // in the order of the file
    size_t next_ = 0;              // in all_
    std::vector<Placed> run_;      // on their way
    std::vector<Placed> corrupt_;  // told only when the file is out of the way
};

}  // namespace ucm::files
