"""What ``ucm bench`` measures, apart from how it is asked and shown."""

from __future__ import annotations

import array
import ctypes
import dataclasses
import mmap
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ucm
from ucm import demo, pipeline


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is moved: so many blocks of so many bytes, cut like this."""

    blocks: int
    block_size: int
    shard_size: int
    tensor_size: int
    dtype: str

    def __post_init__(self) -> None:
        for part, name, whole in (
            (self.shard_size, "shard-size", self.block_size),
            (self.tensor_size, "tensor-size", self.shard_size),
        ):
            if part < 1 or whole % part:
                raise ucm.ConfigError(f"--{name}: {part} does not divide {whole}")

    @property
    def bytes(self) -> int:
        """All blocks together."""
        return self.blocks * self.block_size


class Memory:
    """Page-aligned memory for all blocks, and what the calls need to know of it."""

    def __init__(self, shape: Shape) -> None:
        self.bytes = mmap.mmap(-1, shape.bytes)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.bytes))
        segments = shape.shard_size // shape.tensor_size
        flat = array.array("Q", range(base, base + shape.bytes, shape.tensor_size))
        rows = shape.bytes // shape.shard_size
        self.addresses = memoryview(flat).cast("B").cast("Q", (rows, segments))
        shards = shape.block_size // shape.shard_size
        self.indexes = array.array("I", list(range(shards)) * shape.blocks)

    def fill(self, data: str) -> None:
        """Write the packaged sample over and over, or random bytes."""
        sample = demo.SAMPLE.read_bytes() if data == "sample" else b""
        self.bytes.seek(0)
        left = len(self.bytes)
        while left:
            part = (sample or os.urandom(min(left, 1 << 24)))[:left]
            self.bytes.write(part)
            left -= len(part)

    def clear(self) -> None:
        """Make sure that what is found here later was loaded."""
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(self.bytes)), 0, len(self.bytes))


@dataclasses.dataclass
class Bench:
    """Runs every operation `repeat` times; each time with blocks of its own."""

    pipeline: str
    shape: Shape
    data: str
    repeat: int
    options: Mapping[str, Any]
    advance: Callable[[str], None]

    def run(self) -> dict[str, Any]:
        """Return medians, minima and maxima of the rates, and what they were measured on."""
        self.seconds: dict[str, list[float]] = {}
        self.source, self.target = Memory(self.shape), Memory(self.shape)
        self.source.fill(self.data)
        self.stored_bytes = 0
        self.verified: bool | None = None
        self.page_cache: str | None = None
        run = os.urandom(8)
        for turn in range(self.repeat):
            self._turn(
                [run + bytes([turn]) + i.to_bytes(7, "big") for i in range(self.shape.blocks)]
            )
        return {
            "pipeline": self.pipeline,
            **dataclasses.asdict(self.shape),
            "bytes": self.shape.bytes,
            "data": self.data,
            "repeat": self.repeat,
            "options": pipeline.shown(self.pipeline, self.options),
            "stored_bytes": self.stored_bytes,
            "ratio": round(self.shape.bytes / self.stored_bytes, 4) if self.stored_bytes else None,
            "page_cache_before_cold_load": self.page_cache,
            "verified": self.verified,
            "results": {name: self._figures(name, spans) for name, spans in self.seconds.items()},
            "machine": machine(),
        }

    def _turn(self, ids: Sequence[bytes]) -> None:
        store = self._open()
        try:
            loads = {"keeps", "loads"} <= store.capabilities
            self._dump(store, ids)
            if "persistent" in store.capabilities:
                store.close()
                self.page_cache = self._drop_page_cache(ids)
                store = self._open()
            found = self._timed("lookup", lambda: store.lookup(list(ids)))
            if loads and not all(found):
                raise ucm.NotFoundError(
                    f"{found.count(False)} of {len(found)} blocks were not found"
                )
            if loads:
                if "persistent" in store.capabilities:
                    self._load(store, ids, "cold load")
                self._load(store, ids, "hot load")
            if "remove" in store.capabilities:
                store.remove(list(ids))
        finally:
            store.close()

    def _open(self) -> ucm.Store:
        shape = self.shape
        return ucm.open_pipeline(
            self.pipeline,
            **{
                "block_size": shape.block_size,
                "shard_size": shape.shard_size,
                "tensor_size": shape.tensor_size,
                "dtype": shape.dtype,
                **self.options,
            },
        )

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        self.advance(name)
        return result

    def _shards(self, ids: Sequence[bytes]) -> list[bytes]:
        shards = self.shape.block_size // self.shape.shard_size
        return [block_id for block_id in ids for _ in range(shards)]

    def _dump(self, store: ucm.Store, ids: Sequence[bytes]) -> None:
        memory, each = self.source, self._shards(ids)

        def dump() -> None:
            store.wait(store.dump_data(each, memory.indexes, memory.addresses))

        start = time.perf_counter()
        self._timed("dump", dump)
        report = store.drain()
        self.seconds.setdefault("dump and drain", []).append(time.perf_counter() - start)
        if report.lost or report.pending or report.unfinished:
            raise ucm.StoreError(f"not everything was stored: {report}")
        self.stored_bytes = store.stats()[store.layers[-1]].get("dump_out_bytes_total", 0)

    def _load(self, store: ucm.Store, ids: Sequence[bytes], name: str) -> None:
        memory, each = self.target, self._shards(ids)
        memory.clear()

        def load() -> None:
            store.wait(store.load_data(each, memory.indexes, memory.addresses))

        self._timed(name, load)
        self.verified = self.source.bytes[:] == memory.bytes[:]
        if not self.verified:
            raise ucm.CorruptError(f"{name}: the bytes are not those that were dumped")

    def _drop_page_cache(self, ids: Sequence[bytes]) -> str:
        """Have the kernel forget the files, so that a cold load really reads."""
        files = [
            path
            for directory in str(self.options.get("storage_backends", "")).split(":")
            for block_id in ids
            for path in Path(directory).glob(f"*/*/{block_id.hex()[:3]}/{block_id.hex()}")
        ]
        for path in files:
            fd = os.open(path, os.O_RDONLY)
            try:
                os.fsync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(fd)
        return "dropped" if files else "kept"

    def _figures(self, name: str, spans: Sequence[float]) -> dict[str, dict[str, float]]:
        def summary(values: list[float]) -> dict[str, float]:
            return {"median": statistics.median(values), "min": min(values), "max": max(values)}

        figures = {"seconds": summary(list(spans))}
        if name == "lookup":
            figures["blocks_per_s"] = summary([self.shape.blocks / span for span in spans])
        else:
            figures["gb_per_s"] = summary([self.shape.bytes / span / 1e9 for span in spans])
        return figures


def machine() -> dict[str, Any]:
    """Describe what was measured on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "cpu": model or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "ucm": ucm.__version__,
    }
