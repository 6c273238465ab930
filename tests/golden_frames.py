"""Frames of every codec and dtype in tests/data/frames-VERSION, NAME.frame and NAME.raw.

``python tests/golden_frames.py VERSION`` writes those of a new version of the frame, once; what is
there stays as it is. tests/native/compress_test.cpp decodes them with every set of kernels.
"""

from __future__ import annotations

import array
import os
import random
import struct
import sys
import tempfile
from pathlib import Path

import ucm
from ucm.directory import block_file

DATA = Path(__file__).parent / "data"
DTYPES = ("bytes", "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2")
# Classes in small planes, as zstd's head weighs more there; both with a tail behind the elements.
SIZES = {"fast": 2051, "small": 16387}


def numbers(dtype, size):
    """Normal numbers, as KV cache has them; bytes are a text that repeats itself."""
    rng = random.Random(dtype)
    if dtype == "bytes":
        return "".join(f"line {i * i} of a text\n" for i in range(size)).encode()[:size]
    made = bytearray()
    while len(made) < size:
        value = rng.gauss(0, 1)
        (bits,) = struct.unpack("<I", struct.pack("<f", value))
        half = struct.pack("<e", value)
        e4m3 = bits >> 24 & 0x80 | min(max((bits >> 23 & 255) - 120, 0), 15) << 3 | bits >> 20 & 7
        made += {
            "bf16": struct.pack("<H", bits >> 16),
            "fp16": half,
            "fp32": struct.pack("<I", bits),
            "fp8_e4m3": bytes([e4m3]),
            "fp8_e5m2": half[1:],
        }[dtype]
    return bytes(made[:size])


def cases():
    """Yield name, codec, planes and their dtype."""
    for codec, size in SIZES.items():
        for dtype in DTYPES:
            yield f"{codec}-{dtype}", codec, [numbers(dtype, size)], dtype
    noise = random.Random(1).randbytes(20000)
    mixed = [numbers("bf16", 16384), noise[:4096], b"\x80\x3f" * 4096, numbers("bf16", 3000)]
    yield "mixed", "small", mixed, "bf16"
    yield "raw", "raw", [noise[:1001]], "bf16"
    yield "noise", "fast", [noise], "bf16"
    yield "one", "fast", [b"\x07"], "bytes"


def frame_of(codec, planes, dtype):
    """Store a block of one shard and return what was stored."""
    data = array.array("B", b"".join(planes))
    with tempfile.TemporaryDirectory() as folder:
        with ucm.open_pipeline(
            "Compress|Posix", storage_backends=folder, block_size=len(data), dtype=dtype,
            tensor_size_list=[len(plane) for plane in planes], compress_codec=codec,
        ) as store:  # fmt: skip
            starts = [sum(map(len, planes[:i])) for i in range(len(planes))]
            row = [data.buffer_info()[0] + start for start in starts]
            store.wait(store.dump_data([bytes(16)], [0], [row]))
            assert store.drain().lost == 0
        (path,) = Path(folder).glob("*/*/000/*")
        stored = path.read_bytes()
    header = block_file.read_header(lambda most: stored[:most], len(stored), path.name)
    (entry,) = header.table
    return stored[entry.offset : entry.offset + entry.length]


def write(folder):
    folder.mkdir(parents=True)
    for name, codec, planes, dtype in cases():
        (folder / f"{name}.raw").write_bytes(b"".join(planes))
        (folder / f"{name}.frame").write_bytes(frame_of(codec, planes, dtype))


if __name__ == "__main__":
    os.umask(0o022)
    write(DATA / f"frames-{int(sys.argv[1])}")
