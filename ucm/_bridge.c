/* SPDX-License-Identifier: MIT */
#define _GNU_SOURCE
#include "_bridge.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "_spin.h"

enum { MAX_HINTS = 64, MAX_BATCH_SHARDS = 1024, NS_PER_MS = 1000000 };

/* For a transfer that is sure to come once the arguments of some hundred shards are read. */
enum { EXPECTED_NS = 400000 };

enum { QUEUED, RUNNING, ENDING };

struct job {
    ucmb_job open;              /* what Python sees of it */
    struct job *before, *after; /* among the live ones, by number */
    int state;
    int refs;          /* of a call: its caller's and its worker's */
    unsigned answered; /* of a call, atomic; also told by cond */
    unsigned waits;    /* of a transfer that Python submitted: `python_waits` then */
    int of_python, handed_over;
    pthread_cond_t cond;
    ucm_status status;
    int32_t os_errno;
    char message[400];
    uint64_t bytes;
    int64_t started_ns; /* of the first of a batch */
    void (*done)(void *ctx, size_t i, const ucm_result *result);
    void (*finished)(void *ctx);
    void *ctx;
};

struct queue {
    struct job *first, *last;
    size_t n;
};

/* Where workers sleep until they are woken, each for itself. */
struct bed {
    pthread_cond_t cond;
    int asleep, woken; /* those woken count as asleep until they are up */
};

struct ucmb_bridge {
    ucm_store base;
    ucm_store *lower;
    uint64_t methods;
    uint32_t n_segments;
    int32_t threads;
    size_t max_shards;
    uint64_t max_bytes;
    unsigned generation;
    uint64_t values[UCMB_METRICS]; /* atomic */
    unsigned news;                 /* atomic: changes when there is something to do */
    spin for_work, for_expected, for_answers, for_waits;
    pthread_t keeper;

    pthread_mutex_t mutex; /* guards all below, and the jobs until they are taken */
    struct bed work;       /* of workers that take everything */
    struct bed call;       /* of the one that takes calls only */
    pthread_cond_t keep;   /* for the keeper */
    pthread_cond_t ended;  /* a job is live no longer */
    struct queue calls, transfers, ending;
    struct job *oldest, *newest; /* live: neither answered nor finished */
    uint64_t numbers, last_dump;
    size_t shards; /* that take room */
    uint64_t bytes;
    uint64_t stored;       /* since the previous report */
    int64_t keeper_until;  /* 0: it sleeps until it is woken */
    struct job *drain;     /* Python drains: one at a time, it may outlive its caller */
    uint64_t drain_covers; /* jobs up to this number */
    struct job *close;
    int hints;
    int refs;            /* the store's own and one a worker */
    struct bed *looking; /* whose worker looks at `news`, and will for a job before it sleeps */
    int expected; /* a worker was woken for a transfer that is to come, and has not looked for it */
    int inside;   /* workers with a job */
    int closing, shut, stopped;
};

static unsigned generation;   /* atomic: forks between the first process and this one */
static unsigned python_waits; /* atomic: how often a thread of Python began to wait for a task */
static __thread int python_submits, handed_over;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void forked(void) {
    __atomic_add_fetch(&generation, 1, __ATOMIC_RELAXED);
}

static void watch_forks(void) {
    pthread_atfork(NULL, NULL, forked);
}

static int of_another_process(const ucmb_bridge *b) {
    return b->generation != __atomic_load_n(&generation, __ATOMIC_RELAXED);
}

static int64_t until_of(int64_t timeout_ms) {
    if (timeout_ms < 0 || timeout_ms > INT64_MAX / 2 / NS_PER_MS) return 0;
    return now_ns() + timeout_ms * NS_PER_MS;
}

static int64_t left_of(int64_t until_ns) {
    if (until_ns == 0) return -1;
    const int64_t left = until_ns - now_ns();
    return left > 0 ? (left + NS_PER_MS - 1) / NS_PER_MS : 0;
}

static void cond_init(pthread_cond_t *cond) {
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

/* until_ns 0: no limit. 0 once the time is over. */
static int wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, int64_t until_ns) {
    if (until_ns == 0) return pthread_cond_wait(cond, mutex) == 0;
    const struct timespec until = {until_ns / 1000000000, (long)(until_ns % 1000000000)};
    return pthread_cond_timedwait(cond, mutex, &until) == 0;
}

