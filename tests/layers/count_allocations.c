/* Preloaded: counts what threads of Compress allocate. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *memory, size_t bytes);

static atomic_ulong count;
static _Thread_local int is_ours; /* 0: not asked yet */

static void note(void) {
    if (is_ours == 0) {
        char name[17] = "";
        prctl(PR_GET_NAME, name);
        is_ours = strstr(name, "compress") ? 1 : -1; /* ucm-compress, ucm-decompress */
    }
    if (is_ours == 1) count++;
}

unsigned long allocations(void) {
    return count;
}

void *malloc(size_t bytes) {
    note();
    return __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes) {
    note();
    return __libc_calloc(n, bytes);
}

void *realloc(void *memory, size_t bytes) {
    note();
    return __libc_realloc(memory, bytes);
}

void *mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    void *(*real)(void *, size_t, int, int, int, off_t) =
        (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    note();
    return real(at, bytes, protection, flags, file, offset);
}
