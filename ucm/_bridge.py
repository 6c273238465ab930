"""Runs a Python store as a ``ucm_store``, for whatever stands above it, native or Python."""

from __future__ import annotations

import array
import atexit
import errno
import functools
import logging
import os
import struct
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from ucm import errors
from ucm._abi import ffi, lib
from ucm._lower import Lower
from ucm.errors import Status
from ucm.layout import Layout
from ucm.loader import Metric
from ucm.python_store import Dumped, LayerBase, StoreBase, defines

CAPABILITIES = {
    "keeps": 1 << 0,
    "loads": 1 << 1,
    "persistent": 1 << 2,
    "verifies": 1 << 3,
    "write_back": 1 << 4,
    "remove": 1 << 5,
    "cancel": 1 << 6,
    "events": 1 << 7,
}
_OF_DATA = frozenset(("keeps", "loads", "persistent", "verifies", "write_back", "remove"))
_MAX_REPLACED = 4096
# All addresses there are: a slice of it is had in a tenth of the time that a view of its own takes.
_MEMORY = memoryview(ffi.buffer(ffi.cast("char *", 0), (1 << 63) - 1))
_TRANSFERS = (lib.UCMB_LOAD, lib.UCMB_DUMP)

# In the order of UCMB_DUMP_SHARDS and so on.
METRICS = tuple(
    Metric(name, "counter", "store", unit, text)
    for name, unit, text in (
        ("dump_shards_total", "shards", "Shards dumped."),
        ("dump_bytes_total", "bytes", "Bytes taken from above."),
        ("dump_out_bytes_total", "bytes", "Bytes passed below, or stored."),
        ("dump_busy_ns_total", "ns", "Time that dumps took in Python."),
        ("load_shards_total", "shards", "Shards loaded."),
        ("load_bytes_total", "bytes", "Bytes given above."),
        ("load_in_bytes_total", "bytes", "Bytes taken from below, or found."),
        ("load_busy_ns_total", "ns", "Time that loads took in Python."),
        ("failed_shards_total", "", "Shards that ended with an error other than NOT_FOUND."),
        ("calls_total", "", "Calls of dump and load, each with one or more transfers."),
    )
)


def names_of(bits: int) -> frozenset[str]:
    """Name the capabilities of a ``ucm_store``."""
    return frozenset(name for name, bit in CAPABILITIES.items() if bits & bit)


def failure(error: BaseException) -> tuple[Status, int]:
    """Say as (status, errno) what an author's exception means."""
    if isinstance(error, errors.StoreError):
        if error.status in (Status.OK, Status.PENDING, Status.BUSY):
            return Status.UNAVAILABLE, error.os_errno
        return error.status, error.os_errno
    if isinstance(error, KeyError):
        return Status.NOT_FOUND, 0
    if isinstance(error, MemoryError):
        return Status.UNAVAILABLE, errno.ENOMEM
    if isinstance(error, TimeoutError):
        return Status.TIMEOUT, error.errno or 0
    if isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        return Status.NO_SPACE if full else Status.IO, error.errno or 0
    return Status.INTERNAL, 0


class _End(NamedTuple):
    """How to end a transfer: what ``ucmb_end`` takes, and the memory that is in it."""

    arguments: tuple[Any, ...]
    owners: tuple[Any, ...]


