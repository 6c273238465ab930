// SPDX-License-Identifier: MIT
// Any bytes, as any numbers in any layout: all sets of kernels make the same frame and read it.
#include "fuzz.h"

using namespace fuzz;
using ucm::compress::kTrailerBytes;
using ucm::compress::Mode;

namespace {

using Coders = std::vector<std::unique_ptr<FrameCoder>>;

constexpr Mode kModes[] = {Mode::kFast, Mode::kSmall, Mode::kRaw};
constexpr size_t kShared = 1 << 20;  // a shard this long is shared between threads

// `length` of them, from `start` on and around.
Bytes repeat(const Bytes &bytes, size_t start, size_t length) {
    Bytes repeated(length);
    for (size_t i = 0; i < length && !bytes.empty(); i++)
        repeated[i] = bytes[(start + i) % bytes.size()];
    return repeated;
}

Bytes encode(FrameCoder &coder, const Shape &shape, const Bytes &bytes, Mode mode,
             ucm::compress::Team *team = nullptr) {
    Row row(shape, 0);
    row.set(bytes);
    Bytes frame(bytes.size() + kTrailerBytes);
    ucm::compress::TileCounts counts;
    const uint64_t n =
        coder.encode(kName, row.addresses(), bytes.size(), mode, frame.data(), &counts, team);
    REQUIRE(n <= bytes.size() + kTrailerBytes);
    return Bytes(frame.begin(), frame.begin() + long(n));
}

Coders coders_of(const ucm::compress::Geometry &geometry, int named) {
    Coders coders;
    for (const Kernels *each : all_kernels())
        coders.push_back(std::make_unique<FrameCoder>(geometry, named, *each));
    return coders;
}

void check(const Coders &coders, const Shape &shape, const Bytes &frame, const Bytes &bytes) {
    Backwards team(coders);
    for (size_t k = 0; k < coders.size(); k++) {
        const Row row(shape, uint8_t(k + 1));
        const auto decoded = coders[k]->decode(kName, frame.data(), frame.size(), row.addresses(),
                                               k % 2 ? &team : nullptr);
        REQUIRE(decoded.status == UCM_OK);
        REQUIRE(decoded.bytes == bytes.size());
        Bytes got = row.get();
        got.resize(bytes.size());
        REQUIRE(got == bytes);
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Input input(data, size);
    const Mode mode = kModes[input.byte() % 3];
    const int named = input.byte() % kDtypes;
    const Shape shape(input);
    const auto geometry = shape.geometry();
    const size_t length = (input.half() * 32 + input.byte() % 32) % (geometry.capacity() + 1);
    const Bytes given = input.rest();

    const auto coders = coders_of(geometry, named);
    // Other bytes behind those: the coder remembers what it saw.
    for (size_t start : {size_t(0), given.size() / 2}) {
        const Bytes bytes = repeat(given, start, length);
        const Bytes frame = encode(*coders[0], shape, bytes, mode);
        for (size_t k = 1; k < coders.size(); k++)
            REQUIRE(encode(*coders[k], shape, bytes, mode) == frame);
        check(coders, shape, frame, bytes);
    }
    if (length < kShared) return 0;
    // The helpers remember each what they saw: it need not be the same frame.
    const auto helped = coders_of(geometry, named);
    Backwards team(helped);
    const Bytes bytes = repeat(given, 0, length);
    check(coders, shape, encode(*helped[0], shape, bytes, mode, &team), bytes);
    return 0;
}
