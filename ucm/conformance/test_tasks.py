"""Tasks: wait, check, timeouts, cancel, many at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random

import pytest

from ucm import Status, Store, StoreTimeout, UnsupportedError
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for


@stands_for(Promise.WAIT)
def test_wait_may_be_repeated(store: Store, rng: random.Random) -> None:
    transfer = kit.start_dump(store, kit.new_block(store, rng).pieces())
    for _ in range(3):
        store.wait(transfer.task)
        assert store.check(transfer.task)
    assert [result.status for result in transfer.task.results] == [Status.OK] * 4


@stands_for(Promise.WAIT)
def test_check_comes_true_without_wait(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    transfer = kit.start_dump(store, block.pieces())
    while not store.check(transfer.task):
        os.sched_yield()
    assert {result.status for result in transfer.task.results} == {Status.OK}
    kit.expect_published(store, block)


@stands_for(Promise.WAIT)
def test_a_wait_that_times_out_does_not_lose_the_task(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=4 << 20, shard_size=1 << 20)
    blocks = kit.new_blocks(store, rng, 4)
    transfer = kit.start_dump(store, kit.pieces_of(blocks))
    with contextlib.suppress(StoreTimeout):
        store.wait(transfer.task, 0)
    store.wait(transfer.task)
    kit.expect_published(store, *blocks)


@stands_for(Promise.WAIT)
def test_a_drain_that_times_out_loses_nothing(open_store: OpenStore, rng: random.Random) -> None:
    store = open_store(block_size=4 << 20, shard_size=1 << 20)
    blocks = kit.new_blocks(store, rng, 4)
    transfer = kit.start_dump(store, kit.pieces_of(blocks))
    with contextlib.suppress(StoreTimeout):
        store.drain(0)
    store.wait(transfer.task, kit.WAIT_MS)
    report = store.drain(kit.WAIT_MS)
    assert (report.lost, report.pending, report.unfinished) == (0, 0, 0)
    kit.expect_published(store, *blocks)


@stands_for(Promise.THREADS)
def test_one_task_may_be_waited_for_by_several_threads(store: Store, rng: random.Random) -> None:
    transfer = kit.start_dump(store, kit.pieces_of(kit.new_blocks(store, rng, 20)))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for waited in [pool.submit(store.wait, transfer.task) for _ in range(4)]:
            waited.result()


@stands_for(Promise.ENDS)
def test_a_task_that_nobody_keeps_runs_to_its_end(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 20)
    segments = kit.layout_of(store).segment_sizes
    for block in blocks:
        rows = [[shard[: segments[0]], shard[segments[0] :]] for shard in block.shards]
        store.dump([block.id] * len(rows), range(len(rows)), rows)
    store.drain(kit.WAIT_MS)
    kit.expect_published(store, *blocks)


@stands_for(Promise.ROOM)
def test_more_work_than_any_queue_holds_is_accepted_bit_by_bit(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=64 * 16, shard_size=16)
    blocks = kit.new_blocks(store, rng, 16)
    pieces = kit.pieces_of(blocks)
    dumps = [kit.start_dump(store, blocks[i % 16].pieces()) for i in range(200)]
    for transfer in dumps:
        store.wait(transfer.task, kit.WAIT_MS)
    if kit.loads(store):
        for transfer in [kit.start_load(store, pieces) for _ in range(20)]:
            kit.expect_ends(pieces, kit.ends_of_load(store, transfer))
    kit.expect_published(store, *blocks)


@stands_for(Promise.CANCEL)
def test_cancel_ends_every_shard_as_done_or_cancelled(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=4 << 16, shard_size=1 << 16)
    blocks = kit.new_blocks(store, rng, 16)
    transfer = kit.start_dump(store, kit.pieces_of(blocks))
    if "cancel" not in store.capabilities:
        with pytest.raises(UnsupportedError):
            store.cancel(transfer.task)
        store.wait(transfer.task)
        return
    store.cancel(transfer.task)
    kit.finish(store, transfer)
    ends = {result.status for result in transfer.task.results}
    assert ends <= {Status.OK, Status.CANCELLED}
    store.cancel(transfer.task)
    cancelled = {
        piece.block.id
        for piece, result in zip(transfer.pieces, transfer.task.results, strict=True)
        if result.status == Status.CANCELLED
    }
    for block in blocks:
        if block.id in cancelled:
            kit.expect_absent(store, block)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)


@stands_for(Promise.CANCEL)
def test_a_cancelled_load_serves_right_bytes_or_none(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=4 << 16, shard_size=1 << 16)
    blocks = kit.new_blocks(store, rng, 16)
    pieces = kit.pieces_of(blocks)
    kit.dump(store, *blocks)
    if kit.loads(store) and "cancel" in store.capabilities:
        transfer = kit.start_load(store, pieces)
        store.cancel(transfer.task)
        for piece, end in zip(pieces, kit.ends_of_load(store, transfer), strict=True):
            assert end in (piece.data, Status.CANCELLED)
    kit.expect_published(store, *blocks)


@stands_for(Promise.THREADS)
def test_eight_threads_share_one_store(store: Store) -> None:
    def work(seed: int) -> None:
        rng = random.Random(seed)
        kept: list[kit.Block] = []
        for _ in range(10):
            fresh = kit.new_blocks(store, rng, 2)
            kit.expect_absent(store, fresh[1])
            kit.dump(store, *fresh)
            kept += fresh
            kit.expect_published(store, *rng.sample(kept, 2))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for worked in [pool.submit(work, seed) for seed in range(8)]:
            worked.result()


@stands_for(Promise.THREADS)
def test_eight_threads_that_dump_and_load_the_same_blocks(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 8)

    def work(seed: int) -> None:
        mine = random.Random(seed).sample(blocks, len(blocks))
        for block in mine:
            kit.expect_nothing_wrong(store, block)
            kit.dump(store, block)
            kit.expect_published(store, block)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for worked in [pool.submit(work, seed) for seed in range(8)]:
            worked.result()


@stands_for(Promise.THREADS)
def test_threads_that_dump_load_look_up_remove_and_drain(store: Store, rng: random.Random) -> None:
    stays = kit.new_blocks(store, rng, 4)
    kit.dump(store, *stays)
    removes = "remove" in store.capabilities

    def move(seed: int) -> None:
        mine = kit.new_blocks(store, random.Random(seed), 8)
        for block in mine:
            kit.dump(store, block)
            kit.expect_published(store, block, *stays)
            if removes:
                store.remove([block.id])
                kit.expect_absent(store, block)

    def look() -> None:
        for _ in range(20):
            assert all(store.lookup(kit.ids_of(stays))) or not kit.keeps(store)
            assert store.drain(kit.WAIT_MS).lost == 0

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        works = [pool.submit(move, seed) for seed in range(4)] + [pool.submit(look)] * 2
        for worked in works:
            worked.result()
    kit.expect_published(store, *stays)


@stands_for(Promise.THREADS)
def test_two_stores_of_one_process_do_not_disturb_each_other(
    open_store: OpenStore, rng: random.Random
) -> None:
    one, other = open_store(), open_store()

    def work(store: Store, seed: int) -> None:
        blocks = kit.new_blocks(store, random.Random(seed), 10)
        for block in blocks:
            kit.dump(store, block)
        kit.expect_published(store, *blocks)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for worked in [pool.submit(work, store, k) for k, store in enumerate((one, other))]:
            worked.result()
    one.close(kit.WAIT_MS)
    work(other, rng.randrange(2, 1 << 30))


def resources() -> tuple[int, int]:
    """Count this process's descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@stands_for(Promise.ROOM)
def test_two_thousand_tasks_leave_nothing_behind(open_store: OpenStore, rng: random.Random) -> None:
    store = open_store(block_size=64)
    before = (0, 0)
    blocks = kit.new_blocks(store, rng, 250)
    for i in range(1000):
        block = blocks[i % len(blocks)]
        kit.dump(store, block)
        kit.expect_served(store, block.pieces())
        if i == 100:
            before = resources()
    store.drain(kit.WAIT_MS)
    fds, threads = resources()
    # A few may be open for the moment; one a task may not.
    assert fds <= before[0] + 16
    assert threads <= before[1] + 16
