// SPDX-License-Identifier: MIT
// Any frame: all sets of kernels say the same of it, and stay inside frame and shard.
#include <iterator>
#include <random>

#include "fuzz.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

using namespace fuzz;
using ucm::compress::kTileBytes;
using ucm::compress::kTrailerBytes;
using ucm::compress::Tile;
using ucm::compress::TileCodec;
using ucm::compress::TileCoder;

namespace {

// What is made right of a frame, and what of its totals is not.
enum Repairs : uint8_t { kTotals = 1, kChecksums = 2, kNotRaw = 4, kNotStored = 8 };

uint64_t get(const Bytes &frame, size_t at, size_t width) {
    uint64_t value = 0;
    std::memcpy(&value, &frame[at], width);
    return value;
}

void put(Bytes &frame, size_t at, uint64_t value, size_t width) {
    std::memcpy(&frame[at], &value, width);
}

struct Places {
    size_t trailer, index, count;

    explicit Places(const Bytes &frame) : trailer(frame.size() - kTrailerBytes) {
        count = std::min<size_t>(get(frame, trailer + 24, 4), trailer / 12);
        index = trailer - count * 12;
    }
};

// Makes the sums of lengths right where a change of one can do it: those of the trailer, and how
// many bytes the last tile takes.
void repair_totals(Bytes &frame, uint8_t repairs) {
    const Places at(frame);
    uint64_t raw = at.count ? 0 : at.trailer, stored = 0;
    for (size_t i = 0; i < at.count; i++) {
        const size_t entry = at.index + i * 12;
        raw += get(frame, entry, 2) + 1;
        if (i + 1 == at.count && stored < at.index && !(repairs & kNotStored))
            put(frame, entry + 2, at.index - stored - 1, 2);
        stored += get(frame, entry + 2, 2) + 1;
    }
    if (!(repairs & kNotRaw)) put(frame, at.trailer + 8, raw, 8);
    put(frame, at.trailer + 16, frame.size(), 8);
    put(frame, at.trailer + 24, at.count, 4);
    if (at.count == 0) put(frame, at.trailer + 40, 0, 8);
}

// What the raw bytes of a tile add to raw_hash, if it is one.
uint64_t raw_hash(const Bytes &frame, size_t entry, size_t start, uint64_t number) {
    static TileCoder coder(ucm::compress::kScalarKernels);
    Bytes raw(get(frame, entry, 2) + 1);
    const Tile tile{TileCodec(frame[entry + 4]), frame[entry + 5],
                    uint32_t(get(frame, entry + 2, 2) + 1)};
    if (!ucm::compress::element_bytes(tile.dtype) ||
        !coder.decode(tile, &frame[start], raw.data(), uint32_t(raw.size())))
        return 0;
    return XXH3_64bits_withSeed(raw.data(), raw.size(), number);
}

// Of tiles, index and trailer, so that what is behind them is reached.
void repair_checksums(Bytes &frame) {
    const Places at(frame);
    uint64_t sum = 0;
    for (size_t i = 0, start = 0; i < at.count; i++) {
        const size_t entry = at.index + i * 12, stored = get(frame, entry + 2, 2) + 1;
        if (start + stored > at.index) break;
        put(frame, entry + 6, XXH3_64bits_withSeed(&frame[start], stored, i), 6);
        sum += raw_hash(frame, entry, start, i);
        start += stored;
    }
    for (size_t i = 0; at.count == 0 && i * kTileBytes < at.trailer; i++)
        sum += XXH3_64bits_withSeed(&frame[i * kTileBytes],
                                    std::min(kTileBytes, at.trailer - i * kTileBytes), i);
    put(frame, at.trailer + 32, sum, 8);
    put(frame, at.trailer + 48, XXH3_64bits(&kName, sizeof kName), 8);
    if (at.count) put(frame, at.trailer + 40, XXH3_64bits(&frame[at.index], at.count * 12), 8);
    put(frame, at.trailer + 56, XXH3_64bits(&frame[at.trailer], 56), 8);
}

// Making a coder takes as long as decoding some frames.
struct Readers {
    ucm::compress::Geometry geometry;
    std::vector<std::unique_ptr<FrameCoder>> coders;

    explicit Readers(const Shape &shape) : geometry(shape.geometry()) {
        for (const Kernels *each : all_kernels())
            coders.push_back(std::make_unique<FrameCoder>(geometry, 0, *each, true));
    }
    // A reader goes by segments alone.
    static Readers &of(const Shape &shape) {
        static std::map<std::vector<uint64_t>, std::unique_ptr<Readers>> made;
        auto &readers = made[shape.segments];
        if (!readers && made.size() > 32) {
            made.clear();
            return of(shape);
        }
        if (!readers) readers = std::make_unique<Readers>(shape);
        return *readers;
    }
};

}  // namespace

// Index and trailer are few bytes of a frame and bound all that is done with it: every other time,
// one of theirs is changed.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t most, unsigned seed) {
    constexpr size_t kEntries = 4 * 12;
    if (seed % 2 || size < kTrailerBytes + kEntries) return LLVMFuzzerMutate(data, size, most);
    std::minstd_rand random(seed);
    const size_t at = size - 1 - random() % (kTrailerBytes + kEntries);
    const uint8_t values[] = {
        0, 1, 0xff, uint8_t(data[at] + 1), uint8_t(data[at] ^ 0x80), uint8_t(random())};
    data[at] = values[random() % std::size(values)];
    if (random() % 4 == 0) data[0] = uint8_t(random() % 16);  // Repairs
    return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input input(data, size);
    const uint8_t repairs = input.byte();
    const Shape shape(input);
    Bytes frame = input.rest();
    if (frame.size() >= kTrailerBytes) {
        if (repairs & kTotals) repair_totals(frame, repairs);
        if (repairs & kChecksums) repair_checksums(frame);
    }
    Readers &readers = Readers::of(shape);
    Backwards team(readers.coders);
    ucm::compress::Decoded first{};
    Bytes bytes;
    for (size_t k = 0; k < readers.coders.size(); k++) {
        const uint8_t fill = uint8_t(0x11 * (k + 1));
        const Row row(shape, fill);
        const auto decoded = readers.coders[k]->decode(kName, frame.data(), frame.size(),
                                                       row.addresses(), k % 2 ? &team : nullptr);
        if (k == 0) first = decoded;
        REQUIRE(decoded.status == UCM_OK || decoded.status == UCM_CORRUPT ||
                decoded.status == UCM_INCOMPATIBLE);
        REQUIRE(decoded.status == first.status);
        if (decoded.status != UCM_OK) continue;
        REQUIRE(decoded.bytes == first.bytes);
        Bytes got = row.get();
        REQUIRE(decoded.bytes <= got.size());
        // Behind the shard's end nothing is written.
        const auto end = got.begin() + long(decoded.bytes);
        REQUIRE(std::all_of(end, got.end(), [&](uint8_t byte) { return byte == fill; }));
        got.erase(end, got.end());
        if (k == 0) bytes = got;
        REQUIRE(got == bytes);
    }
    return 0;
}
