/* SPDX-License-Identifier: MIT
 *
 * The other side of the rings: takes requests, in any order, and moves bytes between files and
 * shared memory that it maps by itself.
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "standin.h"

/* Shared memory that a link in 3fs-virt/iovs has made known. */
struct memory {
    struct memory *next;
    char id[16];
    char link[PATH_MAX];
    uint8_t *base;
    size_t size, block;
    int users, generation;
};

struct ring *rings;
static struct memory *memories;
static char **mounts; /* a process of tests has hundreds */
static int mount_count, running_threads;
static pthread_cond_t work;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t sum_of(const uint8_t *bytes, size_t n) {
    uint64_t lanes[4] = {1, 2, 3, 4}, words[4], sum = n;
    for (; n >= sizeof words; bytes += sizeof words, n -= sizeof words) {
        memcpy(words, bytes, sizeof words);
        for (int i = 0; i < 4; i++) lanes[i] = (lanes[i] ^ words[i]) * 0x9e3779b97f4a7c15u;
    }
    for (; n > 0; n--) sum = (sum ^ *bytes++) * 0x100000001b3u;
    for (int i = 0; i < 4; i++) sum = (sum ^ lanes[i] ^ (lanes[i] >> 29)) * 0x100000001b3u;
    return sum;
}

void name_of(const char *id, char name[37]) {
    char *to = name;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
        to += sprintf(to, "%02x", (unsigned char)id[i]);
    }
}

/* Map what the link names, if it is a file of /dev/shm and the name of the link makes sense. */
static struct memory *map_link(const char *id, const char *link, const char *suffix) {
    char target[PATH_MAX];
    const ssize_t n = readlink(link, target, sizeof target - 1);
    if (n < 0) return NULL;
    target[n] = 0;
    if (strncmp(target, "/dev/shm/", 9) != 0) return NULL;
    struct stat info;
    const int fd = open(target, O_RDWR | O_CLOEXEC);
    if (fd < 0) return NULL;
    struct memory *memory = NULL;
    size_t block = 0;
    if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode) || info.st_size == 0) goto done;
    if (suffix[0] == '.' && suffix[1] == 'b') block = strtoull(suffix + 2, NULL, 10);
    if (suffix[0] != 0 && (block == 0 || block > (size_t)info.st_size)) goto done;
    uint8_t *base = mmap(NULL, (size_t)info.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) goto done;
    memory = calloc(1, sizeof *memory);
    memory->base = base;
    memory->size = (size_t)info.st_size;
    memory->block = block ? block : memory->size;
    memory->generation = generation;
    memcpy(memory->id, id, 16);
    snprintf(memory->link, sizeof memory->link, "%s", link);
    memory->next = memories;
    memories = memory;
done:
    close(fd);
    return memory;
}

void drop_unlinked(void) {
    for (struct memory **at = &memories; *at != NULL;) {
        struct memory *memory = *at;
        if (memory->users == 0 && faccessat(AT_FDCWD, memory->link, F_OK, AT_SYMLINK_NOFOLLOW)) {
            munmap(memory->base, memory->size);
            *at = memory->next;
            free(memory);
        } else {
            at = &memory->next;
        }
    }
}

struct memory *find_memory(const char *id, const char *mount) {
    for (struct memory *memory = memories; memory != NULL; memory = memory->next)
        if (memcmp(memory->id, id, 16) == 0 && memory->generation == generation)
            return faccessat(AT_FDCWD, memory->link, F_OK, AT_SYMLINK_NOFOLLOW) ? NULL : memory;
    char folder[300], name[37], link[PATH_MAX];
    snprintf(folder, sizeof folder, "%s/3fs-virt/iovs", mount);
    name_of(id, name);
    DIR *links = opendir(folder);
    struct memory *found = NULL;
    for (struct dirent *entry; links && found == NULL && (entry = readdir(links)) != NULL;)
        if (strncmp(entry->d_name, name, 36) == 0) {
            snprintf(link, sizeof link, "%s/%s", folder, entry->d_name);
            found = map_link(id, link, entry->d_name + 36);
        }
    if (links) closedir(links);
    return found;
}

bool link_made(const char *mount, const char *name) {
    char id[16];
    unsigned byte;
    const char *at = name;
    for (int i = 0; i < 16; i++, at += 2) {
        at += *at == '-';
        if (sscanf(at, "%2x", &byte) != 1) return false;
        id[i] = (char)byte;
    }
    return find_memory(id, mount) != NULL;
}