/* What is held under it is short, so whoever finds it taken looks again before it sleeps. */
static void mutex_init(pthread_mutex_t *mutex) {
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
#ifdef __GLIBC__
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
#endif
    pthread_mutex_init(mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}

static void push(struct queue *queue, struct job *job) {
    job->open.next = NULL;
    if (queue->last)
        queue->last->open.next = &job->open;
    else
        queue->first = job;
    queue->last = job;
    queue->n++;
}

static struct job *next_of(struct job *job) {
    return (struct job *)job->open.next;
}

static void take_out(struct queue *queue, struct job *job) {
    struct job *before = NULL;
    for (struct job *at = queue->first; at != job; at = next_of(at)) before = at;
    if (before)
        before->open.next = job->open.next;
    else
        queue->first = next_of(job);
    if (queue->last == job) queue->last = before;
    queue->n--;
}

static void make_live(ucmb_bridge *b, struct job *job) {
    job->open.number = ++b->numbers;
    job->before = b->newest;
    if (b->newest)
        b->newest->after = job;
    else
        b->oldest = job;
    b->newest = job;
}

static void unlink_live(ucmb_bridge *b, struct job *job) {
    if (job->before)
        job->before->after = job->after;
    else
        b->oldest = job->after;
    if (job->after)
        job->after->before = job->before;
    else
        b->newest = job->before;
    pthread_cond_broadcast(&b->ended);
}

/* Locked. 1: one that slept is on its way. */
static int wake(struct bed *bed) {
    if (bed->asleep == bed->woken) return 0;
    bed->woken++;
    pthread_cond_signal(&bed->cond);
    return 1;
}

/* Locked. */
static void wake_all(ucmb_bridge *b) {
    __atomic_add_fetch(&b->news, 1, __ATOMIC_RELEASE);
    while (wake(&b->work)) continue;
    while (wake(&b->call)) continue;
}

/* Locked. One worker is enough for a job; those at work look for the next before they sleep. */
static void wake_one(ucmb_bridge *b, int for_call) {
    __atomic_add_fetch(&b->news, 1, __ATOMIC_RELEASE);
    /* The next job needs another than who looks, or was woken for this one and finds it. */
    const int coming = !for_call && b->expected && b->work.woken && !b->calls.first;
    handed_over = 1;
    if (b->looking == &b->work || (b->looking && for_call)) {
        b->looking = NULL;
        return;
    }
    b->expected = 0;
    if (coming) return;
    handed_over = 0;
    /* One that takes everything can look for everything afterwards; the last is for transfers. */
    if (for_call && b->work.asleep - b->work.woken < 2 && wake(&b->call)) return;
    if (!wake(&b->work) && for_call) wake(&b->call);
}

static ucm_status refuse(ucmb_bridge *b, ucm_error *err) {
    if (of_another_process(b))
        return ucm_fail(err, UCM_INVALID, 0, "this store was opened by the parent process");
    if (__atomic_load_n(&b->closing, __ATOMIC_RELAXED))
        return ucm_fail(err, UCM_CLOSED, 0, "the store is closed");
    if (__atomic_load_n(&b->shut, __ATOMIC_RELAXED))
        return ucm_fail(err, UCM_CLOSED, 0, "the Python interpreter has ended");
    return UCM_OK;
}

static ucm_status unknown_flags(ucm_error *err) {
    return ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag of this call is not known to this store");
}

static ucm_status no_memory(ucm_error *err) {
    return ucm_fail(err, UCM_UNAVAILABLE, ENOMEM, "out of memory");
}

/* Jobs */

static void *copied(char **at, const void *from, size_t bytes) {
    void *to = *at;
    if (!from) return NULL;
    memcpy(to, from, bytes);
    *at += bytes;
    return to;
}

/* Where it is not 0, Python need not look at each address. */
static uint64_t stride_of(const ucmb_bridge *b, const ucm_transfer *t) {
    if (b->n_segments != 1 || t->n < 2) return 0;
    const uintptr_t first = (uintptr_t)t->addresses[0], second = (uintptr_t)t->addresses[1];
    if (second <= first) return 0;
    for (size_t i = 1; i < t->n; i++) {
        if ((uintptr_t)t->addresses[i] - first != i * (second - first)) return 0;
        if (t->lengths && t->lengths[i] != t->lengths[0]) return 0;
    }
    return second - first;
}

static struct job *new_transfer(const ucmb_bridge *b, int kind, const ucm_transfer *t) {
    const size_t n = t->n, rows = n * b->n_segments * sizeof(void *);
    const size_t longs = n * sizeof(uint64_t), ints = n * sizeof(uint32_t);
    const size_t ids = n * UCM_BLOCK_ID_BYTES;
    struct job *job = malloc(sizeof *job + rows + 2 * longs + 2 * ints + ids);
    if (!job) return NULL;
    memset(job, 0, sizeof *job);
    char *at = (char *)(job + 1);
    job->open.kind = kind;
    job->open.priority = t->priority;
    job->open.flags = t->flags;
    job->open.tag = t->tag;
    job->open.deadline_ns = t->deadline_ns;
    job->open.n = n;
    job->open.stride = stride_of(b, t);
    job->open.addresses = copied(&at, t->addresses, rows);
    job->open.lengths = copied(&at, t->lengths, longs);
    job->open.raw_lengths = copied(&at, t->raw_lengths, longs);
    job->open.shard_index = copied(&at, t->shard_index, ints);
    job->open.depths = copied(&at, t->depths, ints);
    job->open.block_ids = copied(&at, t->block_ids, ids);
    job->bytes = n * b->base.capacity;
    if (t->lengths) {
        job->bytes = 0;
        for (size_t i = 0; i < n; i++) job->bytes += t->lengths[i];
    }
    job->done = t->done;
    job->finished = t->finished;
    job->ctx = t->ctx;
    job->of_python = python_submits;
    job->waits = __atomic_load_n(&python_waits, __ATOMIC_RELAXED);
    return job;
}

static struct job *new_call(int kind, size_t n, const uint8_t *block_ids) {
    struct job *job = malloc(sizeof *job + n * (UCM_BLOCK_ID_BYTES + 1));
    if (!job) return NULL;
    memset(job, 0, sizeof *job);
    char *at = (char *)(job + 1);
    job->open.kind = kind;
    job->open.n = n;
    job->open.report.struct_size = sizeof job->open.report;
    job->open.block_ids = copied(&at, block_ids, n * UCM_BLOCK_ID_BYTES);
    job->open.tiers = (uint8_t *)at;
    memset(job->open.tiers, 0, n);
    job->refs = 2;
    cond_init(&job->cond);
    return job;
}

static void drop_call(ucmb_bridge *b, struct job *job) {
    pthread_mutex_lock(&b->mutex);
    const int left = --job->refs;
    pthread_mutex_unlock(&b->mutex);
    if (left) return;
    pthread_cond_destroy(&job->cond);
    free(job);
}

static void drop_bridge(ucmb_bridge *b) {
    pthread_mutex_lock(&b->mutex);
    const int left = --b->refs;
    pthread_mutex_unlock(&b->mutex);
    if (left) return;
    pthread_cond_destroy(&b->work.cond);
    pthread_cond_destroy(&b->call.cond);
    pthread_cond_destroy(&b->keep);
    pthread_cond_destroy(&b->ended);
    pthread_mutex_destroy(&b->mutex);
    free(b);
}

/* Transfers */

static ucm_status accept(ucmb_bridge *b, struct job *job, ucm_task *task, ucm_error *err) {
    const int64_t deadline = job->open.deadline_ns;
    ucm_status status = UCM_OK;
    pthread_mutex_lock(&b->mutex);
    if (b->closing || b->shut) {
        status = ucm_fail(err, UCM_CLOSED, 0, "the store is closed");
    } else if (b->shards >= b->max_shards || b->bytes >= b->max_bytes) {
        status = ucm_fail(err, UCM_BUSY, 0, "the queue is full");
    } else {
        b->shards += job->open.n;
        b->bytes += job->bytes;
        make_live(b, job);
        if (job->open.kind == UCMB_DUMP) b->last_dump = job->open.number;
        if (task) *task = job->open.number;
        push(&b->transfers, job);
        wake_one(b, 0);
        job->handed_over = handed_over;
        if (deadline && (!b->keeper_until || deadline < b->keeper_until))
            pthread_cond_signal(&b->keep);
    }
    pthread_mutex_unlock(&b->mutex);
    return status;
}

static ucm_status submit(ucmb_bridge *b, int kind, const ucm_transfer *t, ucm_task *task,
                         ucm_error *err) {
    ucm_status status = refuse(b, err);
    if (status != UCM_OK) return status;
    if (t->flags & ~(uint64_t)UCM_TRANSFER_REPLACE) return unknown_flags(err);
    if (!(b->methods & (1 << UCMB_LOAD | 1 << UCMB_DUMP)))
        return (kind == UCMB_DUMP ? ucm_dump : ucm_load)(b->lower, t, task, err);
    if (t->n == 0) {
        if (task) *task = 0;
        t->finished(t->ctx);
        return UCM_OK;
    }
    struct job *job = new_transfer(b, kind, t);
    if (!job) return no_memory(err);
    status = accept(b, job, task, err);
    if (status != UCM_OK) free(job);
    return status;
}

static ucm_status bridge_load(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return submit((ucmb_bridge *)s, UCMB_LOAD, t, task, err);
}

static ucm_status bridge_dump(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return submit((ucmb_bridge *)s, UCMB_DUMP, t, task, err);
}

static void count_end(ucmb_bridge *b, const struct job *job, uint64_t good, uint64_t missing,
                      uint64_t moved) {
    const int first = job->open.kind == UCMB_DUMP ? UCMB_DUMP_SHARDS : UCMB_LOAD_SHARDS;
    const int below = job->open.kind == UCMB_DUMP ? UCMB_DUMP_OUT_BYTES : UCMB_LOAD_IN_BYTES;
    ucmb_count(b, first, good);
    ucmb_count(b, first + 1, moved);
    if (!b->lower) ucmb_count(b, below, moved);
    if (job->started_ns) ucmb_count(b, first + 3, (uint64_t)(now_ns() - job->started_ns));
    ucmb_count(b, UCMB_FAILED_SHARDS, job->open.n - good - missing);
}

static uint64_t bytes_of(const ucmb_bridge *b, const struct job *job, const ucm_result *result,
                         size_t i) {
    if (job->open.kind == UCMB_LOAD) return result->length;
    return job->open.lengths ? job->open.lengths[i] : b->base.capacity;
}

void ucmb_end(ucmb_bridge *b, ucmb_job *open, const int32_t *statuses, const int32_t *errnos,
              const uint32_t *flags, const uint64_t *lengths) {
    struct job *job = (struct job *)open;
    const int dump = open->kind == UCMB_DUMP;
    uint64_t good = 0, missing = 0, moved = 0, stored = 0;
    for (size_t i = 0; i < open->n; i++) {
        ucm_result result = {.struct_size = sizeof result};
        result.status = statuses ? statuses[i] : UCM_OK;
        if (result.status == UCM_PENDING || result.status == UCM_BUSY) result.status = UCM_INTERNAL;
        result.os_errno = errnos ? errnos[i] : 0;
        result.flags = flags && result.status == UCM_OK ? flags[i] : 0;
        result.length = lengths && !dump && result.status == UCM_OK ? lengths[i] : 0;
        missing += result.status == UCM_NOT_FOUND;
        if (result.status == UCM_OK) {
            good++;
            moved += bytes_of(b, job, &result, i);
            stored += dump && !(result.flags & UCM_RESULT_DECLINED);
        }
        job->done(job->ctx, i, &result);
    }
    count_end(b, job, good, missing, moved);
    pthread_mutex_lock(&b->mutex);
    b->shards -= open->n;
    b->bytes -= job->bytes;
    b->stored += stored;
    pthread_mutex_unlock(&b->mutex);
    job->finished(job->ctx);
    pthread_mutex_lock(&b->mutex);
    unlink_live(b, job);
    pthread_mutex_unlock(&b->mutex);
    free(job);
}

void ucmb_count(ucmb_bridge *b, int which, uint64_t value) {
    __atomic_fetch_add(&b->values[which], value, __ATOMIC_RELAXED);
}

/* Locked. The job waits no longer; the keeper ends it. */
static void end_soon(ucmb_bridge *b, struct job *job, ucm_status status) {
    take_out(&b->transfers, job);
    job->state = ENDING;
    job->status = status;
    push(&b->ending, job);
}

static ucm_status bridge_cancel(ucm_store *s, ucm_task task, ucm_error *err) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    ucm_status status = refuse(b, err);
    if (status != UCM_OK) return status;
    if (!(b->methods & (1 << UCMB_LOAD | 1 << UCMB_DUMP))) return ucm_cancel(b->lower, task, err);
    pthread_mutex_lock(&b->mutex);
    struct job *job = b->newest;
    while (job && job->open.number > task) job = job->before;
    if (!job || job->open.number != task || !job->done) {
        status = ucm_fail(err, UCM_NOT_FOUND, 0, "the task has finished");
    } else if (job->state == QUEUED) {
        end_soon(b, job, UCM_CANCELLED);
        pthread_cond_signal(&b->keep);
    }
    pthread_mutex_unlock(&b->mutex);
    return status;
}

