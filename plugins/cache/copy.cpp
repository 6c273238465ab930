// SPDX-License-Identifier: MIT
#include "copy.h"

#include <algorithm>
#include <cstring>

namespace ucm::cache {

void RowCopy::gather(uint8_t *slot, void *const *row, uint64_t length) const {
    for (size_t k = 0; k < segments_.size() && length; k++) {
        const uint64_t part = std::min(segments_[k], length);
        std::memcpy(slot, row[k], part);
        slot += part;
        length -= part;
    }
}

void RowCopy::scatter(void *const *row, const uint8_t *slot, uint64_t length) const {
    for (size_t k = 0; k < segments_.size() && length; k++) {
        const uint64_t part = std::min(segments_[k], length);
        std::memcpy(row[k], slot, part);
        slot += part;
        length -= part;
    }
}

}  // namespace ucm::cache
