/* Stands in for libcudart.so.12, whose device memory is then host memory: the reference's Cache is
 * linked to it, and there need not be a GPU. Copies are memcpy, and done when the call returns. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

enum { OK = 0, OUT_OF_MEMORY = 2, UNSUPPORTED = 801 };

static int allocate(void **memory, size_t size) {
    return posix_memalign(memory, 4096, size) ? OUT_OF_MEMORY : OK;
}

int cudaSetDevice(int device) { return (void)device, OK; }
int cudaDeviceReset(void) { return OK; }
int cudaMalloc(void **memory, size_t size) { return allocate(memory, size); }
int cudaFree(void *memory) { return free(memory), OK; }
int cudaMallocHost(void **memory, size_t size) { return allocate(memory, size); }
int cudaFreeHost(void *memory) { return free(memory), OK; }
int cudaHostRegister(void *memory, size_t size, unsigned flags) {
    return (void)memory, (void)size, (void)flags, OK;
}
int cudaHostUnregister(void *memory) { return (void)memory, OK; }
int cudaHostGetDevicePointer(void **device, void *host, unsigned flags) {
    return (void)flags, *device = host, OK;
}
int cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    return (void)kind, memcpy(to, from, size), OK;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return (void)kind, (void)stream, memcpy(to, from, size), OK;
}
int cudaMemset(void *memory, int value, size_t size) { return memset(memory, value, size), OK; }
int cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    return (void)flags, *stream = malloc(8), OK;
}
int cudaStreamDestroy(void *stream) { return free(stream), OK; }
int cudaStreamSynchronize(void *stream) { return (void)stream, OK; }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return (void)stream, (void)event, (void)flags, OK;
}
int cudaStreamAddCallback(void *stream, void (*call)(void *, int, void *), void *user,
                          unsigned flags) {
    return (void)flags, call(stream, OK, user), OK;
}
int cudaGetLastError(void) { return OK; }
const char *cudaGetErrorString(int error) { return (void)error, "host memory only"; }

/* Kernels are registered when the library is loaded, and never started here. */
int cudaLaunchKernel(void) { return UNSUPPORTED; }
void **__cudaRegisterFatBinary(void *binary) {
    static void *handle[4];
    return (void)binary, handle;
}
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
void __cudaRegisterFunction(void) {}
unsigned __cudaPushCallConfiguration(void) { return OK; }
int __cudaPopCallConfiguration(void) { return OK; }
