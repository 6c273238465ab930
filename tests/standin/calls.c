/* SPDX-License-Identifier: MIT
 *
 * What the kernel and the daemon of 3FS would make of system calls on its files. The library cannot
 * see those over plain files, so it puts itself between the process and libc: in every object that
 * is loaded it rewrites where the calls lead. Preloading would need a process of its own for each
 * test.
 */
#include <dlfcn.h>
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "standin.h"

/* A file that grew by USRBIO since its size was last told to the metadata service. */
struct grown {
    struct grown *next;
    dev_t dev;
    ino_t ino;
    off_t known;
};

static struct grown *grown_files; /* with `lock` */
static atomic_int grown_count;

static struct grown **find_grown(dev_t dev, ino_t ino) {
    struct grown **at = &grown_files;
    while (*at != NULL && ((*at)->dev != dev || (*at)->ino != ino)) at = &(*at)->next;
    return at;
}

void will_write(int fd, off_t end) {
    struct stat info;
    if (fstat(fd, &info) != 0 || end <= info.st_size) return;
    pthread_mutex_lock(&lock);
    if (*find_grown(info.st_dev, info.st_ino) == NULL) {
        struct grown *grown = malloc(sizeof *grown);
        *grown = (struct grown){grown_files, info.st_dev, info.st_ino, info.st_size};
        grown_files = grown;
        grown_count++;
    }
    pthread_mutex_unlock(&lock);
}

void size_told(int fd) {
    struct stat info;
    if (grown_count == 0 || fstat(fd, &info) != 0) return;
    struct grown **at = find_grown(info.st_dev, info.st_ino), *found = *at;
    if (found == NULL) return;
    *at = found->next;
    free(found);
    grown_count--;
}

static off_t seen_size(dev_t dev, ino_t ino, off_t size) {
    if (in_child()) return size;
    pthread_mutex_lock(&lock);
    const struct grown *grown = *find_grown(dev, ino);
    const off_t seen = grown != NULL && grown->known < size ? grown->known : size;
    pthread_mutex_unlock(&lock);
    return seen;
}

static int seen(int result, struct stat *info) {
    if (result == 0 && grown_count > 0)
        info->st_size = seen_size(info->st_dev, info->st_ino, info->st_size);
    return result;
}

/* Whether the call is to fail since the daemon of this mount is dead; PATH may be of a folder. */
static bool cut_off(int folder, const char *path) {
    char whole[PATH_MAX * 2], self[64];
    if (!can_die() || in_child()) return false;
    if (path == NULL || (*path != '/' && folder != AT_FDCWD)) {
        snprintf(self, sizeof self, "/proc/self/fd/%d", folder);
        const ssize_t n = readlink(self, whole, PATH_MAX);
        if (n < 0) return false;
        snprintf(whole + n, sizeof whole - (size_t)n, "/%s", path ? path : "");
        path = whole;
    }
    pthread_mutex_lock(&lock);
    const bool dead = is_mounted(path) && daemon_dead();
    pthread_mutex_unlock(&lock);
    if (dead) errno = ENOTCONN;
    return dead;
}

static int on_fsync(int fd) {
    if (cut_off(fd, NULL)) return -1;
    const int result = fsync(fd);
    if (in_child()) return result;
    pthread_mutex_lock(&lock);
    if (result == 0) size_told(fd);
    counters.fsyncs++;
    pthread_mutex_unlock(&lock);
    return result;
}

static int on_fdatasync(int fd) {
    return cut_off(fd, NULL) ? -1 : fdatasync(fd);
}

static int on_close(int fd) {
    if (in_child()) return close(fd);
    pthread_mutex_lock(&lock);
    size_told(fd);
    note_closed(fd);
    pthread_mutex_unlock(&lock);
    return close(fd);
}

static int on_fstat(int fd, struct stat *info) {
    return cut_off(fd, NULL) ? -1 : seen(fstat(fd, info), info);
}

