/* SPDX-License-Identifier: MIT
 *
 * ucm/store_v1.h - StoreV1, the C ABI between a host and its store plugins.
 *
 * A store keeps KV-cache blocks. A block is named by 16 opaque bytes, is written once, and the same
 * name always means the same bytes. A block is moved in shards; a shard is a byte string no longer
 * than the capacity of its layout, found in memory at one row of addresses (its segments). A plugin
 * is one shared library that makes one kind of store. Stores stack: "Cache|Compress|Posix" opens
 * Posix, hands it to Compress as `lower`, and hands that to Cache.
 *
 * This file is the whole contract. It needs <stddef.h> and <stdint.h> only and compiles as C11 and
 * as C++17, on Linux with 64-bit pointers. While UCM_ABI_DRAFT is not 0 this is a draft of
 * ABI 1.UCM_ABI_MINOR: a plugin built with it loads only where minor and draft are equal.
 *
 * Rules for every declaration below
 *
 * Versions   A struct that crosses the line starts with `struct_size`, set by whoever provides its
 *            memory. The other side never writes it, never assigns such a struct whole (ucm_copy
 *            does it right), and touches no byte at or past it. Members of 1.0 are always there.
 *            Members are only ever appended, and zero means the old behaviour; an appended member
 *            is read or written only after UCM_HAS(). Arrays of structs travel with their stride, a
 *            multiple of 8, and are read with UCM_AT(). Reserved members: the writer sets zero, the
 *            reader never looks. A member that changes which bytes move, or when, comes with a bit
 *            in `flags`; every function answers UCM_UNSUPPORTED to a bit that it does not know, and
 *            has done nothing then. Members that are only hints (depths, tag, priority,
 *            deadline_ns) have no bit. What is to be filled in (report, error) comes zeroed but for
 *            struct_size, and zero in an appended member means: not told.
 * Handing on ucm_copy() of arguments is for a layer that hands the same rows on within the call.
 *            Whoever changes n, or keeps the transfer for later, builds its own from zero, member
 *            by member: an appended array with an entry per row would not fit.
 * Memory     Nobody frees what the other side allocated. Arguments, and the arrays that they point
 *            to, are borrowed for the call; whoever needs one later copies it. The memory at
 *            transfer addresses is borrowed until `done` for that shard. Strings are UTF-8 and
 *            NUL-terminated. What a call was to fill in is undefined when it fails, unless said
 *            otherwise.
 * Errors     Functions return a ucm_status; UCM_OK is 0. `err` may be NULL; otherwise the callee
 *            fills it in on failure and leaves it alone on success. os_errno is a positive errno of
 *            Linux, or 0. Out of memory is UCM_UNAVAILABLE with os_errno ENOMEM. Nothing is thrown
 *            across the line.
 * Threads    [any-thread] may be called from many threads at once. [callback] runs on any thread
 *            of the callee, or of a store below it. Whoever calls into a store holds no lock that
 *            its own done or finished takes; whoever calls done or finished holds no lock at all.
 *            Threads of a plugin block all signals but SIGSEGV, SIGBUS, SIGFPE, SIGILL and SIGABRT,
 *            so that a crash is reported. A store does not survive fork(): a host answers
 *            UCM_INVALID in the child, without calling; a store only sees to it that the child
 *            holds no descriptors whose locks would outlive the parent (pthread_atfork).
 * Additions  A minor version may add values. Who meets one that it does not know:
 *              ucm_status         takes it for UCM_INTERNAL; a new one replaces only what was that
 *              dtype, plane kind  takes it for UCM_DTYPE_BYTES, UCM_PLANE_OTHER
 *              memory, mode       answers UCM_UNSUPPORTED
 *              option type        the host gives the value as text: see ucm_value
 *              metric kind        the host reads no further in that table, so such come last
 *              metric scope       takes it for UCM_SCOPE_STORE
 *              log level          above ERROR: takes it for UCM_LOG_ERROR
 *              capability bit     ignores it and does not pass it up: it is an ability, never a
 *                                 restriction; what restricts is refused at open
 *              result flag        ignores it; a layer hands it on only with the lower bytes as
 *                                 they are. One that qualifies UCM_OK comes only where a transfer
 *                                 asked for it by a flag
 *              any other flag     refuses: layout, transfer, arguments, plugin
 * Symbols    A plugin exports ucm_store_plugin_v1; the host looks at no other. It is opened with
 *            RTLD_NOW | RTLD_LOCAL and never closed.
 */
#ifndef UCM_STORE_V1_H
#define UCM_STORE_V1_H

#include <stddef.h>
#include <stdint.h>

#define UCM_EXPORT __attribute__((visibility("default")))

#define UCM_PLUGIN_SYMBOL "ucm_store_plugin_v1"
/* Is the member inside what the other side provided? */
#define UCM_HAS(type, ptr, member) \
    ((ptr)->struct_size >= offsetof(type, member) + sizeof((ptr)->member))
