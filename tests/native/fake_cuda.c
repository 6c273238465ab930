/* SPDX-License-Identifier: MIT */
#ifdef UCM_CHECK_CUDA_H
#include <cuda.h>
#endif
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "fake_cuda.h"

#define PUBLIC __attribute__((visibility("default")))
#define UCM_PROTOTYPE(name, ...) PUBLIC CUresult name(__VA_ARGS__);
UCM_CUDA_FUNCTIONS(UCM_PROTOTYPE)
FAKE_CUDA_FUNCTIONS(UCM_PROTOTYPE)

enum {
    OK = 0,
    INVALID_VALUE = 1,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    ENTRIES = 1024, /* of every table */
    TEXTS = 64,
    STACK = 16,
    POISON = 0xDB
};

/* Handles are entries of tables, never used twice before a reset. */
struct CUctx_st {
    int retained;
};
struct CUstream_st {
    CUcontext context;
    int alive, stalled;
    struct op *first, *last; /* not run yet */
    uint64_t given, run;     /* how many operations */
};
struct CUevent_st {
    CUcontext context;
    int alive;
    CUstream stream; /* NULL: never recorded */
    uint64_t after;  /* complete when the stream has run so many */
};

enum kind { COMPUTE, TO_HOST, TO_DEVICE, AWAIT };
struct op {
    struct op *next;
    enum kind kind;
    uint8_t *host;
    CUdeviceptr device;
    size_t n;
    uint64_t hash;  /* TO_DEVICE: of the host's bytes when it was submitted */
    uint8_t *bytes; /* COMPUTE */
    CUevent event;
    CUstream stream; /* AWAIT: which, and how far, as the event was then */
    uint64_t after;
};