void know_mount(const char *mount) {
    for (int i = 0; i < mount_count; i++)
        if (strcmp(mounts[i], mount) == 0) return;
    mounts = realloc(mounts, (size_t)(mount_count + 1) * sizeof *mounts);
    if (mounts == NULL) die("out of memory");
    mounts[mount_count++] = strdup(mount);
}

bool is_mounted(const char *path) {
    for (int i = 0; i < mount_count; i++) {
        const size_t n = strlen(mounts[i]);
        if (strncmp(path, mounts[i], n) == 0 && (path[n] == '/' || path[n] == 0)) return true;
    }
    return false;
}

/* All that it was told is gone with it, and what it shows in 3fs-virt/iovs. */
void daemon_died(void) {
    generation++;
    for (int i = 0; i < mount_count; i++) {
        char path[PATH_MAX];
        snprintf(path, sizeof path, "%s/3fs-virt/iovs", mounts[i]);
        DIR *links = opendir(path);
        for (struct dirent *entry; links && (entry = readdir(links)) != NULL;)
            if (entry->d_type == DT_LNK) unlinkat(dirfd(links), entry->d_name, 0);
        if (links) closedir(links);
    }
    drop_unlinked();
}

void forget_file(struct file *file) {
    if (--file->users > 0) return;
    size_told(file->dup);
    close(file->dup);
    free(file);
}

static bool in_flight(const struct request *request) {
    return request->state == QUEUED || request->state == TAKEN || request->state == RUNNING;
}

int in_flight_in(const char *id) {
    int n = 0;
    for (const struct ring *ring = rings; ring != NULL; ring = ring->next)
        for (int i = 0; i < ring->entries && ring->generation == generation; i++)
            n += in_flight(&ring->slots[i]) && memcmp(ring->slots[i].id, id, 16) == 0;
    return n;
}

/* A request in flight that these bytes must not meet: of two that only take bytes, none. */
const struct request *overlapping(const char *id, size_t at, size_t bytes, bool read) {
    for (const struct ring *ring = rings; ring != NULL; ring = ring->next)
        for (int i = 0; i < ring->entries && ring->generation == generation; i++) {
            const struct request *other = &ring->slots[i];
            if (in_flight(other) && (read || ring->for_read) && memcmp(other->id, id, 16) == 0 &&
                at < other->at + other->bytes && other->at < at + bytes)
                return other;
        }
    return NULL;
}

/* The daemon has seen these; when each is done is drawn. */
static void take(struct ring *ring, int n) {
    for (; n > 0; n--) {
        struct request *request = &ring->slots[ring->queue[ring->first_queued]];
        ring->first_queued = (ring->first_queued + 1) % ring->entries;
        ring->queued--;
        request->state = TAKEN;
        const uint64_t most_ns = 1 + 1000u * (uint64_t)plan.random_us;
        request->ready_ns = now_ns() + 1000u * (uint64_t)plan.delay_us + random_below(most_ns);
    }
    pthread_cond_broadcast(&work);
}

/* As real: with a depth of k > 0 full batches only; with -k and a timeout, too, since what counts
 * the time starts anew at every look. */
static void look_at(struct ring *ring) {
    const int batch = abs(ring->io_depth);
    if (ring->io_depth > 0 || (batch > 0 && ring->timeout > 0))
        while (ring->queued >= batch) take(ring, batch);
    else
        take(ring, ring->queued);
}

/* Another client's submit may let the daemon see this one's requests. */
void ring_prepared(struct ring *ring, int slot) {
    ring->queue[(ring->first_queued + ring->queued++) % ring->entries] = slot;
    if (random_below(2) == 0) look_at(ring);
}

void ring_submitted(struct ring *ring) {
    look_at(ring);
}

/* Of what is due one that is drawn; else when the next is due. */
static struct request *next_request(uint64_t *due_ns) {
    struct request *chosen = NULL;
    uint64_t found = 0;
    const uint64_t now = now_ns();
    const bool dead = daemon_dead(), hung = daemon_hung();
    *due_ns = now + (can_die() ? 20000000u : 1000000000u);
    for (struct ring *ring = rings; ring != NULL; ring = ring->next)
        for (int i = 0; i < ring->entries; i++) {
            struct request *request = &ring->slots[i];
            if (request->state != TAKEN || request->fate.never || ring->generation != generation)
                continue;
            if (dead || hung) {
                *due_ns = now + 1000000u;
            } else if (request->ready_ns > now) {
                *due_ns = request->ready_ns < *due_ns ? request->ready_ns : *due_ns;
            } else if (random_below(++found) == 0) {
                chosen = request;
            }
        }
    return chosen;
}

