// SPDX-License-Identifier: MIT
// Any bytes, as any numbers in any layout: all sets of kernels make the same frame and read it.
#include "fuzz.h"

using namespace fuzz;
using ucm::compress::kTrailerBytes;
using ucm::compress::Mode;

namespace {

constexpr Mode kModes[] = {Mode::kFast, Mode::kSmall, Mode::kRaw};

// `length` of them, from `start` on and around.
Bytes repeat(const Bytes &bytes, size_t start, size_t length) {
    Bytes repeated(length);
    for (size_t i = 0; i < length && !bytes.empty(); i++)
        repeated[i] = bytes[(start + i) % bytes.size()];
    return repeated;
}

Bytes encode(FrameCoder &coder, const Shape &shape, const Bytes &bytes, Mode mode) {
    Row row(shape, 0);
    row.set(bytes);
    Bytes frame(bytes.size() + kTrailerBytes);
    ucm::compress::TileCounts counts;
    const uint64_t n =
        coder.encode(kName, row.addresses(), bytes.size(), mode, frame.data(), &counts);
    REQUIRE(n <= bytes.size() + kTrailerBytes);
    return Bytes(frame.begin(), frame.begin() + long(n));
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

    std::vector<std::unique_ptr<FrameCoder>> coders;
    for (const Kernels *each : all_kernels())
        coders.push_back(std::make_unique<FrameCoder>(geometry, named, *each));
    Backwards team(coders);
    // Other bytes behind those: the coder remembers what it saw.
    for (size_t start : {size_t(0), given.size() / 2}) {
        const Bytes bytes = repeat(given, start, length);
        const Bytes frame = encode(*coders[0], shape, bytes, mode);
        for (size_t k = 0; k < coders.size(); k++) {
            if (k > 0) REQUIRE(encode(*coders[k], shape, bytes, mode) == frame);
            const Row row(shape, uint8_t(k + 1));
            const auto decoded = coders[k]->decode(kName, frame.data(), frame.size(),
                                                   row.addresses(), k % 2 ? &team : nullptr);
            REQUIRE(decoded.status == UCM_OK);
            REQUIRE(decoded.bytes == length);
            Bytes got = row.get();
            got.resize(length);
            REQUIRE(got == bytes);
        }
    }
    return 0;
}