class Bridge:
    """One open Python store: its native handle, and the threads that work for it."""

    def __init__(
        self, name: str, store: StoreBase, layout: Layout | None, native: Any, lower: Lower | None
    ) -> None:
        self._name = name
        self._store = store
        self._lower = lower
        self._layout = layout
        self._logger = logging.getLogger(f"ucm.{name.partition('#')[0]}")
        self._lock = threading.Lock()  # guards _replaced, and the removal of what is in it
        self._replaced: dict[bytes, set[int]] = {}  # blocks of which a new copy has begun
        settings = ffi.new("ucmb_settings *")
        settings.layout = native
        settings.lower = lower.store if lower else ffi.NULL
        settings.methods = self._methods()
        self.capabilities = self._capabilities()
        settings.capabilities = sum(CAPABILITIES[c] for c in self.capabilities)
        for limit in ("threads", "max_shards", "max_bytes"):
            if getattr(store, limit) < 1:
                raise errors.ConfigError(f"{name}: {limit} is {getattr(store, limit)}, below 1")
        settings.threads = store.threads
        settings.max_shards, settings.max_bytes = store.max_shards, store.max_bytes
        self._bridge = lib.ucmb_new(settings)
        if self._bridge == ffi.NULL:
            raise errors.UnavailableError(f"{name}: no thread: {os.strerror(ffi.errno)}")
        if lower:
            lower.count = self._count_below
        self.handle = lib.ucmb_store(self._bridge)
        _open.add(self)
        for i in range(store.threads + 1):
            last = i == store.threads  # and takes calls only, so that they have not to queue up
            threading.Thread(
                target=self._serve, args=(last,), name=f"ucm-{name}-{i}", daemon=True
            ).start()

    def _methods(self) -> int:
        """Name as bits what Python is asked for; the store below is asked for the rest."""
        own = {
            "lookup": lib.UCMB_LOOKUP,
            "remove": lib.UCMB_REMOVE,
            "prefetch": lib.UCMB_PREFETCH,
            "touch": lib.UCMB_TOUCH,
            "drain": lib.UCMB_DRAIN,
        }
        bits: int = sum(1 << bit for method, bit in own.items() if defines(self._store, method))
        if self._lower is None:
            bits |= 1 << lib.UCMB_LOOKUP | 1 << lib.UCMB_REMOVE
        if self._lower is None or not passes_through(type(self._store)):
            bits |= 1 << lib.UCMB_LOAD | 1 << lib.UCMB_DUMP
        return bits

    def _capabilities(self) -> frozenset[str]:
        given = self._store.capabilities
        if given is None:
            given = self._lower.capabilities & _OF_DATA if self._lower else frozenset()
        unknown = given - CAPABILITIES.keys()
        if unknown:
            raise errors.ConfigError(
                f"{self._name}: there is no capability {min(unknown)!r}; "
                f"there are {', '.join(CAPABILITIES)}"
            )
        passes = self._lower is not None and passes_through(type(self._store))
        cancels = not passes or "cancel" in (self._lower.capabilities if self._lower else ())
        return (given - {"events", "cancel"}) | ({"cancel"} if cancels else set())

    def shut(self) -> None:
        """Fail what waits, and what comes: this is the end of Python."""
        lib.ucmb_shut(self._bridge)

    def _count_below(self, dump: bool, moved: int) -> None:
        which = lib.UCMB_DUMP_OUT_BYTES if dump else lib.UCMB_LOAD_IN_BYTES
        lib.ucmb_count(self._bridge, which, moved)

    def _serve(self, calls_only: bool) -> None:
        bridge, answer, end = self._bridge, lib.ucmb_answer_pull, lib.ucmb_end_pull
        job = ffi.NULL
        while True:
            job = job or lib.ucmb_pull(bridge, calls_only)
            if not job:
                break
            # No more of a job than its answer lives on here: the next may be long in coming.
            if job.kind in _TRANSFERS:
                last = self._transfer(job)
                job = end(bridge, calls_only, *last.arguments)
                del last
            else:
                job = answer(bridge, calls_only, job, *self._call(job))
        lib.ucmb_leave(bridge)

    def _transfer(self, job: Any) -> _End:
        """Move a batch and end all of its transfers but the last, which is left to the caller."""
        jobs = []
        while job != ffi.NULL:
            jobs.append(job)
            job = job.next
        if len(jobs) > 1:
            try:
                answers = self._ask(jobs)
            except BaseException:  # not known of which transfer: each has its own call then
                answers = None
            if answers is not None:
                return self._end(jobs, answers)
        for job in jobs:
            try:
                answers = self._ask([job])
            except BaseException as error:
                self._log(error)
                answers = [error] * job.n
            last = self._end([job], answers)
            if job is not jobs[-1]:
                lib.ucmb_end(self._bridge, *last.arguments)
        return last

    def _ask(self, jobs: Sequence[Any]) -> Sequence[Any]:
        """Have the author's method move a batch; one answer a shard."""
        ids: list[bytes] = []
        indexes: list[int] = []
        shards: list[list[memoryview]] = []
        for job in jobs:
            ids += _ids(job)
            indexes += ffi.unpack(job.shard_index, job.n)
            shards += self._shards(job)
        dump = jobs[0].kind == lib.UCMB_DUMP
        replaces = dump and jobs[0].flags & lib.UCM_TRANSFER_REPLACE
        if replaces and not self._lower:
            self._forget(ids, indexes)
        method = self._store.dump if dump else self._store.load
        if self._lower:
            with self._lower.during(jobs, ids, indexes):
                answers: Any = method(ids, indexes, shards)
        else:
            answers = method(ids, indexes, shards)
        if answers is None and dump:
            answers = [None] * len(ids)
        if not isinstance(answers, Sequence) or len(answers) != len(ids):
            raise errors.StoreError(
                f"{type(self._store).__name__}.{method.__name__} must return one answer a shard"
            )
        if dump:
            return self._with_published(ids, answers)
        if self._lower:
            for i, answer in zip(ids, answers, strict=True):
                if isinstance(answer, (errors.CorruptError, errors.IncompatibleError)):
                    self._lower.suspect(i)
        return answers

    def _shards(self, job: Any) -> list[list[memoryview]]:
        assert self._layout is not None
        n, sizes, given, stride = job.n, self._layout.segment_sizes, job.lengths, job.stride
        if stride:
            first, length = job.addresses[0], given[0] if given else self._layout.shard_size
            rows = _MEMORY[first : first + stride * (n - 1) + length]
            return [[rows[cut]] for cut in _cuts(n, stride, length)]
        addresses = ffi.unpack(job.addresses, n * len(sizes))
        lengths = ffi.unpack(given, n) if given else [self._layout.shard_size] * n
        if len(sizes) == 1:
            return [[_MEMORY[a : a + k]] for a, k in zip(addresses, lengths, strict=True)]
        shards, at = [], iter(addresses)
        for left in lengths:
            shard = []
            for size in sizes:
                used, start = min(left, size), next(at)
                shard.append(_MEMORY[start : start + used])
                left -= used
            shards.append(shard)
        return shards

    def _with_published(self, ids: list[bytes], answers: Sequence[Any]) -> Sequence[Any]:
        """Put in the place of every None whether the block is published."""
        if None not in answers or "keeps" not in self.capabilities:
            return answers
        assert self._layout is not None
        if self._layout.shards_per_block == 1:
            return [Dumped.PUBLISHED if answer is None else answer for answer in answers]
        asked = list(
            dict.fromkeys(i for i, answer in zip(ids, answers, strict=True) if answer is None)
        )
        try:
            found = dict(zip(asked, map(bool, self._store.lookup(asked)), strict=True))
        except Exception as error:
            self._log(error)
            found = {}
        return [
            found.get(i, False) if answer is None else answer
            for i, answer in zip(ids, answers, strict=True)
        ]

    def _forget(self, ids: list[bytes], indexes: list[int]) -> None:
        """Remove the blocks of which a new copy begins; a store without remove keeps the old."""
        assert self._layout is not None
        if "remove" not in self.capabilities:
            return
        with self._lock:
            fresh = [i for i in dict.fromkeys(ids) if i not in self._replaced]
            for i, index in zip(ids, indexes, strict=True):
                self._replaced.setdefault(i, set()).add(index)
            for i in set(ids):
                if len(self._replaced[i]) == self._layout.shards_per_block:
                    del self._replaced[i]
            while len(self._replaced) > _MAX_REPLACED:
                del self._replaced[next(iter(self._replaced))]
            # With the lock: what another thread dumps of the new copy comes behind it.
            if fresh:
                self._store.remove(fresh)

    def _end(self, jobs: Sequence[Any], answers: Sequence[Any]) -> _End:
        """End all of these but the last one."""
        dump = jobs[0].kind == lib.UCMB_DUMP
        assert self._layout is not None
        most = int(max(Dumped)) if dump else self._layout.shard_size
        statuses = errnos = ffi.NULL
        kind = "I" if dump else "Q"
        try:
            flat = array.array(kind, list(answers))  # one pass tells, where all is well
            good = max(flat) <= most
        except (TypeError, OverflowError):
            good = False
        if not good:
            numbers, bad = self._judged(dump, answers, most)
            statuses, errnos = (ffi.new("int32_t[]", len(answers)) for _ in range(2))
            for i, status, os_errno in bad:
                statuses[i], errnos[i] = status, os_errno
            flat = array.array(kind, numbers)
        made = ffi.from_buffer("uint32_t[]" if dump else "uint64_t[]", flat)
        at = 0
        for job in jobs:
            mine = (statuses + at, errnos + at) if statuses else (ffi.NULL, ffi.NULL)
            arguments = (job, *mine, *((made + at, ffi.NULL) if dump else (ffi.NULL, made + at)))
            if job is not jobs[-1]:
                at += job.n
                lib.ucmb_end(self._bridge, *arguments)
        return _End(arguments, (made, statuses, errnos))

    def _judged(
        self, dump: bool, answers: Sequence[Any], most: int
    ) -> tuple[list[int], list[tuple[int, Status, int]]]:
        """Tell good answers, as numbers, from bad ones, as (index, status, errno)."""
        numbers, bad = [], []
        for i, answer in enumerate(answers):
            number = 0
            if isinstance(answer, BaseException):
                bad.append((i, *failure(answer)))
            elif answer is not None or not dump:
                try:
                    number = int(answer)
                except (TypeError, ValueError):
                    number = -1
                if not 0 <= number <= most:
                    self._logger.error("shard %d: %r is no answer", i, answer)
                    bad.append((i, Status.INTERNAL, 0))
                    number = 0
            numbers.append(number)
        return numbers, bad

    def _call(self, job: Any) -> tuple[Status, int, bytes]:
        status, os_errno, message = Status.OK, 0, ""
        try:
            if self._lower:
                with self._lower.until(job.deadline_ns):
                    self._answer(job)
            else:
                self._answer(job)
        except BaseException as error:
            self._log(error)
            status, os_errno = failure(error)
            message = str(error) or type(error).__name__
        return status, os_errno, message.encode(errors="replace")

    def _answer(self, job: Any) -> None:
        kind, store = job.kind, self._store
        if kind == lib.UCMB_LOOKUP:
            found = list(store.lookup(_ids(job)))
            if len(found) != job.n:
                raise errors.StoreError(f"{type(store).__name__}.lookup must answer for each id")
            ffi.buffer(job.tiers, job.n)[:] = _tiers(found)
        elif kind == lib.UCMB_REMOVE:
            store.remove(_ids(job))
        elif kind == lib.UCMB_PREFETCH:
            store.prefetch(_ids(job))
        elif kind == lib.UCMB_TOUCH:
            store.touch(_ids(job))
        elif kind == lib.UCMB_DRAIN:
            self._report(job, store.drain())
        else:
            report = self._close()
            self._report(job, report if hasattr(report, "unfinished") else None)

    def _report(self, job: Any, report: Any) -> None:
        if report is not None:
            job.report.lost, job.report.unfinished = report.lost, report.unfinished
            if "write_back" in self.capabilities:
                job.reports, job.report.stored = 1, report.stored

    def _close(self) -> Any:
        try:
            return self._store.close()
        finally:
            if self._lower:
                self._lower.shut()
            _open.discard(self)

    def _log(self, error: BaseException) -> None:
        """Show where an exception came from that says nothing of the store's own."""
        if failure(error)[0] == Status.INTERNAL:
            self._logger.error("%s: %s", type(error).__name__, error, exc_info=error)