struct memory {
    CUdeviceptr address;
    size_t n;
    uint8_t *bytes; /* NULL: freed */
    CUcontext context;
};
struct range {
    uint8_t *base;
    size_t n;
    int pinned, refused;
};
struct failure {
    char function[64];
    size_t skip, times, calls;
    int result;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER; /* guards all below, up to `stack` */
static pthread_cond_t goes_on = PTHREAD_COND_INITIALIZER; /* a stream that was stalled */
static struct state {
    int initialized;
    struct CUctx_st contexts[FAKE_CUDA_DEVICES];
    struct CUstream_st streams[ENTRIES];
    struct CUevent_st events[ENTRIES];
    struct memory memory[ENTRIES];
    struct range ranges[ENTRIES];
    struct failure functions[64];
    size_t n_streams, n_events, n_memory, n_ranges, n_functions;
    CUdeviceptr next_address;
    size_t violations;
    char texts[TEXTS][256];
} s;

static _Thread_local struct {
    CUcontext contexts[STACK];
    size_t depth;
} stack;

__attribute__((format(printf, 2, 3))) static CUresult violation(int result, const char *format,
                                                                ...) {
    if (s.violations < TEXTS) {
        va_list args;
        va_start(args, format);
        vsnprintf(s.texts[s.violations], sizeof s.texts[0], format, args);
        va_end(args);
    }
    s.violations++;
    return (CUresult)result;
}

static struct failure *function_of(const char *name) {
    for (size_t i = 0; i < s.n_functions; i++)
        if (!strcmp(s.functions[i].function, name)) return &s.functions[i];
    struct failure *made = &s.functions[s.n_functions++];
    snprintf(made->function, sizeof made->function, "%s", name);
    return made;
}

/* What every call begins with: OK, or what to return at once. */
static int begin(const char *name, int needs_context) {
    struct failure *f = function_of(name);
    f->calls++;
    if (f->skip) {
        f->skip--;
    } else if (f->times) {
        f->times--;
        return f->result;
    }
    if (!s.initialized) return violation(NOT_INITIALIZED, "%s: before cuInit", name);
    if (!needs_context) return OK;
    if (!stack.depth) return violation(INVALID_CONTEXT, "%s: no current context", name);
    if (!stack.contexts[stack.depth - 1]->retained)
        return violation(INVALID_CONTEXT, "%s: the current context is released", name);
    return OK;
}

static CUcontext current(void) {
    return stack.contexts[stack.depth - 1];
}

/* Locked to the end of the function. */
static void unlock(pthread_mutex_t **held) {
    pthread_mutex_unlock(*held);
}
#define ENTER(needs_context)                                         \
    __attribute__((cleanup(unlock))) pthread_mutex_t *held = &mutex; \
    pthread_mutex_lock(held);                                        \
    const int refused = begin(__func__, needs_context);              \
    if (refused) return (CUresult)refused

static uint64_t hash_of(const uint8_t *bytes, size_t n) {
    uint64_t hash = 14695981039346656037u;
    for (size_t i = 0; i < n; i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    return hash;
}

static int overlap(uint64_t a, size_t na, uint64_t b, size_t nb) {
    return a < b + nb && b < a + na;
}

static struct memory *memory_at(CUdeviceptr address, size_t n) {
    for (size_t i = 0; i < s.n_memory; i++) {
        struct memory *m = &s.memory[i];
        if (m->bytes && address >= m->address && address - m->address <= m->n &&
            n <= m->n - (address - m->address))
            return m;
    }
    return NULL;
}

static uint8_t *bytes_at(CUdeviceptr address, size_t n) {
    struct memory *m = memory_at(address, n);
    return m ? m->bytes + (address - m->address) : NULL;
}

/* Does a stream other than this one (NULL: any) have work left that touches this memory? */
static int in_use(int of_host, uint64_t at, size_t n, CUstream except, int only_writes) {
    for (size_t i = 0; i < s.n_streams; i++) {
        if (&s.streams[i] == except) continue;
        for (struct op *op = s.streams[i].first; op; op = op->next) {
            if (op->kind == AWAIT && op->stream == except && op->after > except->run)
                break; /* comes after what runs now */
            if (op->kind == AWAIT || (of_host && op->kind == COMPUTE)) continue;
            if (only_writes && of_host != (op->kind == TO_HOST)) continue;
            if (overlap(of_host ? (uint64_t)(uintptr_t)op->host : op->device, op->n, at, n))
                return 1;
        }
    }
    return 0;
}

static int is_poisoned(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (bytes[i] != POISON) return 0;
    return 1;
}

static void run_until(CUstream stream, uint64_t until);

static void run(CUstream stream, struct op *op) {
    if (op->kind == AWAIT) {
        if (!op->event->alive || op->event->stream != op->stream || op->event->after != op->after)
            violation(0, "an event was recorded again or destroyed while a stream awaits it");
        run_until(op->stream, op->after);
        return;
    }
    uint8_t *device = bytes_at(op->device, op->n);
    if (!device) {
        violation(0, "device memory was freed before the copy ran");
        return;
    }
    if (in_use(0, op->device, op->n, stream, op->kind == TO_HOST))
        violation(0, "device memory is used beside another stream that is not awaited");
    if (op->kind == COMPUTE) {
        memcpy(device, op->bytes, op->n);
    } else if (op->kind == TO_HOST) {
        if (!is_poisoned(op->host, op->n))
            violation(0, "host memory was written before the copy into it was over");
        memcpy(op->host, device, op->n);
    } else {
        if (hash_of(op->host, op->n) != op->hash)
            violation(0, "host memory was changed before the copy out of it was over");
        memcpy(device, op->host, op->n);
    }
}

static void run_until(CUstream stream, uint64_t until) {
    while (stream->run < until && stream->first) {
        if (stream->stalled) {
            pthread_cond_wait(&goes_on, &mutex);
            continue;
        }
        struct op *op = stream->first;
        run(stream, op);
        stream->first = op->next;
        if (!op->next) stream->last = NULL;
        stream->run++;
        free(op->bytes);
        free(op);
    }
}

static void give(CUstream stream, struct op filled) {
    struct op *op = malloc(sizeof *op);
    *op = filled;
    if (stream->last)
        stream->last->next = op;
    else
        stream->first = op;
    stream->last = op;
    stream->given++;
}

static int wrong_stream(CUstream stream, const char *name) {
    if (stream < s.streams || stream >= s.streams + s.n_streams || !stream->alive)
        return violation(INVALID_HANDLE, "%s: no such stream", name);
    if (stream->context != current())
        return violation(INVALID_CONTEXT, "%s: a stream of another context", name);
    return OK;
}

static int wrong_event(CUevent event, const char *name) {
    if (event < s.events || event >= s.events + s.n_events || !event->alive)
        return violation(INVALID_HANDLE, "%s: no such event", name);
    if (event->context != current())
        return violation(INVALID_CONTEXT, "%s: an event of another context", name);
    return OK;
}

/* Host memory of an asynchronous copy is pinned as a whole, or pinning it was refused. */
static struct range *range_at(const uint8_t *base, size_t n) {
    for (size_t i = 0; i < s.n_ranges; i++) {
        struct range *r = &s.ranges[i];
        if ((r->pinned || r->refused) && base >= r->base && base + n <= r->base + r->n) return r;
    }
    return NULL;
}

static CUresult copy(const char *name, enum kind kind, CUdeviceptr device, uint8_t *host, size_t n,
                     CUstream stream) {
    int bad = wrong_stream(stream, name);
    if (bad) return (CUresult)bad;
    struct memory *m = memory_at(device, n);
    if (!m)
        return violation(INVALID_VALUE, "%s: %zu bytes at %#llx are not device memory", name, n,
                         device);
    if (m->context != current())
        return violation(INVALID_VALUE, "%s: device memory of another context", name);
    struct range *r = range_at(host, n);
    if (!r) return violation(INVALID_VALUE, "%s: %zu bytes of host memory are not pinned", name, n);
    if (in_use(1, (uint64_t)(uintptr_t)host, n, NULL, kind == TO_DEVICE))
        violation(0, "%s: another copy of this host memory has not been waited for", name);
    if (kind == TO_HOST) memset(host, POISON, n);
    give(stream, (struct op){.kind = kind,
                             .host = host,
                             .device = device,
                             .n = n,
                             .hash = kind == TO_DEVICE ? hash_of(host, n) : 0});
    /* Memory that is not pinned goes through a buffer of the driver, before the call returns. */
    if (!r->pinned) run_until(stream, stream->given);
    return (CUresult)OK;
}

/* The driver's functions */

CUresult cuInit(unsigned int flags) {
    pthread_mutex_lock(&mutex);
    const int initialized = s.initialized;
    s.initialized = 1;
    int result = begin(__func__, 0);
    if (result) s.initialized = initialized;
    if (!result && flags) result = (int)violation(INVALID_VALUE, "cuInit: flags");
    pthread_mutex_unlock(&mutex);
    return (CUresult)result;
}

#ifdef UCM_CHECK_CUDA_H
#define SAME(ours, theirs) _Static_assert((int)(ours) == (int)(theirs), #theirs)
SAME(INVALID_VALUE, CUDA_ERROR_INVALID_VALUE);
SAME(NOT_INITIALIZED, CUDA_ERROR_NOT_INITIALIZED);
SAME(INVALID_DEVICE, CUDA_ERROR_INVALID_DEVICE);
SAME(INVALID_CONTEXT, CUDA_ERROR_INVALID_CONTEXT);
SAME(INVALID_HANDLE, CUDA_ERROR_INVALID_HANDLE);
SAME(NOT_READY, CUDA_ERROR_NOT_READY);
SAME(ALREADY_REGISTERED, CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
SAME(NOT_REGISTERED, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
#endif

static const struct {
    int result;
    const char *name, *text;
} kNames[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {304, "CUDA_ERROR_OPERATING_SYSTEM", "OS call failed or operation not supported on this OS"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED",
     "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED",
     "pointer does not correspond to a registered memory region"},
};

static CUresult text_of(CUresult error, const char **text, int name) {
    for (size_t i = 0; i < sizeof kNames / sizeof kNames[0]; i++)
        if (kNames[i].result == (int)error) {
            *text = name ? kNames[i].name : kNames[i].text;
            return (CUresult)OK;
        }
    *text = NULL;
    return (CUresult)INVALID_VALUE;
}

CUresult cuGetErrorName(CUresult error, const char **name) {
    return text_of(error, name, 1);
}

CUresult cuGetErrorString(CUresult error, const char **text) {
    return text_of(error, text, 0);
}

CUresult cuDeviceGetCount(int *count) {
    ENTER(0);
    *count = FAKE_CUDA_DEVICES;
    return (CUresult)OK;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    ENTER(0);
    if (ordinal < 0 || ordinal >= FAKE_CUDA_DEVICES)
        return violation(INVALID_DEVICE, "cuDeviceGet: no device %d", ordinal);
    *device = ordinal;
    return (CUresult)OK;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    ENTER(0);
    if (device < 0 || device >= FAKE_CUDA_DEVICES)
        return violation(INVALID_DEVICE, "cuDevicePrimaryCtxRetain: no device %d", device);
    *context = &s.contexts[device];
    (*context)->retained++;
    return (CUresult)OK;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    ENTER(0);
    if (device < 0 || device >= FAKE_CUDA_DEVICES || !s.contexts[device].retained)
        return violation(INVALID_CONTEXT, "cuDevicePrimaryCtxRelease: it is not retained");
    CUcontext context = &s.contexts[device];
    if (--context->retained) return (CUresult)OK;
    for (size_t i = 0; i < s.n_streams; i++)
        if (s.streams[i].alive && s.streams[i].context == context)
            violation(0, "cuDevicePrimaryCtxRelease: a stream of it is left");
    for (size_t i = 0; i < stack.depth; i++)
        if (stack.contexts[i] == context)
            violation(0, "cuDevicePrimaryCtxRelease: it is still current");
    return (CUresult)OK;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
    ENTER(0);
    if (context < s.contexts || context >= s.contexts + FAKE_CUDA_DEVICES || !context->retained)
        return violation(INVALID_CONTEXT, "cuCtxPushCurrent: no such context");
    if (stack.depth == STACK) return violation(INVALID_VALUE, "cuCtxPushCurrent: never popped");
    stack.contexts[stack.depth++] = context;
    return (CUresult)OK;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    ENTER(1);
    *context = stack.contexts[--stack.depth];
    return (CUresult)OK;
}

CUresult cuStreamCreate(CUstream *stream, unsigned int flags) {
    ENTER(1);
    if (flags != 1) return violation(INVALID_VALUE, "cuStreamCreate: a stream that blocks others");
    if (s.n_streams == ENTRIES) return violation(INVALID_VALUE, "cuStreamCreate: too many");
    *stream = &s.streams[s.n_streams++];
    **stream = (struct CUstream_st){.context = current(), .alive = 1};
    return (CUresult)OK;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
    ENTER(1);
    const int bad = wrong_stream(stream, __func__);
    if (bad) return (CUresult)bad;
    if (stream->first) violation(0, "cuStreamDestroy: its copies have not been waited for");
    run_until(stream, stream->given);
    stream->alive = 0;
    return (CUresult)OK;
}

CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned int flags) {
    ENTER(1);
    int bad = wrong_stream(stream, __func__);
    if (!bad) bad = wrong_event(event, __func__);
    if (!bad && flags) bad = (int)violation(INVALID_VALUE, "cuStreamWaitEvent: flags");
    if (bad) return (CUresult)bad;
    if (!event->stream)
        return violation(0, "cuStreamWaitEvent: the event was never recorded: nothing is awaited");
    give(
        stream,
        (struct op){.kind = AWAIT, .event = event, .stream = event->stream, .after = event->after});
    return (CUresult)OK;
}

CUresult cuStreamSynchronize(CUstream stream) {
    ENTER(1);
    const int bad = wrong_stream(stream, __func__);
    if (!bad) run_until(stream, stream->given);
    return (CUresult)bad;
}

CUresult cuEventQuery(CUevent event) {
    ENTER(1);
    const int bad = wrong_event(event, __func__);
    if (bad || !event->stream) return (CUresult)bad;
    if (event->stream->stalled && event->stream->run < event->after) return (CUresult)NOT_READY;
    run_until(event->stream, event->after);
    return (CUresult)OK;
}

CUresult cuStreamQuery(CUstream stream) {
    ENTER(1);
    const int bad = wrong_stream(stream, __func__);
    if (!bad) run_until(stream, stream->given);
    return (CUresult)bad;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, CUstream stream) {
    ENTER(1);
    return copy(__func__, TO_DEVICE, to, (uint8_t *)(uintptr_t)from, bytes, stream);
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, CUstream stream) {
    ENTER(1);
    return copy(__func__, TO_HOST, from, to, bytes, stream);
}

CUresult cuMemHostRegister_v2(void *base, size_t bytes, unsigned int flags) {
    pthread_mutex_lock(&mutex);
    int result = begin(__func__, 1);
    const int refused = result != OK;
    if (!result && (!base || !bytes)) result = (int)violation(INVALID_VALUE, "%s: empty", __func__);
    if (!result && flags != 1)
        result = (int)violation(INVALID_VALUE, "%s: not pinned for all contexts", __func__);
    for (size_t i = 0; i < s.n_ranges && !result; i++)
        if (s.ranges[i].pinned && overlap((uint64_t)(uintptr_t)s.ranges[i].base, s.ranges[i].n,
                                          (uint64_t)(uintptr_t)base, bytes))
            result = ALREADY_REGISTERED;
    if ((!result || refused) && s.n_ranges < ENTRIES)
        s.ranges[s.n_ranges++] = (struct range){base, bytes, !refused, refused};
    pthread_mutex_unlock(&mutex);
    return (CUresult)result;
}

CUresult cuMemHostUnregister(void *base) {
    ENTER(1);
    for (size_t i = 0; i < s.n_ranges; i++) {
        struct range *r = &s.ranges[i];
        if (!r->pinned || r->base != base) continue;
        if (in_use(1, (uint64_t)(uintptr_t)base, r->n, NULL, 0))
            violation(0, "cuMemHostUnregister: a copy of this memory has not been waited for");
        r->pinned = 0;
        return (CUresult)OK;
    }
    return violation(NOT_REGISTERED, "cuMemHostUnregister: it is not pinned");
}

CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t bytes) {
    ENTER(1);
    if (!bytes || s.n_memory == ENTRIES) return violation(INVALID_VALUE, "cuMemAlloc: %zu", bytes);
    /* Not canonical on any machine: touching it from the host is a fault. */
    if (!s.next_address) s.next_address = 0x5a00000000000000;
    *address = s.next_address;
    s.next_address += (bytes + 0x1fffff) & ~(CUdeviceptr)0xfffff;
    s.memory[s.n_memory++] =
        (struct memory){*address, bytes, memset(malloc(bytes), POISON, bytes), current()};
    return (CUresult)OK;
}

CUresult cuMemFree_v2(CUdeviceptr address) {
    ENTER(1);
    struct memory *m = memory_at(address, 0);
    if (!m || m->address != address)
        return violation(INVALID_VALUE, "cuMemFree: it is not allocated");
    if (in_use(0, address, m->n, NULL, 0))
        violation(0, "cuMemFree: a copy of this memory has not been waited for");
    free(m->bytes);
    m->bytes = NULL;
    return (CUresult)OK;
}

CUresult cuEventCreate(CUevent *event, unsigned int flags) {
    ENTER(1);
    (void)flags;
    if (s.n_events == ENTRIES) return violation(INVALID_VALUE, "cuEventCreate: too many");
    *event = &s.events[s.n_events++];
    **event = (struct CUevent_st){.context = current(), .alive = 1};
    return (CUresult)OK;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
    ENTER(1);
    int bad = wrong_event(event, __func__);
    if (!bad) bad = wrong_stream(stream, __func__);
    if (bad) return (CUresult)bad;
    event->stream = stream;
    event->after = stream->given;
    return (CUresult)OK;
}

CUresult cuEventDestroy_v2(CUevent event) {
    ENTER(1);
    const int bad = wrong_event(event, __func__);
    if (!bad) event->alive = 0;
    return (CUresult)bad;
}

/* Control */

static size_t count_violations(void) {
    pthread_mutex_lock(&mutex);
    const size_t n = s.violations;
    pthread_mutex_unlock(&mutex);
    return n;
}

static const char *get_violation(size_t i) {
    return i < count_violations() && i < TEXTS ? s.texts[i] : NULL;
}

static size_t count_streams(void) {
    size_t n = 0;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < s.n_streams; i++) n += s.streams[i].alive != 0;
    pthread_mutex_unlock(&mutex);
    return n;
}

static size_t count_pinned(void) {
    size_t n = 0;
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < s.n_ranges; i++) n += s.ranges[i].pinned ? s.ranges[i].n : 0;
    pthread_mutex_unlock(&mutex);
    return n;
}

