// SPDX-License-Identifier: MIT
#include "frame.h"

#include <algorithm>
#include <cstring>

#define XXH_INLINE_ALL
#include <xxhash.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian");

namespace ucm::compress {

namespace {

constexpr uint16_t kVersion = 1;

struct Header {
    char magic[4];
    uint16_t version;
    uint16_t flags;
    uint64_t raw_bytes;
    uint64_t frame_bytes;
    uint32_t tile_count;
    uint32_t zero;
    uint64_t raw_hash;
    uint64_t payload_hash;
    uint64_t zero2;
    uint64_t header_hash;
};
static_assert(sizeof(Header) == kFrameHeaderBytes);

struct Entry {
    uint32_t raw_bytes;
    uint32_t stored_bytes;
    uint8_t codec;
    uint8_t dtype;
    uint16_t zero;
};
static_assert(sizeof(Entry) == 12);

constexpr char kMagic[4] = {'U', 'C', 'M', 'Z'};

uint64_t hash_of(const void *bytes, size_t n) {
    return XXH3_64bits(bytes, n);
}

uint64_t hash_of_header(const Header &header) {
    return hash_of(&header, offsetof(Header, header_hash));
}

Entry entry_at(const uint8_t *frame, uint32_t i) {
    Entry entry;
    std::memcpy(&entry, frame + kFrameHeaderBytes + uint64_t(i) * sizeof entry, sizeof entry);
    return entry;
}

// What can be said before the payload is touched, in the order of the format.
Decoded check_header(const Header &header, uint64_t length, uint64_t capacity) {
    if (std::memcmp(header.magic, kMagic, sizeof kMagic) != 0 ||
        header.header_hash != hash_of_header(header))
        return {UCM_CORRUPT, 0};
    if (header.version != kVersion || header.flags != 0) return {UCM_INCOMPATIBLE, 0};
    if (header.raw_bytes > capacity) return {UCM_INCOMPATIBLE, 0};
    if (header.frame_bytes != length || header.zero || header.zero2) return {UCM_CORRUPT, 0};
    const uint64_t payload = length - kFrameHeaderBytes;
    if (header.tile_count == 0 ? payload != header.raw_bytes
                               : header.tile_count * uint64_t(sizeof(Entry)) > payload)
        return {UCM_CORRUPT, 0};
    return {UCM_OK, header.raw_bytes};
}

bool check_index(const Header &header, const uint8_t *frame) {
    uint64_t raw = 0, stored = 0;
    for (uint32_t i = 0; i < header.tile_count; i++) {
        const Entry entry = entry_at(frame, i);
        if (entry.raw_bytes == 0 || entry.raw_bytes > kTileBytes || entry.zero) return false;
        raw += entry.raw_bytes;
        stored += entry.stored_bytes;
    }
    return raw == header.raw_bytes && stored == header.frame_bytes - kFrameHeaderBytes -
                                                    header.tile_count * uint64_t(sizeof(Entry));
}

}  // namespace

Geometry::Geometry(const ucm_layout &layout) {
    starts_.push_back(0);
    for (uint32_t i = 0; i < layout.n_segments; i++)
        starts_.push_back(starts_.back() + layout.segment_bytes[i]);
    uint64_t end = 0;
    for (uint32_t i = 0; i < layout.n_planes; i++) {
        const ucm_plane &plane = *UCM_AT(ucm_plane, layout.planes, layout.plane_stride, i);
        end += std::min(plane.bytes, capacity() - end);
        cut(end, element_bytes(plane.dtype) ? plane.dtype : int32_t(UCM_DTYPE_BYTES));
    }
    cut(capacity(), UCM_DTYPE_BYTES);
}

void Geometry::cut(uint64_t end, int32_t dtype) {
    uint64_t start = tiles_.empty() ? 0 : tiles_.back().offset + tiles_.back().bytes;
    if (start == end) return;
    // Tiles of one plane are about equal; 64 keeps elements whole.
    const uint64_t count = (end - start + kTileBytes - 1) / kTileBytes;
    const uint64_t bytes = round_up((end - start + count - 1) / count, 64);
    for (; start < end; start += bytes)
        tiles_.push_back({start, uint32_t(std::min(bytes, end - start)), dtype});
}

size_t Geometry::segment_of(uint64_t offset) const {
    return size_t(std::upper_bound(starts_.begin() + 1, starts_.end() - 1, offset) -
                  starts_.begin()) -
           1;
}

uint8_t *Geometry::find(void *const *row, uint64_t offset, uint64_t bytes) const {
    const size_t s = segment_of(offset);
    if (offset + bytes > starts_[s + 1]) return nullptr;
    return static_cast<uint8_t *>(row[s]) + (offset - starts_[s]);
}

template <typename F>
void Geometry::each(void *const *row, uint64_t offset, uint64_t bytes, F visit) const {
    for (size_t s = segment_of(offset); bytes != 0; s++) {
        const uint64_t part = std::min(bytes, starts_[s + 1] - offset);
        visit(static_cast<uint8_t *>(row[s]) + (offset - starts_[s]), size_t(part));
        offset += part;
        bytes -= part;
    }
}

FrameCoder::FrameCoder(const Geometry &geometry)
    : geometry_(geometry), scratch_(kTileBytes), spare_(kTileBytes) {}

uint64_t FrameCoder::encode(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                            TileCounts *counts) {
    uint64_t frame_bytes = 0;
    if (mode != Mode::kRaw && encode_tiles(row, length, mode, frame, &frame_bytes, counts))
        return frame_bytes;
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.raw_bytes = length;
    header.frame_bytes = kFrameHeaderBytes + length;
    uint8_t *out = frame + kFrameHeaderBytes;
    geometry_.each(row, 0, length, [&](const uint8_t *part, size_t bytes) {
        std::memcpy(out, part, bytes);
        out += bytes;
    });
    header.raw_hash = header.payload_hash = hash_of(frame + kFrameHeaderBytes, length);
    header.header_hash = hash_of_header(header);
    std::memcpy(frame, &header, sizeof header);
    return header.frame_bytes;
}

// False: the frame would not be shorter than one with the raw bytes.
bool FrameCoder::encode_tiles(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                              uint64_t *frame_bytes, TileCounts *counts) {
    const auto &tiles = geometry_.tiles();
    uint32_t tile_count = 0;
    while (tile_count < tiles.size() && tiles[tile_count].offset < length) tile_count++;
    const uint64_t limit = kFrameHeaderBytes + length;
    uint64_t at = kFrameHeaderBytes + uint64_t(tile_count) * sizeof(Entry);
    TileCounts mine;
    XXH3_state_t raw_hash;
    XXH3_64bits_reset(&raw_hash);
    for (uint32_t i = 0; i < tile_count; i++) {
        const uint32_t bytes =
            uint32_t(std::min<uint64_t>(tiles[i].bytes, length - tiles[i].offset));
        const uint8_t *raw = geometry_.find(row, tiles[i].offset, bytes);
        if (!raw) {
            uint8_t *to = scratch_.base();
            geometry_.each(row, tiles[i].offset, bytes, [&](const uint8_t *part, size_t n) {
                std::memcpy(to, part, n);
                to += n;
            });
            raw = scratch_.base();
        }
        XXH3_64bits_update(&raw_hash, raw, bytes);
        // Behind raw tiles and the index, a tile may fit only if it is coded.
        uint8_t *out = at + bytes <= limit ? frame + at : spare_.base();
        const Tile tile = coder_.encode(raw, bytes, tiles[i].dtype, mode, out);
        if (at + tile.stored > limit) return false;
        if (out == spare_.base()) std::memcpy(frame + at, out, tile.stored);
        const Entry entry{bytes, tile.stored, tile.codec, uint8_t(tiles[i].dtype), 0};
        std::memcpy(frame + kFrameHeaderBytes + i * sizeof entry, &entry, sizeof entry);
        at += tile.stored;
        (tile.codec == kTileSplit ? mine.split : tile.codec ? mine.constant : mine.raw)++;
    }
    if (at >= limit) return false;
    Header header{};
    std::memcpy(header.magic, kMagic, sizeof kMagic);
    header.version = kVersion;
    header.raw_bytes = length;
    header.frame_bytes = at;
    header.tile_count = tile_count;
    header.raw_hash = XXH3_64bits_digest(&raw_hash);
    header.payload_hash = hash_of(frame + kFrameHeaderBytes, at - kFrameHeaderBytes);
    header.header_hash = hash_of_header(header);
    std::memcpy(frame, &header, sizeof header);
    *frame_bytes = at;
    *counts = mine;
    return true;
}

Decoded FrameCoder::decode(const uint8_t *frame, uint64_t length, void *const *row) {
    if (length < kFrameHeaderBytes) return {UCM_CORRUPT, 0};
    Header header;
    std::memcpy(&header, frame, sizeof header);
    Decoded decoded = check_header(header, length, geometry_.capacity());
    if (decoded.status != UCM_OK) return decoded;
    const uint8_t *payload = frame + kFrameHeaderBytes;
    if ((header.tile_count && !check_index(header, frame)) ||
        header.payload_hash != hash_of(payload, length - kFrameHeaderBytes))
        return {UCM_CORRUPT, 0};
    if (header.tile_count) {
        decoded.status = decode_tiles(frame, header.tile_count, header.raw_hash, row);
        return decoded;
    }
    if (header.raw_hash != header.payload_hash) return {UCM_CORRUPT, 0};
    geometry_.each(row, 0, header.raw_bytes, [&](uint8_t *part, size_t bytes) {
        std::memcpy(part, payload, bytes);
        payload += bytes;
    });
    return decoded;
}

// The index has been checked.
ucm_status FrameCoder::decode_tiles(const uint8_t *frame, uint32_t tile_count, uint64_t raw_hash,
                                    void *const *row) {
    const uint8_t *stored = frame + kFrameHeaderBytes + uint64_t(tile_count) * sizeof(Entry);
    uint64_t offset = 0;
    XXH3_state_t hash;
    XXH3_64bits_reset(&hash);
    for (uint32_t i = 0; i < tile_count; i++) {
        const Entry entry = entry_at(frame, i);
        uint8_t *direct = geometry_.find(row, offset, entry.raw_bytes);
        uint8_t *raw = direct ? direct : scratch_.base();
        if (!coder_.decode({TileCodec(entry.codec), entry.stored_bytes}, entry.dtype, stored, raw,
                           entry.raw_bytes))
            return UCM_CORRUPT;
        XXH3_64bits_update(&hash, raw, entry.raw_bytes);
        if (!direct)
            geometry_.each(row, offset, entry.raw_bytes, [&](uint8_t *part, size_t n) {
                std::memcpy(part, raw, n);
                raw += n;
            });
        offset += entry.raw_bytes;
        stored += entry.stored_bytes;
    }
    return XXH3_64bits_digest(&hash) == raw_hash ? UCM_OK : UCM_CORRUPT;
}

}  // namespace ucm::compress
