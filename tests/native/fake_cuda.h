/* SPDX-License-Identifier: MIT
 *
 * A libcuda.so.1 without a GPU, for tests. It is strict where a real driver is lenient or silent.
 *
 * Nothing happens early: what a stream is given runs only when somebody synchronizes or queries it,
 * or awaits an event behind it, in the stream's order. A copy that is not waited for leaves wrong
 * bytes. Device addresses cannot be read by the host. What a correct program never does is counted
 * as a violation, with a text; the call fails as well where a driver's might. At exit violations
 * that were not reset, and what was made and not released, end the process with status 86. */
#ifndef UCM_FAKE_CUDA_H
#define UCM_FAKE_CUDA_H

#include "../../plugins/cache/cuda_driver.h"

/* What programs need besides, to have device memory and events. */
#define FAKE_CUDA_FUNCTIONS(F)                           \
    F(cuMemAlloc_v2, CUdeviceptr *address, size_t bytes) \
    F(cuMemFree_v2, CUdeviceptr address)                 \
    F(cuStreamQuery, CUstream stream)                    \
    F(cuEventCreate, CUevent *event, unsigned int flags) \
    F(cuEventRecord, CUevent event, CUstream stream)     \
    F(cuEventDestroy_v2, CUevent event)

enum { FAKE_CUDA_DEVICES = 2, FAKE_CUDA_EXIT = 86 };

/* fake_cuda_control() gives this. Thread-safe, except reset. */
typedef struct fake_cuda {
    size_t (*violations)(void);
    const char *(*violation)(size_t i); /* NULL past the last one kept */
    /* How many streams, events, contexts, allocations and pinned ranges there are. */
    size_t (*live)(void);
    size_t (*streams)(void);
    size_t (*pinned_bytes)(void);
    /* Of the calling thread: contexts pushed and not popped. */
    size_t (*depth)(void);
    size_t (*calls)(const char *function);
    /* Of the calls of this function the next `skip` work, then `times` fail with `result` and do
     * nothing. */
    void (*fail)(const char *function, size_t skip, size_t times, int result);
    /* A computation: writes these bytes to device memory when the stream comes to it. */
    void (*compute)(CUstream stream, CUdeviceptr to, const void *bytes, size_t n);
    /* Device memory as it is now; to set it up and to look at it. */
    void (*poke)(CUdeviceptr to, const void *bytes, size_t n);
    void (*peek)(void *to, CUdeviceptr from, size_t n);
    /* The stream runs nothing from now on, or goes on: its events are late, and who synchronizes
     * with what comes after them waits. */
    void (*stall)(CUstream stream, int on);
    /* As after a start. What was made is gone; no other thread is inside. */
    void (*reset)(void);
} fake_cuda;

const fake_cuda *fake_cuda_control(void);

#endif
