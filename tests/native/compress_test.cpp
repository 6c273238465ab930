// SPDX-License-Identifier: MIT
#include <sys/mman.h>

#include <catch2/catch.hpp>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "../../plugins/compress/frame.h"
#include "../../plugins/compress/guess.h"
#include "../../plugins/compress/pace.h"
#include "harness.h"

using namespace ucm_test;
using ucm::compress::FrameCoder;
using ucm::compress::Kernels;
using ucm::compress::kKernelSlack;
using ucm::compress::kTrailerBytes;
using ucm::compress::Mode;
using ucm::compress::mode_for;
using ucm::compress::TileCounts;

namespace {

using Bytes = std::vector<uint8_t>;
const int32_t kDtypes[] = {UCM_DTYPE_BYTES, UCM_DTYPE_BF16,     UCM_DTYPE_FP16,
                           UCM_DTYPE_FP32,  UCM_DTYPE_FP8_E4M3, UCM_DTYPE_FP8_E5M2};

// All that this processor runs.
std::vector<const Kernels *> all_kernels() {
    std::vector<const Kernels *> all;
    for (const char *name : {"scalar", "avx2", "avx512", "neon"}) {
        const Kernels *each = ucm::compress::kernels_named(name);
        if (each) all.push_back(each);
        if (!each) WARN("kernels " << name << ": not on this processor");
    }
    return all;
}

// Memory whose end is the end of a page that nobody may touch.
class Guarded {
  public:
    explicit Guarded(size_t bytes) : mapped_(ucm::round_up(bytes + 1) + 4096), bytes_(bytes) {
        base_ = static_cast<uint8_t *>(
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        mprotect(base_ + mapped_ - 4096, 4096, PROT_NONE);
    }
    ~Guarded() { munmap(base_, mapped_); }
    Guarded(const Guarded &) = delete;
    uint8_t *data() const { return base_ + mapped_ - 4096 - bytes_; }

  private:
    size_t mapped_, bytes_;
    uint8_t *base_;
};

Bytes random_bytes(size_t n, uint64_t seed) {
    std::mt19937_64 random(seed);
    Bytes bytes(n);
    for (auto &byte : bytes) byte = uint8_t(random());
    return bytes;
}

// Numbers around zero, as KV cache has them.
Bytes numbers(size_t n, int32_t dtype, uint64_t seed = 1) {
    std::mt19937_64 random(seed);
    std::normal_distribution<float> normal;
    const size_t width = ucm::compress::element_bytes(dtype);
    Bytes bytes(n);
    for (size_t i = 0; i < n; i += width) {
        const float value = normal(random);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (dtype == UCM_DTYPE_BF16) bits >>= 16;
        if (dtype == UCM_DTYPE_FP16)
            bits = bits >> 16 & 0x8000 | ((bits >> 23 & 255) - 112) << 10 | bits >> 13 & 0x3ff;
        if (width == 1) bits = bits >> 24 & 0x80 | ((bits >> 23 & 15) << 3) | bits >> 20 & 7;
        std::memcpy(&bytes[i], &bits, std::min(width, n - i));
    }
    return bytes;
}

struct Shape {
    std::vector<uint64_t> segments;
    std::vector<ucm_plane> planes;

    static Shape of(size_t bytes, int32_t dtype) {
        return {{std::max<uint64_t>(bytes, 1)}, {{std::max<uint64_t>(bytes, 1), dtype, 0}}};
    }
    ucm::compress::Geometry geometry() const { return {segments, planes}; }
};

// One shard as separate, unaligned segments that end at unmapped pages.
class Row {
  public:
    Row(const Shape &shape, const Bytes &bytes) : shape_(shape) {
        size_t at = 0;
        for (uint64_t size : shape.segments) {
            parts_.push_back(std::make_unique<Guarded>(size));
            addresses_.push_back(parts_.back()->data());
            const size_t part = std::min<size_t>(size, bytes.size() - at);
            if (part) std::memcpy(addresses_.back(), bytes.data() + at, part);
            at += part;
        }
    }
    void *const *addresses() const { return addresses_.data(); }
    Bytes bytes(size_t n) const {
        Bytes all;
        for (size_t k = 0; k < addresses_.size() && all.size() < n; k++) {
            const auto *from = static_cast<const uint8_t *>(addresses_[k]);
            all.insert(all.end(), from,
                       from + std::min<size_t>(shape_.segments[k], n - all.size()));
        }
        return all;
    }

  private:
    Shape shape_;
    std::vector<std::unique_ptr<Guarded>> parts_;
    std::vector<void *> addresses_;
};

constexpr ucm::compress::Name kName{};  // of every frame that no store has made

// The bytes that follow a frame are not its own: whatever they are, nothing depends on them.
constexpr uint8_t kPoison[] = {0, 0xff, 0xa5};

Bytes encode(const Shape &shape, const Bytes &bytes, FrameCoder &coder, Mode mode = Mode::kFast,
             TileCounts *counts = nullptr) {
    const Row row(shape, bytes);
    const Guarded frame(bytes.size() + kTrailerBytes);
    TileCounts unused;
    const uint64_t n = coder.encode(kName, row.addresses(), bytes.size(), mode, frame.data(),
                                    counts ? counts : &unused);
    REQUIRE(n <= bytes.size() + kTrailerBytes);
    return Bytes(frame.data(), frame.data() + n);
}

Bytes encode(const Shape &shape, const Bytes &bytes, Mode mode = Mode::kFast,
             TileCounts *counts = nullptr, int dtype = 0) {
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, dtype, ucm::compress::best_kernels());
    return encode(shape, bytes, coder, mode, counts);
}

ucm_status decode(const Shape &shape, const Bytes &frame, Bytes *bytes, FrameCoder &coder) {
    const Row row(shape, {});
    const Guarded copy(frame.size());
    if (!frame.empty()) std::memcpy(copy.data(), frame.data(), frame.size());
    const auto decoded = coder.decode(kName, copy.data(), frame.size(), row.addresses());
    if (bytes) *bytes = row.bytes(decoded.bytes);
    return decoded.status;
}

ucm_status decode(const Shape &shape, const Bytes &frame, Bytes *bytes = nullptr) {
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    return decode(shape, frame, bytes, coder);
}

// Compared without Catch printing megabytes.
bool round_trips(const Shape &shape, const Bytes &bytes, Mode mode = Mode::kFast) {
    Bytes back;
    return decode(shape, encode(shape, bytes, mode), &back) == UCM_OK && back == bytes;
}

uint64_t get(const Bytes &frame, size_t at, size_t width) {
    uint64_t value = 0;
    std::memcpy(&value, &frame[at], width);
    return value;
}

// Makes the checksums of a changed frame right again, as an attacker or a bug could: the trailer's
// always, those of index and tiles where they can be found.
void seal(Bytes &frame) {
    if (frame.size() < 64) return;
    const size_t trailer = frame.size() - 64;
    const uint64_t count = get(frame, trailer + 24, 4);
    if (count && count * 12 <= trailer) {
        const size_t index = trailer - count * 12;
        size_t at = 0;
        for (uint64_t i = 0; i < count; i++) {
            const size_t entry = index + i * 12, stored = get(frame, entry + 2, 2) + 1;
            if (at + stored > index) break;
            const uint64_t hash = XXH3_64bits_withSeed(&frame[at], stored, i);
            std::memcpy(&frame[entry + 6], &hash, 6);
            at += stored;
        }
        const uint64_t hash = XXH3_64bits(&frame[index], count * 12);
        std::memcpy(&frame[trailer + 40], &hash, 8);
    }
    const uint64_t hash = XXH3_64bits(&frame[trailer], 56);
    std::memcpy(&frame[trailer + 56], &hash, 8);
}

template <typename T>
void put(Bytes &frame, size_t at, T value) {
    std::memcpy(&frame[at], &value, sizeof value);
}

}  // namespace

TEST_CASE("a frame gives back every shard bit for bit", "[compress][frame]") {
    for (int32_t dtype : kDtypes)
        for (Mode mode : {Mode::kFast, Mode::kSmall, Mode::kRaw})
            for (size_t n : {0, 1, 2, 3, 4, 5, 63, 64, 65, 127, 1000, 4095, 65535, 65536, 65537,
                             131072, 200001}) {
                INFO("dtype " << dtype << " mode " << int(mode) << " bytes " << n);
                const Shape shape = Shape::of(n, dtype);
                REQUIRE(round_trips(shape, numbers(n, dtype), mode));
                REQUIRE(round_trips(shape, random_bytes(n, n), mode));
                REQUIRE(round_trips(shape, Bytes(n, 0), mode));
                REQUIRE(round_trips(shape, Bytes(n, 0xff), mode));
            }
}

TEST_CASE("a frame keeps every pattern of a number: NaN, infinity, subnormal",
          "[compress][frame]") {
    Bytes all;
    for (uint32_t pattern = 0; pattern < 65536; pattern++) {
        all.push_back(uint8_t(pattern));
        all.push_back(uint8_t(pattern >> 8));
    }
    for (int32_t dtype : kDtypes) {
        REQUIRE(round_trips(Shape::of(all.size(), dtype), all, Mode::kSmall));
        REQUIRE(round_trips(Shape::of(all.size(), dtype), all, Mode::kFast));
        // Among ordinary numbers, so that the tiles are coded.
        Bytes mixed = numbers(200000, dtype);
        for (size_t i = 0; i < all.size(); i += 400) std::memcpy(&mixed[i], &all[i], 4);
        REQUIRE(round_trips(Shape::of(mixed.size(), dtype), mixed));
    }
}

TEST_CASE("a shard shorter than its capacity keeps its length", "[compress][frame]") {
    const Shape shape{{7000, 1, 130000, 3},
                      {{60001, UCM_DTYPE_BF16, 1}, {70002, UCM_DTYPE_FP32, 2}}};
    const auto geometry = shape.geometry();
    REQUIRE(geometry.capacity() == 137004);
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    for (size_t n : {0, 1, 6999, 7000, 7001, 60000, 60001, 60002, 100001, 130003, 137003, 137004}) {
        INFO("length " << n);
        Bytes back;
        const Bytes bytes = numbers(n, UCM_DTYPE_BF16);
        REQUIRE(decode(shape, encode(shape, bytes), &back, coder) == UCM_OK);
        REQUIRE(bool(back == bytes));
    }
}

TEST_CASE("tiles cover the shard and end where planes do", "[compress][frame]") {
    const Shape shape{
        {300000, 100000},
        {{98304, UCM_DTYPE_BF16, 1}, {65537, UCM_DTYPE_FP8_E4M3, 2}, {1, UCM_DTYPE_FP16, 0}}};
    const auto geometry = shape.geometry();
    uint64_t end = 0;
    for (const auto &tile : geometry.tiles()) {
        REQUIRE(tile.offset == end);
        REQUIRE(tile.bytes >= 1);
        REQUIRE(tile.bytes <= ucm::compress::kTileBytes);
        end += tile.bytes;
        for (uint64_t plane : {98304, 98304 + 65537, 98304 + 65537 + 1})
            REQUIRE_FALSE((tile.offset < plane && end > plane));
        const int32_t dtype = end <= 98304           ? UCM_DTYPE_BF16
                              : end <= 98304 + 65537 ? UCM_DTYPE_FP8_E4M3
                              : end <= 98304 + 65538 ? UCM_DTYPE_FP16
                                                     : UCM_DTYPE_BYTES;
        REQUIRE(tile.dtype == dtype);
    }
    REQUIRE(end == 400000);
    REQUIRE(geometry.tiles()[0].bytes == geometry.tiles()[1].bytes);
}

