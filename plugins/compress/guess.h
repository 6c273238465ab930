// SPDX-License-Identifier: MIT
#pragma once

#include "codec.h"

namespace ucm::compress {

// Which numbers these bytes are, UCM_DTYPE_*: those whose exponents a sample says to be
// coded shortest; UCM_DTYPE_BYTES where none saves anything. `first` is believed unless another is
// clearly better.
int guess_dtype(const uint8_t *raw, uint32_t bytes, int first, Mode mode);

}  // namespace ucm::compress
