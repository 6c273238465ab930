/* SPDX-License-Identifier: MIT */
/* The smallest descriptor, with every field open to be wrong. */
#include "ucm/store_v1.h"

#ifndef SIZE
#define SIZE sizeof(ucm_plugin)
#endif
#ifndef MAJOR
#define MAJOR UCM_ABI_MAJOR
#endif
#ifndef MINOR
#define MINOR UCM_ABI_MINOR
#endif
#ifndef DRAFT
#define DRAFT UCM_ABI_DRAFT
#endif
#ifndef FLAGS
#define FLAGS 0
#endif
#ifndef NAME
#define NAME "Tiny"
#endif
#ifndef OPTION_STRIDE
#define OPTION_STRIDE sizeof(ucm_option)
#endif
#ifndef OPTIONS
#define OPTIONS options
#endif
#ifndef METRIC_STRIDE
#define METRIC_STRIDE sizeof(ucm_metric)
#endif
#ifndef TYPE
#define TYPE UCM_TYPE_INT
#endif
#ifndef OPEN
#define OPEN refuse
#endif
#ifndef SYMBOL
#define SYMBOL ucm_store_plugin_v1
#endif
#ifndef ANSWER
#define ANSWER &plugin
#endif

static const ucm_option options[] = {{"tiny_size", TYPE, 0, "1", "1..9", 0, "How tiny."}};
static const ucm_metric metrics[] = {{"x_total", UCM_METRIC_COUNTER, 0, "", "How many."}};

ucm_status refuse(const ucm_open_args *args, ucm_store **out, ucm_error *err);
ucm_status refuse(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    (void)args;
    (void)out;
    return ucm_fail(err, UCM_UNAVAILABLE, 19, "there is no tiny device");
}

#ifndef STORE_SIZE
#define STORE_SIZE sizeof(ucm_store)
#endif
#ifndef OPS_SIZE
#define OPS_SIZE sizeof(ucm_store_ops)
#endif
#ifndef LOOKUP
#define LOOKUP no_lookup
#endif
#ifndef CAPABILITIES
#define CAPABILITIES 0
#endif
#ifndef CAPACITY
#define CAPACITY args->layout->capacity
#endif
#ifndef STORE
#define STORE &store
#endif

/* Opens what is wrong as the macros say. */
static ucm_status no_lookup(ucm_store *s, const ucm_lookup_args *a, ucm_error *err) {
    return (void)s, (void)a, ucm_fail(err, UCM_INTERNAL, 0, "a call of a wrong store");
}
static ucm_status no_move(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return (void)s, (void)t, (void)task, ucm_fail(err, UCM_INTERNAL, 0, "a call of a wrong store");
}
static ucm_status no_end(ucm_store *s, const ucm_wait_args *a, ucm_report *r, ucm_error *err) {
    return (void)s, (void)a, (void)r, ucm_fail(err, UCM_INTERNAL, 0, "a call of a wrong store");
}

ucm_status unsound(const ucm_open_args *args, ucm_store **out, ucm_error *err);
ucm_status unsound(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    static const ucm_store_ops ops = {
        .struct_size = OPS_SIZE,
        .lookup = LOOKUP,
        .load = no_move,
        .dump = no_move,
        .drain = no_end,
        .close = no_end,
    };
    static ucm_store store;
    store.struct_size = STORE_SIZE;
    store.ops = &ops;
    store.capabilities = CAPABILITIES;
    store.capacity = CAPACITY;
    store.raw_capacity = args->layout->raw_capacity;
    store.shards_per_block = args->layout->shards_per_block;
    *out = STORE;
    (void)err, (void)store, (void)no_lookup;
    return UCM_OK;
}

static const ucm_plugin plugin = {
    .struct_size = SIZE,
    .abi_major = MAJOR,
    .abi_minor = MINOR,
    .abi_draft = DRAFT,
    .flags = FLAGS,
    .name = NAME,
    .version = "1.2.3",
    .summary = "Refuses to open.",
    .n_options = 1,
    .option_stride = OPTION_STRIDE,
    .options = OPTIONS,
    .n_metrics = 1,
    .metric_stride = METRIC_STRIDE,
    .metrics = metrics,
    .open = OPEN,
};

UCM_EXPORT const ucm_plugin *SYMBOL(void);
const ucm_plugin *SYMBOL(void) {
    (void)plugin, (void)options;
    return ANSWER;
}
