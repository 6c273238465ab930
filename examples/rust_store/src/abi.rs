// SPDX-License-Identifier: MIT
//! What this store needs of ucm/store_v1.h, declared once more for Rust; the header says what it
//! means. Sizes are compared with C's at compile time.
#![allow(non_camel_case_types)]

use std::mem::{size_of, MaybeUninit};
use std::os::raw::{c_char, c_void};

pub const ABI: (u32, u32, u32) = (1, 0, 0); // major, minor, draft; 0: frozen
pub const BLOCK_ID_BYTES: usize = 16;

pub type ucm_status = i32;
pub const OK: ucm_status = 0;
pub const NOT_FOUND: ucm_status = 2;
pub const INVALID: ucm_status = 3;
pub const UNSUPPORTED: ucm_status = 4;
pub const NO_SPACE: ucm_status = 6;
pub const INTERNAL: ucm_status = 10;
pub const TIMEOUT: ucm_status = 12;

pub const TYPE_INT: i32 = 2;
pub const METRIC_COUNTER: i32 = 1;
pub const METRIC_GAUGE: i32 = 2;
pub const MEMORY_HOST: i32 = 0;
pub const LAYOUT_PAGES: u64 = 1;
pub const RESULT_PUBLISHED: u32 = 1;
pub const TRANSFER_REPLACE: u64 = 2;
pub const LOOKUP_ALL: i32 = 0;
pub const LOOKUP_PREFIX: i32 = 1;
pub const LOOKUP_LAST: i32 = 2;
pub const CAP_KEEPS: u64 = 1;
pub const CAP_LOADS: u64 = 2;
pub const CAP_REMOVE: u64 = 32;
pub const OPEN_LOOKUP_ONLY: u64 = 1;

#[repr(C)]
pub struct ucm_error {
    pub struct_size: usize,
    pub code: ucm_status,
    pub os_errno: i32,
    pub message: [u8; 496],
}

#[repr(C)]
pub struct ucm_option {
    pub name: *const c_char,
    pub kind: i32,
    pub reserved: u32,
    pub initial: *const c_char,
    pub allowed: *const c_char,
    pub unit: *const c_char,
    pub help: *const c_char,
}

#[repr(C)]
pub struct ucm_value {
    pub kind: i32,
    pub given: u32,
    pub count: usize,
    pub i: i64,
    pub f: f64,
    pub s: *const c_char,
    pub strings: *const *const c_char,
    pub ints: *const i64,
}

#[repr(C)]
pub struct ucm_metric {
    pub name: *const c_char,
    pub kind: i32,
    pub scope: i32,
    pub unit: *const c_char,
    pub help: *const c_char,
}

#[repr(C)]
pub struct ucm_layout {
    pub struct_size: usize,
    pub flags: u64,
    pub shards_per_block: u32,
    pub n_segments: u32,
    pub segment_bytes: *const u64,
    pub capacity: u64,
    pub raw_capacity: u64,
    pub encoding: [u8; 64],
    pub n_planes: u32,
    pub reserved: u32,
    pub plane_stride: usize,
    pub planes: *const c_void,
    pub memory: i32,
    pub device: i32,
    pub group: u32,
    pub reserved2: u32,
}

#[repr(C)]
pub struct ucm_result {
    pub struct_size: usize,
    pub status: ucm_status,
    pub os_errno: i32,
    pub flags: u32,
    pub reserved: u32,
    pub length: u64,
}

#[repr(C)]
pub struct ucm_transfer {
    pub struct_size: usize,
    pub flags: u64,
    pub n: usize,
    pub block_ids: *const u8,
    pub shard_index: *const u32,
    pub addresses: *const *mut u8,
    pub lengths: *const u64,
    pub raw_lengths: *const u64,
    pub done: extern "C" fn(*mut c_void, usize, *const ucm_result),
    pub finished: extern "C" fn(*mut c_void),
    pub ctx: *mut c_void,
    pub event: u64,
    pub depths: *const u32,
    pub tag: u64,
    pub priority: i32,
    pub reserved: u32,
    pub deadline_ns: i64,
}

#[repr(C)]
pub struct ucm_lookup_args {
    pub struct_size: usize,
    pub flags: u64,
    pub mode: i32,
    pub reserved: u32,
    pub n: usize,
    pub block_ids: *const u8,
    pub depths: *const u32,
    pub hits: *mut usize,
    pub tiers: *mut u8,
    pub tag: u64,
    pub deadline_ns: i64,
}