def passes_through(store_class: type[Any]) -> bool:
    """Tell whether a layer leaves all transfers to the store below."""
    return (
        issubclass(store_class, LayerBase)
        and store_class.load is LayerBase.load
        and store_class.dump is LayerBase.dump
    )


def _tiers(found: list[Any]) -> bytes:
    try:
        return bytes(found)
    except (TypeError, ValueError):  # numbers of other kinds, or too large
        return bytes(min(int(tier), 255) for tier in found)


@functools.lru_cache(64)
def _cutter(n: int) -> struct.Struct:
    return struct.Struct("16s" * n)  # cuts all at once, in a tenth of the time that slices take


@functools.lru_cache(16)
def _cuts(n: int, stride: int, length: int) -> list[slice]:
    """Shards at equal distances: to make a slice takes longer than to have it cut."""
    return [slice(at, at + length) for at in range(0, n * stride, stride)]


def _ids(job: Any) -> list[bytes]:
    n = job.n
    return list(_cutter(n).unpack(ffi.buffer(job.block_ids, n * 16)))


_open: set[Bridge] = set()


# Before the one that closes the stores which are still open, so that it runs after that.
@atexit.register
def _shut_all() -> None:
    for bridge in list(_open):
        bridge.shut()


def _after_fork() -> None:
    """The parent's stores are none of the child's."""
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)
