// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "ucm/store_v1.hpp"

// What the codec takes of plugins/common/buffers.h, on the heap and no byte longer than asked for:
// there AddressSanitizer sees the ends of its scratch memory, in mappings it does not.
namespace ucm {

constexpr uint64_t round_up(uint64_t value, uint64_t to = UCM_ALIGNMENT) {
    return (value + to - 1) / to * to;
}

class Mapping {
  public:
    explicit Mapping(uint64_t bytes) {
        // Coders come and go with every input, and the kernel takes longer to give pages than they
        // take to work.
        auto &spares = spare()[bytes];
        if (!spares.empty()) {
            memory_.swap(spares.back());
            spares.pop_back();
        }
        memory_.assign(bytes, 0xb5);  // not zero: nothing must count on that
    }
    ~Mapping() { spare()[memory_.size()].push_back(std::move(memory_)); }
    Mapping(const Mapping &) = delete;
    Mapping &operator=(const Mapping &) = delete;

    uint8_t *base() { return memory_.data(); }
    const uint8_t *base() const { return memory_.data(); }
    uint64_t bytes() const { return memory_.size(); }

  private:
    // By size; never destroyed, as coders may be static.
    static std::map<uint64_t, std::vector<std::vector<uint8_t>>> &spare() {
        static auto *all = new std::map<uint64_t, std::vector<std::vector<uint8_t>>>;
        return *all;
    }

    std::vector<uint8_t> memory_;
};

}  // namespace ucm