#[repr(C)]
pub struct ucm_ids_args {
    pub struct_size: usize,
    pub flags: u64,
    pub n: usize,
    pub block_ids: *const u8,
    pub depths: *const u32,
    pub tag: u64,
    pub deadline_ns: i64,
}

#[repr(C)]
pub struct ucm_wait_args {
    pub struct_size: usize,
    pub flags: u64,
    pub timeout_ms: i64,
}

#[repr(C)]
pub struct ucm_report {
    pub struct_size: usize,
    pub stored: u64,
    pub lost: u64,
    pub pending: u64,
    pub unfinished: u64,
}

#[repr(C)]
pub struct ucm_metrics_args {
    pub struct_size: usize,
    pub flags: u64,
    pub n: usize,
    pub values: *mut u64,
}

pub type Transfer =
    extern "C" fn(*mut ucm_store, *const ucm_transfer, *mut u64, *mut ucm_error) -> ucm_status;
pub type Ids = extern "C" fn(*mut ucm_store, *const ucm_ids_args, *mut ucm_error) -> ucm_status;
pub type Wait = extern "C" fn(
    *mut ucm_store,
    *const ucm_wait_args,
    *mut ucm_report,
    *mut ucm_error,
) -> ucm_status;

#[repr(C)]
pub struct ucm_store_ops {
    pub struct_size: usize,
    pub lookup: extern "C" fn(*mut ucm_store, *const ucm_lookup_args, *mut ucm_error) -> ucm_status,
    pub load: Transfer,
    pub dump: Transfer,
    pub cancel: Option<extern "C" fn(*mut ucm_store, u64, *mut ucm_error) -> ucm_status>,
    pub prefetch: Option<Ids>,
    pub touch: Option<Ids>,
    pub remove: Option<Ids>,
    pub drain: Wait,
    pub metrics: Option<
        extern "C" fn(*mut ucm_store, *const ucm_metrics_args, *mut ucm_error) -> ucm_status,
    >,
    pub register_memory:
        Option<extern "C" fn(*mut ucm_store, *const c_void, *mut ucm_error) -> ucm_status>,
    pub close: Wait,
}

#[repr(C)]
pub struct ucm_store {
    pub struct_size: usize,
    pub ops: *const ucm_store_ops,
    pub capabilities: u64,
    pub capacity: u64,
    pub raw_capacity: u64,
    pub shards_per_block: u32,
    pub reserved: u32,
}

#[repr(C)]
pub struct ucm_open_args {
    pub struct_size: usize,
    pub flags: u64,
    pub host: *const c_void,
    pub layout: *const ucm_layout,
    pub lower_layout: *const ucm_layout,
    pub n_values: usize,
    pub value_stride: usize,
    pub values: *const ucm_value,
    pub lower: *mut ucm_store,
    pub unique_id: *const c_char,
    pub layer: *const c_char,
}

#[repr(C)]
pub struct ucm_plugin {
    pub struct_size: usize,
    pub abi_major: u32,
    pub abi_minor: u32,
    pub abi_draft: u32,
    pub reserved: u32,
    pub flags: u64,
    pub memories: u64,
    pub name: *const c_char,
    pub version: *const c_char,
    pub summary: *const c_char,
    pub n_options: usize,
    pub option_stride: usize,
    pub options: *const ucm_option,
    pub n_metrics: usize,
    pub metric_stride: usize,
    pub metrics: *const ucm_metric,
    pub lower_layout:
        Option<extern "C" fn(*const c_void, *mut ucm_layout, *mut ucm_error) -> ucm_status>,
    pub open:
        extern "C" fn(*const ucm_open_args, *mut *mut ucm_store, *mut ucm_error) -> ucm_status,
}

const _: () = assert!(
    size_of::<ucm_error>() == 512
        && size_of::<ucm_option>() == 48
        && size_of::<ucm_value>() == 56
        && size_of::<ucm_metric>() == 32
        && size_of::<ucm_layout>() == 152
        && size_of::<ucm_result>() == 32
        && size_of::<ucm_transfer>() == 128
        && size_of::<ucm_lookup_args>() == 80
        && size_of::<ucm_ids_args>() == 56
        && size_of::<ucm_wait_args>() == 24
        && size_of::<ucm_report>() == 40
        && size_of::<ucm_metrics_args>() == 32
        && size_of::<ucm_store_ops>() == 96
        && size_of::<ucm_store>() == 48
        && size_of::<ucm_open_args>() == 88
        && size_of::<ucm_plugin>() == 128
);

