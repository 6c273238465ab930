/* SPDX-License-Identifier: MIT */
/* A store that takes memory of a device, moves nothing, and tells by its metrics what it was given.
 */
#include <stdlib.h>

#include "ucm/store_v1.h"

enum { MEMORY, DEVICE, FLAGS, EVENT, ADDRESS, N_METRICS };
static const ucm_metric metrics[N_METRICS] = {
    {"memory", UCM_METRIC_GAUGE, 0, "", "Of the layout."},
    {"device", UCM_METRIC_GAUGE, 0, "", "Of the layout."},
    {"flags", UCM_METRIC_GAUGE, 0, "", "Of the last transfer."},
    {"event", UCM_METRIC_GAUGE, 0, "", "Of the last transfer."},
    {"address", UCM_METRIC_GAUGE, 0, "", "The first of the last transfer."},
};

struct device {
    ucm_store base;
    uint64_t values[N_METRICS];
};

static ucm_status device_lookup(ucm_store *store, const ucm_lookup_args *a, ucm_error *err) {
    (void)store, (void)err;
    for (size_t i = 0; a->tiers && i < a->n; i++) a->tiers[i] = 0;
    if (a->hits) *a->hits = 0;
    return UCM_OK;
}

static ucm_status device_move(ucm_store *store, const ucm_transfer *t, ucm_task *task,
                              ucm_error *err) {
    struct device *device = (struct device *)store;
    const ucm_result result = {.struct_size = sizeof result};
    (void)err;
    if (task) *task = 0;
    device->values[FLAGS] = t->flags;
    device->values[EVENT] = t->event;
    device->values[ADDRESS] = t->n ? (uint64_t)(uintptr_t)t->addresses[0] : 0;
    for (size_t i = 0; i < t->n; i++) t->done(t->ctx, i, &result);
    t->finished(t->ctx);
    return UCM_OK;
}

static ucm_status device_drain(ucm_store *store, const ucm_wait_args *a, ucm_report *report,
                               ucm_error *err) {
    (void)store, (void)a, (void)err;
    if (report) report->stored = report->lost = report->pending = report->unfinished = 0;
    return UCM_OK;
}

static ucm_status device_metrics(ucm_store *store, const ucm_metrics_args *a, ucm_error *err) {
    (void)err;
    for (size_t i = 0; i < a->n; i++) a->values[i] = ((struct device *)store)->values[i];
    return UCM_OK;
}

static ucm_status device_close(ucm_store *store, const ucm_wait_args *a, ucm_report *report,
                               ucm_error *err) {
    const ucm_status status = device_drain(store, a, report, err);
    free(store);
    return status;
}

static const ucm_store_ops ops = {
    .struct_size = sizeof(ucm_store_ops),
    .lookup = device_lookup,
    .load = device_move,
    .dump = device_move,
    .drain = device_drain,
    .metrics = device_metrics,
    .close = device_close,
};

static ucm_status device_open(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    struct device *device = calloc(1, sizeof *device);
    (void)err;
    device->base.struct_size = sizeof device->base;
    device->base.ops = &ops;
    device->base.capabilities = UCM_CAP_EVENTS;
    if (args->layout) {
        device->values[MEMORY] = (uint64_t)args->layout->memory;
        device->values[DEVICE] = (uint64_t)(int64_t)args->layout->device;
    }
    if (!(args->flags & UCM_OPEN_LOOKUP_ONLY)) {
        device->base.capacity = device->base.raw_capacity = args->layout->capacity;
        device->base.shards_per_block = args->layout->shards_per_block;
    }
    *out = &device->base;
    return UCM_OK;
}

static const ucm_plugin plugin = {
    .struct_size = sizeof(ucm_plugin),
    .abi_major = UCM_ABI_MAJOR,
    .abi_minor = UCM_ABI_MINOR,
    .abi_draft = UCM_ABI_DRAFT,
    .memories = (uint64_t)1 << UCM_MEMORY_CUDA,
    .name = "Device",
    .version = "0.1.0",
    .summary = "Tells what it was given.",
    .n_metrics = N_METRICS,
    .metric_stride = sizeof(ucm_metric),
    .metrics = metrics,
    .open = device_open,
};

UCM_EXPORT const ucm_plugin *ucm_store_plugin_v1(void);
const ucm_plugin *ucm_store_plugin_v1(void) {
    return &plugin;
}
