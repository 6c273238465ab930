/* What it costs to make a small file that nobody sees half: microseconds a file, wall and CPU, per
 * way of naming it. cc -O2 -pthread publish_cost.c -o publish_cost && ./publish_cost FOLDER */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { kFiles = 1024, kThreads = 8, kRounds = 15, kFolders = 256, kMost = 65 << 10 };

enum way { kFinal, kBeside, kRename, kLink, kOwn, kUnnamed, kWays };
static const char *const names[kWays] = {
    "under its final name",     "beside it, rename",         "one folder, rename",
    "one folder, link, unlink", "a folder a thread, rename", "O_TMPFILE, link",
};

struct worker {
    pthread_t thread;
    int number, round;
    enum way way;
    size_t bytes;
    unsigned char *data;
};

static const char *root;

static void fail(const char *what) {
    fprintf(stderr, "publish_cost: %s: %s\n", what, strerror(errno));
    exit(1);
}

static double now_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec * 1e6 + (double)now.tv_nsec / 1e3;
}

/* In one folder of 256, as blocks are by the first digits of their names. */
static void final_name(char *path, const struct worker *w, int file) {
    const unsigned mixed = (unsigned)(w->round * kFiles + file) * 2654435761u;
    snprintf(path, 256, "%s/%d/%02x/%08x%08x", root, w->way, mixed >> 24, mixed,
             (unsigned)w->round);
}

static int written(const char *path, int flags, const struct worker *w) {
    const int fd = open(path, flags | O_WRONLY | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0) fail(path);
    if (pwrite(fd, w->data, w->bytes, 0) != (ssize_t)w->bytes) fail(path);
    return fd;
}

static void one(const struct worker *w, int file) {
    char path[256], aside[300];
    final_name(path, w, file);
    switch (w->way) {
        case kFinal:
            close(written(path, O_CREAT | O_EXCL, w));
            return;
        case kUnnamed: {
            snprintf(aside, sizeof aside, "%.*s", (int)(strrchr(path, '/') - path), path);
            const int fd = written(aside, O_TMPFILE, w);
            snprintf(aside, sizeof aside, "/proc/self/fd/%d", fd);
            if (linkat(AT_FDCWD, aside, AT_FDCWD, path, AT_SYMLINK_FOLLOW) != 0) fail("linkat");
            close(fd);
            return;
        }
        case kBeside:
            snprintf(aside, sizeof aside, "%s.tmp", path);
            break;
        case kOwn:
            snprintf(aside, sizeof aside, "%s/own/%d/%s", root, w->number, strrchr(path, '/') + 1);
            break;
        default:
            snprintf(aside, sizeof aside, "%s/aside/%s", root, strrchr(path, '/') + 1);
    }
    close(written(aside, O_CREAT | O_EXCL, w));
    if (w->way == kLink) {
        if (link(aside, path) != 0 || unlink(aside) != 0) fail("link");
    } else if (renameat2(AT_FDCWD, aside, AT_FDCWD, path, RENAME_NOREPLACE) != 0) {
        fail("renameat2");
    }
}

static void *work(void *given) {
    const struct worker *w = given;
    for (int file = w->number; file < kFiles; file += kThreads) one(w, file);
    return NULL;
}

/* Empty files are as quick to make beside as none, deleted ones are not: their inodes are looked
 * at. */
static void empty(const struct worker *w) {
    char path[256];
    for (int file = 0; file < kFiles; file++) {
        final_name(path, w, file);
        if (truncate(path, 0) != 0) fail(path);
    }
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values) {
    qsort(values, kRounds, sizeof *values, by_value);
    return values[kRounds / 2];
}

static void folder(const char *format, int a, int b) {
    char path[256], full[300];
    snprintf(path, sizeof path, format, a, b);
    snprintf(full, sizeof full, "%s/%s", root, path);
    if (mkdir(full, 0700) != 0 && errno != EEXIST) fail(full);
}

static void measure(size_t bytes, unsigned char *data, int base) {
    static double wall[kWays][kRounds], cpu[kWays][kRounds], ratio[kWays][kRounds];
    for (int round = -1; round < kRounds; round++) {
        for (int turn = 0; turn < kWays; turn++) {
            const int way = (turn + round + kWays) % kWays;
            struct worker workers[kThreads];
            const double start = now_us(CLOCK_MONOTONIC),
                         cpu_start = now_us(CLOCK_PROCESS_CPUTIME_ID);
            for (int i = 0; i < kThreads; i++) {
                workers[i] = (struct worker){.number = i,
                                             .round = base + round + 1,
                                             .way = (enum way)way,
                                             .bytes = bytes,
                                             .data = data};
                if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0)
                    fail("thread");
            }
            for (int i = 0; i < kThreads; i++) pthread_join(workers[i].thread, NULL);
            if (round >= 0) { /* the first one is not counted: it makes the folders grow */
                wall[way][round] = (now_us(CLOCK_MONOTONIC) - start) / kFiles;
                cpu[way][round] = (now_us(CLOCK_PROCESS_CPUTIME_ID) - cpu_start) / kFiles;
            }
            empty(&workers[0]);
        }
    }
    for (int way = 0; way < kWays; way++)
        for (int round = 0; round < kRounds; round++)
            ratio[way][round] = wall[way][round] / wall[kFinal][round];
    for (int way = kWays - 1; way >= 0; way--) /* median() sorts: ratios are taken first */
        printf("| %s | %.0f KiB | %.1f | %.1f | %.2f |\n", names[way], (double)bytes / 1024,
               median(wall[way]), median(cpu[way]), median(ratio[way]));
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr,
                "usage: publish_cost FOLDER: an empty folder on the file system in question\n");
        return 2;
    }
    root = argv[1];
    unsigned char *data =
        mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) fail("mmap");
    madvise(data, 2 << 20, MADV_HUGEPAGE);
    for (size_t i = 0; i < 2 << 20; i++) data[i] = (unsigned char)(i * 2654435761u >> 13);
    folder("aside", 0, 0);
    folder("own", 0, 0);
    for (int i = 0; i < kThreads; i++) folder("own/%d", i, 0);
    for (int way = 0; way < kWays; way++) {
        folder("%d", way, 0);
        for (int i = 0; i < kFolders; i++) folder("%d/%02x", way, i);
    }
    printf(
        "| way | bytes | us a file | CPU us a file | of the first |\n| --- | --- | --- | --- | --- "
        "|\n");
    measure(64 << 10, data, 0);
    measure(68 << 10, data, kRounds + 1);
    return 0;
}
