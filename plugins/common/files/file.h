// SPDX-License-Identifier: MIT
#pragma once

#include <sys/stat.h>
#include <sys/uio.h>

#include <limits>
#include <map>
#include <optional>
#include <shared_mutex>
#include <vector>

#include "block_file.h"
#include "buffers.h"
#include "directory.h"
#include "engine.h"
#include "medium.h"
#include "payload_checksum.h"
#include "writer_lock.h"

namespace ucm::files {

constexpr uint64_t kRunBytes = 4u << 20;                     // of payload in one request, about
constexpr size_t kRunShards = 256;                           // pages in Scratch
constexpr int kEndOfFile = std::numeric_limits<int>::max();  // no errno

bool all_zero(const uint8_t *bytes, size_t n);

// Memory that goes to O_DIRECT as it is; what else is given goes through buffers in huge pages,
// since a disk takes them faster than scattered small pages, by more than the copy costs.
class DirectMemory {
  public:
    explicit DirectMemory(bool all) : all_(all) {}

    void add(const void *base, uint64_t bytes);
    // False: it is not there.
    bool remove(const void *base, uint64_t bytes);
    bool covers(const void *memory, uint64_t bytes) const;

  private:
    const bool all_;
    mutable std::shared_mutex mutex_;  // guards ranges_
    std::multimap<uintptr_t, uint64_t> ranges_;
};

// What a job needs while it runs; made at open. Its pages take memory when first touched.
struct Scratch {
    Scratch(Medium &medium, Engine &engine, size_t slot, const DirectMemory &direct_memory,
            bool direct, uint64_t header_bytes)
        : medium(medium),
          engine(engine),
          slot(slot),
          fenced(engine.memory(slot) != nullptr),
          makes_room(direct && engine.depth() > 1),
          direct_memory(direct_memory),
          header_bytes(header_bytes) {
        if (fenced) return;
        mapping.emplace(header_bytes + (direct ? kRunBytes : kMaxHeaderBytes),
                        direct ? Pages::kHuge : Pages::kSmall, header_bytes);
        pages.emplace(kRunShards * UCM_ALIGNMENT);
    }

    // What an engine that fences its slots has to give each.
    static uint64_t bytes(uint64_t header_bytes) { return header_bytes + kRunBytes; }

    // A header that turns out to be longer goes on where the buffer is.
    uint8_t *header() const { return fenced ? engine.memory(slot) : mapping->base(); }
    // For payload, kRunBytes; none without O_DIRECT.
    uint8_t *buffer() const { return header() + header_bytes; }
    // None where it is fenced.
    uint8_t *page(size_t i) const { return fenced ? header() : pages->base() + i * UCM_ALIGNMENT; }

    Medium &medium;
    Engine &engine;
    const size_t slot;
    const bool
        fenced;  // its memory is the engine's, and nothing else but registered memory will do
    // A write past the end of a file holds up whoever submits it; one into room that is made does
    // not.
    const bool makes_room;
    const DirectMemory &direct_memory;
    const uint64_t header_bytes;  // of the store's own blocks
    std::optional<Mapping> mapping;
    std::optional<Mapping> pages;  // of each shard of a run: the end that fills no whole page
    std::vector<iovec> pieces, memory;
    PayloadChecksum sum;
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
    bool all_in(const DirectMemory &memory, void *const *addresses, uint64_t length) const;
    // Between the bytes of a shard from offset on and flat memory; `sum` gets them, if there is
    // one.
    void gather(void *const *addresses, uint64_t offset, uint64_t bytes, uint8_t *to,
                PayloadChecksum *sum = nullptr) const;
    void scatter(const uint8_t *from, uint64_t bytes, void *const *addresses, uint64_t offset,
                 PayloadChecksum *sum = nullptr) const;
    uint64_t checksum(std::vector<iovec> &pieces, const BlockId &id, uint32_t shard,
                      void *const *addresses, uint64_t length) const;

  private:
    // Calls each(memory, bytes before it, bytes).
    template <typename Each>
    void each_part(void *const *addresses, uint64_t offset, uint64_t bytes, Each each) const;

