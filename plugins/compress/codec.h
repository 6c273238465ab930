// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "buffers.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace ucm::compress {

constexpr uint32_t kTileBytes = 65536;

enum TileCodec : uint8_t { kTileRaw = 0, kTileConstant = 1, kTileSplit = 2 };

// The option compress_codec. Auto estimates first whether coding a tile will pay.
enum class Mode { kAuto, kSplit, kRaw };
Mode mode_of(const char *codec);

struct Tile {
    TileCodec codec;
    uint32_t stored;
};

// Bytes of one element; 0: no such dtype.
size_t element_bytes(int32_t dtype);

// Codes tiles of at most kTileBytes. One thread at a time; allocates in the constructor only.
class TileCoder {
  public:
    TileCoder();
    ~TileCoder();
    TileCoder(const TileCoder &) = delete;
    TileCoder &operator=(const TileCoder &) = delete;

    // Writes at most `bytes` bytes to `out`.
    Tile encode(const uint8_t *raw, uint32_t bytes, int32_t dtype, Mode mode, uint8_t *out);

    // False: `stored` is no tile of `raw_bytes` bytes. Safe on any input.
    bool decode(Tile tile, int32_t dtype, const uint8_t *stored, uint8_t *raw, uint32_t raw_bytes);

  private:
    bool encode_split(const uint8_t *raw, uint32_t bytes, int32_t dtype, uint8_t *out,
                      uint32_t *stored);
    bool decode_split(const uint8_t *stored, uint32_t stored_bytes, int32_t dtype, uint8_t *raw,
                      uint32_t raw_bytes);

    Mapping workspace_;       // of coder_
    Mapping planes_, coded_;  // scratch
    ZSTD_CCtx_s *coder_;      // lives in workspace_
    std::unique_ptr<ZSTD_DCtx_s, size_t (*)(ZSTD_DCtx_s *)> decoder_;
};

}  // namespace ucm::compress
