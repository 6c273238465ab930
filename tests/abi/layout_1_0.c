/* SPDX-License-Identifier: MIT
 *
 * The layout of every struct of ucm/store_v1.h, and the value of every constant, of ABI 1.0. Lines
 * are only ever added.
 */
#include "ucm/store_v1.h"

#ifdef __cplusplus
#define ASSERT(condition, text) static_assert(condition, text)
#else
#define ASSERT(condition, text) _Static_assert(condition, text)
#endif

/* The members of 1.0 fill `size` bytes to the last: no padding that an appended member would lie
 * in. Structs that grow are larger. */
#define STRUCT(type, size)                                                       \
    ASSERT(UCM_ABI_MINOR > 0 ? sizeof(struct type) >= (size)                     \
                             : sizeof(struct type) == (size) && (size) % 8 == 0, \
           #type)
#define MEMBER(type, name, offset, size)                                                          \
    ASSERT(offsetof(struct type, name) == (offset) && sizeof(((struct type *)0)->name) == (size), \
           #type "." #name)
#define VALUE(name, value) ASSERT((name) == (value), #name)

STRUCT(ucm_error, 512);
MEMBER(ucm_error, struct_size, 0, 8);
MEMBER(ucm_error, code, 8, 4);
MEMBER(ucm_error, os_errno, 12, 4);
MEMBER(ucm_error, message, 16, 496);

STRUCT(ucm_option, 48);
MEMBER(ucm_option, name, 0, 8);
MEMBER(ucm_option, type, 8, 4);
MEMBER(ucm_option, reserved, 12, 4);
MEMBER(ucm_option, initial, 16, 8);
MEMBER(ucm_option, allowed, 24, 8);
MEMBER(ucm_option, unit, 32, 8);
MEMBER(ucm_option, help, 40, 8);

STRUCT(ucm_value, 56);
MEMBER(ucm_value, type, 0, 4);
MEMBER(ucm_value, given, 4, 4);
MEMBER(ucm_value, count, 8, 8);
MEMBER(ucm_value, i, 16, 8);
MEMBER(ucm_value, f, 24, 8);
MEMBER(ucm_value, s, 32, 8);
MEMBER(ucm_value, strings, 40, 8);
MEMBER(ucm_value, ints, 48, 8);

STRUCT(ucm_metric, 32);
MEMBER(ucm_metric, name, 0, 8);
MEMBER(ucm_metric, kind, 8, 4);
MEMBER(ucm_metric, scope, 12, 4);
MEMBER(ucm_metric, unit, 16, 8);
MEMBER(ucm_metric, help, 24, 8);

STRUCT(ucm_host, 48);
MEMBER(ucm_host, struct_size, 0, 8);
MEMBER(ucm_host, ctx, 8, 8);
MEMBER(ucm_host, log_level, 16, 8);
MEMBER(ucm_host, log, 24, 8);
MEMBER(ucm_host, abi_minor, 32, 4);
MEMBER(ucm_host, reserved, 36, 4);
MEMBER(ucm_host, version, 40, 8);

STRUCT(ucm_plane, 16);
MEMBER(ucm_plane, bytes, 0, 8);
MEMBER(ucm_plane, dtype, 8, 4);
MEMBER(ucm_plane, kind, 12, 4);

STRUCT(ucm_layout, 152);
MEMBER(ucm_layout, struct_size, 0, 8);
MEMBER(ucm_layout, flags, 8, 8);
MEMBER(ucm_layout, shards_per_block, 16, 4);
MEMBER(ucm_layout, n_segments, 20, 4);
MEMBER(ucm_layout, segment_bytes, 24, 8);
MEMBER(ucm_layout, capacity, 32, 8);
MEMBER(ucm_layout, raw_capacity, 40, 8);
MEMBER(ucm_layout, encoding, 48, 64);
MEMBER(ucm_layout, n_planes, 112, 4);
MEMBER(ucm_layout, reserved, 116, 4);
MEMBER(ucm_layout, plane_stride, 120, 8);
MEMBER(ucm_layout, planes, 128, 8);
MEMBER(ucm_layout, memory, 136, 4);
MEMBER(ucm_layout, device, 140, 4);
MEMBER(ucm_layout, group, 144, 4);
MEMBER(ucm_layout, reserved2, 148, 4);

STRUCT(ucm_result, 32);
MEMBER(ucm_result, struct_size, 0, 8);
MEMBER(ucm_result, status, 8, 4);
MEMBER(ucm_result, os_errno, 12, 4);
MEMBER(ucm_result, flags, 16, 4);
MEMBER(ucm_result, reserved, 20, 4);
MEMBER(ucm_result, length, 24, 8);

STRUCT(ucm_transfer, 128);
MEMBER(ucm_transfer, struct_size, 0, 8);
MEMBER(ucm_transfer, flags, 8, 8);
MEMBER(ucm_transfer, n, 16, 8);
MEMBER(ucm_transfer, block_ids, 24, 8);
MEMBER(ucm_transfer, shard_index, 32, 8);
MEMBER(ucm_transfer, addresses, 40, 8);
MEMBER(ucm_transfer, lengths, 48, 8);
MEMBER(ucm_transfer, raw_lengths, 56, 8);
MEMBER(ucm_transfer, done, 64, 8);
MEMBER(ucm_transfer, finished, 72, 8);
MEMBER(ucm_transfer, ctx, 80, 8);
MEMBER(ucm_transfer, event, 88, 8);
MEMBER(ucm_transfer, depths, 96, 8);
MEMBER(ucm_transfer, tag, 104, 8);
MEMBER(ucm_transfer, priority, 112, 4);
MEMBER(ucm_transfer, reserved, 116, 4);
MEMBER(ucm_transfer, deadline_ns, 120, 8);

STRUCT(ucm_lookup_args, 80);
MEMBER(ucm_lookup_args, struct_size, 0, 8);
MEMBER(ucm_lookup_args, flags, 8, 8);
MEMBER(ucm_lookup_args, mode, 16, 4);
MEMBER(ucm_lookup_args, reserved, 20, 4);
MEMBER(ucm_lookup_args, n, 24, 8);
MEMBER(ucm_lookup_args, block_ids, 32, 8);
MEMBER(ucm_lookup_args, depths, 40, 8);
MEMBER(ucm_lookup_args, hits, 48, 8);
MEMBER(ucm_lookup_args, tiers, 56, 8);
MEMBER(ucm_lookup_args, tag, 64, 8);
MEMBER(ucm_lookup_args, deadline_ns, 72, 8);

STRUCT(ucm_ids_args, 56);
MEMBER(ucm_ids_args, struct_size, 0, 8);
MEMBER(ucm_ids_args, flags, 8, 8);
MEMBER(ucm_ids_args, n, 16, 8);
MEMBER(ucm_ids_args, block_ids, 24, 8);
MEMBER(ucm_ids_args, depths, 32, 8);
MEMBER(ucm_ids_args, tag, 40, 8);
MEMBER(ucm_ids_args, deadline_ns, 48, 8);

STRUCT(ucm_memory_args, 48);
MEMBER(ucm_memory_args, struct_size, 0, 8);
MEMBER(ucm_memory_args, flags, 8, 8);
MEMBER(ucm_memory_args, release, 16, 4);
MEMBER(ucm_memory_args, memory, 20, 4);
MEMBER(ucm_memory_args, device, 24, 4);
MEMBER(ucm_memory_args, reserved, 28, 4);
MEMBER(ucm_memory_args, base, 32, 8);
MEMBER(ucm_memory_args, bytes, 40, 8);

STRUCT(ucm_wait_args, 24);
MEMBER(ucm_wait_args, struct_size, 0, 8);
MEMBER(ucm_wait_args, flags, 8, 8);
MEMBER(ucm_wait_args, timeout_ms, 16, 8);

STRUCT(ucm_report, 40);
MEMBER(ucm_report, struct_size, 0, 8);
MEMBER(ucm_report, stored, 8, 8);
MEMBER(ucm_report, lost, 16, 8);
MEMBER(ucm_report, pending, 24, 8);
MEMBER(ucm_report, unfinished, 32, 8);

STRUCT(ucm_metrics_args, 32);
MEMBER(ucm_metrics_args, struct_size, 0, 8);
MEMBER(ucm_metrics_args, flags, 8, 8);
MEMBER(ucm_metrics_args, n, 16, 8);
MEMBER(ucm_metrics_args, values, 24, 8);

STRUCT(ucm_store_ops, 96);
MEMBER(ucm_store_ops, struct_size, 0, 8);
MEMBER(ucm_store_ops, lookup, 8, 8);
MEMBER(ucm_store_ops, load, 16, 8);
MEMBER(ucm_store_ops, dump, 24, 8);
MEMBER(ucm_store_ops, cancel, 32, 8);
MEMBER(ucm_store_ops, prefetch, 40, 8);
MEMBER(ucm_store_ops, touch, 48, 8);
MEMBER(ucm_store_ops, remove, 56, 8);
MEMBER(ucm_store_ops, drain, 64, 8);
MEMBER(ucm_store_ops, metrics, 72, 8);
MEMBER(ucm_store_ops, register_memory, 80, 8);
MEMBER(ucm_store_ops, close, 88, 8);

STRUCT(ucm_store, 48);
MEMBER(ucm_store, struct_size, 0, 8);
MEMBER(ucm_store, ops, 8, 8);
MEMBER(ucm_store, capabilities, 16, 8);
MEMBER(ucm_store, capacity, 24, 8);
MEMBER(ucm_store, raw_capacity, 32, 8);
MEMBER(ucm_store, shards_per_block, 40, 4);
MEMBER(ucm_store, reserved, 44, 4);

STRUCT(ucm_open_args, 88);
MEMBER(ucm_open_args, struct_size, 0, 8);
MEMBER(ucm_open_args, flags, 8, 8);
MEMBER(ucm_open_args, host, 16, 8);
MEMBER(ucm_open_args, layout, 24, 8);
MEMBER(ucm_open_args, lower_layout, 32, 8);
MEMBER(ucm_open_args, n_values, 40, 8);
MEMBER(ucm_open_args, value_stride, 48, 8);
MEMBER(ucm_open_args, values, 56, 8);
MEMBER(ucm_open_args, lower, 64, 8);
MEMBER(ucm_open_args, unique_id, 72, 8);
MEMBER(ucm_open_args, layer, 80, 8);

STRUCT(ucm_layout_args, 80);
MEMBER(ucm_layout_args, struct_size, 0, 8);
MEMBER(ucm_layout_args, flags, 8, 8);
MEMBER(ucm_layout_args, layout, 16, 8);
MEMBER(ucm_layout_args, n_values, 24, 8);
MEMBER(ucm_layout_args, value_stride, 32, 8);
MEMBER(ucm_layout_args, values, 40, 8);
MEMBER(ucm_layout_args, segments_room, 48, 8);
MEMBER(ucm_layout_args, segment_bytes, 56, 8);
MEMBER(ucm_layout_args, planes_room, 64, 8);
MEMBER(ucm_layout_args, planes, 72, 8);

STRUCT(ucm_plugin, 128);
MEMBER(ucm_plugin, struct_size, 0, 8);
MEMBER(ucm_plugin, abi_major, 8, 4);
MEMBER(ucm_plugin, abi_minor, 12, 4);
MEMBER(ucm_plugin, abi_draft, 16, 4);
MEMBER(ucm_plugin, reserved, 20, 4);
MEMBER(ucm_plugin, flags, 24, 8);
MEMBER(ucm_plugin, memories, 32, 8);
MEMBER(ucm_plugin, name, 40, 8);
MEMBER(ucm_plugin, version, 48, 8);
MEMBER(ucm_plugin, summary, 56, 8);
MEMBER(ucm_plugin, n_options, 64, 8);
MEMBER(ucm_plugin, option_stride, 72, 8);
MEMBER(ucm_plugin, options, 80, 8);
MEMBER(ucm_plugin, n_metrics, 88, 8);
MEMBER(ucm_plugin, metric_stride, 96, 8);
MEMBER(ucm_plugin, metrics, 104, 8);
MEMBER(ucm_plugin, lower_layout, 112, 8);
MEMBER(ucm_plugin, open, 120, 8);

VALUE(UCM_ABI_MAJOR, 1);
VALUE(UCM_BLOCK_ID_BYTES, 16);
VALUE(UCM_ALIGNMENT, 4096);
VALUE(UCM_MAX_SEGMENTS, 4096);
VALUE(UCM_MAX_SHARDS, 16384);
VALUE(UCM_ENCODING_BYTES, 64);
VALUE(UCM_HISTOGRAM_VALUES, 66);
VALUE(UCM_OK, 0);
VALUE(UCM_PENDING, 1);
VALUE(UCM_NOT_FOUND, 2);
VALUE(UCM_INVALID, 3);
VALUE(UCM_UNSUPPORTED, 4);
VALUE(UCM_UNAVAILABLE, 5);
VALUE(UCM_NO_SPACE, 6);
VALUE(UCM_IO, 7);
VALUE(UCM_CORRUPT, 8);
VALUE(UCM_CANCELLED, 9);
VALUE(UCM_INTERNAL, 10);
VALUE(UCM_BUSY, 11);
VALUE(UCM_TIMEOUT, 12);
VALUE(UCM_CLOSED, 13);
VALUE(UCM_INCOMPATIBLE, 14);
VALUE(UCM_TYPE_BOOL, 1);
VALUE(UCM_TYPE_INT, 2);
VALUE(UCM_TYPE_SIZE, 3);
VALUE(UCM_TYPE_FLOAT, 4);
VALUE(UCM_TYPE_STRING, 5);
VALUE(UCM_TYPE_STRINGS, 6);
VALUE(UCM_TYPE_INTS, 7);
VALUE(UCM_TYPE_SECRET, 8);
VALUE(UCM_METRIC_COUNTER, 1);
VALUE(UCM_METRIC_GAUGE, 2);
VALUE(UCM_METRIC_HISTOGRAM, 3);
VALUE(UCM_SCOPE_STORE, 0);
VALUE(UCM_SCOPE_SHARED, 1);
VALUE(UCM_LOG_DEBUG, 0);
VALUE(UCM_LOG_INFO, 1);
VALUE(UCM_LOG_WARN, 2);
VALUE(UCM_LOG_ERROR, 3);
VALUE(UCM_DTYPE_BYTES, 0);
VALUE(UCM_DTYPE_BF16, 1);
VALUE(UCM_DTYPE_FP16, 2);
VALUE(UCM_DTYPE_FP32, 3);
VALUE(UCM_DTYPE_FP8_E4M3, 4);
VALUE(UCM_DTYPE_FP8_E5M2, 5);
VALUE(UCM_PLANE_OTHER, 0);
VALUE(UCM_PLANE_K, 1);
VALUE(UCM_PLANE_V, 2);
VALUE(UCM_MEMORY_HOST, 0);
VALUE(UCM_MEMORY_CUDA, 1);
VALUE(UCM_LAYOUT_PAGES, 1);
VALUE(UCM_RESULT_PUBLISHED, 1);
VALUE(UCM_RESULT_DECLINED, 2);
VALUE(UCM_TRANSFER_EVENT, 1);
VALUE(UCM_TRANSFER_REPLACE, 2);
VALUE(UCM_LOOKUP_ALL, 0);
VALUE(UCM_LOOKUP_PREFIX, 1);
VALUE(UCM_LOOKUP_LAST, 2);
VALUE(UCM_CAP_KEEPS, 1);
VALUE(UCM_CAP_LOADS, 2);
VALUE(UCM_CAP_PERSISTENT, 4);
VALUE(UCM_CAP_VERIFIES, 8);
VALUE(UCM_CAP_WRITE_BACK, 16);
VALUE(UCM_CAP_REMOVE, 32);
VALUE(UCM_CAP_CANCEL, 64);
VALUE(UCM_CAP_EVENTS, 128);
VALUE(UCM_CAPS_OF_DATA, 31);
VALUE(UCM_PLUGIN_NEEDS_LOWER, 1);
VALUE(UCM_OPEN_LOOKUP_ONLY, 1);

int main(void) {
    return 0;
}
