/* SPDX-License-Identifier: MIT */
/* A store whose every call waits until the int at the option gate_address is not 0 (or ten seconds
 * have passed, then it is UCM_TIMEOUT): whoever holds the GIL meanwhile can never open the gate. */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "ucm/store_v1.h"

enum { ADDRESS, BUSY, N_OPTIONS };
static const ucm_option options[N_OPTIONS] = {
    {"gate_address", UCM_TYPE_INT, 0, NULL, NULL, NULL, "Address of the int that opens the gate."},
    {"gate_busy", UCM_TYPE_INT, 0, "0", "0..", NULL, "How many transfers are answered BUSY."},
};
static const ucm_metric metrics[] = {{"calls_total", UCM_METRIC_COUNTER, 0, "", "Calls."}};

struct gate {
    ucm_store base;
    const int *open; /* atomic */
    int64_t busy;    /* atomic */
    int running;     /* atomic */
};

static ucm_status pass_within(const int *open, int64_t timeout_ms) {
    const struct timespec pause = {0, 1000000};
    for (int64_t i = 0; i < timeout_ms; i++) {
        if (__atomic_load_n(open, __ATOMIC_ACQUIRE)) return UCM_OK;
        nanosleep(&pause, NULL);
    }
    return UCM_TIMEOUT;
}

static ucm_status pass(ucm_store *store) {
    return pass_within(((struct gate *)store)->open, 10000);
}

static ucm_status gate_lookup(ucm_store *store, const ucm_lookup_args *a, ucm_error *err) {
    (void)err;
    for (size_t i = 0; a->tiers && i < a->n; i++) a->tiers[i] = 0;
    if (a->hits) *a->hits = 0;
    return pass(store);
}

static ucm_status gate_ids(ucm_store *store, const ucm_ids_args *a, ucm_error *err) {
    (void)a;
    (void)err;
    return pass(store);
}

struct job {
    struct gate *gate;
    ucm_transfer transfer;
};

static void *run(void *user) {
    struct job *job = user;
    ucm_transfer *t = &job->transfer;
    ucm_result result = {.struct_size = sizeof result};
    result.status = pass(&job->gate->base);
    for (size_t i = 0; i < t->n; i++) t->done(t->ctx, i, &result);
    t->finished(t->ctx);
    __atomic_fetch_sub(&job->gate->running, 1, __ATOMIC_RELEASE);
    free(job);
    return NULL;
}

static ucm_status gate_move(ucm_store *store, const ucm_transfer *t, ucm_task *task,
                            ucm_error *err) {
    struct gate *gate = (struct gate *)store;
    struct job *job;
    pthread_t thread;
    if (__atomic_fetch_sub(&gate->busy, 1, __ATOMIC_RELAXED) > 0)
        return ucm_fail(err, UCM_BUSY, 0, "the queue is full");
    job = calloc(1, sizeof *job);
    job->gate = gate;
    ucm_copy(&job->transfer, sizeof job->transfer, t);
    if (task) *task = 0;
    __atomic_fetch_add(&gate->running, 1, __ATOMIC_RELAXED);
    if (pthread_create(&thread, NULL, run, job) != 0) abort();
    pthread_detach(thread);
    return UCM_OK;
}

static ucm_status gate_drain(ucm_store *store, const ucm_wait_args *a, ucm_report *report,
                             ucm_error *err) {
    struct gate *gate = (struct gate *)store;
    (void)err;
    if (report) report->stored = report->lost = report->pending = report->unfinished = 0;
    return pass_within(gate->open, a->timeout_ms) == UCM_OK ? UCM_OK : UCM_PENDING;
}

static ucm_status gate_metrics(ucm_store *store, const ucm_metrics_args *a, ucm_error *err) {
    (void)err;
    if (a->n) a->values[0] = 1;
    return pass(store);
}

static ucm_status gate_close(ucm_store *store, const ucm_wait_args *a, ucm_report *report,
                             ucm_error *err) {
    struct gate *gate = (struct gate *)store;
    if (gate_drain(store, a, report, err) != UCM_OK) return UCM_PENDING;
    while (__atomic_load_n(&gate->running, __ATOMIC_ACQUIRE)) {
        const struct timespec pause = {0, 1000000};
        nanosleep(&pause, NULL);
    }
    free(gate);
    return UCM_OK;
}

static const ucm_store_ops ops = {
    .struct_size = sizeof(ucm_store_ops),
    .lookup = gate_lookup,
    .load = gate_move,
    .dump = gate_move,
    .prefetch = gate_ids,
    .remove = gate_ids,
    .drain = gate_drain,
    .metrics = gate_metrics,
    .close = gate_close,
};

static ucm_status gate_open(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    struct gate *gate = calloc(1, sizeof *gate);
    (void)err;
    gate->base.struct_size = sizeof gate->base;
    gate->base.ops = &ops;
    gate->base.capabilities = UCM_CAP_REMOVE;
    gate->base.capacity = gate->base.raw_capacity = args->layout->capacity;
    gate->base.shards_per_block = args->layout->shards_per_block;
    gate->open =
        (const int *)(intptr_t)UCM_AT(ucm_value, args->values, args->value_stride, ADDRESS)->i;
    gate->busy = UCM_AT(ucm_value, args->values, args->value_stride, BUSY)->i;
    *out = &gate->base;
    return pass(&gate->base);
}

static const ucm_plugin plugin = {
    .struct_size = sizeof(ucm_plugin),
    .abi_major = UCM_ABI_MAJOR,
    .abi_minor = UCM_ABI_MINOR,
    .abi_draft = UCM_ABI_DRAFT,
    .name = "Gate",
    .version = "0.1.0",
    .summary = "Waits for the gate to open.",
    .n_options = N_OPTIONS,
    .option_stride = sizeof(ucm_option),
    .options = options,
    .n_metrics = 1,
    .metric_stride = sizeof(ucm_metric),
    .metrics = metrics,
    .open = gate_open,
};

UCM_EXPORT const ucm_plugin *ucm_store_plugin_v1(void);
const ucm_plugin *ucm_store_plugin_v1(void) {
    return &plugin;
}