TEST_CASE("small planes of one dtype share tiles, others have their own", "[compress][frame]") {
    const auto tiles = [](const std::vector<ucm_plane> &planes) {
        uint64_t bytes = 0;
        for (const auto &plane : planes) bytes += plane.bytes;
        std::vector<uint32_t> sizes;
        const ucm::compress::Geometry geometry({bytes}, planes);
        for (const auto &tile : geometry.tiles()) sizes.push_back(tile.bytes);
        return sizes;
    };
    using Sizes = std::vector<uint32_t>;
    const ucm_plane bf16{384, UCM_DTYPE_BF16, UCM_PLANE_K}, v{384, UCM_DTYPE_BF16, UCM_PLANE_V};
    const ucm_plane large{1536, UCM_DTYPE_BF16, UCM_PLANE_K};
    const ucm_plane fp8{700, UCM_DTYPE_FP8_E4M3, UCM_PLANE_K}, odd{385, UCM_DTYPE_BF16, 0};
    const ucm_plane fp8_large{768, UCM_DTYPE_FP8_E4M3, UCM_PLANE_K};
    const ucm_plane bytes{384, UCM_DTYPE_BYTES, 0}, unknown{384, 99, 0}, none{0, UCM_DTYPE_BF16, 0};
    REQUIRE(tiles({bf16, v, bf16, v}) == Sizes{1536});
    REQUIRE(tiles({large, large, large}) == Sizes{1536, 1536, 1536});
    REQUIRE(tiles({bf16, v, large, bf16, v, v}) == Sizes{768, 1536, 1152});
    REQUIRE(tiles({bf16, v, fp8, fp8, bf16}) == Sizes{768, 1400, 384});
    REQUIRE(tiles({fp8_large, fp8_large}) == Sizes{768, 768});
    REQUIRE(tiles({bytes, unknown, bf16}) == Sizes{768, 384});
    REQUIRE(tiles({odd, odd, odd}) == Sizes{385, 385, 385});  // elements stay whole
    REQUIRE(tiles({none, bf16, none, v}) == Sizes{768});
    REQUIRE(tiles(std::vector<ucm_plane>(400, bf16)) == Sizes{51200, 51200, 51200});
    REQUIRE(tiles({{(3ull << 30) + 1, UCM_DTYPE_BF16, 0}}).size() == (3ull << 30 >> 16) + 1);

    // K and V are unlike each other, and yet too short for tables of their own.
    Bytes rows;
    for (int row = 0; row < 60; row++) {
        Bytes plane = numbers(384, UCM_DTYPE_BF16, uint64_t(row));
        for (size_t i = 1; row % 2 && i < plane.size(); i += 2) plane[i] -= 1;  // a quarter
        rows.insert(rows.end(), plane.begin(), plane.end());
    }
    const Shape shared{{rows.size()}, std::vector<ucm_plane>(60, bf16)};
    for (const Mode mode : {Mode::kFast, Mode::kSmall}) {
        const Bytes frame = encode(shared, rows, mode);
        REQUIRE(frame.size() < rows.size() * 10 / 13);
        // Who cuts elsewhere reads it.
        Bytes back;
        REQUIRE(decode(Shape{shared.segments, {}}, frame, &back) == UCM_OK);
        REQUIRE(back == rows);
    }
}

TEST_CASE("coding pays for numbers and costs a trailer for noise", "[compress][frame]") {
    const size_t n = 1 << 20;
    const std::map<int32_t, double> least = {{UCM_DTYPE_BF16, 1.4},
                                             {UCM_DTYPE_FP16, 1.1},
                                             {UCM_DTYPE_FP32, 1.15},
                                             {UCM_DTYPE_FP8_E4M3, 1.1}};
    for (auto [dtype, ratio] : least) {
        INFO("dtype " << dtype);
        const Shape shape = Shape::of(n, dtype);
        for (Mode mode : {Mode::kFast, Mode::kSmall}) {
            TileCounts counts;
            REQUIRE(double(encode(shape, numbers(n, dtype), mode, &counts).size()) * ratio <
                    double(n));
            REQUIRE(counts.of[mode == Mode::kFast ? ucm::compress::kTileClasses
                                                  : ucm::compress::kTileZstd] == 16);
            REQUIRE(encode(shape, Bytes(n, 7)).size() == 64 + 16 * (12 + 4));
            REQUIRE(encode(shape, random_bytes(n, 1), mode).size() == n + 64);
        }
    }
}

TEST_CASE("which numbers they are is seen from the bytes", "[compress][frame]") {
    const size_t n = 1 << 18;
    for (int32_t dtype : kDtypes) {
        if (dtype == UCM_DTYPE_BYTES) continue;
        for (Mode mode : {Mode::kFast, Mode::kSmall}) {
            INFO("dtype " << dtype << " mode " << int(mode));
            Bytes bytes = numbers(n, dtype);
            if (dtype == UCM_DTYPE_FP8_E4M3)  // of all sizes, so that hardly a byte is missing
                for (size_t i = 0; i < n; i++) bytes[i] = uint8_t(bytes[i] - i / 32 % 5 * 8);
            const size_t named = encode(Shape::of(n, dtype), bytes, mode, nullptr, dtype).size();
            for (int32_t layout : kDtypes) {
                const size_t seen = encode(Shape::of(n, layout), bytes, mode).size();
                REQUIRE(double(seen) < double(named) * 1.01);
            }
        }
    }
}

TEST_CASE("what is here now may be other numbers than what was", "[compress][frame]") {
    const size_t n = 1 << 18;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    for (int32_t dtype : {UCM_DTYPE_BF16, UCM_DTYPE_FP16, UCM_DTYPE_FP8_E4M3, UCM_DTYPE_BF16}) {
        const Bytes bytes = numbers(n, dtype);
        const size_t alone = encode(shape, bytes).size();
        REQUIRE(double(encode(shape, bytes, coder).size()) < double(alone) * 1.01);
    }
}

TEST_CASE("tests and benchmarks name the set of kernels that a store takes", "[compress][frame]") {
    const std::string best = ucm::compress::best_kernels().name;
    for (const Kernels *kernels : all_kernels()) {
        setenv("UCM_COMPRESS_KERNELS", kernels->name, 1);
        REQUIRE(&ucm::compress::best_kernels() == kernels);
    }
    setenv("UCM_COMPRESS_KERNELS", "none", 1);
    REQUIRE(ucm::compress::best_kernels().name == best);
    unsetenv("UCM_COMPRESS_KERNELS");
}

TEST_CASE("kernels that this processor lacks are warned of", "[compress]") {
    setenv("UCM_COMPRESS_KERNELS", "none", 1);
    Stack stack({"Compress", "Memory"});
    unsetenv("UCM_COMPRESS_KERNELS");
    REQUIRE(stack.host().logged("UCM_COMPRESS_KERNELS=none"));
    REQUIRE_FALSE(Stack({"Compress", "Memory"}).host().logged("UCM_COMPRESS_KERNELS"));
}

TEST_CASE("symbols are counted alike by every set of kernels", "[compress][frame]") {
    for (const Kernels *kernels : all_kernels())
        for (size_t n : {64, 128, 2048, 4096})
            for (uint8_t range : {0, 1, 7, 40, 255}) {
                INFO(kernels->name << ", " << n << " symbols up to " << int(range));
                Bytes symbols = random_bytes(n, n + range);
                for (auto &symbol : symbols) symbol = uint8_t(symbol % (range + 1));
                REQUIRE(kernels->largest(symbols.data(), n) ==
                        *std::max_element(symbols.begin(), symbols.end()));
                for (uint8_t first : {0, 3, 33, 248}) {
                    uint32_t counts[ucm::compress::kTallied];
                    kernels->tally(symbols.data(), n, first, counts);
                    for (int k = 0; k < ucm::compress::kTallied; k++)
                        REQUIRE(counts[k] == std::count(symbols.begin(), symbols.end(), first + k));
                }
            }
}

TEST_CASE("exponents that lie apart are counted, too", "[compress][frame]") {
    // Counting begins at the largest and goes down in few steps; a large one alone must not end it.
    for (size_t n : {2000, 4000, 60000}) {
        const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
        const Bytes close = numbers(n, UCM_DTYPE_BF16);
        Bytes apart = close;
        for (size_t i = 0; i < n; i += 200) put(apart, i, uint16_t(0x7f00));
        REQUIRE(double(encode(shape, apart).size()) < double(encode(shape, close).size()) * 1.03);
        REQUIRE(round_trips(shape, apart));
        for (size_t i = 0; i < n; i += 2) apart[i + 1] ^= uint8_t(i / 2 % 2 * 0x20);  // two heaps
        REQUIRE(encode(shape, apart).size() < n);
        REQUIRE(round_trips(shape, apart));
    }
}

namespace {

// Normal numbers whose exponents are `by` higher.
Bytes scaled(size_t n, int by, uint64_t seed) {
    Bytes bytes = numbers(n, UCM_DTYPE_BF16, seed);
    for (size_t i = 0; i < n; i += 2) put(bytes, i, uint16_t(get(bytes, i, 2) + by * 128));
    return bytes;
}

}  // namespace

TEST_CASE("classes are used again while they suit", "[compress][frame]") {
    const size_t n = 6144;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, UCM_DTYPE_BF16, ucm::compress::best_kernels());
    for (int by : {0, 2, -3}) {
        double again = 0, alone = 0;
        for (uint64_t seed = 0; seed < 40; seed++) {
            const Bytes bytes = scaled(n, by, seed);
            again += double(encode(shape, bytes, coder).size());
            alone += double(encode(shape, bytes, Mode::kFast, nullptr, UCM_DTYPE_BF16).size());
        }
        REQUIRE(again < alone * 1.005);
    }
}

TEST_CASE("classes are not used again for numbers of a narrower range", "[compress][frame]") {
    // Of a wide and of a narrow range in turn, at the same place, as where shards are not the same
    // planes in the same order.
    const size_t n = 8192;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, UCM_DTYPE_BF16, ucm::compress::best_kernels());
    double again = 0, alone = 0;
    for (uint64_t seed = 0; seed < 40; seed++) {
        Bytes bytes = numbers(n, UCM_DTYPE_BF16, seed);
        for (size_t i = 0; seed % 2 == 0 && i < n; i += 6)
            put(bytes, i, uint16_t(get(bytes, i, 2) - 3 * 128));
        again += double(encode(shape, bytes, coder).size());
        alone += double(encode(shape, bytes, Mode::kFast, nullptr, UCM_DTYPE_BF16).size());
    }
    REQUIRE(again < alone * 1.001);
}

TEST_CASE("planes in turn are what they are each, whatever their neighbours", "[compress][frame]") {
    const int32_t kinds[] = {UCM_DTYPE_BF16, UCM_DTYPE_FP32, UCM_DTYPE_FP8_E4M3, UCM_DTYPE_FP16};
    const size_t plane = 16384;
    Bytes all;
    Shape shape{{plane * 16}, {}};
    double named = 0;
    for (size_t i = 0; i < 16; i++) {
        const Bytes bytes = numbers(plane, kinds[i % 4], i);
        all.insert(all.end(), bytes.begin(), bytes.end());
        shape.planes.push_back({plane, UCM_DTYPE_BYTES, 0});
        named +=
            double(encode(Shape::of(plane, kinds[i % 4]), bytes, Mode::kFast, nullptr, kinds[i % 4])
                       .size());
    }
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    for (int round = 0; round < 3; round++)
        REQUIRE(double(encode(shape, all, coder).size()) < named * 1.01);
}

