/* SPDX-License-Identifier: MIT
 *
 * Heap - a StoreV1 store in plain C: blocks live in malloc'ed memory of this process, the least
 * recently used ones go first when heap_capacity_mb is reached.
 *
 * It is small because it may be: copying memory needs no thread of its own, so a transfer is over
 * when load or dump returns, every `done` runs inside them, and nothing is ever pending.
 */
#include <errno.h>
#include <pthread.h>
#include <search.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "ucm/store_v1.h"

enum { MAX_UNFINISHED = 1024, UNFINISHED_SECONDS = 600 };

enum { OPTION_CAPACITY, N_OPTIONS };
static const ucm_option options[N_OPTIONS] = {
    {"heap_capacity_mb", UCM_TYPE_INT, 0, "1024", "1..1048576", "MiB",
     "Memory for blocks, unfinished ones included."},
};

enum { DUMPED, DUMPED_BYTES, LOADED, LOADED_BYTES, EVICTED, ABANDONED, BLOCKS, BYTES, N_METRICS };
static const ucm_metric metrics[N_METRICS] = {
    {"dump_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards", "Shards dumped."},
    {"dump_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes", "Bytes dumped."},
    {"load_shards_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "shards", "Shards loaded."},
    {"load_bytes_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "bytes", "Bytes loaded."},
    {"evicted_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Published blocks that made room for others."},
    {"abandoned_blocks_total", UCM_METRIC_COUNTER, UCM_SCOPE_STORE, "blocks",
     "Blocks given up before their last shard came."},
    {"blocks", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "blocks", "Published blocks."},
    {"bytes", UCM_METRIC_GAUGE, UCM_SCOPE_STORE, "bytes", "Memory in use."},
};

struct shard {
    unsigned char *bytes; /* NULL: not here yet */
    uint64_t length;
};

struct block;

struct link {
    struct link *older, *newer;
};

/* One copy of a block, complete or not. */
struct copy {
    struct link link; /* first: of `published` or `unfinished` */
    struct block *block;
    uint64_t bytes;
    uint32_t have; /* shards that are here */
    time_t changed;
    struct shard shards[];
};

struct block {
    unsigned char id[UCM_BLOCK_ID_BYTES]; /* first: the key of the tree */
    struct copy *published, *unfinished;
};

struct list { /* a ring through `ends`; ends.newer is the oldest */
    struct link ends;
    uint64_t count;
};

struct heap {
    ucm_store base;
    uint32_t n_segments;
    uint64_t *segment_bytes;
    uint64_t limit;
    pthread_mutex_t mutex; /* guards all below */
    void *blocks;          /* tsearch tree of struct block */
    struct list published, unfinished;
    uint64_t values[N_METRICS];
    uint64_t stored, lost; /* since the last report */
};

/* Copies and their lists: with the mutex held */

static void list_init(struct list *list) {
    list->ends.older = list->ends.newer = &list->ends;
    list->count = 0;
}

static void list_remove(struct list *list, struct copy *copy) {
    copy->link.older->newer = copy->link.newer;
    copy->link.newer->older = copy->link.older;
    list->count--;
}

static void list_append(struct list *list, struct copy *copy) {
    copy->link.older = list->ends.older;
    copy->link.newer = &list->ends;
    copy->link.older->newer = copy->link.newer->older = &copy->link;
    list->count++;
}

static struct copy *list_oldest(struct list *list, const struct copy *except) {
    struct link *link = list->ends.newer;
    if (except && link == &except->link) link = link->newer;
    return link == &list->ends ? NULL : (struct copy *)link;
}

static time_t now_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

static int compare(const void *a, const void *b) {
    return memcmp(a, b, UCM_BLOCK_ID_BYTES);
}

static struct block *find(struct heap *heap, const uint8_t *id) {
    void *node = tfind(id, &heap->blocks, compare);
    return node ? *(struct block **)node : NULL;
}

static struct block *find_published(struct heap *heap, const uint8_t *id) {
    struct block *block = find(heap, id);
    return block && block->published ? block : NULL;
}

static struct block *find_or_add(struct heap *heap, const uint8_t *id) {
    struct block *block = find(heap, id);
    if (block) return block;
    block = calloc(1, sizeof *block);
    if (!block) return NULL;
    memcpy(block->id, id, sizeof block->id);
    if (tsearch(block, &heap->blocks, compare)) return block;
    free(block);
    return NULL;
}

static void forget_if_empty(struct heap *heap, struct block *block) {
    if (block->published || block->unfinished) return;
    tdelete(block, &heap->blocks, compare);
    free(block);
}

/* Frees a copy; its block may stay without any. */
static void drop_copy(struct heap *heap, struct copy *copy) {
    struct block *block = copy->block;
    if (block->published == copy) {
        list_remove(&heap->published, copy);
        block->published = NULL;
    } else {
        list_remove(&heap->unfinished, copy);
        block->unfinished = NULL;
    }
    for (uint32_t i = 0; i < heap->base.shards_per_block; i++) free(copy->shards[i].bytes);
    heap->values[BYTES] -= copy->bytes;
    free(copy);
}

static void abandon(struct heap *heap, struct copy *copy) {
    struct block *block = copy->block;
    heap->values[ABANDONED]++;
    heap->lost += copy->have;
    drop_copy(heap, copy);
    forget_if_empty(heap, block);
}

/* Room for `bytes` more: the least recently used blocks go, then unfinished ones, `keep` never. */
static int make_room(struct heap *heap, uint64_t bytes, const struct copy *keep) {
    while (heap->values[BYTES] + bytes > heap->limit) {
        struct copy *victim = list_oldest(&heap->published, NULL);
        if (victim) {
            struct block *block = victim->block;
            heap->values[EVICTED]++;
            drop_copy(heap, victim);
            forget_if_empty(heap, block);
            continue;
        }
        victim = list_oldest(&heap->unfinished, keep);
        if (!victim) return 0;
        abandon(heap, victim);
    }
    return 1;
}

static void abandon_stale(struct heap *heap) {
    const time_t now = now_seconds();
    struct copy *oldest = list_oldest(&heap->unfinished, NULL);
    while (oldest && (heap->unfinished.count > MAX_UNFINISHED ||
                      now - oldest->changed > UNFINISHED_SECONDS)) {
        abandon(heap, oldest);
        oldest = list_oldest(&heap->unfinished, NULL);
    }
}

/* Transfers */

static ucm_result result_of(ucm_status status, int os_errno) {
    ucm_result result = {0};
    result.struct_size = sizeof result;
    result.status = status;
    result.os_errno = os_errno;
    return result;
}

/* Copies between a shard's segments and one run of bytes. */
static void copy_bytes(const struct heap *heap, void *const *addresses, unsigned char *bytes,
                       uint64_t length, int to_segments) {
    for (uint32_t k = 0; length; k++) {
        const uint64_t part = length < heap->segment_bytes[k] ? length : heap->segment_bytes[k];
        if (to_segments)
            memcpy(addresses[k], bytes, (size_t)part);
        else
            memcpy(bytes, addresses[k], (size_t)part);
        bytes += part;
        length -= part;
    }
}

static ucm_status begin_copy(struct heap *heap, struct block *block) {
    const uint32_t shards = heap->base.shards_per_block;
    struct copy *copy = calloc(1, sizeof *copy + shards * sizeof copy->shards[0]);
    if (!copy) return UCM_UNAVAILABLE;
    copy->block = block;
    copy->changed = now_seconds();
    block->unfinished = copy;
    list_append(&heap->unfinished, copy);
    return UCM_OK;
}

static void publish(struct heap *heap, struct block *block) {
    struct copy *copy = block->unfinished;
    if (block->published) drop_copy(heap, block->published);
    list_remove(&heap->unfinished, copy);
    block->unfinished = NULL;
    block->published = copy;
    list_append(&heap->published, copy);
}

/* One shard, mutex held. */
static ucm_result dump_shard(struct heap *heap, const ucm_transfer *t, size_t i) {
    const uint64_t length = t->lengths ? t->lengths[i] : heap->base.capacity;
    ucm_result result = result_of(UCM_OK, 0);
    struct block *block = find_or_add(heap, t->block_ids + i * UCM_BLOCK_ID_BYTES);
    struct copy *copy;
    struct shard *shard;
    if (!block) return result_of(UCM_UNAVAILABLE, ENOMEM);
    if (block->published && !block->unfinished && !(t->flags & UCM_TRANSFER_REPLACE)) {
        result.flags = UCM_RESULT_PUBLISHED; /* the first complete copy wins */
        return result;
    }
    if (!block->unfinished && begin_copy(heap, block) != UCM_OK) {
        forget_if_empty(heap, block);
        return result_of(UCM_UNAVAILABLE, ENOMEM);
    }
    copy = block->unfinished;
    shard = &copy->shards[t->shard_index[i]];
    if (shard->bytes) return result;
    if (!make_room(heap, length, copy)) return result_of(UCM_NO_SPACE, 0);
    shard->bytes = malloc(length ? (size_t)length : 1);
    if (!shard->bytes) return result_of(UCM_UNAVAILABLE, ENOMEM);
    copy_bytes(heap, t->addresses + i * heap->n_segments, shard->bytes, length, 0);
    shard->length = length;
    copy->bytes += length;
    heap->values[BYTES] += length;
    copy->changed = now_seconds();
    list_remove(&heap->unfinished, copy);
    list_append(&heap->unfinished, copy);
    if (++copy->have < heap->base.shards_per_block) return result;
    publish(heap, block);
    result.flags = UCM_RESULT_PUBLISHED;
    return result;
}

static ucm_result load_shard(struct heap *heap, const ucm_transfer *t, size_t i) {
    struct block *block = find_published(heap, t->block_ids + i * UCM_BLOCK_ID_BYTES);
    ucm_result result = result_of(UCM_OK, 0);
    const struct shard *shard;
    if (!block) return result_of(UCM_NOT_FOUND, 0);
    list_remove(&heap->published, block->published);
    list_append(&heap->published, block->published);
    shard = &block->published->shards[t->shard_index[i]];
    copy_bytes(heap, t->addresses + i * heap->n_segments, shard->bytes, shard->length, 1);
    result.length = shard->length;
    return result;
}

static int too_late(int64_t deadline_ns) {
    struct timespec now;
    if (!deadline_ns) return 0;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec > deadline_ns;
}

static ucm_status move(ucm_store *store, const ucm_transfer *t, int dump, ucm_task *task,
                       ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    if (t->flags & ~(uint64_t)UCM_TRANSFER_REPLACE)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag of this transfer is not known to Heap");
    if (task) *task = 0;
    for (size_t i = 0; i < t->n; i++) {
        ucm_result result;
        if (too_late(t->deadline_ns)) {
            result = result_of(UCM_TIMEOUT, 0);
        } else {
            pthread_mutex_lock(&heap->mutex);
            result = dump ? dump_shard(heap, t, i) : load_shard(heap, t, i);
            if (result.status == UCM_OK) {
                const uint64_t length = dump && t->lengths ? t->lengths[i] : heap->base.capacity;
                heap->values[dump ? DUMPED : LOADED]++;
                heap->values[dump ? DUMPED_BYTES : LOADED_BYTES] += dump ? length : result.length;
                heap->stored += dump ? 1 : 0;
            }
            if (dump) abandon_stale(heap);
            pthread_mutex_unlock(&heap->mutex);
        }
        t->done(t->ctx, i, &result);
    }
    t->finished(t->ctx);
    return UCM_OK;
}

static ucm_status heap_load(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return move(s, t, 0, task, err);
}

static ucm_status heap_dump(ucm_store *s, const ucm_transfer *t, ucm_task *task, ucm_error *err) {
    return move(s, t, 1, task, err);
}

/* Other operations */

static ucm_status unknown_flags(ucm_error *err) {
    return ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag of this call is not known to Heap");
}

static ucm_status heap_lookup(ucm_store *store, const ucm_lookup_args *a, ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    size_t all = 0, prefix = 0, last = 0;
    if (a->flags) return unknown_flags(err);
    if (a->mode < UCM_LOOKUP_ALL || a->mode > UCM_LOOKUP_LAST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this lookup mode is not known to Heap");
    pthread_mutex_lock(&heap->mutex);
    for (size_t i = 0; i < a->n; i++) {
        const int here = find_published(heap, a->block_ids + i * UCM_BLOCK_ID_BYTES) != NULL;
        if (a->tiers) a->tiers[i] = (uint8_t)here;
        if (!here) continue;
        all++;
        last = i + 1;
        if (prefix == i) prefix++;
    }
    pthread_mutex_unlock(&heap->mutex);
    if (a->hits)
        *a->hits = a->mode == UCM_LOOKUP_ALL ? all : a->mode == UCM_LOOKUP_PREFIX ? prefix : last;
    return UCM_OK;
}

static ucm_status heap_touch(ucm_store *store, const ucm_ids_args *a, ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    if (a->flags) return unknown_flags(err);
    pthread_mutex_lock(&heap->mutex);
    for (size_t i = 0; i < a->n; i++) {
        struct block *block = find_published(heap, a->block_ids + i * UCM_BLOCK_ID_BYTES);
        if (!block) continue;
        list_remove(&heap->published, block->published);
        list_append(&heap->published, block->published);
    }
    pthread_mutex_unlock(&heap->mutex);
    return UCM_OK;
}

static ucm_status heap_remove(ucm_store *store, const ucm_ids_args *a, ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    if (a->flags) return unknown_flags(err);
    pthread_mutex_lock(&heap->mutex);
    for (size_t i = 0; i < a->n; i++) {
        struct block *block = find(heap, a->block_ids + i * UCM_BLOCK_ID_BYTES);
        if (!block) continue;
        if (block->published) drop_copy(heap, block->published);
        if (block->unfinished) drop_copy(heap, block->unfinished);
        forget_if_empty(heap, block);
    }
    pthread_mutex_unlock(&heap->mutex);
    return UCM_OK;
}

static void fill_report(struct heap *heap, ucm_report *report) {
    uint64_t unfinished = 0;
    const struct link *link = heap->unfinished.ends.newer;
    for (; link != &heap->unfinished.ends; link = link->newer)
        unfinished += ((const struct copy *)link)->have;
    if (report) {
        report->stored = heap->stored;
        report->lost = heap->lost;
        report->pending = 0;
        report->unfinished = unfinished;
    }
    heap->stored = heap->lost = 0;
}

static ucm_status heap_drain(ucm_store *store, const ucm_wait_args *a, ucm_report *report,
                             ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    if (a->flags) return unknown_flags(err);
    pthread_mutex_lock(&heap->mutex);
    fill_report(heap, report);
    pthread_mutex_unlock(&heap->mutex);
    return UCM_OK;
}

static ucm_status heap_metrics(ucm_store *store, const ucm_metrics_args *a, ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    if (a->flags) return unknown_flags(err);
    pthread_mutex_lock(&heap->mutex);
    heap->values[BLOCKS] = heap->published.count;
    for (size_t i = 0; i < a->n && i < N_METRICS; i++) a->values[i] = heap->values[i];
    pthread_mutex_unlock(&heap->mutex);
    return UCM_OK;
}

static void destroy(struct heap *heap) {
    struct copy *copy;
    while ((copy = list_oldest(&heap->published, NULL)) ||
           (copy = list_oldest(&heap->unfinished, NULL))) {
        struct block *block = copy->block;
        drop_copy(heap, copy);
        forget_if_empty(heap, block);
    }
    pthread_mutex_destroy(&heap->mutex);
    free(heap->segment_bytes);
    free(heap);
}

static ucm_status heap_close(ucm_store *store, const ucm_wait_args *a, ucm_report *report,
                             ucm_error *err) {
    struct heap *heap = (struct heap *)store;
    if (a->flags) return unknown_flags(err);
    fill_report(heap, report);
    destroy(heap);
    return UCM_OK;
}

/* Opening */

static const ucm_store_ops ops = {
    .struct_size = sizeof(ucm_store_ops),
    .lookup = heap_lookup,
    .load = heap_load,
    .dump = heap_dump,
    .touch = heap_touch,
    .remove = heap_remove,
    .drain = heap_drain,
    .metrics = heap_metrics,
    .close = heap_close,
};

static ucm_status take_layout(struct heap *heap, const ucm_layout *layout, ucm_error *err) {
    const uint64_t block_bytes = layout->capacity * layout->shards_per_block;
    char text[200];
    if (layout->flags & ~(uint64_t)UCM_LAYOUT_PAGES)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "a flag of the layout is not known to Heap");
    if (layout->memory != UCM_MEMORY_HOST)
        return ucm_fail(err, UCM_UNSUPPORTED, 0,
                        "Heap copies host memory only; put a layer that "
                        "moves device memory on top");
    if (block_bytes > heap->limit) {
        snprintf(text, sizeof text,
                 "heap_capacity_mb is %llu, less than one block of %llu bytes; set it higher",
                 (unsigned long long)(heap->limit >> 20), (unsigned long long)block_bytes);
        return ucm_fail(err, UCM_INVALID, 0, text);
    }
    heap->base.capacity = layout->capacity;
    heap->base.raw_capacity = layout->raw_capacity;
    heap->base.shards_per_block = layout->shards_per_block;
    heap->n_segments = layout->n_segments;
    heap->segment_bytes = malloc(layout->n_segments * sizeof heap->segment_bytes[0]);
    if (!heap->segment_bytes) return ucm_fail(err, UCM_UNAVAILABLE, ENOMEM, "out of memory");
    memcpy(heap->segment_bytes, layout->segment_bytes,
           layout->n_segments * sizeof heap->segment_bytes[0]);
    return UCM_OK;
}

static ucm_status heap_open(const ucm_open_args *args, ucm_store **out, ucm_error *err) {
    struct heap *heap;
    ucm_status status;
    if (args->flags & ~(uint64_t)UCM_OPEN_LOOKUP_ONLY) return unknown_flags(err);
    heap = calloc(1, sizeof *heap);
    if (!heap) return ucm_fail(err, UCM_UNAVAILABLE, ENOMEM, "out of memory");
    heap->base.struct_size = sizeof heap->base;
    heap->base.ops = &ops;
    heap->base.capabilities = UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_REMOVE;
    heap->limit = (uint64_t)UCM_AT(ucm_value, args->values, args->value_stride, OPTION_CAPACITY)->i
                  << 20;
    pthread_mutex_init(&heap->mutex, NULL);
    list_init(&heap->published);
    list_init(&heap->unfinished);
    if (!(args->flags & UCM_OPEN_LOOKUP_ONLY)) {
        status = take_layout(heap, args->layout, err);
        if (status != UCM_OK) {
            destroy(heap);
            return status;
        }
    }
    *out = &heap->base;
    return UCM_OK;
}

static const ucm_plugin plugin = {
    .struct_size = sizeof(ucm_plugin),
    .abi_major = UCM_ABI_MAJOR,
    .abi_minor = UCM_ABI_MINOR,
    .abi_draft = UCM_ABI_DRAFT,
    .memories = (uint64_t)1 << UCM_MEMORY_HOST,
    .name = "Heap",
    .version = "0.1.0",
    .summary = "Blocks in the memory of this process; the least recently used go first.",
    .n_options = N_OPTIONS,
    .option_stride = sizeof(ucm_option),
    .options = options,
    .n_metrics = N_METRICS,
    .metric_stride = sizeof(ucm_metric),
    .metrics = metrics,
    .open = heap_open,
};

const ucm_plugin *ucm_store_plugin_v1(void) {
    return &plugin;
}
