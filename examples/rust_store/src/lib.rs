// SPDX-License-Identifier: MIT
//! Oxide: a store of ucm in Rust, with nothing but std. This file is the edge towards C; what a store
//! does is in `blocks`, which has no unsafe code.

mod abi;
mod blocks;

use abi::*;
use blocks::{Blocks, Dumped, Id};
use std::convert::TryFrom;
use std::mem::size_of;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice::from_raw_parts;
use std::sync::{Mutex, MutexGuard};

#[repr(C)]
struct Oxide {
    base: ucm_store, // first: a pointer to it is one to the whole
    segments: Vec<usize>,
    blocks: Mutex<Blocks>,
}

impl Oxide {
    fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A panic ends here, as an error of the store.
fn guard(err: *mut ucm_error, body: impl FnOnce() -> ucm_status) -> ucm_status {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| fail(err, INTERNAL, "Oxide panicked"))
}

unsafe fn oxide<'a>(store: *mut ucm_store) -> &'a Oxide {
    &*(store as *const Oxide)
}

unsafe fn id_at(ids: *const u8, i: usize) -> Id {
    *(ids.add(i * BLOCK_ID_BYTES) as *const Id)
}

fn result(status: ucm_status) -> ucm_result {
    let struct_size = size_of::<ucm_result>();
    ucm_result {
        struct_size,
        status,
        os_errno: 0,
        flags: 0,
        reserved: 0,
        length: 0,
    }
}

/// The segments of a shard that its first `length` bytes lie in, with their memory.
unsafe fn parts<'a>(
    oxide: &'a Oxide,
    t: &'a ucm_transfer,
    i: usize,
    length: usize,
) -> impl Iterator<Item = (*mut u8, usize)> + 'a {
    let row = from_raw_parts(
        t.addresses.add(i * oxide.segments.len()),
        oxide.segments.len(),
    );
    let mut left = length;
    oxide
        .segments
        .iter()
        .zip(row)
        .map_while(move |(&size, &address)| {
            let part = size.min(left);
            left -= part;
            if part > 0 {
                Some((address, part))
            } else {
                None
            }
        })
}

unsafe fn dump_shard(oxide: &Oxide, t: &ucm_transfer, i: usize) -> ucm_result {
    let length = if t.lengths.is_null() {
        oxide.base.capacity
    } else {
        *t.lengths.add(i)
    };
    let shard = *t.shard_index.add(i) as usize;
    let replace = t.flags & TRANSFER_REPLACE != 0;
    let mut blocks = oxide.lock();
    let dumped = blocks.dump(&id_at(t.block_ids, i), shard, length, replace, |bytes| {
        for (address, part) in parts(oxide, t, i, length as usize) {
            bytes.extend_from_slice(from_raw_parts(address, part));
        }
    });
    blocks.abandon_stale();
    let mut answer = result(OK);
    match dumped {
        Dumped::NoSpace => return result(NO_SPACE),
        Dumped::Published => answer.flags = RESULT_PUBLISHED,
        Dumped::Kept => {}
    }
    blocks.counts.dumped += 1;
    blocks.counts.dumped_bytes += length;
    blocks.counts.stored += 1;
    answer
}

unsafe fn load_shard(oxide: &Oxide, t: &ucm_transfer, i: usize) -> ucm_result {
    let mut blocks = oxide.lock();
    let mut answer = result(OK);
    let shard = *t.shard_index.add(i) as usize;
    match blocks.shard(&id_at(t.block_ids, i), shard) {
        None => return result(NOT_FOUND),
        Some(bytes) => {
            let mut from = bytes;
            for (address, part) in parts(oxide, t, i, bytes.len()) {
                std::ptr::copy_nonoverlapping(from.as_ptr(), address, part);
                from = &from[part..];
            }
            answer.length = bytes.len() as u64;
        }
    }
    blocks.counts.loaded += 1;
    blocks.counts.loaded_bytes += answer.length;
    answer
}

/// All of it happens inside the call, so nothing is ever pending. `done` is called without the lock.
unsafe fn transfer(
    store: *mut ucm_store,
    t: *const ucm_transfer,
    task: *mut u64,
    err: *mut ucm_error,
    shard: unsafe fn(&Oxide, &ucm_transfer, usize) -> ucm_result,
) -> ucm_status {
    let (oxide, t) = (oxide(store), &*t);
    if t.flags & !TRANSFER_REPLACE != 0 {
        return fail(
            err,
            UNSUPPORTED,
            "a flag of this transfer is not known to Oxide",
        );
    }
    if let Some(task) = task.as_mut() {
        *task = 0;
    }
    for i in 0..t.n {
        let late = t.deadline_ns != 0 && monotonic_ns() > t.deadline_ns;
        let answer = if late {
            result(TIMEOUT)
        } else {
            // One that panics fails alone: the rest still has to be answered.
            catch_unwind(AssertUnwindSafe(|| shard(oxide, t, i)))
                .unwrap_or_else(|_| result(INTERNAL))
        };
        (t.done)(t.ctx, i, &answer);
    }
    (t.finished)(t.ctx);
    OK
}

