// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "codec.h"
#include "ucm/store_v1.h"

namespace ucm::compress {

constexpr uint64_t kTrailerBytes = 64;

// Where the bytes of a shard lie and what they are, for every shard of one layout.
class Geometry {
  public:
    explicit Geometry(const ucm_layout &layout);

    uint64_t capacity() const { return starts_.back(); }
    size_t segments() const { return starts_.size() - 1; }

    struct Piece {
        uint64_t offset;
        uint32_t bytes;
        int32_t dtype;
    };
    // Cut so that none straddles two planes.
    const std::vector<Piece> &tiles() const { return tiles_; }

    // The address of bytes [offset, offset + bytes) of a shard, NULL if they lie in several
    // segments.
    uint8_t *find(void *const *row, uint64_t offset, uint64_t bytes) const;
    // Calls visit(address, bytes) for each contiguous part of that range.
    template <typename F>
    void each(void *const *row, uint64_t offset, uint64_t bytes, F visit) const;

  private:
    size_t segment_of(uint64_t offset) const;
    void cut(uint64_t end, int32_t dtype);

    std::vector<uint64_t> starts_;  // of the segments; last: capacity
    std::vector<Piece> tiles_;
};

struct TileCounts {
    uint64_t of[kTileCodecs] = {};
};

struct Decoded {
    ucm_status status;  // UCM_OK, UCM_CORRUPT or UCM_INCOMPATIBLE
    uint64_t bytes;     // of the raw shard
};

// Shards to frames and back; the format is docs/frame-format.md. One thread at a time.
class FrameCoder {
  public:
    // dtype: UCM_DTYPE_* of all planes; UCM_DTYPE_BYTES: that of the layout is tried first, and the
    // bytes decide.
    FrameCoder(const Geometry &geometry, int dtype, const Kernels &kernels);

    // `frame` has room for `length` + kTrailerBytes + kKernelSlack. Returns the bytes of the frame.
    uint64_t encode(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                    TileCounts *counts);

    // Safe on any bytes. What the row gets of a frame that is not UCM_OK is undefined.
    Decoded decode(const uint8_t *frame, uint64_t length, void *const *row);

  private:
    uint64_t encode_raw(void *const *row, uint64_t length, uint8_t *frame);
    uint64_t encode_tiles(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                          TileCounts *counts);
    bool nothing_pays();
    ucm_status decode_tiles(const uint8_t *frame, const uint8_t *index, uint32_t tile_count,
                            uint64_t raw_hash, void *const *row);

    const Geometry &geometry_;
    const Kernels &kernels_;
    TileCoder coder_;
    std::vector<Place> places_;  // by tile of the geometry
    Mapping index_;              // of the frame that is made
    Mapping scratch_;            // a tile that lies in several segments
};

}  // namespace ucm::compress