TEST_CASE("planes that differ in ratio stay the numbers that they are", "[compress][frame]") {
    // Of one kind, K and V say, in turn: of a wide and of a narrow range, then noise, then again.
    const size_t n = 16384;
    const Shape shape = Shape::of(n, UCM_DTYPE_BYTES);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    for (int round = 0; round < 40; round++) {
        Bytes bytes = numbers(n, UCM_DTYPE_BF16, uint64_t(round));
        if (round % 2)
            for (size_t i = 0; i < n; i += 2) bytes[i + 1] |= 0x3f;
        const double named =
            double(encode(shape, bytes, Mode::kFast, nullptr, UCM_DTYPE_BF16).size());
        REQUIRE(double(encode(shape, bytes, coder).size()) < named * 1.01);
    }
}

TEST_CASE("noise is not tried again and again, numbers behind it are found", "[compress][frame]") {
    const size_t n = 1 << 16;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    for (int round = 0; round < 1000; round++)
        REQUIRE(encode(shape, random_bytes(n, uint64_t(round)), coder).size() == n + 64);
    int waited = 0;
    while (encode(shape, numbers(n, UCM_DTYPE_BF16), coder).size() > n) waited++;
    REQUIRE(waited > 0);
    REQUIRE(waited < 256);
}

TEST_CASE("what would be coded but not take a page less is not tried again and again",
          "[compress][frame]") {
    static size_t tried;
    tried = 0;
    Kernels counting = ucm::compress::kScalarKernels;
    counting.split[UCM_DTYPE_BF16] = [](const uint8_t *raw, size_t n, uint8_t *symbols,
                                        uint8_t *planes) {
        tried++;
        ucm::compress::kScalarKernels.split[UCM_DTYPE_BF16](raw, n, symbols, planes);
    };
    const size_t n = 6144, shards = 600;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, counting);
    for (size_t i = 0; i < shards; i++)
        REQUIRE(encode(shape, numbers(n, UCM_DTYPE_BF16, i), coder).size() == n + 64);
    REQUIRE(tried > 0);
    REQUIRE(tried < shards / 10);
    // Of one exponent: half of it.
    Bytes narrow = numbers(n, UCM_DTYPE_BF16);
    for (size_t i = 0; i < n; i += 2) narrow[i] |= 0x80, narrow[i + 1] = 0x3f;
    size_t waited = 0;
    while (encode(shape, narrow, coder).size() > n) waited++;
    REQUIRE(waited < 256);
}

TEST_CASE("shards of which about every other takes a page less are coded", "[compress][frame]") {
    const size_t n = 6144;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    std::mt19937 random(1);
    size_t shorter = 0, coded = 0;
    for (size_t i = 0; i < 1000; i++) {
        Bytes bytes = numbers(n, UCM_DTYPE_BF16, i);
        const bool narrow = random() % 2;
        for (size_t k = 1; narrow && k < n; k += 2) bytes[k] = 0x3f;
        shorter += narrow;
        coded += encode(shape, bytes, coder).size() < n;
    }
    REQUIRE(coded > shorter * 9 / 10);
    REQUIRE(coded <= shorter);
}

TEST_CASE("a sample tells noise from numbers of every dtype", "[compress][frame]") {
    for (size_t n : {512, 6144, 65536}) {
        int noise = 0;
        for (uint64_t seed = 0; seed < 100; seed++) {
            const Bytes random = random_bytes(n, seed);
            const auto guess =
                ucm::compress::guess_dtype(random.data(), uint32_t(n), UCM_DTYPE_BF16, Mode::kFast);
            noise += guess.is_noise;
            if (guess.is_noise) REQUIRE(guess.dtype == UCM_DTYPE_BYTES);
            for (int32_t dtype : kDtypes) {
                if (dtype == UCM_DTYPE_BYTES || seed > 9) continue;
                const Bytes bytes = numbers(n, dtype, seed);
                for (Mode mode : {Mode::kFast, Mode::kSmall})
                    REQUIRE_FALSE(
                        ucm::compress::guess_dtype(bytes.data(), uint32_t(n), UCM_DTYPE_BYTES, mode)
                            .is_noise);
            }
        }
        REQUIRE(noise > 80);  // the others are looked at more closely
    }
}

TEST_CASE("noise is copied and hashed once, from the first shard on", "[compress][frame]") {
    static uint64_t hashed;
    Kernels counting = ucm::compress::best_kernels();
    counting.hash = [](const void *bytes, size_t n, uint64_t seed) {
        hashed += n;
        return ucm::compress::best_kernels().hash(bytes, n, seed);
    };
    for (size_t plane : {1536, 6144, 49152}) {
        Shape shape{{plane * 60}, {}};
        for (size_t i = 0; i < 60; i++) shape.planes.push_back({plane, UCM_DTYPE_BF16, 0});
        const auto geometry = shape.geometry();
        FrameCoder coder(geometry, 0, counting);
        for (uint64_t seed = 0; seed < 4; seed++) {
            hashed = 0;
            encode(shape, random_bytes(plane * 60, seed), coder);
            REQUIRE(hashed < plane * 60 + 256);
        }
    }
}

TEST_CASE("one plane of numbers among noise is found", "[compress][frame]") {
    const size_t plane = 16384, planes = 60;
    Shape shape{{plane * planes}, {}};
    for (size_t i = 0; i < planes; i++) shape.planes.push_back({plane, UCM_DTYPE_BF16, 0});
    const auto geometry = shape.geometry();
    for (size_t where : {0, 17, 30, 59}) {
        Bytes all = random_bytes(plane * planes, where);
        const Bytes some = numbers(plane, UCM_DTYPE_BF16, where);
        std::copy(some.begin(), some.end(), all.begin() + long(where * plane));
        FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
        int shards = 0;
        while (encode(shape, all, coder).size() > all.size()) REQUIRE(++shards < 100);
    }
}

TEST_CASE("small planes between noise are found, though not each is looked at at first",
          "[compress][frame]") {
    const size_t plane = 3072, planes = 60, first = 2, last = 20;
    Shape shape{{plane * planes}, {}};
    Bytes all;
    for (size_t i = 0; i < planes; i++) {
        shape.planes.push_back({plane, UCM_DTYPE_FP8_E4M3, 0});
        const Bytes bytes =
            first <= i && i < last ? numbers(plane, UCM_DTYPE_FP8_E4M3, i) : random_bytes(plane, i);
        all.insert(all.end(), bytes.begin(), bytes.end());
    }
    const auto geometry = shape.geometry();
    FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
    TileCounts counts{};
    int shards = 0;
    for (; shards < 16 && counts.of[ucm::compress::kTileClasses] < last - first; shards++)
        encode(shape, all, coder, Mode::kFast, &counts);
    REQUIRE(shards < 16);
    for (int i = 0; i < 3; i++) {
        encode(shape, all, coder, Mode::kFast, &counts);
        REQUIRE(counts.of[ucm::compress::kTileClasses] == last - first);
    }
}

TEST_CASE("repetitions behind noise are found, though not each tile is searched",
          "[compress][frame]") {
    const size_t n = 1 << 16, tiles = 256;
    const Shape shape{{n * tiles}, {}};
    Bytes bytes = random_bytes(n * tiles, 1);
    for (size_t i = n * 60 + 1024; i < n * tiles; i++) bytes[i] = bytes[i - 1024];
    TileCounts counts;
    const Bytes frame = encode(shape, bytes, Mode::kFast, &counts);
    REQUIRE(counts.of[ucm::compress::kTileZstd] > 64);
    Bytes back;
    REQUIRE(decode(shape, frame, &back) == UCM_OK);
    REQUIRE(bool(back == bytes));
}

TEST_CASE("bytes that repeat are coded, whatever they are", "[compress][frame]") {
    Bytes text;
    for (int i = 0; text.size() < 200000; i++)
        for (char c : "line " + std::to_string(i * i) + " of a text that repeats itself\n")
            text.push_back(uint8_t(c));
    for (Mode mode : {Mode::kFast, Mode::kSmall}) {
        const Shape shape = Shape::of(text.size(), UCM_DTYPE_BYTES);
        REQUIRE(encode(shape, text, mode).size() < text.size() / 3);
        REQUIRE(round_trips(shape, text, mode));
    }
}

TEST_CASE("a frame is raw where it would not take a page less", "[compress][frame]") {
    const Shape shape = Shape::of(65536, UCM_DTYPE_BYTES);
    Bytes bytes = random_bytes(65536, 1);
    std::fill(bytes.begin(), bytes.begin() + 3000, uint8_t(0));
    REQUIRE(encode(shape, bytes, Mode::kSmall).size() < 65536 - 2000);  // a page: 64 + 65536 is 17
    bytes = random_bytes(61440 + 2000, 1);  // 16 pages, and 15 would do for 2064 fewer
    std::fill(bytes.begin(), bytes.begin() + 2050, uint8_t(0));
    const Shape other = Shape::of(bytes.size(), UCM_DTYPE_BYTES);
    REQUIRE(encode(other, bytes, Mode::kSmall).size() == bytes.size() + 64);
    REQUIRE(round_trips(other, bytes, Mode::kSmall));
}

TEST_CASE("every set of kernels gives the same bytes, and reads them", "[compress][frame]") {
    const auto sets = all_kernels();
    for (int32_t dtype : kDtypes)
        for (size_t n : {64, 65, 191, 1000, 3072, 4099, 49152, 65535, 65536, 200001})
            for (Mode mode : {Mode::kFast, Mode::kSmall}) {
                INFO("dtype " << dtype << " bytes " << n << " mode " << int(mode));
                const Shape shape = Shape::of(n, dtype);
                const auto geometry = shape.geometry();
                Bytes bytes = numbers(n, dtype, n);
                for (size_t i = 0; i < n; i += 97) bytes[i] = uint8_t(i * 31);
                std::vector<Bytes> frames;
                for (const Kernels *kernels : sets) {
                    FrameCoder coder(geometry, dtype, *kernels);
                    frames.push_back(encode(shape, bytes, coder, mode));
                }
                for (const Kernels *kernels : sets) {
                    FrameCoder coder(geometry, dtype, *kernels);
                    Bytes back;
                    REQUIRE(decode(shape, frames.back(), &back, coder) == UCM_OK);
                    REQUIRE(bool(back == bytes));
                }
                for (const Bytes &frame : frames) REQUIRE(bool(frame == frames[0]));
            }
}

TEST_CASE("parts of a long shard are coded at once, and give the same frame",
          "[compress][threads]") {
    // Every part on a coder of its own, the last first.
    struct Backwards final : ucm::compress::Team {
        explicit Backwards(const ucm::compress::Geometry &geometry) : geometry_(geometry) {}
        void run(size_t n, const std::function<void(size_t, FrameCoder &)> &work) override {
            parts += n;
            while (n-- > 0) {
                FrameCoder coder(geometry_, 0, ucm::compress::best_kernels());
                work(n, coder);
            }
        }
        const ucm::compress::Geometry &geometry_;
        size_t parts = 0;
    };
    for (size_t n : {100000, 2000000, 5000001}) {
        const Shape shape{{n / 2, n - n / 2}, {{n / 3, UCM_DTYPE_BF16, 1}, {n / 3, 1, 2}}};
        const auto geometry = shape.geometry();
        Bytes bytes = numbers(n, UCM_DTYPE_BF16);
        const Bytes noise = random_bytes(n / 4, 1);
        std::copy(noise.begin(), noise.end(), bytes.begin() + long(n / 8));
        FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
        Backwards team(geometry);
        const Row row(shape, bytes), back(shape, {});
        const Guarded frame(n + kTrailerBytes);
        TileCounts counts;
        const uint64_t length =
            coder.encode(kName, row.addresses(), n, Mode::kFast, frame.data(), &counts, &team);
        REQUIRE(team.parts == (n < (1 << 20) ? 0 : n >> 19));
        REQUIRE(bool(Bytes(frame.data(), frame.data() + length) == encode(shape, bytes)));
        REQUIRE(coder.decode(kName, frame.data(), length, back.addresses(), &team).status ==
                UCM_OK);
        REQUIRE(bool(back.bytes(n) == bytes));
    }
}

