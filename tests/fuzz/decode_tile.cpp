// SPDX-License-Identifier: MIT
// Any tile: all sets of kernels say the same of it, whatever the bytes behind it are.
#include "fuzz.h"

using namespace fuzz;
using ucm::compress::kKernelSlack;
using ucm::compress::Tile;
using ucm::compress::TileCodec;
using ucm::compress::TileCoder;

namespace {

// Writes a tile of classes that is right, of bytes that need not be: they are repeated, cut and
// masked. Else few inputs would have the one length that fits their codes.
class Writer {
  public:
    Writer(const Bytes &from, int dtype) : from_(from), dtype_(dtype) {}

    Bytes classes(size_t n) {
        planes(n);
        REQUIRE(tile_.size() == ucm::compress::plane_bytes(dtype_, n));
        const int bits = ucm::compress::symbol_bits(dtype_), levels = take() % 9;
        const bool packed = levels > 0 && take() % 2;
        const uint8_t widths = uint8_t(take() & ((1 << levels) - 1));
        tile_.push_back(uint8_t(levels | packed << 4));
        tile_.push_back(widths);
        size_t members = 0;
        for (int k = 0; k < levels; k++) members += widths >> k & 1 ? 3 : 1;
        if (packed) {
            tile_.push_back(uint8_t(take() % ((1 << bits) - 15)));
            codes(members, 4);
        } else {
            symbols(members, bits);
        }
        for (int k = 0; k < levels; k++) n = codes(n, widths >> k & 1 ? 2 : 1);
        symbols(n, bits);
        return Bytes(tile_.begin(), tile_.end());
    }

  private:
    uint8_t take() {
        if (from_.empty()) return 0;
        if (next_ == from_.size()) next_ = 0;
        return from_[next_++];
    }

    void planes(size_t n) {
        if (dtype_ == UCM_DTYPE_FP32) codes(n, 8), codes(n, 8);
        if (dtype_ == UCM_DTYPE_FP32 || dtype_ == UCM_DTYPE_BF16 || dtype_ == UCM_DTYPE_FP16)
            codes(n, 8);
        if (dtype_ == UCM_DTYPE_FP16 || dtype_ == UCM_DTYPE_FP8_E5M2) codes(n, 2), codes(n, 1);
        if (dtype_ == UCM_DTYPE_FP8_E4M3) codes(n, 4);
    }

    // Returns how many of n codes are the highest one, which has 1 or 2 bits.
    size_t codes(size_t n, int width) {
        size_t highest = 0;
        for (size_t left = n * size_t(width); left > 0; left -= std::min<size_t>(left, 8)) {
            uint8_t byte = take();
            if (left < 8) byte &= uint8_t((1 << left) - 1);
            tile_.push_back(byte);
            for (int bit = 0; width < 4 && bit < 8; bit += width)
                highest += (byte >> bit & ((1 << width) - 1)) == (1 << width) - 1;
        }
        return highest;
    }

    void symbols(size_t n, int bits) {
        while (n-- > 0) tile_.push_back(uint8_t(take() & ((1 << bits) - 1)));
    }

    const Bytes &from_;
    int dtype_;
    size_t next_ = 0;
    Bytes tile_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const auto coders = [] {
        std::vector<std::unique_ptr<TileCoder>> made;
        for (const Kernels *each : all_kernels())
            made.push_back(std::make_unique<TileCoder>(*each));
        return made;
    }();
    Input input(data, size);
    const uint8_t head = input.byte(), dtype = uint8_t(input.byte() % (kDtypes + 1)),
                  poison = input.byte();
    const uint32_t raw_bytes = (input.half() >> (head >> 4 & 7)) + 1;
    auto codec = TileCodec(head & 7);
    Bytes stored = input.rest();
    const size_t width = ucm::compress::element_bytes(dtype), n = width ? raw_bytes / width : 0;
    const bool written = head & 8 && n > 0;
    if (written) {
        const Bytes tail(raw_bytes % width, poison);
        codec = ucm::compress::kTileClasses;
        stored = Writer(stored, dtype).classes(n);
        stored.insert(stored.end(), tail.begin(), tail.end());
    }
    const Tile tile{codec, dtype, uint32_t(stored.size())};

    bool first = false;
    Bytes bytes;
    for (size_t k = 0; k < coders.size() * 2; k++) {
        Bytes in(stored.size() + kKernelSlack, k % 2 ? poison : uint8_t(~poison));
        std::copy(stored.begin(), stored.end(), in.begin());
        Bytes raw(raw_bytes, uint8_t(k));
        const bool good = coders[k / 2]->decode(tile, in.data(), raw.data(), raw_bytes);
        if (k == 0) first = good, bytes = raw;
        REQUIRE(good == first);
        if (good) REQUIRE(raw == bytes);
    }
    if (written) REQUIRE(first == (stored.size() < raw_bytes));
    return 0;
}
