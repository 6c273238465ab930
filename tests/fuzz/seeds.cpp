// SPDX-License-Identifier: MIT
// Writes the first inputs of all targets, from KV cache: seeds SAMPLE FOLDER
#include <zstd.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "fuzz.h"

using namespace fuzz;
using ucm::compress::kKernelSlack;
using ucm::compress::Mode;

namespace {

std::filesystem::path folder;

void write(const std::string &target, const Bytes &head, const Bytes &rest) {
    static int number = 0;
    std::filesystem::create_directories(folder / target);
    std::ofstream file(folder / target / ("seed-" + std::to_string(number++)), std::ios::binary);
    for (const Bytes *part : {&head, &rest})
        file.write(reinterpret_cast<const char *>(part->data()), long(part->size()));
    if (!file.flush()) std::abort();
}

// The bf16 of the sample as another dtype, `bytes` long; mantissas that bf16 lacks are made up.
Bytes numbers(const Bytes &sample, size_t from, int dtype, size_t bytes) {
    Bytes made;
    for (size_t i = from; made.size() < bytes; i += 2) {
        const uint32_t noise = uint32_t(i) * 2654435761u >> 16;
        const uint32_t bits = uint32_t(sample[i + 1]) << 24 | uint32_t(sample[i]) << 16 | noise;
        const int exponent = int(bits >> 23 & 255) - 127;
        const auto small = [&](int width, int mantissa) {
            const int biased = std::clamp(exponent + (1 << (width - 1)) - 1, 0, (1 << width) - 1);
            return bits >> 31 << (width + mantissa) | uint32_t(biased) << mantissa |
                   (bits >> (23 - mantissa) & ((1u << mantissa) - 1));
        };
        const uint32_t number = dtype == UCM_DTYPE_FP32       ? bits
                                : dtype == UCM_DTYPE_FP16     ? small(5, 10)
                                : dtype == UCM_DTYPE_FP8_E4M3 ? small(4, 3)
                                : dtype == UCM_DTYPE_FP8_E5M2 ? small(5, 2)
                                                              : bits >> 16;
        const size_t width = std::max<size_t>(ucm::compress::element_bytes(dtype), 1);
        for (size_t k = 0; k < width && made.size() < bytes; k++)
            made.push_back(uint8_t(number >> k * 8));
    }
    return made;
}

// As Shape reads it: one segment, or two that cut a tile, and one plane behind which there is more.
Bytes layout(size_t bytes, int dtype, bool parts) {
    const size_t rest = bytes / 3, plane = bytes - bytes / 4;
    Bytes head{uint8_t((parts ? 1 : 0) | 1 << 2)};
    const auto half = [&](size_t size) {
        head.push_back(uint8_t(size - 1));
        head.push_back(uint8_t((size - 1) >> 8));
    };
    half(parts ? bytes - rest : bytes);
    if (parts) half(rest);
    head.push_back(uint8_t(dtype));
    half(parts ? plane : bytes);
    return head;
}

void frames(const Bytes &bytes, int dtype, Mode mode, bool parts) {
    const Bytes head = layout(bytes.size(), dtype, parts);
    Bytes round{uint8_t(mode), uint8_t(dtype)};
    round.insert(round.end(), head.begin(), head.end());
    round.push_back(uint8_t(bytes.size() / 32));
    round.push_back(uint8_t(bytes.size() / 32 >> 8));
    round.push_back(uint8_t(bytes.size() % 32));
    write("round_trip", round, bytes);

    Input input(head.data(), head.size());
    const Shape shape(input);
    const auto geometry = shape.geometry();
    Row row(shape, 0);
    row.set(bytes);
    FrameCoder coder(geometry, dtype, ucm::compress::best_kernels());
    Bytes frame(bytes.size() + ucm::compress::kTrailerBytes + kKernelSlack);
    ucm::compress::TileCounts counts;
    frame.resize(coder.encode(kName, row.addresses(), bytes.size(), mode, frame.data(), &counts));
    for (uint8_t repairs : {0, 3, 7, 11}) {
        Bytes before{repairs};
        before.insert(before.end(), head.begin(), head.end());
        write("decode_frame", before, frame);
    }
}

void tile(const Bytes &bytes, int dtype, Mode mode) {
    static ucm::compress::TileCoder coder(ucm::compress::best_kernels());
    ucm::compress::Place place;
    place.dtype = uint8_t(dtype);
    place.fixed = true;
    Bytes out(bytes.size() + kKernelSlack);
    const auto made = coder.encode(bytes.data(), uint32_t(bytes.size()), place, mode, out.data());
    out.resize(made.stored);
    for (uint8_t written : {0, 8})
        write("decode_tile",
              {uint8_t(made.codec | written), uint8_t(dtype), 0xa5, uint8_t(bytes.size() - 1),
               uint8_t((bytes.size() - 1) >> 8)},
              out);
}

// As our writer codes large planes: elements without their top bytes, and those with zstd. Which
// numbers they are does not matter.
void zstd_tile(const Bytes &sample, int dtype, size_t bytes) {
    const size_t width = ucm::compress::element_bytes(dtype), n = bytes / width;
    Bytes tile = numbers(sample, 1000, UCM_DTYPE_BF16, n * (width - 1)), top, coded(2 * n + 100);
    for (size_t i = 0; i < n; i++) top.push_back(sample[2 * i + 1]);
    coded.resize(ZSTD_compress(coded.data(), coded.size(), top.data(), n, 1));
    tile.insert(tile.end(), coded.begin(), coded.end());
    tile.resize(tile.size() + bytes % width);
    write("decode_tile",
          {ucm::compress::kTileZstd, uint8_t(dtype), 0xa5, uint8_t(bytes - 1),
           uint8_t((bytes - 1) >> 8)},
          tile);
    // The target fills in the rest of index and trailer.
    const size_t stored = tile.size();
    tile.resize(stored + 12 + ucm::compress::kTrailerBytes);
    const uint8_t entry[] = {uint8_t(bytes - 1),       uint8_t((bytes - 1) >> 8),
                             uint8_t(stored - 1),      uint8_t((stored - 1) >> 8),
                             ucm::compress::kTileZstd, uint8_t(dtype)};
    std::copy(std::begin(entry), std::end(entry), &tile[stored]);
    const uint8_t trailer[] = {'U', 'C', 'M', 'Z', 3};
    std::copy(std::begin(trailer), std::end(trailer), &tile[stored + 12]);
    tile[stored + 12 + 24] = 1;
    for (bool parts : {false, true}) {
        Bytes head = layout(bytes, dtype, parts);
        head.insert(head.begin(), uint8_t(3));
        write("decode_frame", head, tile);
    }
}

// Nearly nothing to read, and so much to write that it is shared.
void constants(size_t bytes) {
    // Four segments of 512 KiB and no planes, as Shape reads them.
    Bytes head{3, 0x80 | 3};
    head.resize(2 + 4 * 2, 0xff);
    const size_t count = bytes / ucm::compress::kTileBytes;
    Bytes frame(count * 4, 7);
    for (size_t i = 0; i < count; i++)
        for (int byte : {0xff, 0xff, 3, 0, int(ucm::compress::kTileConstant), 0, 0, 0, 0, 0, 0, 0})
            frame.push_back(uint8_t(byte));
    const size_t trailer = frame.size();
    frame.resize(trailer + ucm::compress::kTrailerBytes);
    const uint8_t start[] = {'U', 'C', 'M', 'Z', 3};
    std::copy(std::begin(start), std::end(start), &frame[trailer]);
    frame[trailer + 24] = uint8_t(count);
    write("decode_frame", head, frame);
    // Bytes that are repeated up to the end.
    Bytes round{0, 0};
    round.insert(round.end(), head.begin() + 1, head.end());
    round.insert(round.end(), {0xff, 0xff, 3});
    write("round_trip", round, Bytes(100, 9));
}

}  // namespace

