// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>
#include <sys/uio.h>

#include <limits>
#include <vector>

#include "block_file.h"
#include "buffers.h"
#include "directory.h"
#include "writer_lock.h"

namespace ucm::posix {

constexpr uint64_t kRunBytes = 4u << 20;                     // what one system call moves, about
constexpr size_t kRunShards = 256;                           // pages in Scratch
constexpr int kEndOfFile = std::numeric_limits<int>::max();  // no errno

// What a thread needs for its work; made at open.
struct Scratch {
    explicit Scratch(bool direct)
        : header(kMaxHeaderBytes),
          pages(kRunShards * UCM_ALIGNMENT),
          bounce(direct ? kRunBytes : 0) {}

    uint8_t *page(size_t i) const { return pages.base() + i * UCM_ALIGNMENT; }

    Mapping header;
    Mapping pages;   // of each shard of a run: the end that fills no whole page
    Mapping bounce;  // for O_DIRECT with memory that is not aligned
    std::vector<iovec> pieces;
    ForkClosed fd;
};

// How the memory of shards lies.
class Rows {
  public:
    Rows() = default;
    explicit Rows(const ucm_layout &layout)
        : segments_(layout.segment_bytes, layout.segment_bytes + layout.n_segments) {}

    // Appends the memory of the first `length` bytes of a shard.
    void append(std::vector<iovec> &pieces, void *const *addresses, uint64_t length) const;
    // Could whole pages of it go through O_DIRECT as they are?
    bool aligned(void *const *addresses, uint64_t length) const;
    uint8_t *at(void *const *addresses, uint64_t offset) const;
    uint64_t checksum(std::vector<iovec> &pieces, const BlockId &id, uint32_t shard,
                      void *const *addresses, uint64_t length) const;

  private:
    std::vector<uint64_t> segments_;
};

// A shard within a run: memory and page that together make up whole pages of the file.
struct Placed {
    size_t index;  // in the task
    ShardEntry entry;
    void *const *addresses;
    uint8_t *page = nullptr;
    uint64_t in_page = 0;  // last bytes of the shard that pass through the page, before the padding
    uint64_t bytes() const { return round_up(entry.length); }
};

// An open file, and the ways that bytes take to and from it. One at a time for each Scratch.
class File {
  public:
    File(Directory &directory, Scratch &scratch) : directory_(directory), scratch_(scratch) {}
    ~File() { close(); }
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    // All of these return 0 or an errno.
    int open(const std::string &path, int flags);
    // A new one, for writing.
    int create(const std::string &path);
    int close() { return scratch_.fd.close(); }
    int fd() const { return scratch_.fd.get(); }
    int stat(struct stat &st) const { return ::fstat(scratch_.fd.get(), &st) == 0 ? 0 : errno; }
    int cut(uint64_t bytes) const;
    int write(const void *data, uint64_t bytes, uint64_t offset);
    // Reads up to the end of the file.
    int read(void *data, uint64_t bytes, uint64_t offset, uint64_t *got);

    // May this shard's memory share a run with others that answer the same?
    bool bounces(const Rows &rows, const Placed &shard) const {
        return direct_ && !rows.aligned(shard.addresses, shard.entry.length);
    }
    // Shards that follow each other in the file. *moved counts whole bytes, also on failure.
    int write_run(const Rows &rows, std::vector<Placed> &run, uint64_t *moved);
    int read_run(const Rows &rows, std::vector<Placed> &run);

  private:
    enum class Way { kRead, kWrite };
    void lay_out(const Rows &rows, std::vector<Placed> &run, Way way, bool bounced);
    int move(Way way, iovec *pieces, size_t n, uint64_t offset, uint64_t *moved);
    int move_bounced(Way way, uint64_t bytes, uint64_t offset, uint64_t *moved);
    bool went_buffered();

    Directory &directory_;
    Scratch &scratch_;
    bool direct_ = false;
};

}  // namespace ucm::posix
