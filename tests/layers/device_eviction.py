"""Run by test_cache_cuda.py: loads of a stand-in device beside dumps that push blocks out."""

import contextlib
import ctypes
import random
import sys
import threading

from device_memory import control, cuda, done, pointer, size_t, u64

import ucm

SEGMENT, SHARDS, BLOCKS, FRAMES = 60000, 4, 8, 4
ROUNDS = 150


def move(store, context, seed):
    """Dump and load blocks by chance, two at a time."""
    rng = random.Random(seed)
    base = u64()
    done(cuda.cuCtxPushCurrent_v2(context))
    done(cuda.cuMemAlloc_v2(ctypes.byref(base), size_t(2 * SHARDS * 65536)))
    rows = [[base.value + i * 65536] for i in range(2 * SHARDS)]
    for _ in range(ROUNDS):
        pair = rng.sample(range(BLOCKS), 2)
        ids = [bytes([block]) * 16 for block in pair for _ in range(SHARDS)]
        start = store.dump_data if rng.random() < 0.5 else store.load_data
        with contextlib.suppress(ucm.StoreError):  # of what was pushed out, or has no room
            store.wait(start(ids, list(range(SHARDS)) * 2, rows))
    done(cuda.cuMemFree_v2(base))
    done(cuda.cuCtxPopCurrent_v2(ctypes.byref(pointer())))


def main(folder):
    context = pointer()
    done(cuda.cuInit(0))
    done(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0))
    options = {
        "storage_backends": folder,
        "block_size": SEGMENT * SHARDS,
        "tensor_size_list": [SEGMENT],
        "cache_buffer_capacity_gb": FRAMES * SHARDS * 61440 / 2**30,
        "memory": "cuda",
        "device_id": 0,
    }
    with ucm.open_pipeline("Cache|Empty", **options) as store:
        threads = [threading.Thread(target=move, args=(store, context, seed)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stats = store.stats()["Cache"]
        assert stats["evicted_blocks_total"] > 0
        assert stats["hit_shards_total"] > 0
    done(cuda.cuDevicePrimaryCtxRelease_v2(0))
    return {control.violation(i) for i in range(control.violations())}


if __name__ == "__main__":
    wrong = main(*sys.argv[1:])
    print(wrong or "nothing wrong")
