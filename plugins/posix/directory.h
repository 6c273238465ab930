// SPDX-License-Identifier: MIT
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "block_file.h"
#include "log.h"
#include "writer_lock.h"

namespace ucm::posix {

// One of storage_backends.
class Directory {
  public:
    // Throws where the directory cannot be used. A reader makes nothing and needs no permission to.
    Directory(const std::string &path, bool writes, bool direct, const Logger &log);

    const std::string &path() const { return path_; }
    // A directory that nobody has written to has no id yet, and no blocks.
    bool identified();
    const DirectoryId &id() const { return id_; }
    std::string block_path(const BlockId &id) const { return path_ + "/" + block_name(id); }

    bool direct() const { return direct_.load(std::memory_order_relaxed); }
    // The file system cannot do it: from now on as if io_direct were off.
    void refuse_direct();

    std::string temporary(const BlockId &id) { return writer_->temporary(id.hex()); }
    // After a temporary file could not be made: throws where the directory is not what it was.
    void renew_writer();
    int make_block_folder(const BlockId &id) const;
    // Takes the block away from its name; false where it is no longer this file.
    bool quarantine(const BlockId &id, dev_t device, ino_t inode);

  private:
    std::string path_;
    const Logger &log_;
    std::atomic<bool> direct_;
    std::mutex mutex_;  // guards reading id_ for the first time, and counting the quarantine
    std::atomic<bool> identified_{false};
    DirectoryId id_{};
    std::unique_ptr<WriterFolder> writer_;
};

class Directories {
  public:
    Directories(const ucm_value &paths, bool writes, bool direct, const Logger &log);

    // Where the block lives; NULL where nothing was ever written.
    Directory *of(const BlockId &id);
    // Bytes of all their file systems.
    uint64_t total_bytes() const;

  private:
    void check_distinct();

    std::vector<std::unique_ptr<Directory>> all_;
    std::mutex mutex_;  // guards the two below while not all directories are identified
    std::vector<Directory *> known_;
    std::vector<DirectoryId> ids_;
    std::atomic<bool> complete_{false};
};

}  // namespace ucm::posix
