"""The oldest interface over a store with raw ids.

A created block is gathered in host memory, and dumped when it is committed. A load fetches the
shards that its ranges touch, whole ones straight into the caller's memory, others by way of a copy.
"""

from __future__ import annotations

import collections
import enum
import hashlib
import logging
import re
import threading
from collections.abc import Sequence
from typing import Any

from ucm import errors, memory
from ucm._abi import ffi
from ucm.errors import InvalidError, NoSpaceError, Status, StoreError, UnsupportedError
from ucm.logs import logger
from ucm.store.ucmstore import Task, UcmKVStoreBase
from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1

_HEX_ID = re.compile("[0-9a-f]{32}")


class Code(enum.IntEnum):
    """What the oldest interface answers instead of raising."""

    OK = 0
    ERROR = -1
    INVALID = -50000
    OS = -50002
    DUPLICATE = -50003
    RETRY = -50004
    NOT_FOUND = -50005
    UNSUPPORTED = -50008
    NO_SPACE = -50009
    TIMEOUT = -50010


_CODES = {
    Status.OK: Code.OK,
    Status.NOT_FOUND: Code.NOT_FOUND,
    Status.INVALID: Code.INVALID,
    Status.UNSUPPORTED: Code.UNSUPPORTED,
    Status.UNAVAILABLE: Code.OS,
    Status.NO_SPACE: Code.NO_SPACE,
    Status.IO: Code.OS,
    Status.BUSY: Code.RETRY,
    Status.TIMEOUT: Code.TIMEOUT,
}


def block_id(name: str) -> bytes:
    """Return the 16 bytes for a text id.

    32 lower-case hex digits stand for themselves; of anything else it is the BLAKE2b hash of its
    UTF-8, 16 bytes long.
    """
    if not isinstance(name, str):
        raise InvalidError(f"block_ids: an id is text, not {type(name).__name__}")
    if _HEX_ID.fullmatch(name):
        return bytes.fromhex(name)
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class _Budget:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._left = limit
        self._lock = threading.Lock()  # guards _left

    def take(self, size: int) -> bool:
        with self._lock:
            if size > self._left:
                return False
            self._left -= size
            return True

    def give(self, size: int) -> None:
        with self._lock:
            self._left += size


class _Block:
    """A created block: its bytes so far, and where they are."""

    def __init__(self, size: int) -> None:
        self.data = bytearray(size)
        self.spans: list[tuple[int, int]] = []

    def write(self, offset: int, address: int, size: int) -> None:
        at = ffi.from_buffer(self.data) + offset
        ffi.memmove(at, ffi.cast("char *", address), size)
        start, end, others = offset, offset + size, []
        for span in self.spans:
            if span[1] < start or span[0] > end:
                others.append(span)
            else:
                start, end = min(start, span[0]), max(end, span[1])
        self.spans = [*others, (start, end)]

    def missing(self) -> int:
        return len(self.data) - sum(end - start for start, end in self.spans)


class _Taken(Task):
    """A dump: its bytes were taken when it was called."""

    def __init__(self, code: Code) -> None:
        self.code = code


class _Running(Task):
    """A transfer of the store below, and the memory that it needs until it has ended."""

    def __init__(self, budget: _Budget, size: int, keep: Any) -> None:
        self.task: Any = None
        self.copies: list[tuple[Any, int, int]] = []  # from, to address, bytes
        self._budget, self._size, self._keep = budget, size, keep
        self._lock = threading.Lock()  # guards error, ended
        self.ended = False
        self.error: Exception | None = None

    def end(self, error: Exception | None) -> None:
        with self._lock:
            if self.ended:
                return
            self.ended, self.error = True, error
            if error is None:
                for source, address, size in self.copies:
                    ffi.memmove(ffi.cast("char *", address), source, size)
            self.release()

    def release(self) -> None:
        self._budget.give(self._size)
        self._size, self._keep, self.copies = 0, None, []

    def __del__(self) -> None:
        self.release()


