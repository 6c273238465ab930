"""Run by test_cache_cuda.py: moves blocks between memory of a stand-in device and a pipeline."""

import ctypes
import sys

import ucm

SEGMENTS, SHARDS, BLOCKS = (3000, 100), 4, 8
N = SHARDS * BLOCKS
IDS = [bytes([block]) * 16 for block in range(BLOCKS) for _ in range(SHARDS)]
INDEXES = list(range(SHARDS)) * BLOCKS
SIZE = sum(SEGMENTS)

cuda = ctypes.CDLL("libcuda.so.1")
allocated = []
u64, size_t, pointer = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_void_p


class Control(ctypes.Structure):
    """``fake_cuda`` of fake_cuda.h."""

    _fields_ = [
        ("violations", ctypes.CFUNCTYPE(size_t)),
        ("violation", ctypes.CFUNCTYPE(ctypes.c_char_p, size_t)),
        ("live", ctypes.CFUNCTYPE(size_t)),
        ("streams", ctypes.CFUNCTYPE(size_t)),
        ("pinned_bytes", ctypes.CFUNCTYPE(size_t)),
        ("depth", ctypes.CFUNCTYPE(size_t)),
        ("calls", ctypes.CFUNCTYPE(size_t, ctypes.c_char_p)),
        ("fail", ctypes.CFUNCTYPE(None, ctypes.c_char_p, size_t, size_t, ctypes.c_int)),
        ("compute", ctypes.CFUNCTYPE(None, pointer, u64, ctypes.c_char_p, size_t)),
        ("poke", ctypes.CFUNCTYPE(None, u64, ctypes.c_char_p, size_t)),
        ("peek", ctypes.CFUNCTYPE(None, ctypes.c_char_p, u64, size_t)),
    ]


cuda.fake_cuda_control.restype = ctypes.POINTER(Control)
control = cuda.fake_cuda_control().contents


def done(status):
    assert status == 0, status


def contents(i):
    return bytes((i * 7 + k * (i + 3)) % 251 for k in range(SIZE))


def addresses(base):
    return [[base + i * 4096, base + i * 4096 + 3500] for i in range(N)]


def peek(base, i):
    parts = []
    for address, n in zip(addresses(base)[i], SEGMENTS, strict=True):
        buffer = ctypes.create_string_buffer(n)
        control.peek(buffer, address, n)
        parts.append(buffer.raw)
    return b"".join(parts)


def allocate():
    base = u64()
    done(cuda.cuMemAlloc_v2(ctypes.byref(base), size_t(N * 4096)))
    allocated.append(base)
    return base.value


def compute(base):
    """Have a stream compute all shards, later, and return (its event, the stream)."""
    stream, event = pointer(), pointer()
    done(cuda.cuStreamCreate(ctypes.byref(stream), 1))
    for i in range(N):
        start = 0
        for address, n in zip(addresses(base)[i], SEGMENTS, strict=True):
            control.compute(stream, address, contents(i)[start : start + n], n)
            start += n
    done(cuda.cuEventCreate(ctypes.byref(event), 0))
    done(cuda.cuEventRecord(event, stream))
    return event, stream


def load(store, base):
    store.wait(store.load_data(IDS, INDEXES, addresses(base)))
    assert all(peek(base, i) == contents(i) for i in range(N))


def main(pipeline, folder):
    context = pointer()
    done(cuda.cuInit(0))
    done(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 1))
    done(cuda.cuCtxPushCurrent_v2(context))
    source, target = allocate(), allocate()
    event, stream = compute(source)
    options = {
        "storage_backends": folder,
        "block_size": SIZE * SHARDS,
        "shard_size": SIZE,
        "tensor_size_list": list(SEGMENTS),
        "cache_buffer_capacity_gb": 0.01,
        "memory": "cuda",
        "device_id": 1,
    }
    with ucm.open_pipeline(pipeline, **options) as store:
        assert "events" in store.capabilities
        assert control.pinned_bytes() > 0
        dump = store.dump_data(IDS, INDEXES, addresses(source), prerequisite_handle=event.value)
        store.wait(dump)
        load(store, target)
        store.drain()
    assert control.pinned_bytes() == 0
    if "persistent" in store.capabilities:
        with ucm.open_pipeline(pipeline, **options) as store:
            load(store, allocate())
    with ucm.open_pipeline(pipeline, **{**options, "device_id": -1}) as store:
        store.lookup(IDS)
    # Whatever was done wrong, or is left, ends the process with a status of its own.
    done(cuda.cuStreamDestroy_v2(stream))
    done(cuda.cuEventDestroy_v2(event))
    for base in allocated:
        done(cuda.cuMemFree_v2(base))
    done(cuda.cuCtxPopCurrent_v2(ctypes.byref(context)))
    done(cuda.cuDevicePrimaryCtxRelease_v2(1))


if __name__ == "__main__":
    main(*sys.argv[1:])
    print("moved")
