/* SPDX-License-Identifier: MIT */
/* Loaded first into a process of the fault tests: what it reads and writes below a folder fails, or
 * is slow, while ucm_failing says so, or one call alone of those that change it, by
 * ucm_failing_step. Only calls of the C library are seen. */
#define _GNU_SOURCE
#undef _FILE_OFFSET_BITS /* which would make two names one */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { READS = 1, WRITES = 2, SLOW = 4, NAMES = 8, SLOW_NS = 20000000 };
enum { FDS = 4096, CHANGES = WRITES | NAMES };

static int mode;                    /* atomic: what fails or is slow of all calls */
static long step;                   /* atomic: how many more changes until one fails; 0: none */
static long found;                  /* atomic: calls below the folder while there was a mode */
static long failed;                 /* atomic: steps that failed */
static unsigned char unsynced[FDS]; /* atomic: descriptors that were written to since a sync */
static long was[FDS];               /* atomic: 1 + bytes of the file when it was opened; 0: ? */

EXPORT void ucm_failing(int new_mode) {
    __atomic_store_n(&mode, new_mode, __ATOMIC_SEQ_CST);
}

EXPORT long ucm_failing_found(void) {
    return __atomic_load_n(&found, __ATOMIC_SEQ_CST);
}

/* The n-th change from now on fails, alone; 0: none does. Returns how many have failed so far. */
EXPORT long ucm_failing_step(long n) {
    __atomic_store_n(&step, n, __ATOMIC_SEQ_CST);
    return __atomic_load_n(&failed, __ATOMIC_SEQ_CST);
}

static int idle(void) {
    return !__atomic_load_n(&mode, __ATOMIC_SEQ_CST) && !__atomic_load_n(&step, __ATOMIC_SEQ_CST);
}

static int has_folder(const char *path) {
    const char *folder = getenv("ucm_failing_folder");
    const size_t most = folder ? strlen(folder) : 0;
    return folder && !strncmp(path, folder, most) && (!path[most] || path[most] == '/');
}

static int is_below(int fd) {
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return has_folder(path);
}

static int name_is_below(int folder_fd, const char *name) {
    char path[PATH_MAX];
    if (name[0] == '/') return has_folder(name);
    if (folder_fd != AT_FDCWD) return is_below(folder_fd);
    if (!getcwd(path, sizeof path)) return 0;
    strncat(path, "/", sizeof path - strlen(path) - 1);
    return has_folder(path);
}

/* Of a call that is below the folder, of this kind: does it fail? */
static int fails(int how) {
    const int now = __atomic_load_n(&mode, __ATOMIC_SEQ_CST);
    if (now && how != NAMES) __atomic_fetch_add(&found, 1, __ATOMIC_SEQ_CST);
    if (now & SLOW) nanosleep(&(struct timespec){0, SLOW_NS}, NULL);
    long left = __atomic_load_n(&step, __ATOMIC_SEQ_CST);
    while (how & CHANGES && left > 0 &&
           !__atomic_compare_exchange_n(&step, &left, left - 1, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST)) {
    }
    const int stepped = how & CHANGES && left == 1;
    if (stepped) __atomic_fetch_add(&failed, 1, __ATOMIC_SEQ_CST);
    if (!stepped && !(now & how)) return 0;
    errno = how & NAMES ? ENOSPC : EIO;
    return 1;
}

static int file_fails(int fd, int how) {
    const int before = errno;
    if (idle()) return 0;
    if (is_below(fd) && fails(how)) return 1;
    errno = before;
    return 0;
}

static int name_fails(int folder_fd, const char *name) {
    const int before = errno;
    if (idle()) return 0;
    if (name_is_below(folder_fd, name) && fails(NAMES)) return 1;
    errno = before;
    return 0;
}

static void mark(int fd, int value) {
    if (fd >= 0 && fd < FDS) __atomic_store_n(&unsynced[fd], value, __ATOMIC_SEQ_CST);
}

#define NEXT(type, name, parameters) \
    static type(*next) parameters;   \
    if (!next) *(void **)&next = dlsym(RTLD_NEXT, #name)

#define FILE_CALL(how, written, type, name, parameters, arguments) \
    EXPORT type name parameters;                                   \
    EXPORT type name parameters {                                  \
        NEXT(type, name, parameters);                              \
        if (file_fails(fd, how)) return -1;                        \
        if (how == WRITES) mark(fd, written);                      \
        return next arguments;                                     \
    }

#define NAME_CALL(folder_fd, path, name, parameters, arguments) \
    EXPORT int name parameters;                                 \
    EXPORT int name parameters {                                \
        NEXT(int, name, parameters);                            \
        if (name_fails(folder_fd, path)) return -1;             \
        return next arguments;                                  \
    }

FILE_CALL(READS, 0, ssize_t, read, (int fd, void *to, size_t n), (fd, to, n))
FILE_CALL(READS, 0, ssize_t, pread, (int fd, void *to, size_t n, off_t at), (fd, to, n, at))
FILE_CALL(READS, 0, ssize_t, readv, (int fd, const struct iovec *v, int n), (fd, v, n))
FILE_CALL(READS, 0, ssize_t, preadv, (int fd, const struct iovec *v, int n, off_t at),
          (fd, v, n, at))
FILE_CALL(WRITES, 1, ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n))
FILE_CALL(WRITES, 1, ssize_t, pwrite, (int fd, const void *from, size_t n, off_t at),
          (fd, from, n, at))
