/* SPDX-License-Identifier: MIT
 *
 * A layer as somebody wrote it for ABI 1.0: it hands everything on, and takes part in all of it.
 * Frozen, like the header beside it. It counts in its first metric whatever it is given that 1.0
 * does not allow.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ucm/store_v1.h"

#ifndef NAME
#define NAME "OldLayer"
#endif
/* A header of a later version sets what it appended to nonsense. */
#ifndef POISON
#define POISON(pointer) ((void)(pointer))
#define POISONED
#endif

enum { STRICT, FLAG, N_OPTIONS };
static const ucm_option options[] = {
    {.name = "layer_strict",
     .type = UCM_TYPE_BOOL,
     .initial = "false",
     .help = "All are 1.0." POISONED},
    {.name = "layer_flag",
     .type = UCM_TYPE_INT,
     .initial = "0",
     .help = "Bit to add below." POISONED},
};

enum { FAULTS, SHARDS, N_METRICS };
static const ucm_metric metrics[] = {
    {.name = "faults_total",
     .kind = UCM_METRIC_COUNTER,
     .unit = "",
     .help = "Wrong calls." POISONED},
    {.name = "shards_total", .kind = UCM_METRIC_COUNTER, .unit = "", .help = "Moved." POISONED},
};

struct layer {
    ucm_store base;
    ucm_store *lower;
    int64_t strict, flag;
    uint64_t values[N_METRICS]; /* atomic */
    pthread_mutex_t mutex;      /* guards running */
    pthread_cond_t idle;
    size_t running;
};

struct moving {
    struct layer *layer;
    void (*done)(void *ctx, size_t i, const ucm_result *result);
    void (*finished)(void *ctx);
    void *ctx;
};

static void expect(struct layer *l, int condition) {
    if (!condition) __atomic_fetch_add(&l->values[FAULTS], 1, __ATOMIC_RELAXED);
}

static void expect_zero(struct layer *l, uint64_t reserved) {
    expect(l, !l->strict || reserved == 0);
}

static ucm_status flags_are_known(uint64_t flags, uint64_t known, ucm_error *err) {
    return flags & ~known ? ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag is not known") : UCM_OK;
}

static void on_done(void *ctx, size_t i, const ucm_result *given) {
    struct moving *moving = ctx;
    ucm_result result;
    ucm_copy(&result, sizeof result, given);
    POISON(&result);
    expect(moving->layer, result.status != UCM_PENDING && result.status != UCM_BUSY);
    expect_zero(moving->layer, result.reserved);
    expect_zero(moving->layer, result.flags & ~(UCM_RESULT_PUBLISHED | UCM_RESULT_DECLINED));
    __atomic_fetch_add(&moving->layer->values[SHARDS], 1, __ATOMIC_RELAXED);
    moving->done(moving->ctx, i, &result);
}

static void leave(struct layer *l) {
    pthread_mutex_lock(&l->mutex);
    l->running--;
    pthread_cond_broadcast(&l->idle);
    pthread_mutex_unlock(&l->mutex);
}

static void on_finished(void *ctx) {
    struct moving moving = *(struct moving *)ctx;
    free(ctx);
    moving.finished(moving.ctx);
    leave(moving.layer);
}

static ucm_status start(struct layer *l, const ucm_transfer *given, int dump, ucm_task *task,
                        ucm_error *err) {
    struct moving *moving;
    ucm_transfer t;
    ucm_status status;
    if (flags_are_known(given->flags, UCM_TRANSFER_REPLACE, err)) return UCM_UNSUPPORTED;
    expect_zero(l, given->reserved);
    moving = malloc(sizeof *moving);
    *moving = (struct moving){l, given->done, given->finished, given->ctx};
    ucm_copy(&t, sizeof t, given);
    POISON(&t);
    if (l->flag) t.flags |= (uint64_t)1 << l->flag;
    t.done = on_done;
    t.finished = on_finished;
    t.ctx = moving;
    pthread_mutex_lock(&l->mutex);
    l->running++;
    pthread_mutex_unlock(&l->mutex);
    status = (dump ? ucm_dump : ucm_load)(l->lower, &t, task, err);
    if (status == UCM_OK) return status;
    free(moving);
    leave(l);
    return status;
}

