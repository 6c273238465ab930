"""Stores written in Python: the class that authors derive from, and what runs it."""

from __future__ import annotations

import concurrent.futures
import itertools
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ucm import errors, memory
from ucm._abi import ffi
from ucm.layout import Layout
from ucm.task import Result, new_token

if TYPE_CHECKING:
    from ucm._ends import Ends

_THREADS = 4


class StoreBase:
    """Derive from this to write a store in Python, and register the class under a name.

    Methods are called from several threads at once. A block is published, that is seen by
    ``lookup``, when all of its ``layout.shards_per_block`` shards are stored, in whatever order
    they came; the first complete copy wins, and dumping again is fine.
    """

    #: Which promises the store makes; see ``Store.capabilities``.
    capabilities: frozenset[str] = frozenset({"keeps", "loads"})

    def __init__(self, layout: Layout | None, options: Mapping[str, Any]) -> None:
        """Open. ``layout`` is None when opened for lookup only. Raise to refuse."""
        self.layout = layout
        self.options = options

    def lookup(self, block_ids: list[bytes]) -> Sequence[bool]:
        """Tell for each block whether it is published."""
        raise errors.UnsupportedError(f"{type(self).__name__} has no lookup")

    def dump(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[BaseException | None] | None:
        """Store shard ``shard_index[i]`` of ``block_ids[i]``: the bytes of ``shards[i]``, in order.

        Return None if all went well, or for each shard None or its exception. An exception raised
        is the end of every shard. The memory is the caller's again after the return: copy.
        """
        raise errors.UnsupportedError(f"{type(self).__name__} has no dump")

    def load(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException]:
        """Fill the memory of each shard; return its length in bytes, or its exception."""
        raise errors.UnsupportedError(f"{type(self).__name__} has no load")

    def remove(self, block_ids: list[bytes]) -> None:
        """Forget blocks, finished or not; needed for the capability ``remove``."""
        raise errors.UnsupportedError(f"{type(self).__name__} cannot remove")

    def drain(self) -> None:
        """Return when everything that ``dump`` accepted is stored; needed for ``write_back``."""

    def close(self) -> None:
        """Release everything; the last call."""


def _failure(error: BaseException) -> Result:
    if isinstance(error, errors.StoreError):
        return Result(error.status, 0, error.os_errno, False)
    if isinstance(error, KeyError):
        return Result(errors.Status.NOT_FOUND, 0, 0, False)
    if isinstance(error, OSError):
        return Result(errors.Status.IO, 0, error.errno or 0, False)
    return Result(errors.Status.INTERNAL, 0, 0, False)


class _Outcome:
    def __init__(self, number: int, future: concurrent.futures.Future[list[Result]]) -> None:
        self.number = number
        self.token = new_token()
        self._future = future
        self._watched = False

    def wait(self, timeout_ms: int) -> int:
        try:
            results = self._future.result(timeout_ms / 1000)
        except concurrent.futures.TimeoutError:
            return errors.Status.PENDING
        bad = next((r.status for r in results if r.status), errors.Status.OK)
        return int(bad)

    def result(self, i: int) -> Result:
        return self._future.result()[i]

    def failures(self, limit: int) -> tuple[int, list[int]]:
        bad = [i for i, r in enumerate(self._future.result()) if r.status]
        return len(bad), bad[:limit]

    def watch(self, ends: Ends) -> bool:
        if not self._watched:
            self._watched = True
            self._future.add_done_callback(lambda _: ends.told([self.token]))
        return not self._future.done()


class PythonStack:
    """Runs one Python store as a whole pipeline; the twin of ``NativeStack``."""

    def __init__(self, name: str, store: StoreBase, layout: Layout | None) -> None:
        self.layers = (name,)
        self.capabilities = frozenset(store.capabilities)
        self._store = store
        self._layout = layout
        self._numbers = itertools.count(1)
        self._counters: dict[str, int] = dict.fromkeys(_COUNTERS, 0)
        self._lock = threading.Lock()  # guards _counters and _running
        self._running: set[concurrent.futures.Future[list[Result]]] = set()
        self._pool = concurrent.futures.ThreadPoolExecutor(_THREADS, f"ucm-{name}")
        self._stored = 0

    def submit(
        self,
        dump: bool,
        n: int,
        ids: Any,
        shards: Any,
        addresses: Any,
        lengths: Any,
        depths: Any,
        event: int,
        busy_ms: int,
    ) -> _Outcome:
        """Start a transfer; the arrays are copied. Depths are a hint, which it has no use for."""
        if event:
            raise errors.UnsupportedError("a Python store cannot wait for a device event")
        assert self._layout is not None
        raw = bytes(ffi.buffer(ids, n * 16))
        block_ids = [raw[i : i + 16] for i in range(0, len(raw), 16)]
        rows = self._rows(n, addresses, lengths)
        indexes = list(shards[0:n])
        memory.check_range(max(indexes, default=0), self._layout.shards_per_block)
        future = self._pool.submit(self._run, dump, block_ids, indexes, rows)
        with self._lock:
            self._running.add(future)
        future.add_done_callback(self._ended)
        return _Outcome(next(self._numbers), future)

    def _rows(self, n: int, addresses: Any, lengths: Any) -> list[list[memoryview]]:
        assert self._layout is not None
        sizes = self._layout.segment_sizes
        rows = []
        for i in range(n):
            left = lengths[i] if lengths != ffi.NULL else self._layout.shard_size
            row = []
            for k, size in enumerate(sizes):
                used = min(left, size)
                pointer = ffi.cast("char *", addresses[i * len(sizes) + k])
                row.append(memoryview(ffi.buffer(pointer, used)))
                left -= used
            rows.append(row)
        return rows

    def _run(
        self, dump: bool, block_ids: list[bytes], shards: list[int], rows: list[list[memoryview]]
    ) -> list[Result]:
        start = time.monotonic_ns()
        call = self._store.dump if dump else self._store.load
        try:
            answers: Any = call(block_ids, shards, rows)
            if answers is None and dump:
                answers = [None] * len(rows)
            if not isinstance(answers, Sequence) or len(answers) != len(rows):
                raise errors.StoreError(
                    f"{type(self._store).__name__}.{call.__name__} must return one answer a shard"
                )
            results = [
                _failure(a)
                if isinstance(a, BaseException)
                else Result(errors.Status.OK, int(a or 0), 0, False)
                for a in answers
            ]
        except Exception as error:
            results = [_failure(error)] * len(rows)
        self._count(dump, rows, results, time.monotonic_ns() - start)
        return results

    def _count(self, dump: bool, rows: Any, results: list[Result], busy_ns: int) -> None:
        verb = "dump" if dump else "load"
        moved = sum(
            (sum(len(m) for m in row) if dump else r.bytes)
            for row, r in zip(rows, results, strict=True)
            if r.status == errors.Status.OK
        )
        good = sum(r.status == errors.Status.OK for r in results)
        missing = sum(r.status == errors.Status.NOT_FOUND for r in results)
        with self._lock:
            self._counters[f"{verb}_shards_total"] += good
            self._counters[f"{verb}_bytes_total"] += moved
            self._counters[f"{verb}_{'out' if dump else 'in'}_bytes_total"] += moved
            self._counters[f"{verb}_busy_ns_total"] += busy_ns
            self._counters["failed_shards_total"] += len(results) - good - missing
            self._stored += good if dump else 0

    def _ended(self, future: concurrent.futures.Future[list[Result]]) -> None:
        with self._lock:
            self._running.discard(future)

    def lookup(self, mode: int, n: int, ids: Any) -> tuple[int, list[int]]:
        """Answer like ``ucm_lookup_args``: (hits, tiers)."""
        raw = bytes(ffi.buffer(ids, n * 16))
        present = list(self._store.lookup([raw[i : i + 16] for i in range(0, len(raw), 16)]))
        if len(present) != n:
            raise errors.StoreError(f"{type(self._store).__name__}.lookup must answer for each id")
        tiers = [int(bool(p)) for p in present]
        hits = (
            sum(tiers),
            next((i for i, p in enumerate(present) if not p), n),
            next((i + 1 for i in reversed(range(n)) if present[i]), 0),
        )[mode]
        return hits, tiers

    def prefetch(self, n: int, ids: Any) -> None:
        """Take the hint and do nothing."""

    def remove(self, n: int, ids: Any) -> None:
        """Remove blocks."""
        raw = bytes(ffi.buffer(ids, n * 16))
        self._store.remove([raw[i : i + 16] for i in range(0, len(raw), 16)])

    def cancel(self, number: int) -> None:
        """Refuse: a Python call cannot be stopped."""
        raise errors.UnsupportedError("a Python store cannot cancel")

    def _wait(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        with self._lock:
            running = set(self._running)
        timeout = None if timeout_ms < 0 else timeout_ms / 1000
        pending = concurrent.futures.wait(running, timeout).not_done
        with self._lock:
            stored, self._stored = self._stored, 0
        counts = {"stored": stored, "lost": 0, "pending": len(pending), "unfinished": 0}
        return (errors.Status.PENDING if pending else errors.Status.OK), counts

    def drain(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        """Wait for what runs, then let the store drain."""
        status, counts = self._wait(timeout_ms)
        if status == errors.Status.OK:
            self._store.drain()
        return status, counts

    def close(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        """Wait for what runs, then close the store."""
        status, counts = self._wait(timeout_ms)
        if status == errors.Status.OK:
            self._pool.shutdown()
            self._store.close()
        return status, counts

    def native_handle(self) -> int:
        """Return 0: there is none."""
        return 0

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Return the counters under the store's name."""
        with self._lock:
            return {self.layers[0]: dict(self._counters)}


_COUNTERS = (
    "dump_shards_total",
    "dump_bytes_total",
    "dump_out_bytes_total",
    "dump_busy_ns_total",
    "load_shards_total",
    "load_bytes_total",
    "load_in_bytes_total",
    "load_busy_ns_total",
    "failed_shards_total",
)
