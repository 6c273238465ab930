// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "ucm/store_v1.hpp"

namespace ucm::fault {

enum class Operation { kLoad, kDump, kLookup, kRemove };

// What happens to one shard of a load or dump, or to one lookup or remove.
struct Plan {
    ucm_status status = UCM_OK;  // how it ends, without reaching the store below
    int error = 0;
    int64_t delay_ms = 0;  // how long its end is held back
    bool hang = false;
    bool flip = false;
    uint64_t version = 0;  // of the rules that made it
    uint64_t where = 0;    // which bit, modulo how many there are
    bool shorten = false;
    uint64_t bytes = 0;              // how many are left of it; more than there are: half
    bool hit = false, miss = false;  // what a lookup says of all its blocks

    bool plain() const {
        return status == UCM_OK && !delay_ms && !hang && !flip && !shorten && !hit && !miss;
    }
};

// One rule of the text, and how often it was asked.
struct Rule {
    enum class Kind { kStatus, kBusy, kDelay, kHang, kFlip, kShort, kHit, kMiss };

    Operation operation;
    Kind kind;
    Plan effect;
    uint64_t at = 0, every = 0;  // 0: any
    double p = 1;
    uint64_t asked = 0, random = 0;

    bool fires();
};

// The rules in force: those of the option, or of the control file while it exists.
class Rules {
  public:
    // Throws Error where the text cannot be read.
    Rules(std::string text, std::string control, uint64_t seed);

    // Looks at the control file. True: there are other rules than before. Fills *problem where they
    // cannot be read; the old ones stay in force then.
    bool refresh(std::string *problem);
    bool watches() const { return !control_.empty(); }
    uint64_t version() const { return version_.load(std::memory_order_acquire); }

    Plan next(Operation operation);
    // Is this whole transfer refused with BUSY?
    bool busy(Operation operation);

  private:
    const std::string given_, control_;
    const uint64_t seed_;
    std::atomic<uint64_t> version_{0};  // of the rules
    std::atomic<bool> any_{false};      // is there a rule at all?
    std::mutex mutex_;                  // guards all below
    std::string text_;
    std::vector<Rule> rules_;
};

}  // namespace ucm::fault