static size_t count_live(void) {
    size_t n = count_streams();
    pthread_mutex_lock(&mutex);
    for (size_t i = 0; i < s.n_events; i++) n += s.events[i].alive != 0;
    for (size_t i = 0; i < s.n_memory; i++) n += s.memory[i].bytes != NULL;
    for (size_t i = 0; i < s.n_ranges; i++) n += s.ranges[i].pinned != 0;
    for (size_t i = 0; i < FAKE_CUDA_DEVICES; i++) n += (size_t)s.contexts[i].retained;
    pthread_mutex_unlock(&mutex);
    return n;
}

static size_t depth(void) {
    return stack.depth;
}

static size_t calls(const char *function) {
    pthread_mutex_lock(&mutex);
    const size_t n = function_of(function)->calls;
    pthread_mutex_unlock(&mutex);
    return n;
}

static void fail_calls(const char *function, size_t skip, size_t times, int result) {
    pthread_mutex_lock(&mutex);
    struct failure *f = function_of(function);
    f->skip = skip;
    f->times = times;
    f->result = result;
    pthread_mutex_unlock(&mutex);
}

static void compute(CUstream stream, CUdeviceptr to, const void *bytes, size_t n) {
    pthread_mutex_lock(&mutex);
    give(stream,
         (struct op){.kind = COMPUTE, .device = to, .n = n, .bytes = memcpy(malloc(n), bytes, n)});
    pthread_mutex_unlock(&mutex);
}