FILE_CALL(WRITES, 1, ssize_t, writev, (int fd, const struct iovec *v, int n), (fd, v, n))
FILE_CALL(WRITES, 1, ssize_t, pwritev, (int fd, const struct iovec *v, int n, off_t at),
          (fd, v, n, at))
FILE_CALL(WRITES, 0, int, fsync, (int fd), (fd))
FILE_CALL(WRITES, 0, int, fdatasync, (int fd), (fd))
FILE_CALL(NAMES, 0, int, ftruncate, (int fd, off_t length), (fd, length))
NAME_CALL(AT_FDCWD, to, rename, (const char *from, const char *to), (from, to))
NAME_CALL(at, to, renameat, (int from_at, const char *from, int at, const char *to),
          (from_at, from, at, to))
NAME_CALL(at, to, renameat2, (int from_at, const char *from, int at, const char *to, unsigned how),
          (from_at, from, at, to, how))
NAME_CALL(AT_FDCWD, to, link, (const char *from, const char *to), (from, to))
NAME_CALL(at, to, linkat, (int from_at, const char *from, int at, const char *to, int how),
          (from_at, from, at, to, how))
NAME_CALL(AT_FDCWD, path, mkdir, (const char *path, mode_t bits), (path, bits))
NAME_CALL(at, path, mkdirat, (int at, const char *path, mode_t bits), (at, path, bits))
#ifdef __GLIBC__
FILE_CALL(READS, 0, ssize_t, pread64, (int fd, void *to, size_t n, off64_t at), (fd, to, n, at))
FILE_CALL(READS, 0, ssize_t, preadv64, (int fd, const struct iovec *v, int n, off64_t at),
          (fd, v, n, at))
FILE_CALL(WRITES, 1, ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t at),
          (fd, from, n, at))
FILE_CALL(WRITES, 1, ssize_t, pwritev64, (int fd, const struct iovec *v, int n, off64_t at),
          (fd, v, n, at))
FILE_CALL(NAMES, 0, int, ftruncate64, (int fd, off64_t length), (fd, length))
#endif

/* Notes how long a file was that will be written to. */
static int opened(int fd, int flags) {
    struct stat file;
    if (fd < 0 || fd >= FDS || (flags & O_ACCMODE) == O_RDONLY || idle()) return fd;
    const int before = errno;
    if (fstat(fd, &file) == 0) __atomic_store_n(&was[fd], (long)file.st_size + 1, __ATOMIC_SEQ_CST);
    errno = before;
    return fd;
}

#define OPEN_CALL(folder_fd, name, parameters, arguments)     \
    EXPORT int name parameters;                               \
    EXPORT int name parameters {                              \
        NEXT(int, name, parameters);                          \
        mode_t bits = 0;                                      \
        if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) { \
            va_list rest;                                     \
            va_start(rest, flags);                            \
            bits = (mode_t)va_arg(rest, unsigned);            \
            va_end(rest);                                     \
            if (name_fails(folder_fd, path)) return -1;       \
        }                                                     \
        return opened(next arguments, flags);                 \
    }

OPEN_CALL(AT_FDCWD, open, (const char *path, int flags, ...), (path, flags, bits))
OPEN_CALL(at, openat, (int at, const char *path, int flags, ...), (at, path, flags, bits))
#ifdef __GLIBC__
OPEN_CALL(AT_FDCWD, open64, (const char *path, int flags, ...), (path, flags, bits))
OPEN_CALL(at, openat64, (int at, const char *path, int flags, ...), (at, path, flags, bits))
#endif

/* One that fails has closed it, and what was appended since it was opened and not synced is gone,
 * as on a network file system. */
EXPORT int close(int fd) {
    NEXT(int, close, (int));
    if (fd < 0 || fd >= FDS) return next(fd);
    const long size = __atomic_exchange_n(&was[fd], 0, __ATOMIC_SEQ_CST);
    const int written = __atomic_exchange_n(&unsynced[fd], 0, __ATOMIC_SEQ_CST);
    if (!written || !file_fails(fd, WRITES)) return next(fd);
    const long cut = size ? syscall(SYS_ftruncate, fd, size - 1) : 0;
    next(fd);
    errno = cut ? errno : EIO;
    return -1;
}
