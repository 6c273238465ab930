/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "_host.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "_spin.h"
#include "ucm/task_v1.h"

#ifndef UCM_STORE_VERSION
#define UCM_STORE_VERSION "of a test"
#endif

const ucm_plugin *ucmh_open_library(const char *path, char *reason, size_t reason_bytes) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    const ucm_plugin *(*entry)(void);
    const ucm_plugin *plugin;
    if (!library) {
        snprintf(reason, reason_bytes, "it does not load: %s", dlerror());
        return NULL;
    }
    *(void **)&entry = dlsym(library, UCM_PLUGIN_SYMBOL);
    if (!entry) {
        snprintf(reason, reason_bytes, "it has no symbol " UCM_PLUGIN_SYMBOL ", %s",
                 dlsym(library, "ucm_store_plugin_v2")
                     ? "only one of StoreV2: it needs a newer ucm-store"
                     : "so it is not a StoreV1 plugin");
        return NULL;
    }
    plugin = entry();
    if (!plugin) snprintf(reason, reason_bytes, UCM_PLUGIN_SYMBOL "() returned NULL");
    return plugin;
}

struct ucmh_events {
    int fd;
    ucmh_event *told; /* atomic, a stack: native threads push, a reader takes all */
};

struct ucmh_task {
    ucm_waiter *waiter;
    int refs;          /* atomic: the owner's and the running transfer's */
    unsigned ended;    /* atomic: the results are there */
    int soon;          /* that may take less time than to fall asleep */
    ucmh_event *watch; /* atomic: NULL, what to tell at the end, or ENDED */
};

/* One thread waits for long tasks, and another for short ones. */
static __thread spin for_ends;

static ucmh_event ended_event;
#define ENDED (&ended_event)

ucmh_events *ucmh_events_new(void) {
    ucmh_events *events = calloc(1, sizeof *events);
    if (!events) return NULL;
    events->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (events->fd >= 0) return events;
    free(events);
    return NULL;
}

int ucmh_events_fd(const ucmh_events *events) {
    return events->fd;
}

static void tell(ucmh_event *event) {
    ucmh_events *events = event->events;
    const uint64_t one = 1;
    ucmh_event *first = __atomic_load_n(&events->told, __ATOMIC_RELAXED);
    do {
        event->next = first;
    } while (!__atomic_compare_exchange_n(&events->told, &first, event, 1, __ATOMIC_ACQ_REL,
                                          __ATOMIC_RELAXED));
    /* Where another waits to be taken, its reader has yet to come, and takes both. */
    if (!first && write(events->fd, &one, sizeof one) < 0) return; /* full, so it is readable */
}

ucmh_event *ucmh_events_take(ucmh_events *events) {
    uint64_t count;
    /* Read first: what is told after it makes the descriptor readable again. */
    if (read(events->fd, &count, sizeof count) < 0) count = 0;
    return __atomic_exchange_n(&events->told, NULL, __ATOMIC_ACQ_REL);
}

void ucmh_event_free(ucmh_event *event) {
    free(event);
}

static void drop_task(ucmh_task *task) {
    if (__atomic_sub_fetch(&task->refs, 1, __ATOMIC_ACQ_REL) == 0) free(task);
}

static void task_ended(void *user) {
    ucmh_task *task = user;
    __atomic_store_n(&task->ended, 1, __ATOMIC_RELEASE);
    ucmh_event *watch = __atomic_exchange_n(&task->watch, ENDED, __ATOMIC_ACQ_REL);
    if (watch) tell(watch);
    drop_task(task);
}

int ucmh_task_watch(ucmh_task *task, ucmh_events *events, uint64_t token) {
    ucmh_event *none = NULL, *event = calloc(1, sizeof *event);
    if (!event) return -1;
    event->token = token;
    event->events = events;
    if (__atomic_compare_exchange_n(&task->watch, &none, event, 0, __ATOMIC_ACQ_REL,
                                    __ATOMIC_ACQUIRE))
        return 0;
    free(event);
    return none == ENDED ? 1 : 0;
}

/* Of a task that has ended, without the mutex, which the store may have. */
static ucm_status end_of(const ucmh_task *task) {
    for (size_t i = 0; i < task->waiter->n; i++)
        if (task->waiter->results[i].status != UCM_OK) return task->waiter->results[i].status;
    return UCM_OK;
}

