/* SPDX-License-Identifier: MIT
 *
 * A bottom store as somebody wrote it for ABI 1.0: blocks in memory, done before load and dump
 * return. Frozen, like the header beside it. It counts in its first metric whatever it is given
 * that 1.0 does not allow; options make it fail.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ucm/store_v1.h"

#ifndef NAME
#define NAME "OldBottom"
#endif
/* A header of a later version sets what it appended to nonsense. */
#ifndef POISON
#define POISON(pointer) ((void)(pointer))
#define POISONED
#endif

enum { STRICT, LOAD_STATUS, DUMP_STATUS, CALL_STATUS, DRAIN_STATUS, CLOSE_STATUS, N_OPTIONS };
static const ucm_option options[] = {
    {.name = "bottom_strict",
     .type = UCM_TYPE_BOOL,
     .initial = "false",
     .help = "All are 1.0." POISONED},
    {.name = "bottom_load", .type = UCM_TYPE_INT, .initial = "0", .help = "Of a shard." POISONED},
    {.name = "bottom_dump", .type = UCM_TYPE_INT, .initial = "0", .help = "Of a shard." POISONED},
    {.name = "bottom_call", .type = UCM_TYPE_INT, .initial = "0", .help = "Of load." POISONED},
    {.name = "bottom_drain", .type = UCM_TYPE_INT, .initial = "0", .help = "Of drain." POISONED},
    {.name = "bottom_close", .type = UCM_TYPE_INT, .initial = "0", .help = "Of close." POISONED},
#ifdef UCM_LATER
    {.name = "bottom_later", .type = UCM_LATER_TYPE, .initial = "a; b", .allowed = "?" POISONED},
#endif
};

enum { FAULTS, SHARDS, SIZES, N_VALUES = SIZES + UCM_HISTOGRAM_VALUES };
static const ucm_metric metrics[] = {
    {.name = "faults_total",
     .kind = UCM_METRIC_COUNTER,
     .unit = "",
     .help = "Wrong calls." POISONED},
    {.name = "shards", .kind = UCM_METRIC_GAUGE, .unit = "shards", .help = "Kept." POISONED},
    {.name = "sizes", .kind = UCM_METRIC_HISTOGRAM, .unit = "bytes", .help = "Dumped." POISONED},
#ifdef UCM_LATER
    {.name = "later", .kind = UCM_LATER_METRIC, .unit = "", .help = "Of unknown width." POISONED},
#endif
};

struct block {
    struct block *next;
    uint8_t id[UCM_BLOCK_ID_BYTES];
    uint32_t have, shards;
    struct {
        uint8_t *bytes; /* NULL: not there */
        uint64_t length;
    } shard[];
};

struct bottom {
    ucm_store base;
    pthread_mutex_t mutex; /* guards all below */
    struct block *blocks;
    uint64_t values[N_VALUES], stored;
    int64_t option[N_OPTIONS];
    uint32_t n_segments;
    uint64_t segment_bytes[64];
};

static void expect(struct bottom *b, int condition) {
    if (!condition) __atomic_fetch_add(&b->values[FAULTS], 1, __ATOMIC_RELAXED);
}

/* What is reserved has no meaning among peers of 1.0. */
static void expect_zero(struct bottom *b, uint64_t reserved) {
    expect(b, !b->option[STRICT] || reserved == 0);
}

static struct block **find(struct bottom *b, const uint8_t *id) {
    struct block **at = &b->blocks;
    while (*at && memcmp((*at)->id, id, UCM_BLOCK_ID_BYTES) != 0) at = &(*at)->next;
    return at;
}

static int published(struct bottom *b, const uint8_t *id) {
    const struct block *block = *find(b, id);
    return block && block->have == block->shards;
}

static void erase(struct bottom *b, struct block **at) {
    struct block *block = *at;
    if (!block) return;
    *at = block->next;
    b->values[SHARDS] -= block->have;
    for (uint32_t i = 0; i < block->shards; i++) free(block->shard[i].bytes);
    free(block);
}

static void copy(struct bottom *b, void *const *row, uint8_t *bytes, uint64_t length, int up) {
    for (uint32_t k = 0; length; k++) {
        const uint64_t part = length < b->segment_bytes[k] ? length : b->segment_bytes[k];
        memcpy(up ? row[k] : bytes, up ? bytes : row[k], part);
        bytes += part;
        length -= part;
    }
}

