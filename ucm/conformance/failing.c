/* SPDX-License-Identifier: MIT */
/* Loaded first into a process of the fault tests: what it reads and writes below a folder fails, or
 * is slow, while ucm_failing says so. Only calls of the C library are seen. */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* which would make two names one */
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { READS = 1, WRITES = 2, SLOW = 4, SLOW_NS = 20000000 };

static int mode;   /* atomic */
static long found; /* atomic: calls on files below the folder while there was a mode */

EXPORT void ucm_failing(int new_mode) {
    __atomic_store_n(&mode, new_mode, __ATOMIC_SEQ_CST);
}

EXPORT long ucm_failing_found(void) {
    return __atomic_load_n(&found, __ATOMIC_SEQ_CST);
}

static int is_below(int fd) {
    const char *folder = getenv("ucm_failing_folder");
    char link[32], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = folder ? readlink(link, path, sizeof path) : -1;
    const size_t most = folder ? strlen(folder) : 0;
    return length > 0 && (size_t)length > most && !memcmp(path, folder, most);
}

static int fails(int fd, int how) {
    const int now = __atomic_load_n(&mode, __ATOMIC_SEQ_CST);
    const int before = errno;
    if (!now || !is_below(fd)) {
        errno = before;
        return 0;
    }
    __atomic_fetch_add(&found, 1, __ATOMIC_SEQ_CST);
    if (now & SLOW) nanosleep(&(struct timespec){0, SLOW_NS}, NULL);
    errno = now & how ? EIO : before;
    return now & how;
}

#define WRAP(how, type, name, parameters, arguments)          \
    EXPORT type name parameters;                              \
    EXPORT type name parameters {                             \
        static type(*next) parameters;                        \
        if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name); \
        return fails(fd, how) ? -1 : next arguments;          \
    }

WRAP(READS, ssize_t, read, (int fd, void *to, size_t n), (fd, to, n))
WRAP(READS, ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
WRAP(READS, ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n))
WRAP(READS, ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRAP(WRITES, ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n))
WRAP(WRITES, ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at), (fd, from, n, at))
WRAP(WRITES, ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
WRAP(WRITES, ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at), (fd, v, n, at))
WRAP(WRITES, int, fsync, (int fd), (fd))
WRAP(WRITES, int, fdatasync, (int fd), (fd))
#ifdef __GLIBC__
WRAP(READS, ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
WRAP(READS, ssize_t, preadv64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
WRAP(WRITES, ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t at), (fd, from, n, at))
WRAP(WRITES, ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t at), (fd, v, n, at))
#endif
