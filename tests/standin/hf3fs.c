/* SPDX-License-Identifier: MIT
 *
 * A stand-in for libhf3fs_api_shared.so of 3FS: the same functions over plain files, stricter than
 * the real ones where those would corrupt data in silence. README.md says how; none of this is
 * 3FS's.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "standin.h"

#define EXPORTED __attribute__((visibility("default")))

#define MAGIC_NUMBER _IOR('h', 2, uint32_t)

enum { REQUEST_BYTES = 56 + 24 + 16, RING_BYTES = 4096 + 16 + 32 };

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct file **files; /* by number of the descriptor, and of its duplicate */
static int file_limit;
static pid_t home;

void die(const char *format, ...) {
    char sentence[512];
    va_list values;
    va_start(values, format);
    vsnprintf(sentence, sizeof sentence, format, values);
    va_end(values);
    fprintf(stderr, "3FS stand-in: %s\n", sentence);
    abort();
}

/* Of a process that has forked: the lock may be held there by a thread that is not. */
bool in_child(void) {
    return getpid() != home;
}

static void at_exit(void) {
    if (in_child()) return;
    pthread_mutex_lock(&lock);
    write_log();
    pthread_mutex_unlock(&lock);
}

/* The real one has a table of this size, and ends the process when the limit is no int. */
__attribute__((constructor)) static void loaded(void) {
    home = getpid();
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    file_limit = (int)limit.rlim_max;
    if (file_limit < 0) die("the hard limit of open files is no int");
    files = calloc((size_t)file_limit, sizeof *files);
    atexit(at_exit);
    read_plan();
    take_calls();
}

/* The folder above PATH that holds 3fs-virt/iovs. */
static bool find_mount(const char *path, char mount[PATH_MAX]) {
    char iovs[PATH_MAX + 32];
    snprintf(mount, PATH_MAX, "%s", path);
    for (;;) {
        snprintf(iovs, sizeof iovs, "%s/3fs-virt/iovs", mount);
        if (access(iovs, F_OK) == 0) {
            know_mount(mount);
            return true;
        }
        char *last = strrchr(mount, '/');
        if (last == NULL) return false;
        *last = 0;
    }
}

EXPORTED int hf3fs_extract_mount_point(char *mount_point, int size, const char *path) {
    char real[PATH_MAX], mount[PATH_MAX];
    if (realpath(path, real) == NULL)
        die("extract_mount_point of %s, which is not there: the real one throws", path);
    take_calls(); /* of what was loaded since */
    pthread_mutex_lock(&lock);
    read_plan();
    const bool found = !daemon_dead() && find_mount(real, mount);
    pthread_mutex_unlock(&lock);
    if (!found) return -1;
    const int n = (int)strlen(mount);
    if (n < size) memcpy(mount_point, mount, (size_t)n + 1);
    return n + 1;
}

/* --- memory --- */

struct shared {
    char path[64], link[PATH_MAX];
    size_t size;
};

static void binary(uint64_t value, char *to) {
    int top = 63;
    while (top > 0 && (value >> top & 1) == 0) top--;
    for (; top >= 0; top--) *to++ = (char)('0' + (value >> top & 1));
    *to = 0;
}

/* Share memory and make it known to the daemon under a name that ends in SUFFIX. */
static int create(struct hf3fs_iov *iov, const char *mount, size_t size, const char *suffix) {
    if (strlen(mount) >= sizeof iov->mount_point) return -EINVAL;
    char name[37];
    struct shared *shared = calloc(1, sizeof *shared);
    if (getrandom(iov->id, sizeof iov->id, 0) != sizeof iov->id) die("no random numbers");
    name_of(iov->id, name);
    snprintf(shared->path, sizeof shared->path, "/dev/shm/hf3fs-iov-%s", name);
    snprintf(shared->link, sizeof shared->link, "%s/3fs-virt/iovs/%s%s", mount, name, suffix);
    shared->size = size;
    const int fd = open(shared->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    void *base = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0)
        base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    int error = base == MAP_FAILED ? EIO : daemon_dead() ? ENOTCONN : 0;
    if (fd >= 0) close(fd);
    if (error == 0 && symlink(shared->path, shared->link) != 0) error = errno;
    if (error != 0) {
        if (base != MAP_FAILED) munmap(base, size);
        unlink(shared->path);
        free(shared);
        return -error;
    }
    iov->base = base;
    iov->iovh = shared;
    snprintf(iov->mount_point, sizeof iov->mount_point, "%s", mount);
    iov->size = size;
    return 0;
}

