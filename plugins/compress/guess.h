// SPDX-License-Identifier: MIT
#pragma once

#include "codec.h"

namespace ucm::compress {

struct Guess {
    int dtype;
    bool is_noise;  // no byte is more frequent than others
};

// Are these bytes, a few hundred or more, spread as evenly as random ones?
bool looks_random(const uint8_t *bytes, uint32_t n);

// Which numbers these bytes are, UCM_DTYPE_*: those whose exponents a sample says to be
// coded shortest; UCM_DTYPE_BYTES where none saves anything. `first` is believed unless another is
// clearly better.
Guess guess_dtype(const uint8_t *raw, uint32_t bytes, int first, Mode mode);

}  // namespace ucm::compress
