/* SPDX-License-Identifier: MIT
 *
 * A host as somebody wrote it for ABI 1.0. Frozen, like the header beside it.
 *
 *     host TOP.so [key=value...] LOWER.so [key=value...] ... BOTTOM.so [key=value...]
 *
 * Opens that pipeline, runs every operation once, and prints what it saw, a fact a line.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ucm/task_v1.h"

/* A header of a later version sets what it appended to nonsense. */
#ifndef POISON
#define POISON(pointer) ((void)(pointer))
#define POISONED
#endif
#define NEW(type, name) type name = {.struct_size = sizeof name POISONED}

enum { LAYERS = 8, VALUES = 32, BLOCKS = 4, SHARDS = 2, N = BLOCKS * SHARDS, CAPACITY = 5000 };

struct layer {
    const ucm_plugin *plugin;
    const char *given[VALUES];
    int n_given;
    ucm_value values[VALUES];
    const char *strings[VALUES];
    int64_t ints[VALUES];
    ucm_layout layout;
    uint64_t segment_bytes[UCM_MAX_SEGMENTS];
    uint64_t planes[UCM_MAX_SEGMENTS * 8];
    ucm_store *store;
};

static struct layer layers[LAYERS + 1];
static int n_layers;
static ucm_error error;

static void fact(const char *name, long long value) {
    printf("%s %lld\n", name, value);
}

static void must(int condition, const char *what) {
    if (condition) return;
    printf("failed: %s: %s\n", what, error.message);
    exit(1);
}

static int32_t log_level(void *ctx) {
    (void)ctx;
    return UCM_LOG_WARN;
}

static void log_line(void *ctx, int32_t level, const char *plugin, const char *message) {
    (void)ctx;
    fprintf(stderr, "%d %s: %s\n", (int)level, plugin, message);
}

static void take_library(struct layer *layer, const char *path) {
    const ucm_plugin *(*entry)(void), *plugin;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) puts(dlerror());
    must(library != NULL, path);
    *(void **)&entry = dlsym(library, UCM_PLUGIN_SYMBOL);
    must(entry != NULL, "it has no symbol " UCM_PLUGIN_SYMBOL);
    layer->plugin = plugin = entry();
    must(plugin->abi_major == UCM_ABI_MAJOR && UCM_HAS(ucm_plugin, plugin, open), "another ABI");
    must(plugin->abi_draft == 0 || plugin->abi_draft == UCM_ABI_DRAFT, "a draft of the ABI");
    must(!(plugin->flags & ~(uint64_t)UCM_PLUGIN_NEEDS_LOWER), "unknown plugin flags");
    must(plugin->n_options <= VALUES, "too many options");
}

static int64_t integer_of(const char *text) {
    char *end;
    const int64_t value = (int64_t)strtod(text, &end);
    return strcmp(text, "true") == 0 ? 1
           : *end == 'K'             ? value << 10
           : *end == 'M'             ? value << 20
           : *end == 'G'             ? value << 30
                                     : value;
}

static void take_value(struct layer *layer, size_t i, const ucm_option *option) {
    ucm_value *value = &layer->values[i];
    const char *text = option->initial;
    for (int k = 0; k < layer->n_given; k++) {
        const size_t length = strlen(option->name);
        if (strncmp(layer->given[k], option->name, length) || layer->given[k][length] != '=')
            continue;
        text = layer->given[k] + length + 1;
        value->given = 1;
    }
    must(text != NULL, option->name);
    value->type = option->type;
    value->i = layer->ints[i] = integer_of(text);
    value->f = strtod(text, NULL);
    value->s = layer->strings[i] = text;
    value->strings = &layer->strings[i];
    value->ints = &layer->ints[i];
    value->count = text[0] != 0;
    if (option->type > UCM_TYPE_SECRET) value->type = UCM_TYPE_STRING;
    POISON(value);
}

