"""The store below a layer in Python, as its methods call it."""

from __future__ import annotations

import array
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ucm import errors, memory
from ucm._abi import ffi, lib
from ucm._gate import Gate
from ucm._native import SUBMITTED, new_error, raise_for
from ucm.errors import Status
from ucm.layout import Layout
from ucm.python_store import Dumped

_FOR_EVER_MS = 1 << 40
_MAX_SUSPECTS = 4096
_DUMPED = (Dumped.STORED, Dumped.PUBLISHED, Dumped.DECLINED, Dumped.DECLINED)


class _Batch(threading.local):
    """What the thread works on: what a layer's own transfers inherit of it."""

    deadline_ns = 0
    priority = 0
    tag = 0
    flags = 0
    raw_lengths: dict[tuple[bytes, int], int] = {}
    depths: dict[bytes, int] = {}


class Lower:
    """The store below. Every call waits until it is done, also while the store is busy.

    Inside a layer's method its calls inherit what came with the shards in work: deadline, priority,
    depths, lengths before any encoding. Memory is given and taken as in the layer's own methods; a
    shard may also be one buffer, whatever its segments are.
    """

    def __init__(
        self, store: Any, layout: Layout | None, capabilities: frozenset[str], name: str
    ) -> None:
        self.layout = layout
        self.capabilities = capabilities
        self.count: Callable[[bool, int], None] = lambda dump, n: None
        self.suspects: dict[bytes, None] = {}  # blocks that the layer found bad, oldest first
        self.store = store
        self._name = name
        self._gate = Gate(lambda: f"the store below {name}")
        self._batch = _Batch()

    def lookup(self, block_ids: Any) -> list[int]:
        """Tell for each block how deep it lies: 0 absent, 2 in the store below, 3 below that."""
        ids, n = memory.ids(block_ids)
        hits, tiers, error = ffi.new("size_t *"), ffi.new("uint8_t[]", max(n, 1)), new_error()
        with self._gate:
            status = lib.ucmh_lookup(
                self.store, lib.UCM_LOOKUP_ALL, n, ids, ffi.NULL, self._left_ms(), hits, tiers,
                error,
            )  # fmt: skip
        if status != Status.OK:
            raise_for(status, error)
        return [tier + (0 < tier < 255) for tier in ffi.buffer(tiers, n)[:]]

    def dump(
        self,
        block_ids: Any,
        shard_index: Any,
        shards: Sequence[Any],
        raw_lengths: Sequence[int] | None = None,
    ) -> list[Dumped | errors.StoreError]:
        """Store shards; return for each what became of it, or its exception.

        ``raw_lengths``, before any encoding, need to be given only outside of the layer's methods.
        """
        return self._run(True, block_ids, shard_index, shards, raw_lengths)

    def load(
        self, block_ids: Any, shard_index: Any, shards: Sequence[Any]
    ) -> list[int | errors.StoreError]:
        """Fill memory as large as the layout below says; return each length, or its exception."""
        return self._run(False, block_ids, shard_index, shards, None)

    def remove(self, block_ids: Any) -> None:
        """Remove blocks."""
        self._ids(lib.UCMH_REMOVE, block_ids)

    def prefetch(self, block_ids: Any) -> None:
        """Pass on the hint that these blocks will be loaded soon."""
        self._ids(lib.UCMH_PREFETCH, block_ids)

    def touch(self, block_ids: Any) -> None:
        """Pass on the hint that these blocks were used."""
        self._ids(lib.UCMH_TOUCH, block_ids)

    def suspect(self, block_id: bytes) -> None:
        """Have the next dump of a block replace what is stored: the layer could not read that."""
        self.suspects[block_id] = None
        while len(self.suspects) > _MAX_SUSPECTS:
            with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # of another thread
                del self.suspects[next(iter(self.suspects))]

    def native_handle(self) -> int:
        """Return the address of the ``ucm_store``, for native code of the layer's own."""
        return int(ffi.cast("uintptr_t", self.store))

    def shut(self) -> None:
        """Refuse what comes now, and wait for what is inside."""
        self._gate.shut()

    @contextlib.contextmanager
    def during(self, jobs: Sequence[Any], ids: list[bytes], indexes: list[int]) -> Iterator[None]:
        """Let this thread's calls inherit from a batch of transfers."""
        batch, first = self._batch, jobs[0]
        deadlines = [job.deadline_ns for job in jobs if job.deadline_ns]
        batch.deadline_ns = max(deadlines) if len(deadlines) == len(jobs) else 0
        batch.priority, batch.tag, batch.flags = first.priority, first.tag, first.flags
        batch.raw_lengths, batch.depths = {}, {}
        at = 0
        for job in jobs:
            raw = job.raw_lengths or job.lengths
            for i in range(job.n) if raw or job.depths else ():
                if raw:
                    batch.raw_lengths[ids[at + i], indexes[at + i]] = raw[i]
                if job.depths:
                    batch.depths[ids[at + i]] = job.depths[i]
            at += job.n
        try:
            yield
        finally:
            batch.deadline_ns = batch.priority = batch.tag = batch.flags = 0
            batch.raw_lengths, batch.depths = {}, {}

    @contextlib.contextmanager
    def until(self, deadline_ns: int) -> Iterator[None]:
        """Let this thread's calls inherit the deadline of a lookup or the like."""
        self._batch.deadline_ns = deadline_ns
        try:
            yield
        finally:
            self._batch.deadline_ns = 0

    def _left_ms(self) -> int:
        if not self._batch.deadline_ns:
            return 0
        return max(1, (self._batch.deadline_ns - time.monotonic_ns()) // 1000000)

    def _ids(self, what: int, block_ids: Any) -> None:
        ids, n = memory.ids(block_ids)
        error = new_error()
        with self._gate:
            status = lib.ucmh_ids(self.store, what, n, ids, self._left_ms(), error)
        if status != Status.OK:
            raise_for(status, error)

    def _run(
        self, dump: bool, block_ids: Any, shard_index: Any, shards: Any, raw_lengths: Any
    ) -> list[Any]:
        if self.layout is None:
            raise errors.UnsupportedError("the pipeline was opened for lookup only")
        batch = self._batch
        ids, n = memory.ids(block_ids)
        indexes = memory.shard_indexes(shard_index, n, self.layout.shards_per_block)
        addresses, lengths = self._addresses(shards, n, dump)
        raw = self._raw(block_ids, indexes, lengths, raw_lengths) if dump else ffi.NULL
        depths = ffi.NULL
        if batch.depths:
            depths = ffi.new("uint32_t[]", [batch.depths.get(bytes(i), 0) for i in block_ids])
        flags = batch.flags if dump else 0
        if dump and self.suspects and any(bytes(i) in self.suspects for i in block_ids):
            flags |= lib.UCM_TRANSFER_REPLACE
        out = ffi.new(SUBMITTED)
        left = self._left_ms()
        with self._gate:
            status = lib.ucmh_submit(
                self.store, dump, n, ids, indexes, addresses, lengths if dump else ffi.NULL, raw,
                depths, flags, 0, batch.tag, batch.priority, left,
                left or _FOR_EVER_MS, out,
            )  # fmt: skip
            if status != Status.OK:
                raise_for(status, out.error)
            try:
                lib.ucmh_task_wait(out.task, -1)
                results = lib.ucmh_task_results(out.task)
                answers = [_answer(dump, results[i]) for i in range(n)]
            finally:
                lib.ucmh_task_free(out.task)
        if flags & lib.UCM_TRANSFER_REPLACE:
            for i, answer in zip(block_ids, answers, strict=True):
                if answer == Dumped.PUBLISHED:
                    self.suspects.pop(bytes(i), None)
        moved = zip(answers, lengths if dump else answers, strict=True)
        self.count(dump, sum(length for a, length in moved if not isinstance(a, Exception)))
        return answers

    def _raw(self, block_ids: Any, indexes: Any, lengths: Any, given: Any) -> Any:
        """Say how long the shards were before any encoding, where the store below has to know."""
        assert self.layout is not None
        if given is not None:
            return memory.lengths(given, len(indexes), self.layout.raw_shard_size)
        if self.layout.shard_size == self.layout.raw_shard_size:
            return ffi.NULL
        known, most = self._batch.raw_lengths, self.layout.raw_shard_size
        return ffi.new(
            "uint64_t[]",
            [known.get((bytes(i), k), most) for i, k in zip(block_ids, indexes, strict=True)],
        )

    def _addresses(self, shards: Any, n: int, dump: bool) -> tuple[Any, Any]:
        assert self.layout is not None
        sizes = self.layout.segment_sizes
        if len(shards) != n:
            raise errors.InvalidError(f"shards: {len(shards)} for {n} block ids; give one each")
        addresses, lengths = array.array("Q"), array.array("Q")
        for shard in shards:
            row = shard if isinstance(shard, (list, tuple)) else [shard]
            length = _row(addresses, row, sizes, not dump)
            if not dump and length != self.layout.shard_size:
                raise errors.InvalidError(
                    f"shards: a load needs memory for {self.layout.shard_size} bytes, not {length}"
                )
            lengths.append(length)
        return ffi.from_buffer("uint64_t[]", addresses), ffi.from_buffer("uint64_t[]", lengths)


def _answer(dump: bool, result: Any) -> Any:
    if result.status == Status.OK:
        return _DUMPED[result.flags & 3] if dump else result.length
    what = errors.explain(errors.status_of(result.status), result.os_errno)
    verb = "dump" if dump else "load"
    return errors.error_for(result.status, f"{verb} below: {what}", result.os_errno)


def _row(addresses: Any, row: Any, sizes: tuple[int, ...], writable: bool) -> int:
    """Append the addresses of one shard's segments; return its length."""
    views = [ffi.from_buffer(piece, require_writable=writable) for piece in row]
    lengths = [len(view) for view in views]
    total, at = sum(lengths), int(ffi.cast("uintptr_t", views[0])) if views else 0
    if len(views) == 1 and total <= sum(sizes):
        for size in sizes:
            addresses.append(at)
            at += size
        return total
    left = total
    for i, size in enumerate(sizes):
        length = lengths[i] if i < len(lengths) else 0
        if length != min(size, left):
            break
        addresses.append(int(ffi.cast("uintptr_t", views[i])) if length else 0)
        left -= length
    else:
        if not left:
            return total
    raise errors.InvalidError(
        f"shards: pieces of {lengths} bytes do not lie in segments of {list(sizes)}; "
        "give one buffer, or pieces as the segments are, the last one cut"
    )
