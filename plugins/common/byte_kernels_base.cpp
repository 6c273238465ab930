// SPDX-License-Identifier: MIT
#define UCM_BYTE_KERNELS kBaseByteKernels
#include "byte_kernels.inc"

namespace ucm {

const ByteKernels &byte_kernels() {
#ifdef __x86_64__
    static const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx2) return kAvx2ByteKernels;
#endif
    return kBaseByteKernels;
}

}  // namespace ucm