TEST_CASE("one incompressible plane does not spoil its neighbours", "[compress][frame]") {
    for (bool noise_first : {true, false}) {
        Bytes bytes = numbers(131072, UCM_DTYPE_BF16);
        const Bytes noise = random_bytes(65536, 3);
        std::copy(noise.begin(), noise.end(), bytes.begin() + (noise_first ? 0 : 65536));
        const Shape shape{{131072}, {{65536, UCM_DTYPE_BF16, 1}, {65536, UCM_DTYPE_BF16, 2}}};
        TileCounts counts;
        const Bytes frame = encode(shape, bytes, Mode::kFast, &counts);
        REQUIRE(counts.of[ucm::compress::kTileRaw] == 1);
        REQUIRE(counts.of[ucm::compress::kTileClasses] == 1);
        REQUIRE(frame.size() < 65536 + 50000);
        REQUIRE(round_trips(shape, bytes));
    }
}

TEST_CASE("the frame is what its document says", "[compress][frame]") {
    const Bytes bytes = numbers(4096, UCM_DTYPE_BF16);
    const Shape shape = Shape::of(4096, UCM_DTYPE_BF16);
    for (Mode mode : {Mode::kFast, Mode::kSmall}) {
        const Bytes frame = encode(shape, bytes, mode);
        const size_t trailer = frame.size() - 64, index = trailer - 12;
        REQUIRE(std::memcmp(&frame[trailer], "UCMZ", 4) == 0);
        REQUIRE(get(frame, trailer + 4, 2) == 3);              // version
        REQUIRE(get(frame, trailer + 6, 2) == 0);              // flags
        REQUIRE(get(frame, trailer + 8, 8) == 4096);           // raw_bytes
        REQUIRE(get(frame, trailer + 16, 8) == frame.size());  // frame_bytes
        REQUIRE(get(frame, trailer + 24, 4) == 1);             // tile_count
        REQUIRE(get(frame, trailer + 28, 4) == 0);
        REQUIRE(get(frame, trailer + 32, 8) == XXH3_64bits_withSeed(bytes.data(), 4096, 0));
        REQUIRE(get(frame, trailer + 40, 8) == XXH3_64bits(&frame[index], 12));
        REQUIRE(get(frame, trailer + 48, 8) == XXH3_64bits(&kName, 24));
        REQUIRE(get(frame, trailer + 56, 8) == XXH3_64bits(&frame[trailer], 56));
        REQUIRE(get(frame, index, 2) == 4095);
        REQUIRE(get(frame, index + 2, 2) == index - 1);
        REQUIRE(get(frame, index + 4, 1) == 3);  // classes: shorter in a small plane
        REQUIRE(get(frame, index + 5, 1) == UCM_DTYPE_BF16);
        REQUIRE(get(frame, index + 6, 6) ==
                (XXH3_64bits_withSeed(frame.data(), index, 0) & 0xffffffffffff));
        for (size_t i = 0; i < 2048; i++)  // mantissa, and the sign as the lowest bit
            REQUIRE(frame[i] == uint8_t(bytes[2 * i] << 1 | bytes[2 * i + 1] >> 7));
        // By hand: the levels, from the last one up.
        size_t at = 2048;
        const int levels = frame[at] & 15, widths = frame[at + 1];
        REQUIRE((frame[at] & 16) == 16);  // members as nibbles above the least
        at += 2;
        std::vector<std::vector<uint8_t>> members;
        size_t listed = 0;
        for (int k = 0; k < levels; k++)
            for (members.emplace_back(); members[k].size() < (widths >> k & 1 ? 3u : 1u); listed++)
                members[k].push_back(
                    uint8_t(frame[at] + (frame[at + 1 + listed / 2] >> listed % 2 * 4 & 15)));
        at += 1 + (listed + 1) / 2;
        std::vector<int> level(2048, 0);
        Bytes symbols(2048);
        for (int k = 0; k <= levels; k++) {
            const unsigned width = k == levels ? 8 : widths >> k & 1 ? 2 : 1;
            size_t coded = 0;
            for (size_t i = 0; i < 2048; i++) {
                if (level[i] != k) continue;
                const unsigned code =
                    frame[at + coded * width / 8] >> coded * width % 8 & ((1u << width) - 1);
                coded++;
                if (k == levels)
                    symbols[i] = uint8_t(code);
                else if (code < members[k].size())
                    symbols[i] = members[k][code];
                else
                    level[i]++;
            }
            at += (coded * width + 7) / 8;
        }
        REQUIRE(at == index);
        for (size_t i = 0; i < 2048; i++)
            REQUIRE(symbols[i] == uint8_t(bytes[2 * i + 1] << 1 | bytes[2 * i] >> 7));
    }
    const Bytes raw = encode(shape, bytes, Mode::kRaw);
    REQUIRE(raw.size() == 4096 + 64);
    REQUIRE(bool(Bytes(raw.begin(), raw.end() - 64) == bytes));
    REQUIRE(get(raw, 4096 + 32, 8) == XXH3_64bits_withSeed(bytes.data(), 4096, 0));
}

TEST_CASE("frames of every version, codec and dtype are read bit for bit", "[compress][frame]") {
    const auto sets = all_kernels();
    const auto read = [](const std::filesystem::path &path) {
        std::ifstream file(path, std::ios::binary);
        return Bytes(std::istreambuf_iterator<char>(file), {});
    };
    size_t found = 0;
    const std::string folder = GENERATE("frames-3");  // tests/golden_frames.py has written them
    for (const auto &entry :
         std::filesystem::directory_iterator(UCM_TEST_FILES "/data/" + folder)) {
        if (entry.path().extension() != ".frame") continue;
        INFO(entry.path());
        const Bytes frame = read(entry.path());
        const Bytes raw = read(std::filesystem::path(entry.path()).replace_extension(".raw"));
        const Shape shape{{raw.size() / 3, raw.size() - raw.size() / 3}, {}};
        const auto geometry = shape.geometry();
        for (const Kernels *kernels : sets) {
            FrameCoder coder(geometry, 0, *kernels);
            Bytes back;
            REQUIRE(decode(shape, frame, &back, coder) == UCM_OK);
            REQUIRE(bool(back == raw));
        }
        found++;
    }
    REQUIRE(found == 16);
}

TEST_CASE("a flipped bit anywhere, or a missing end, is found", "[compress][frame]") {
    for (Mode mode : {Mode::kFast, Mode::kSmall, Mode::kRaw}) {
        const Shape shape = Shape::of(3000, UCM_DTYPE_BF16);
        const auto geometry = shape.geometry();
        FrameCoder coder(geometry, 0, ucm::compress::best_kernels());
        const Bytes frame = encode(shape, numbers(3000, UCM_DTYPE_BF16), mode);
        for (size_t bit = 0; bit < frame.size() * 8; bit += bit < 1000 ? 1 : 13) {
            Bytes bad = frame;
            bad[bit / 8] ^= uint8_t(1 << bit % 8);
            REQUIRE(decode(shape, bad, nullptr, coder) == UCM_CORRUPT);
        }
        for (size_t n = 0; n < frame.size(); n += n < 100 ? 1 : 29)
            REQUIRE(decode(shape, Bytes(frame.begin(), frame.begin() + long(n)), nullptr, coder) ==
                    UCM_CORRUPT);
        Bytes longer = frame;
        longer.push_back(0);
        REQUIRE(decode(shape, longer, nullptr, coder) == UCM_CORRUPT);
    }
}

TEST_CASE("what a reader must refuse it refuses by its name", "[compress][frame]") {
    const Shape shape = Shape::of(200000, UCM_DTYPE_BF16);
    const Bytes good = encode(shape, numbers(200000, UCM_DTYPE_BF16));
    const size_t trailer = good.size() - 64, index = trailer - 4 * 12;
    const auto with = [&](size_t at, auto value) {
        Bytes frame = good;
        put(frame, at, value);
        seal(frame);
        return decode(shape, frame);
    };
    REQUIRE(with(trailer + 4, uint16_t(3)) == UCM_OK);
    for (uint16_t version : {2, 4}) REQUIRE(with(trailer + 4, version) == UCM_INCOMPATIBLE);
    for (uint16_t flags : {1, 2, 3, 0x8000}) REQUIRE(with(trailer + 6, flags) == UCM_INCOMPATIBLE);
    REQUIRE(with(trailer + 8, uint64_t(200001)) == UCM_INCOMPATIBLE);  // longer than the room
    REQUIRE(with(trailer, 'X') == UCM_CORRUPT);
    REQUIRE(with(trailer + 8, uint64_t(199999)) == UCM_CORRUPT);
    REQUIRE(with(trailer + 8, uint64_t(1)) == UCM_CORRUPT);
    REQUIRE(with(trailer + 16, uint64_t(good.size() + 1)) == UCM_CORRUPT);
    for (size_t zero : {28, 31}) REQUIRE(with(trailer + zero, uint8_t(1)) == UCM_CORRUPT);
    REQUIRE(with(trailer + 48, uint64_t(0)) == UCM_CORRUPT);  // hash of the name
    for (uint32_t count : {0u, 1u, 3u, 5u, 0x15555555u, 0x15555556u, 0xffffffffu})
        REQUIRE(with(trailer + 24, count) != UCM_OK);
    for (uint16_t bytes : {0, 1, 999, 65535}) {
        REQUIRE(with(index, bytes) == UCM_CORRUPT);      // raw bytes of a tile
        REQUIRE(with(index + 2, bytes) == UCM_CORRUPT);  // stored bytes
    }
    for (uint8_t other : {0, 1, 2}) REQUIRE(with(index + 4, other) == UCM_CORRUPT);  // codec
    for (uint8_t other : {4, 255}) REQUIRE(with(index + 4, other) == UCM_INCOMPATIBLE);
    for (uint8_t other : {0, 2, 3}) REQUIRE(with(index + 5, other) == UCM_CORRUPT);  // dtype
    for (uint8_t other : {6, 255}) REQUIRE(with(index + 5, other) == UCM_INCOMPATIBLE);
    const size_t n = (get(good, index, 2) + 1) / 2;
    for (uint8_t levels : {0, 1, 8, 9, 15, 16, 25, 32, 64, 255})
        REQUIRE(with(n, levels) == UCM_CORRUPT);
    for (uint8_t widths : {0, 1, 128, 255}) REQUIRE(with(n + 1, widths) == UCM_CORRUPT);
    REQUIRE(with(trailer + 32, uint64_t(0)) == UCM_CORRUPT);  // checksum of the raw bytes
    REQUIRE(decode(Shape::of(199999, UCM_DTYPE_BF16), good) == UCM_INCOMPATIBLE);
}