extern "C" fn dump(
    store: *mut ucm_store,
    t: *const ucm_transfer,
    task: *mut u64,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe { transfer(store, t, task, err, dump_shard) })
}

extern "C" fn load(
    store: *mut ucm_store,
    t: *const ucm_transfer,
    task: *mut u64,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe { transfer(store, t, task, err, load_shard) })
}

fn unknown_flags(err: *mut ucm_error) -> ucm_status {
    fail(
        err,
        UNSUPPORTED,
        "a flag of this call is not known to Oxide",
    )
}

extern "C" fn lookup(
    store: *mut ucm_store,
    a: *const ucm_lookup_args,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe {
        let (blocks, a) = (oxide(store).lock(), &*a);
        if a.flags != 0 {
            return unknown_flags(err);
        }
        let here: Vec<bool> = (0..a.n)
            .map(|i| blocks.has(&id_at(a.block_ids, i)))
            .collect();
        let hits = match a.mode {
            LOOKUP_ALL => here.iter().filter(|&&h| h).count(),
            LOOKUP_PREFIX => here.iter().take_while(|&&h| h).count(),
            LOOKUP_LAST => here.iter().rposition(|&h| h).map_or(0, |i| i + 1),
            _ => return fail(err, UNSUPPORTED, "this lookup mode is not known to Oxide"),
        };
        if let Some(out) = a.hits.as_mut() {
            *out = hits;
        }
        for (i, &h) in here.iter().enumerate().filter(|_| !a.tiers.is_null()) {
            *a.tiers.add(i) = h as u8;
        }
        OK
    })
}

unsafe fn each_id(
    store: *mut ucm_store,
    a: *const ucm_ids_args,
    err: *mut ucm_error,
    each: fn(&mut Blocks, &Id),
) -> ucm_status {
    let (mut blocks, a) = (oxide(store).lock(), &*a);
    if a.flags != 0 {
        return unknown_flags(err);
    }
    (0..a.n).for_each(|i| each(&mut blocks, &id_at(a.block_ids, i)));
    OK
}

extern "C" fn touch(
    store: *mut ucm_store,
    a: *const ucm_ids_args,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe { each_id(store, a, err, Blocks::touch) })
}

extern "C" fn remove(
    store: *mut ucm_store,
    a: *const ucm_ids_args,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe { each_id(store, a, err, Blocks::remove) })
}

extern "C" fn drain(
    store: *mut ucm_store,
    a: *const ucm_wait_args,
    report: *mut ucm_report,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe {
        if (*a).flags != 0 {
            return unknown_flags(err);
        }
        let mut blocks = oxide(store).lock();
        if let Some(report) = report.as_mut() {
            report.stored = blocks.counts.stored;
            report.lost = blocks.counts.lost;
            report.pending = 0;
            report.unfinished = blocks.unfinished_shards();
        }
        blocks.counts.stored = 0;
        blocks.counts.lost = 0;
        OK
    })
}

extern "C" fn metrics(
    store: *mut ucm_store,
    a: *const ucm_metrics_args,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe {
        let (blocks, a) = (oxide(store).lock(), &*a);
        if a.flags != 0 {
            return unknown_flags(err);
        }
        let c = &blocks.counts;
        let values = [
            c.dumped,
            c.dumped_bytes,
            c.loaded,
            c.loaded_bytes,
            c.evicted,
            c.abandoned,
            blocks.len() as u64,
            blocks.used(),
        ];
        for (i, value) in values.iter().enumerate().take(a.n) {
            *a.values.add(i) = *value;
        }
        OK
    })
}

extern "C" fn close(
    store: *mut ucm_store,
    a: *const ucm_wait_args,
    report: *mut ucm_report,
    err: *mut ucm_error,
) -> ucm_status {
    let status = drain(store, a, report, err);
    if status == OK {
        drop(unsafe { Box::from_raw(store as *mut Oxide) });
    }
    status
}

static OPS: ucm_store_ops = ucm_store_ops {
    struct_size: size_of::<ucm_store_ops>(),
    lookup,
    load,
    dump,
    cancel: None,
    prefetch: None,
    touch: Some(touch),
    remove: Some(remove),
    drain,
    metrics: Some(metrics),
    register_memory: None,
    close,
};