static void take_layout(struct layer *upper, struct layer *layer) {
    NEW(ucm_layout_args, args);
    args.layout = &upper->layout;
    args.n_values = upper->plugin->n_options;
    args.value_stride = sizeof(ucm_value);
    args.values = upper->values;
    args.segments_room = UCM_MAX_SEGMENTS;
    args.segment_bytes = layer->segment_bytes;
    args.planes_room = sizeof layer->planes;
    args.planes = layer->planes;
    layer->layout = upper->layout;
    if (!upper->plugin->lower_layout) return;
    layer->layout.flags = 0;
    layer->layout.n_planes = 0;
    layer->layout.planes = NULL;
    layer->layout.memory = UCM_MEMORY_HOST;
    layer->layout.device = -1;
    must(upper->plugin->lower_layout(&args, &layer->layout, &error) == UCM_OK, "lower_layout");
    must(layer->layout.struct_size == sizeof(ucm_layout), "the size of the lower layout");
}

static void open_layer(const ucm_host *host, int k) {
    struct layer *layer = &layers[k];
    const int bottom = k == n_layers - 1;
    const ucm_store *store;
    NEW(ucm_open_args, args);
    args.host = host;
    args.layout = &layer->layout;
    args.lower_layout = bottom ? NULL : &layers[k + 1].layout;
    args.n_values = layer->plugin->n_options;
    args.value_stride = sizeof(ucm_value);
    args.values = layer->values;
    args.lower = bottom ? NULL : layers[k + 1].store;
    args.unique_id = "";
    args.layer = layer->plugin->name;
    must(layer->plugin->open(&args, &layer->store, &error) == UCM_OK, layer->plugin->name);
    store = layer->store;
    must(UCM_HAS(ucm_store, store, reserved) && UCM_HAS(ucm_store_ops, store->ops, close), "sizes");
    must(store->capacity == layer->layout.capacity, "capacity");
    must(store->raw_capacity == layer->layout.raw_capacity, "raw_capacity");
    must(store->shards_per_block == layer->layout.shards_per_block, "shards_per_block");
}

static void open_all(void) {
    NEW(ucm_host, host_);
    static ucm_host host; /* outlives the stores */
    static uint64_t capacity[2] = {CAPACITY - 1000, 1000};
    static ucm_plane planes[2] = {
        {.bytes = 1000, .dtype = UCM_DTYPE_BF16, .kind = UCM_PLANE_K POISONED},
        {.bytes = 1000, .dtype = 99, .kind = -5 POISONED}};
    NEW(ucm_layout, layout);
    host = host_;
    host.log_level = log_level;
    host.log = log_line;
    host.abi_minor = UCM_ABI_MINOR;
    host.version = "host.c";
    layout.shards_per_block = SHARDS;
    layout.n_segments = 2;
    layout.segment_bytes = capacity;
    layout.capacity = layout.raw_capacity = CAPACITY;
    layout.n_planes = 2;
    layout.plane_stride = sizeof planes[0];
    layout.planes = planes;
    layout.device = -1;
    layers[0].layout = layout;
    for (int k = 0; k + 1 < n_layers; k++) take_layout(&layers[k], &layers[k + 1]);
    for (int k = n_layers; k-- > 0;) open_layer(&host, k);
}

static uint8_t ids[N][UCM_BLOCK_ID_BYTES], bytes[N][CAPACITY];

static ucm_status move(int dump, uint64_t flags) {
    static void *rows[2 * N];
    static uint32_t index[N];
    static uint64_t lengths[N];
    ucm_waiter *waiter = ucm_waiter_new(N, NULL, NULL);
    uint64_t good = 0, length = 0, published = 0;
    ucm_status status;
    NEW(ucm_transfer, t);
    for (size_t i = 0; i < N; i++) {
        rows[2 * i] = bytes[i];
        rows[2 * i + 1] = bytes[i] + CAPACITY - 1000;
        index[i] = i % SHARDS;
        lengths[i] = CAPACITY - i;
    }
    t.flags = flags;
    t.n = N;
    t.block_ids = ids[0];
    t.shard_index = index;
    t.addresses = rows;
    t.lengths = t.raw_lengths = dump ? lengths : NULL;
    status =
        ucm_waiter_submit(waiter, dump ? ucm_dump : ucm_load, layers[0].store, &t, NULL, &error);
    if (status == UCM_OK) {
        status = ucm_waiter_wait(waiter, -1);
        for (size_t i = 0; i < N; i++) {
            good += waiter->results[i].status == UCM_OK;
            length += waiter->results[i].length;
            published += waiter->results[i].flags & UCM_RESULT_PUBLISHED;
        }
        fact(dump ? "dumped" : "loaded", (long long)good);
        fact(dump ? "published" : "bytes", (long long)(dump ? published : length));
    }
    ucm_waiter_forget(waiter);
    return status;
}