static int on_stat(const char *path, struct stat *info) {
    return cut_off(AT_FDCWD, path) ? -1 : seen(stat(path, info), info);
}

static int on_lstat(const char *path, struct stat *info) {
    return cut_off(AT_FDCWD, path) ? -1 : seen(lstat(path, info), info);
}

static int on_fstatat(int folder, const char *path, struct stat *info, int flags) {
    return cut_off(folder, path) ? -1 : seen(fstatat(folder, path, info, flags), info);
}

static int on_statx(int folder, const char *path, int flags, unsigned mask, struct statx *info) {
    if (cut_off(folder, path)) return -1;
    const int result = statx(folder, path, flags, mask | STATX_INO, info);
    if (result == 0 && grown_count > 0) {
        const dev_t dev = makedev(info->stx_dev_major, info->stx_dev_minor);
        info->stx_size = (uint64_t)seen_size(dev, info->stx_ino, (off_t)info->stx_size);
    }
    return result;
}

/* A name for bytes whose length nobody has been told yet. */
static void note_published(int folder, const char *path) {
    struct stat info;
    if (in_child() || grown_count == 0 || fstatat(folder, path, &info, AT_SYMLINK_NOFOLLOW) != 0)
        return;
    pthread_mutex_lock(&lock);
    if (*find_grown(info.st_dev, info.st_ino) != NULL) counters.renamed_unsynced++;
    pthread_mutex_unlock(&lock);
}

static int on_renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    if (cut_off(from, old) || cut_off(to, new)) return -1;
    note_published(from, old);
    return renameat2(from, old, to, new, flags);
}

static int on_renameat(int from, const char *old, int to, const char *new) {
    return on_renameat2(from, old, to, new, 0);
}

static int on_rename(const char *old, const char *new) {
    return on_renameat2(AT_FDCWD, old, AT_FDCWD, new, 0);
}

static int on_linkat(int from, const char *old, int to, const char *new, int flags) {
    if (cut_off(from, old) || cut_off(to, new)) return -1;
    note_published(from, old);
    return linkat(from, old, to, new, flags);
}

static int on_link(const char *old, const char *new) {
    return on_linkat(AT_FDCWD, old, AT_FDCWD, new, 0);
}

static int on_unlinkat(int folder, const char *path, int flags) {
    return cut_off(folder, path) ? -1 : unlinkat(folder, path, flags);
}

static int on_unlink(const char *path) {
    return on_unlinkat(AT_FDCWD, path, 0);
}

static int on_mkdirat(int folder, const char *path, mode_t mode) {
    return cut_off(folder, path) ? -1 : mkdirat(folder, path, mode);
}

static int on_mkdir(const char *path, mode_t mode) {
    return on_mkdirat(AT_FDCWD, path, mode);
}

/* A link in 3fs-virt/iovs makes memory known, at once and only if it can be mapped. */
static int on_symlinkat(const char *target, int folder, const char *path) {
    if (cut_off(folder, path)) return -1;
    const int result = symlinkat(target, folder, path);
    const char *end = strstr(path, "/3fs-virt/iovs/");
    if (result != 0 || *path != '/' || end == NULL) return result;
    char mount[PATH_MAX];
    snprintf(mount, sizeof mount, "%.*s", (int)(end - path), path);
    pthread_mutex_lock(&lock);
    const bool known = link_made(mount, end + strlen("/3fs-virt/iovs/"));
    pthread_mutex_unlock(&lock);
    if (known) return 0;
    unlink(path);
    errno = EINVAL;
    return -1;
}

static int on_symlink(const char *target, const char *path) {
    return on_symlinkat(target, AT_FDCWD, path);
}

static int on_openat(int folder, const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const bool makes = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
    const mode_t mode = makes ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return cut_off(folder, path) ? -1 : openat(folder, path, flags, mode);
}