ucm_status ucmh_submit(ucm_store *store, int dump, size_t n, const uint8_t *block_ids,
                       const uint32_t *shard_index, const uint64_t *addresses,
                       const uint64_t *lengths, const uint64_t *raw_lengths, const uint32_t *depths,
                       uint64_t flags, uint64_t event, uint64_t tag, int32_t priority,
                       int64_t deadline_ms, int64_t busy_ms, ucmh_submitted *out) {
    const int64_t start = now_ns();
    int64_t pause_ns = 20000;
    ucm_status status;
    ucm_transfer transfer = {0};
    ucmh_task *made = calloc(1, sizeof *made);
    out->error.struct_size = sizeof out->error;
    if (made) {
        made->refs = 2;
        made->waiter = ucm_waiter_new(n, task_ended, made);
    }
    if (!made || !made->waiter) {
        free(made);
        return ucm_fail(&out->error, UCM_UNAVAILABLE, ENOMEM, "out of memory");
    }
    transfer.struct_size = sizeof transfer;
    transfer.flags = flags;
    transfer.n = n;
    transfer.block_ids = block_ids;
    transfer.shard_index = shard_index;
    transfer.addresses = (void *const *)(uintptr_t)addresses;
    transfer.lengths = lengths;
    transfer.raw_lengths = raw_lengths;
    transfer.depths = depths;
    transfer.event = event;
    transfer.tag = tag;
    transfer.priority = priority;
    transfer.deadline_ns = deadline_ms > 0 ? start + deadline_ms * 1000000 : 0;
    ucmb_python_submits();
    for (;;) {
        status = ucm_waiter_submit(made->waiter, dump ? ucm_dump : ucm_load, store, &transfer,
                                   &out->number, &out->error);
        if (status != UCM_BUSY || now_ns() - start >= busy_ms * 1000000) break;
        struct timespec pause = {0, (long)pause_ns};
        nanosleep(&pause, NULL);
        if (pause_ns < 2000000) pause_ns *= 2;
    }
    made->soon = ucmb_python_submitted();
    if (status != UCM_OK) {
        drop_task(made); /* of the transfer that never ran */
        ucmh_task_free(made);
        made = NULL;
    }
    out->ended = UCM_PENDING;
    if (made && __atomic_load_n(&made->ended, __ATOMIC_ACQUIRE)) out->ended = end_of(made);
    out->task = made;
    return status;
}

ucm_status ucmh_task_wait(ucmh_task *task, int64_t timeout_ms) {
    if (timeout_ms == 0) return ucm_waiter_check(task->waiter);
    ucmb_python_waits();
    if (!task->soon || !spin_while(&for_ends, &task->ended, 0, SPIN_NS))
        return ucm_waiter_wait(task->waiter, timeout_ms);
    return end_of(task);
}

const ucm_result *ucmh_task_results(ucmh_task *task) {
    return task->waiter->results;
}

size_t ucmh_task_failures(ucmh_task *task, size_t *indexes, size_t cap) {
    size_t found = 0;
    for (size_t i = 0; i < task->waiter->n; i++)
        if (task->waiter->results[i].status != UCM_OK) {
            if (found < cap) indexes[found] = i;
            found++;
        }
    return found;
}

uint64_t ucmh_task_bytes(ucmh_task *task) {
    uint64_t bytes = 0;
    for (size_t i = 0; i < task->waiter->n; i++) bytes += task->waiter->results[i].length;
    return bytes;
}

void ucmh_task_free(ucmh_task *task) {
    ucm_waiter_forget(task->waiter);
    drop_task(task);
}

/* A ring: native threads write, one Python thread reads. When it is full the newest line is
 * dropped. */
enum { LOG_LINES = 512 };
static struct {
    pthread_mutex_t mutex; /* guards all below */
    pthread_cond_t ready;
    ucmh_log_line lines[LOG_LINES];
    size_t first, count, pending; /* pending: with the one that the reader works on */
    uint64_t dropped;
    int stopped;
} log_ring = {.mutex = PTHREAD_MUTEX_INITIALIZER, .ready = PTHREAD_COND_INITIALIZER};
static int32_t log_level = UCM_LOG_WARN;

static int32_t host_log_level(void *ctx) {
    (void)ctx;
    return __atomic_load_n(&log_level, __ATOMIC_RELAXED);
}

static void host_log(void *ctx, int32_t level, const char *plugin, const char *message) {
    (void)ctx;
    pthread_mutex_lock(&log_ring.mutex);
    if (log_ring.stopped || log_ring.count == LOG_LINES) {
        log_ring.dropped++;
    } else {
        ucmh_log_line *line = &log_ring.lines[(log_ring.first + log_ring.count) % LOG_LINES];
        line->level = level;
        line->thread_id = (int32_t)syscall(SYS_gettid);
        line->dropped = log_ring.dropped;
        snprintf(line->plugin, sizeof line->plugin, "%s", plugin);
        snprintf(line->message, sizeof line->message, "%s", message);
        log_ring.dropped = 0;
        log_ring.count++;
        log_ring.pending++;
        pthread_cond_signal(&log_ring.ready);
    }
    pthread_mutex_unlock(&log_ring.mutex);
}

