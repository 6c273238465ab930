// SPDX-License-Identifier: MIT
#include "frame.h"

#include <algorithm>
#include <cstring>

#include "guess.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "frames are little-endian");

namespace ucm::compress {

namespace {

constexpr uint16_t kVersion = 3;
constexpr uint16_t kLossy = 1;              // of the flags; no writer of ours sets it
constexpr uint64_t kPartBytes = 512 << 10;  // of a shard: less is not worth another thread
constexpr int kMostMisses = 8;
constexpr uint64_t kLookBytes = 512, kLookEvery = 32 << 10, kMostLooks = 8;  // at a shard
constexpr char kMagic[4] = {'U', 'C', 'M', 'Z'};

struct Trailer {
    char magic[4];
    uint16_t version;
    uint16_t flags;
    uint64_t raw_bytes;
    uint64_t frame_bytes;
    uint32_t tile_count;
    uint32_t zero;
    uint64_t raw_hash;
    uint64_t index_hash;
    uint64_t name_hash;
    uint64_t trailer_hash;
};
static_assert(sizeof(Trailer) == kTrailerBytes);

struct Entry {
    uint16_t raw_less_one;
    uint16_t stored_less_one;
    uint8_t codec;
    uint8_t dtype;
    uint8_t stored_hash[6];  // its low bytes

