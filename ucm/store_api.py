"""``Store``: an open pipeline, as callers see it."""

from __future__ import annotations

import atexit
import collections
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from ucm import config, errors, logs, memory, pipeline
from ucm._abi import ffi
from ucm._gate import Gate
from ucm.errors import Status
from ucm.layout import Layout
from ucm.task import Task

_SLICE_MS = 100  # how long a wait stays out of Python, so that Ctrl-C works
_ALL, _PREFIX, _LAST = 0, 1, 2
_MANY = 16  # shards: to read their arguments takes about as long as to wake a thread
_TRUTH = bytes([0] + 255 * [1])  # of a byte: a thousand bools are had faster so than one by one


class Report(NamedTuple):
    """What became of dumped shards.

    ``stored`` and ``lost`` since the last report; lost were accepted and then given up, the log
    says why. ``pending`` and ``unfinished`` as it is now; unfinished are stored, in blocks that
    still miss other shards.
    """

    stored: int
    lost: int
    pending: int
    unfinished: int


class _Service:
    """A stack and the gate to it: what ``Store.replace`` exchanges."""

    def __init__(
        self, store: Store, options: Mapping[str, Any], wired: Sequence[pipeline.Wired]
    ) -> None:
        mine = weakref.ref(store)
        self.gate = Gate(lambda: repr(mine()))
        self.options = options
        self.stack, self.layout, self.checked = (
            pipeline.open_wired(options, wired) if wired else pipeline.open_stack(options)
        )


