// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>

#include "classes.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace ucm::compress {

enum TileCodec : uint8_t { kTileRaw = 0, kTileConstant = 1, kTileZstd = 2, kTileClasses = 3 };
constexpr int kTileCodecs = 4;

// Fast codes numbers in classes, small with zstd.
enum class Mode { kFast, kSmall, kRaw };
Mode mode_of(const char *codec);  // of the option compress_codec; auto begins as fast

struct Tile {
    TileCodec codec;
    uint8_t dtype;
    uint32_t stored;
};

// Which numbers tiles turned out to be.
struct Numbers {
    bool known = false;
    uint8_t dtype = 0;
    float low = 1, high = 1;  // stored bytes of a raw one

    void widen(float ratio);
};

// What is remembered of one place in the shards of a layout, to try nothing twice that did not pay.
struct Place {
    uint8_t dtype = 0;     // of the layout, or named; tried first
    bool fixed = false;    // nothing else is tried
    Numbers seen;          // known: of a tile that paid
    uint8_t failures = 0;  // in a row
    ClassCoder::Kept kept;
    uint16_t wait = 0;  // so many tiles are not tried
};

constexpr int kMostFailures = 8;  // then 2^8 - 1 tiles or shards pass between two attempts

// Codes tiles of at most kTileBytes. One thread at a time; allocates in the constructor only.
class TileCoder {
  public:
    explicit TileCoder(const Kernels &kernels);
    TileCoder(const TileCoder &) = delete;
    TileCoder &operator=(const TileCoder &) = delete;

    // Before the tiles of another shard: the first that are unknown are looked at, so that it is
    // not always the same ones that are not.
    void begin() { failed_ = 0; }

    // Of bytes that look like noise, how many pass before one tile is to be searched for
    // repetitions; and that search.
    uint64_t unsearched(uint64_t bytes);
    bool repeats(const uint8_t *raw, uint32_t bytes, uint8_t *out);

    // Writes at most `bytes` bytes to `out`.
    Tile encode(const uint8_t *raw, uint32_t bytes, Place &place, Mode mode, uint8_t *out);

    // False: `stored` is no tile of `raw_bytes` bytes. Safe on any input; kKernelSlack bytes behind
    // it can be read, and nothing depends on them.
    bool decode(Tile tile, const uint8_t *stored, uint8_t *raw, uint32_t raw_bytes);

    // What encode() or decode() will be given next.
    void expect(const uint8_t *next, size_t bytes) { classes_.expect(next, bytes); }

    uint64_t memory_bytes() const {
        return classes_.memory_bytes() + planes_.bytes() + encoder_memory_.bytes() +
               decoder_memory_.bytes();
    }

  private:
    // The top byte of every element, which zstd codes, and the rest.
    void split_top(const uint8_t *raw, size_t n, int dtype, uint8_t *top, uint8_t *rest) const;
    void merge_top(const uint8_t *top, const uint8_t *rest, size_t n, int dtype,
                   uint8_t *raw) const;
    uint32_t code(const uint8_t *raw, uint32_t bytes, int dtype, Place &place, Mode mode,
                  uint8_t *out, Tile &tile);
    // What is raw, `out` does not have yet.
    Tile try_to(const uint8_t *raw, uint32_t bytes, Place &place, Mode mode, uint8_t *out);
    uint32_t explore(const uint8_t *raw, uint32_t bytes, int first, bool is_number, Place &place,
                     Mode mode, uint8_t *out, Tile &tile);
    bool passes_unseen(const Place &place, uint32_t bytes, Mode mode);
    uint32_t code_noise(const uint8_t *raw, uint32_t bytes, Place &place, Mode mode, uint8_t *out,
                        Tile &tile);
    bool promises(const uint8_t *raw, uint32_t bytes);
    size_t zstd(const uint8_t *raw, uint32_t bytes, int dtype, uint8_t *out, size_t most);
    bool unzstd(const uint8_t *stored, uint32_t stored_bytes, int dtype, uint8_t *raw,
                uint32_t raw_bytes);

    const Kernels &kernels_;
    Numbers seen_[kDtypes];  // by what the layout says: what a place begins with
    int failed_ = 0;         // unknown tiles in a row that did not pay
    uint32_t unseen_ = 0;    // bytes behind them that are not even looked at
    // Bytes of noise that zstd is not asked of, and how many they were when it last found nothing.
    uint32_t noise_wait_, noise_pause_;
    ClassCoder classes_;
    Mapping planes_;
    Mapping encoder_memory_, decoder_memory_;  // the two below live there
    ZSTD_CCtx_s *encoder_;
    ZSTD_DCtx_s *decoder_;
};

}  // namespace ucm::compress
