// SPDX-License-Identifier: MIT
//
// Counts what a storage directory holds, and evicts what was used longest ago. One writer of all
// collects at a time. See docs/block-format.md.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "ledger.h"
#include "task.h"

namespace ucm {

// What a file counts: what it takes, but no less than its size.
uint64_t file_bytes(const struct stat &st);

class Collector {
  public:
    // A block of any space ("<namespace>/<32 hex>") is no more.
    using Evicted = std::function<void(const std::string &space, const BlockId &id)>;

    Collector(const std::string &directory, Quota &quota, WriterFolder &writer,
              const Access &access, const Logger &log, Evicted evicted);

    // Counts and evicts what is due, on a thread that may take long; returns soon once `stop` is
    // set.
    void work(const std::atomic<bool> &stop);
    // The file system was full: evicts a part of what is there.
    void was_full() { full_ = true; }

    uint64_t evicted_blocks() const { return evicted_blocks_; }
    uint64_t evicted_bytes() const { return evicted_bytes_; }

  private:
    struct Candidate {
        uint32_t space;
        uint32_t depth;
        BlockId id;
        int64_t stamp_ns;
        uint64_t bytes;
    };
    struct Walk;
    struct Round;

    bool due(const LedgerPage &page) const;
    uint64_t excess(const LedgerPage &page, bool full) const;
    bool lock();
    void collect(const std::atomic<bool> &stop);
    bool count(const std::atomic<bool> &stop, int64_t clock_ns);
    void sweep() const;
    void choose(std::vector<Candidate> &all, int64_t now_ns);
    void prepare();
    void evict(uint64_t bytes, Round &round, const std::atomic<bool> &stop);
    void evict_one(const Candidate &candidate, Round &round);
    void hand_in(Round &round);
    void tell(const Round &round) const;
    std::string path_of(const Candidate &candidate) const;

    const std::string directory_;
    Quota &quota_;
    const Logger &log_;
    const Evicted evicted_;
    SharedFile lock_;
    std::atomic<bool> full_{false};
    std::atomic<uint64_t> evicted_blocks_{0}, evicted_bytes_{0};

    // Of the thread that works.
    bool locked_ = false;
    int64_t worked_ns_ = 0;
    std::vector<std::string> spaces_;
    std::vector<std::pair<int, Candidate>> queue_;  // with its class; what goes first is last
    std::vector<Candidate> ready_;                  // the same, of the class whose turn it is
    int64_t walked_ns_ = 0;
    uint64_t my_round_ = 0;
    int64_t hopeless_until_ns_ = 0;
    uint64_t hopeless_added_ = 0;
};

}  // namespace ucm