static ucm_result dump_one(struct bottom *b, const ucm_transfer *t, size_t i) {
    const uint8_t *id = t->block_ids + i * UCM_BLOCK_ID_BYTES;
    const uint64_t length = t->lengths ? t->lengths[i] : b->base.capacity;
    ucm_result result = {.struct_size = sizeof result};
    struct block *block, **at = find(b, id);
    if ((t->flags & UCM_TRANSFER_REPLACE) && published(b, id)) erase(b, at);
    block = *at;
    if (!block) {
        block = *at = calloc(1, sizeof *block + b->base.shards_per_block * sizeof block->shard[0]);
        memcpy(block->id, id, sizeof block->id);
        block->shards = b->base.shards_per_block;
    }
    if (!block->shard[t->shard_index[i]].bytes) {
        uint8_t *bytes = malloc(length + 1);
        copy(b, t->addresses + i * b->n_segments, bytes, length, 0);
        block->shard[t->shard_index[i]].bytes = bytes;
        block->shard[t->shard_index[i]].length = length;
        block->have++;
        b->values[SHARDS]++;
    }
    b->stored++;
    b->values[SIZES]++;
    b->values[SIZES + 1] += length;
    if (block->have == block->shards) result.flags = UCM_RESULT_PUBLISHED;
    return result;
}

static ucm_result load_one(struct bottom *b, const ucm_transfer *t, size_t i) {
    const uint8_t *id = t->block_ids + i * UCM_BLOCK_ID_BYTES;
    struct block *block = *find(b, id);
    ucm_result result = {.struct_size = sizeof result, .status = UCM_NOT_FOUND};
    if (!published(b, id)) return result;
    result.status = UCM_OK;
    result.length = block->shard[t->shard_index[i]].length;
    copy(b, t->addresses + i * b->n_segments, block->shard[t->shard_index[i]].bytes, result.length,
         1);
    return result;
}

static ucm_status flags_are_known(uint64_t flags, uint64_t known, ucm_error *err) {
    return flags & ~known ? ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag is not known") : UCM_OK;
}

static ucm_status transfer(struct bottom *b, const ucm_transfer *t, int dump, ucm_task *task,
                           ucm_error *err) {
    if (flags_are_known(t->flags, UCM_TRANSFER_REPLACE, err)) return UCM_UNSUPPORTED;
    if (b->option[CALL_STATUS])
        return ucm_fail(err, (ucm_status)b->option[CALL_STATUS], 5, "as bottom_call says");
    expect_zero(b, t->reserved);
    if (task) *task = 0;
    for (size_t i = 0; i < t->n; i++) {
        ucm_result result;
        pthread_mutex_lock(&b->mutex);
        result = dump ? dump_one(b, t, i) : load_one(b, t, i);
        pthread_mutex_unlock(&b->mutex);
        if (b->option[dump ? DUMP_STATUS : LOAD_STATUS])
            result.status = (ucm_status)b->option[dump ? DUMP_STATUS : LOAD_STATUS];
        POISON(&result);
#ifdef UCM_LATER
        result.flags |= UCM_LATER_RESULT;
#endif
        t->done(t->ctx, i, &result);
    }
    t->finished(t->ctx);
    return UCM_OK;
}

static ucm_status load(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return transfer((struct bottom *)s, t, 0, task, err);
}

static ucm_status dump(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return transfer((struct bottom *)s, t, 1, task, err);
}

