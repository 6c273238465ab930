// SPDX-License-Identifier: MIT
//
// The checksum that a block file keeps of each shard; docs/block-format.md.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "task.h"

namespace ucm {

// Over `length` bytes in n pieces.
uint64_t payload_checksum(const BlockId &id, uint32_t shard, uint64_t length, const iovec *pieces,
                          size_t n);

// The same, of bytes that come one after another.
class PayloadChecksum {
  public:
    PayloadChecksum();
    void begin(const BlockId &id, uint32_t shard, uint64_t length);
    void add(const void *bytes, size_t n);
    uint64_t end() const;

  private:
    std::unique_ptr<void, void (*)(void *)> state_;  // an XXH3_state_t
};

}  // namespace ucm
