"""Open, drain, close, open again; fork."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import warnings

import pytest

from ucm import (
    ClosedError,
    InvalidError,
    Report,
    Status,
    Store,
    StoreError,
    StoreTimeout,
    UnsupportedError,
)
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for


@stands_for(Promise.OPENS)
def test_a_store_says_what_it_is(store: Store) -> None:
    assert len(store.layers) == len(set(store.layers)) >= 1
    assert store.capabilities <= {
        "keeps", "loads", "persistent", "verifies", "write_back", "remove", "cancel", "events",
    }  # fmt: skip
    if "persistent" in store.capabilities:
        assert kit.loads(store)


def expect_report(store: Store, report: Report, stored: int, unfinished: int = 0) -> None:
    """Check a report after dumps that went well. Only a store that persists must have stored."""
    assert (report.lost, report.pending) == (0, 0)
    counts = (report.stored, report.unfinished)
    assert counts == (stored, unfinished) or (
        "persistent" not in store.capabilities and counts in [(stored, 0), (0, 0)]
    )


@stands_for(Promise.REPORTS)
def test_drain_reports_what_was_stored_since_the_last_report(
    store: Store, rng: random.Random
) -> None:
    assert store.drain() == Report(0, 0, 0, 0)
    kit.dump(store, *kit.new_blocks(store, rng, 5))
    expect_report(store, store.drain(kit.WAIT_MS), stored=20)
    assert store.drain() == Report(0, 0, 0, 0)
    kit.dump(store, *kit.new_blocks(store, rng, 1))
    expect_report(store, store.drain(kit.WAIT_MS), stored=4)


@stands_for(Promise.REPORTS)
def test_drain_counts_shards_of_unfinished_blocks(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    kit.dump_pieces(store, block.pieces()[1:])
    expect_report(store, store.drain(kit.WAIT_MS), stored=3, unfinished=3)
    kit.dump_pieces(store, block.pieces()[:1])
    expect_report(store, store.drain(kit.WAIT_MS), stored=1)


@stands_for(Promise.REPORTS)
def test_close_counts_shards_of_blocks_that_stay_unfinished(
    store: Store, rng: random.Random
) -> None:
    drained, other = kit.new_blocks(store, rng, 2)
    kit.dump_pieces(store, drained.pieces()[1:])
    said = store.drain(kit.WAIT_MS)
    expect_report(store, said, stored=3, unfinished=3)
    more = 0
    if "write_back" not in store.capabilities:  # which may lose what it has not stored yet
        more = len(kit.dump_pieces(store, other.pieces()[2:]).pieces)
    report = store.close(kit.WAIT_MS)
    assert report.pending == 0
    if said.unfinished:  # else they are kept by a layer, which loses them now
        counted = (report.stored, report.lost, report.unfinished)
        assert counted == (more, 0, 3 + more), "close does not count what is unfinished as drain"


@stands_for(Promise.CLOSES)
def test_close_finishes_what_was_accepted(open_store: OpenStore, rng: random.Random) -> None:
    store = open_store(block_size=4 << 18, shard_size=1 << 18)
    blocks = kit.new_blocks(store, rng, 8)
    transfers = [kit.start_dump(store, block.pieces()) for block in blocks]
    report = store.close(kit.WAIT_MS)
    for transfer in transfers:
        assert transfer.task.done()
        assert [result.status for result in transfer.task.results] == [Status.OK] * 4
    expect_report(store, report, stored=32)
    again = open_store(block_size=4 << 18, shard_size=1 << 18)
    if "persistent" in again.capabilities:
        kit.expect_published(again, *blocks)
    else:
        kit.expect_nothing_wrong(again, *blocks)


@stands_for(Promise.CLOSES)
def test_a_close_that_times_out_may_be_called_again(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=4 << 18, shard_size=1 << 18)
    blocks = kit.new_blocks(store, rng, 8)
    transfers = [kit.start_dump(store, block.pieces()) for block in blocks]
    with contextlib.suppress(StoreTimeout):
        store.close(0)
    with pytest.raises(ClosedError):
        store.lookup(kit.ids_of(blocks))
    store.close(kit.WAIT_MS)
    for transfer in transfers:
        assert [result.status for result in transfer.task.results] == [Status.OK] * 4


@stands_for(Promise.CLOSES)
def test_calls_of_other_threads_are_refused_from_close_on(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 4)
    kit.dump(store, *blocks)

    def work() -> None:
        with contextlib.suppress(ClosedError):
            while True:
                store.lookup(kit.ids_of(blocks))
                kit.expect_served(store, blocks[0].pieces())

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        works = [pool.submit(work) for _ in range(4)]
        store.close(kit.WAIT_MS)
        for worked in works:
            worked.result()


@stands_for(Promise.CLOSES)
def test_loads_in_flight_are_served_when_the_store_closes(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 16)
    kit.dump(store, *blocks)
    if not kit.loads(store):
        return kit.expect_nothing_wrong(store, *blocks)
    pieces = kit.pieces_of(blocks)
    transfer = kit.start_load(store, pieces)
    store.close(kit.WAIT_MS)
    assert transfer.task.done()
    for row, result, piece in zip(transfer.rows, transfer.task.results, pieces, strict=True):
        assert result.status == Status.OK
        kit.expect_end(piece, row.read(result.bytes))
    return None


@stands_for(Promise.CLOSES)
def test_a_closed_store_refuses_everything(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    store.close()
    for call in (
        lambda: store.lookup([block.id]),
        lambda: store.lookup_on_prefix([block.id]),
        lambda: store.lookup_on_reverse([block.id]),
        lambda: store.prefetch([block.id]),
        lambda: store.remove([block.id]),
        lambda: kit.start_dump(store, block.pieces()),
        lambda: kit.start_load(store, block.pieces()),
        store.drain,
        store.stats,
    ):
        with pytest.raises(ClosedError):
            call()
    assert store.close() == Report(0, 0, 0, 0)


@stands_for(Promise.CLOSES)
def test_a_task_outlives_its_store(store: Store, rng: random.Random) -> None:
    transfer = kit.start_dump(store, kit.new_block(store, rng).pieces())
    store.close()
    store.wait(transfer.task)
    assert store.check(transfer.task)


@stands_for(Promise.CLOSES)
def test_a_store_is_a_context_manager(open_store: OpenStore, rng: random.Random) -> None:
    with open_store() as store:
        kit.dump(store, kit.new_block(store, rng))
    with pytest.raises(ClosedError):
        store.lookup([bytes(16)])


@stands_for(Promise.NEXT)
def test_what_persists_is_found_by_the_next_store(
    open_store: OpenStore, rng: random.Random
) -> None:
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 10)
        half = kit.new_block(store, rng)
        kit.dump_pieces(store, half.pieces()[1:])
        kit.dump(store, *blocks)
    again = open_store()
    kit.expect_absent(again, half)
    if "persistent" in again.capabilities:
        kit.expect_published(again, *blocks)
        ids = kit.ids_of([*blocks, half])
        assert again.lookup_on_prefix(ids) == again.lookup_on_reverse(ids) == 9
    else:
        kit.expect_nothing_wrong(again, *blocks)
    kit.dump(again, half)
    kit.expect_published(again, half)


@stands_for(Promise.NEXT)
def test_what_is_drained_is_seen_by_another_open_store(
    open_store: OpenStore, rng: random.Random
) -> None:
    one, other = open_store(), open_store()
    blocks = kit.new_blocks(one, rng, 5)
    kit.dump(one, *blocks)
    one.drain(kit.WAIT_MS)
    if "persistent" not in one.capabilities:
        return kit.expect_nothing_wrong(other, *blocks)
    while not all(other.lookup(kit.ids_of(blocks))):
        os.sched_yield()
    kit.expect_published(other, *blocks)
    return None


@stands_for(Promise.NEXT)
def test_two_stores_that_dump_the_same_block_agree(
    open_store: OpenStore, rng: random.Random
) -> None:
    one, other = open_store(), open_store()
    if "persistent" not in one.capabilities:
        kit.expect_nothing_wrong(other, kit.new_block(one, rng))
        return
    blocks = kit.new_blocks(one, rng, 10)
    twins = [kit.same_name(block, rng) for block in blocks]
    both = [kit.start_dump(one, kit.pieces_of(blocks)), kit.start_dump(other, kit.pieces_of(twins))]
    one.wait(both[0].task)
    other.wait(both[1].task)
    one.close(kit.WAIT_MS)
    other.close(kit.WAIT_MS)
    with open_store() as late:
        for block, twin in zip(blocks, twins, strict=True):
            ends = tuple(kit.load_pieces(late, block.pieces()))
            assert ends in (block.shards, twin.shards)


@stands_for(Promise.OPENS)
def test_a_store_for_lookup_only_needs_no_sizes(open_store: OpenStore, rng: random.Random) -> None:
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 3)
        missing = kit.new_block(store, rng)
        kit.dump(store, *blocks)
        store.drain(kit.WAIT_MS)
    looking = open_store(device_id=-1, block_size=0)
    assert looking.layout is None
    found = looking.lookup(kit.ids_of([*blocks, missing]))
    assert found[3] is False
    if "persistent" in looking.capabilities:
        assert found == [True, True, True, False]
        assert looking.lookup_on_prefix(kit.ids_of([*blocks, missing])) == 2
        assert looking.lookup_on_reverse(kit.ids_of([*blocks, missing])) == 2
    rows = [[bytearray(1536), bytearray(512)]]
    for transfer in (looking.dump, looking.load):
        with pytest.raises(UnsupportedError):
            transfer([blocks[0].id], [0], rows)
    assert looking.drain() == Report(0, 0, 0, 0)


def in_child(store: Store, block: kit.Block) -> int:
    """Try to use the parent's store; 0 if every call was refused."""
    refused = 0
    calls = (
        lambda: store.lookup([block.id]),
        lambda: store.prefetch([block.id]),
        lambda: store.drain(),
        lambda: store.stats(),
        lambda: kit.start_dump(store, block.pieces()),
        lambda: kit.start_load(store, block.pieces()),
    )
    for call in calls:
        try:
            call()
        except InvalidError:
            refused += 1
    store.close()
    return len(calls) - refused


@stands_for(Promise.FORKS)
def test_a_forked_child_is_refused_and_the_parent_goes_on(store: Store, rng: random.Random) -> None:
    before, during, after = kit.new_blocks(store, rng, 3)
    kit.dump(store, before)
    running = kit.start_dump(store, during.pieces())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        code = 99
        try:
            code = in_child(store, before)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    store.wait(running.task)
    kit.dump(store, after)
    kit.expect_published(store, before, during, after)


@stands_for(Promise.OPENS)
def test_opening_without_sizes_is_refused(open_store: OpenStore) -> None:
    with pytest.raises(StoreError, match="block_size"):
        open_store(block_size=0)