const ucm_host *ucmh_host(void) {
    static const ucm_host host = {
        .struct_size = sizeof(ucm_host),
        .log_level = host_log_level,
        .log = host_log,
        .abi_minor = UCM_ABI_MINOR,
        .version = "ucm-store " UCM_STORE_VERSION,
    };
    return &host;
}

void ucmh_log_level(int32_t level) {
    __atomic_store_n(&log_level, level, __ATOMIC_RELAXED);
}

int ucmh_log_next(ucmh_log_line *line, int64_t timeout_ms) {
    struct timespec until;
    int rc = 0, answer = 0;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += (time_t)(timeout_ms / 1000);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000;
    }
    pthread_mutex_lock(&log_ring.mutex);
    while (log_ring.count == 0 && !log_ring.stopped && rc == 0)
        rc = pthread_cond_timedwait(&log_ring.ready, &log_ring.mutex, &until);
    if (log_ring.count) {
        *line = log_ring.lines[log_ring.first];
        log_ring.first = (log_ring.first + 1) % LOG_LINES;
        log_ring.count--;
        answer = 1;
    } else if (log_ring.stopped) {
        answer = -1;
    }
    pthread_mutex_unlock(&log_ring.mutex);
    return answer;
}

void ucmh_log_done(void) {
    pthread_mutex_lock(&log_ring.mutex);
    log_ring.pending--;
    pthread_mutex_unlock(&log_ring.mutex);
}

size_t ucmh_log_pending(void) {
    pthread_mutex_lock(&log_ring.mutex);
    const size_t pending = log_ring.pending;
    pthread_mutex_unlock(&log_ring.mutex);
    return pending;
}

void ucmh_log_after_fork(void) {
    pthread_mutex_init(&log_ring.mutex, NULL);
    pthread_cond_init(&log_ring.ready, NULL);
    log_ring.first = log_ring.count = log_ring.pending = 0;
    log_ring.dropped = 0;
}

void ucmh_log_stop(void) {
    pthread_mutex_lock(&log_ring.mutex);
    log_ring.stopped = 1;
    pthread_cond_broadcast(&log_ring.ready);
    pthread_mutex_unlock(&log_ring.mutex);
}

ucm_status ucmh_lookup(ucm_store *store, int32_t mode, size_t n, const uint8_t *block_ids,
                       const uint32_t *depths, int64_t deadline_ms, size_t *hits, uint8_t *tiers,
                       ucm_error *err) {
    ucm_lookup_args args = {0};
    args.struct_size = sizeof args;
    args.mode = mode;
    args.n = n;
    args.block_ids = block_ids;
    args.depths = depths;
    args.hits = hits;
    args.tiers = tiers;
    args.deadline_ns = deadline_ms > 0 ? now_ns() + deadline_ms * 1000000 : 0;
    return ucm_lookup(store, &args, err);
}

ucm_status ucmh_ids(ucm_store *store, int what, size_t n, const uint8_t *block_ids,
                    int64_t deadline_ms, ucm_error *err) {
    ucm_ids_args args = {0};
    args.struct_size = sizeof args;
    args.n = n;
    args.block_ids = block_ids;
    args.deadline_ns = deadline_ms > 0 ? now_ns() + deadline_ms * 1000000 : 0;
    if (what == UCMH_REMOVE) return ucm_remove(store, &args, err);
    return what == UCMH_TOUCH ? ucm_touch(store, &args, err) : ucm_prefetch(store, &args, err);
}

ucm_status ucmh_cancel(ucm_store *store, ucm_task task, ucm_error *err) {
    return ucm_cancel(store, task, err);
}

ucm_status ucmh_drain(ucm_store *store, int64_t timeout_ms, ucm_report *report, ucm_error *err) {
    const ucm_wait_args args = {sizeof args, 0, timeout_ms};
    return ucm_drain(store, &args, report, err);
}

ucm_status ucmh_close(ucm_store *store, int64_t timeout_ms, ucm_report *report, ucm_error *err) {
    const ucm_wait_args args = {sizeof args, 0, timeout_ms};
    return ucm_close(store, &args, report, err);
}

ucm_status ucmh_metrics(ucm_store *store, size_t n, uint64_t *values, ucm_error *err) {
    const ucm_metrics_args args = {sizeof args, 0, n, values};
    return ucm_metrics(store, &args, err);
}

ucm_status ucmh_ask_lower_layout(const ucm_plugin *plugin, const ucm_layout_args *args,
                                 ucm_layout *out, ucm_error *err) {
    return plugin->lower_layout(args, out, err);
}

ucm_status ucmh_open(const ucm_plugin *plugin, const ucm_open_args *args, ucm_store **out,
                     ucm_error *err) {
    return plugin->open(args, out, err);
}
