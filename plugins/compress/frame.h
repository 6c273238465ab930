// SPDX-License-Identifier: MIT
#pragma once

#include <vector>

#include "codec.h"
#include "ucm/store_v1.h"

namespace ucm::compress {

constexpr uint64_t kFrameHeaderBytes = 64;

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
    uint64_t raw = 0, constant = 0, split = 0;
};

struct Decoded {
    ucm_status status;  // UCM_OK, UCM_CORRUPT or UCM_INCOMPATIBLE
    uint64_t bytes;     // of the raw shard
};

// Shards to frames and back; the format is docs/frame-format.md. One thread at a time.
class FrameCoder {
  public:
    explicit FrameCoder(const Geometry &geometry);

    // `frame` has room for `length` + kFrameHeaderBytes. Returns the bytes of the frame.
    uint64_t encode(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                    TileCounts *counts);

    // Safe on any bytes.
    Decoded decode(const uint8_t *frame, uint64_t length, void *const *row);

  private:
    bool encode_tiles(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                      uint64_t *frame_bytes, TileCounts *counts);
    ucm_status decode_tiles(const uint8_t *frame, uint32_t tile_count, uint64_t raw_hash,
                            void *const *row);

    const Geometry &geometry_;
    TileCoder coder_;
    Mapping scratch_;  // a tile that lies in several segments
    Mapping spare_;    // a coded tile that may not fit into the frame
};

}  // namespace ucm::compress