/* Locked. Ends what is too late, and says when the next one will be. */
static int64_t expire(ucmb_bridge *b) {
    const int64_t now = now_ns();
    int64_t next = 0;
    struct job *after;
    for (struct job *job = b->transfers.first; job; job = after) {
        const int64_t deadline = job->open.deadline_ns;
        after = next_of(job);
        if (deadline == 0) continue;
        if (deadline <= now)
            end_soon(b, job, UCM_TIMEOUT);
        else if (next == 0 || deadline < next)
            next = deadline;
    }
    return next;
}

static void end_all(ucmb_bridge *b, struct job *job) {
    int32_t *statuses = malloc(job->open.n * sizeof *statuses);
    while (!statuses) { /* somebody waits for these: memory has to come */
        const struct timespec pause = {0, 10 * NS_PER_MS};
        nanosleep(&pause, NULL);
        statuses = malloc(job->open.n * sizeof *statuses);
    }
    for (size_t i = 0; i < job->open.n; i++) statuses[i] = job->status;
    ucmb_end(b, &job->open, statuses, NULL, NULL, NULL);
    free(statuses);
}

/* Ends what no Python thread will take, even while all of them hang. */
static void *keep(void *user) {
    ucmb_bridge *b = user;
    pthread_mutex_lock(&b->mutex);
    while (!b->stopped || b->ending.first) {
        b->keeper_until = expire(b);
        if (!b->ending.first) {
            wait_until(&b->keep, &b->mutex, b->keeper_until);
            continue;
        }
        struct job *job = b->ending.first;
        take_out(&b->ending, job);
        pthread_mutex_unlock(&b->mutex);
        end_all(b, job);
        pthread_mutex_lock(&b->mutex);
    }
    pthread_mutex_unlock(&b->mutex);
    return NULL;
}