TEST_CASE("a frame that says it is lossy is read where that is allowed, and no other flag is",
          "[compress][frame]") {
    const size_t n = 200000;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const Bytes bytes = numbers(n, UCM_DTYPE_BF16);
    const auto geometry = shape.geometry();
    FrameCoder strict(geometry, 0, ucm::compress::best_kernels());
    FrameCoder allowed(geometry, 0, ucm::compress::best_kernels(), true);
    for (Mode mode : {Mode::kFast, Mode::kSmall, Mode::kRaw}) {
        const Bytes good = encode(shape, bytes, mode);
        const auto with = [&](uint16_t flags, int codec = -1) {
            Bytes frame = good;
            put(frame, frame.size() - 58, flags);
            if (codec >= 0) put(frame, frame.size() - 64 - 4 * 12 + 4, uint8_t(codec));
            seal(frame);
            return frame;
        };
        Bytes back;
        REQUIRE(decode(shape, with(1), &back, allowed) == UCM_OK);
        REQUIRE(bool(back == bytes));
        REQUIRE(decode(shape, with(0), nullptr, allowed) == UCM_OK);
        REQUIRE(decode(shape, with(1), nullptr, strict) == UCM_INCOMPATIBLE);
        for (uint16_t flags : {2, 3, 0x101, 0xffff})
            REQUIRE(decode(shape, with(flags), nullptr, allowed) == UCM_INCOMPATIBLE);
        if (mode == Mode::kRaw) continue;
        REQUIRE(decode(shape, with(1, 4), nullptr, allowed) == UCM_INCOMPATIBLE);  // codec
        Bytes bad = with(1);
        bad[100] ^= 1;
        REQUIRE(decode(shape, bad, nullptr, allowed) == UCM_CORRUPT);
    }
}

TEST_CASE("symbols have no more bits than their dtype, and unused bits are zero",
          "[compress][frame]") {
    for (int32_t dtype : {UCM_DTYPE_FP8_E4M3, UCM_DTYPE_FP8_E5M2, UCM_DTYPE_FP16}) {
        const size_t width = ucm::compress::element_bytes(dtype), n = 1001;
        const Shape shape = Shape::of(n * width, dtype);
        const Bytes good = encode(shape, numbers(n * width, dtype), Mode::kFast, nullptr, dtype);
        REQUIRE(decode(shape, good) == UCM_OK);
        const size_t planes = ucm::compress::plane_bytes(dtype, n);
        for (size_t last : {planes - 1, planes + 2}) {  // of a plane; the least member
            Bytes bad = good;
            bad[last] |= 0x80;
            seal(bad);
            REQUIRE(decode(shape, bad) == UCM_CORRUPT);
        }
    }
}

TEST_CASE("a zstd part is one frame of one format", "[compress][frame]") {
    const size_t n = 65536;
    const Shape shape = Shape::of(n, UCM_DTYPE_BF16);
    const Bytes good = encode(shape, numbers(n, UCM_DTYPE_BF16), Mode::kSmall);
    REQUIRE(get(good, n / 2, 4) == 0xfd2fb528);
    for (uint32_t magic : {0xfd2fb527u, 0xfd2fb525u, 0x184d2a50u, 0u}) {
        Bytes bad = good;
        put(bad, n / 2, magic);
        seal(bad);
        REQUIRE(decode(shape, bad) == UCM_CORRUPT);
    }
}

TEST_CASE("a plane too short for a zstd frame leaves the tile in front of it alone",
          "[compress][frame]") {
    for (int32_t dtype : {UCM_DTYPE_BF16, UCM_DTYPE_FP16, UCM_DTYPE_FP32})
        for (uint64_t n = 60; n < 400; n++) {
            INFO("dtype " << dtype << " bytes " << n);
            const Shape shape{{4000 + n}, {{4000, dtype, 1}, {n, dtype, 2}}};
            const Bytes bytes = numbers(4000 + n, dtype);
            Bytes back;
            const Bytes frame = encode(shape, bytes, Mode::kSmall, nullptr, dtype);
            REQUIRE(decode(shape, frame, &back) == UCM_OK);
            REQUIRE(bool(back == bytes));
        }
}

TEST_CASE("mutated frames never give other bytes and never read or write outside",
          "[compress][frame]") {
    std::mt19937_64 random(42);
    const auto sets = all_kernels();
    for (int32_t dtype : kDtypes)
        for (Mode mode : {Mode::kFast, Mode::kSmall}) {
            const Shape shape{{5001, 20000, 2000}, {{9001, dtype, 1}, {9000, dtype, 2}}};
            const auto geometry = shape.geometry();
            std::vector<std::unique_ptr<FrameCoder>> coders;
            for (const Kernels *each : sets)
                coders.push_back(std::make_unique<FrameCoder>(geometry, dtype, *each));
            Bytes bytes = numbers(27001, dtype);
            std::fill(bytes.begin() + 18001, bytes.begin() + 27001, uint8_t(9));
            const Bytes good = encode(shape, bytes, mode);
            for (int round = 0; round < 1000; round++) {
                Bytes bad = good;
                for (uint64_t k = 1 + random() % 4; k-- > 0;) {
                    // Mostly where lengths and tables stand.
                    const size_t near = std::min<size_t>(200, bad.size());
                    const size_t at = random() % 3   ? bad.size() - 1 - random() % near
                                      : random() % 2 ? 4500 + random() % 40
                                                     : random() % bad.size();
                    if (random() % 2)
                        bad[at % bad.size()] ^= uint8_t(1 << random() % 8);
                    else
                        bad[at % bad.size()] = uint8_t(random());
                    if (random() % 16 == 0)
                        bad.erase(bad.begin(), bad.begin() + long(random() % (bad.size() - 64)));
                }
                if (random() % 2) put(bad, bad.size() - 48, uint64_t(bad.size()));
                seal(bad);
                std::vector<ucm_status> said;
                for (auto &coder : coders) {
                    Bytes back;
                    said.push_back(decode(shape, bad, &back, *coder));
                    if (said.back() == UCM_OK) REQUIRE(bool(back == bytes));
                }
                for (ucm_status each : said) REQUIRE(each == said[0]);
            }
            for (auto &coder : coders)  // no state is left behind
                REQUIRE(decode(shape, good, nullptr, *coder) == UCM_OK);
        }
}

TEST_CASE("any bytes are refused as a tile or fill exactly its room", "[compress][frame]") {
    std::mt19937_64 random(7);
    std::vector<std::unique_ptr<ucm::compress::TileCoder>> coders;
    for (const Kernels *each : all_kernels())
        coders.push_back(std::make_unique<ucm::compress::TileCoder>(*each));
    for (int round = 0; round < 20000; round++) {
        const uint32_t stored = uint32_t(random() % 300), raw = uint32_t(random() % 400);
        const Guarded in(stored + kKernelSlack), out(raw);
        for (uint32_t i = 0; i < stored; i++) in.data()[i] = uint8_t(random());
        const int32_t dtype = kDtypes[random() % 6];
        const size_t n = raw / ucm::compress::element_bytes(dtype);
        const size_t planes = ucm::compress::plane_bytes(dtype, n);
        if (planes + 4 <= stored && random() % 4) {  // a table that could be one
            in.data()[planes] = uint8_t(random() % 9 | (random() & 16));
            in.data()[planes + 1] = uint8_t(random() & ((1u << (in.data()[planes] & 15)) - 1));
        }
        const ucm::compress::Tile tile{ucm::compress::TileCodec(random() % 5), uint8_t(dtype),
                                       stored};
        std::vector<std::pair<bool, Bytes>> said;
        for (auto &coder : coders) {
            std::memset(in.data() + stored, kPoison[said.size() % 3], kKernelSlack);
            std::memset(out.data(), 0, raw);
            const bool good = coder->decode(tile, in.data(), out.data(), raw);
            said.emplace_back(good, good ? Bytes(out.data(), out.data() + raw) : Bytes());
        }
        for (auto &each : said) REQUIRE(bool(each == said[0]));
    }
}

namespace {

const std::vector<std::string> kOverMemory = {"Compress", "Memory"};

// Shards may be so long that there are but kFew buffers for each direction. Those dumped are short.
const Geometry kLarge{1, {8 << 20}};
constexpr size_t kFew = 7;

struct ShortDump : Move {
    ShortDump(Stack &stack, const std::vector<BlockId> &ids)
        : Move(stack, shards_of(ids, stack.geometry().shards),
               std::vector<uint64_t>(ids.size() * stack.geometry().shards, 1000)) {}
};

}  // namespace

TEST_CASE("Compress brings every shard back, for every dtype and shape", "[compress]") {
    for (int32_t dtype : kDtypes)
        for (auto segments : {std::vector<uint64_t>{70000}, {4096, 70000, 1, 333}})
            for (uint32_t shards : {1u, 5u}) {
                INFO("dtype " << dtype << " segments " << segments.size() << " shards " << shards);
                Geometry geometry{shards, segments, dtype};
                geometry.misalign = 3;
                Stack stack(kOverMemory, {}, geometry);
                const auto ids = make_ids(4);
                REQUIRE(all_ok(stack.dump(ids)));
                REQUIRE(stack.lookup(ids) == std::vector<bool>(4, true));
                REQUIRE(stack.loads_back(ids));
            }
}

TEST_CASE("Compress asks for pages below and names its encoding", "[compress]") {
    Geometry geometry{3, {5000, 300}, UCM_DTYPE_BF16};
    geometry.encoding = "acme.1";
    Stack stack(kOverMemory, {}, geometry);
    const ucm_layout &below = stack.layout(1);
    REQUIRE(below.flags == UCM_LAYOUT_PAGES);
    REQUIRE(below.n_segments == 1);
    REQUIRE(below.capacity == 5300 + 64);
    REQUIRE(below.segment_bytes[0] == below.capacity);
    REQUIRE(below.raw_capacity == 5300);
    REQUIRE(below.shards_per_block == 3);
    REQUIRE(below.n_planes == 0);
    REQUIRE(std::string(below.encoding) == "acme.1+ucmz.3");
    REQUIRE(std::string(Stack(kOverMemory).layout(1).encoding) == "ucmz.3");

    geometry.encoding = std::string(56, 'a');
    REQUIRE(std::string(Stack(kOverMemory, {}, geometry).layout(1).encoding).size() == 63);
    geometry.encoding = std::string(57, 'a');
    REQUIRE_THROWS_WITH(Stack(kOverMemory, {}, geometry), Catch::Contains("ucmz.3"));
}

TEST_CASE("Compress stores fewer bytes and counts them", "[compress]") {
    const auto ids = make_ids(4);
    Stack stack(kOverMemory, {}, Geometry{2, {65536, 65536}, UCM_DTYPE_BF16});
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    const auto metrics = stack.metrics();
    uint64_t stored = 0;
    for (auto &id : ids)
        for (uint32_t shard : {0u, 1u}) stored += stack.memory().stored(id, shard).size();
    REQUIRE(metrics.at("dump_bytes_total") == 8 * 131072);
    REQUIRE(metrics.at("dump_out_bytes_total") == stored);
    REQUIRE(metrics.at("load_bytes_total") == 8 * 131072);
    REQUIRE(metrics.at("load_in_bytes_total") == stored);
    REQUIRE(metrics.at("classes_tiles_total") == 16);
    REQUIRE(stored < 8 * 131072 * 3 / 4);
}

