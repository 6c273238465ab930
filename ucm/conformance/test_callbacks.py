"""What runs while a store calls back."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from ucm import Status, Store
from ucm._abi import ffi
from ucm.conformance import kit
from ucm.conformance.promises import Promise, stands_for

_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine())  # its number as a system call
_NOT_AT_ONCE_S = 1.0  # how long is looked at a call that need not return at once
_kept: list[Any] = []  # for ever: a callback is in use until after it has said that it was called


class Transfer:
    """A transfer as the C ABI has it, whose callbacks are Python."""

    def __init__(
        self, pieces: list[kit.Piece], rows: list[kit.Row], told: Callable[[], None] = lambda: None
    ) -> None:
        self.ended = threading.Event()
        self.statuses: dict[int, int] = {}

        def done(_: Any, i: int, result: Any) -> None:
            self.statuses[i] = result.status
            told()

        def finished(_: Any) -> None:
            told()
            self.ended.set()

        self._done = ffi.callback("void(void *, size_t, const ucm_result *)", done)
        self._finished = ffi.callback("void(void *)", finished)
        addresses = [address for row in rows for address in row.addresses()]
        self._arrays = [
            ffi.new("uint8_t[]", b"".join(piece.block.id for piece in pieces)),
            ffi.new("uint32_t[]", [piece.index for piece in pieces]),
            ffi.new("void *[]", [ffi.cast("void *", address) for address in addresses]),
        ]
        self._rows = rows
        _kept.append(self)
        self.native = ffi.new("ucm_transfer *")
        self.native.struct_size, self.native.n = ffi.sizeof(self.native[0]), len(pieces)
        ids, indexes, memory = self._arrays
        self.native.block_ids, self.native.shard_index, self.native.addresses = ids, indexes, memory
        self.native.done, self.native.finished = self._done, self._finished

    def run(self, start: Callable[..., int], handle: Any) -> int:
        """Start it, and wait until it has ended if it runs."""
        status = start(handle, self.native, ffi.NULL, ffi.NULL)
        if status == Status.OK:
            assert self.ended.wait(kit.WAIT_MS / 1000), "finished was not called"
        return status


def args(struct: str, **members: Any) -> Any:
    """Make the arguments of a call."""
    made = ffi.new(f"{struct} *", members)
    made.struct_size = ffi.sizeof(made[0])
    return made


class Asker:
    """Asks the store on a thread of its own while a callback runs, and says what is not answered.

    All calls but lookup return at once, whatever else the store does. A lookup may have to wait for
    the thread that calls back; but not for a lock which that one holds.
    """

    def __init__(self, store: Store, block: kit.Block) -> None:
        self._handle = ffi.cast("ucm_store *", store.native_handle())
        self._block, self._row = block, kit.rows_for(store, block.pieces()[:1], full=False)
        self.unanswered: list[str] = []
        self.asked: list[int] = []

    def _calls(self) -> Iterator[tuple[str, Callable[[], Any]]]:
        ops, handle = self._handle.ops, self._handle
        name = ffi.new("uint8_t[]", self._block.id)
        values = ffi.new("uint64_t[4096]")
        ids = args("ucm_ids_args", n=1, block_ids=name)
        metrics = args("ucm_metrics_args", n=4096, values=values)
        tiers = ffi.new("uint8_t[]", 1)
        lookup = args("ucm_lookup_args", n=1, block_ids=name, tiers=tiers)
        for slot, with_args in ("metrics", metrics), ("touch", ids), ("prefetch", ids):
            call: Any = getattr(ops, slot)
            if call != ffi.NULL:
                yield slot, functools.partial(call, handle, with_args, ffi.NULL)
        yield "load", self._start_load
        yield "lookup", functools.partial(ops.lookup, handle, lookup, ffi.NULL)

    def _start_load(self) -> None:
        load = Transfer(self._block.pieces()[:1], self._row)  # it ends when it likes
        self._handle.ops.load(self._handle, load.native, ffi.NULL, ffi.NULL)

    def ask(self) -> None:
        """Call from another thread, and wait for the answers; runs inside of done and finished."""
        if self.unanswered:
            return
        self.asked.append(threading.get_native_id())
        caller, asking, answered = threading.get_native_id(), [""], threading.Event()

        def work() -> None:
            asking.append(str(threading.get_native_id()))
            for name, call in self._calls():
                asking[0] = name
                call()
            answered.set()

        threading.Thread(target=work, daemon=True).start()
        start = time.monotonic()
        while not answered.wait(0.01):
            late = time.monotonic() - start
            if len(asking) > 1 and waits_for(int(asking[1]), caller):
                self.unanswered.append(f"{asking[0]} waits for a lock of the thread that calls it")
                return
            if asking[0] == "lookup" and late > _NOT_AT_ONCE_S:
                return
            if late > kit.WAIT_MS / 1000:
                self.unanswered.append(f"{asking[0]} does not return until it has")
                return


def waits_for(waiting: int, holder: int) -> bool:
    """Tell whether a thread waits for a mutex of glibc that another one holds."""
    try:
        with open(f"/proc/self/task/{waiting}/syscall") as file:
            number, *words = file.read().split()
        if int(number) != _FUTEX:
            return False
        memory = os.open("/proc/self/mem", os.O_RDONLY)
        try:
            state = os.pread(memory, 12, int(words[0], 16))
        finally:
            os.close(memory)
    except (OSError, ValueError):
        return False  # it runs, or this is not to be seen here
    lock, _, owner = (ctypes.c_int32 * 3).from_buffer_copy(state)
    return lock == 2 and owner == holder  # 2: others wait


@stands_for(Promise.CALLBACKS)
def test_a_store_answers_other_threads_while_it_calls_back(
    store: Store, rng: random.Random
) -> None:
    handle = ffi.cast("ucm_store *", store.native_handle())
    block = kit.new_block(store, rng)
    pieces = block.pieces()
    for slot in "dump", "load":
        asker = Asker(store, block)
        rows = kit.rows_for(store, pieces, full=slot == "dump")
        transfer = Transfer(pieces, rows, asker.ask)
        status = transfer.run(getattr(handle.ops, slot), handle)
        assert not asker.unanswered, f"{slot}: while done or finished runs, {asker.unanswered[0]}"
        if status == Status.UNSUPPORTED and not kit.loads(store):
            continue
        assert status == Status.OK
        assert len(asker.asked) == len(pieces) + 1, "done once for each shard, and finished"
    kit.expect_published(store, block)
