"""Run by test_cache_cuda.py: what becomes of slots whose copy may not have ended."""

import contextlib
import ctypes
import os
import sys
import time

from device_memory import control, cuda, done, pointer, size_t, u64

import ucm

SHARDS, SIZE, FRAMES = 4, 4096, 4
ID, UNKNOWN = bytes(16), 999


def main(kind, folder):
    context, base = pointer(), u64()
    done(cuda.cuInit(0))
    done(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    done(cuda.cuCtxPushCurrent_v2(context))
    done(cuda.cuMemAlloc_v2(ctypes.byref(base), size_t(SHARDS * SIZE)))
    options = {
        "storage_backends": folder,
        "block_size": SHARDS * SIZE,
        "tensor_size_list": [SIZE],
        "cache_buffer_capacity_gb": FRAMES * SHARDS * SIZE / 2**30,
        "memory": "cuda",
        "device_id": 0,
    }

    def move(start, shards):
        store.wait(start([ID] * len(shards), shards, [[base.value + k * SIZE] for k in shards]))

    store = ucm.open_pipeline("Cache|Posix", **options)
    move(store.dump_data, range(1 if kind == "dump" else SHARDS))
    if kind == "fill":
        store.close()
        store = ucm.open_pipeline("Cache|Posix", **options)
    elif kind == "hit":
        store.drain()
    control.fail(b"cuStreamSynchronize", 0, 2, UNKNOWN)
    with contextlib.suppress(ucm.StoreError):
        if kind == "dump":
            move(store.dump_data, range(1, SHARDS))
        else:
            move(store.load_data, range(SHARDS))
    lost = store.drain().lost
    store.remove([ID])
    until = time.monotonic() + 1
    while store.stats()["Cache"]["frames_free"] < FRAMES and time.monotonic() < until:
        time.sleep(0.01)
    print(store.stats()["Cache"]["frames_free"], "free,", lost, "lost", flush=True)
    os._exit(0)  # what a copy may still need is never released


if __name__ == "__main__":
    main(*sys.argv[1:])
