// SPDX-License-Identifier: MIT
#pragma once

#include "job.h"

namespace ucm::posix {

// Serves one job of a load: header, runs of shards, checksums.
class Loader {
  public:
    Loader(Context &context, const Job &job, Scratch &scratch)
        : context_(context), job_(job), task_(job.task()), id_(job.id()), scratch_(scratch) {}

    void run();

  private:
    void load(Directory &directory);
    void load_shards(OpenBlock &block);
    // Takes the next shards that lie one after another, from number *next on.
    std::vector<Placed> next_run(const OpenBlock &block, const std::vector<Placed> &all,
                                 size_t *next) const;
    void load_run(OpenBlock &block, std::vector<Placed> &run);
    void load_alone(OpenBlock &block, const Placed &shard);
    bool sound(const Placed &shard);
    void finish(const Placed &shard, ucm_status status, int error);
    void fail_all(ucm_status status, int error = 0);

    Context &context_;
    const Job &job_;
    Task &task_;
    const BlockId id_;
    Scratch &scratch_;
    std::vector<Placed> corrupt_;  // told only when the file is out of the way
};

}  // namespace ucm::posix
