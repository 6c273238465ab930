// SPDX-License-Identifier: MIT
#include "codec.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "guess.h"
#include "sample.h"
#include "ucm/store_v1.hpp"

// ZSTD_compressSequences and static contexts are exported, but declared only with this.
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

namespace ucm::compress {

namespace {

constexpr uint32_t kSmallestTile = 128;
constexpr uint32_t kPattern = 4;  // bytes of a constant: one, two or four elements
constexpr uint32_t kSmallPlane = 16384;
constexpr float kDrift = 1.015f;
constexpr float kForget = 32;  // tiles, roughly
constexpr int kFailedRow = 2;
constexpr uint32_t kUnseen = 65536;
constexpr uint32_t kNoisePause = 1 << 20, kMostNoisePause = 16 << 20;

ZSTD_compressionParameters parameters() {
    return {16, ZSTD_CHAINLOG_MIN, 14, 1, 5, 0, ZSTD_fast};
}

size_t rest_bytes(int dtype, size_t n) {
    return n * (element_bytes(dtype) - 1);
}

void fill(uint8_t *raw, uint32_t bytes, const uint8_t *pattern) {
    uint32_t filled = std::min(bytes, kPattern);
    std::memcpy(raw, pattern, filled);
    while (filled < bytes) {
        const uint32_t more = std::min(filled, bytes - filled);
        std::memcpy(raw + filled, raw, more);
        filled += more;
    }
}

// Exactly one frame, of no older format, that gives n bytes.
bool is_frame(const uint8_t *coded, size_t bytes, size_t n) {
    uint32_t magic = 0;
    if (bytes >= 4) std::memcpy(&magic, coded, 4);
    return magic == ZSTD_MAGICNUMBER && ZSTD_getFrameContentSize(coded, bytes) == n &&
           ZSTD_getDictID_fromFrame(coded, bytes) == 0 &&
           ZSTD_findFrameCompressedSize(coded, bytes) == bytes;
}

}  // namespace

Mode mode_of(const char *codec) {
    const std::string name = codec;
    return name == "raw" ? Mode::kRaw : name == "small" ? Mode::kSmall : Mode::kFast;
}

TileCoder::TileCoder(const Kernels &kernels)
    : kernels_(kernels),
      noise_wait_(kNoisePause),
      noise_pause_(kNoisePause),
      classes_(kernels),
      planes_(kTileBytes + kKernelSlack),
      encoder_memory_(ZSTD_estimateCStreamSize_usingCParams(parameters())),
      decoder_memory_(ZSTD_estimateDCtxSize()),
      encoder_(ZSTD_initStaticCCtx(encoder_memory_.base(), encoder_memory_.bytes())),
      decoder_(ZSTD_initStaticDCtx(decoder_memory_.base(), decoder_memory_.bytes())) {
    const ZSTD_compressionParameters p = parameters();
    const std::pair<ZSTD_cParameter, int> settings[] = {
        {ZSTD_c_windowLog, int(p.windowLog)},
        {ZSTD_c_hashLog, int(p.hashLog)},
        {ZSTD_c_chainLog, int(p.chainLog)},
        {ZSTD_c_searchLog, int(p.searchLog)},
        {ZSTD_c_minMatch, int(p.minMatch)},
        {ZSTD_c_strategy, int(p.strategy)},
        {ZSTD_c_blockDelimiters, ZSTD_sf_explicitBlockDelimiters},
        {ZSTD_c_contentSizeFlag, 1},  // 0 in a static context
    };
    size_t rc = encoder_ && decoder_ ? 0 : size_t(-1);
    for (const auto &[name, value] : settings)
        if (!ZSTD_isError(rc)) rc = ZSTD_CCtx_setParameter(encoder_, name, value);
    // Try the largest tile once: a library that cannot do it should say so at open.
    const std::vector<uint8_t> zeros(kTileBytes + kKernelSlack);
    std::vector<uint8_t> coded(kTileBytes + kKernelSlack);
    for (int dtype : {UCM_DTYPE_BYTES, UCM_DTYPE_BF16})
        if (!ZSTD_isError(rc) && !zstd(zeros.data(), kTileBytes, dtype, coded.data(), kTileBytes))
            rc = size_t(-1);
    if (ZSTD_isError(rc))
        throw Error(UCM_UNAVAILABLE,
                    std::string("libzstd ") + ZSTD_versionString() +
                        " cannot code literals; install another version: " + ZSTD_getErrorName(rc));
}

Tile TileCoder::encode(const uint8_t *raw, uint32_t bytes, Place &place, Mode mode, uint8_t *out) {
    Tile tile{kTileRaw, 0, bytes};
    if (mode != Mode::kRaw && bytes >= kSmallestTile) {
        if (std::memcmp(raw, raw + kPattern, bytes - kPattern) == 0) {
            std::memcpy(out, raw, kPattern);
            return {kTileConstant, 0, kPattern};
        }
        if (place.wait > 0)
            place.wait--;
        else if (!passes_unseen(place, bytes, mode))
            tile = try_to(raw, bytes, place, mode, out);
    }
    if (tile.codec != kTileRaw) return tile;
    std::memcpy(out, raw, bytes);
    return tile;
}

void Numbers::widen(float ratio) {
    low = std::min(low, ratio);
    high = std::max(high, ratio);
}

Tile TileCoder::try_to(const uint8_t *raw, uint32_t bytes, Place &place, Mode mode, uint8_t *out) {
    Tile tile{kTileRaw, 0, bytes};
    Numbers &seen = place.seen, &others = seen_[place.dtype];
    const bool is_number = seen.known && seen.dtype != UCM_DTYPE_BYTES;
    if (!seen.known && !place.fixed && place.failures == 0) seen = others;
    const int first = seen.known ? seen.dtype : place.dtype;
    uint32_t stored = bytes;
    if (place.fixed || seen.known) stored = code(raw, bytes, first, place, mode, out, tile);
    const float ratio = float(stored) / float(bytes);
    // It is not known, or unlike those that were: perhaps other numbers.
    const bool other = ratio < seen.low / kDrift || ratio > seen.high * kDrift;
    if (!place.fixed && (!seen.known || other)) {
        stored = explore(raw, bytes, first, is_number, place, mode, out, tile);
        const float now = float(stored) / float(bytes);
        // The same numbers can be unlike each other, K and V for one.
        const bool same = seen.known && tile.codec != kTileRaw && tile.dtype == seen.dtype;
        if (!same) seen.low = seen.high = now;
        seen.widen(now);
    } else {
        seen.low += (ratio - seen.low) / kForget;
        seen.high += (ratio - seen.high) / kForget;
    }
    seen.known = tile.codec != kTileRaw;
    if (seen.known) {
        failed_ = 0;
        seen.dtype = tile.dtype;
        place.failures = 0;
        others = seen;
    } else {
        failed_++, unseen_ = kUnseen;
        if (place.failures < kMostFailures) place.failures++;
        place.wait = uint16_t((1 << place.failures) - 1);
    }
    return tile;
}

// As the dtype that suits best.
uint32_t TileCoder::explore(const uint8_t *raw, uint32_t bytes, int first, bool is_number,
                            Place &place, Mode mode, uint8_t *out, Tile &tile) {
    const auto [dtype, is_noise] = guess_dtype(raw, bytes, first, mode);
    if (tile.codec != kTileRaw && (is_noise || tile.dtype == dtype)) return tile.stored;
    if (is_noise) return code_noise(raw, bytes, place, mode, out, tile);
    uint32_t stored = code(raw, bytes, dtype, place, mode, out, tile);
    // Text looks like numbers of one byte, and repeats itself, which only zstd sees.
    if (is_number || dtype == first || element_bytes(dtype) > 1 || dtype == UCM_DTYPE_BYTES)
        return stored;
    const uint32_t as_bytes = code(raw, bytes, UCM_DTYPE_BYTES, place, mode, out, tile);
    const uint32_t enough = mode == Mode::kSmall ? stored : stored - stored / 8;  // for its time
    return as_bytes < enough ? as_bytes : code(raw, bytes, dtype, place, mode, out, tile);
}

// Looking at a small tile takes half as long as copying it: where some in a row were looked at in
// vain, only some of those behind them are.
bool TileCoder::passes_unseen(const Place &place, uint32_t bytes, Mode mode) {
    const bool unknown = !place.fixed && !place.seen.known && mode == Mode::kFast;
    if (!unknown || failed_ < kFailedRow || unseen_ <= bytes || noise_wait_ <= bytes) return false;
    unseen_ -= bytes;
    noise_wait_ -= bytes;
    return true;
}

// Nothing but repetitions could make it shorter; where there were none, there are seldom some soon.
uint32_t TileCoder::code_noise(const uint8_t *raw, uint32_t bytes, Place &place, Mode mode,
                               uint8_t *out, Tile &tile) {
    if (mode == Mode::kFast && noise_wait_ > bytes) {
        noise_wait_ -= bytes;
        tile = {kTileRaw, 0, bytes};
        return bytes;
    }
    const uint32_t stored = code(raw, bytes, UCM_DTYPE_BYTES, place, mode, out, tile);
    if (tile.codec == kTileRaw) {
        noise_pause_ = std::min(noise_pause_ * 2, kMostNoisePause);
        noise_wait_ = noise_pause_;
    } else {
        noise_pause_ = kNoisePause / 2;
        noise_wait_ = 0;
    }
    return stored;
}

uint64_t TileCoder::unsearched(uint64_t bytes) {
    bytes = std::min<uint64_t>(bytes, noise_wait_);
    noise_wait_ -= uint32_t(bytes);
    return bytes;
}

bool TileCoder::repeats(const uint8_t *raw, uint32_t bytes, uint8_t *out) {
    Place place;
    Tile tile;
    return code_noise(raw, bytes, place, Mode::kFast, out, tile) < bytes;
}

// Returns the bytes it takes; as many as there are if nothing pays, and the tile is raw.
uint32_t TileCoder::code(const uint8_t *raw, uint32_t bytes, int dtype, Place &place, Mode mode,
                         uint8_t *out, Tile &tile) {
    tile = {kTileRaw, 0, bytes};
    const size_t width = element_bytes(dtype), n = bytes / width, tail = bytes - n * width;
    const bool numbers = dtype != UCM_DTYPE_BYTES;
    // Fast searches for matches in unknown bytes only, and stays with it where there are many. What
    // kernels write behind the end fits into what is saved.
    const uint32_t share = numbers || mode == Mode::kSmall ? 32 : 8;
    const size_t most = bytes - tail - std::max<size_t>(bytes / share, kKernelSlack);
    size_t stored = 0;
    if (numbers && mode == Mode::kFast) {
        stored = classes_.encode(raw, n, dtype, out, most, place.kept);
        tile.codec = kTileClasses;
    } else if (numbers || mode == Mode::kSmall || promises(raw, bytes)) {
        stored = zstd(raw, bytes, dtype, out, most);
        tile.codec = kTileZstd;
        // The head of a zstd frame weighs more than classes in a small plane.
        if (numbers && bytes < kSmallPlane) {
            const size_t other = classes_.encode(raw, n, dtype, planes_.base(), most, place.kept);
            if (other != 0 && (stored == 0 || other < stored)) {
                std::memcpy(out, planes_.base(), stored = other);
                tile.codec = kTileClasses;
            }
        }
    }
    if (stored == 0) {
        tile = {kTileRaw, 0, bytes};
        return bytes;
    }
    std::memcpy(out + stored, raw + n * width, tail);
    tile.dtype = uint8_t(dtype);
    return tile.stored = uint32_t(stored + tail);
}

// Is there something for zstd in a sample of these bytes? All of them would take it several times
// as long as copying them.
bool TileCoder::promises(const uint8_t *raw, uint32_t bytes) {
    constexpr uint32_t kRun = 2048, kSample = 4 * kRun;
    if (bytes < 2 * kSample) return true;
    uint8_t *const sample = planes_.base(), *to = sample;
    each_run(bytes, kRun, 4, 64, [&](size_t at) {
        std::memcpy(to, raw + at, kRun);
        to += kRun;
    });
    const size_t most = kSample - kSample / 16;
    return !ZSTD_isError(ZSTD_compress2(encoder_, sample + kSample, most, sample, kSample));
}

void TileCoder::split_top(const uint8_t *raw, size_t n, int dtype, uint8_t *top,
                          uint8_t *rest) const {
    if (dtype != UCM_DTYPE_FP16) return kernels_.split[dtype](raw, n, top, rest);
    for (size_t i = 0; i < n; i++) rest[i] = raw[i * 2], top[i] = raw[i * 2 + 1];
}

void TileCoder::merge_top(const uint8_t *top, const uint8_t *rest, size_t n, int dtype,
                          uint8_t *raw) const {
    if (dtype != UCM_DTYPE_FP16) return kernels_.merge[dtype](top, rest, n, 0, n, raw);
    for (size_t i = 0; i < n; i++) raw[i * 2] = rest[i], raw[i * 2 + 1] = top[i];
}

// Planes, and one zstd frame; 0: it does not fit.
size_t TileCoder::zstd(const uint8_t *raw, uint32_t bytes, int dtype, uint8_t *out, size_t most) {
    const size_t n = bytes / element_bytes(dtype), rest = rest_bytes(dtype, n);
    // zstd 1.5.4 writes in front of a room that is too small for any frame's head.
    if (most < rest + ZSTD_FRAMEHEADERSIZE_MAX) return 0;
    const bool apart = element_bytes(dtype) > 1;
    const uint8_t *top = apart ? planes_.base() : raw;
    if (apart) split_top(raw, n, dtype, planes_.base(), out);
    if (dtype == UCM_DTYPE_BYTES) {
        const size_t coded = ZSTD_compress2(encoder_, out, most, top, n);
        return ZSTD_isError(coded) ? 0 : coded;
    }
    // One sequence without a match is the end of a block: all of it is literals.
    const ZSTD_Sequence block = {0, unsigned(n), 0, 0};
    size_t coded = ZSTD_compressSequences(encoder_, out + rest, most - rest, &block, 1, top, n);
    if (dtype == UCM_DTYPE_BF16 || dtype == UCM_DTYPE_FP32 || bytes < kSmallPlane)
        return ZSTD_isError(coded) ? 0 : rest + coded;
    // Whole bytes repeat where tokens do; where they do so by chance, matches cost more than they
    // save. There is room behind the top bytes: an element has two, or they are the raw ones.
    uint8_t *other = planes_.base() + (apart ? n : 0);
    const size_t matched = ZSTD_compress2(encoder_, other, std::min(n, most - rest), top, n);
    if (!ZSTD_isError(matched) && (ZSTD_isError(coded) || matched < coded))
        std::memcpy(out + rest, other, coded = matched);
    return ZSTD_isError(coded) ? 0 : rest + coded;
}

bool TileCoder::decode(Tile tile, const uint8_t *stored, uint8_t *raw, uint32_t raw_bytes) {
    const size_t width = element_bytes(tile.dtype), n = width ? raw_bytes / width : 0;
    if (raw_bytes == 0 || raw_bytes > kTileBytes) return false;
    if (tile.codec == kTileRaw) {
        if (tile.stored != raw_bytes) return false;
        std::memcpy(raw, stored, raw_bytes);
        return true;
    }
    if (tile.stored >= raw_bytes) return false;
    if (tile.codec == kTileConstant) {
        if (tile.stored != kPattern) return false;
        fill(raw, raw_bytes, stored);
        return true;
    }
    const size_t tail = raw_bytes - n * width;
    if (n == 0 || tile.stored < tail) return false;
    const uint32_t coded = tile.stored - uint32_t(tail);
    std::memcpy(raw + n * width, stored + coded, tail);
    if (tile.codec == kTileClasses) return classes_.decode(stored, coded, tile.dtype, n, raw);
    return tile.codec == kTileZstd && unzstd(stored, coded, tile.dtype, raw, uint32_t(n * width));
}

bool TileCoder::unzstd(const uint8_t *stored, uint32_t stored_bytes, int dtype, uint8_t *raw,
                       uint32_t raw_bytes) {
    const size_t n = raw_bytes / element_bytes(dtype), rest = rest_bytes(dtype, n);
    if (stored_bytes <= rest || !is_frame(stored + rest, stored_bytes - rest, n)) return false;
    uint8_t *top = element_bytes(dtype) > 1 ? planes_.base() : raw;
    if (ZSTD_decompressDCtx(decoder_, top, n, stored + rest, stored_bytes - rest) != n)
        return false;
    if (element_bytes(dtype) > 1) merge_top(top, stored, n, dtype, raw);
    return true;
}

}  // namespace ucm::compress
