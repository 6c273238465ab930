// SPDX-License-Identifier: MIT
#pragma once

#include "buffers.h"
#include "kernels.h"

namespace ucm::compress {

constexpr int kMostLevels = 8;
constexpr int kMostMembers = kMostLevels * 3;

// Which symbols are coded in which level, and how wide.
struct Classes {
    int levels = 0;
    uint8_t widths = 0;  // bit i: level i has 2 bits and three symbols
    uint8_t members[kMostMembers] = {};
    int listed = 0;   // of members
    double bits = 0;  // a symbol, with the table's own

    int width(int level) const { return 1 + (widths >> level & 1); }
    int size(int level) const { return (1 << width(level)) - 1; }
};

struct Ranks;

// The codec "classes" of docs/frame-format.md. One thread at a time; allocates in the constructor
// only.
class ClassCoder {
  public:
    explicit ClassCoder(const Kernels &kernels);

    // Classes that were chosen for other elements, which these may be like.
    struct Kept {
        Classes classes;
        float reached = 0;  // coded bytes of an element
        uint8_t dtype = 0, uses = 0;
        int pause = 0, paused = 0;  // so many times it is not asked whether they are alike
    };

    // Codes n elements into `out`, planes first; 0: it would take more than `most` bytes. Writes up
    // to kKernelSlack bytes behind those.
    size_t encode(const uint8_t *raw, size_t n, int dtype, uint8_t *out, size_t most, Kept &kept);

    // False: these bytes are not n elements. Reads up to kKernelSlack bytes behind them, on which
    // nothing depends.
    bool decode(const uint8_t *stored, size_t bytes, int dtype, size_t n, uint8_t *raw);

    // What will be read next: it is fetched beside the work on what is given now.
    void expect(const uint8_t *next, size_t bytes) { ahead_ = next, ahead_end_ = next + bytes; }

    uint64_t memory_bytes() const { return symbols_.bytes() + ranks_.bytes(); }

  private:
    void fetch(int lines);
    size_t code_first(const Ranks &ranks, int table, int width, size_t n, uint8_t *codes);
    size_t code(const Classes &classes, int dtype, size_t n, uint8_t *out, size_t most);

    const Kernels &kernels_;
    Mapping symbols_, ranks_;
    const uint8_t *ahead_ = nullptr, *ahead_end_ = nullptr;
};

// From counts of `total` symbols out of n.
Classes choose_classes(const uint32_t (&counts)[256], size_t total, size_t n, int possible);

// Bits of a symbol of this dtype.
constexpr int symbol_bits(int dtype) {
    const int bits[kDtypes] = {8, 8, 5, 8, 4, 5};
    return bits[dtype];
}

}  // namespace ucm::compress
