// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "block_file.h"
#include "block_index.h"
#include "gc.h"
#include "hotness.h"
#include "ledger.h"
#include "log.h"
#include "space.h"
#include "write_filter.h"
#include "writer_lock.h"

namespace ucm::files {

// How the directories are to be opened.
struct Wanted {
    bool writes, direct;
    bool layout;  // false: for lookup only, in whichever space fits
    std::string software;
    SpaceIdentity space;
    Access access;
    QuotaOptions quota;  // of all directories together
    WriteFilterOptions filter;
    uint64_t block_bytes;  // of the file of a block of full shards; 0: not known
};

struct QuotaNumbers {
    uint64_t used = 0, limit = 0, evicted_blocks = 0, evicted_bytes = 0;
};

// One of storage_backends.
class Directory {
  public:
    // Throws where the directory cannot be used. A reader makes nothing and needs no permission to.
    Directory(const std::string &path, const Wanted &wanted, const Logger &log);
    ~Directory();

    const std::string &path() const { return path_; }
    // A directory that nobody has written to has no id yet, and no blocks.
    bool identified();
    const DirectoryId &id() const { return id_; }
    // Not of a handle without a layout.
    std::string block_path(const BlockId &id) const {
        return space_->path() + "/" + block_name(id);
    }
    const Access &access() const { return access_; }

    bool direct() const { return direct_.load(std::memory_order_relaxed); }
    // Makes sure of a published block's names, up to the directory itself: 0 or an errno.
    int sync_block(const BlockId &id);
    // The file system cannot do it: from now on as if io_direct were off.
    void refuse_direct();

    std::string temporary(const BlockId &id) { return writer_->temporary(id.hex()); }
    // After a temporary file could not be made: throws where the directory is not what it was.
    void renew_writer();
    // After a block could not be put into its folder: 0 or an errno.
    int make_block_folder(const BlockId &id);
    // Takes the block away from its name; false where it is no longer this file.
    bool quarantine(const BlockId &id, dev_t device, ino_t inode);

    // What lookups ask; NULL where nothing was ever written.
    BlockIndex *index() const { return index_.load(std::memory_order_acquire); }
    // To be called at the beginning of each lookup. `space` is that of a handle without a layout:
    // "<namespace>/<32 hex>", or "". True: there is something for walk to do.
    bool attend(const std::string &space);
    void await_news() {
        if (BlockIndex *index = this->index()) index->await_news();
    }
    // What this handle learns of a block, for later lookups, here and in other processes. `anew`:
    // by this handle; otherwise it was found to be there.
    void published(const BlockId &id, bool anew = true);
    void removed(const BlockId &id);
    void tell();                     // other processes, before a transfer is done
    void missed(const BlockId &id);  // a load found no file
    // A shard of the block, whose file this is, was loaded.
    void loaded(const BlockId &id, const struct stat &file);

    // Room for what is about to be written to a temporary file, in whole pages: 0, EDQUOT (after
    // waiting for room until the deadline, or for 10 seconds), or another errno. 0 for the
    // deadline: none. The reason is in the log.
    int reserve(uint64_t bytes, int64_t deadline_ns, const std::function<bool()> &refused);
    // A reservation ends: the file is published with so many bytes, or is deleted (0).
    void settle(uint64_t reserved, uint64_t bytes);
    // The file system was full, whatever the quota says.
    void was_full();
    // Before a new file is published.
    void stamp_new(int fd);
    // Its blocks count as used now.
    void touched(const BlockId &id);
    // Bytes of a block went, by this handle and not by the collector.
    void shrank();

    // Should a block that is not there be written? The answer is for all shards of a block.
    bool admits(const BlockId &id, const std::vector<uint32_t> &shards, uint32_t shards_per_block);
    void wrote(uint64_t bytes);
    QuotaNumbers quota_numbers() const;
    // `wake` is called when walk() has something to do.
    void on_work(const std::function<void()> &wake);
    // Nobody waits for room any more.
    void stop_waiting();

    // The store's thread for small chores, every 20 ms or so; nothing here takes long.
    void tidy();
    // The store's thread for long walks; comes back soon once `stop` is set. Returns how long to
    // wait before the next.
    int64_t walk(const std::atomic<bool> &stop);
    // The store's thread for counting and collecting.
    void collect(const std::atomic<bool> &stop);

  private:
    void try_direct();
    void open_space(const Wanted &wanted);
    void open_quota(const Wanted &wanted);
    void check_same() const;
    bool take_away(const BlockId &id, dev_t device, ino_t inode);
    BlockIndex *use_index(const std::string &space);
    BlockIndex *own_index();
    std::optional<Maker> maker();
    // By the collector, a block of any space.
    void evicted(const std::string &space, const BlockId &id);

    std::string path_;
    const Logger &log_;
    const std::string software_;
    const Access access_;
    std::atomic<bool> direct_;
    std::mutex mutex_;  // guards reading id_ for the first time, and counting the quarantine
    std::atomic<bool> identified_{false};
    DirectoryId id_{};
    std::unique_ptr<WriterFolder> writer_;
    std::unique_ptr<Space> space_;
    std::atomic<bool> folders_synced_[4096] = {};  // by the three digits: its entry in the space
    std::mutex index_mutex_;                       // guards indexes_
    std::vector<std::pair<std::string, std::shared_ptr<BlockIndex>>> indexes_;  // by space
    std::atomic<BlockIndex *> index_{nullptr};                                  // the one in use
    // Of a handle that writes.
    std::unique_ptr<Quota> quota_;
    std::unique_ptr<Hotness> hotness_;
    std::unique_ptr<Collector> collector_;
    std::unique_ptr<WriteFilter> filter_;
};

class Directories {
  public:
    Directories(const ucm_value &paths, Wanted wanted, const Logger &log);

    // All of them take O_DIRECT.
    bool direct() const;
    // Where the block lives; NULL where nothing was ever written.
    Directory *of(const BlockId &id);
    // Its file, of a handle without a layout too; "" where it cannot be.
    std::string find(const BlockId &id);
    // To be called at the beginning of each lookup. True: there is something for walk to do.
    bool attend();
    // After that, and once walk runs: waits for what other hosts tell, not for long.
    void await_news() {
        for (auto &directory : all_) directory->await_news();
    }
    // After a miss: is it worth looking again?
    bool look_again();
    struct Known {
        uint64_t blocks = 0, listed = 0, folders = 0;
    };
    Known known() const;
    void tell() {
        for (auto &directory : all_) directory->tell();
    }
    void tidy();
    int64_t walk(const std::atomic<bool> &stop);
    void collect(const std::atomic<bool> &stop);
    QuotaNumbers quota_numbers() const;
    void on_work(const std::function<void()> &wake);
    void stop_waiting();
    // Bytes of all their file systems.
    uint64_t total_bytes() const;
    // The end of them all, before that of this; nobody uses one any more.
    void close() { all_.clear(); }

  private:
    void check_distinct();

    std::vector<std::unique_ptr<Directory>> all_;
    std::unique_ptr<SpaceFinder> finder_;  // of a handle without a layout
    std::mutex mutex_;  // guards the two below while not all directories are identified
    std::vector<Directory *> known_;
    std::vector<DirectoryId> ids_;
    std::atomic<bool> complete_{false};
};

}  // namespace ucm::files