class BlockStore(UcmKVStoreBase):
    """The oldest interface over ``store``, whose shards have one segment. Thread-safe.

    ``create``, the dumps of a block and its ``commit`` belong to one process. ``limit`` bounds, in
    bytes, what is kept in host memory. Numbers are those of ``Code``. An argument that makes no
    sense raises, as does a commit after which a block is not there.
    """

    def __init__(
        self,
        config: dict[str, Any],
        store: UcmKVStoreBaseV1,
        block_size: int,
        shard_size: int,
        limit: int,
    ) -> None:
        super().__init__(config)
        self.store = store
        self.block_size, self.shard_size = block_size, shard_size
        self._budget = _Budget(limit)
        self._lock = threading.Lock()  # guards _created and what its blocks hold
        self._created: dict[bytes, _Block] = {}
        self._running: collections.deque[_Running] = collections.deque()

    def cc_store(self) -> int:
        """Return the address of the top native store, or 0 if there is none."""
        return self.store.cc_store()

    def lookup(self, block_ids: list[str]) -> list[bool]:
        """Tell for each block whether it is published."""
        return self.store.lookup([block_id(name) for name in block_ids])

    def prefetch(self, block_ids: list[str]) -> None:
        """Hint that blocks will be loaded soon."""
        self.store.prefetch([block_id(name) for name in block_ids])

    def _need_sizes(self, call: str) -> None:
        if not self.block_size:
            raise UnsupportedError(
                f"{call}: this store was opened for lookup only (role 'scheduler', device_id -1); "
                "a worker creates, dumps and commits its blocks itself"
            )

    def create(self, block_ids: list[str]) -> list[int]:
        """Make room for blocks; DUPLICATE where one exists, NO_SPACE where memory is used up."""
        self._need_sizes("create")
        names = [block_id(name) for name in block_ids]
        answers = []
        present = self.store.lookup(names)
        with self._lock:
            for name, published in zip(names, present, strict=True):
                if published or name in self._created:
                    answers.append(Code.DUPLICATE)
                elif not self._take(self.block_size):
                    answers.append(Code.NO_SPACE)
                else:
                    self._created[name] = _Block(self.block_size)
                    answers.append(Code.OK)
        refused = answers.count(Code.NO_SPACE)
        if refused:
            logger.warning("create: %d of %d blocks: %s", refused, len(names), self._full())
        return [int(code) for code in answers]

    def _take(self, size: int) -> bool:
        if self._budget.take(size):
            return True
        self._reap(len(self._running))
        return self._budget.take(size)

    def _full(self) -> str:
        return (
            f"the {self._budget.limit} bytes of host memory for them are used up; commit or "
            "discard blocks earlier, or set staging_gb higher"
        )

    def _ranges(
        self, block_ids: list[str], offset: Sequence[int], addresses: Any, sizes: Any
    ) -> list[tuple[bytes, int, int, int]]:
        """Return (id, offset, address, bytes) for each, once all are checked."""
        self._need_sizes("load and dump")
        n = len(block_ids)
        for what, values in (("offset", offset), ("addresses", addresses), ("size", sizes)):
            if len(values) != n:
                raise InvalidError(f"{what}: {len(values)} for {n} block ids; give one each")
        ranges = []
        for name, at, address, size in zip(block_ids, offset, addresses, sizes, strict=True):
            start, length = int(at), int(size)
            if start < 0 or length < 0 or start + length > self.block_size:
                raise InvalidError(
                    f"offset: bytes {start} to {start + length} of block {name} are not inside its "
                    f"{self.block_size} bytes"
                )
            ranges.append((block_id(name), start, int(address), length))
        return ranges

    def load(self, block_ids: list[str], offset: list[int], dst_tensor: list[Any]) -> Task:
        """Start to fill tensors from the bytes of published blocks."""
        extents = [memory.extent(tensor, "bytes", True) for tensor in dst_tensor]
        return self._load(block_ids, offset, extents, dst_tensor)

    def fetch_data(
        self, block_ids: list[str], offset: list[int], dst_addr: list[int], size: list[int]
    ) -> Task:
        """Start to fill memory given by address, which stays the call's until the task's end."""
        if len(dst_addr) != len(size):
            raise InvalidError(f"size: {len(size)} for {len(dst_addr)} addresses; give one each")
        return self._load(block_ids, offset, list(zip(dst_addr, size, strict=True)), None)

    def _load(
        self, block_ids: list[str], offset: list[int], extents: list[tuple[int, int]], keep: Any
    ) -> Task:
        ranges = self._ranges(block_ids, offset, [e[0] for e in extents], [e[1] for e in extents])
        rows: list[tuple[bytes, int, int]] = []  # id, shard, address
        pieces: dict[tuple[bytes, int], list[tuple[int, int, int]]] = {}  # from, to, bytes
        unit = self.shard_size
        for name, start, address, size in ranges:
            for shard in range(start // unit, -(-(start + size) // unit)):
                begin = max(start, shard * unit)
                end = min(start + size, (shard + 1) * unit)
                to = address + begin - start
                if end - begin == unit:
                    rows.append((name, shard, to))
                else:
                    piece = (begin - shard * unit, to, end - begin)
                    pieces.setdefault((name, shard), []).append(piece)
        staging = len(pieces) * unit
        if not self._take(staging):
            raise NoSpaceError(f"load: {staging} bytes for parts of shards: {self._full()}")
        buffers: list[Any] = []
        running = _Running(self._budget, staging, (keep, buffers))
        for (name, shard), parts in pieces.items():
            buffer = ffi.from_buffer(bytearray(unit))
            rows.append((name, shard, int(ffi.cast("uintptr_t", buffer))))
            running.copies += [(buffer + begin, to, size) for begin, to, size in parts]
            buffers.append(buffer)
        self._start(running, self.store.load_data, rows)
        return running

    def _start(self, running: _Running, call: Any, rows: list[tuple[bytes, int, int]]) -> None:
        running.task = call([r[0] for r in rows], [r[1] for r in rows], [[r[2]] for r in rows])
        self._reap(4)
        self._running.append(running)

    def _reap(self, most: int) -> None:
        """Drop transfers that have ended; those that run keep their memory alive here."""
        for _ in range(min(len(self._running), most)):
            try:
                older = self._running.popleft()
            except IndexError:  # another thread was faster
                return
            if not self.store.check(older.task):
                self._running.append(older)

    def dump(self, block_ids: list[str], offset: list[int], src_tensor: list[Any]) -> Task:
        """Write tensors into created blocks; they are the caller's again on return."""
        extents = [memory.extent(tensor, "bytes", False) for tensor in src_tensor]
        return self.dump_data(block_ids, offset, [e[0] for e in extents], [e[1] for e in extents])

    def dump_data(
        self, block_ids: list[str], offset: list[int], src_addr: list[int], size: list[int]
    ) -> Task:
        """Write memory into created blocks. NOT_FOUND if one was not created; the rest is taken."""
        code = Code.OK
        for name, start, address, length in self._ranges(block_ids, offset, src_addr, size):
            with self._lock:
                block = self._created.get(name)
                if block is None:
                    code = Code.NOT_FOUND
                elif length:
                    block.write(start, address, length)
        if code:
            logger.warning("dump: a block was not created here, or is committed already")
        return _Taken(code)

    def wait(self, task: Task) -> int:
        """Block until the task has finished; TIMEOUT may be waited for again."""
        if isinstance(task, _Running):
            error = self._wait(task)
            return int(_code(error))
        return int(self._taken(task).code)

    def check(self, task: Task) -> tuple[int, bool]:
        """Return (0 or how it failed, whether it has finished)."""
        if isinstance(task, _Running) and not task.ended and not self.store.check(task.task):
            return int(Code.OK), False
        return self.wait(task), True

    def _taken(self, task: Task) -> _Taken:
        if not isinstance(task, _Taken):
            raise InvalidError(f"task: {task!r} is not a task of this store")
        return task

    def _wait(self, running: _Running) -> Exception | None:
        """Return what is wrong, or None. After a timeout the transfer goes on."""
        if not running.ended:
            try:
                self.store.wait(running.task)
            except errors.StoreTimeout as error:
                if not self.store.check(running.task):
                    return error
                running.end(error)
            except Exception as error:  # of any store: whatever it raises is the outcome
                absent = isinstance(error, errors.NotFoundError)
                logger.log(logging.INFO if absent else logging.WARNING, "%s", error)
                running.end(error)
            else:
                running.end(None)
        return running.error

    def commit(self, block_ids: list[str], is_success: bool = True) -> None:
        """Publish created blocks, or discard them; either way they are not created any more.

        A block of which bytes were never dumped is not published. Raises StoreError if any was not.
        """
        names = {block_id(name): name for name in block_ids}
        with self._lock:
            blocks = {key: self._created.pop(key, None) for key in names}
        failed: dict[str, Exception] = {}
        started = {}
        for key, block in blocks.items():
            if block is None:
                if is_success:
                    failed[names[key]] = InvalidError("it was not created here")
                continue
            missing = block.missing()
            if missing or not is_success:
                self._budget.give(self.block_size)
                if is_success:
                    failed[names[key]] = InvalidError(f"{missing} bytes were never dumped")
                continue
            running = _Running(self._budget, self.block_size, block)
            try:
                self._publish(key, block, running)
                started[key] = running
            except StoreError as error:
                running.release()
                failed[names[key]] = error
        for key, running in started.items():
            problem = self._wait(running)
            if problem is not None:
                failed[names[key]] = problem
        if failed:
            first = next(iter(failed.values()))
            status = first.status if isinstance(first, StoreError) else Status.INTERNAL
            said = "; ".join(f"block {name}: {why}" for name, why in list(failed.items())[:3])
            raise errors.error_for(
                status, f"commit: {len(failed)} of {len(names)} blocks are not published: {said}"
            )

    def _publish(self, key: bytes, block: _Block, running: _Running) -> None:
        base = int(ffi.cast("uintptr_t", ffi.from_buffer(block.data)))
        count = self.block_size // self.shard_size
        rows = [(key, shard, base + shard * self.shard_size) for shard in range(count)]
        self._start(running, self.store.dump_data, rows)

    def close(self) -> None:
        """Discard what is not committed, and close the store below if it can be."""
        with self._lock:
            self._created.clear()
        close = getattr(self.store, "close", None)
        if close is not None:
            close()


def _code(error: Exception | None) -> Code:
    if error is None:
        return Code.OK
    status = error.status if isinstance(error, StoreError) else Status.INTERNAL
    return _CODES.get(status, Code.ERROR)
