// SPDX-License-Identifier: MIT
#define UCM_BYTE_KERNELS kAvx2ByteKernels
#include "byte_kernels.inc"