static ucm_status lookup(ucm_store *s, const ucm_lookup_args *a, ucm_error *err) {
    struct bottom *b = (struct bottom *)s;
    size_t all = 0, prefix = 0, last = 0;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    if (a->mode < UCM_LOOKUP_ALL || a->mode > UCM_LOOKUP_LAST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this mode of lookup is not known");
    expect_zero(b, a->reserved);
    pthread_mutex_lock(&b->mutex);
    for (size_t i = 0; i < a->n; i++) {
        const int here = published(b, a->block_ids + i * UCM_BLOCK_ID_BYTES);
        if (a->tiers) a->tiers[i] = (uint8_t)here;
        all += (size_t)here;
        if (here) last = i + 1;
        if (here && prefix == i) prefix++;
    }
    pthread_mutex_unlock(&b->mutex);
    if (a->hits)
        *a->hits = a->mode == UCM_LOOKUP_ALL ? all : a->mode == UCM_LOOKUP_PREFIX ? prefix : last;
    return UCM_OK;
}

static ucm_status remove_blocks(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    struct bottom *b = (struct bottom *)s;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    pthread_mutex_lock(&b->mutex);
    for (size_t i = 0; i < a->n; i++) erase(b, find(b, a->block_ids + i * UCM_BLOCK_ID_BYTES));
    pthread_mutex_unlock(&b->mutex);
    return UCM_OK;
}

static void fill(struct bottom *b, ucm_report *report) {
    uint64_t unfinished = 0;
    pthread_mutex_lock(&b->mutex);
    for (struct block *block = b->blocks; block; block = block->next)
        if (block->have < block->shards) unfinished += block->have;
    if (report) {
        report->stored = b->stored;
        report->lost = report->pending = 0;
        report->unfinished = unfinished;
    }
    b->stored = 0;
    pthread_mutex_unlock(&b->mutex);
}

static ucm_status drain(ucm_store *s, const ucm_wait_args *a, ucm_report *report, ucm_error *err) {
    struct bottom *b = (struct bottom *)s;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    if (b->option[DRAIN_STATUS])
        return ucm_fail(err, (ucm_status)b->option[DRAIN_STATUS], 0, "as bottom_drain says");
    fill(b, report);
    return UCM_OK;
}

static ucm_status read_metrics(ucm_store *s, const ucm_metrics_args *a, ucm_error *err) {
    struct bottom *b = (struct bottom *)s;
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    for (size_t i = 0; i < a->n && i < N_VALUES; i++) a->values[i] = b->values[i];
    return UCM_OK;
}

static ucm_status close_store(ucm_store *s, const ucm_wait_args *a, ucm_report *report,
                              ucm_error *err) {
    struct bottom *b = (struct bottom *)s;
    const ucm_status status = (ucm_status)b->option[CLOSE_STATUS];
    if (flags_are_known(a->flags, 0, err)) return UCM_UNSUPPORTED;
    if (status == UCM_INVALID) return ucm_fail(err, status, 0, "as bottom_close says");
    fill(b, report);
    while (b->blocks) erase(b, &b->blocks);
    pthread_mutex_destroy(&b->mutex);
    free(b);
    return status ? ucm_fail(err, status, 0, "as bottom_close says") : UCM_OK;
}

static const ucm_store_ops ops = {
    .struct_size = sizeof(ucm_store_ops),
    .lookup = lookup,
    .load = load,
    .dump = dump,
    .remove = remove_blocks,
    .drain = drain,
    .metrics = read_metrics,
    .close = close_store POISONED,
};

static ucm_status open(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    const ucm_layout *layout = args->layout;
    struct bottom *b;
    if (flags_are_known(args->flags, UCM_OPEN_LOOKUP_ONLY, err)) return UCM_UNSUPPORTED;
    if (layout && flags_are_known(layout->flags, UCM_LAYOUT_PAGES, err)) return UCM_UNSUPPORTED;
    if (layout && layout->memory != UCM_MEMORY_HOST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this memory is not known");
    b = calloc(1, sizeof *b);
    b->base.struct_size = sizeof b->base;
    b->base.ops = &ops;
    b->base.capabilities = UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_REMOVE;
#ifdef UCM_LATER
    b->base.capabilities |= UCM_LATER_CAP;
#endif
    POISON(&b->base);
    pthread_mutex_init(&b->mutex, NULL);
    for (size_t i = 0; i < N_OPTIONS; i++)
        b->option[i] = UCM_AT(ucm_value, args->values, args->value_stride, i)->i;
    expect(b, args->lower == NULL && args->unique_id != NULL && args->layer[0]);
    expect(b, args->host->version[0] && UCM_HAS(ucm_host, args->host, version));
    if (layout && !(args->flags & UCM_OPEN_LOOKUP_ONLY)) {
        b->base.capacity = layout->capacity;
        b->base.raw_capacity = layout->raw_capacity;
        b->base.shards_per_block = layout->shards_per_block;
        b->n_segments = layout->n_segments;
        memcpy(b->segment_bytes, layout->segment_bytes, layout->n_segments * sizeof(uint64_t));
        expect_zero(b, layout->reserved | layout->reserved2 | layout->group);
    }
#ifdef UCM_LATER /* the text of an option whose type the host may not know */
    expect(b,
           strcmp(UCM_AT(ucm_value, args->values, args->value_stride, N_OPTIONS)->s, "a; b") == 0);
#endif
    *out = &b->base;
    return UCM_OK;
}

static const ucm_plugin plugin = {
    .struct_size = sizeof(ucm_plugin),
    .abi_major = UCM_ABI_MAJOR,
    .abi_minor = UCM_ABI_MINOR,
    .abi_draft = UCM_ABI_DRAFT,
    .memories = (uint64_t)1 << UCM_MEMORY_HOST,
    .name = NAME,
    .version = "1",
    .summary = "Keeps blocks in memory.",
    .n_options = sizeof options / sizeof options[0],
    .option_stride = sizeof options[0],
    .options = options,
    .n_metrics = sizeof metrics / sizeof metrics[0],
    .metric_stride = sizeof metrics[0],
    .metrics = metrics,
    .open = open POISONED,
};

const ucm_plugin *ucm_store_plugin_v1(void) {
    return &plugin;
}
