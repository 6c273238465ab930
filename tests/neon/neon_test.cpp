// SPDX-License-Identifier: MIT
// Do NEON and AVX-512 give the bytes that the plain code gives? A program of its own, small enough
// to be cross-compiled and emulated: neon_test CASE FILE. A failed check tells where, and ends it.
#include <sys/mman.h>

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "../../plugins/compress/classes.h"

using namespace ucm::compress;

namespace {

using Bytes = std::vector<uint8_t>;

const Kernels &kPlain = kScalarKernels;
#if defined(__aarch64__)
const Kernels &kFast = kNeonKernels;
#elif defined(__AVX512BW__)
const Kernels &kFast = kAvx512Kernels;
#else
const Kernels &kFast = kScalarKernels;  // "digest" alone is of use here
#endif

std::string where;  // what a failed check prints
uint64_t checks = 0;
std::mt19937_64 dice(1);

#define CHECK(condition)                                                             \
    do {                                                                             \
        checks++;                                                                    \
        if (!(condition)) {                                                          \
            std::printf("%s:%d: not true: %s\n%s\n", __FILE__, __LINE__, #condition, \
                        where.c_str());                                              \
            std::exit(1);                                                            \
        }                                                                            \
    } while (0)

// Memory that ends where a page begins that nobody may touch, full of bytes that mean nothing.
class Guarded {
  public:
    explicit Guarded(size_t bytes) : bytes_(bytes), mapped_((bytes + 4095) / 4096 * 4096 + 4096) {
        base_ = static_cast<uint8_t *>(
            mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        if (mprotect(base_ + mapped_ - 4096, 4096, PROT_NONE) != 0) std::abort();
        const uint64_t noise = dice();
        for (size_t i = 0; i < bytes; i++) data()[i] = uint8_t((i + noise) * 167 >> 3);
    }
    explicit Guarded(const Bytes &bytes, size_t slack = 0) : Guarded(bytes.size() + slack) {
        if (!bytes.empty()) std::memcpy(data(), bytes.data(), bytes.size());
    }
    ~Guarded() { munmap(base_, mapped_); }
    Guarded(const Guarded &) = delete;

    uint8_t *data() const { return base_ + mapped_ - 4096 - bytes_; }
    Bytes front(size_t n) const { return Bytes(data(), data() + n); }

  private:
    size_t bytes_, mapped_;
    uint8_t *base_;
};

Bytes noise(size_t n) {
    Bytes bytes(n);
    for (auto &byte : bytes) byte = uint8_t(dice());
    return bytes;
}

// Numbers around zero, whose exponents classes code well; `mixed` of 256 are noise.
Bytes numbers(size_t n, int dtype, unsigned mixed = 0) {
    std::normal_distribution<float> normal;
    Bytes bytes(n * element_bytes(dtype));
    for (size_t i = 0; i < n; i++) {
        const float value = normal(dice);
        uint32_t bits;
        std::memcpy(&bits, &value, 4);
        if (dtype == 1) bits >>= 16;
        if (dtype == 2)
            bits = (bits >> 16 & 0x8000) | ((bits >> 23 & 255) - 112) << 10 | (bits >> 13 & 0x3ff);
        if (dtype == 4 || dtype == 0)
            bits = (bits >> 24 & 0x80) | (bits >> 23 & 15) << 3 | (bits >> 20 & 7);
        if (dtype == 5) bits = (bits >> 24 & 0x80) | (bits >> 23 & 31) << 2 | (bits >> 21 & 3);
        if ((dice() & 255) < mixed) bits = uint32_t(dice());
        std::memcpy(&bytes[i * element_bytes(dtype)], &bits, element_bytes(dtype));
    }
    return bytes;
}

// Elements that levels like little: equal, a few, two in turn, every pattern one after another,
// sparse ones, halves and blocks of 64 of another kind.
std::vector<Bytes> adversarial(size_t n, int dtype) {
    const size_t bytes = n * element_bytes(dtype);
    std::vector<Bytes> all;
    for (int fill : {0, 0x7f, 0x80, 0xff}) all.push_back(Bytes(bytes, uint8_t(fill)));
    Bytes ramp(bytes), few(bytes), turns(bytes), sparse(bytes), blocks = noise(bytes);
    for (size_t i = 0; i < bytes; i++) {
        ramp[i] = uint8_t(i / element_bytes(dtype) + i % element_bytes(dtype) * 85);
        few[i] = uint8_t(dice() % 5 * 51);
        turns[i] = i / element_bytes(dtype) % 2 ? 0x3f : 0xc0;
        sparse[i] = dice() % 64 ? 0x3c : uint8_t(dice());
        if (i / element_bytes(dtype) / 64 % 2) blocks[i] = 0x3c;
    }
    for (const Bytes &each : {ramp, few, turns, sparse, blocks}) all.push_back(each);
    return all;
}

// 0 to 200, and around what tiles and vectors have.
std::vector<size_t> sizes(bool large) {
    std::vector<size_t> all;
    for (size_t n = 0; n <= 200; n++) all.push_back(n);
    for (size_t n : {255, 256, 257, 1000, 1023, 3072}) all.push_back(n);
    if (large)
        for (size_t n : {8191, 8192, 16384, 32767, 32768, 65535, 65536}) all.push_back(n);
    return all;
}

void at(const char *what, int kind, size_t n) {
    where = std::string(what) + " " + std::to_string(kind) + ", n " + std::to_string(n);
}

// Split and merge keep to raw bytes and planes; symbols have their slack.
void check_planes(const Bytes &raw, int dtype, size_t n) {
    const Guarded from(raw);
    const size_t plane = plane_bytes(dtype, n);
    const Guarded symbols[2] = {Guarded(n + kKernelSlack), Guarded(n + kKernelSlack)};
    const Guarded planes[2] = {Guarded(plane), Guarded(plane)};
    kPlain.split[dtype](from.data(), n, symbols[0].data(), planes[0].data());
    kFast.split[dtype](from.data(), n, symbols[1].data(), planes[1].data());
    CHECK(symbols[0].front(n) == symbols[1].front(n));
    CHECK(planes[0].front(plane) == planes[1].front(plane));
    const Guarded back(n * element_bytes(dtype));
    kFast.merge[dtype](symbols[1].data(), planes[1].data(), n, 0, n, back.data());
    CHECK(back.front(raw.size()) == raw);
}

// A piece of symbols and planes that no element splits into, too.
void check_merge(int dtype, size_t n, size_t first, size_t count) {
    const Guarded symbols(noise(count), kKernelSlack), planes(noise(plane_bytes(dtype, n)));
    const size_t bytes = count * element_bytes(dtype);
    const Guarded back[2] = {Guarded(bytes), Guarded(bytes)};
    kPlain.merge[dtype](symbols.data(), planes.data(), n, first, count, back[0].data());
    kFast.merge[dtype](symbols.data(), planes.data(), n, first, count, back[1].data());
    CHECK(back[0].front(bytes) == back[1].front(bytes));
}

void split_and_merge(const Bytes &) {
    for (int dtype = 0; dtype < kDtypes; dtype++)
        for (size_t n : sizes(true)) {
            at("dtype", dtype, n);
            check_planes(noise(n * element_bytes(dtype)), dtype, n);
            check_merge(dtype, n, 0, n);
            const size_t first = n / 2 / 64 * 64;
            check_merge(dtype, n, first, n - first);
            check_merge(dtype, n, first, (n - first) / 2);
        }
    // Every pattern of 16 bits.
    Bytes all(131072);
    for (size_t i = 0; i < 65536; i++) all[i * 2] = uint8_t(i), all[i * 2 + 1] = uint8_t(i >> 8);
    for (int dtype = 0; dtype < kDtypes; dtype++)
        check_planes(all, dtype, all.size() / element_bytes(dtype));
}

void translate(const Bytes &) {
    for (int size : {32, 256})
        for (size_t n : sizes(true)) {
            at("translate", size, n);
            Bytes symbols = noise(n);
            for (auto &symbol : symbols) symbol = uint8_t(symbol % size);
            const Guarded table(noise(size_t(size))), from(symbols, kKernelSlack);
            const Guarded to[2] = {Guarded(n + kKernelSlack), Guarded(n + kKernelSlack)};
            kPlain.translate(from.data(), n, table.data(), size, to[0].data());
            kFast.translate(from.data(), n, table.data(), size, to[1].data());
            CHECK(to[0].front(n) == to[1].front(n));
        }
}

// One level there and back. Members and codes are kept to when they are read.
void check_level(const Bytes &ranks, int width) {
    const size_t n = ranks.size(), bytes = (n * size_t(width) + 7) / 8, size = (1u << width) - 1;
    const Guarded mine[2] = {Guarded(ranks, kKernelSlack), Guarded(ranks, kKernelSlack)};
    const Guarded codes[2] = {Guarded(bytes + kKernelSlack), Guarded(bytes + kKernelSlack)};
    const size_t passed =
        kPlain.code[width - 1](mine[0].data(), n, codes[0].data(), mine[0].data());
    CHECK(kFast.code[width - 1](mine[1].data(), n, codes[1].data(), mine[1].data()) == passed);
    CHECK(codes[0].front(bytes) == codes[1].front(bytes));
    CHECK(mine[0].front(passed) == mine[1].front(passed));

    const Guarded exact(codes[0].front(bytes)), members(noise(size));
    CHECK(kFast.count[width - 1](exact.data(), n) == passed);
    const Guarded from(mine[0].front(passed), kKernelSlack);
    const Guarded back[2] = {Guarded(n + kKernelSlack), Guarded(n + kKernelSlack)};
    kPlain.decode[width - 1](exact.data(), n, members.data(), from.data(), back[0].data());
    const uint8_t *left =
        kFast.decode[width - 1](exact.data(), n, members.data(), from.data(), back[1].data());
    CHECK(left == from.data() + passed);
    CHECK(back[0].front(n) == back[1].front(n));
}

void levels(const Bytes &) {
    for (int width : {1, 2})
        for (size_t n : sizes(true))
            for (unsigned most : {1, 2, 3, 4, 5, 16, 256}) {
                at("width", width, n);
                Bytes ranks = noise(n);
                for (auto &each : ranks) each = uint8_t(each % most);
                check_level(ranks, width);
            }
    // Every set of 8 lanes.
    for (int width : {1, 2}) {
        Bytes ranks;
        for (int set = 0; set < 256; set++)
            for (int lane = 0; lane < 8; lane++)
                ranks.push_back(uint8_t(set >> lane & 1 ? 3 + dice() % 253 : dice() % width));
        at("sets, width", width, ranks.size());
        check_level(ranks, width);
    }
}

// Codes that nobody wrote, with bits behind the last.
void stray_codes(const Bytes &) {
    for (int width : {1, 2})
        for (size_t n : sizes(true)) {
            at("width", width, n);
            const Guarded codes(noise((n * size_t(width) + 7) / 8)), members(noise(width * 2 - 1));
            const size_t passed = kPlain.count[width - 1](codes.data(), n);
            CHECK(kFast.count[width - 1](codes.data(), n) == passed);
            const Guarded from(noise(passed), kKernelSlack);
            const Guarded back[2] = {Guarded(n + kKernelSlack), Guarded(n + kKernelSlack)};
            kPlain.decode[width - 1](codes.data(), n, members.data(), from.data(), back[0].data());
            kFast.decode[width - 1](codes.data(), n, members.data(), from.data(), back[1].data());
            CHECK(back[0].front(n) == back[1].front(n));
        }
}

void hash(const Bytes &) {
    for (size_t n : sizes(true)) {
        at("hash", 0, n);
        const Guarded bytes(noise(n));
        // The state as a stream takes another way to the same number.
        XXH3_state_t *state = XXH3_createState();
        XXH3_64bits_reset_withSeed(state, n);
        XXH3_64bits_update(state, bytes.data(), n);
        CHECK(kFast.hash(bytes.data(), n, n) == XXH3_64bits_digest(state));
        CHECK(kFast.hash(bytes.data(), n, n) == kPlain.hash(bytes.data(), n, n));
        XXH3_freeState(state);
    }
}

struct Coders {
    ClassCoder plain{kPlain}, fast{kFast};
};

bool decode(ClassCoder &coder, const Bytes &stored, int dtype, size_t n, Bytes *raw) {
    const Guarded from(stored, kKernelSlack), to(n * element_bytes(dtype));
    const bool good = coder.decode(from.data(), stored.size(), dtype, n, to.data());
    if (good) *raw = to.front(n * element_bytes(dtype));
    return good;
}

// Empty: it does not fit. What is stored is what the plain code stores, and comes back.
Bytes check_tile(Coders &coders, const Bytes &raw, int dtype, size_t most) {
    const size_t n = raw.size() / element_bytes(dtype);
    const Guarded from(raw), plain(most + kKernelSlack), fast(most + kKernelSlack);
    ClassCoder::Kept kept[2];
    const size_t stored = coders.plain.encode(from.data(), n, dtype, plain.data(), most, kept[0]);
    CHECK(coders.fast.encode(from.data(), n, dtype, fast.data(), most, kept[1]) == stored);
    CHECK(plain.front(stored) == fast.front(stored));
    Bytes back;
    if (stored) CHECK(decode(coders.fast, fast.front(stored), dtype, n, &back) && back == raw);
    return fast.front(stored);
}

void each_tile(bool large, const std::function<void(const Bytes &, int, size_t)> &use) {
    for (int dtype = 0; dtype < kDtypes; dtype++)
        for (size_t n : sizes(large)) {
            at("dtype", dtype, n);
            if (n == 0 || n * element_bytes(dtype) > kTileBytes) continue;
            // As many as an encoder may be given, and so many that small ones fit too.
            const size_t room = n * element_bytes(dtype) + 100;
            use(numbers(n, dtype), dtype, room);
            use(numbers(n, dtype, 16), dtype, room);
            use(noise(n * element_bytes(dtype)), dtype, room);
            for (const Bytes &each : adversarial(n, dtype)) use(each, dtype, room);
        }
}

void tiles(const Bytes &) {
    Coders coders;
    size_t coded = 0;
    each_tile(true, [&](const Bytes &raw, int dtype, size_t room) {
        coded += !check_tile(coders, raw, dtype, room).empty();
        check_tile(coders, raw, dtype, raw.size() - raw.size() / 32);
    });
    CHECK(coded > 10000);
}

void tight_room(const Bytes &) {
    Coders coders;
    for (int dtype = 0; dtype < kDtypes; dtype++) {
        const Bytes raw = numbers(500, dtype, 8);
        const size_t whole = check_tile(coders, raw, dtype, raw.size() + 100).size();
        for (size_t most = 0; most <= whole + 1; most++) {
            at("most", dtype, most);
            check_tile(coders, raw, dtype, most);
        }
    }
}

void real_cache(const Bytes &file) {
    Coders coders;
    size_t raw_bytes = 0, stored = 0;
    for (size_t tile : {6144, 65536, 6140, 24692})
        for (size_t i = 0; i + tile <= file.size(); i += tile * 5) {
            at("tile at", int(i), tile);
            const Bytes raw(file.begin() + long(i), file.begin() + long(i + tile));
            for (int dtype = 0; dtype < kDtypes; dtype++) {
                const size_t n = check_tile(coders, raw, dtype, raw.size()).size();
                if (dtype == 1) raw_bytes += raw.size(), stored += n ? n : raw.size();
            }
        }
    CHECK(raw_bytes > stored * 14 / 10);
}

// One of the ways to spoil a tile.
Bytes mutated(Bytes tile) {
    const size_t at = dice() % tile.size();
    switch (dice() % 5) {
        case 0:
            tile[at] ^= uint8_t(1 << dice() % 8);
            break;
        case 1:
            tile[at] = uint8_t(dice());
            break;
        case 2:
            tile.resize(at);
            break;
        case 3:
            tile.insert(tile.begin() + long(at), uint8_t(dice()));
            break;
        default:
            for (size_t i = at; i < tile.size() && i < at + 9; i++) tile[i] = uint8_t(dice());
    }
    return tile;
}

void spoilt_tiles(const Bytes &file) {
    Coders coders;
    size_t taken = 0, refused = 0;
    const auto spoil = [&](const Bytes &raw, int dtype, size_t room) {
        const Bytes tile = check_tile(coders, raw, dtype, room);
        for (int round = 0; !tile.empty() && round < 10; round++) {
            const Bytes bad = mutated(tile);
            const size_t n = raw.size() / element_bytes(dtype);
            Bytes plain, fast;
            const bool good = decode(coders.plain, bad, dtype, n, &plain);
            CHECK(decode(coders.fast, bad, dtype, n, &fast) == good);
            CHECK(plain == fast);
            good ? taken++ : refused++;
        }
    };
    each_tile(false, spoil);
    for (size_t i = 0; i + 6144 <= file.size(); i += 6144)
        spoil(Bytes(file.begin() + long(i), file.begin() + long(i + 6144)), 1, 6144);
    CHECK(taken > 1000);
    CHECK(refused > 1000);
}

// Of all that is stored for a file: another processor's is to be the same.
void digest(const Bytes &file) {
    Coders coders;
    uint64_t sum = 0;
    const auto add = [&](const Bytes &raw, int dtype) {
        const Bytes tile = check_tile(coders, raw, dtype, raw.size());
        sum = XXH3_64bits_withSeed(tile.data(), tile.size(), sum);
    };
    for (int dtype = 0; dtype < kDtypes; dtype++) {
        for (size_t i = 0; i + 6144 <= file.size(); i += 6144)
            add(Bytes(file.begin() + long(i), file.begin() + long(i + 6144)), dtype);
    }
    // Close calls, which another rounding would decide otherwise.
    for (int round = 0; round < 100000; round++) {
        uint32_t counts[256] = {};
        size_t total = 0;
        for (size_t k = 2 + dice() % 10; k-- > 0;) total += counts[k] = uint32_t(1 + dice() % 40);
        const Classes classes = choose_classes(counts, total, total * (1 + dice() % 4), 256);
        sum = XXH3_64bits_withSeed(classes.members, sizeof classes.members, sum + classes.widths);
        sum = XXH3_64bits_withSeed(&classes.bits, sizeof classes.bits, sum);
    }
    std::printf("%016" PRIx64 "\n", sum);
}

const struct {
    const char *name;
    void (*run)(const Bytes &file);
} kCases[] = {
    {"hash", hash},
    {"split_and_merge", split_and_merge},
    {"translate", translate},
    {"levels", levels},
    {"stray_codes", stray_codes},
    {"tiles", tiles},
    {"tight_room", tight_room},
    {"real_cache", real_cache},
    {"spoilt_tiles", spoilt_tiles},
    {"digest", digest},
};

}  // namespace

int main(int argc, char **argv) {
    std::setvbuf(stdout, nullptr, _IOLBF, 0);  // what is said before a crash is seen
    if (argc != 3) return 2;
    std::ifstream in(argv[2], std::ios::binary);
    const Bytes file{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
    if (file.empty()) return 2;
#if defined(__aarch64__)
    CHECK(std::strcmp(best_kernels().name, "neon") == 0);
    CHECK(kernels_named("neon") == &kNeonKernels);
    CHECK(kernels_named("avx2") == nullptr);
#endif
    for (const auto &each : kCases) {
        if (std::strcmp(each.name, argv[1]) != 0) continue;
        each.run(file);
        if (each.run != digest) std::printf("%" PRIu64 " checks\n", checks);
        return 0;
    }
    return 2;
}
