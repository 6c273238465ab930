// SPDX-License-Identifier: MIT
#include "codec.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "ucm/store_v1.hpp"

// ZSTD_compressSequences and ZSTD_initStaticCCtx are exported, but declared only with this.
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

namespace ucm::compress {

namespace {

// Loops of a fixed count are vectorised at -O2 already.
constexpr size_t kLane = 64;
constexpr uint32_t kSmallestTile = 64;
constexpr int kWindowLog = 16;

ZSTD_compressionParameters parameters() {
    // No match is ever searched for, so that the tables may be as small as they get.
    return {kWindowLog, ZSTD_CHAINLOG_MIN, ZSTD_HASHLOG_MIN, ZSTD_SEARCHLOG_MIN, 4, 0, ZSTD_fast};
}

template <typename Word, int Rotate>
Word rotate_left(Word word) {
    if constexpr (Rotate == 0) return word;
    return Word(word << Rotate | word >> (sizeof(Word) * 8 - Rotate));
}

template <typename Word, int Rotate>
inline void split_lane(const uint8_t *__restrict in, size_t count, size_t plane,
                       uint8_t *__restrict rest, uint8_t *__restrict top) {
    for (size_t i = 0; i < count; i++) {
        Word word;
        std::memcpy(&word, in + i * sizeof(Word), sizeof word);
        word = rotate_left<Word, Rotate>(word);
        for (size_t k = 0; k + 1 < sizeof(Word); k++) rest[k * plane + i] = uint8_t(word >> k * 8);
        top[i] = uint8_t(word >> (sizeof(Word) - 1) * 8);
    }
}

// n elements -> their top bytes, and the other bytes plane by plane.
template <typename Word, int Rotate>
void split(const uint8_t *in, size_t n, uint8_t *rest, uint8_t *top) {
    size_t i = 0;
    for (; i + kLane <= n; i += kLane)
        split_lane<Word, Rotate>(in + i * sizeof(Word), kLane, n, rest + i, top + i);
    split_lane<Word, Rotate>(in + i * sizeof(Word), n - i, n, rest + i, top + i);
}

template <typename Word, int Rotate>
inline void merge_lane(const uint8_t *__restrict rest, const uint8_t *__restrict top, size_t count,
                       size_t plane, uint8_t *__restrict out) {
    for (size_t i = 0; i < count; i++) {
        Word word = Word(Word(top[i]) << (sizeof(Word) - 1) * 8);
        for (size_t k = 0; k + 1 < sizeof(Word); k++)
            word = Word(word | Word(Word(rest[k * plane + i]) << k * 8));
        word = rotate_left<Word, Rotate ? int(sizeof(Word)) * 8 - Rotate : 0>(word);
        std::memcpy(out + i * sizeof(Word), &word, sizeof word);
    }
}

template <typename Word, int Rotate>
void merge(const uint8_t *rest, const uint8_t *top, size_t n, uint8_t *out) {
    size_t i = 0;
    for (; i + kLane <= n; i += kLane)
        merge_lane<Word, Rotate>(rest + i, top + i, kLane, n, out + i * sizeof(Word));
    merge_lane<Word, Rotate>(rest + i, top + i, n - i, n, out + i * sizeof(Word));
}

bool pays(uint32_t stored, uint32_t bytes) {
    return stored < bytes && stored <= bytes - bytes / 32;
}

// From a sample: the chance that two coded bytes are equal bounds their entropy from below, so that
// a tile which may pay is (but for the sample's noise) never refused.
template <typename Word, int Rotate>
bool hopeless(const uint8_t *raw, size_t n) {
    constexpr size_t kRun = 64;
    const size_t runs = std::clamp<size_t>(n / 2048, 8, 32);
    if (n < (runs + 1) * kRun) return false;
    uint16_t counts[2][256] = {};
    const size_t step = (n - kRun) / runs;
    for (size_t r = 0; r < runs; r++) {
        // Shifted from run to run, or each would meet the same channels of another row.
        const uint8_t *run = raw + (r * step + r * 37 % kRun) * sizeof(Word);
        for (size_t i = 0; i < kRun; i++) {
            Word word;
            std::memcpy(&word, run + i * sizeof(Word), sizeof word);
            word = rotate_left<Word, Rotate>(word);
            counts[i & 1][uint8_t(word >> (sizeof(Word) - 1) * 8)]++;
        }
    }
    uint64_t pairs = 0;
    for (size_t s = 0; s < 256; s++) {
        const uint64_t count = uint64_t(counts[0][s]) + counts[1][s];
        pairs += count * count - count;
    }
    // 2 to the bits that a coded byte may cost if the tile is to lose 1/32: 7.75, 7.5, 7.
    const uint64_t symbols = sizeof(Word) == 1 ? 215 : sizeof(Word) == 2 ? 181 : 128;
    const uint64_t sampled = runs * kRun;
    return pairs * symbols < sampled * (sampled - 1);
}

bool hopeless(const uint8_t *raw, uint32_t bytes, int32_t dtype) {
    switch (dtype) {
        case UCM_DTYPE_BF16:
            return hopeless<uint16_t, 1>(raw, bytes / 2);
        case UCM_DTYPE_FP16:
            return hopeless<uint16_t, 0>(raw, bytes / 2);
        case UCM_DTYPE_FP32:
            return hopeless<uint32_t, 1>(raw, bytes / 4);
        default:
            return hopeless<uint8_t, 0>(raw, bytes);
    }
}

void fill(uint8_t *raw, uint32_t bytes, const uint8_t *element, size_t width) {
    uint32_t filled = uint32_t(std::min<size_t>(bytes, width));
    std::memcpy(raw, element, filled);
    while (filled < bytes) {
        const uint32_t more = std::min(filled, bytes - filled);
        std::memcpy(raw + filled, raw, more);
        filled += more;
    }
}

}  // namespace

Mode mode_of(const char *codec) {
    const std::string name = codec;
    return name == "raw" ? Mode::kRaw : name == "split" ? Mode::kSplit : Mode::kAuto;
}

size_t element_bytes(int32_t dtype) {
    switch (dtype) {
        case UCM_DTYPE_BYTES:
        case UCM_DTYPE_FP8_E4M3:
        case UCM_DTYPE_FP8_E5M2:
            return 1;
        case UCM_DTYPE_BF16:
        case UCM_DTYPE_FP16:
            return 2;
        case UCM_DTYPE_FP32:
            return 4;
        default:
            return 0;
    }
}

TileCoder::TileCoder()
    : workspace_(ZSTD_estimateCStreamSize_usingCParams(parameters())),
      planes_(kTileBytes),
      coded_(ZSTD_compressBound(kTileBytes)),
      coder_(ZSTD_initStaticCCtx(workspace_.base(), workspace_.bytes())),
      decoder_(ZSTD_createDCtx(), ZSTD_freeDCtx) {
    if (!coder_ || !decoder_) throw Error(UCM_UNAVAILABLE, "out of memory", ENOMEM);
    const ZSTD_compressionParameters p = parameters();
    const std::pair<ZSTD_cParameter, int> settings[] = {
        {ZSTD_c_windowLog, int(p.windowLog)},
        {ZSTD_c_hashLog, int(p.hashLog)},
        {ZSTD_c_chainLog, int(p.chainLog)},
        {ZSTD_c_searchLog, int(p.searchLog)},
        {ZSTD_c_minMatch, int(p.minMatch)},
        {ZSTD_c_strategy, int(p.strategy)},
        {ZSTD_c_blockDelimiters, ZSTD_sf_explicitBlockDelimiters},
    };
    size_t rc = 0;
    for (const auto &[name, value] : settings)
        if (!ZSTD_isError(rc)) rc = ZSTD_CCtx_setParameter(coder_, name, value);
    // Try the largest tile once: a library that cannot do it should say so at open.
    const std::vector<uint8_t> zeros(kTileBytes);
    uint32_t stored = 0;
    if (!ZSTD_isError(rc) &&
        encode_split(zeros.data(), kTileBytes, UCM_DTYPE_BYTES, planes_.base(), &stored))
        return;
    throw Error(UCM_UNAVAILABLE,
                std::string("libzstd ") + ZSTD_versionString() +
                    " cannot code literals; install another version: " + ZSTD_getErrorName(rc));
}

TileCoder::~TileCoder() = default;

Tile TileCoder::encode(const uint8_t *raw, uint32_t bytes, int32_t dtype, Mode mode, uint8_t *out) {
    const size_t width = element_bytes(dtype);
    Tile tile{kTileRaw, bytes};
    if (mode != Mode::kRaw && pays(uint32_t(width), bytes) &&
        std::memcmp(raw, raw + width, bytes - width) == 0) {
        tile = {kTileConstant, uint32_t(width)};
    } else if (mode != Mode::kRaw && bytes >= kSmallestTile &&
               !(mode == Mode::kAuto && hopeless(raw, bytes, dtype)) &&
               encode_split(raw, bytes, dtype, out, &tile.stored)) {
        tile.codec = kTileSplit;
        return tile;
    }
    std::memcpy(out, raw, tile.stored);
    return tile;
}

bool TileCoder::encode_split(const uint8_t *raw, uint32_t bytes, int32_t dtype, uint8_t *out,
                             uint32_t *stored) {
    const size_t width = element_bytes(dtype), n = bytes / width, rest = bytes - n;
    uint8_t *planes = planes_.base();
    const uint8_t *top = planes + n * (width - 1);
    if (dtype == UCM_DTYPE_BF16)
        split<uint16_t, 1>(raw, n, planes, planes + n);
    else if (dtype == UCM_DTYPE_FP16)
        split<uint16_t, 0>(raw, n, planes, planes + n);
    else if (dtype == UCM_DTYPE_FP32)
        split<uint32_t, 1>(raw, n, planes, planes + n * 3);
    else
        top = raw;
    // One sequence without a match is the end of a block: all of the plane is literals.
    const ZSTD_Sequence block = {0, unsigned(n), 0, 0};
    const size_t coded =
        ZSTD_compressSequences(coder_, coded_.base(), coded_.bytes(), &block, 1, top, n);
    if (ZSTD_isError(coded) || !pays(uint32_t(4 + coded + rest), bytes)) return false;
    const uint32_t length = uint32_t(coded);
    std::memcpy(out, &length, 4);
    std::memcpy(out + 4, coded_.base(), coded);
    std::memcpy(out + 4 + coded, planes, n * (width - 1));
    std::memcpy(out + 4 + coded + n * (width - 1), raw + n * width, bytes - n * width);
    *stored = uint32_t(4 + coded + rest);
    return true;
}

bool TileCoder::decode(Tile tile, int32_t dtype, const uint8_t *stored, uint8_t *raw,
                       uint32_t raw_bytes) {
    const size_t width = element_bytes(dtype);
    if (width == 0 || raw_bytes == 0 || raw_bytes > kTileBytes) return false;
    switch (tile.codec) {
        case kTileRaw:
            if (tile.stored != raw_bytes) return false;
            std::memcpy(raw, stored, raw_bytes);
            return true;
        case kTileConstant:
            if (tile.stored != width) return false;
            fill(raw, raw_bytes, stored, width);
            return true;
        case kTileSplit:
            return decode_split(stored, tile.stored, dtype, raw, raw_bytes);
    }
    return false;
}

bool TileCoder::decode_split(const uint8_t *stored, uint32_t stored_bytes, int32_t dtype,
                             uint8_t *raw, uint32_t raw_bytes) {
    const size_t width = element_bytes(dtype), n = raw_bytes / width, rest = raw_bytes - n;
    uint32_t coded = 0;
    if (n == 0 || stored_bytes < 4) return false;
    std::memcpy(&coded, stored, 4);
    if (stored_bytes - 4 < rest || coded != stored_bytes - 4 - rest) return false;
    uint8_t *top = width == 1 ? raw : planes_.base();
    if (ZSTD_decompressDCtx(decoder_.get(), top, n, stored + 4, coded) != n) return false;
    const uint8_t *planes = stored + 4 + coded;
    if (dtype == UCM_DTYPE_BF16)
        merge<uint16_t, 1>(planes, top, n, raw);
    else if (dtype == UCM_DTYPE_FP16)
        merge<uint16_t, 0>(planes, top, n, raw);
    else if (dtype == UCM_DTYPE_FP32)
        merge<uint32_t, 1>(planes, top, n, raw);
    std::memcpy(raw + n * width, planes + n * (width - 1), raw_bytes - n * width);
    return true;
}

}  // namespace ucm::compress
