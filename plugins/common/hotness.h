// SPDX-License-Identifier: MIT
//
// When blocks were last used: the modification times of their files.
#pragma once

#include <sys/stat.h>

#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "ledger.h"

namespace ucm {

int64_t modified_ns(const struct stat &st);

class Hotness {
  public:
    explicit Hotness(Quota &quota) : quota_(quota) {}

    // A block was loaded, or asked about; what its file was then. Cheap: the stamp comes later.
    void used(const std::string &path, const struct stat &file);
    // The same, whatever the file is.
    void touched(const std::string &path);
    // A new file that is about to be published. Its time is right unless the clock went back.
    void stamp_new(int fd);
    // Writes the stamps of what was used.
    void tick();

  private:
    void stamp(const std::string &path) const;

    Quota &quota_;
    std::mutex mutex_;                  // guards waiting_
    std::vector<std::string> waiting_;  // bounded: what comes when it is full is not stamped
};

}  // namespace ucm