TEST_CASE("compress_codec decides what is coded, and readers need not know", "[compress]") {
    const auto ids = make_ids(2);
    auto memory = std::make_shared<Memory>();
    const Geometry geometry{1, {65536}, UCM_DTYPE_BF16};
    {
        Stack stack(kOverMemory, {{"compress_codec", "raw"}}, geometry, memory);
        REQUIRE(all_ok(stack.dump({ids[0]})));
        REQUIRE(stack.metrics().at("raw_shards_total") == 1);
        REQUIRE(memory->stored(ids[0], 0).size() == 65536 + 64);
    }
    Stack stack(kOverMemory, {{"compress_codec", "small"}}, geometry, memory);
    REQUIRE(all_ok(stack.dump({ids[1]})));
    REQUIRE(memory->stored(ids[1], 0).size() < 65536 * 3 / 4);
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("compress_dtype fp8 is e5m2 where the layout says so, else e4m3", "[compress]") {
    const auto ids = make_ids(1);
    for (int32_t dtype : {UCM_DTYPE_FP8_E5M2, UCM_DTYPE_FP8_E4M3}) {
        Stack stack(kOverMemory, {{"compress_codec", "fast"}, {"compress_dtype", "fp8"}},
                    Geometry{1, {65536}, dtype});
        REQUIRE(all_ok(stack.dump(ids)));
        REQUIRE(stack.loads_back(ids));
        const Bytes frame = stack.memory().stored(ids[0], 0);
        REQUIRE(get(frame, frame.size() - 64 + 24, 4) == 1);  // tile_count
        REQUIRE(get(frame, frame.size() - 64 - 12 + 4, 1) == ucm::compress::kTileClasses);
        REQUIRE(get(frame, frame.size() - 64 - 12 + 5, 1) == uint64_t(dtype));
    }
}

namespace {

using ucm::compress::Costs;

// Loads of frames that are coded fast, two thirds of their raw bytes; in nanoseconds a byte.
Costs costs_of(double read, double whole, double fast = 0.2) {
    Costs costs;
    costs.read = read;
    costs.whole = costs.busy = whole;
    costs.stored = 2.0 / 3;
    costs.decode = fast;
    const double decode[] = {fast, 0.4, 0.1}, stored[] = {2.0 / 3, 0.66, 1};
    std::copy(decode, decode + 3, costs.mode_decode);
    std::copy(stored, stored + 3, costs.mode_stored);
    return costs;
}

}  // namespace

TEST_CASE("auto codes where reading fewer bytes is worth more than decoding costs", "[compress]") {
    // A disk: decoding is hidden behind reading.
    REQUIRE(mode_for(Mode::kFast, costs_of(0.6, 0.4)) == Mode::kFast);
    REQUIRE(mode_for(Mode::kRaw, costs_of(0.6, 0.4)) == Mode::kFast);
    // A store as fast as memory, where decoding takes processors from reading: a third more of
    // 0.2 is less than what fast takes longer than raw, or is not.
    REQUIRE(mode_for(Mode::kFast, costs_of(0.2, 0.2 * 2 / 3 + 0.2)) == Mode::kFast);
    REQUIRE(mode_for(Mode::kFast, costs_of(0.2, 0.2 * 2 / 3 + 0.5, 0.5)) == Mode::kRaw);
    REQUIRE(mode_for(Mode::kRaw, costs_of(0.2, 0.2 * 2 / 3 + 0.5, 0.5)) == Mode::kRaw);
    // A store that many decoders wait for is not faster when more is read.
    REQUIRE(mode_for(Mode::kFast, costs_of(0.1, 0.2)) == Mode::kRaw);
    // A network leaves time for small; so does a processor on which it is the faster one.
    REQUIRE(mode_for(Mode::kFast, costs_of(3, 2)) == Mode::kSmall);
    REQUIRE(mode_for(Mode::kFast, costs_of(0.2, 2.5, 2.4)) == Mode::kRaw);
    REQUIRE(mode_for(Mode::kFast, costs_of(2, 3.7, 2.4)) == Mode::kSmall);
}

TEST_CASE("auto leaves what is about as good as it is", "[compress]") {
    // Raw is expected to take 0.3.
    for (double fast : {0.28, 0.29, 0.31, 0.32}) {
        const Costs costs = costs_of(0.2, fast, 0.1 * (fast - 0.2 * 2 / 3) / 0.1);
        REQUIRE(costs.expected(Mode::kRaw) == Approx(0.3));
        REQUIRE(costs.expected(Mode::kFast) == Approx(fast));
        for (Mode now : {Mode::kFast, Mode::kRaw}) REQUIRE(mode_for(now, costs) == now);
    }
    for (Mode now : {Mode::kFast, Mode::kSmall})  // 2.5 times what small decodes
        REQUIRE(mode_for(now, costs_of(1.5, 1.0)) == now);
}

TEST_CASE("auto asks what raw frames would take coded, too", "[compress]") {
    Costs costs = costs_of(0.6, 0.65);
    costs.stored = 1;
    costs.decode = 0.1;
    REQUIRE(costs.expected(Mode::kRaw) == Approx(0.65));
    REQUIRE(costs.expected(Mode::kFast) == Approx(0.4 + 0.05 * 2));
    REQUIRE(mode_for(Mode::kRaw, costs) == Mode::kFast);
    costs = costs_of(0.1, 0.2);
    costs.stored = 1;
    costs.decode = 0.1;
    REQUIRE(mode_for(Mode::kRaw, costs) == Mode::kRaw);
    costs.threads = 4;  // no thread decodes faster than it can
    costs.whole = 0.1;
    REQUIRE(costs.expected(Mode::kFast) == Approx(0.1 * 2 / 3));
    costs.threads = 1;
    REQUIRE(costs.expected(Mode::kFast) == Approx(0.2));
}

namespace {

// Loads of frames of two thirds, one period after another.
struct Loads {
    static constexpr uint64_t kRaw = 96 << 20, kFrame = 64 << 20;

    explicit Loads(bool automatic = true, int dumps = 1) : pace(automatic, Mode::kFast, log) {
        const double decode[] = {0.5, 0.6, 0.1};
        pace.set_decoders(decode, 1);
        for (int i = 0; i < dumps; i++) dump();
    }
    void dump() { pace.coded(Mode::kFast, kRaw, kFrame); }
    // Reading takes so long, all so long, and something is decoded at the end of it, or from the
    // beginning. Returns whether decoding was held up.
    bool load(int64_t read_ms, int64_t whole_ms, int64_t busy_ms = 0) {
        const int64_t start = now;
        const uint64_t period = pace.begin(start);
        const bool held = pace.held_until_ns() > now;
        now += read_ms * 1000000;
        pace.read(period, frame(), now);
        REQUIRE(pace.held_until_ns() == 0);
        now = std::max(now, start + whole_ms * 1000000);
        pace.decoding(busy_ms ? now - busy_ms * 1000000 : start);
        pace.decoded(kRaw, frame(), now);
        pace.end(now);
        now += 1000000000;  // nobody loads
        return held;
    }
    uint64_t frame() const { return all_raw || pace.mode() == Mode::kRaw ? kRaw + 64 : kFrame; }
    // So many loads of which always one is under way, and something is decoded.
    void overlapping(int loads, int64_t read_ms, int64_t decode_ms) {
        size_t in_flight = 0;
        pace.decoding(now);
        while (loads > 0) {
            REQUIRE(pace.shut_until_ns() <= now + 50000000);
            shut += now < pace.shut_until_ns();
            if (in_flight < 2 && now >= pace.shut_until_ns()) {
                const uint64_t period = pace.begin(now);
                now += read_ms * 1000000;
                pace.read(period, frame(), now);
                in_flight++;
                continue;
            }
            REQUIRE(in_flight > 0);
            REQUIRE(pace.held_until_ns() <= now);
            pace.decoding(now);
            now += decode_ms * 1000000;
            pace.decoded(kRaw, frame(), now);
            pace.end(now);
            in_flight--;
            loads--;
        }
        for (; in_flight > 0; in_flight--) pace.end(now);
        pace.decoded(0, 0, now);
        REQUIRE(pace.shut_until_ns() == 0);
    }

    const Host host;
    const ucm::Logger log{host.c(), "Compress"};
    ucm::compress::Pace pace;
    int64_t now = 1000000000;
    bool all_raw = false;  // who stored them coded nothing
    int shut = 0;          // how often a load had to wait for others to be decoded
};

}  // namespace

TEST_CASE("auto measures what reading takes alone, now and then, and then decides", "[compress]") {
    Loads fast;
    REQUIRE_FALSE(fast.load(10, 60));  // the first one says nothing
    REQUIRE(fast.load(10, 60));
    REQUIRE_FALSE(fast.load(10, 60));
    REQUIRE(fast.pace.mode() == Mode::kFast);
    REQUIRE(fast.load(10, 60));  // twice is enough
    REQUIRE_FALSE(fast.load(10, 60));
    REQUIRE(fast.pace.mode() == Mode::kRaw);
    REQUIRE(fast.host.logged("codes raw from now on"));
    int held = 0;
    for (int i = 0; i < 100; i++) held += fast.load(15, 25);
    REQUIRE(fast.pace.mode() == Mode::kRaw);
    REQUIRE(held >= 5);
    REQUIRE(held <= 10);
    // The store becomes a disk.
    for (int i = 0; i < 40; i++) fast.load(600, 600);
    REQUIRE(fast.pace.mode() != Mode::kRaw);

    Loads disk;
    for (int i = 0; i < 50; i++) disk.load(60, 62);
    REQUIRE(disk.pace.mode() == Mode::kFast);
    Loads network;
    for (int i = 0; i < 6; i++) network.load(600, 610);
    REQUIRE(network.pace.mode() == Mode::kSmall);
}

TEST_CASE("auto does not take a slow store for a fast one that it waits for in vain",
          "[compress]") {
    Loads slow;
    for (int i = 0; i < 60; i++) {
        // Four at once, one after the other; nothing is held up for longer than 50 ms.
        uint64_t period = 0;
        for (int k = 0; k < 4; k++) period = slow.pace.begin(slow.now);
        REQUIRE(slow.pace.held_until_ns() <= slow.now + 50000000);
        for (int k = 0; k < 4; k++) {
            slow.now += 60000000;
            slow.pace.read(period, Loads::kFrame / 4, slow.now);
            REQUIRE(slow.pace.held_until_ns() == 0);
            slow.pace.decoding(slow.now);
            slow.pace.decoded(Loads::kRaw / 4, Loads::kFrame / 4, slow.now);
            slow.pace.end(slow.now);
        }
        REQUIRE(slow.pace.mode() != Mode::kRaw);
    }
}

TEST_CASE("auto does not take a burst for a fast store: decoding adds no more than it takes",
          "[compress]") {
    Loads burst;
    for (int i = 0; i < 60; i++) {
        burst.load(10, 300, 50);
        REQUIRE(burst.pace.mode() != Mode::kRaw);
    }
    for (int i = 0; i < 60; i++) burst.load(10, 60, 50);
    REQUIRE(burst.pace.mode() == Mode::kRaw);
    for (int i = 0; i < 60; i++) burst.load(10, 300, 10);
    REQUIRE(burst.pace.mode() != Mode::kRaw);
}

TEST_CASE("auto takes no ratio from raw frames: it codes until it knows what that saves",
          "[compress]") {
    Loads fresh(true, 0);
    fresh.all_raw = true;
    for (int i = 0; i < 40; i++) fresh.load(14, 25);
    REQUIRE(fresh.pace.mode() == Mode::kFast);
    // What is dumped does not get shorter: coding it is for nothing.
    fresh.pace.coded(Mode::kFast, Loads::kRaw, Loads::kRaw + 64);
    for (int i = 0; i < 100; i++) fresh.load(14, 25);
    REQUIRE(fresh.pace.mode() == Mode::kRaw);
    // One in many is coded all the same; soon those count that can be.
    int coded = 0;
    for (int i = 0; i < 1270; i++) coded += fresh.pace.next_dump() == Mode::kFast;
    REQUIRE(coded == 10);
    for (int i = 0; i < coded; i++) fresh.dump();
    for (int i = 0; i < 40; i++) fresh.load(600, 600);
    REQUIRE(fresh.pace.mode() != Mode::kRaw);
}

TEST_CASE("auto forgets what was dumped long ago", "[compress]") {
    Loads loads;
    loads.pace.coded(Mode::kFast, 200ull << 30, 1 << 20);  // of zeros
    for (int i = 0; i < 20; i++) loads.dump();
    for (int i = 0; i < 20; i++) loads.load(28, 60);
    REQUIRE(loads.pace.mode() == Mode::kRaw);
}

TEST_CASE("auto decides while loads overlap", "[compress]") {
    Loads loads;
    loads.overlapping(100, 10, 60);
    REQUIRE(loads.pace.mode() == Mode::kRaw);
    REQUIRE(loads.shut >= 2);
    REQUIRE(loads.shut <= 10);
    loads.overlapping(200, 600, 10);
    REQUIRE(loads.pace.mode() != Mode::kRaw);
}

TEST_CASE("what was read before does not count in a period, nor what begins before it",
          "[compress]") {
    Loads loads;
    loads.load(10, 60);
    auto &pace = loads.pace;
    const uint64_t first = pace.begin(loads.now), second = pace.begin(loads.now);
    pace.read(first, 1 << 20, loads.now + 60000000);  // so little that it is measured again
    REQUIRE(pace.held_until_ns() == 0);
    for (int i = 0; i < 3; i++) {
        pace.decoding(loads.now);
        pace.decoded(Loads::kRaw, Loads::kFrame, loads.now);
    }
    pace.end(loads.now);
    REQUIRE(pace.shut_until_ns() > loads.now);
    pace.read(pace.begin(loads.now), 0, loads.now);
    REQUIRE(pace.held_until_ns() == 0);
    loads.now = pace.shut_until_ns();
    const uint64_t third = pace.begin(loads.now);
    REQUIRE(pace.held_until_ns() > loads.now);
    pace.read(second, Loads::kFrame, loads.now + 1);
    REQUIRE(pace.held_until_ns() > loads.now);
    pace.read(third, Loads::kFrame, loads.now + 2);
    REQUIRE(pace.held_until_ns() == 0);
    for (int i = 0; i < 3; i++) pace.end(loads.now);
}

TEST_CASE("auto is not misled by loads that bring nothing", "[compress]") {
    Loads loads;
    for (int i = 0; i < 20; i++) {
        // The store below is busy.
        for (int k = 0; k < 1000; k++) {
            const uint64_t period = loads.pace.begin(loads.now);
            loads.now += 100000;
            loads.pace.read(period, 0, loads.now);
            loads.pace.end(loads.now);
        }
        loads.load(10, 60);
    }
    REQUIRE(loads.pace.mode() == Mode::kRaw);
}

TEST_CASE("auto decides nothing before loads were seen, and nothing where a codec is named",
          "[compress]") {
    Loads none, named(false);
    for (int i = 0; i < 1000; i++) none.dump();
    REQUIRE(none.pace.mode() == Mode::kFast);
    for (int i = 0; i < 50; i++) REQUIRE_FALSE(named.load(10, 60));
    REQUIRE(named.pace.mode() == Mode::kFast);
}

TEST_CASE("what does not come in time is not waited for", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, Geometry{4, {5000}}, memory);
    const auto ids = make_ids(30);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    memory->hold();
    Move first(stack, shards_of({ids[0]}, 4)), stuck(stack, shards_of({ids[1]}, 4));
    REQUIRE(first.load() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(4));
    REQUIRE(stuck.load() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(8));
    memory->release(4);
    REQUIRE(first.wait() == UCM_OK);  // though nothing is decoded until all is read, at first
    memory->release();
    REQUIRE(stuck.wait() == UCM_OK);
}

