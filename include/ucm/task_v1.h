/* SPDX-License-Identifier: MIT
 *
 * ucm/task_v1.h - wait, check and forget for hosts, over the callbacks of ucm/store_v1.h.
 *
 * Header only, C11 and C++17, Linux; with -std=c11 define _POSIX_C_SOURCE=200809L. Not part of the
 * ABI: each program compiles its own.
 *
 *     ucm_waiter *w = ucm_waiter_new(n, NULL, NULL);
 *     status = ucm_waiter_submit(w, ucm_load, store, &transfer, NULL, &err);
 *     if (status == UCM_OK) {
 *         while (ucm_waiter_wait(w, 1000) == UCM_PENDING) { ... }
 *         ... w->results[i].status ...
 *     }
 *     ucm_waiter_forget(w);
 *
 * The memory of the transfer stays borrowed until wait or check answers something else than
 * UCM_PENDING. Who forgets earlier learns from `release` when it is free.
 */
#ifndef UCM_TASK_V1_H
#define UCM_TASK_V1_H

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "ucm/store_v1.h"

#ifndef CLOCK_MONOTONIC
#error "define _POSIX_C_SOURCE=200809L before the first include"
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ucm_waiter {
    pthread_mutex_t mutex; /* guards finished and refs */
    pthread_cond_t cond;
    int finished;
    int refs; /* the caller's and the running transfer's: whoever drops the last one frees */
    size_t n;
    ucm_result *results;         /* n; entry i may be read once finished */
    void (*release)(void *user); /* [callback] rules of `finished`: the transfer has ended */
    void *user;
} ucm_waiter;

/* NULL: out of memory. One transfer a waiter; release may be NULL. */
static inline ucm_waiter *ucm_waiter_new(size_t n, void (*release)(void *), void *user) {
    ucm_waiter *w = (ucm_waiter *)calloc(1, sizeof *w);
    pthread_condattr_t attr;
    if (!w) return NULL;
    w->results = (ucm_result *)calloc(n ? n : 1, sizeof(ucm_result));
    if (!w->results) {
        free(w);
        return NULL;
    }
    for (size_t i = 0; i < n; i++) w->results[i].status = UCM_PENDING;
    w->n = n;
    w->refs = 1;
    w->release = release;
    w->user = user;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->cond, &attr);
    pthread_condattr_destroy(&attr);
    return w;
}

static inline void ucm_waiter_drop_(ucm_waiter *w) {
    int last;
    pthread_mutex_lock(&w->mutex);
    last = --w->refs == 0;
    pthread_mutex_unlock(&w->mutex);
    if (!last) return;
    pthread_cond_destroy(&w->cond);
    pthread_mutex_destroy(&w->mutex);
    free(w->results);
    free(w);
}

/* The caller gives up its handle, before, during or after the transfer; not while another thread is
 * in wait or check. A running transfer runs on and frees the waiter at its end. */
static inline void ucm_waiter_forget(ucm_waiter *w) {
    ucm_waiter_drop_(w);
}

static inline void ucm_waiter_done(void *ctx, size_t i, const ucm_result *result) {
    ucm_result *mine = &((ucm_waiter *)ctx)->results[i];
    if (mine->status != UCM_PENDING) { /* a bug of the store: it was called for this one already */
        mine->status = UCM_INTERNAL;
        return;
    }
    if (result->struct_size == sizeof *mine) {
        *mine = *result;
    } else {
        ucm_copy(mine, sizeof *mine, result);
    }
    if (mine->status == UCM_PENDING) mine->status = UCM_INTERNAL; /* no result may say so */
}

static inline void ucm_waiter_finished(void *ctx) {
    ucm_waiter *w = (ucm_waiter *)ctx;
    for (size_t i = 0; i < w->n; i++) /* a bug of the store too: it forgot this one */
        if (w->results[i].status == UCM_PENDING) w->results[i].status = UCM_INTERNAL;
    pthread_mutex_lock(&w->mutex);
    w->finished = 1;
    pthread_cond_broadcast(&w->cond);
    pthread_mutex_unlock(&w->mutex);
    if (w->release) w->release(w->user);
    ucm_waiter_drop_(w);
}

/* start is ucm_load or ucm_dump. Sets done, finished and ctx of *t. Not UCM_OK: nothing runs, the
 * waiter may be submitted again (UCM_BUSY) or forgotten. */
static inline ucm_status ucm_waiter_submit(
    ucm_waiter *w, ucm_status (*start)(ucm_store *, const ucm_transfer *, ucm_task *, ucm_error *),
    ucm_store *store, ucm_transfer *t, ucm_task *task, ucm_error *err) {
    ucm_status status;
    t->done = ucm_waiter_done;
    t->finished = ucm_waiter_finished;
    t->ctx = w;
    pthread_mutex_lock(&w->mutex);
    w->refs++;
    pthread_mutex_unlock(&w->mutex);
    status = start(store, t, task, err);
    if (status != UCM_OK) ucm_waiter_drop_(w);
    return status;
}

/* Never blocks. UCM_PENDING, or as ucm_waiter_wait. */
static inline ucm_status ucm_waiter_check(ucm_waiter *w) {
    int finished;
    pthread_mutex_lock(&w->mutex);
    finished = w->finished;
    pthread_mutex_unlock(&w->mutex);
    if (!finished) return UCM_PENDING;
    for (size_t i = 0; i < w->n; i++)
        if (w->results[i].status != UCM_OK) return w->results[i].status;
    return UCM_OK;
}

/* Up to timeout_ms (-1: for ever). UCM_OK if every shard is, else the first other status by index;
 * UCM_PENDING if the time is over first: wait again, or forget. Any number of threads and times. */
static inline ucm_status ucm_waiter_wait(ucm_waiter *w, int64_t timeout_ms) {
    struct timespec until;
    int rc = 0;
    clock_gettime(CLOCK_MONOTONIC, &until);
    if (timeout_ms > 0) {
        until.tv_sec += (time_t)(timeout_ms / 1000);
        until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
    }
    pthread_mutex_lock(&w->mutex);
    while (!w->finished && rc == 0)
        rc = timeout_ms < 0 ? pthread_cond_wait(&w->cond, &w->mutex)
                            : pthread_cond_timedwait(&w->cond, &w->mutex, &until);
    pthread_mutex_unlock(&w->mutex);
    return ucm_waiter_check(w);
}

#ifdef __cplusplus
}
#endif
#endif /* UCM_TASK_V1_H */
