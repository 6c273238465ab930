// SPDX-License-Identifier: MIT
#include "device.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace ucm::cache {
namespace {

#if defined(__SANITIZE_THREAD__)
__attribute__((no_sanitize("thread"))) void copy(void *to, const void *from, uint64_t bytes) {
    auto *t = static_cast<volatile uint8_t *>(to);
    auto *f = static_cast<const volatile uint8_t *>(from);
    for (uint64_t i = 0; i < bytes; i++) t[i] = f[i];
}
#else
void copy(void *to, const void *from, uint64_t bytes) {
    std::memcpy(to, from, bytes);
}
#endif

class HostDevice final : public Device {
  public:
    explicit HostDevice(const ucm_layout &layout)
        : segments_(layout.segment_bytes, layout.segment_bytes + layout.n_segments) {}
    ucm_status gather(const Piece *pieces, size_t n, uint64_t) override {
        for (size_t i = 0; i < n; i++) each(pieces[i], true);
        return UCM_OK;
    }
    ucm_status scatter(const Piece *pieces, size_t n) override {
        for (size_t i = 0; i < n; i++) each(pieces[i], false);
        return UCM_OK;
    }
    void pin(uint8_t *, uint64_t) override {}
    void unpin(uint8_t *, uint64_t) override {}
    bool events() const override { return false; }

  private:
    void each(const Piece &piece, bool in) const {
        uint8_t *slot = piece.slot;
        uint64_t length = piece.length;
        for (size_t k = 0; k < segments_.size() && length; k++) {
            const uint64_t part = std::min(segments_[k], length);
            in ? copy(slot, piece.row[k], part) : copy(piece.row[k], slot, part);
            slot += part;
            length -= part;
        }
    }
    const std::vector<uint64_t> segments_;
};

}  // namespace

std::unique_ptr<Device> make_device(const ucm_layout &layout, const Logger &) {
    return std::make_unique<HostDevice>(layout);
}

}  // namespace ucm::cache