static ucm_status load(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return start((struct layer *)s, t, 0, task, err);
}

static ucm_status dump(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return start((struct layer *)s, t, 1, task, err);
}

static ucm_status cancel(ucm_store *s, ucm_task task, ucm_error *err) {
    return ucm_cancel(((struct layer *)s)->lower, task, err);
}

static ucm_status lookup(ucm_store *s, const ucm_lookup_args *a, ucm_error *err) {
    struct layer *l = (struct layer *)s;
    ucm_lookup_args below;
    ucm_status status;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    expect_zero(l, a->reserved);
    ucm_copy(&below, sizeof below, a);
    POISON(&below);
    status = ucm_lookup(l->lower, &below, err);
    for (size_t i = 0; status == UCM_OK && a->tiers && i < a->n; i++)
        if (a->tiers[i]) a->tiers[i]++;
    return status;
}

static ucm_status ids(ucm_store *s, const ucm_ids_args *a, ucm_error *err,
                      ucm_status (*call)(ucm_store *, const ucm_ids_args *, ucm_error *)) {
    ucm_ids_args below;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    ucm_copy(&below, sizeof below, a);
    POISON(&below);
    return call(((struct layer *)s)->lower, &below, err);
}

static ucm_status prefetch(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    return ids(s, a, err, ucm_prefetch);
}

static ucm_status touch(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    return ids(s, a, err, ucm_touch);
}

static ucm_status remove_blocks(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    return ids(s, a, err, ucm_remove);
}

static ucm_status register_memory(ucm_store *s, const ucm_memory_args *a, ucm_error *err) {
    ucm_memory_args below;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    expect_zero((struct layer *)s, a->reserved);
    ucm_copy(&below, sizeof below, a);
    POISON(&below);
    return ucm_register_memory(((struct layer *)s)->lower, &below, err);
}

static ucm_status drain(ucm_store *s, const ucm_wait_args *a, ucm_report *report, ucm_error *err) {
    struct layer *l = (struct layer *)s;
    ucm_report below = {.struct_size = sizeof below};
    ucm_wait_args wait;
    ucm_status status;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    ucm_copy(&wait, sizeof wait, a);
    POISON(&wait);
    status = ucm_drain(l->lower, &wait, &below, err);
    if (report) {
        report->stored = below.stored;
        report->lost = below.lost;
        report->pending = below.pending;
        report->unfinished = below.unfinished;
    }
    return status;
}

static ucm_status read_metrics(ucm_store *s, const ucm_metrics_args *a, ucm_error *err) {
    struct layer *l = (struct layer *)s;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    for (size_t i = 0; i < a->n && i < N_METRICS; i++)
        a->values[i] = __atomic_load_n(&l->values[i], __ATOMIC_RELAXED);
    return UCM_OK;
}

static ucm_status close_store(ucm_store *s, const ucm_wait_args *a, ucm_report *report,
                              ucm_error *err) {
    struct layer *l = (struct layer *)s;
    size_t running;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    pthread_mutex_lock(&l->mutex);
    while (l->running && a->timeout_ms < 0) pthread_cond_wait(&l->idle, &l->mutex);
    running = l->running;
    pthread_mutex_unlock(&l->mutex);
    if (report) report->stored = report->lost = report->pending = report->unfinished = 0;
    if (running) return UCM_PENDING;
    pthread_cond_destroy(&l->idle);
    pthread_mutex_destroy(&l->mutex);
    free(l);
    return UCM_OK;
}

static const ucm_store_ops ops = {
    .struct_size = sizeof(ucm_store_ops),
    .lookup = lookup,
    .load = load,
    .dump = dump,
    .cancel = cancel,
    .prefetch = prefetch,
    .touch = touch,
    .remove = remove_blocks,
    .drain = drain,
    .metrics = read_metrics,
    .register_memory = register_memory,
    .close = close_store POISONED,
};

