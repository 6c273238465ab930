/* SPDX-License-Identifier: MIT
 *
 * A store whose work Python does. Native threads leave jobs and never enter Python; threads of
 * Python pull them, without the GIL while they wait, and answer.
 */
#ifndef UCM_BRIDGE_H
#define UCM_BRIDGE_H

#include "ucm/store_v1.h"

enum {
    UCMB_LOAD = 0,
    UCMB_DUMP = 1,
    UCMB_LOOKUP = 2,
    UCMB_REMOVE = 3,
    UCMB_PREFETCH = 4,
    UCMB_TOUCH = 5,
    UCMB_DRAIN = 6,
    UCMB_CLOSE = 7
};

/* What every Python store counts, in the order of its table of metrics. */
enum {
    UCMB_DUMP_SHARDS = 0,
    UCMB_DUMP_BYTES = 1,
    UCMB_DUMP_OUT_BYTES = 2,
    UCMB_DUMP_BUSY_NS = 3,
    UCMB_LOAD_SHARDS = 4,
    UCMB_LOAD_BYTES = 5,
    UCMB_LOAD_IN_BYTES = 6,
    UCMB_LOAD_BUSY_NS = 7,
    UCMB_FAILED_SHARDS = 8,
    UCMB_CALLS = 9,
    UCMB_METRICS = 10
};

typedef struct ucmb_bridge ucmb_bridge;

/* One transfer or call, with copies of its arrays; those that were not given are NULL. */
typedef struct ucmb_job {
    struct ucmb_job *next; /* in the same batch */
    uint64_t number;
    int32_t kind; /* UCMB_LOAD and so on */
    int32_t priority;
    uint64_t flags; /* UCM_TRANSFER_* */
    uint64_t tag;
    int64_t deadline_ns;
    size_t n;
    uint64_t stride; /* from one shard to the next, all of one piece and one length; 0: not so */
    uintptr_t *addresses;
    uint64_t *lengths;
    uint64_t *raw_lengths;
    uint32_t *shard_index;
    uint32_t *depths;
    uint8_t *block_ids;
    uint8_t *tiers;    /* lookup: n, for the answer */
    int32_t reports;   /* drain: 1 if `stored` of the answer counts, else what dumps ended with */
    ucm_report report; /* drain: stored, lost and unfinished */
} ucmb_job;

typedef struct ucmb_settings {
    const ucm_layout *layout; /* NULL: lookup only */
    ucm_store *lower;         /* outlives the bridge; NULL at the bottom */
    uint64_t capabilities;
    uint64_t methods;  /* 1 << UCMB_LOAD and so on: the others go to `lower`, or do nothing */
    int32_t threads;   /* that take all jobs; one more takes calls only */
    size_t max_shards; /* accepted and not ended; one transfer may overshoot */
    uint64_t max_bytes;
} ucmb_settings;

/* NULL: errno says why. Every one of threads + 1 workers is to call ucmb_leave at its end. */
ucmb_bridge *ucmb_new(const ucmb_settings *settings);
ucm_store *ucmb_store(ucmb_bridge *bridge);
/* Waits for work: a call, or some transfers of one kind. NULL: the worker leaves. */
ucmb_job *ucmb_pull(ucmb_bridge *bridge, int calls_only);
void ucmb_leave(ucmb_bridge *bridge);
/* Ends one transfer. NULL: all 0. The job is gone then. */
void ucmb_end(ucmb_bridge *bridge, ucmb_job *job, const int32_t *statuses, const int32_t *errnos,
              const uint32_t *flags, const uint64_t *lengths);
/* Answers a call. The job is gone then. */
void ucmb_answer(ucmb_bridge *bridge, ucmb_job *job, ucm_status status, int32_t os_errno,
                 const char *message);
/* As above, for the last of what was pulled, and then as ucmb_pull without the interpreter between
 * the two; NULL also where ucmb_pull is to be called because others are in the interpreter. */
ucmb_job *ucmb_end_pull(ucmb_bridge *bridge, int calls_only, ucmb_job *job, const int32_t *statuses,
                        const int32_t *errnos, const uint32_t *flags, const uint64_t *lengths);
ucmb_job *ucmb_answer_pull(ucmb_bridge *bridge, int calls_only, ucmb_job *job, ucm_status status,
                           int32_t os_errno, const char *message);
/* A transfer will come as soon as its arguments are ready: a worker wakes up meanwhile. */
void ucmb_expect(ucm_store *store);
/* Around a submit by a thread of Python, which wants the interpreter back at once. 1 after it: a
 * worker that was awake has the transfer, so that it may be worth while to look for its end. */
void ucmb_python_submits(void);
int ucmb_python_submitted(void);
/* A thread of Python waits for a task, without the interpreter. */
void ucmb_python_waits(void);
void ucmb_count(ucmb_bridge *bridge, int which, uint64_t value);
/* Python is about to end: what waits and what comes is UCM_CLOSED, and the workers leave. */
void ucmb_shut(ucmb_bridge *bridge);
#endif
