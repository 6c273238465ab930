// SPDX-License-Identifier: MIT
#pragma once

#include <stdint.h>

#include "ucm/store_v1.h"

#ifdef __cplusplus
extern "C" {
#endif

// What one run took, in CPU time of the calling thread.
typedef struct ucm_bench_figures {
    uint64_t frame_bytes;
    uint64_t compress_ns;
    uint64_t decompress_ns;
    uint64_t memcpy_ns;
} ucm_bench_figures;

// Code `data` shard after shard and then decode it again, without threads, queues or a store: what
// `ucm bench codec` calls. A shard is as many planes of `plane_bytes` as `shard_bytes` holds, at
// least one. `dtype` is that of the layout, `named` overrides it unless it is 0; `kernels` forces a
// set
// ("scalar", "avx2", "avx512", "neon"), "" takes the best, and UCM_UNSUPPORTED is one that this
// processor does not run; without `checksums` the codec is measured alone. UCM_OK, UCM_INVALID (a
// dtype or size that cannot be), UCM_UNAVAILABLE (no memory), or UCM_CORRUPT: what came out is not
// what went in.
UCM_EXPORT ucm_status ucm_bench_codec(const void *data, uint64_t bytes, uint64_t plane_bytes,
                                      uint64_t shard_bytes, int32_t dtype, int32_t named,
                                      const char *codec, const char *kernels, int32_t checksums,
                                      ucm_bench_figures *figures);

#ifdef __cplusplus
}

namespace ucm::compress {

enum class Mode;

// Nanoseconds of a raw byte that one thread takes to decode, with checksums, of numbers that are
// made up and in no cache of one processor.
double decoding_cost(Mode mode);

}  // namespace ucm::compress
#endif