class Store:
    """An open pipeline. Thread-safe; a context manager that closes itself.

    Ids are a list of 16-byte ``bytes``, or a uint8 array (n, 16). A call that moves shards takes,
    for each, the id of its block, its index in the block, and one row of memory: a list of tensors
    or arrays, one per segment, or their addresses.
    """

    def __init__(self, options: Mapping[str, Any], wired: Sequence[pipeline.Wired] = ()) -> None:
        self._pid = os.getpid()
        self._closed = False
        self._wired = bool(wired)
        self._handle_given = False
        self._changing = threading.Lock()  # one replace or close at a time; guards _leaving
        self._owing = threading.Lock()  # guards _owed
        # Stored and lost by calls that ended in no report.
        self._owed: collections.Counter[str] = collections.Counter()
        self._leaving: list[_Service] = []  # what is to be closed, the oldest first
        self._tasks: collections.deque[Task] = collections.deque()
        self._service = _Service(self, options, wired)
        self._serve(self._service)
        _open_stores.add(self)

    def _serve(self, service: _Service) -> None:
        """From here on calls go to this one."""
        checked = service.checked
        self._timeout_ms: int = checked.get("timeout_ms")
        self._lookup_only: bool = checked.get("device_id") == -1
        self.pipeline: str = checked.get("store_pipeline")
        self.notes: list[str] = checked.notes
        self._service = service
        for note in checked.notes:
            logs.logger.warning("%s", note)

    def _call(self, method: str, *args: Any) -> Any:
        """Call the stack in service; one that is replaced meanwhile lets nobody in."""
        while True:
            service = self._service
            try:
                with service.gate:
                    return getattr(service.stack, method)(*args)
            except errors.ClosedError:
                if service is self._service:
                    raise

    def __repr__(self) -> str:
        return f"<Store {self.pipeline!r}{' closed' if self._closed else ''}>"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._closed:
            self.close()

    def __del__(self) -> None:
        # Without a service the constructor failed, and there is nothing to close.
        if hasattr(self, "_service") and not self._closed:
            _close_forgotten(self, "dropped")

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers, top first."""
        return self._service.stack.layers

    @property
    def capabilities(self) -> frozenset[str]:
        """What the pipeline can do.

        ``keeps`` (a published block is found again), ``loads`` (its bytes too), ``persistent``
        (after a restart too), ``verifies`` (altered bytes are found out), ``write_back`` (a dump is
        done before it is stored, see ``drain``), ``remove``, ``cancel``, ``events``.
        """
        return self._service.stack.capabilities

    @property
    def layout(self) -> Layout | None:
        """The sizes in force, or None when opened for lookup only without them."""
        return self._service.layout

    @property
    def lookup_only(self) -> bool:
        """Whether it was opened with ``device_id`` -1: nothing can be dumped or loaded."""
        return self._lookup_only

    def lookup(self, block_ids: Any) -> list[bool]:
        """Tell for each block whether it is published."""
        ids, n = memory.ids(block_ids)
        _, tiers = self._call("lookup", _ALL, n, ids)
        return _truths(bytes(tiers))

    def tiers(self, block_ids: Any) -> list[int]:
        """Tell for each block how deep it lies: 0 absent, 1 in the top layer, 2 in the next..."""
        ids, n = memory.ids(block_ids)
        _, tiers = self._call("lookup", _ALL, n, ids)
        return list(bytes(tiers))

    def lookup_on_prefix(self, block_ids: Any) -> int:
        """Return the index of the last block of the longest published prefix, or -1."""
        ids, n = memory.ids(block_ids)
        hits, _ = self._call("lookup", _PREFIX, n, ids)
        return int(hits) - 1

    def lookup_on_reverse(self, block_ids: Any) -> int:
        """Return the index of the rightmost published block, or -1."""
        ids, n = memory.ids(block_ids)
        hits, _ = self._call("lookup", _LAST, n, ids)
        return int(hits) - 1

    def prefetch(self, block_ids: Any) -> None:
        """Hint that these blocks will be loaded soon. Returns at once."""
        ids, n = memory.ids(block_ids)
        self._call("prefetch", n, ids)

    def load(
        self,
        block_ids: Any,
        shard_index: Any,
        tensors: Any,
        *,
        prerequisite_handle: int = 0,
        priority: int = 0,
    ) -> Task:
        """Start to fill rows of tensors or arrays, one per segment, from storage.

        ``prerequisite_handle``, ``priority``: as for dump.
        """
        return self._start(
            False, block_ids, shard_index, tensors, True,
            event=prerequisite_handle, priority=priority,
        )  # fmt: skip

    def dump(
        self,
        block_ids: Any,
        shard_index: Any,
        tensors: Any,
        *,
        depths: Any = None,
        prerequisite_handle: int = 0,
        priority: int = 0,
    ) -> Task:
        """Start to store rows of tensors or arrays, one per segment.

        ``depths``: for each row, how many blocks of its prefix come before its block; a hint, by
        which the ends of prefixes are evicted before their beginnings.
        ``prerequisite_handle``: a recorded event of the device, such as ``event.cuda_event`` of
        torch, which is waited for before the memory is touched; it stays as it is until the task
        has finished. 0: none; the capability ``events`` is needed for others.
        ``priority``: a hint; higher is more urgent, below 0 is background: it goes after the
        others, and Cache copies nothing of it on the caller's thread.
        """
        return self._start(
            True, block_ids, shard_index, tensors, True,
            depths=depths, event=prerequisite_handle, priority=priority,
        )  # fmt: skip

    def load_data(
        self,
        block_ids: Any,
        shard_index: Any,
        addresses: Any,
        *,
        prerequisite_handle: int = 0,
        priority: int = 0,
    ) -> Task:
        """Start to fill memory given by address: uint64 (n, segments), or a list of lists.

        ``prerequisite_handle``, ``priority``: as for dump.
        """
        return self._start(
            False, block_ids, shard_index, addresses, False,
            event=prerequisite_handle, priority=priority,
        )  # fmt: skip

    def dump_data(
        self,
        block_ids: Any,
        shard_index: Any,
        addresses: Any,
        lengths: Any = None,
        *,
        depths: Any = None,
        prerequisite_handle: int = 0,
        priority: int = 0,
    ) -> Task:
        """Start to store memory given by address.

        ``lengths``: bytes of each shard, counted across its segments; None: all full.
        ``depths``, ``prerequisite_handle``, ``priority``: as for dump.
        """
        return self._start(
            True, block_ids, shard_index, addresses, False,
            lengths, depths, prerequisite_handle, priority,
        )  # fmt: skip

    def _start(
        self,
        dump: bool,
        block_ids: Any,
        shard_index: Any,
        rows: Any,
        objects: bool,
        lengths: Any = None,
        depths: Any = None,
        event: int = 0,
        priority: int = 0,
    ) -> Task:
        layout = self._service.layout
        if layout is None or self._lookup_only:
            raise errors.UnsupportedError(
                "this store was opened for lookup only; give the block's sizes and device_id 0"
            )
        if type(event) is not int or event:
            memory.check_event(event, "events" in self.capabilities)
        ids, n = memory.ids(block_ids)
        if n >= _MANY and self._service.stack.top_is_python:
            self._call("expect")
        shards = memory.shard_indexes(shard_index, n, layout.shards_per_block)
        sizes = layout.segment_sizes
        keep: Any = (block_ids, shard_index)
        if objects:
            addresses, keep = memory.tensors(rows, n, layout, not dump)
        else:
            addresses = memory.addresses(rows, n, len(sizes))
        limits = memory.lengths(lengths, n, layout.shard_size)
        hints = memory.depths(depths, n)
        try:
            outcome = self._call(
                "submit", dump, n, ids, shards, addresses, limits, hints, event, priority,
                self._timeout_ms,
            )  # fmt: skip
        except errors.InvalidError:
            memory.check_range(max(shards, default=0), layout.shards_per_block)
            raise
        task = Task("dump" if dump else "load", n, outcome, _Names(ids, shards), keep)
        if self._tasks:
            self._reap()
        if not task.done():
            self._tasks.append(task)
        return task

    def _reap(self) -> None:
        """Drop finished tasks; those that run keep their memory alive here."""
        tasks = self._tasks
        for _ in range(min(len(tasks), 4)):
            try:
                task = tasks.popleft()
            except IndexError:  # another thread was faster
                return
            if not task.done():
                tasks.append(task)

    def wait(self, task: Task, timeout_ms: int | None = None) -> None:
        """Return when every shard of the task is done; raise StoreError if any failed.

        Raises StoreTimeout after ``timeout_ms`` (default: the option): the task goes on, and wait
        may be called again.
        """
        limit = self._timeout_ms if timeout_ms is None else timeout_ms
        until = time.monotonic() + limit / 1000
        while True:
            left = int((until - time.monotonic()) * 1000)
            if task.poll(max(0, min(left, _SLICE_MS))) != Status.PENDING:
                break
            if left <= 0:
                raise errors.StoreTimeout(
                    f"{task!r} has not finished within {limit} ms; it goes on, wait again"
                )
        error = task.error()
        if error is not None:
            raise error

    def check(self, task: Task) -> bool:
        """Tell whether the task has finished, well or badly."""
        return task.done()

    def cancel(self, task: Task) -> None:
        """Ask that shards which have not started end as CANCELLED; wait for the task as usual."""
        # One that a replaced stack runs ends as it would have.
        stack = self._service.stack
        if task.outcome.stack is stack:
            self._call("cancel", task.task_id)

    def remove(self, block_ids: Any) -> None:
        """Remove blocks from every layer; absent ones are fine."""
        ids, n = memory.ids(block_ids)
        self._call("remove", n, ids)

    def drain(self, timeout_ms: int | None = None) -> Report:
        """Wait until all that was dumped is stored at the bottom, or lost.

        Raises StoreTimeout after ``timeout_ms`` (default: the option): shards go on, and what was
        stored or lost by then is in the next report, of ``drain`` or ``close``.
        """
        limit = self._timeout_ms if timeout_ms is None else timeout_ms
        status, counts = self._sliced(self._drain_slice, limit)
        if status == Status.PENDING:
            raise errors.StoreTimeout(
                f"drain: {counts['pending']} shards are not stored yet after {limit} ms"
                f"{_of_lost(counts)}; they go on, drain again"
            )
        return Report(**counts)

    def _drain_slice(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        counts: dict[str, int]
        status, counts = self._call("drain", timeout_ms)
        return status, counts

    def _sliced(self, call: Any, limit_ms: int) -> tuple[int, dict[str, int]]:
        """Repeat a bounded call in short slices, so that Ctrl-C works between them.

        Layers tell of what is stored or lost once: after a timeout the next report has it.
        """
        total = {"stored": 0, "lost": 0, "pending": 0, "unfinished": 0}
        with self._owing:
            total.update(self._owed)
            self._owed.clear()
        ended = False
        until = time.monotonic() + limit_ms / 1000
        try:
            while True:
                left = int((until - time.monotonic()) * 1000)
                status, counts = call(max(0, min(left, _SLICE_MS)))
                for name in ("stored", "lost"):
                    total[name] += counts[name]
                total["pending"], total["unfinished"] = counts["pending"], counts["unfinished"]
                ended = status != Status.PENDING
                if ended or left <= 0:
                    return status, total
        finally:
            if not ended:
                with self._owing:
                    self._owed.update(stored=total["stored"], lost=total["lost"])

    def native_handle(self) -> int:
        """Return the address of the top layer's ``ucm_store``."""
        self._handle_given = True
        handle: int = self._call("native_handle")
        return handle

    def stats(self) -> dict[str, dict[str, Any]]:
        """Return every layer's metrics, top first; 'ucm plugins NAME' explains them."""
        metrics: dict[str, dict[str, Any]] = self._call("metrics")
        return metrics

    def replace(
        self,
        pipeline: str | Mapping[str, Any] | None = None,
        /,
        *,
        wait_ms: int | None = None,
        **options: Any,
    ) -> Report:
        """Go over to another stack while calls come: other options, layers, or library files.

        What is given wins over what the store was opened with; sizes stay as they are. The new
        stack is opened beside the old one, and if that fails nothing has changed. From then on
        calls go to it; tasks that run end on the old one, which is closed when all that it accepted
        is stored: the report is its last.

        What Cache keeps in a shared segment stays where ``unique_id``, sizes, model and
        ``cache_buffer_capacity_gb`` are equal; what it keeps in memory of its own is stored below,
        and read again. A library is opened anew where another file, a new inode, has its place.

        Raises StoreTimeout if the old stack needs longer than ``wait_ms`` (default: the option
        ``timeout_ms``): it goes on, and the next replace or close waits for it again.
        """
        if self._handle_given or self._wired:
            raise errors.UnsupportedError(
                "replace: somebody has the address of this stack (native_handle, cc_store), or it "
                "was wired by hand; open another store instead"
            )
        with self._changing:
            with self._service.gate:
                pass  # open, and in the process that opened it
            base = {"store_pipeline": pipeline} if isinstance(pipeline, str) else pipeline or {}
            old = self._service
            new = _Service(self, {**old.options, **base, **options}, ())
            if new.layout != old.layout or new.checked.get("device_id") != old.checked.get(
                "device_id"
            ):
                new.stack.close(-1)
                raise errors.ConfigError(
                    f"replace: sizes, dtype, memory and device_id stay: {old.layout} is not "
                    f"{new.layout}"
                )
            self._serve(new)
            self._leaving.append(old)
            limit = self._timeout_ms if wait_ms is None else wait_ms
            status, counts = self._sliced(self._retire, limit)
        if status == Status.PENDING:
            raise errors.StoreTimeout(
                f"replace: the new stack serves, but {counts['pending']} shards of the old one are "
                f"not stored after {limit} ms{_of_lost(counts)}; it goes on until close"
            )
        return Report(**counts)

    def _retire(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        """Close what is leaving."""
        total = {"stored": 0, "lost": 0, "pending": 0, "unfinished": 0}
        while self._leaving:
            self._leaving[0].gate.shut()
            status, counts = self._leaving[0].stack.close(timeout_ms)
            for name, count in counts.items():
                total[name] += count
            if status == Status.PENDING:
                return status, total
            self._leaving.pop(0)
        return Status.OK, total

    def close(self, timeout_ms: int | None = None) -> Report:
        """Finish what was accepted, then release everything.

        Raises StoreTimeout if that takes longer: the store stays closed to new work, and close may
        be called again. Closing a closed store does nothing.
        """
        if self._closed or self._pid != os.getpid():
            return Report(0, 0, 0, 0)
        limit = self._timeout_ms if timeout_ms is None else timeout_ms
        with self._changing:
            if self._service not in self._leaving:
                self._leaving.append(self._service)
            self._service.gate.shut()
            status, counts = self._sliced(self._retire, limit)
        if status == Status.PENDING:
            raise errors.StoreTimeout(
                f"close: after {limit} ms it goes on, and {counts['pending']} shards are not "
                f"stored yet{_of_lost(counts)}; close again"
            )
        self._closed = True
        _open_stores.discard(self)
        self._tasks.clear()
        return Report(**counts)


def _of_lost(counts: dict[str, int]) -> str:
    return f" ({counts['lost']} are lost)" if counts["lost"] else ""


def _truths(tiers: bytes) -> list[bool]:
    """Tell of each whether it is not 0; what is found is most often all, or a beginning."""
    found = tiers.rstrip(b"\0")
    if b"\0" in found:
        each: list[Any] = memoryview(tiers.translate(_TRUTH)).cast("?").tolist()
        return each
    answers = [True] * len(found)
    answers += [False] * (len(tiers) - len(found))
    return answers


class _Names:
    """Ids and indexes of a task's shards, for messages."""

    def __init__(self, ids: Any, shards: Any) -> None:
        self._ids, self._shards = ids, shards

    def __call__(self, i: int) -> tuple[bytes, int]:
        return bytes(ffi.buffer(self._ids + i * 16, 16)), self._shards[i]


_open_stores: weakref.WeakSet[Store] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for store in list(_open_stores):
        _close_forgotten(store, "still open at exit")


def _close_forgotten(store: Store, how: str) -> None:
    if store._pid != os.getpid():
        return
    logs.logger.warning("%r was %s without close(); it is closed now", store, how)
    try:
        store.close()
    except errors.StoreError as error:
        logs.logger.error("%s", error)


def open_pipeline(pipeline: str | os.PathLike[str] | Mapping[str, Any], /, **options: Any) -> Store:
    """Open a pipeline: ``open_pipeline("Cache|Posix", storage_backends="/data", block_size=...)``.

    ``pipeline`` is a pipeline string, a mapping with the key ``store_pipeline``, or the path of a
    YAML file; keyword arguments win over what stands there.
    """
    if isinstance(pipeline, Mapping):
        base = dict(pipeline)
    elif isinstance(pipeline, str) and Path(pipeline).suffix not in (".yaml", ".yml"):
        base = {"store_pipeline": pipeline}
    elif isinstance(pipeline, (str, os.PathLike)):
        base = config.read_yaml(pipeline)
        try:
            return Store({**base, **options})
        except errors.ConfigError as error:
            raise errors.ConfigError(f"{os.fspath(pipeline)}: {error}") from None
    else:
        raise errors.ConfigError(
            f"a pipeline is a string, a mapping or the path of a YAML file, not {pipeline!r}"
        )
    return Store({**base, **options})