/* Workers */

static int goes_with(const struct job *first, const struct job *job) {
    return job->open.kind == first->open.kind && job->open.flags == first->open.flags;
}

/* Locked. What one worker takes of the waiting transfers, so that the others have theirs. */
static struct job *take_share(ucmb_bridge *b) {
    struct job *first = b->transfers.first, *last = first;
    size_t share = b->transfers.n / (size_t)b->threads, shards = 0, taken = 0;
    for (struct job *job = first; job; job = next_of(job)) {
        if (taken &&
            (taken >= share || !goes_with(first, job) || shards + job->open.n > MAX_BATCH_SHARDS))
            break;
        job->state = RUNNING;
        shards += job->open.n;
        taken++;
        last = job;
    }
    b->transfers.first = next_of(last);
    if (!b->transfers.first) b->transfers.last = NULL;
    b->transfers.n -= taken;
    last->open.next = NULL;
    first->started_ns = now_ns();
    ucmb_count(b, UCMB_CALLS, 1);
    return first;
}

/* Locked. Until there may be something to do. Where that may be soon one worker looks for a while
 * before it sleeps. */
static void rest(ucmb_bridge *b, int calls_only, int soon) {
    struct bed *bed = calls_only ? &b->call : &b->work;
    const int expected = !calls_only && b->expected;
    if (expected) b->expected = 0;
    if ((soon || expected) && !b->looking) {
        const unsigned news = b->news;
        b->looking = bed;
        pthread_mutex_unlock(&b->mutex);
        const int found = expected ? spin_while(&b->for_expected, &b->news, news, EXPECTED_NS)
                                   : spin_while(&b->for_work, &b->news, news, SPIN_NS);
        pthread_mutex_lock(&b->mutex);
        b->looking = NULL;
        if (found || b->news != news) return;
    }
    bed->asleep++;
    while (!bed->woken) pthread_cond_wait(&bed->cond, &b->mutex);
    bed->asleep--;
    bed->woken--;
}

