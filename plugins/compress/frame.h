// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <vector>

#include "codec.h"
#include "ucm/store_v1.h"

namespace ucm::compress {

constexpr uint64_t kTrailerBytes = 64;

// Where the bytes of a shard lie and what they are, for every shard of one layout.
class Geometry {
  public:
    explicit Geometry(const ucm_layout &layout);
    Geometry(const std::vector<uint64_t> &segments, const std::vector<ucm_plane> &planes);

    uint64_t capacity() const { return starts_.back(); }
    size_t segments() const { return starts_.size() - 1; }

    struct Piece {
        uint64_t offset;
        uint32_t bytes;
        int32_t dtype;
    };
    // Cut so that none straddles two planes, but small ones of one dtype that follow each other.
    const std::vector<Piece> &tiles() const { return tiles_; }

    // The address of bytes [offset, offset + bytes) of a shard, NULL if they lie in several
    // segments.
    uint8_t *find(void *const *row, uint64_t offset, uint64_t bytes) const;
    // Between that range and flat memory.
    void gather(void *const *row, uint64_t offset, uint64_t bytes, uint8_t *to) const;
    void scatter(const uint8_t *from, void *const *row, uint64_t offset, uint64_t bytes) const;

  private:
    // Calls visit(address, bytes) for each contiguous part of a range.
    template <typename F>
    void each(void *const *row, uint64_t offset, uint64_t bytes, F visit) const;
    size_t segment_of(uint64_t offset) const;
    void cut(uint64_t end, int32_t dtype);

    std::vector<uint64_t> starts_;  // of the segments; last: capacity
    std::vector<Piece> tiles_;
};

// Which shard a frame is of. Its hash, as it lies here, is in the frame: no reader takes another's.
struct Name {
    uint8_t block_id[UCM_BLOCK_ID_BYTES];
    uint64_t shard;
};
static_assert(sizeof(Name) == UCM_BLOCK_ID_BYTES + 8);

struct TileCounts {
    uint64_t of[kTileCodecs] = {};
};

struct Decoded {
    ucm_status status;      // UCM_OK, UCM_CORRUPT or UCM_INCOMPATIBLE
    uint64_t bytes;         // of the raw shard
    bool is_lossy = false;  // which is why it is refused
};

class FrameCoder;

// Threads that may help each other.
class Team {
  public:
    virtual ~Team() = default;
    // Calls work(i, coder) for every i below n, each on some thread with a coder that no other uses
    // meanwhile; returns when all have ended.
    virtual void run(size_t n, const std::function<void(size_t, FrameCoder &)> &work) = 0;
};

// Shards to frames and back; the format is docs/frame-format.md. One thread at a time.
class FrameCoder {
  public:
    // dtype: UCM_DTYPE_* of all planes; UCM_DTYPE_BYTES: that of the layout is tried first, and the
    // bytes decide. Frames that say they are lossy are decoded only where it is allowed.
    FrameCoder(const Geometry &geometry, int dtype, const Kernels &kernels,
               bool allow_lossy = false);

    // `frame` has room for `length` + kTrailerBytes. Returns the bytes of the frame.
    // Of a team, others code parts of a long shard.
    uint64_t encode(const Name &name, void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                    TileCounts *counts, Team *team = nullptr);

    // Safe on any bytes. What the row gets of a frame that is not UCM_OK is undefined.
    Decoded decode(const Name &name, const uint8_t *frame, uint64_t length, void *const *row,
                   Team *team = nullptr);

    uint64_t memory_bytes() const {
        return coder_.memory_bytes() + index_.bytes() + scratch_.bytes() +
               places_.size() * sizeof(Place);
    }

  private:
    // A run of tiles, for one thread: which ones, where they begin, and what came of them.
    struct Part {
        uint32_t first, last;  // tiles, without the last
        uint64_t raw_at, stored_at;
        uint64_t stored, raw_hash;
        uint64_t found;  // what is no noise is here
        TileCounts counts;
        ucm_status status;
    };
    static constexpr size_t kMostParts = 32;
    static constexpr uint64_t kNowhere = UINT64_MAX;

    uint64_t encode_raw(const Name &name, void *const *row, uint64_t length, uint8_t *frame,
                        bool copied);
    uint64_t encode_tiles(const Name &name, void *const *row, uint64_t length, Mode mode,
                          uint8_t *frame, TileCounts *counts, Team *team, bool &copied);
    void encode_part(void *const *row, uint64_t length, Mode mode, uint8_t *frame, uint8_t *index,
                     Part &part);
    bool waits();
    bool is_noise(void *const *row, uint64_t length, uint8_t *frame);
    uint64_t somewhere(uint64_t range);
    void wait_after(bool pays, bool all_raw);
    Decoded decode_raw(const uint8_t *frame, uint64_t bytes, uint64_t raw_hash, void *const *row);
    ucm_status decode_tiles(const uint8_t *frame, const uint8_t *index, size_t parts,
                            uint64_t raw_hash, void *const *row, Team *team);
    void decode_part(const uint8_t *frame, const uint8_t *index, void *const *row, Part &part);
    template <typename F>
    void share(size_t parts, Team *team, F work);

    const Geometry &geometry_;
    const Kernels &kernels_;
    const bool allow_lossy_;
    TileCoder coder_;
    std::vector<Place> places_;    // by tile of the geometry
    int failures_ = 0, wait_ = 0;  // shards in a row of which nothing paid, and to come untried
    int misses_ = 0;               // that were coded and took no page less, since one did
    bool coded_ = false;           // something of the last one that was tried
    uint32_t looks_ = 0;           // at shards
    uint64_t found_ = kNowhere;    // what is no noise, by the last of these
    Mapping index_;                // of the frame that is made
    Mapping scratch_;              // a tile that lies in several segments
    Part parts_[kMostParts];       // of the frame that is made or read
};

}  // namespace ucm::compress
