/* SPDX-License-Identifier: MIT
 *
 * The part of the CUDA driver interface that Cache uses, so that it is built without CUDA. Where
 * cuda.h is installed, tests/native/cuda_header.cpp checks every line against it. */
#ifndef UCM_CUDA_DRIVER_H
#define UCM_CUDA_DRIVER_H

#include <stddef.h>

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
#ifndef CUDA_VERSION /* of cuda.h, which has an enum */
typedef int CUresult;
#endif

enum {
    UCM_CUDA_SUCCESS = 0,
    UCM_CUDA_ERROR_INVALID_VALUE = 1,
    UCM_CUDA_ERROR_OUT_OF_MEMORY = 2,
    UCM_CUDA_ERROR_INVALID_HANDLE = 400,
    UCM_CUDA_ERROR_NOT_READY = 600,
    UCM_CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
    UCM_CU_STREAM_NON_BLOCKING = 1,
    UCM_CU_MEMHOSTREGISTER_PORTABLE = 1
};

/* F(name, parameters...) for each; all return CUresult. */
#define UCM_CUDA_FUNCTIONS(F)                                                                \
    F(cuInit, unsigned int flags)                                                            \
    F(cuGetErrorName, CUresult error, const char **name)                                     \
    F(cuGetErrorString, CUresult error, const char **text)                                   \
    F(cuDeviceGetCount, int *count)                                                          \
    F(cuDeviceGet, CUdevice *device, int ordinal)                                            \
    F(cuDevicePrimaryCtxRetain, CUcontext *context, CUdevice device)                         \
    F(cuDevicePrimaryCtxRelease_v2, CUdevice device)                                         \
    F(cuCtxPushCurrent_v2, CUcontext context)                                                \
    F(cuCtxPopCurrent_v2, CUcontext *context)                                                \
    F(cuStreamCreate, CUstream *stream, unsigned int flags)                                  \
    F(cuStreamDestroy_v2, CUstream stream)                                                   \
    F(cuStreamWaitEvent, CUstream stream, CUevent event, unsigned int flags)                 \
    F(cuStreamSynchronize, CUstream stream)                                                  \
    F(cuEventQuery, CUevent event)                                                           \
    F(cuMemcpyHtoDAsync_v2, CUdeviceptr to, const void *from, size_t bytes, CUstream stream) \
    F(cuMemcpyDtoHAsync_v2, void *to, CUdeviceptr from, size_t bytes, CUstream stream)       \
    F(cuMemHostRegister_v2, void *base, size_t bytes, unsigned int flags)                    \
    F(cuMemHostUnregister, void *base)

#endif