static void lookup(int32_t mode, const char *name) {
    size_t hits = 0;
    uint8_t tiers[N];
    NEW(ucm_lookup_args, a);
    a.mode = mode;
    a.n = N;
    a.block_ids = ids[0];
    a.hits = &hits;
    a.tiers = tiers;
    fact(name, ucm_lookup(layers[0].store, &a, &error) == UCM_OK ? (long long)hits : -error.code);
}

static void others(void) {
    NEW(ucm_ids_args, a);
    NEW(ucm_memory_args, memory);
    NEW(ucm_wait_args, wait);
    NEW(ucm_report, report);
    a.n = N;
    a.block_ids = ids[0];
    memory.base = bytes;
    memory.bytes = sizeof bytes;
    memory.device = -1;
    wait.timeout_ms = -1;
    fact("touch", ucm_touch(layers[0].store, &a, &error));
    fact("prefetch", ucm_prefetch(layers[0].store, &a, &error));
    if (ucm_register_memory(layers[0].store, &memory, &error) == UCM_OK) {
        memory.release = 1;
        fact("release", ucm_register_memory(layers[0].store, &memory, &error));
    }
    fact("drain", ucm_drain(layers[0].store, &wait, &report, &error));
    fact("stored", (long long)report.stored);
    fact("lost", (long long)(report.lost + report.pending + report.unfinished));
    wait.flags = (uint64_t)1 << 63;
    fact("unknown_flag", ucm_close(layers[0].store, &wait, &report, &error));
    fact("remove", ucm_remove(layers[0].store, &a, &error));
    lookup(UCM_LOOKUP_ALL, "after_remove");
}

static void close_all(void) {
    NEW(ucm_wait_args, wait);
    wait.timeout_ms = -1;
    for (int k = 0; k < n_layers; k++) {
        uint64_t values[256] = {0};
        ucm_status status;
        NEW(ucm_metrics_args, metrics);
        NEW(ucm_report, report);
        metrics.n = 3; /* may end inside a histogram */
        metrics.values = values;
        must(ucm_metrics(layers[k].store, &metrics, &error) == UCM_OK, "metrics");
        must(values[3] == 0, "more metrics than there was room for");
        if (layers[k].plugin->n_metrics &&
            strcmp(layers[k].plugin->metrics[0].name, "faults_total") == 0)
            fact("faults", (long long)values[0]);
        status = ucm_close(layers[k].store, &wait, &report, &error);
        fact("close", status);
        if (status == UCM_INVALID || status == UCM_UNSUPPORTED) return; /* all below stays */
    }
}

int main(int argc, char **argv) {
    static uint8_t before[N][CAPACITY];
    error.struct_size = sizeof error;
    POISON(&error);
    for (int k = 1; k < argc; k++) {
        struct layer *last = &layers[n_layers ? n_layers - 1 : 0];
        if (strchr(argv[k], '='))
            last->given[last->n_given++] = argv[k];
        else
            take_library(&layers[n_layers++], argv[k]);
    }
    for (int k = 0; k < n_layers; k++)
        for (size_t i = 0; i < layers[k].plugin->n_options; i++)
            take_value(
                &layers[k], i,
                UCM_AT(ucm_option, layers[k].plugin->options, layers[k].plugin->option_stride, i));
    open_all();
    for (size_t i = 0; i < N; i++) {
        ids[i][0] = (uint8_t)(1 + i / SHARDS);
        for (size_t k = 0; k < CAPACITY; k++) bytes[i][k] = (uint8_t)(i * 31 + k % 251);
    }
    memcpy(before, bytes, sizeof bytes);
    fact("dump", move(1, 0));
    lookup(UCM_LOOKUP_ALL, "all");
    lookup(UCM_LOOKUP_PREFIX, "prefix");
    lookup(UCM_LOOKUP_LAST, "last");
    lookup(3, "no_mode");
    memset(bytes, 0, sizeof bytes);
    fact("load", move(0, 0));
    for (size_t i = 0; i < N; i++)
        if (memcmp(bytes[i], before[i], CAPACITY - N)) printf("shard %d has wrong bytes\n", (int)i);
    fact("flag", move(1, (uint64_t)1 << 63));
    others();
    close_all();
    return 0;
}