/* Locked. A thread of Python that submits wants the interpreter back to wait for its task: who took
 * it between would be woken twice, and so would that thread. */
static void let_python_wait(ucmb_bridge *b) {
    const struct job *job = b->transfers.last;
    /* One that was woken may have the core of that thread, and would keep it from waiting. */
    if (!job->of_python || !job->handed_over) return;
    const unsigned waits = job->waits;
    pthread_mutex_unlock(&b->mutex);
    spin_while(&b->for_waits, &python_waits, waits, SPIN_NS);
    pthread_mutex_lock(&b->mutex);
}

void ucmb_expect(ucm_store *s) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    if (of_another_process(b) || !(b->methods & (1 << UCMB_LOAD | 1 << UCMB_DUMP))) return;
    pthread_mutex_lock(&b->mutex);
    if (!b->looking && !b->transfers.first) b->expected = wake(&b->work);
    pthread_mutex_unlock(&b->mutex);
}

void ucmb_python_submits(void) {
    python_submits = 1;
    handed_over = 0;
}

int ucmb_python_submitted(void) {
    python_submits = 0;
    return handed_over;
}

void ucmb_python_waits(void) {
    __atomic_add_fetch(&python_waits, 1, __ATOMIC_RELEASE);
}

/* Locked. Who was woken for a job may have taken another: what is left has somebody on the way. */
static void pass_on(ucmb_bridge *b) {
    if (b->work.woken || (!b->calls.first && !b->transfers.first)) return;
    if (!wake(&b->work) && b->calls.first && !b->call.woken) wake(&b->call);
}

static ucmb_job *pull(ucmb_bridge *b, int calls_only, int soon) {
    struct job *job = NULL;
    int polite = 0;
    pthread_mutex_lock(&b->mutex);
    while (!job && !b->stopped && !b->shut) {
        if (b->calls.first) {
            job = b->calls.first;
            take_out(&b->calls, job);
            job->open.next = NULL;
            job->state = RUNNING;
        } else if (!calls_only && b->transfers.first) {
            if (polite++)
                job = take_share(b);
            else
                let_python_wait(b);
        } else {
            rest(b, calls_only, soon);
            soon = 0;
        }
    }
    if (job) {
        b->inside++;
        pass_on(b);
    }
    pthread_mutex_unlock(&b->mutex);
    return job ? &job->open : NULL;
}

ucmb_job *ucmb_pull(ucmb_bridge *b, int calls_only) {
    return pull(b, calls_only, 0);
}

/* While others are in the interpreter who has it first takes what has come till then, as one. */
static ucmb_job *pull_if_alone(ucmb_bridge *b, int calls_only, int soon) {
    pthread_mutex_lock(&b->mutex);
    const int others = --b->inside;
    pthread_mutex_unlock(&b->mutex);
    return others ? NULL : pull(b, calls_only, soon);
}

ucmb_job *ucmb_end_pull(ucmb_bridge *b, int calls_only, ucmb_job *job, const int32_t *statuses,
                        const int32_t *errnos, const uint32_t *flags, const uint64_t *lengths) {
    /* Native threads that hand on for others need cores, and are behind another that is woken. */
    const int soon = ((struct job *)job)->of_python;
    ucmb_end(b, job, statuses, errnos, flags, lengths);
    return pull_if_alone(b, calls_only, soon);
}

ucmb_job *ucmb_answer_pull(ucmb_bridge *b, int calls_only, ucmb_job *job, ucm_status status,
                           int32_t os_errno, const char *message) {
    ucmb_answer(b, job, status, os_errno, message);
    return pull_if_alone(b, calls_only, 1);
}

void ucmb_leave(ucmb_bridge *b) {
    drop_bridge(b);
}

void ucmb_answer(ucmb_bridge *b, ucmb_job *open, ucm_status status, int32_t os_errno,
                 const char *message) {
    struct job *job = (struct job *)open;
    pthread_mutex_lock(&b->mutex);
    job->status = status;
    job->os_errno = os_errno;
    snprintf(job->message, sizeof job->message, "%s", message);
    __atomic_store_n(&job->answered, 1, __ATOMIC_RELEASE);
    b->hints -= open->kind == UCMB_PREFETCH || open->kind == UCMB_TOUCH;
    pthread_cond_broadcast(&job->cond);
    unlink_live(b, job);
    pthread_mutex_unlock(&b->mutex);
    drop_call(b, job);
}

/* Calls */

/* Locked. */
static void begin_call(ucmb_bridge *b, struct job *job) {
    make_live(b, job);
    push(&b->calls, job);
    wake_one(b, 1);
}

