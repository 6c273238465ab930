// SPDX-License-Identifier: MIT
//
// What the harness does byte by byte, which is optimised under sanitizers too.
#include <algorithm>
#include <cstring>

#include "harness.h"

namespace ucm_test {
namespace {

// splitmix64: one step.
uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

}  // namespace

BlockId make_id(uint64_t number) {
    BlockId id;
    const uint64_t halves[2] = {mix(number), mix(~number)};
    std::memcpy(id.bytes, halves, sizeof id.bytes);
    return id;
}

std::vector<BlockId> make_ids(size_t n, uint64_t first) {
    std::vector<BlockId> ids;
    for (size_t i = 0; i < n; i++) ids.push_back(make_id(first + i));
    return ids;
}

std::vector<uint8_t> contents(const BlockId &id, uint32_t shard, uint64_t length, int32_t dtype) {
    static const size_t widths[] = {1, 2, 2, 4, 1, 1};
    const size_t width = widths[dtype];
    uint64_t state = 0;
    std::memcpy(&state, id.bytes, sizeof state);
    state = mix(state ^ (uint64_t(shard) << 40));
    std::vector<uint8_t> bytes(length);
    for (size_t at = 0; at < length; at += sizeof state) {
        state = mix(state);
        std::memcpy(bytes.data() + at, &state, std::min(sizeof state, size_t(length) - at));
    }
    // Little-endian: the last byte of a number has its sign and exponent, of which few are used.
    if (dtype != UCM_DTYPE_BYTES)
        for (size_t i = width - 1; i < length; i += width)
            bytes[i] = uint8_t(0x3c + (bytes[i] & 0x81) + (bytes[i] % 7 == 0));
    return bytes;
}

bool Move::same(size_t i) const {
    const auto expected =
        contents(shards_[i].id, shards_[i].index, result(i).length, stack_.geometry().dtype);
    const auto found = bytes(i);
    return expected.size() <= found.size() &&
           std::equal(expected.begin(), expected.end(), found.begin());
}

bool Move::overrun() const {
    const Geometry &geometry = stack_.geometry();
    uint64_t from = 0;  // of the gap before segment k, or after the last
    for (size_t k = 0; k <= offsets_.size(); k++) {
        const uint64_t to = k < offsets_.size() ? offsets_[k] : stride_;
        for (size_t i = 0; i < n(); i++)
            for (uint64_t at = from; at < to; at++)
                if (memory_->base()[i * stride_ + at] != 0xa5) return true;
        if (k == offsets_.size()) break;
        const uint64_t bytes = geometry.segments[k];
        from = to + (geometry.pages ? ucm::round_up(bytes) : bytes);
    }
    return false;
}

}  // namespace ucm_test