    std::vector<uint64_t> segments_;
};

// A shard within a run. Without a buffer, memory and page together make up whole pages of the file.
struct Placed {
    size_t index;    // in the task
    uint32_t shard;  // of the block
    ShardEntry entry;
    void *const *addresses;
    bool buffered =
        false;  // as File::buffered said; memory may be registered and released meanwhile
    uint8_t *page = nullptr;
    uint64_t in_page = 0;  // last bytes of the shard that pass through the page, before the padding
    // Of what was read, after File::take_in.
    uint64_t checksum = 0;
    bool padded = false;  // with zeros

    uint64_t bytes() const { return round_up(entry.length); }
    bool sound() const { return padded && checksum == entry.checksum; }
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
    int close() { return scratch_.medium.close(scratch_.fd); }
    int fd() const { return scratch_.fd.get(); }
    int stat(struct stat &st) const { return ::fstat(scratch_.fd.get(), &st) == 0 ? 0 : errno; }
    int cut(uint64_t bytes) const;
    // Nobody can open it any more.
    bool gone() const;
    // Reads up to the end of the file.
    int read(void *data, uint64_t bytes, uint64_t offset, uint64_t *got);

    // To be asked once for each shard; those of a run have the same answer.
    bool buffered(const Rows &rows, const Placed &shard) const {
        if (scratch_.fenced && shard.entry.length % UCM_ALIGNMENT) return true;
        return (direct_ || scratch_.fenced) && shard.entry.length > 0 &&
               !(rows.aligned(shard.addresses, shard.entry.length) &&
                 rows.all_in(scratch_.direct_memory, shard.addresses, shard.entry.length));
    }

    // Movements of shards that follow each other in the file; in front of them, if it is not 0,
    // the first `header` bytes of Scratch::header, to or from the beginning of the file. The run
    // stays where it is until the movement is over. A write sets the checksums: before the first
    // request if the run fits into a buffer, else before it is over.
    void prepare_write(const Rows &rows, const BlockId &id, std::vector<Placed> &run,
                       uint64_t header);
    void prepare_read(const Rows &rows, const BlockId &id, std::vector<Placed> &run,
                      uint64_t header);
    bool next(Io &io);
    void took(const Io &io);
    // Here and now.
    void move();
    // After a read, when the entries are right: the bytes are put in place, and checksums computed
    // if they are wanted.
    void take_in(bool checksums);

    // Does the run go with one request, or those that follow a short one?
    static bool at_once(const std::vector<Placed> &run) {
        return run.front().bytes() <= kRunBytes || !run.front().buffered;
    }
    bool through_buffer() const { return buffered_; }

    // Of the last movement: 0, an errno or kEndOfFile; whole bytes, also on failure.
    int error() const { return error_; }
    uint64_t moved() const { return moved_; }

  private:
    void prepare(Io::Way way, const Rows &rows, const BlockId &id, std::vector<Placed> &run,
                 uint64_t header);
    void lay_out();
    void next_chunk(uint64_t header);
    void pass(uint64_t bytes, bool checksums);
    void pass_part(Placed &shard, uint64_t offset, uint64_t bytes, uint8_t *buffer, bool checksums);
    void advance(uint64_t bytes);
    bool went_buffered();

    Directory &directory_;
    Scratch &scratch_;
    bool direct_ = false;

    Io::Way way_ = Io::Way::kRead;
    const Rows *rows_ = nullptr;
    BlockId id_{};
    std::vector<Placed> *run_ = nullptr;
    bool buffered_ = false;
    int error_ = 0;
    uint64_t offset_ = 0, left_ = 0, moved_ = 0;
    size_t piece_ = 0;  // in scratch_.pieces: the first that is not moved
    // If buffered: payload in the buffer, what of it is not moved, and where it belongs.
    uint64_t chunk_ = 0, chunk_left_ = 0;
    size_t shard_ = 0;
    uint64_t in_shard_ = 0;
};

}  // namespace ucm::files