/* Locked. 1: answered; 0: the time is over, or Python is. */
static int await_call(ucmb_bridge *b, struct job *job, int64_t until_ns) {
    while (!job->answered && !b->shut)
        if (!wait_until(&job->cond, &b->mutex, until_ns)) break;
    return job->answered;
}

/* Locked. The caller waits no longer: a call that has begun runs on, for nobody. */
static ucm_status give_up(ucmb_bridge *b, struct job *job, ucm_error *err) {
    const int shut = b->shut;
    if (job->state == QUEUED) {
        take_out(&b->calls, job);
        unlink_live(b, job);
        job->refs--;
    }
    return shut ? ucm_fail(err, UCM_CLOSED, 0, "the Python interpreter has ended")
                : ucm_fail(err, UCM_TIMEOUT, 0, "there was no answer by the deadline");
}

/* The job is the caller's to drop, whatever comes of it. */
static ucm_status call(ucmb_bridge *b, struct job *job, int64_t until_ns, ucm_error *err) {
    ucm_status status;
    pthread_mutex_lock(&b->mutex);
    begin_call(b, job);
    if (handed_over) { /* else the worker may want this very core */
        pthread_mutex_unlock(&b->mutex);
        spin_while(&b->for_answers, &job->answered, 0, SPIN_NS);
        pthread_mutex_lock(&b->mutex);
    }
    if (await_call(b, job, until_ns)) {
        status = job->status;
        if (status != UCM_OK) ucm_fail(err, status, job->os_errno, job->message);
    } else {
        status = give_up(b, job, err);
    }
    pthread_mutex_unlock(&b->mutex);
    return status;
}

static size_t hits_of(const uint8_t *tiers, size_t n, int32_t mode) {
    size_t hits = 0;
    if (mode == UCM_LOOKUP_LAST) {
        for (hits = n; hits && !tiers[hits - 1];) hits--;
    } else if (mode == UCM_LOOKUP_PREFIX) {
        while (hits < n && tiers[hits]) hits++;
    } else {
        for (size_t i = 0; i < n; i++) hits += tiers[i] != 0;
    }
    return hits;
}

static ucm_status lookup_below(ucmb_bridge *b, const ucm_lookup_args *args, ucm_error *err) {
    ucm_lookup_args below;
    ucm_copy(&below, sizeof below, args);
    const ucm_status status = ucm_lookup(b->lower, &below, err);
    if (status == UCM_OK && args->tiers)
        for (size_t i = 0; i < args->n; i++)
            if (args->tiers[i] != 0 && args->tiers[i] != UINT8_MAX) args->tiers[i]++;
    return status;
}

static ucm_status bridge_lookup(ucm_store *s, const ucm_lookup_args *args, ucm_error *err) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    ucm_status status = refuse(b, err);
    if (status != UCM_OK) return status;
    if (args->flags) return unknown_flags(err);
    if (args->mode < UCM_LOOKUP_ALL || args->mode > UCM_LOOKUP_LAST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this mode of lookup is not known to this store");
    if (!(b->methods & 1 << UCMB_LOOKUP)) return lookup_below(b, args, err);
    if (args->n == 0) {
        if (args->hits) *args->hits = 0;
        return UCM_OK;
    }
    struct job *job = new_call(UCMB_LOOKUP, args->n, args->block_ids);
    if (!job) return no_memory(err);
    job->open.deadline_ns = args->deadline_ns;
    job->open.tag = args->tag;
    status = call(b, job, args->deadline_ns, err);
    if (status == UCM_OK) {
        if (args->hits) *args->hits = hits_of(job->open.tiers, args->n, args->mode);
        if (args->tiers) memcpy(args->tiers, job->open.tiers, args->n);
    }
    drop_call(b, job);
    return status;
}

/* Locked. Waits for the dumps up to a number; those left are counted. */
static size_t await_dumps(ucmb_bridge *b, uint64_t number, int64_t until_ns) {
    for (int in_time = 1;;) {
        size_t shards = 0;
        for (struct job *job = b->oldest; job && job->open.number <= number; job = job->after)
            if (job->open.kind == UCMB_DUMP) shards += job->open.n;
        if (!shards || !in_time || b->shut) return shards;
        in_time = wait_until(&b->ended, &b->mutex, until_ns);
    }
}

static ucm_status bridge_remove(ucm_store *s, const ucm_ids_args *args, ucm_error *err) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    ucm_status status = refuse(b, err);
    if (status != UCM_OK) return status;
    if (args->flags) return unknown_flags(err);
    if (!(b->base.capabilities & UCM_CAP_REMOVE))
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this store cannot remove");
    if (args->n == 0) return UCM_OK;
    /* Else a dump that was accepted earlier would bring a block back. */
    pthread_mutex_lock(&b->mutex);
    const size_t left = await_dumps(b, b->last_dump, args->deadline_ns);
    const int shut = b->shut;
    pthread_mutex_unlock(&b->mutex);
    if (left && !shut)
        return ucm_fail(err, UCM_TIMEOUT, 0, "dumps that came earlier have not ended");
    if (!(b->methods & 1 << UCMB_REMOVE)) return ucm_remove(b->lower, args, err);
    struct job *job = new_call(UCMB_REMOVE, args->n, args->block_ids);
    if (!job) return no_memory(err);
    job->open.deadline_ns = args->deadline_ns;
    status = call(b, job, args->deadline_ns, err);
    drop_call(b, job);
    return status;
}

