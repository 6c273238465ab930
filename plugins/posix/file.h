// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>
#include <sys/uio.h>

#include <limits>
#include <vector>

#include "block_file.h"
#include "buffers.h"
#include "directory.h"
#include "engine.h"
#include "writer_lock.h"

namespace ucm::posix {

constexpr uint64_t kRunBytes = 4u << 20;                     // of payload in one request, about
constexpr size_t kRunShards = 256;                           // pages in Scratch
constexpr int kEndOfFile = std::numeric_limits<int>::max();  // no errno

// What a job needs while it runs; made at open. Its pages take memory when first touched.
struct Scratch {
    Scratch(bool direct, bool queued)
        : makes_room(direct && queued),
          header(kMaxHeaderBytes),
          pages(kRunShards * UCM_ALIGNMENT),
          bounce(direct ? kRunBytes : 0) {}

    uint8_t *page(size_t i) const { return pages.base() + i * UCM_ALIGNMENT; }

    // A write past the end of a file holds up whoever submits it; one into room that is made does
    // not.
    const bool makes_room;
    Mapping header;
    Mapping pages;   // of each shard of a run: the end that fills no whole page
    Mapping bounce;  // for O_DIRECT with memory that is not aligned
    std::vector<iovec> pieces, memory;
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
    // Between the bytes of a shard from offset on and flat memory.
    void gather(void *const *addresses, uint64_t offset, uint64_t bytes, uint8_t *to) const;
    void scatter(const uint8_t *from, uint64_t bytes, void *const *addresses,
                 uint64_t offset) const;
    uint64_t checksum(std::vector<iovec> &pieces, const BlockId &id, uint32_t shard,
                      void *const *addresses, uint64_t length) const;

  private:
    // Calls each(memory, bytes before it, bytes).
    template <typename Each>
    void each_part(void *const *addresses, uint64_t offset, uint64_t bytes, Each each) const;

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
//
// A movement is prepared, then made by requests for an engine:
//     while (file.next(io)) { ...the engine moves io...; file.took(io); }
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
    // Reads up to the end of the file.
    int read(void *data, uint64_t bytes, uint64_t offset, uint64_t *got);

    // May this shard's memory share a run with others that answer the same?
    bool bounces(const Rows &rows, const Placed &shard) const {
        return direct_ && !rows.aligned(shard.addresses, shard.entry.length);
    }

    // Movements of shards that follow each other in the file; in front of them, if it is not 0,
    // the first `header` bytes of Scratch::header, to or from the beginning of the file.
    void prepare_write(const Rows &rows, std::vector<Placed> &run, uint64_t header);
    void prepare_read(const Rows &rows, std::vector<Placed> &run, uint64_t header);
    bool next(Io &io);
    void took(const Io &io);
    // Here and now.
    void move();

    // Of the last movement: 0, an errno or kEndOfFile; whole bytes, also on failure.
    int error() const { return error_; }
    uint64_t moved() const { return moved_; }

    // After a read: puts in place what came through pages. To be called when entry.length is right.
    static void fill_in(const Rows &rows, const std::vector<Placed> &run);

  private:
    void prepare(Io::Way way, const Rows &rows, std::vector<Placed> &run, uint64_t header);
    void lay_out(const Rows &rows, std::vector<Placed> &run);
    void fill_bounce();
    void empty_bounce();
    void advance(uint64_t bytes);
    bool went_buffered();

    Directory &directory_;
    Scratch &scratch_;
    bool direct_ = false;

    Io::Way way_ = Io::Way::kRead;
    bool bounced_ = false;
    int error_ = 0;
    uint64_t offset_ = 0, left_ = 0, moved_ = 0;
    size_t piece_ = 0;                // in scratch_.pieces: the first that is not moved
    size_t memory_ = 0, into_ = 0;    // in scratch_.memory, when bounced
    uint64_t chunk_ = 0, begun_ = 0;  // bytes of the bounce buffer, and those of it that are moved
};

}  // namespace ucm::posix