static int on_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    const bool makes = (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE;
    const mode_t mode = makes ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    return on_openat(AT_FDCWD, path, flags, mode);
}

#define CALL(name) {#name, (uintptr_t)on_##name}
#define CALL64(name)                     \
    CALL(name), {                        \
        #name "64", (uintptr_t)on_##name \
    }
static const struct {
    const char *name;
    uintptr_t ours;  // ISO C has no cast from a function to void *
} calls[] = {CALL(fsync),     CALL(fdatasync), CALL(close),   CALL64(fstat),   CALL64(stat),
             CALL64(lstat),   CALL64(fstatat), CALL(statx),   CALL(rename),    CALL(renameat),
             CALL(renameat2), CALL(link),      CALL(linkat),  CALL(unlink),    CALL(unlinkat),
             CALL(mkdir),     CALL(mkdirat),   CALL(symlink), CALL(symlinkat), CALL64(openat),
             CALL64(open)};

#if defined(__x86_64__)
enum { DATA = R_X86_64_GLOB_DAT, SLOT = R_X86_64_JUMP_SLOT };
#elif defined(__aarch64__)
enum { DATA = R_AARCH64_GLOB_DAT, SLOT = R_AARCH64_JUMP_SLOT };
#endif

static void redirect(uintptr_t *at, const char *name) {
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        if (strcmp(name, calls[i].name) != 0 || *at == calls[i].ours) continue;
        const uintptr_t page = (uintptr_t)at & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
        const size_t bytes = (uintptr_t)(at + 1) - page;
        if (mprotect((void *)page, bytes, PROT_READ | PROT_WRITE) == 0)
            __atomic_store_n(at, calls[i].ours, __ATOMIC_RELEASE);
    }
}

static int visit(struct dl_phdr_info *object, size_t size, void *self) {
    (void)size;
    static const char *const left_out[] = {"linux-vdso", "/ld-linux", "/libc.so", "san.so"};
    for (size_t i = 0; i < sizeof left_out / sizeof *left_out; i++)
        if (strstr(object->dlpi_name, left_out[i]) != NULL) return 0;
    if (object->dlpi_addr == (uintptr_t)self) return 0;
    const ElfW(Dyn) *dynamic = NULL;
    for (int i = 0; i < object->dlpi_phnum; i++)
        if (object->dlpi_phdr[i].p_type == PT_DYNAMIC)
            dynamic = (const ElfW(Dyn) *)(object->dlpi_addr + object->dlpi_phdr[i].p_vaddr);
    uintptr_t value[DT_NUM] = {0};
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++)
        if (dynamic->d_tag >= 0 && dynamic->d_tag < DT_NUM)
            value[dynamic->d_tag] = dynamic->d_un.d_val;
    const ElfW(Sym) *symbols = (const ElfW(Sym) *)value[DT_SYMTAB];
    const char *names = (const char *)value[DT_STRTAB];
    const struct {
        const ElfW(Rela) * first;
        size_t bytes;
    } tables[] = {{(const ElfW(Rela) *)value[DT_RELA], value[DT_RELASZ]},
                  {(const ElfW(Rela) *)value[DT_JMPREL], value[DT_PLTRELSZ]}};
    for (int t = 0; t < 2 && symbols != NULL; t++)
        for (size_t i = 0; tables[t].first && i < tables[t].bytes / sizeof(ElfW(Rela)); i++) {
            const ElfW(Rela) *entry = &tables[t].first[i];
            const unsigned long type = ELF64_R_TYPE(entry->r_info);
            if (type != DATA && type != SLOT) continue;
            redirect((uintptr_t *)(object->dlpi_addr + entry->r_offset),
                     names + symbols[ELF64_R_SYM(entry->r_info)].st_name);
        }
    return 0;
}

void take_calls(void) {
    Dl_info self;
    if (dladdr(calls, &self) != 0) dl_iterate_phdr(visit, self.dli_fbase);
}