int main(int argc, char **argv) {
    if (argc != 3) return std::fprintf(stderr, "seeds SAMPLE FOLDER\n"), 2;
    std::ifstream file(argv[1], std::ios::binary);
    const Bytes sample{std::istreambuf_iterator<char>(file), {}};
    if (sample.size() < 1000000) return std::fprintf(stderr, "%s: too short\n", argv[1]), 1;
    folder = argv[2];
    for (int dtype = 0; dtype < kDtypes; dtype++)
        for (Mode mode : {Mode::kFast, Mode::kSmall, Mode::kRaw})
            for (size_t bytes : {67, 1000, 6144}) {
                if (mode == Mode::kRaw && dtype != UCM_DTYPE_BF16) continue;
                const Bytes some = numbers(sample, 6144 * bytes % 900000 & ~1u, dtype, bytes);
                for (bool parts : {false, true}) frames(some, dtype, mode, parts);
                if (mode != Mode::kRaw) tile(some, dtype, mode);
            }
    for (int dtype = 0; dtype < kDtypes; dtype++)
        for (size_t bytes : {301, 4097}) zstd_tile(sample, dtype, bytes);
    constants(2 << 20);
    frames(Bytes(5000, 7), UCM_DTYPE_BF16, Mode::kFast, true);
    return 0;
}
