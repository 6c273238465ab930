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
