// SPDX-License-Identifier: MIT
#include "device_kinds.h"
#include "host_copy.h"

namespace ucm::cache {
namespace {

class HostDevice final : public Device {
  public:
    explicit HostDevice(const ucm_layout &layout) : segments_(layout) {}

    ucm_status gather(const Piece *pieces, size_t n, uint64_t event) override {
        return copy(pieces, n, event, [](uint8_t *slot, void *address, uint64_t bytes, bool large) {
            copy_bytes(slot, address, bytes, large);
        });
    }

    ucm_status scatter(const Piece *pieces, size_t n, uint64_t event) override {
        return copy(pieces, n, event, [](uint8_t *slot, void *address, uint64_t bytes, bool large) {
            copy_bytes(address, slot, bytes, large);
        });
    }

    void pin(uint8_t *, uint64_t) override {}
    void unpin(uint8_t *, uint64_t) override {}
    bool events() const override { return false; }
    bool late(uint64_t) override { return false; }

  private:
    template <typename F>
    ucm_status copy(const Piece *pieces, size_t n, uint64_t event, F move) const {
        if (event) return UCM_UNSUPPORTED;
        uint64_t total = 0;
        for (size_t i = 0; i < n; i++) total += pieces[i].length;
        const bool large = total >= kStreamFrom;
        for (size_t i = 0; i < n; i++)
            segments_.each_part(pieces[i], [&](uint8_t *slot, void *address, uint64_t bytes) {
                move(slot, address, bytes, large);
                return true;
            });
        return UCM_OK;
    }

    const Segments segments_;
};

}  // namespace

std::unique_ptr<Device> make_host_device(const ucm_layout &layout) {
    return std::make_unique<HostDevice>(layout);
}

}  // namespace ucm::cache