/* Element i of an array that came with its stride. */
#define UCM_AT(type, array, stride, i) \
    ((const type *)(const void *)((const char *)(array) + (size_t)(i) * (stride)))

#ifdef __cplusplus
extern "C" {
#endif

enum {
    UCM_ABI_MAJOR = 1,
    UCM_ABI_MINOR = 0,
    UCM_ABI_DRAFT = 0, /* 0: frozen */
    /* These never change in 1.x. Flags from bit 31 on, if they come, are macros of UINT64_C. */
    UCM_BLOCK_ID_BYTES = 16,
    /* The one alignment. A layer that owns buffers aligns their base and size to it. */
    UCM_ALIGNMENT = 4096,
    UCM_MAX_SEGMENTS = 4096, /* address segments, and planes, of one shard */
    UCM_MAX_SHARDS = 16384,  /* of one block */
    UCM_ENCODING_BYTES = 64,
    UCM_HISTOGRAM_VALUES = 66 /* see ucm_metric */
};

/* Status */

typedef int32_t ucm_status;
enum {
    UCM_OK = 0,
    UCM_PENDING = 1,     /* not finished yet; from drain and close only */
    UCM_NOT_FOUND = 2,   /* the block or shard is not stored here */
    UCM_INVALID = 3,     /* the caller's argument is wrong */
    UCM_UNSUPPORTED = 4, /* this store cannot do that, ever */
    UCM_UNAVAILABLE = 5, /* a library, device, directory, mount or memory is not to be had */
    UCM_NO_SPACE = 6,    /* disk full or quota reached */
    UCM_IO = 7,          /* os_errno says which */
    UCM_CORRUPT = 8,     /* stored bytes fail their check */
    UCM_CANCELLED = 9,
    UCM_INTERNAL = 10,    /* a bug in the store */
    UCM_BUSY = 11,        /* the queue is full; nothing was accepted; see load */
    UCM_TIMEOUT = 12,     /* deadline passed before the bytes moved */
    UCM_CLOSED = 13,      /* close has begun */
    UCM_INCOMPATIBLE = 14 /* stored, but with another geometry or encoding than this layout's */
};

typedef struct ucm_error {
    size_t struct_size;
    ucm_status code;
    int32_t os_errno;  /* 0: none */
    char message[496]; /* names the option, file or id and what to do; cut to fit, never NULL */
} ucm_error;

/* Options: how a plugin describes its configuration */

enum {
    UCM_TYPE_BOOL = 1,    /* ucm_value.i, 0 or 1 */
    UCM_TYPE_INT = 2,     /* .i */
    UCM_TYPE_SIZE = 3,    /* .i, in bytes; text accepts "64GiB" */
    UCM_TYPE_FLOAT = 4,   /* .f */
    UCM_TYPE_STRING = 5,  /* .s, never NULL */
    UCM_TYPE_STRINGS = 6, /* .strings, .count */
    UCM_TYPE_INTS = 7,    /* .ints, .count */
    UCM_TYPE_SECRET = 8   /* .s; never logged or shown */
};

typedef struct ucm_option {
    const char *name; /* "posix_io_engine"; lower case, digits and _ */
    int32_t type;     /* UCM_TYPE_* */
    uint32_t reserved;
    const char *initial; /* default as text ("" is empty); NULL: required */
    const char *allowed; /* "a|b|c", or a closed range "1..1024", "0.." ; NULL: anything */
    const char *unit;    /* "GiB", "ms"; NULL: none */
    const char *help;    /* one sentence */
} ucm_option;

/* One per option, in the plugin's own order, already checked and defaulted by the host. */
typedef struct ucm_value {
    /* That of the option. A host that does not know that type gives the text as it stands, here as
     * UCM_TYPE_STRING, has not checked it against `allowed`, and never shows it. */
    int32_t type;
    uint32_t given; /* 1: set by the user, 0: the default */
    size_t count;
    int64_t i;
    double f;
    const char *s;
    const char *const *strings;
    const int64_t *ints;
} ucm_value;

/* Metrics: a table in the descriptor, values pulled by ops->metrics */

enum { UCM_METRIC_COUNTER = 1, UCM_METRIC_GAUGE = 2, UCM_METRIC_HISTOGRAM = 3 };
enum { UCM_SCOPE_STORE = 0, UCM_SCOPE_SHARED = 1 }; /* of this handle | of all who share the data */

/* A counter or gauge takes one uint64_t in the value array, a histogram UCM_HISTOGRAM_VALUES:
 * count, sum, then 64 buckets; bucket k counts values v with 2^(k-1) < v <= 2^k (k = 0: v <= 1). */
typedef struct ucm_metric {
    const char *name; /* "load_bytes_total"; the host puts the layer's name before it */
    int32_t kind;
    int32_t scope;
    const char *unit; /* "bytes", "ns", "shards"; "" for a plain number */
    const char *help;
} ucm_metric;

/* What the host gives every store */

enum { UCM_LOG_DEBUG = 0, UCM_LOG_INFO = 1, UCM_LOG_WARN = 2, UCM_LOG_ERROR = 3 };

/* Outlives every store, and every thread of a store whose close was PENDING. */
typedef struct ucm_host {
    size_t struct_size;
    void *ctx;
    /* [any-thread] The lowest level worth formatting; may change at any time. */
    int32_t (*log_level)(void *ctx);
    /* [any-thread] Never blocks for long, may drop. Not from inside done or finished. */
    void (*log)(void *ctx, int32_t level, const char *plugin, const char *message);
    uint32_t abi_minor; /* UCM_ABI_MINOR of the host */
    uint32_t reserved;
    const char *version; /* who it is, for logs: "ucm-store 0.1.0"; never NULL */
} ucm_host;

/* Layout: the shape of every transfer of one store, fixed at open */

enum {
    UCM_DTYPE_BYTES = 0, /* unknown: any bytes */
    UCM_DTYPE_BF16 = 1,
    UCM_DTYPE_FP16 = 2,
    UCM_DTYPE_FP32 = 3,
    UCM_DTYPE_FP8_E4M3 = 4,
    UCM_DTYPE_FP8_E5M2 = 5
};
enum { UCM_PLANE_OTHER = 0, UCM_PLANE_K = 1, UCM_PLANE_V = 2 };

/* A run of equal-typed numbers inside a shard, whatever addresses it lies at. Planes follow each
 * other from byte 0 of the shard; bytes after the last plane are UCM_DTYPE_BYTES. */
typedef struct ucm_plane {
    uint64_t bytes;
    int32_t dtype;
    int32_t kind;
} ucm_plane;

enum { UCM_MEMORY_HOST = 0, UCM_MEMORY_CUDA = 1 };

enum {
    /* Every address is a multiple of UCM_ALIGNMENT, and n_segments is 1; the memory behind it is
     * usable up to capacity rounded up to UCM_ALIGNMENT. A store may then move whole pages: a load
     * may write anything between the shard's length and that end; a dump never reads past the
     * length. */
    UCM_LAYOUT_PAGES = 1u << 0
};

typedef struct ucm_layout {
    size_t struct_size;
    uint64_t flags;                /* UCM_LAYOUT_*; unknown bits: UCM_UNSUPPORTED */
    uint32_t shards_per_block;     /* 1..UCM_MAX_SHARDS */
    uint32_t n_segments;           /* addresses per shard, 1..UCM_MAX_SEGMENTS */
    const uint64_t *segment_bytes; /* n_segments, each at least 1 */
    uint64_t capacity;             /* the sum of segment_bytes: the longest shard */
    uint64_t raw_capacity; /* capacity of the top layer: what a shard is before any encoding */
    /* How the bytes are encoded: "" is as the caller gave them, else at most 63 of [a-z0-9.+-],
     * always NUL-terminated, NUL-padded. A layer that encodes appends its own name and version, and
     * with it whatever makes the bytes unreadable to another configuration, such as 16 hex digits
     * of a key's fingerprint. Names are joined by "+", none before the first:
     * "acme.1-9f3c+ucmz.2". No room: UCM_UNSUPPORTED, never cut. Stores that persist keep it with
     * the block. */
    char encoding[UCM_ENCODING_BYTES];
    uint32_t n_planes; /* 0: nothing is known about the numbers */
    uint32_t reserved;
    size_t plane_stride;
    const ucm_plane *planes;
    int32_t memory; /* UCM_MEMORY_*: where the addresses point */
    int32_t device; /* device number for memory that is not the host's, else -1 */
    uint32_t group; /* KV group of a hybrid model; 0: one, else it comes with a flag */
    uint32_t reserved2;
} ucm_layout;

/* Transfers */

enum {
    /* dump: the whole block is published as `done` is called. Every UCM_OK result of a published
     * block carries it, ignored duplicates too. Whoever dumped all shards and saw it on none dumps
     * them again: the block was abandoned between. */
    UCM_RESULT_PUBLISHED = 1u << 0,
    /* dump, with UCM_OK: the store chose not to keep this block; do not dump it again for that. It
     * is neither published nor abandoned, and drain counts it neither stored nor lost. All shards
     * of a block that come while it is being dumped get the same answer. */
    UCM_RESULT_DECLINED = 1u << 1
};

typedef struct ucm_result { /* of one shard */
    size_t struct_size;
    ucm_status status; /* never PENDING or BUSY */
    int32_t os_errno;
    uint32_t flags;
    uint32_t reserved;
    uint64_t length; /* load, UCM_OK: bytes of this shard; otherwise 0 */
} ucm_result;

enum {
    /* Wait for `event` before touching the memory (UCM_CAP_EVENTS), in load and in dump. Without it
     * the caller has waited already. */
    UCM_TRANSFER_EVENT = 1u << 0,
    /* dump: what is published under these ids is not what it should be. The first such shard of a
     * block begins a new copy, which replaces the old one when it is complete. A copy that is
     * unfinished already becomes that new copy, and what it has counts; a store that cannot turn it
     * into one gives it up, as lost. */
    UCM_TRANSFER_REPLACE = 1u << 1
};

/* n shards to move. The arrays are parallel.
 *
 * When load or dump returned UCM_OK, `done` is called exactly once for each i < n, then `finished`
 * once, after every done has returned. When it returned anything else neither is ever called.
 * Both may run inside load or dump, done at the same time for different i. It ends the borrow of
 * that shard's memory; a load's bytes are then visible, in a device's memory to whatever is
 * submitted to that device afterwards. finished ends the use of ctx. With callbacks there is
 * nothing to wait for and no handle to release: who wants wait, check or forget builds them over
 * the two (ucm/task_v1.h does).
 * `*result` is valid during the call.
 *
 * Inside done and finished a layer may copy the result and hand it on: no call into any store, no
 * wait, no I/O, no long work; decoding and the like runs on threads of the layer. The one exception
 * is that a layer may call the done or finished of its own upper layer.
 * n = 0 is UCM_OK: finished is called, done never.
 *
 * Lengths count across the segments in order. Bytes between a loaded shard's length and its
 * capacity are undefined, and so is all of a shard that failed. Addresses that overlap in one load:
 * undefined bytes there. The same shard twice in one dump: the first wins, both get its result.
 *
 * load and dump may copy and encode on the caller's thread, but do not wait for a device there. */
typedef struct ucm_transfer {
    size_t struct_size;
    uint64_t flags; /* UCM_TRANSFER_* */
    size_t n;
    const uint8_t *block_ids;    /* n * UCM_BLOCK_ID_BYTES */
    const uint32_t *shard_index; /* n, each < shards_per_block */
    void *const *addresses;  /* n * n_segments, row by row; device addresses where memory says so */
    const uint64_t *lengths; /* dump: n, each <= capacity; NULL: all are capacity. load: NULL */
    /* dump: n, lengths before any encoding, each <= raw_capacity; NULL only where nothing encodes
     * (capacity equals raw_capacity): same as lengths. load: NULL */
    const uint64_t *raw_lengths;
    void (*done)(void *ctx, size_t i, const ucm_result *result); /* [callback] */
    void (*finished)(void *ctx);                                 /* [callback] */
    void *ctx;
    /* See UCM_TRANSFER_EVENT. CUDA: a CUevent of the primary context of layout.device, recorded
     * before the call, neither recorded again nor destroyed before finished. */
    uint64_t event;
    /* Hints. */
    const uint32_t *depths; /* n or NULL: how many blocks of its prefix come before this one */
    uint64_t tag;           /* trace id, passed on to lower transfers and logs; 0: none */
    int32_t priority;       /* higher is more urgent; 0 is normal, below 0 is background */
    uint32_t reserved;
    /* CLOCK_MONOTONIC nanoseconds, 0: none. A shard whose bytes have not started to move by then is
     * UCM_TIMEOUT, in a store that heeds it. Once I/O runs into or out of the caller's memory the
     * store must let it end; only a store that moves through memory of its own may give up later.
     */
    int64_t deadline_ns;
} ucm_transfer;

/* Names a running transfer for cancel, never reused by a store. 0: this store cannot cancel. */
typedef uint64_t ucm_task;

/* Other operations */

enum {
    UCM_LOOKUP_ALL = 0,    /* *hits = how many of the n are present */
    UCM_LOOKUP_PREFIX = 1, /* *hits = length of the longest prefix that is present, 0..n */
    UCM_LOOKUP_LAST = 2    /* *hits = 1 + index of the last one that is present, 0: none */
};

typedef struct ucm_lookup_args {
    size_t struct_size;
    uint64_t flags; /* none yet */
    int32_t mode;   /* UCM_LOOKUP_*; any other: UCM_UNSUPPORTED */
    uint32_t reserved;
    size_t n;
    const uint8_t *block_ids;
    const uint32_t *depths; /* hint, as in ucm_transfer; may be NULL */
    size_t *hits;           /* out, may be NULL */
    /* out, n, may be NULL: 0 absent, 1 held by this store, k + 1 first held k layers further down.
     * A layer adds 1 to what is not 0 in its lower store's answer. In the modes PREFIX and LAST
     * only the entries that decide the answer need to be right. */
    uint8_t *tiers;
    uint64_t tag; /* hint */
    int64_t
        deadline_ns; /* hint; CLOCK_MONOTONIC, 0: none. UCM_TIMEOUT if there is no answer by then */
} ucm_lookup_args;

typedef struct ucm_ids_args { /* prefetch, touch, remove */
    size_t struct_size;
    uint64_t flags; /* none yet */
    size_t n;
    const uint8_t *block_ids;
    const uint32_t *depths; /* hint; may be NULL */
    uint64_t tag;           /* hint */
    int64_t deadline_ns;    /* hint, as in ucm_lookup_args */
} ucm_ids_args;

typedef struct ucm_memory_args { /* register_memory */
    size_t struct_size;
    uint64_t flags;  /* none yet */
    int32_t release; /* 0: register, 1: undo; base and bytes as registered; else UNSUPPORTED */
    int32_t memory;  /* UCM_MEMORY_* */
    int32_t device;
    uint32_t reserved;
    void *base;
    uint64_t bytes;
} ucm_memory_args;

typedef struct ucm_wait_args { /* drain, close */
    size_t struct_size;
    uint64_t flags;     /* none yet */
    int64_t timeout_ms; /* -1: no limit, 0: do not wait */
} ucm_wait_args;

/* Shards of dumps that this handle accepted and whose `done` said, or will say, UCM_OK: what failed
 * in done is the caller's to count. `stored` are written, whether their block is whole or not;
 * `unfinished` says how many shards are in blocks that are not, and when such a block is given up
 * what was `stored` of it counts again, as `lost`. `stored` and `unfinished` are counted by the
 * bottom store alone, an ignored duplicate among them; every layer counts its own lost and pending.
 * A report that was filled in, or would have been but for NULL, begins the next one. */
typedef struct ucm_report {
    size_t struct_size;
    uint64_t stored; /* since the previous report */
    uint64_t
        lost; /* since the previous report: done said UCM_OK, then given up; why is in the log */
    uint64_t pending; /* still on their way */
    /* now, in blocks that miss other shards: not published yet; after close, never */
    uint64_t unfinished;
} ucm_report;

typedef struct ucm_metrics_args {
    size_t struct_size;
    uint64_t flags;   /* none yet */
    size_t n;         /* entries in values; entries past it are not written */
    uint64_t *values; /* in the order of the plugin's table; see ucm_metric */
} ucm_metrics_args;

/* The store */

/* What this store can do, as opened, including what is below it. Published at open and never
 * changed, so that a layer above checks here, in its own open, and not at the first call. */
enum {
    UCM_CAP_KEEPS = 1u << 0, /* a published block is present in later lookups */
    UCM_CAP_LOADS = 1u << 1, /* the bytes can be loaded again (Fake: KEEPS without LOADS) */
    /* Still there after close and open, and for other processes; a power cut is another matter. */
    UCM_CAP_PERSISTENT = 1u << 2,
    UCM_CAP_VERIFIES = 1u << 3,   /* altered stored bytes are found out */
    UCM_CAP_WRITE_BACK = 1u << 4, /* a dump is done before it is stored; see drain */
    UCM_CAP_REMOVE = 1u << 5,     /* remove is there and works all the way down */
    UCM_CAP_CANCEL = 1u << 6,     /* cancel is there */
    UCM_CAP_EVENTS = 1u << 7,     /* UCM_TRANSFER_EVENT */
    /* What a layer may take over from its lower store. Any other bit, known or not, it sets only
     * for what it does itself. */
    UCM_CAPS_OF_DATA = UCM_CAP_KEEPS | UCM_CAP_LOADS | UCM_CAP_PERSISTENT | UCM_CAP_VERIFIES |
        UCM_CAP_WRITE_BACK
};

typedef struct ucm_store ucm_store;

/* Slots marked optional may be NULL; the wrappers below then answer UCM_UNSUPPORTED, or UCM_OK for
 * a hint.
 *
 * Blocks. Dump stores shards; the block is published when all of its shards are stored, in whatever
 * order, number of tasks and threads they came: completeness is a set of indexes, never the
 * highest. Before that lookup does not see it, and load answers NOT_FOUND. Published means visible
 * to lookup of this store: at once in this process, within 100 ms on this host, on other hosts as
 * soon as the medium shows it (NFS: its attribute-cache time). With UCM_CAP_WRITE_BACK the store
 * below may lag: see drain. If publishing fails, the shard that completes the block gets the error
 * and the block is abandoned; its other shards are lost. All shards of a block come through one
 * handle, or through handles that share one memory segment. A store bounds its unfinished blocks by
 * count, bytes and time since the last shard, and counts those that it abandons. The first complete
 * copy wins: a shard dumped again, of an unfinished block or of a published one whose header fits
 * this layout, is UCM_OK and ignored, even if its length differs. Where the header does not fit
 * (shard count, raw_capacity, encoding), a load has found the block corrupt, or
 * UCM_TRANSFER_REPLACE says so, the dump makes a new copy, which replaces the old one atomically. A
 * layer that answers CORRUPT or INCOMPATIBLE by its own judgement remembers the id and sets REPLACE
 * on the next dump of that block. A lookup is a hint as good as eviction allows, and as far as the
 * store can tell without reading the block: load may still answer NOT_FOUND, CORRUPT or
 * INCOMPATIBLE. Callers put what decides the geometry into the ids. A layer whose lower lookup
 * fails answers with what it holds itself, unless that says UNSUPPORTED or INVALID, which it hands
 * on. A shard that fails fails alone: its neighbours in the same transfer are served. */
typedef struct ucm_store_ops {
    size_t struct_size;

    /* [any-thread] */
    ucm_status (*lookup)(ucm_store *, const ucm_lookup_args *, ucm_error *);

    /* [any-thread] Start moving shards. Never waits for room: UCM_BUSY accepts nothing, UCM_OK all.
     * BUSY only while the queue is at its limit with transfers accepted from this handle; their
     * room is free before their finished is called. One transfer may overshoot the limit, and runs
     * piece by piece. A layer that has accepted a transfer never makes lower BUSY a shard's result:
     * it tries again after its own next lower finished, and every few ms. *task (may be NULL) is
     * set before the first done or finished. UCM_INVALID: an index out of range, a length above
     * capacity, lengths given to load. */
    ucm_status (*load)(ucm_store *, const ucm_transfer *, ucm_task *task, ucm_error *);
    ucm_status (*dump)(ucm_store *, const ucm_transfer *, ucm_task *task, ucm_error *);

    /* [any-thread] Optional. Best effort: shards that have not started are done with UCM_CANCELLED,
     * the rest end as they would have. Returns at once. A task that has finished is UCM_NOT_FOUND.
     */
    ucm_status (*cancel)(ucm_store *, ucm_task task, ucm_error *);

    /* [any-thread] Optional hints: bring these blocks up; these blocks were used. Return at once.
     */
    ucm_status (*prefetch)(ucm_store *, const ucm_ids_args *, ucm_error *);
    ucm_status (*touch)(ucm_store *, const ucm_ids_args *, ucm_error *);

    /* [any-thread] Optional. When it returns the blocks are absent for this handle, those that
     * share its segment, and below, finished or not; absent ones are fine. A layer first ends or
     * cancels its own accepted dumps of these ids (UCM_CANCELLED), then calls its lower store. A
     * load that runs meanwhile ends whole or NOT_FOUND; a write-back or fill that began earlier
     * does not bring the block back. An unfinished dump of another process may still publish. */
    ucm_status (*remove)(ucm_store *, const ucm_ids_args *, ucm_error *);

    /* [any-thread] Wait until what this handle accepted before the call is stored at the bottom or
     * lost. UCM_PENDING: the time is over first; the report is filled in then too. Any other
     * failure: no report begins. A layer drains itself, then its lower store with the time that is
     * left, and adds its own lost and pending to that report. The store sees to it that drains of
     * one handle run one at a time. `report` may be NULL. */
    ucm_status (*drain)(ucm_store *, const ucm_wait_args *, ucm_report *, ucm_error *);

    /* [any-thread] Optional. Never waits for I/O. */
    ucm_status (*metrics)(ucm_store *, const ucm_metrics_args *, ucm_error *);

    /* [any-thread] Optional. Memory that transfers will often use, so that a store may pin it.
     * UCM_OK promises nothing, and a refusal costs speed alone: every transfer works without it.
     * Undone only when no transfer uses it; close ends it too. A layer hands it on only if it hands
     * these addresses down. */
    ucm_status (*register_memory)(ucm_store *, const ucm_memory_args *, ucm_error *);

    /* [one thread at a time] Refuse new work, finish what was accepted, release everything. It
     * neither drains nor closes `lower`: the host closes from the top down and adds up the reports.
     * The caller makes sure that no other call on this handle runs or comes; callbacks do. A layer
     * returns after the finished of all its own lower transfers. UCM_OK: the store is gone and none
     * of its threads will call anything again. UCM_PENDING: time is over, work goes on, the store
     * stays allocated; only close may be called now (a store answers UCM_CLOSED to the rest). A
     * host that gives up leaves it, and everything below it, in place for ever. UCM_INVALID and
     * UCM_UNSUPPORTED: nothing happened, the store is as before, and everything below it stays. Any
     * other status, known or not: gone as with UCM_OK; err says what was not finished. The report
     * is filled in with UCM_PENDING and when the store is gone. */
    ucm_status (*close)(ucm_store *, const ucm_wait_args *, ucm_report *, ucm_error *);
} ucm_store_ops;

/* A plugin's own struct begins with this. Filled in by open, then never changed. */
struct ucm_store {
    size_t struct_size;
    const ucm_store_ops *ops;
    uint64_t capabilities; /* UCM_CAP_* */
    uint64_t capacity;     /* of its layout; 0 if opened for lookup only, as the next two */
    uint64_t raw_capacity;
    uint32_t shards_per_block;
    uint32_t reserved;
};

/* The plugin */

/* Demands, which a host refuses that does not know them. Abilities are members. */
enum {
    UCM_PLUGIN_NEEDS_LOWER = 1u << 0 /* a layer; without the bit it stands at the bottom */
};

enum {
    /* No transfers will come: lookup, prefetch, touch, remove, metrics, drain and close only. load
     * and dump answer UCM_UNSUPPORTED. The host gives the layout where it knows it, made by
     * lower_layout as ever: it tells which blocks are meant, and its memory and device mean
     * nothing. Otherwise layout and lower_layout are NULL, and lower_layout is not called. What
     * others have yet to create (a segment) is not an error: it is tried again at use. */
    UCM_OPEN_LOOKUP_ONLY = 1u << 0
};

typedef struct ucm_open_args {
    size_t struct_size;
    uint64_t flags;
    const ucm_host *host;           /* outlives the store */
    const ucm_layout *layout;       /* borrowed for the call; NULL: see UCM_OPEN_LOOKUP_ONLY */
    const ucm_layout *lower_layout; /* what lower was opened with; NULL at the bottom */
    size_t n_values;                /* the plugin's n_options */
    size_t value_stride;
    const ucm_value *values; /* borrowed for the call, strings included */
    ucm_store *lower;        /* outlives the store; NULL at the bottom */
    const char *unique_id;   /* names what processes of one engine share; "" if none */
    const char *layer;       /* the store's name in its pipeline, for logs: "Acme", "Acme#2" */
} ucm_open_args;

typedef struct ucm_layout_args {
    size_t struct_size;
    uint64_t flags;
    const ucm_layout *layout; /* of the store that asks */
    size_t n_values;
    size_t value_stride;
    const ucm_value *values;
    /* Room for the answer's arrays: UCM_MAX_SEGMENTS segments, and 64 bytes for each of as many
     * planes, whose stride there is the plugin's own: at least 16, a multiple of 8. The answer may
     * also point to the arrays of `layout` or to static memory. */
    size_t segments_room; /* in entries */
    uint64_t *segment_bytes;
    size_t planes_room; /* in bytes */
    void *planes;
} ucm_layout_args;

typedef struct ucm_plugin {
    size_t struct_size;
    uint32_t abi_major, abi_minor, abi_draft; /* UCM_ABI_*, as compiled in */
    uint32_t reserved;
    uint64_t flags;      /* UCM_PLUGIN_*; unknown bits: the host refuses the plugin */
    uint64_t memories;   /* bits 1 << UCM_MEMORY_*: which layouts it takes; the host's are always */
    const char *name;    /* the word in "Cache|Compress|Posix": a letter, then letters and digits */
    const char *version; /* of the plugin: "0.1.0" */
    const char *summary; /* one line */
    size_t n_options;
    size_t option_stride;
    const ucm_option *options;
    size_t n_metrics;
    size_t metric_stride;
    const ucm_metric *metrics;

    /* [any-thread] Pure. The layout this layer will use towards its lower store, for the host to
     * open that first. `out` comes as a copy of `layout`, but with flags 0, no planes,
     * UCM_MEMORY_HOST and device -1: a layer that keeps those says so again. raw_capacity stays.
     * What the layer does not know, beyond its own struct, stays as the host put it. The host
     * checks the answer. NULL: `layout` as it is. */
    ucm_status (*lower_layout)(const ucm_layout_args *, ucm_layout *out, ucm_error *);

    /* [any-thread] On UCM_OK *out is open, with all slots that are not optional, and the capacities
     * of its layout. Lower stores are open already; an open that fails leaves no thread,
     * registration or transfer on them. */
    ucm_status (*open)(const ucm_open_args *, ucm_store **out, ucm_error *);
} ucm_plugin;

#ifndef UCM_DECLARATIONS_ONLY /* defined by tools that parse types only */
#ifdef __cplusplus
static_assert(sizeof(void *) == 8 && sizeof(size_t) == 8, "StoreV1 is for 64-bit pointers");
#else
_Static_assert(sizeof(void *) == 8 && sizeof(size_t) == 8, "StoreV1 is for 64-bit pointers");
#endif

/* The one symbol that a plugin exports. Cheap, no side effects; the answer is static. */
UCM_EXPORT const ucm_plugin *ucm_store_plugin_v1(void);

/* Helpers */

/* Copy a struct that may have been made by another version: what both know, zero for the rest. */
static inline void ucm_copy(void *to, size_t to_size, const void *from) {
    const unsigned char *source = (const unsigned char *)from;
    unsigned char *target = (unsigned char *)to;
    const size_t from_size = *(const size_t *)from;
    for (size_t i = 0; i < to_size; i++) target[i] = i < from_size ? source[i] : 0;
    *(size_t *)to = to_size;
}

/* Fills err (may be NULL) and returns code. */
static inline ucm_status ucm_fail(ucm_error *err, ucm_status code, int os_errno,
                                  const char *message) {
    if (err) {
        size_t i = 0;
        err->code = code;
        err->os_errno = os_errno;
        for (; message[i] && i + 1 < sizeof err->message; i++) err->message[i] = message[i];
        err->message[i] = 0;
    }
    return code;
}

/* Calls between layers, and from the host: always through these */

#define UCM_OPS_HAVE(store, slot) \
    (UCM_HAS(ucm_store_ops, (store)->ops, slot) && (store)->ops->slot != NULL)
/* 1.0 ends at this member. */
#define UCM_ARGS_CHECK(type, args, last, err) \
    if (!UCM_HAS(type, args, last))           \
    return ucm_fail(err, UCM_INVALID, 0, #type ".struct_size is too small")

static inline ucm_status ucm_lookup(ucm_store *s, const ucm_lookup_args *a, ucm_error *err) {
    UCM_ARGS_CHECK(ucm_lookup_args, a, deadline_ns, err);
    return s->ops->lookup(s, a, err);
}

static inline ucm_status ucm_transfer_check(const ucm_store *s, const ucm_transfer *t,
                                            ucm_error *err) {
    UCM_ARGS_CHECK(ucm_transfer, t, deadline_ns, err);
    if (s->shards_per_block == 0)
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this store was opened for lookup only");
    if (!t->done || !t->finished)
        return ucm_fail(err, UCM_INVALID, 0, "done and finished must be set");
    if ((t->flags & UCM_TRANSFER_EVENT) && !(s->capabilities & UCM_CAP_EVENTS))
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this store cannot wait for a device event");
    for (size_t i = 0; i < t->n; i++)
        if (t->shard_index[i] >= s->shards_per_block)
            return ucm_fail(err, UCM_INVALID, 0, "shard index out of range");
    return UCM_OK;
}

static inline ucm_status ucm_load(ucm_store *s, const ucm_transfer *t, ucm_task *task,
                                  ucm_error *err) {
    const ucm_status status = ucm_transfer_check(s, t, err);
    if (status != UCM_OK) return status;
    if (t->lengths || t->raw_lengths)
        return ucm_fail(err, UCM_INVALID, 0, "lengths are for dump; load reports them");
    return s->ops->load(s, t, task, err);
}

static inline ucm_status ucm_dump(ucm_store *s, const ucm_transfer *t, ucm_task *task,
                                  ucm_error *err) {
    const ucm_status status = ucm_transfer_check(s, t, err);
    if (status != UCM_OK) return status;
    if (!t->raw_lengths && s->capacity != s->raw_capacity)
        return ucm_fail(err, UCM_INVALID, 0, "an encoding layer must give raw_lengths");
    for (size_t i = 0; i < t->n; i++) {
        if (t->lengths && t->lengths[i] > s->capacity)
            return ucm_fail(err, UCM_INVALID, 0, "a length is above the shard's capacity");
        if (t->raw_lengths && t->raw_lengths[i] > s->raw_capacity)
            return ucm_fail(err, UCM_INVALID, 0, "a raw length is above raw_capacity");
    }
    return s->ops->dump(s, t, task, err);
}

static inline ucm_status ucm_cancel(ucm_store *s, ucm_task task, ucm_error *err) {
    if (!UCM_OPS_HAVE(s, cancel))
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this store cannot cancel");
    return s->ops->cancel(s, task, err);
}

static inline ucm_status ucm_prefetch(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    UCM_ARGS_CHECK(ucm_ids_args, a, deadline_ns, err);
    return UCM_OPS_HAVE(s, prefetch) ? s->ops->prefetch(s, a, err) : UCM_OK;
}

static inline ucm_status ucm_touch(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    UCM_ARGS_CHECK(ucm_ids_args, a, deadline_ns, err);
    return UCM_OPS_HAVE(s, touch) ? s->ops->touch(s, a, err) : UCM_OK;
}

static inline ucm_status ucm_remove(ucm_store *s, const ucm_ids_args *a, ucm_error *err) {
    UCM_ARGS_CHECK(ucm_ids_args, a, deadline_ns, err);
    if (!UCM_OPS_HAVE(s, remove))
        return ucm_fail(err, UCM_UNSUPPORTED, 0, "this store cannot remove");
    return s->ops->remove(s, a, err);
}

static inline ucm_status ucm_drain(ucm_store *s, const ucm_wait_args *a, ucm_report *r,
                                   ucm_error *err) {
    UCM_ARGS_CHECK(ucm_wait_args, a, timeout_ms, err);
    return s->ops->drain(s, a, r, err);
}

static inline ucm_status ucm_metrics(ucm_store *s, const ucm_metrics_args *a, ucm_error *err) {
    UCM_ARGS_CHECK(ucm_metrics_args, a, values, err);
    return UCM_OPS_HAVE(s, metrics) ? s->ops->metrics(s, a, err) : UCM_OK;
}

static inline ucm_status ucm_register_memory(ucm_store *s, const ucm_memory_args *a,
                                             ucm_error *err) {
    UCM_ARGS_CHECK(ucm_memory_args, a, bytes, err);
    return UCM_OPS_HAVE(s, register_memory) ? s->ops->register_memory(s, a, err) : UCM_OK;
}

static inline ucm_status ucm_close(ucm_store *s, const ucm_wait_args *a, ucm_report *r,
                                   ucm_error *err) {
    UCM_ARGS_CHECK(ucm_wait_args, a, timeout_ms, err);
    return s->ops->close(s, a, r, err);
}
#endif

#ifdef __cplusplus
}
#endif
#endif /* UCM_STORE_V1_H */
