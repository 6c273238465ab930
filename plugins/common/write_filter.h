// SPDX-License-Identifier: MIT
//
// Keeps blocks off a disk that wears: those that may never be asked for, and those beyond a rate.
#pragma once

#include <functional>
#include <list>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "task.h"

namespace ucm {

// Remembers between half a million and a million ids, in 4 MiB; one of 500 unknown ids is taken for
// a known one.
class SeenIds {
  public:
    SeenIds();
    // Was it here before? It is from now on.
    bool meet(const BlockId &id);

  private:
    std::vector<uint64_t> now_, before_;
    size_t count_ = 0;
};

struct WriteFilterOptions {
    uint64_t bytes_per_s = 0;   // of all writers of a directory; 0: no limit
    bool second_sight = false;  // only blocks that were dumped before
};

class WriteFilter {
  public:
    explicit WriteFilter(const WriteFilterOptions &options);

    bool active() const { return options_.bytes_per_s || options_.second_sight; }
    // To be asked when a dump would begin a block. What is answered for one shard holds for all
    // shards of the block, until one of them is dumped again.
    bool admits(const BlockId &id, const std::vector<uint32_t> &shards, uint32_t shards_per_block,
                uint32_t writers);
    void wrote(uint64_t bytes, uint32_t writers);

  private:
    struct Declined {
        std::vector<bool> shards;
        size_t count = 0;
        std::list<BlockId>::iterator age;
    };

    bool follows(const BlockId &id, const std::vector<uint32_t> &shards);
    void decline(const BlockId &id, const std::vector<uint32_t> &shards, uint32_t shards_per_block);
    void pay(uint32_t writers);

    const WriteFilterOptions options_;
    std::mutex mutex_;  // guards all below
    std::unique_ptr<SeenIds> seen_;
    std::unordered_map<BlockId, Declined, BlockIdHash> declined_;  // and not yet all of its shards
    std::list<BlockId> ages_;                                      // oldest first
    double debt_ = 0;                                              // bytes
    int64_t paid_ns_ = 0;
};

}  // namespace ucm