static ucm_status hint(ucmb_bridge *b, int kind, const ucm_ids_args *args, ucm_error *err) {
    const ucm_status status = refuse(b, err);
    if (status != UCM_OK) return status;
    if (args->flags) return unknown_flags(err);
    if (!(b->methods & 1 << kind)) {
        if (!b->lower) return UCM_OK;
        return (kind == UCMB_TOUCH ? ucm_touch : ucm_prefetch)(b->lower, args, err);
    }
    struct job *job = args->n ? new_call(kind, args->n, args->block_ids) : NULL;
    if (!job) return UCM_OK;
    job->refs = 2;
    pthread_mutex_lock(&b->mutex);
    if (b->hints < MAX_HINTS && !b->shut && !b->closing) {
        b->hints++;
        begin_call(b, job);
    } else {
        job->refs--;
    }
    pthread_mutex_unlock(&b->mutex);
    drop_call(b, job);
    return UCM_OK;
}

static ucm_status bridge_prefetch(ucm_store *s, const ucm_ids_args *args, ucm_error *err) {
    return hint((ucmb_bridge *)s, UCMB_PREFETCH, args, err);
}

static ucm_status bridge_touch(ucm_store *s, const ucm_ids_args *args, ucm_error *err) {
    return hint((ucmb_bridge *)s, UCMB_TOUCH, args, err);
}

static ucm_status bridge_metrics(ucm_store *s, const ucm_metrics_args *args, ucm_error *err) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    if (args->flags) return unknown_flags(err);
    for (size_t i = 0; i < args->n && i < UCMB_METRICS; i++)
        args->values[i] = __atomic_load_n(&b->values[i], __ATOMIC_RELAXED);
    return UCM_OK;
}

/* Drain and close */

/* Locked. Lets Python drain what has a number up to `number`; PENDING: it goes on. */
static ucm_status drain_python(ucmb_bridge *b, uint64_t number, int64_t until_ns,
                               ucm_report *report, int *reports, ucm_error *err) {
    for (;;) {
        if (!b->drain) {
            b->drain = new_call(UCMB_DRAIN, 0, NULL);
            if (!b->drain) return no_memory(err);
            b->drain_covers = number;
            begin_call(b, b->drain);
        }
        struct job *job = b->drain;
        const uint64_t covers = b->drain_covers;
        job->refs++;
        const int answered = await_call(b, job, until_ns);
        const ucm_status status = answered ? job->status : UCM_PENDING;
        if (answered) *reports = job->open.reports;
        if (answered && status != UCM_OK) ucm_fail(err, status, job->os_errno, job->message);
        if (answered && b->drain == job) { /* of several who wait for it, the first one counts it */
            report->stored += job->open.report.stored;
            report->lost += job->open.report.lost;
            report->unfinished = job->open.report.unfinished;
            b->drain = NULL;
            job->refs--;
        }
        pthread_mutex_unlock(&b->mutex);
        drop_call(b, job);
        pthread_mutex_lock(&b->mutex);
        if (!answered && b->shut)
            return ucm_fail(err, UCM_CLOSED, 0, "the Python interpreter has ended");
        if (!answered || status != UCM_OK || covers >= number) return status;
    }
}

static ucm_status drain_own(ucmb_bridge *b, int64_t until_ns, ucm_report *report, ucm_error *err) {
    ucm_status status = UCM_OK;
    int reports = 0;
    pthread_mutex_lock(&b->mutex);
    const uint64_t number = b->last_dump;
    report->pending = await_dumps(b, number, until_ns);
    if (report->pending)
        status = UCM_PENDING;
    else if (b->methods & 1 << UCMB_DRAIN)
        status = drain_python(b, number, until_ns, report, &reports, err);
    if (status == UCM_OK && !b->lower) {
        if (!reports) report->stored = b->stored;
        b->stored = 0;
    }
    pthread_mutex_unlock(&b->mutex);
    return status;
}

static ucm_status bridge_drain(ucm_store *s, const ucm_wait_args *args, ucm_report *out,
                               ucm_error *err) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    ucm_report own = {.struct_size = sizeof own}, below = {.struct_size = sizeof below};
    const int64_t until_ns = until_of(args->timeout_ms);
    ucm_status status = refuse(b, err);
    if (status != UCM_OK) return status;
    if (args->flags) return unknown_flags(err);
    status = drain_own(b, until_ns, &own, err);
    if (b->lower && (status == UCM_OK || status == UCM_PENDING)) {
        const ucm_wait_args rest = {sizeof rest, 0, left_of(until_ns)};
        const ucm_status lower = ucm_drain(b->lower, &rest, &below, err);
        if (lower != UCM_OK) status = lower;
    }
    if (out) {
        out->stored = own.stored + below.stored;
        out->lost = own.lost + below.lost;
        out->pending = own.pending + below.pending;
        out->unfinished = own.unfinished + below.unfinished;
    }
    return status;
}

