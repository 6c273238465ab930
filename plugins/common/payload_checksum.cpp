// SPDX-License-Identifier: MIT
#include "payload_checksum.h"

#include <endian.h>

#include <cstring>
#include <new>

#include "byte_kernels.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

namespace ucm {
namespace {

uint64_t payload_seed(const BlockId &id, uint32_t shard, uint64_t length) {
    uint8_t identity[UCM_BLOCK_ID_BYTES + 12];
    std::memcpy(identity, id.bytes, sizeof id.bytes);
    shard = htole32(shard);
    length = htole64(length);
    std::memcpy(identity + UCM_BLOCK_ID_BYTES, &shard, sizeof shard);
    std::memcpy(identity + UCM_BLOCK_ID_BYTES + sizeof shard, &length, sizeof length);
    return XXH3_64bits(identity, sizeof identity);
}

}  // namespace

uint64_t payload_checksum(const BlockId &id, uint32_t shard, uint64_t length, const iovec *pieces,
                          size_t n) {
    const ByteKernels &kernels = byte_kernels();
    const uint64_t seed = payload_seed(id, shard, length);
    if (n == 1) return kernels.hash(pieces[0].iov_base, pieces[0].iov_len, seed);
    XXH3_state_t state{};  // reset_withSeed looks at what was there
    XXH3_64bits_reset_withSeed(&state, seed);
    for (size_t i = 0; i < n; i++) kernels.add(&state, pieces[i].iov_base, pieces[i].iov_len);
    return kernels.end(&state);
}

PayloadChecksum::PayloadChecksum()
    : state_(XXH3_createState(),
             [](void *state) { XXH3_freeState(static_cast<XXH3_state_t *>(state)); }) {
    if (!state_) throw std::bad_alloc();
}

void PayloadChecksum::begin(const BlockId &id, uint32_t shard, uint64_t length) {
    XXH3_64bits_reset_withSeed(static_cast<XXH3_state_t *>(state_.get()),
                               payload_seed(id, shard, length));
}

void PayloadChecksum::add(const void *bytes, size_t n) {
    byte_kernels().add(state_.get(), bytes, n);
}

uint64_t PayloadChecksum::end() const {
    return byte_kernels().end(state_.get());
}

}  // namespace ucm
