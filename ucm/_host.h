/* SPDX-License-Identifier: MIT
 *
 * What the Python package needs in C besides ucm/store_v1.h: opening libraries, submitting
 * transfers without the GIL, and a log that native threads can write without ever entering Python.
 */
#ifndef UCM_HOST_H
#define UCM_HOST_H

#include "_bridge.h"
#include "ucm/store_v1.h"

/* The library's descriptor, or NULL and the reason. The library is never closed. */
const ucm_plugin *ucmh_open_library(const char *path, char *reason, size_t reason_bytes);

/* Room for a lower layout, and behind it what nobody may write. */
typedef struct ucmh_lower_layout {
    ucm_layout layout;
    unsigned char canary[64];
} ucmh_lower_layout;

typedef struct ucmh_task ucmh_task;

/* Where a submit leaves what it made, or why not. */
typedef struct ucmh_submitted {
    ucmh_task *task;
    ucm_task number;
    ucm_status ended; /* UCM_PENDING, or what ucmh_task_wait would say already */
    ucm_error error;
} ucmh_submitted;

/* Load (dump = 0) or dump; while the store is BUSY tries again for up to busy_ms. deadline_ms
 * counts from now, 0: none. On UCM_OK out->task is to be freed with ucmh_task_free; the arrays may
 * go, the memory at the addresses may not before the task has finished. */
ucm_status ucmh_submit(ucm_store *store, int dump, size_t n, const uint8_t *block_ids,
                       const uint32_t *shard_index, const uint64_t *addresses,
                       const uint64_t *lengths, const uint64_t *raw_lengths, const uint32_t *depths,
                       uint64_t flags, uint64_t event, uint64_t tag, int32_t priority,
                       int64_t deadline_ms, int64_t busy_ms, ucmh_submitted *out);
/* UCM_PENDING, UCM_OK, or the first status by index that is neither. */
ucm_status ucmh_task_wait(ucmh_task *task, int64_t timeout_ms);
/* Valid once finished. */
const ucm_result *ucmh_task_results(ucmh_task *task);
/* How many are not UCM_OK; fills up to cap of their indexes. */
size_t ucmh_task_failures(ucmh_task *task, size_t *indexes, size_t cap);
uint64_t ucmh_task_bytes(ucmh_task *task);
void ucmh_task_free(ucmh_task *task);

/* Ends of tasks, told through one descriptor that an event loop watches. Never freed: a transfer
 * may end at any time. */
typedef struct ucmh_events ucmh_events;
typedef struct ucmh_event {
    uint64_t token;
    struct ucmh_event *next;
    ucmh_events *events;
} ucmh_event;

/* NULL: errno says why. */
ucmh_events *ucmh_events_new(void);
/* Readable while there is something to take. */
int ucmh_events_fd(const ucmh_events *events);
/* A list of what was told since the last time, for ucmh_event_free one by one. [any-thread] */
ucmh_event *ucmh_events_take(ucmh_events *events);
void ucmh_event_free(ucmh_event *event);
/* 0: the task's end will be told with the token of its first watch; 1: it has ended and nothing
 * will be told; -1: out of memory. */
int ucmh_task_watch(ucmh_task *task, ucmh_events *events, uint64_t token);

typedef struct ucmh_log_line {
    int32_t level;
    int32_t thread_id;
    uint64_t dropped; /* lines lost before this one: nobody read in time */
    char plugin[32];
    char message[1024];
} ucmh_log_line;

const ucm_host *ucmh_host(void);
void ucmh_log_level(int32_t level);
/* 1: a line; 0: none within timeout_ms; -1: the log was stopped. */
int ucmh_log_next(ucmh_log_line *line, int64_t timeout_ms);
/* After the line has been dealt with. */
void ucmh_log_done(void);
/* Lines not dealt with yet. */
size_t ucmh_log_pending(void);
void ucmh_log_stop(void);
/* In a forked child, before anything else: its ring is empty and its lock free. */
void ucmh_log_after_fork(void);

ucm_status ucmh_lookup(ucm_store *store, int32_t mode, size_t n, const uint8_t *block_ids,
                       const uint32_t *depths, int64_t deadline_ms, size_t *hits, uint8_t *tiers,
                       ucm_error *err);
enum { UCMH_PREFETCH = 0, UCMH_TOUCH = 1, UCMH_REMOVE = 2 };
ucm_status ucmh_ids(ucm_store *store, int what, size_t n, const uint8_t *block_ids,
                    int64_t deadline_ms, ucm_error *err);
ucm_status ucmh_cancel(ucm_store *store, ucm_task task, ucm_error *err);
ucm_status ucmh_drain(ucm_store *store, int64_t timeout_ms, ucm_report *report, ucm_error *err);
ucm_status ucmh_close(ucm_store *store, int64_t timeout_ms, ucm_report *report, ucm_error *err);
ucm_status ucmh_metrics(ucm_store *store, size_t n, uint64_t *values, ucm_error *err);
ucm_status ucmh_ask_lower_layout(const ucm_plugin *plugin, const ucm_layout_args *args,
                                 ucm_layout *out, ucm_error *err);
ucm_status ucmh_open(const ucm_plugin *plugin, const ucm_open_args *args, ucm_store **out,
                     ucm_error *err);
#endif