    uint32_t raw() const { return raw_less_one + 1u; }
    uint32_t stored() const { return stored_less_one + 1u; }
};
static_assert(sizeof(Entry) == 12);

Entry entry_at(const uint8_t *index, uint32_t i) {
    Entry entry;
    std::memcpy(&entry, index + uint64_t(i) * sizeof entry, sizeof entry);
    return entry;
}

uint64_t hash_of(const Name &name, const Kernels &kernels) {
    return kernels.hash(&name, sizeof name, 0);
}

uint64_t hash_of(const Trailer &trailer, const Kernels &kernels) {
    return kernels.hash(&trailer, offsetof(Trailer, trailer_hash), 0);
}

// Puts it, complete but for what is the same in all, to the end of the frame.
void seal(Trailer &trailer, uint8_t *frame, const Kernels &kernels) {
    std::memcpy(trailer.magic, kMagic, sizeof kMagic);
    trailer.version = kVersion;
    trailer.trailer_hash = hash_of(trailer, kernels);
    std::memcpy(frame + trailer.frame_bytes - kTrailerBytes, &trailer, sizeof trailer);
}

// A table of its own makes fewer numbers longer, and of a sample of models shorter from about here
// on. Unknown ones are taken for words of two bytes.
uint64_t small_plane(int32_t dtype) {
    return 768 * (dtype == UCM_DTYPE_BYTES ? 2 : element_bytes(dtype));
}

// What can be said before the index is touched, in the order of the format.
Decoded check_trailer(const Trailer &trailer, const Name &name, uint64_t length, uint64_t capacity,
                      bool allow_lossy, const Kernels &kernels) {
    if (std::memcmp(trailer.magic, kMagic, sizeof kMagic) != 0 ||
        trailer.trailer_hash != hash_of(trailer, kernels))
        return {UCM_CORRUPT, 0};
    if (trailer.version != kVersion || trailer.flags & ~kLossy || trailer.raw_bytes > capacity)
        return {UCM_INCOMPATIBLE, 0};
    if (trailer.flags & kLossy && !allow_lossy) return {UCM_INCOMPATIBLE, 0, true};
    const uint64_t payload = length - kTrailerBytes;
    const uint64_t index = trailer.tile_count * uint64_t(sizeof(Entry));
    if (trailer.frame_bytes != length || trailer.zero ||
        trailer.name_hash != hash_of(name, kernels) || payload > trailer.raw_bytes ||
        index > payload ||
        (index == 0 && (payload != trailer.raw_bytes || trailer.index_hash != 0)))
        return {UCM_CORRUPT, 0};
    return {UCM_OK, trailer.raw_bytes};
}

// After its checksum. The sums are what bounds every access to payload and shard. Calls visit(i,
// raw, stored) with what is before tile i.
template <typename F>
ucm_status check_index(const Trailer &trailer, const uint8_t *index, F visit) {
    uint64_t raw = 0, stored = 0;
    for (uint32_t i = 0; i < trailer.tile_count; i++) {
        const Entry entry = entry_at(index, i);
        if (entry.codec >= kTileCodecs || element_bytes(entry.dtype) == 0) return UCM_INCOMPATIBLE;
        visit(i, raw, stored);
        raw += entry.raw();
        stored += entry.stored();
    }
    const uint64_t rest = kTrailerBytes + trailer.tile_count * uint64_t(sizeof(Entry));
    return raw == trailer.raw_bytes && stored + rest == trailer.frame_bytes ? UCM_OK : UCM_CORRUPT;
}

ucm_layout layout_of(const std::vector<uint64_t> &segments, const std::vector<ucm_plane> &planes) {
    ucm_layout layout{};
    layout.struct_size = sizeof layout;
    layout.n_segments = uint32_t(segments.size());
    layout.segment_bytes = segments.data();
    for (uint64_t bytes : segments) layout.capacity += bytes;
    layout.n_planes = uint32_t(planes.size());
    layout.plane_stride = sizeof(ucm_plane);
    layout.planes = planes.data();
    return layout;
}

}  // namespace

Geometry::Geometry(const std::vector<uint64_t> &segments, const std::vector<ucm_plane> &planes)
    : Geometry(layout_of(segments, planes)) {}

Geometry::Geometry(const ucm_layout &layout) {
    starts_.push_back(0);
    for (uint32_t i = 0; i < layout.n_segments; i++)
        starts_.push_back(starts_.back() + layout.segment_bytes[i]);
    struct {
        uint64_t start = 0, end = 0;
        int32_t dtype = UCM_DTYPE_BYTES;
        bool is_small = false;
    } run;  // what is not cut yet: a plane, or small ones that follow each other
    for (uint32_t i = 0; i < layout.n_planes; i++) {
        const ucm_plane &plane = *UCM_AT(ucm_plane, layout.planes, layout.plane_stride, i);
        const uint64_t bytes = std::min(plane.bytes, capacity() - run.end);
        const int32_t dtype = element_bytes(plane.dtype) ? plane.dtype : int32_t(UCM_DTYPE_BYTES);
        const bool is_small = bytes < small_plane(dtype);
        const bool whole = (run.end - run.start) % element_bytes(dtype) == 0;
        if (!is_small || !run.is_small || dtype != run.dtype || !whole) {
            cut(run.end, run.dtype);
            run = {run.end, run.end, dtype, is_small};
        }
        run.end += bytes;
    }
    cut(run.end, run.dtype);
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

void Geometry::gather(void *const *row, uint64_t offset, uint64_t bytes, uint8_t *to) const {
    each(row, offset, bytes, [&](const uint8_t *part, size_t n) {
        std::memcpy(to, part, n);
        to += n;
    });
}

void Geometry::scatter(const uint8_t *from, void *const *row, uint64_t offset,
                       uint64_t bytes) const {
    each(row, offset, bytes, [&](uint8_t *part, size_t n) {
        std::memcpy(part, from, n);
        from += n;
    });
}

FrameCoder::FrameCoder(const Geometry &geometry, int dtype, const Kernels &kernels,
                       bool allow_lossy)
    : geometry_(geometry),
      kernels_(kernels),
      allow_lossy_(allow_lossy),
      coder_(kernels),
      places_(geometry.tiles().size()),
      index_(geometry.tiles().size() * sizeof(Entry)),
      scratch_(kTileBytes) {
    for (size_t i = 0; i < places_.size(); i++) {
        places_[i].fixed = dtype != UCM_DTYPE_BYTES;
        places_[i].dtype = uint8_t(places_[i].fixed ? dtype : geometry.tiles()[i].dtype);
    }
}

template <typename F>
void FrameCoder::share(size_t parts, Team *team, F work) {
    if (team && parts > 1) return team->run(parts, std::ref(work));
    for (size_t i = 0; i < parts; i++) work(i, *this);
}

uint64_t FrameCoder::encode(const Name &name, void *const *row, uint64_t length, Mode mode,
                            uint8_t *frame, TileCounts *counts, Team *team) {
    *counts = {};
    bool copied = false;
    const bool tries = mode != Mode::kRaw && !waits();
    if (tries && mode == Mode::kFast && is_noise(row, length, frame)) {
        wait_after(false, true);
    } else if (tries) {
        const uint64_t bytes = encode_tiles(name, row, length, mode, frame, counts, team, copied);
        if (bytes != 0) return bytes;
    }
    return encode_raw(name, row, length, frame, copied);
}

// Is this shard not tried, after those of which nothing paid?
bool FrameCoder::waits() {
    if (wait_ == 0) return false;
    wait_--;
    for (Place &place : places_)
        if (place.wait > 0) place.wait--;
    return true;
}

// Somewhere below `range`, every time as far as can be from where it was before: multiples of the
// golden ratio.
uint64_t FrameCoder::somewhere(uint64_t range) {
    return uint64_t(looks_++ * 2654435769u) * range >> 32;
}

// Is a shard, behind one of which nothing was coded, noise wherever it is looked at? That costs a
// part of what trying its tiles does.
bool FrameCoder::is_noise(void *const *row, uint64_t length, uint8_t *frame) {
    found_ = kNowhere;
    if (coded_ || length != geometry_.capacity() || length < 8 * kLookBytes) return false;
    const uint64_t looks = std::clamp<uint64_t>(length / kLookEvery, 1, kMostLooks);
    for (uint64_t i = 0; i < looks; i++) {
        uint8_t sample[kLookBytes];
        const uint64_t at = somewhere(length - kLookBytes);
        geometry_.gather(row, at, kLookBytes, sample);
        found_ = at + kLookBytes / 2;
        if (!looks_random(sample, kLookBytes)) return false;
    }
    found_ = kNowhere;
    const uint64_t bytes = std::min<uint64_t>(length, kTileBytes);
    for (uint64_t rest = length; (rest -= coder_.unsearched(rest)) > 0;) {
        geometry_.gather(row, somewhere(length - bytes), bytes, scratch_.base());
        if (coder_.repeats(scratch_.base(), uint32_t(bytes), frame)) return false;
    }
    return true;
}

void FrameCoder::wait_after(bool pays, bool all_raw) {
    const auto tried = [](const Place &place) { return place.failures > 0 || place.seen.known; };
    coded_ = !all_raw;
    if (pays)
        failures_ = misses_ = 0;
    else if (!all_raw && misses_ < kMostMisses)
        misses_++;  // the next may be a little shorter
    else if (failures_ == 0 || looks_ >= places_.size() ||
             std::all_of(places_.begin(), places_.end(), tried))
        failures_ = std::min(failures_ + 1, kMostFailures);
    // Else some were not even looked at: it is soon their turn.
    wait_ = (1 << failures_) - 1;
}

// The frame may have the bytes already.
uint64_t FrameCoder::encode_raw(const Name &name, void *const *row, uint64_t length, uint8_t *frame,
                                bool copied) {
    Trailer trailer{};
    trailer.name_hash = hash_of(name, kernels_);
    trailer.raw_bytes = length;
    trailer.frame_bytes = length + kTrailerBytes;
    for (uint64_t at = 0, number = 0; at < length; at += kTileBytes, number++) {
        const uint64_t bytes = std::min<uint64_t>(kTileBytes, length - at);
        if (!copied) geometry_.gather(row, at, bytes, frame + at);
        trailer.raw_hash += kernels_.hash(frame + at, bytes, number);
    }
    seal(trailer, frame, kernels_);
    return trailer.frame_bytes;
}

// 0: not worth it.
uint64_t FrameCoder::encode_tiles(const Name &name, void *const *row, uint64_t length, Mode mode,
                                  uint8_t *frame, TileCounts *counts, Team *team, bool &copied) {
    const auto &tiles = geometry_.tiles();
    const auto is_before = [](const Geometry::Piece &tile, uint64_t end) {
        return tile.offset < end;
    };
    const auto end = std::lower_bound(tiles.begin(), tiles.end(), length, is_before);
    Trailer trailer{};
    trailer.tile_count = uint32_t(end - tiles.begin());
    const size_t parts =
        std::clamp<uint64_t>(length / kPartBytes, 1, std::min<size_t>(kMostParts, tiles.size()));
    for (size_t i = 0; i < parts; i++) {
        const auto tile = [&](size_t k) { return uint32_t(trailer.tile_count * k / parts); };
        parts_[i] = {};
        parts_[i].first = tile(i);
        parts_[i].last = tile(i + 1);
        parts_[i].found = found_;
    }
    share(parts, team, [&](size_t i, FrameCoder &coder) {
        coder.encode_part(row, length, mode, frame, index_.base(), parts_[i]);
    });
    uint64_t at = 0;
    TileCounts mine;
    for (size_t i = 0; i < parts; i++) {
        const Part &part = parts_[i];
        if (at != part.stored_at) std::memmove(frame + at, frame + part.stored_at, part.stored);
        at += part.stored;
        trailer.raw_hash += part.raw_hash;
        for (int codec = 0; codec < kTileCodecs; codec++) mine.of[codec] += part.counts.of[codec];
    }
    copied = at == length;  // no tile is longer: all are raw
    const uint64_t index = trailer.tile_count * sizeof(Entry);
    trailer.frame_bytes = at + index + kTrailerBytes;
    // Stores keep whole pages.
    const uint64_t unit = length > UCM_ALIGNMENT ? UCM_ALIGNMENT : 1;
    const bool pays = round_up(trailer.frame_bytes, unit) < round_up(length + kTrailerBytes, unit);
    if (trailer.tile_count == places_.size()) wait_after(pays, copied);
    if (!pays) return 0;
    trailer.raw_bytes = length;
    trailer.name_hash = hash_of(name, kernels_);
    trailer.index_hash = kernels_.hash(index_.base(), index, 0);
    std::memcpy(frame + at, index_.base(), index);
    seal(trailer, frame, kernels_);
    *counts = mine;
    return trailer.frame_bytes;
}

// Tiles one after another from where the first one's raw bytes are in the shard, so that parts do
// not meet: no tile is longer than its raw bytes.
void FrameCoder::encode_part(void *const *row, uint64_t length, Mode mode, uint8_t *frame,
                             uint8_t *index, Part &part) {
    const auto &tiles = geometry_.tiles();
    part.stored_at = part.first < part.last ? tiles[part.first].offset : 0;
    coder_.begin();
    for (uint32_t i = part.first; i < part.last; i++) {
        const uint32_t bytes =
            uint32_t(std::min<uint64_t>(tiles[i].bytes, length - tiles[i].offset));
        const uint8_t *raw = geometry_.find(row, tiles[i].offset, bytes);
        if (!raw) {
            geometry_.gather(row, tiles[i].offset, bytes, scratch_.base());
            raw = scratch_.base();
        }
        const uint64_t raw_hash = kernels_.hash(raw, bytes, i);
        // The next one, if there is one and it lies in one segment.
        const uint64_t end = tiles[i].offset + bytes,
                       more = i + 1 < part.last ? tiles[i + 1].bytes : 0;
        const uint8_t *next =
            more && end + more <= length ? geometry_.find(row, end, more) : nullptr;
        coder_.expect(next, next ? more : 0);
        if (part.found - tiles[i].offset < bytes) {  // no tile before it tells anything of it
            coder_.begin();
            places_[i].wait = 0;
        }
        uint8_t *out = frame + part.stored_at + part.stored;
        const Tile tile = coder_.encode(raw, bytes, places_[i], mode, out);
        const uint64_t stored_hash =
            tile.codec == kTileRaw ? raw_hash : kernels_.hash(out, tile.stored, i);
        Entry entry{uint16_t(bytes - 1), uint16_t(tile.stored - 1), tile.codec, tile.dtype, {}};
        std::memcpy(entry.stored_hash, &stored_hash, sizeof entry.stored_hash);
        std::memcpy(index + i * sizeof entry, &entry, sizeof entry);
        part.raw_hash += raw_hash;
        part.stored += tile.stored;
        part.counts.of[tile.codec]++;
    }
}

Decoded FrameCoder::decode(const Name &name, const uint8_t *frame, uint64_t length,
                           void *const *row, Team *team) {
    if (length < kTrailerBytes) return {UCM_CORRUPT, 0};
    Trailer trailer;
    std::memcpy(&trailer, frame + length - kTrailerBytes, sizeof trailer);
    Decoded decoded =
        check_trailer(trailer, name, length, geometry_.capacity(), allow_lossy_, kernels_);
    if (decoded.status != UCM_OK) return decoded;
    if (trailer.tile_count == 0) return decode_raw(frame, trailer.raw_bytes, trailer.raw_hash, row);
    const uint64_t index_bytes = trailer.tile_count * uint64_t(sizeof(Entry));
    const uint8_t *index = frame + length - kTrailerBytes - index_bytes;
    if (kernels_.hash(index, index_bytes, 0) != trailer.index_hash) return {UCM_CORRUPT, 0};
    const size_t most = std::clamp<uint64_t>(trailer.raw_bytes / kPartBytes, 1, kMostParts);
    const uint32_t each = uint32_t((trailer.tile_count + most - 1) / most);
    size_t parts = 0;
    decoded.status = check_index(trailer, index, [&](uint32_t i, uint64_t raw, uint64_t stored) {
        if (i % each != 0) return;
        parts_[parts] = {};
        parts_[parts].first = i;
        parts_[parts].last = std::min(i + each, trailer.tile_count);
        parts_[parts].raw_at = raw;
        parts_[parts++].stored_at = stored;
    });
    if (decoded.status == UCM_OK)
        decoded.status = decode_tiles(frame, index, parts, trailer.raw_hash, row, team);
    return decoded;
}

Decoded FrameCoder::decode_raw(const uint8_t *frame, uint64_t bytes, uint64_t raw_hash,
                               void *const *row) {
    uint64_t sum = 0;
    for (uint64_t at = 0, number = 0; at < bytes; at += kTileBytes, number++) {
        const uint64_t piece = std::min<uint64_t>(kTileBytes, bytes - at);
        sum += kernels_.hash(frame + at, piece, number);
        geometry_.scatter(frame + at, row, at, piece);
    }
    if (sum != raw_hash) return {UCM_CORRUPT, 0};
    return {UCM_OK, bytes};
}

// The index has been checked.
ucm_status FrameCoder::decode_tiles(const uint8_t *frame, const uint8_t *index, size_t parts,
                                    uint64_t raw_hash, void *const *row, Team *team) {
    share(parts, team,
          [&](size_t i, FrameCoder &coder) { coder.decode_part(frame, index, row, parts_[i]); });
    uint64_t sum = 0;
    for (size_t i = 0; i < parts; i++) {
        if (parts_[i].status != UCM_OK) return parts_[i].status;
        sum += parts_[i].raw_hash;
    }
    return sum == raw_hash ? UCM_OK : UCM_CORRUPT;
}

void FrameCoder::decode_part(const uint8_t *frame, const uint8_t *index, void *const *row,
                             Part &part) {
    part.status = UCM_CORRUPT;
    uint64_t offset = part.raw_at;
    const uint8_t *stored = frame + part.stored_at;
    for (uint32_t i = part.first; i < part.last; i++) {
        const Entry entry = entry_at(index, i);
        const uint64_t stored_hash = kernels_.hash(stored, entry.stored(), i);
        if (std::memcmp(&stored_hash, entry.stored_hash, sizeof entry.stored_hash) != 0) return;
        const uint32_t next = i + 1 < part.last ? entry_at(index, i + 1).stored() : 0;
        coder_.expect(stored + entry.stored(), next);
        uint8_t *direct = geometry_.find(row, offset, entry.raw());
        uint8_t *raw = direct ? direct : scratch_.base();
        if (!coder_.decode({TileCodec(entry.codec), entry.dtype, entry.stored()}, stored, raw,
                           entry.raw()))
            return;
        part.raw_hash += entry.codec == kTileRaw ? stored_hash : kernels_.hash(raw, entry.raw(), i);
        if (!direct) geometry_.scatter(raw, row, offset, entry.raw());
        offset += entry.raw();
        stored += entry.stored();
    }
    part.status = UCM_OK;
}

}  // namespace ucm::compress