extern "C" fn open(
    args: *const ucm_open_args,
    out: *mut *mut ucm_store,
    err: *mut ucm_error,
) -> ucm_status {
    guard(err, || unsafe {
        let args = &*args;
        if args.flags & !OPEN_LOOKUP_ONLY != 0 {
            return unknown_flags(err);
        }
        let limit = u64::try_from((*args.values).i).unwrap_or(0) << 20;
        let mut base = ucm_store {
            struct_size: size_of::<ucm_store>(),
            ops: &OPS,
            capabilities: CAP_KEEPS | CAP_LOADS | CAP_REMOVE,
            capacity: 0,
            raw_capacity: 0,
            shards_per_block: 0,
            reserved: 0,
        };
        let mut segments = Vec::new();
        if args.flags & OPEN_LOOKUP_ONLY == 0 {
            let layout = &*args.layout;
            let block_bytes = layout.capacity * u64::from(layout.shards_per_block);
            if layout.flags & !LAYOUT_PAGES != 0 {
                return unknown_flags(err);
            }
            if layout.memory != MEMORY_HOST {
                return fail(
                    err,
                    UNSUPPORTED,
                    "Oxide copies host memory only; put Cache above it",
                );
            }
            if block_bytes > limit {
                let message = format!(
                    "oxide_capacity_mb is {}, less than one block of {} bytes; set it higher",
                    limit >> 20,
                    block_bytes
                );
                return fail(err, INVALID, &message);
            }
            base.capacity = layout.capacity;
            base.raw_capacity = layout.raw_capacity;
            base.shards_per_block = layout.shards_per_block;
            let sizes = from_raw_parts(layout.segment_bytes, layout.n_segments as usize);
            segments.extend(sizes.iter().map(|&bytes| bytes as usize));
        }
        let blocks = Mutex::new(Blocks::new(base.shards_per_block as usize, limit));
        *out = Box::into_raw(Box::new(Oxide {
            base,
            segments,
            blocks,
        })) as *mut ucm_store;
        OK
    })
}

/// Tables and descriptor hold pointers to texts that never change.
struct Fixed<T>(T);
unsafe impl<T> Sync for Fixed<T> {}

static OPTIONS: Fixed<[ucm_option; 1]> = Fixed([ucm_option {
    name: text!("oxide_capacity_mb"),
    kind: TYPE_INT,
    reserved: 0,
    initial: text!("1024"),
    allowed: text!("1..1048576"),
    unit: text!("MiB"),
    help: text!("Memory for blocks, unfinished ones included."),
}]);

macro_rules! metric {
    ($name:expr, $kind:expr, $unit:expr, $help:expr) => {
        ucm_metric {
            name: text!($name),
            kind: $kind,
            scope: 0,
            unit: text!($unit),
            help: text!($help),
        }
    };
}

static METRICS: Fixed<[ucm_metric; 8]> = Fixed([
    metric!(
        "dump_shards_total",
        METRIC_COUNTER,
        "shards",
        "Shards dumped."
    ),
    metric!("dump_bytes_total", METRIC_COUNTER, "bytes", "Bytes dumped."),
    metric!(
        "load_shards_total",
        METRIC_COUNTER,
        "shards",
        "Shards loaded."
    ),
    metric!("load_bytes_total", METRIC_COUNTER, "bytes", "Bytes loaded."),
    metric!(
        "evicted_blocks_total",
        METRIC_COUNTER,
        "blocks",
        "Blocks that made room."
    ),
    metric!(
        "abandoned_blocks_total",
        METRIC_COUNTER,
        "blocks",
        "Blocks given up unfinished."
    ),
    metric!("blocks", METRIC_GAUGE, "blocks", "Published blocks."),
    metric!("bytes", METRIC_GAUGE, "bytes", "Memory in use."),
]);

static PLUGIN: Fixed<ucm_plugin> = Fixed(ucm_plugin {
    struct_size: size_of::<ucm_plugin>(),
    abi_major: ABI.0,
    abi_minor: ABI.1,
    abi_draft: ABI.2,
    reserved: 0,
    flags: 0,
    memories: 1 << MEMORY_HOST,
    name: text!("Oxide"),
    version: text!("0.1.0"),
    summary: text!("Blocks in the memory of this process, in Rust."),
    n_options: 1,
    option_stride: size_of::<ucm_option>(),
    options: OPTIONS.0.as_ptr(),
    n_metrics: 8,
    metric_stride: size_of::<ucm_metric>(),
    metrics: METRICS.0.as_ptr(),
    lower_layout: None,
    open,
});

#[no_mangle]
pub extern "C" fn ucm_store_plugin_v1() -> *const ucm_plugin {
    &PLUGIN.0
}