TEST_CASE("a shard is decoded while others of its task are still read", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {{"compress_codec", "fast"}}, Geometry{4, {65536}, UCM_DTYPE_BF16},
                memory);
    const auto ids = make_ids(1);
    REQUIRE(all_ok(stack.dump(ids)));
    memory->hold();
    Move load(stack, shards_of(ids, 4));
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(4));
    for (size_t n = 1; n <= 4; n++) {
        REQUIRE(stack.metrics()["load_shards_total"] == n - 1);
        memory->release(1);
        while (stack.metrics()["load_shards_total"] < n) std::this_thread::yield();
        REQUIRE(memory->waiting() == 4 - n);
    }
    REQUIRE(load.wait() == UCM_OK);
    for (size_t i = 0; i < 4; i++) REQUIRE(load.same(i));
}

TEST_CASE("long shards are coded by several threads at once", "[compress][threads]") {
    Stack stack(kOverMemory, {{"compress_concurrency", "4"}},
                Geometry{1, {5 << 20}, UCM_DTYPE_BF16});
    const auto ids = make_ids(6);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
    Bytes bad = stack.memory().stored(ids[2], 0);
    bad[bad.size() / 2] ^= 4;
    stack.memory().tamper(ids[2], 0, bad);
    const auto results = stack.load(ids);
    for (size_t i = 0; i < ids.size(); i++)
        REQUIRE(results[i].status == (i == 2 ? UCM_CORRUPT : UCM_OK));
}

TEST_CASE("Compress keeps the lengths of short shards", "[compress]") {
    Stack stack(kOverMemory, {}, Geometry{6, {5000, 3000}, UCM_DTYPE_BF16});
    const auto id = make_id(1);
    const std::vector<uint64_t> lengths = {0, 1, 4999, 5000, 5001, 8000};
    Move dump(stack, shards_of({id}, 6), lengths);
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(dump.wait() == UCM_OK);
    Move load(stack, shards_of({id}, 6));
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(load.wait() == UCM_OK);
    REQUIRE_FALSE(load.overrun());
    for (size_t i = 0; i < lengths.size(); i++) {
        REQUIRE(load.result(i).length == lengths[i]);
        REQUIRE(load.same(i));
    }
}

TEST_CASE("a damaged frame fails alone, and the next dump of its block replaces it", "[compress]") {
    Stack stack(kOverMemory, {}, Geometry{3, {20000}, UCM_DTYPE_BF16});
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump(ids)));
    Bytes bad = stack.memory().stored(ids[1], 2);
    bad[bad.size() / 2] ^= 4;
    stack.memory().tamper(ids[1], 2, bad);
    const auto results = stack.load(ids);
    for (size_t i = 0; i < results.size(); i++)
        REQUIRE(results[i].status == (i == 5 ? UCM_CORRUPT : UCM_OK));
    REQUIRE(results[5].length == 0);
    REQUIRE(stack.host().logged(ids[1].hex()));
    REQUIRE(stack.metrics().at("bad_frames_total") == 1);

    // Shard by shard, among good blocks, which are not written again.
    for (uint32_t shard = 0; shard < 3; shard++) {
        Move again(stack, {{ids[0], shard}, {ids[1], shard}, {ids[2], shard}});
        REQUIRE(again.dump() == UCM_OK);
        REQUIRE(again.wait() == UCM_OK);
    }
    REQUIRE(stack.memory().counters().replaced == 3);
    REQUIRE(stack.loads_back(ids));
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.memory().counters().replaced == 3);  // once is enough
}

TEST_CASE("another shard's frame is CORRUPT, and replaced", "[compress]") {
    const std::string codec = GENERATE("fast", "small", "raw");
    Stack stack(kOverMemory, {{"compress_codec", codec}}, Geometry{2, {20000}, UCM_DTYPE_BF16});
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump(ids)));
    const auto swap = [&](size_t a, uint32_t shard_of_a, size_t b, uint32_t shard_of_b) {
        const Bytes was = stack.memory().stored(ids[a], shard_of_a);
        stack.memory().tamper(ids[a], shard_of_a, stack.memory().stored(ids[b], shard_of_b));
        stack.memory().tamper(ids[b], shard_of_b, was);
    };
    swap(0, 0, 1, 0);
    swap(2, 0, 2, 1);
    const auto results = stack.load(ids);
    const ucm_status said[] = {UCM_CORRUPT, UCM_OK, UCM_CORRUPT, UCM_OK, UCM_CORRUPT, UCM_CORRUPT};
    for (size_t i = 0; i < results.size(); i++) REQUIRE(results[i].status == said[i]);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a frame of another version or too long is INCOMPATIBLE, and replaced", "[compress]") {
    Stack stack(kOverMemory, {}, Geometry{1, {20000}, UCM_DTYPE_BF16});
    const auto ids = make_ids(2);
    REQUIRE(all_ok(stack.dump(ids)));
    Bytes frame = stack.memory().stored(ids[0], 0);
    put(frame, frame.size() - 60, uint16_t(9));
    seal(frame);
    stack.memory().tamper(ids[0], 0, frame);
    stack.memory().tamper(ids[1], 0, encode(Shape::of(20001, UCM_DTYPE_BF16), Bytes(20001, 5)));
    REQUIRE(all_are(stack.load(ids), UCM_INCOMPATIBLE));
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a lossy frame is INCOMPATIBLE and replaced, or with compress_allow_lossy loaded",
          "[compress]") {
    const auto ids = make_ids(1);
    const Geometry geometry{1, {20000}, UCM_DTYPE_BF16};
    const auto memory = std::make_shared<Memory>();
    // What another writer has made of a block: its numbers, rounded.
    Bytes rounded = numbers(20000, UCM_DTYPE_BF16);
    for (size_t i = 0; i < rounded.size(); i += 2) rounded[i] &= 0xf0;
    Bytes lossy = encode(Shape::of(20000, UCM_DTYPE_BF16), rounded);
    put(lossy, lossy.size() - 58, uint16_t(1));
    {
        Stack stack(kOverMemory, {{"compress_allow_lossy", "true"}}, geometry, memory);
        REQUIRE(all_ok(stack.dump(ids)));
        REQUIRE(get(memory->stored(ids[0], 0), memory->stored(ids[0], 0).size() - 58, 2) == 0);
        put(lossy, lossy.size() - 16,
            get(memory->stored(ids[0], 0), memory->stored(ids[0], 0).size() - 16, 8));
        seal(lossy);
        memory->tamper(ids[0], 0, lossy);
        Move load(stack, shards_of(ids, 1));
        REQUIRE(load.load() == UCM_OK);
        REQUIRE(load.wait() == UCM_OK);
        REQUIRE_FALSE(load.same(0));  // not what was dumped
        REQUIRE(std::string(stack.layout(1).encoding) == "ucmz.3");
    }
    Stack stack(kOverMemory, {}, geometry, memory);
    REQUIRE(std::string(stack.layout(1).encoding) == "ucmz.3");
    REQUIRE(all_are(stack.load(ids), UCM_INCOMPATIBLE));
    REQUIRE(stack.host().logged("compress_allow_lossy"));
    REQUIRE(stack.metrics().at("bad_frames_total") == 1);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("what fails below fails that shard, with its status and errno", "[compress]") {
    Stack stack(kOverMemory, {}, Geometry{4, {5000}});
    const auto ids = make_ids(2);
    stack.memory().fail(Op::kDump, UCM_IO, 2, 1, EIO);
    auto results = stack.dump({ids[0]});
    size_t failed = 0;
    for (auto &result : results) {
        if (result.status == UCM_OK) continue;
        REQUIRE(result.status == UCM_IO);
        REQUIRE(result.os_errno == EIO);
        failed++;
    }
    REQUIRE(failed == 1);
    REQUIRE(all_ok(stack.dump(ids)));
    REQUIRE(all_are(stack.load(make_ids(1, 77)), UCM_NOT_FOUND));
    stack.memory().fail(Op::kLoad, UCM_IO, 0, 1, EIO);
    results = stack.load({ids[1]});
    REQUIRE(std::count_if(results.begin(), results.end(),
                          [](auto &r) { return r.status == UCM_IO; }) == 1);
    REQUIRE(stack.loads_back(ids));
}

TEST_CASE("a store that is busy below delays shards and fails none", "[compress]") {
    auto memory = std::make_shared<Memory>();
    memory->max_shards = 3;
    Stack stack(kOverMemory, {}, Geometry{4, {5000}}, memory);
    const auto ids = make_ids(50);
    memory->busy(7);
    REQUIRE(all_ok(stack.dump(ids)));
    memory->busy(7);
    REQUIRE(stack.loads_back(ids));
    REQUIRE(memory->counters().busy == 14);
}

TEST_CASE("transfers larger than all buffers run piece by piece", "[compress]") {
    Stack stack(kOverMemory, {{"compress_concurrency", "1"}}, kLarge);
    const auto ids = make_ids(24);
    stack.memory().reorder(true);
    ShortDump dump(stack, ids);
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(dump.wait() == UCM_OK);
    Move load(stack, shards_of(ids, 1));
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(load.wait() == UCM_OK);
    for (size_t i = 0; i < ids.size(); i++) {
        REQUIRE(load.result(i).length == 1000);
        REQUIRE(load.same(i));
    }
    REQUIRE(stack.memory().counters().most_waiting <= kFew);
}

TEST_CASE("dumps that stand still do not hold up loads", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, kLarge, memory);
    const auto old = make_ids(2);
    ShortDump first(stack, old), dump(stack, make_ids(12, 100));
    REQUIRE(first.dump() == UCM_OK);
    REQUIRE(first.wait() == UCM_OK);
    memory->hold();
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(kFew));  // every buffer for dumps is below
    Move load(stack, shards_of(old, 1));
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(kFew + 2));
    memory->release();
    REQUIRE(load.wait() == UCM_OK);
    REQUIRE(dump.wait() == UCM_OK);
}