static void destroy(struct hf3fs_iov *iov, const char *link) {
    struct shared *shared = iov->iovh;
    if (!daemon_dead()) unlink(link);
    if (readlink(shared->link, (char[1]){0}, 1) > 0) counters.stale_links++;
    munmap(iov->base, shared->size);
    unlink(shared->path);
    free(shared);
    iov->iovh = NULL;
}

EXPORTED int hf3fs_iovcreate(struct hf3fs_iov *iov, const char *mount_point, size_t size,
                             size_t block_size, int numa) {
    if (iov == NULL) return -EINVAL;
    if (size == 0) die("iovcreate of nothing: the real one divides by its size");
    if (block_size > size) die("iovcreate: blocks larger than all: the real one throws");
    char suffix[32] = "";
    if (block_size != 0) snprintf(suffix, sizeof suffix, ".b%zu", block_size);
    pthread_mutex_lock(&lock);
    read_plan();
    const int result = create(iov, mount_point, size, suffix);
    if (result == 0) {
        find_memory(iov->id, mount_point); /* as real: mapped when the link is made */
        iov->block_size = block_size;
        iov->numa = numa;
        counters.iovs++;
        counters.open_iovs++;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORTED void hf3fs_iovdestroy(struct hf3fs_iov *iov) {
    if (iov == NULL || iov->iovh == NULL) return;
    pthread_mutex_lock(&lock);
    const int busy = in_flight_in(iov->id);
    if (busy > 0) die("iovdestroy while %d requests use its memory", busy);
    destroy(iov, ((struct shared *)iov->iovh)->link);
    drop_unlinked();
    counters.open_iovs--;
    write_log();
    pthread_mutex_unlock(&lock);
}

/* --- rings --- */

static struct ring *new_ring(const struct hf3fs_ior *ior, int entries) {
    struct ring *ring = calloc(1, sizeof *ring);
    snprintf(ring->mount, sizeof ring->mount, "%s", ior->mount_point);
    ring->for_read = ior->for_read;
    ring->io_depth = ior->io_depth;
    ring->timeout = ior->timeout;
    ring->flags = ior->flags;
    ring->generation = generation;
    ring->entries = entries;
    ring->slots = calloc((size_t)entries, sizeof *ring->slots);
    ring->queue = calloc((size_t)entries, sizeof *ring->queue);
    ring->finished = calloc((size_t)entries, sizeof *ring->finished);
    pthread_cond_init(&ring->some_done, NULL); /* waits by CLOCK_REALTIME */
    ring->next = rings;
    rings = ring;
    counters.rings++;
    counters.open_rings++;
    return ring;
}

EXPORTED int hf3fs_iorcreate4(struct hf3fs_ior *ior, const char *mount_point, int entries,
                              bool for_read, int io_depth, int timeout, int numa, uint64_t flags) {
    if (ior == NULL || mount_point == NULL || *mount_point == 0 || timeout < 0) return -EINVAL;
    if (entries <= 0 || io_depth > entries) return -EINVAL;
    char suffix[128] = "", digits[65];
    binary(flags, digits);
    snprintf(suffix, sizeof suffix, ".%c%d.t%d%s%s", for_read ? 'r' : 'w', io_depth, timeout,
             flags ? ".f" : "", flags ? digits : "");
    pthread_mutex_lock(&lock);
    read_plan();
    start_daemon();
    const size_t bytes = RING_BYTES + (size_t)REQUEST_BYTES * ((size_t)entries + 1);
    const int result = create(&ior->iov, mount_point, bytes, suffix);
    if (result == 0) {
        unlink(((struct shared *)ior->iov.iovh)->path); /* the daemon has mapped it */
        snprintf(ior->mount_point, sizeof ior->mount_point, "%s", mount_point);
        ior->iov.block_size = 0;
        ior->iov.numa = numa;
        ior->for_read = for_read;
        ior->io_depth = io_depth;
        ior->priority = 0;
        ior->timeout = timeout;
        ior->flags = flags;
        ior->iorh = new_ring(ior, entries);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* Forget requests that only a daemon that is dead knows of; return how many others run. */
static int abandon(struct ring *ring) {
    int busy = 0;
    for (int i = 0; i < ring->entries; i++) {
        struct request *request = &ring->slots[i];
        if (request->state == FREE || request->state == DONE) continue;
        if (ring->generation == generation || request->state == RUNNING) {
            busy++;
            continue;
        }
        forget_file(request->file);
        counters.in_flight--;
        request->state = FREE;
    }
    return busy;
}

EXPORTED void hf3fs_iordestroy(struct hf3fs_ior *ior) {
    if (ior == NULL || ior->iorh == NULL) return;
    struct ring *ring = ior->iorh;
    char link[PATH_MAX], name[37], suffix[64] = "";
    pthread_mutex_lock(&lock);
    const int busy = abandon(ring);
    if (busy > 0) die("iordestroy while %d requests of it run", busy);
    for (struct ring **at = &rings; *at != NULL; at = &(*at)->next)
        if (*at == ring) {
            *at = ring->next;
            break;
        }
    /* As real: it was made with the flags in binary, so from 2 on the link stays. */
    if (ior->flags) snprintf(suffix, sizeof suffix, ".f%llu", (unsigned long long)ior->flags);
    name_of(ior->iov.id, name);
    snprintf(link, sizeof link, "%s/3fs-virt/iovs/%s.%c%d.t%d%s", ring->mount, name,
             ring->for_read ? 'r' : 'w', ring->io_depth, ring->timeout, suffix);
    destroy(&ior->iov, link);
    pthread_cond_destroy(&ring->some_done);
    free(ring->slots);
    free(ring->queue);
    free(ring->finished);
    free(ring);
    ior->iorh = NULL;
    counters.open_rings--;
    write_log();
    pthread_mutex_unlock(&lock);
}

EXPORTED int hf3fs_io_entries(const struct hf3fs_ior *ior) {
    return (int)((ior->iov.size - RING_BYTES) / REQUEST_BYTES) - 1;
}

/* --- descriptors --- */

/* Not strict: one system call, as it is of the real one, which asks the daemon. */
static bool on_3fs(int fd) {
    char self[64], path[PATH_MAX], mount[PATH_MAX];
    uint32_t magic;
    if (!plan.strict) return ioctl(fd, MAGIC_NUMBER, &magic) == 0 || errno != EBADF;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    const ssize_t n = readlink(self, path, sizeof path - 1);
    if (n <= 0 || daemon_dead()) return false;
    path[n] = 0;
    return find_mount(path, mount);
}

EXPORTED int hf3fs_reg_fd(int fd, uint64_t flags) {
    (void)flags;
    struct stat info;
    pthread_mutex_lock(&lock);
    int result = EINVAL;
    if (fd < 0 || fd >= file_limit || !on_3fs(fd)) {
        result = EBADF;
    } else if (files[fd] == NULL && fstat(fd, &info) == 0) {
        const int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);
        if (copy < 0) {
            result = errno;
        } else if (files[copy] != NULL) {
            close(copy);
        } else {
            struct file *file = calloc(1, sizeof *file);
            *file = (struct file){
                fd, copy, fcntl(fd, F_GETFL) & O_ACCMODE, 1, info.st_dev, info.st_ino, generation};
            files[fd] = files[copy] = file;
            counters.registrations++;
            counters.registered++;
            result = -copy;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* As real: of a descriptor that is closed, or whose daemon is dead, nothing is deregistered. */
EXPORTED void hf3fs_dereg_fd(int fd) {
    pthread_mutex_lock(&lock);
    if (fd >= 0 && fd < file_limit && on_3fs(fd) && files[fd] != NULL) {
        struct file *file = files[fd];
        if (fd != file->fd) die("dereg_fd(%d): registered was %d; that stays so", fd, file->fd);
        if (file->generation == generation) {
            files[file->fd] = files[file->dup] = NULL;
            forget_file(file);
            counters.deregistrations++;
            counters.registered--;
            if (counters.open_rings == 0) write_log();
        }
    }
    pthread_mutex_unlock(&lock);
}

/* What only a dead daemon knew could not be deregistered. */
void note_closed(int fd) {
    if (fd < 0 || fd >= file_limit || files[fd] == NULL) return;
    if (files[fd]->generation == generation) counters.closed_registered++;
}

/* The real one keeps to the inode that was registered, whatever has the number by now. */
static void check_same(const struct file *file) {
    struct stat info;
    if (fstat(file->fd, &info) != 0)
        die("descriptor %d was closed before it was deregistered", file->fd);
    if (info.st_dev != file->dev || info.st_ino != file->ino)
        die("descriptor %d is another file's than the one registered: it would be used instead",
            file->fd);
}

/* --- requests --- */

/* Whether the thread may do what one thread only may do; it may take over from one that has ended.
 */
static bool mine(pid_t *owner) {
    const pid_t self = (pid_t)syscall(SYS_gettid);
    if (*owner == self) return true;
    if (*owner != 0 && syscall(SYS_tgkill, getpid(), *owner, 0) == 0) return false;
    *owner = self;
    return true;
}

static int free_slot(const struct ring *ring) {
    const int from = (int)random_below((uint64_t)ring->entries);
    for (int i = 0; i < ring->entries; i++) {
        const int slot = (from + i) % ring->entries;
        if (ring->slots[slot].state == FREE) return slot;
    }
    return -EAGAIN;
}

static int prepare(struct ring *ring, const struct hf3fs_iov *iov, const uint8_t *memory,
                   struct file *file, size_t offset, size_t bytes, const void *userdata) {
    if (plan.strict && !mine(&ring->preparer)) die("two threads prepare requests of one ring");
    const int slot = free_slot(ring);
    if (slot < 0) return slot;
    const size_t at = (size_t)(memory - iov->base);
    if (plan.strict) {
        check_same(file);
        const struct request *other = overlapping(iov->id, at, bytes, ring->for_read);
        if (other != NULL)
            die("memory is used again before its %s is done: %zu bytes at %zu of its iov",
                other->ring->for_read ? "read" : "write", bytes, at);
    }
    struct request *request = &ring->slots[slot];
    *request = (struct request){
        .state = QUEUED,
        .ring = ring,
        .file = file,
        .memory = memory,
        .at = at,
        .offset = offset,
        .bytes = bytes,
        .userdata = userdata,
        .fate = next_fate(ring->for_read),
        .sum = plan.strict ? sum_of(memory, bytes) : 0,
    };
    memcpy(request->id, iov->id, sizeof request->id);
    file->users++;
    if (iov->iovh == NULL) counters.linked_bytes += (long)bytes;
    (*(ring->for_read ? &counters.reads : &counters.writes))++;
    if (++counters.in_flight > counters.in_flight_most)
        counters.in_flight_most = counters.in_flight;
    ring_prepared(ring, slot);
    return slot;
}

EXPORTED int hf3fs_prep_io(const struct hf3fs_ior *ior, const struct hf3fs_iov *iov, bool read,
                           void *ptr, int fd, size_t off, uint64_t len, const void *userdata) {
    const uint8_t *memory = ptr;
    const int number = abs(fd);
    if (ior == NULL || ior->iorh == NULL || read != ior->for_read || iov == NULL || len == 0 ||
        iov->base == NULL || memory < iov->base || len > iov->size ||
        (size_t)(memory - iov->base) > iov->size - len || number >= file_limit)
        return -EINVAL;
    pthread_mutex_lock(&lock);
    struct file *file = files[number];
    int result;
    if (file == NULL)
        result = -EBADF;
    else if (file->access == (read ? O_WRONLY : O_RDONLY))
        result = -EACCES;
    else
        result = prepare(ior->iorh, iov, memory, file, off, len, userdata);
    pthread_mutex_unlock(&lock);
    return result;
}

EXPORTED int hf3fs_submit_ios(const struct hf3fs_ior *ior) {
    if (ior == NULL || ior->iorh == NULL) return -EINVAL;
    pthread_mutex_lock(&lock);
    counters.submits++;
    ring_submitted(ior->iorh);
    pthread_mutex_unlock(&lock);
    return 0;
}

static void reap(struct ring *ring, struct hf3fs_cqe *cqe) {
    const int slot = ring->finished[ring->first_done];
    struct request *request = &ring->slots[slot];
    ring->first_done = (ring->first_done + 1) % ring->entries;
    ring->done--;
    cqe->index = slot;
    cqe->result = request->result;
    cqe->userdata = request->userdata;
    request->state = FREE;
}

EXPORTED int hf3fs_wait_for_ios(const struct hf3fs_ior *ior, struct hf3fs_cqe *cqes, int cqec,
                                int min_results, const struct timespec *abs_timeout) {
    if (cqec <= 0 || ior == NULL || ior->iorh == NULL) return -EINVAL;
    struct ring *ring = ior->iorh;
    if (min_results > cqec) min_results = cqec;
    int filled = 0;
    pthread_mutex_lock(&lock);
    counters.waits++;
    if (plan.strict && !mine(&ring->waiter)) die("two threads wait for one ring");
    for (;;) {
        /* Fewer than are ready are as good, if they are enough. */
        while (ring->done > 0 && filled < cqec && (filled < min_results || random_below(4) != 0))
            reap(ring, &cqes[filled++]);
        if (filled >= min_results) break;
        if (abs_timeout == NULL)
            pthread_cond_wait(&ring->some_done, &lock);
        else if (pthread_cond_timedwait(&ring->some_done, &lock, abs_timeout) == ETIMEDOUT &&
                 ring->done == 0)
            break;
    }
    pthread_mutex_unlock(&lock);
    return filled;
}