static void poke(CUdeviceptr to, const void *bytes, size_t n) {
    pthread_mutex_lock(&mutex);
    if (in_use(0, to, n, NULL, 0))
        violation(0, "poke: a copy of this memory has not been waited for");
    memcpy(bytes_at(to, n), bytes, n);
    pthread_mutex_unlock(&mutex);
}

static void peek(void *to, CUdeviceptr from, size_t n) {
    pthread_mutex_lock(&mutex);
    if (in_use(0, from, n, NULL, 1)) violation(0, "peek: a copy into this memory is not over");
    memcpy(to, bytes_at(from, n), n);
    pthread_mutex_unlock(&mutex);
}

static void stall(CUstream stream, int on) {
    pthread_mutex_lock(&mutex);
    stream->stalled = on;
    pthread_cond_broadcast(&goes_on);
    pthread_mutex_unlock(&mutex);
}

static void reset(void) {
    for (size_t i = 0; i < s.n_streams; i++)
        for (struct op *op = s.streams[i].first, *next; op; op = next) {
            next = op->next;
            free(op->bytes);
            free(op);
        }
    for (size_t i = 0; i < s.n_memory; i++) free(s.memory[i].bytes);
    memset(&s, 0, sizeof s);
    stack.depth = 0;
}

PUBLIC const fake_cuda *fake_cuda_control(void) {
    static const fake_cuda control = {
        count_violations, get_violation, count_live, count_streams, count_pinned, depth, calls,
        fail_calls,       compute,       poke,       peek,          stall,        reset};
    return &control;
}

__attribute__((destructor)) static void at_exit(void) {
    const size_t left = count_live();
    if (!s.violations && !left) return;
    for (size_t i = 0; i < s.violations && i < TEXTS; i++)
        fprintf(stderr, "fake CUDA: %s\n", s.texts[i]);
    if (left) fprintf(stderr, "fake CUDA: %zu objects were never released\n", left);
    fflush(NULL);
    _exit(FAKE_CUDA_EXIT);
}