TEST_CASE("cancel ends what has not begun", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, kLarge, memory);
    memory->hold();
    ShortDump first(stack, make_ids(9)), second(stack, make_ids(9, 100));
    REQUIRE(first.dump() == UCM_OK);
    REQUIRE(second.dump() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(kFew));
    REQUIRE(ucm_cancel(stack.top(), second.task, nullptr) == UCM_OK);
    REQUIRE(second.wait() == UCM_CANCELLED);  // while the first stands before it
    REQUIRE(all_are(second.results(), UCM_CANCELLED));
    memory->release();
    REQUIRE(first.wait() == UCM_OK);
    REQUIRE(ucm_cancel(stack.top(), first.task, nullptr) == UCM_NOT_FOUND);
}

TEST_CASE("a shard whose turn comes too late is TIMEOUT", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, kLarge, memory);
    memory->hold();
    ShortDump first(stack, make_ids(9)), second(stack, make_ids(3, 100));
    REQUIRE(first.dump() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(kFew));
    second.transfer.deadline_ns = ucm::monotonic_ns() + 1000000;
    REQUIRE(second.dump() == UCM_OK);
    REQUIRE(second.wait() == UCM_TIMEOUT);
    memory->release();
    REQUIRE(first.wait() == UCM_OK);
}

TEST_CASE("a shard that waits too long for room below is TIMEOUT", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, {}, memory);
    memory->busy(SIZE_MAX);
    Move dump(stack, shards_of(make_ids(1), 4)), load(stack, shards_of(make_ids(1), 4));
    dump.transfer.deadline_ns = load.transfer.deadline_ns = ucm::monotonic_ns() + 20000000;
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(load.load() == UCM_OK);
    REQUIRE(dump.wait() == UCM_TIMEOUT);
    REQUIRE(load.wait() == UCM_TIMEOUT);
    memory->busy(0);
    REQUIRE(all_ok(stack.dump(make_ids(1))));
}

TEST_CASE("remove ends the dumps of its blocks, then they are absent", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, kLarge, memory);
    const auto ids = make_ids(12);
    memory->hold();
    ShortDump dump(stack, ids);
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(kFew));
    // One that is below already and one that still waits for a buffer.
    std::thread remover([&] { stack.remove({ids[0], ids[11]}); });
    memory->release();
    remover.join();
    dump.wait();
    const auto present = stack.lookup(ids);
    for (size_t i = 0; i < ids.size(); i++) REQUIRE(present[i] == (i != 0 && i != 11));
    REQUIRE(dump.result(1).status == UCM_OK);
    ShortDump again(stack, {ids[11]});
    REQUIRE(again.dump() == UCM_OK);
    REQUIRE(again.wait() == UCM_OK);
    REQUIRE(stack.lookup({ids[11]})[0]);
}

TEST_CASE("drain covers this layer and the one below", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack stack(kOverMemory, {}, kLarge, memory);
    memory->hold();
    ShortDump dump(stack, make_ids(12));
    REQUIRE(dump.dump() == UCM_OK);
    REQUIRE(memory->wait_for_waiting(kFew));
    ucm_report report{};
    report.struct_size = sizeof report;
    do {
        REQUIRE(stack.drain(&report, 1) == UCM_PENDING);
        REQUIRE(report.pending >= 12);
    } while (report.pending != 12);  // soon each is counted by one layer only
    memory->release();
    REQUIRE(stack.drain(&report) == UCM_OK);
    REQUIRE(report.stored == 12);
    REQUIRE(report.lost == 0);
    REQUIRE(report.pending == 0);
}

TEST_CASE("close finishes what was accepted; without time it is PENDING", "[compress]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(12);
    {
        Stack stack(kOverMemory, {}, kLarge, memory);
        memory->hold();
        ShortDump dump(stack, ids);
        REQUIRE(dump.dump() == UCM_OK);
        REQUIRE(stack.close(0).status == UCM_PENDING);
        ucm_lookup_args lookup{};
        lookup.struct_size = sizeof lookup;
        lookup.n = 1;
        lookup.block_ids = ids[0].bytes;
        REQUIRE(ucm_lookup(stack.top(), &lookup, nullptr) == UCM_CLOSED);
        memory->release();
        REQUIRE(stack.close().status == UCM_OK);
        REQUIRE(dump.wait() == UCM_OK);
    }
    Stack stack(kOverMemory, {}, kLarge, memory);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(12, true));
}

TEST_CASE("Compress passes lookups and hints on, one tier further down", "[compress]") {
    Stack stack(kOverMemory);
    const auto ids = make_ids(3);
    REQUIRE(all_ok(stack.dump({ids[0], ids[2]})));
    REQUIRE(stack.tiers(ids) == std::vector<uint8_t>({2, 0, 2}));
    REQUIRE(stack.hits(ids, UCM_LOOKUP_ALL) == 2);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_PREFIX) == 1);
    REQUIRE(stack.hits(ids, UCM_LOOKUP_LAST) == 3);
    REQUIRE(stack.touch(ids) == UCM_OK);
    REQUIRE(stack.prefetch(ids) == UCM_OK);
    REQUIRE(stack.memory().counters().touches == 1);
    REQUIRE(stack.memory().counters().prefetches == 1);
    stack.memory().fail(Op::kLookup, UCM_IO);
    REQUIRE_THROWS(stack.lookup(ids));
}

TEST_CASE("Compress can what the store below can", "[compress]") {
    auto memory = std::make_shared<Memory>();
    Stack all(kOverMemory, {}, {}, memory);
    REQUIRE(all.top()->capabilities == (UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_PERSISTENT |
                                        UCM_CAP_VERIFIES | UCM_CAP_REMOVE | UCM_CAP_CANCEL));
    memory->capabilities = UCM_CAP_KEEPS | UCM_CAP_EVENTS;
    Stack some(kOverMemory, {}, {}, memory);
    REQUIRE(some.top()->capabilities == (UCM_CAP_KEEPS | UCM_CAP_CANCEL));
    REQUIRE(some.remove(make_ids(1)) == UCM_UNSUPPORTED);
}

TEST_CASE("opened for lookup only, Compress looks up and removes and moves nothing", "[compress]") {
    auto memory = std::make_shared<Memory>();
    const auto ids = make_ids(2);
    {
        Stack stack(kOverMemory, {}, {}, memory);
        REQUIRE(all_ok(stack.dump(ids)));
    }
    Geometry geometry;
    geometry.lookup_only = true;
    Stack stack(kOverMemory, {}, geometry, memory);
    REQUIRE(stack.lookup(ids) == std::vector<bool>(2, true));
    REQUIRE(stack.remove({ids[0]}) == UCM_OK);
    REQUIRE(stack.lookup(ids) == std::vector<bool>({false, true}));
    REQUIRE(stack.drain() == UCM_OK);
}

TEST_CASE("many threads dump, load, cancel and remove at once", "[compress][threads]") {
    auto memory = std::make_shared<Memory>();
    memory->threads = 3;
    memory->max_shards = 40;
    memory->reorder(true);
    Stack stack(kOverMemory, {{"compress_concurrency", "3"}},
                Geometry{3, {6000, 30000}, UCM_DTYPE_BF16}, memory);
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 6; t++)
        threads.emplace_back([&, t] {
            for (uint64_t round = 0; round < 12; round++) {
                const auto ids = make_ids(8, t * 1000 + round * 8);
                wrong += !all_ok(stack.dump(ids));
                wrong += !stack.loads_back(ids);
                if (round % 3 == 0) wrong += stack.remove(ids) != UCM_OK;
                if (round % 3 == 1) {
                    Move move(stack, shards_of(ids, 3));
                    wrong += move.load_patiently() != UCM_OK;
                    ucm_cancel(stack.top(), move.task, nullptr);
                    move.wait();
                    for (size_t i = 0; i < move.n(); i++)
                        wrong += move.result(i).status == UCM_OK
                                     ? !move.same(i)
                                     : move.result(i).status != UCM_CANCELLED;
                }
                wrong += stack.drain() != UCM_OK;
            }
        });
    for (auto &thread : threads) thread.join();
    REQUIRE(wrong == 0);
    REQUIRE(stack.close().status == UCM_OK);
}

TEST_CASE("closing right behind the last shard is safe", "[compress][threads]") {
    for (int round = 0; round < 100; round++) {
        Stack stack(kOverMemory, {}, Geometry{2, {3000}, UCM_DTYPE_FP16});
        const auto ids = make_ids(5);
        REQUIRE(all_ok(stack.dump(ids)));
        Move load(stack, shards_of(ids, 2));
        REQUIRE(load.load() == UCM_OK);
        REQUIRE(stack.close().status == UCM_OK);
        REQUIRE(load.wait() == UCM_OK);
    }
}

TEST_CASE("Compress passes on that a block was declined", "[compress]") {
    Stack stack({"Compress", "Memory"}, {}, Geometry{4, {8192}, UCM_DTYPE_BF16});
    const auto ids = make_ids(2);
    stack.memory().decline({ids[0]});
    const auto results = stack.dump(ids);
    for (size_t i = 0; i < 8; i++) {
        REQUIRE(results[i].status == UCM_OK);
        REQUIRE(((results[i].flags & UCM_RESULT_DECLINED) != 0) == (i < 4));
    }
    REQUIRE(stack.loads_back({ids[1]}));
}