/// Fills `err`, which may be NULL, and returns `code`.
pub fn fail(err: *mut ucm_error, code: ucm_status, message: &str) -> ucm_status {
    if let Some(err) = unsafe { err.as_mut() } {
        let bytes = &message.as_bytes()[..message.len().min(err.message.len() - 1)];
        err.code = code;
        err.os_errno = 0;
        err.message[..bytes.len()].copy_from_slice(bytes);
        err.message[bytes.len()] = 0;
    }
    code
}

/// CLOCK_MONOTONIC, which deadlines are of; std hides its numbers.
pub fn monotonic_ns() -> i64 {
    #[repr(C)]
    struct timespec {
        seconds: i64,
        nanoseconds: i64,
    }
    extern "C" {
        fn clock_gettime(clock: i32, now: *mut timespec) -> i32;
    }
    const CLOCK_MONOTONIC: i32 = 1;
    let mut now = MaybeUninit::<timespec>::uninit();
    let now = unsafe {
        clock_gettime(CLOCK_MONOTONIC, now.as_mut_ptr());
        now.assume_init()
    };
    now.seconds * 1_000_000_000 + now.nanoseconds
}

/// A text of C from one of Rust.
macro_rules! text {
    ($text:expr) => {
        concat!($text, "\0").as_ptr() as *const std::os::raw::c_char
    };
}
pub(crate) use text;

/// Where each member lies; it says so where one does not.
#[cfg(test)]
mod tests {
    use super::*;

    macro_rules! offsets {
        ($type:ident: $($member:ident $offset:expr),*) => {{
            let room = MaybeUninit::<$type>::uninit();
            let base = room.as_ptr();
            $(assert_eq!(
                unsafe { std::ptr::addr_of!((*base).$member) as usize } - base as usize,
                $offset,
                concat!(stringify!($type), ".", stringify!($member))
            );)*
        }};
    }

    #[test]
    fn members_lie_where_c_has_them() {
        offsets!(ucm_error: struct_size 0, code 8, os_errno 12, message 16);
        offsets!(ucm_option: name 0, kind 8, reserved 12, initial 16, allowed 24, unit 32, help 40);
        offsets!(ucm_value: kind 0, given 4, count 8, i 16, f 24, s 32, strings 40, ints 48);
        offsets!(ucm_metric: name 0, kind 8, scope 12, unit 16, help 24);
        offsets!(ucm_layout: struct_size 0, flags 8, shards_per_block 16, n_segments 20, segment_bytes 24, capacity 32, raw_capacity 40, encoding 48, n_planes 112, reserved 116, plane_stride 120, planes 128, memory 136, device 140, group 144, reserved2 148);
        offsets!(ucm_result: struct_size 0, status 8, os_errno 12, flags 16, reserved 20, length 24);
        offsets!(ucm_transfer: struct_size 0, flags 8, n 16, block_ids 24, shard_index 32, addresses 40, lengths 48, raw_lengths 56, done 64, finished 72, ctx 80, event 88, depths 96, tag 104, priority 112, reserved 116, deadline_ns 120);
        offsets!(ucm_lookup_args: struct_size 0, flags 8, mode 16, reserved 20, n 24, block_ids 32, depths 40, hits 48, tiers 56, tag 64, deadline_ns 72);
        offsets!(ucm_ids_args: struct_size 0, flags 8, n 16, block_ids 24, depths 32, tag 40, deadline_ns 48);
        offsets!(ucm_wait_args: struct_size 0, flags 8, timeout_ms 16);
        offsets!(ucm_report: struct_size 0, stored 8, lost 16, pending 24, unfinished 32);
        offsets!(ucm_metrics_args: struct_size 0, flags 8, n 16, values 24);
        offsets!(ucm_store_ops: struct_size 0, lookup 8, load 16, dump 24, cancel 32, prefetch 40, touch 48, remove 56, drain 64, metrics 72, register_memory 80, close 88);
        offsets!(ucm_store: struct_size 0, ops 8, capabilities 16, capacity 24, raw_capacity 32, shards_per_block 40, reserved 44);
        offsets!(ucm_open_args: struct_size 0, flags 8, host 16, layout 24, lower_layout 32, n_values 40, value_stride 48, values 56, lower 64, unique_id 72, layer 80);
        offsets!(ucm_plugin: struct_size 0, abi_major 8, abi_minor 12, abi_draft 16, reserved 20, flags 24, memories 32, name 40, version 48, summary 56, n_options 64, option_stride 72, options 80, n_metrics 88, metric_stride 96, metrics 104, lower_layout 112, open 120);
    }
}
