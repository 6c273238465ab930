"""What processes of the fault tests do: they open the target again, and may be killed."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ucm import Status, Store, open_pipeline
from ucm.breaking import say
from ucm.conformance import kit
from ucm.conformance.fixtures import known

SEGMENTS, SHARDS = (49152, 16384), 4
SHARD = sum(SEGMENTS)
SIZES = {"tensor_size_list": SEGMENTS, "block_size": SHARDS * SHARD}
TMPFS_BYTES = 12 << 20
FILLING = 64  # blocks: more than the tmpfs has room for
FILE_LIMIT = 16384  # bytes


def block_of(number: int) -> kit.Block:
    """Make the block of a number, the same in every process."""
    rng = random.Random(number)
    return kit.Block(
        b"ucmfault" + number.to_bytes(8, "big"), tuple(rng.randbytes(SHARD) for _ in range(SHARDS))
    )


def child() -> int:
    """Do what the task on stdin says; every line on stdout says what happened to a block."""
    task = json.load(sys.stdin)
    kit.WAIT_MS = task["wait_ms"]
    for name, place in task["classes"].items():
        known(name, place)

    def opened(**overrides: Any) -> Store:
        return open_pipeline(task["pipeline"], **{**SIZES, **task["options"], **overrides})

    try:
        _OPERATIONS[task["operation"]](opened, task["numbers"])
    except BaseException as error:  # a test that failed is none that Exception covers
        print(f"broke {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
        return 3
    return 0


def _write(opened: Callable[..., Store], numbers: Sequence[int]) -> None:
    """Dump blocks one by one, in pieces, and leave without a word."""
    store = opened()
    order = random.Random(numbers[0])
    for number in numbers:
        say("dumping", number)
        pieces = order.sample(block_of(number).pieces(), SHARDS)
        dumps = [kit.start_dump(store, pieces[i : i + 2]) for i in range(0, SHARDS, 2)]
        for dump in dumps:
            store.wait(dump.task, kit.WAIT_MS)
        report = store.drain(kit.WAIT_MS)
        say("lost" if report.lost else "stored", number)
    os._exit(0)


def dump_each(
    store: Store, blocks: Sequence[kit.Block], allowed: Sequence[Status]
) -> list[kit.Block]:
    """Dump blocks one by one; return those that failed, each with a status that is allowed."""
    failed = []
    for block in blocks:
        transfer = kit.start_dump(store, block.pieces())
        kit.finish(store, transfer)
        statuses = {result.status for result in transfer.task.results}
        assert statuses <= {Status.OK, *allowed}, f"a dump ended as {statuses}"
        if statuses != {Status.OK}:
            failed.append(block)
            assert len(str(transfer.task.error())) > 20
    return failed


REFUSED = (Status.NO_SPACE, Status.IO, Status.UNAVAILABLE)


def _expect_recovery(opened: Callable[..., Store], blocks: list[kit.Block], again: int) -> None:
    """Open anew, look what is there, remove it, dump some of the others."""
    with opened() as store:
        here = dict(zip(blocks, store.lookup(kit.ids_of(blocks)), strict=True))
        visible = [block for block in blocks if here[block]]
        hidden = [block for block in blocks if not here[block]][:again]
        kit.expect_published(store, *visible)
        kit.expect_absent(store, *hidden)
        if "remove" not in store.capabilities:
            return
        store.remove(kit.ids_of(visible))
        kit.dump(store, *hidden)
        assert store.drain(kit.WAIT_MS).lost == 0, "there was room again, and shards were lost"
    with opened() as store:
        kit.expect_published(store, *hidden)


def _fill(opened: Callable[..., Store], numbers: Sequence[int]) -> None:
    """Fill a small file system up, then make room."""
    blocks = [block_of(number) for number in numbers]
    with opened() as store:
        failed = dump_each(store, blocks, REFUSED)
        lost = store.drain(kit.WAIT_MS).lost
        kit.expect_nothing_wrong(store, *blocks)
        found = store.lookup(kit.ids_of(blocks))
    if not failed and not lost and all(found):
        return say("fitted", len(blocks))
    assert failed or lost, "blocks are gone, and nobody was told"
    _expect_recovery(opened, blocks, again=4)
    return say("filled", len(blocks))


def _refuse_writes(opened: Callable[..., Store], numbers: Sequence[int]) -> None:
    """Have the system refuse writes beyond the first bytes of any file, for a time."""
    import resource

    first, *blocks = (block_of(number) for number in numbers)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with opened() as store:
        kit.dump(store, first)
        store.drain(kit.WAIT_MS)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_LIMIT, hard))
        try:
            failed = dump_each(store, blocks, REFUSED)
            lost = store.drain(kit.WAIT_MS).lost
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        kit.expect_published(store, first)
        kit.expect_nothing_wrong(store, *blocks)
    if not failed and not lost:
        say("fitted", len(blocks))
    with opened() as store:
        kit.expect_nothing_wrong(store, *blocks)
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0, "writes went well again, and shards were lost"
    with opened() as store:
        kit.expect_published(store, first, *blocks)


READS, WRITES, SLOW = 1, 2, 4  # of failing.c
_GONE = (*REFUSED, Status.NOT_FOUND, Status.CORRUPT, Status.INCOMPATIBLE)


def _expect_right_later(store: Store, blocks: Sequence[kit.Block]) -> None:
    """Dump again until all is served; a layer may rest for a while after errors."""
    until = time.monotonic() + kit.WAIT_MS / 1000
    while True:
        kit.finish(store, kit.start_dump(store, kit.pieces_of(blocks)))
        lost = store.drain(kit.WAIT_MS).lost
        pieces = kit.pieces_of(blocks)
        ends = kit.load_pieces(store, pieces)
        kit.expect_ends(pieces, ends, _GONE)
        if not lost and not any(isinstance(end, Status) for end in ends):
            return
        assert time.monotonic() < until, "it did not come right after the errors had stopped"
        time.sleep(0.01)


def _fail(opened: Callable[..., Store], numbers: Sequence[int]) -> None:
    """Have reads fail, then writes, then all be slow, of files in the test's folder."""
    import ctypes

    system = ctypes.CDLL(None)
    blocks = [block_of(number) for number in numbers]
    old, new = blocks[::2], blocks[1::2]
    with opened() as store:
        kit.dump(store, *old)
        store.drain(kit.WAIT_MS)
    with opened() as store:
        system.ucm_failing(READS)
        pieces = kit.pieces_of(old)
        kit.expect_ends(pieces, kit.load_pieces(store, pieces), _GONE)
        say("reads failed", system.ucm_failing_found())
        system.ucm_failing(WRITES)
        dump_each(store, new, REFUSED)
        store.drain(kit.WAIT_MS)
        kit.expect_nothing_wrong(store, *new)
        system.ucm_failing(0)
        _expect_right_later(store, blocks)
    with opened() as store:
        system.ucm_failing(SLOW)
        kit.expect_published(store, *blocks)
        system.ucm_failing(0)
    say("slow or failed", system.ucm_failing_found())


def _fail_steps(opened: Callable[..., Store], numbers: Sequence[int]) -> None:
    """Have the first call fail that changes a file or folder, then the second of the next dump."""
    import ctypes

    fail_step = ctypes.CDLL(None).ucm_failing_step
    fail_step.restype = ctypes.c_long
    with opened() as store:
        for steps, number in enumerate(numbers):
            block = block_of(number)
            failed_before = fail_step(steps)  # none fails of the first block
            failed = dump_each(store, [block], REFUSED)
            lost = store.drain(kit.WAIT_MS).lost
            if steps and fail_step(0) == failed_before:
                return  # it takes fewer calls
            # Without write-back done itself tells: lost is no excuse for its OK.
            stored = not failed and not (lost and "write_back" in store.capabilities)
            say("stored" if stored else "lost", number)
            if stored:
                kit.expect_published(store, block)


_OPERATIONS: dict[str, Callable[[Callable[..., Store], Sequence[int]], None]] = {
    "write": _write,
    "fill": _fill,
    "refuse writes": _refuse_writes,
    "fail": _fail,
    "fail steps": _fail_steps,
}