/* Locked. OK: Python has closed its store, or cannot any more. */
static ucm_status close_python(ucmb_bridge *b, int64_t until_ns, ucm_error *err) {
    while (!b->close && b->oldest)
        if (!wait_until(&b->ended, &b->mutex, until_ns)) return UCM_PENDING;
    if (b->shut) return b->oldest ? UCM_PENDING : UCM_OK;
    if (!b->close) {
        b->close = new_call(UCMB_CLOSE, 0, NULL);
        if (!b->close) return UCM_PENDING;
        begin_call(b, b->close);
    }
    if (!await_call(b, b->close, until_ns)) return UCM_PENDING;
    ucm_status status = b->close->status;
    if (status == UCM_OK) return UCM_OK;
    /* These would say that nothing happened. */
    if (status == UCM_PENDING || status == UCM_INVALID || status == UCM_UNSUPPORTED)
        status = UCM_INTERNAL;
    return ucm_fail(err, status, b->close->os_errno, b->close->message);
}

static ucm_status bridge_close(ucm_store *s, const ucm_wait_args *args, ucm_report *report,
                               ucm_error *err) {
    ucmb_bridge *b = (ucmb_bridge *)s;
    if (of_another_process(b))
        return ucm_fail(err, UCM_INVALID, 0, "this store was opened by the parent process");
    if (args->flags) return unknown_flags(err);
    pthread_mutex_lock(&b->mutex);
    __atomic_store_n(&b->closing, 1, __ATOMIC_RELAXED);
    const ucm_status status = close_python(b, until_of(args->timeout_ms), err);
    if (report) {
        const int late = (b->base.capabilities & UCM_CAP_WRITE_BACK) != 0;
        report->stored = b->lower || late ? 0 : b->stored;
        report->lost = report->unfinished = report->pending = 0;
        if (b->close && status != UCM_PENDING) {
            if (b->close->open.reports) report->stored = b->close->open.report.stored;
            report->lost = b->close->open.report.lost;
            report->unfinished = b->close->open.report.unfinished;
        }
        for (struct job *job = b->oldest; job; job = job->after)
            if (job->open.kind == UCMB_DUMP) report->pending += job->open.n;
        b->stored = 0;
    }
    if (status != UCM_PENDING) {
        b->stopped = 1;
        wake_all(b);
        pthread_cond_broadcast(&b->keep);
    }
    pthread_mutex_unlock(&b->mutex);
    if (status == UCM_PENDING) return status;
    pthread_join(b->keeper, NULL);
    if (b->drain) drop_call(b, b->drain);
    if (b->close) drop_call(b, b->close);
    drop_bridge(b);
    return status;
}

void ucmb_shut(ucmb_bridge *b) {
    if (of_another_process(b)) return;
    pthread_mutex_lock(&b->mutex);
    __atomic_store_n(&b->shut, 1, __ATOMIC_RELAXED);
    while (b->transfers.first) end_soon(b, b->transfers.first, UCM_CLOSED);
    for (struct job *job = b->oldest; job; job = job->after)
        if (job->refs) pthread_cond_broadcast(&job->cond);
    wake_all(b);
    pthread_cond_broadcast(&b->keep);
    pthread_cond_broadcast(&b->ended);
    pthread_mutex_unlock(&b->mutex);
}

/* Making */

static const ucm_store_ops ops = {
    .struct_size = sizeof(ucm_store_ops),
    .lookup = bridge_lookup,
    .load = bridge_load,
    .dump = bridge_dump,
    .cancel = bridge_cancel,
    .prefetch = bridge_prefetch,
    .touch = bridge_touch,
    .remove = bridge_remove,
    .drain = bridge_drain,
    .metrics = bridge_metrics,
    .close = bridge_close,
};

static int start_keeper(ucmb_bridge *b) {
    static const int crashes[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT};
    sigset_t all, before;
    sigfillset(&all);
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++) sigdelset(&all, crashes[i]);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    const int rc = pthread_create(&b->keeper, NULL, keep, b);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}

ucmb_bridge *ucmb_new(const ucmb_settings *settings) {
    ucmb_bridge *b = calloc(1, sizeof *b);
    if (!b) return NULL;
    pthread_once(&fork_once, watch_forks);
    b->base.struct_size = sizeof b->base;
    b->base.ops = &ops;
    b->base.capabilities = settings->capabilities;
    if (settings->layout) {
        b->base.capacity = settings->layout->capacity;
        b->base.raw_capacity = settings->layout->raw_capacity;
        b->base.shards_per_block = settings->layout->shards_per_block;
        b->n_segments = settings->layout->n_segments;
    }
    b->lower = settings->lower;
    b->methods = settings->methods;
    b->threads = settings->threads;
    b->max_shards = settings->max_shards;
    b->max_bytes = settings->max_bytes;
    b->generation = __atomic_load_n(&generation, __ATOMIC_RELAXED);
    b->refs = 2 + settings->threads; /* the store's, and one a worker */
    mutex_init(&b->mutex);
    cond_init(&b->work.cond);
    cond_init(&b->call.cond);
    cond_init(&b->keep);
    cond_init(&b->ended);
    const int rc = start_keeper(b);
    if (rc == 0) return b;
    b->refs = 1;
    drop_bridge(b);
    errno = rc;
    return NULL;
}

ucm_store *ucmb_store(ucmb_bridge *b) {
    return &b->base;
}