/* The same shape below, planes copied with the stride of this build. */
static ucm_status lower_layout(const ucm_layout_args *args, ucm_layout *out, ucm_error *err) {
    const ucm_layout *layout = args->layout;
    ucm_plane *planes = args->planes;
    if (flags_are_known(args->flags, 0, err)) return UCM_UNSUPPORTED;
    if (flags_are_known(layout->flags, UCM_LAYOUT_PAGES, err)) return UCM_UNSUPPORTED;
    if (args->planes_room < layout->n_planes * sizeof *planes || args->segments_room < 1)
        return ucm_fail(err, UCM_INVALID, 0, "no room for the planes");
    memset(planes, 0, layout->n_planes * sizeof *planes);
    for (uint32_t i = 0; i < layout->n_planes; i++) {
        const ucm_plane *plane = UCM_AT(ucm_plane, layout->planes, layout->plane_stride, i);
        planes[i].bytes = plane->bytes;
        planes[i].dtype = plane->dtype;
        planes[i].kind = plane->kind;
    }
    out->flags = layout->flags;
    out->n_planes = layout->n_planes;
    out->plane_stride = sizeof *planes;
    out->planes = planes;
    out->memory = layout->memory;
    out->device = layout->device;
    return UCM_OK;
}

static ucm_status open(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    const ucm_store *lower = args->lower;
    struct layer *l;
    if (flags_are_known(args->flags, UCM_OPEN_LOOKUP_ONLY, err)) return UCM_UNSUPPORTED;
    if (args->layout && flags_are_known(args->layout->flags, UCM_LAYOUT_PAGES, err))
        return UCM_UNSUPPORTED;
    l = calloc(1, sizeof *l);
    l->base.struct_size = sizeof l->base;
    l->base.ops = &ops;
    l->base.capabilities =
        lower->capabilities & (UCM_CAPS_OF_DATA | UCM_CAP_REMOVE | UCM_CAP_CANCEL);
    l->base.capacity = lower->capacity;
    l->base.raw_capacity = lower->raw_capacity;
    l->base.shards_per_block = lower->shards_per_block;
    POISON(&l->base);
    l->lower = args->lower;
    l->strict = UCM_AT(ucm_value, args->values, args->value_stride, STRICT)->i;
    l->flag = UCM_AT(ucm_value, args->values, args->value_stride, FLAG)->i;
    pthread_mutex_init(&l->mutex, NULL);
    pthread_cond_init(&l->idle, NULL);
    expect(l, UCM_HAS(ucm_store, lower, reserved) && UCM_HAS(ucm_store_ops, lower->ops, close));
    expect(l, args->unique_id != NULL && args->layer[0] && args->host->version[0]);
    expect_zero(l, lower->reserved | args->host->reserved | args->host->abi_minor);
    *out = &l->base;
    return UCM_OK;
}

static const ucm_plugin plugin = {
    .struct_size = sizeof(ucm_plugin),
    .abi_major = UCM_ABI_MAJOR,
    .abi_minor = UCM_ABI_MINOR,
    .abi_draft = UCM_ABI_DRAFT,
    .flags = UCM_PLUGIN_NEEDS_LOWER,
    .memories = (uint64_t)1 << UCM_MEMORY_HOST | (uint64_t)1 << UCM_MEMORY_CUDA,
    .name = NAME,
    .version = "1",
    .summary = "Hands everything on.",
    .n_options = N_OPTIONS,
    .option_stride = sizeof options[0],
    .options = options,
    .n_metrics = N_METRICS,
    .metric_stride = sizeof metrics[0],
    .metrics = metrics,
    .lower_layout = lower_layout,
    .open = open POISONED,
};

const ucm_plugin *ucm_store_plugin_v1(void) {
    return &plugin;
}
