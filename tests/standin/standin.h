/* SPDX-License-Identifier: MIT
 *
 * What the parts of the stand-in share: the structs of USRBIO as clients see them, rings, files.
 */
#ifndef UCM_TESTS_STANDIN_H
#define UCM_TESTS_STANDIN_H

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

struct hf3fs_iov {
    uint8_t *base;
    void *iovh;
    char id[16];
    char mount_point[256];
    size_t size, block_size;
    int numa;
};

struct hf3fs_ior {
    struct hf3fs_iov iov;
    void *iorh;
    char mount_point[256];
    bool for_read;
    int io_depth, priority, timeout;
    uint64_t flags;
};

struct hf3fs_cqe {
    int32_t index, reserved;
    int64_t result;
    const void *userdata;
};

#define AT(type, member, offset) \
    _Static_assert(offsetof(struct type, member) == (offset), #type "." #member)
AT(hf3fs_iov, base, 0);
AT(hf3fs_iov, iovh, 8);
AT(hf3fs_iov, id, 16);
AT(hf3fs_iov, mount_point, 32);
AT(hf3fs_iov, size, 288);
AT(hf3fs_iov, block_size, 296);
AT(hf3fs_iov, numa, 304);
AT(hf3fs_ior, iov, 0);
AT(hf3fs_ior, iorh, 312);
AT(hf3fs_ior, mount_point, 320);
AT(hf3fs_ior, for_read, 576);
AT(hf3fs_ior, io_depth, 580);
AT(hf3fs_ior, priority, 584);
AT(hf3fs_ior, timeout, 588);
AT(hf3fs_ior, flags, 592);
AT(hf3fs_cqe, index, 0);
AT(hf3fs_cqe, reserved, 4);
AT(hf3fs_cqe, result, 8);
AT(hf3fs_cqe, userdata, 16);
_Static_assert(sizeof(struct hf3fs_iov) == 312, "hf3fs_iov");
_Static_assert(sizeof(struct hf3fs_ior) == 600, "hf3fs_ior");
_Static_assert(sizeof(struct hf3fs_cqe) == 24, "hf3fs_cqe");

enum { ALLOW_READ_UNCOMMITTED = 1, FORBID_READ_HOLES = 2 };

/* A descriptor that is registered; requests keep it after it is deregistered. */
struct file {
    int fd, dup, access, users;
    dev_t dev;
    ino_t ino;
    int generation;
};

/* What is to go wrong with a request. */
struct fate {
    int error;
    long most; /* bytes moved, of those that there are; -1: all */
    bool never;
};

enum state { FREE, QUEUED, TAKEN, RUNNING, DONE };

struct request {
    enum state state;
    struct ring *ring;
    struct file *file;
    struct fate fate;
    char id[16];
    const uint8_t *memory;
    size_t at, offset, bytes;
    const void *userdata;
    uint64_t sum, ready_ns;
    int64_t result;
};

struct ring {
    struct ring *next;
    char mount[256];
    bool for_read;
    int io_depth, timeout, generation;
    uint64_t flags;
    int entries, queued, first_queued, done, first_done;
    struct request *slots;
    int *queue, *finished; /* circles of indices of slots */
    pid_t preparer, waiter;
    pthread_cond_t some_done; /* with `lock` */
};

/* Guards everything but the bytes that move: rings, files, memory, the plan, the counters. */
extern pthread_mutex_t lock;

struct counters {
    long reads, writes, read_bytes, written_bytes, linked_bytes, submits, waits;
    long registrations, deregistrations, rings, iovs, in_flight_most, renamed_unsynced, fsyncs;
    long registered, open_rings, open_iovs, in_flight, closed_registered, stale_links;
};
extern struct counters counters;
extern int generation; /* of the daemon; a new one knows nothing of what the old one was told */

bool in_child(void);
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* plan.c: what the environment says is to go wrong. */
struct plan {
    long delay_us, random_us, threads, dead_after;
    bool strict;
    char *dead_file, *hung_file, *log_file;
};
extern struct plan plan;
void read_plan(void);
struct fate next_fate(bool for_read);
uint64_t random_below(uint64_t n);
bool can_die(void); /* without `lock` */
bool daemon_dead(void);
bool daemon_hung(void);
void write_log(void);

/* daemon.c: everything with `lock` held. */
void start_daemon(void);
void ring_prepared(struct ring *ring, int slot);
void ring_submitted(struct ring *ring);
void forget_file(struct file *file);
struct memory;
struct memory *find_memory(const char *id, const char *mount);
void drop_unlinked(void);
bool link_made(const char *mount, const char *name);
void know_mount(const char *mount);
void daemon_died(void);
int in_flight_in(const char *id);
const struct request *overlapping(const char *id, size_t at, size_t bytes, bool read);
void name_of(const char *id, char name[37]);
uint64_t sum_of(const uint8_t *bytes, size_t n);
bool is_mounted(const char *path);
extern struct ring *rings;

/* calls.c: system calls on files of the mount. */
void take_calls(void);
void will_write(int fd, off_t end); /* the only one without `lock` */
void size_told(int fd);

/* hf3fs.c */
void note_closed(int fd);

#endif
