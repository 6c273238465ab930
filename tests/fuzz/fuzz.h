// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <vector>

#include "../../plugins/compress/frame.h"

#define REQUIRE(what)                                                       \
    do {                                                                    \
        if (!(what)) {                                                      \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what); \
            std::abort();                                                   \
        }                                                                   \
    } while (0)

// libFuzzer's names: a target, and what a mutator of its own can call.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern "C" size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t most);

namespace fuzz {

using Bytes = std::vector<uint8_t>;  // one made of a range is as long as its memory
using ucm::compress::FrameCoder;
using ucm::compress::kDtypes;
using ucm::compress::Kernels;

constexpr ucm::compress::Name kName{{1, 2, 3}, 4};  // of every frame

// What decides about a run stands before its data. Behind the end are zeros.
class Input {
  public:
    Input(const uint8_t *data, size_t size) : at_(data), end_(data + size) {}
    uint8_t byte() { return at_ < end_ ? *at_++ : uint8_t(0); }
    uint32_t half() {
        const uint32_t low = byte();
        return low | uint32_t(byte()) << 8;
    }
    Bytes rest() const { return Bytes(at_, end_); }

  private:
    const uint8_t *at_, *end_;
};

// All that this processor runs.
inline const std::vector<const Kernels *> &all_kernels() {
    static const std::vector<const Kernels *> all = [] {
        std::vector<const Kernels *> found;
        for (const char *name : {"scalar", "avx2", "avx512", "neon"})
            if (const Kernels *each = ucm::compress::kernels_named(name)) found.push_back(each);
        return found;
    }();
    return all;
}

// Up to 4 segments and up to 3 planes with their dtypes.
struct Shape {
    std::vector<uint64_t> segments;
    std::vector<ucm_plane> planes;

    explicit Shape(Input &input) {
        const uint8_t head = input.byte();
        const int shift = head >> 4 & 7;  // most are short, and fast
        segments.resize(1 + (head & 3));
        planes.resize(head >> 2 & 3);
        // A shard of 1 MiB is shared between threads.
        for (auto &bytes : segments) bytes = ((input.half() >> shift) + 1) * (head & 0x80 ? 8 : 1);
        for (size_t i = 0; i < planes.size(); i++) {
            const int32_t dtype = input.byte() % kDtypes;
            planes[i] = {(input.half() >> shift) + 1, dtype, int32_t(i)};
        }
    }
    ucm::compress::Geometry geometry() const { return {segments, planes}; }
};

// A shard in segments of exactly their sizes, of which every other is not aligned.
class Row {
  public:
    Row(const Shape &shape, uint8_t fill) {
        for (size_t bytes : shape.segments) {
            const size_t odd = parts_.size() % 2;
            parts_.emplace_back(odd + bytes, fill);
            addresses_.push_back(parts_.back().data() + odd);
            sizes_.push_back(bytes);
        }
    }
    void *const *addresses() const { return addresses_.data(); }
    void set(const Bytes &bytes) {
        size_t at = 0;
        for (size_t k = 0; k < sizes_.size() && at < bytes.size(); k++) {
            const size_t part = std::min(sizes_[k], bytes.size() - at);
            std::memcpy(addresses_[k], bytes.data() + at, part);
            at += part;
        }
    }
    Bytes get() const {
        Bytes all;
        for (size_t k = 0; k < sizes_.size(); k++) {
            const auto *from = static_cast<const uint8_t *>(addresses_[k]);
            all.insert(all.end(), from, from + sizes_[k]);
        }
        return all;
    }

  private:
    std::vector<Bytes> parts_;
    std::vector<void *> addresses_;
    std::vector<size_t> sizes_;
};

// Helps by the coders that it is given, each of other kernels, and from the last part on.
struct Backwards final : ucm::compress::Team {
    const std::vector<std::unique_ptr<FrameCoder>> &coders;

    explicit Backwards(const std::vector<std::unique_ptr<FrameCoder>> &all) : coders(all) {}
    void run(size_t n, const std::function<void(size_t, FrameCoder &)> &work) override {
        for (size_t i = n; i-- > 0;) work(i, *coders[i % coders.size()]);
    }
};

}  // namespace fuzz
