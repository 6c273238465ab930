"""What ``ucm bench codec`` measures."""

from __future__ import annotations

import ctypes
import mmap
import shutil
import statistics
from pathlib import Path
from typing import Any

import ucm
from ucm import errors, options
from ucm.cli._measure import machine
from ucm.registry import registry

SHARD_BYTES = 2 << 20


class _Figures(ctypes.Structure):
    """``ucm_bench_figures`` of the plugin's measure.h."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("frame_bytes", "compress_ns", "decompress_ns", "memcpy_ns")
    ]


def _function() -> Any:
    """Find the function of the shipped library; it is no part of a store's contract."""
    path = registry().find("ucm-store:Compress").path
    function = ctypes.CDLL(path).ucm_bench_codec
    size = ctypes.c_uint64
    function.argtypes = [
        ctypes.c_void_p, size, size, size, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p,
        ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(_Figures),
    ]  # fmt: skip
    function.restype = ctypes.c_int32
    return function


def run(
    file: Path,
    dtype: str,
    plane: int,
    codec: str,
    repeat: int,
    kernels: str = "best",
    checksums: bool = True,
    named: str | None = None,
    shard: int | None = None,
) -> dict[str, Any]:
    """Code the file's bytes ``repeat`` times; raise if they do not come back as they were.

    ``dtype`` is the layout's; ``named`` is as the option compress_dtype would name it; ``shard``
    bytes have a frame.
    """
    total = file.stat().st_size
    width = {"bf16": 2, "fp16": 2, "fp32": 4}.get(dtype, 1)
    if total == 0:
        raise ucm.ConfigError(f"{file}: it is empty; give a file of {dtype} numbers")
    if not 0 < plane < 2**32 or plane % width:
        raise ucm.ConfigError(f"--plane: {plane} bytes are no whole number of {dtype} elements")
    shard = max(1, (shard or SHARD_BYTES) // plane) * plane
    measure, runs = _function(), []
    data = mmap.mmap(-1, total)  # memory of our own: no page of the file is read while timed
    with file.open("rb") as source:
        shutil.copyfileobj(source, data, 1 << 24)
    address = ctypes.addressof(ctypes.c_char.from_buffer(data))
    for _ in range(repeat):
        figures = _Figures()
        status = measure(
            address, total, plane, shard, options.DTYPES.index(dtype),
            options.DTYPES.index(named or "bytes"), codec.encode(),
            (kernels if kernels != "best" else "").encode(), checksums, figures,
        )  # fmt: skip
        if errors.status_of(status) is errors.Status.UNSUPPORTED:
            raise ucm.UnsupportedError(f"--kernels: this processor does not run {kernels}")
        if status:
            raise errors.error_for(status, f"{file}: {errors.explain(errors.status_of(status))}")
        runs.append(figures)
    stored = runs[0].frame_bytes
    rates = {
        f"{name}_gbps": round(
            statistics.median(total / max(1, getattr(each, f"{name}_ns")) for each in runs), 4
        )
        for name in ("compress", "decompress", "memcpy")
    }
    return {
        "file": str(file),
        "bytes": total,
        "dtype": dtype,
        "plane": plane,
        "codec": codec,
        "kernels": kernels,
        "checksums": checksums,
        "shard_bytes": shard,
        "repeat": repeat,
        "frame_bytes": stored,
        "ratio": round(total / stored, 4),
        **rates,
        "verified": True,
        "machine": machine(),
    }
