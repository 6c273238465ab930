// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <vector>

#include "device.h"

namespace ucm::cache {

std::unique_ptr<Device> make_host_device(const ucm_layout &layout);
std::unique_ptr<Device> make_cuda_device(const ucm_layout &layout, const Logger &log);

// The segments of a row; what all kinds of device share.
class Segments {
  public:
    explicit Segments(const ucm_layout &layout)
        : bytes_(layout.segment_bytes, layout.segment_bytes + layout.n_segments) {}

    // Calls part(slot, address, bytes) for each segment of the piece in order, until one is false.
    template <typename F>
    bool each_part(const Piece &piece, F part) const {
        uint8_t *slot = piece.slot;
        uint64_t left = piece.length;
        for (size_t k = 0; k < bytes_.size() && left; k++) {
            const uint64_t bytes = std::min(bytes_[k], left);
            if (!part(slot, piece.row[k], bytes)) return false;
            slot += bytes;
            left -= bytes;
        }
        return true;
    }

  private:
    const std::vector<uint64_t> bytes_;
};

}  // namespace ucm::cache