/* As 3FS counts: holes before data are zeros, or an error; what no data follows is not read. */
static int64_t read_file(const struct request *request, uint8_t *to, size_t bytes) {
    const int fd = request->file->dup;
    const off_t start = (off_t)request->offset, end = start + (off_t)bytes;
    off_t last = start;
    for (off_t at = start; at < end;) {
        const off_t data = lseek(fd, at, SEEK_DATA);
        if (data < 0 || data >= end) break;
        if (data > last && (request->ring->flags & FORBID_READ_HOLES) != 0) return -ENODATA;
        const off_t hole = lseek(fd, data, SEEK_HOLE);
        at = last = hole < end ? hole : end;
    }
    int64_t done = 0;
    while (done < last - start) {
        const ssize_t n = pread(fd, to + done, (size_t)(last - start - done), start + done);
        if (n < 0) return -errno;
        if (n == 0) break;
        done += n;
    }
    return done;
}

static int64_t write_file(const struct request *request, const uint8_t *from, size_t bytes) {
    size_t done = 0;
    if (plan.strict) will_write(request->file->dup, (off_t)(request->offset + bytes));
    while (done < bytes) {
        const off_t at = (off_t)(request->offset + done);
        const ssize_t n = pwrite(request->file->dup, from + done, bytes - done, at);
        if (n < 0) return -errno;
        done += (size_t)n;
    }
    return (int64_t)done;
}

static int64_t move_bytes(struct request *request, struct memory *memory) {
    uint8_t *bytes = memory->base + request->at;
    const bool read = request->ring->for_read;
    if (plan.strict && sum_of(bytes, request->bytes) != request->sum)
        die("memory changed while a %s was in flight: %zu bytes at %zu of its iov",
            read ? "read into it" : "write from it", request->bytes, request->at);
    size_t most = request->bytes;
    if (request->fate.most >= 0 && (size_t)request->fate.most < most)
        most = (size_t)request->fate.most;
    return read ? read_file(request, bytes, most) : write_file(request, bytes, most);
}

static void run(struct request *request) {
    struct ring *ring = request->ring;
    struct memory *memory = find_memory(request->id, ring->mount);
    request->state = RUNNING;
    if (memory == NULL || request->bytes > memory->size ||
        request->at > memory->size - request->bytes ||
        request->at / memory->block != (request->at + request->bytes - 1) / memory->block) {
        request->result = -EINVAL;
    } else if (request->file->generation != generation) {
        request->result = -EBADF;
    } else if (request->fate.error != 0) {
        request->result = -request->fate.error;
    } else {
        memory->users++;
        pthread_mutex_unlock(&lock);
        request->result = move_bytes(request, memory);
        pthread_mutex_lock(&lock);
        memory->users--;
    }
    request->state = DONE;
    forget_file(request->file);
    request->file = NULL;
    counters.in_flight--;
    *(ring->for_read ? &counters.read_bytes : &counters.written_bytes) +=
        request->result > 0 ? request->result : 0;
    ring->finished[(ring->first_done + ring->done++) % ring->entries] =
        (int)(request - ring->slots);
    pthread_cond_broadcast(&ring->some_done);
}

static void *serve(void *unused) {
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        uint64_t due_ns;
        struct request *request = next_request(&due_ns);
        if (request != NULL) {
            run(request);
            continue;
        }
        const struct timespec until = {.tv_sec = (time_t)(due_ns / 1000000000u),
                                       .tv_nsec = (long)(due_ns % 1000000000u)};
        pthread_cond_timedwait(&work, &lock, &until);
    }
    return NULL;
}

void start_daemon(void) {
    if (running_threads == 0) {
        pthread_condattr_t monotonic;
        pthread_condattr_init(&monotonic);
        pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
        pthread_cond_init(&work, &monotonic);
        pthread_condattr_destroy(&monotonic);
    }
    for (; running_threads < plan.threads; running_threads++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, NULL) != 0) die("no thread for the daemon");
        pthread_setname_np(thread, "3fs-standin");
        pthread_detach(thread);
    }
}
