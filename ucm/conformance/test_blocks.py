"""A block is published when all of its shards are stored, never before; the first copy wins."""

from __future__ import annotations

import random

import pytest

from ucm import Status, Store
from ucm.conformance import kit
from ucm.conformance.fixtures import SHARDS
from ucm.conformance.promises import Promise, stands_for

ORDERS = {
    "highest first": [3, 0, 1, 2],
    "highest last": [0, 1, 2, 3],
    "reversed": [3, 2, 1, 0],
    "odd ones first": [1, 3, 2, 0],
}


@stands_for(Promise.WHOLE)
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_a_block_appears_with_its_last_missing_shard(
    store: Store, rng: random.Random, order: list[int]
) -> None:
    block = kit.new_block(store, rng)
    for index in order:
        kit.expect_absent(store, block)
        kit.dump_pieces(store, [kit.Piece(block, index)])
    kit.expect_published(store, block)


@stands_for(Promise.WHOLE)
@pytest.mark.parametrize("missing", [0, 1, SHARDS - 1])
def test_a_block_that_misses_one_shard_is_invisible(
    store: Store, rng: random.Random, missing: int
) -> None:
    half, whole = kit.new_blocks(store, rng, 2)
    pieces = [piece for piece in half.pieces() if piece.index != missing] + whole.pieces()
    rng.shuffle(pieces)
    kit.dump_pieces(store, pieces)
    kit.expect_absent(store, half)
    store.drain(kit.WAIT_MS)
    kit.expect_absent(store, half)
    kit.expect_published(store, whole)
    kit.dump_pieces(store, [kit.Piece(half, missing)])
    kit.expect_published(store, half)


@stands_for(Promise.WHOLE)
def test_the_same_shard_again_and_again_completes_nothing(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    kit.dump_pieces(store, [kit.Piece(block, SHARDS - 1)] * SHARDS)
    for _ in range(SHARDS):
        kit.dump_pieces(store, [kit.Piece(block, SHARDS - 1)])
    kit.expect_absent(store, block)


@stands_for(Promise.FIRST)
def test_of_duplicates_in_one_dump_the_first_wins(store: Store, rng: random.Random) -> None:
    first = kit.new_block(store, rng)
    second = kit.same_name(first, rng)
    transfer = kit.dump_pieces(store, [*first.pieces(), *second.pieces()])
    assert {result.status for result in transfer.task.results} == {Status.OK}
    kit.expect_published(store, first)


@stands_for(Promise.FIRST)
def test_of_two_copies_of_a_shard_the_first_wins(store: Store, rng: random.Random) -> None:
    first = kit.new_block(store, rng)
    second = kit.same_name(first, rng)
    kit.dump_pieces(store, first.pieces()[: SHARDS // 2])
    kit.dump(store, second)
    mixed = kit.Block(first.id, first.shards[: SHARDS // 2] + second.shards[SHARDS // 2 :])
    kit.expect_published(store, mixed)


@stands_for(Promise.FIRST)
def test_of_two_copies_of_a_block_the_first_wins(store: Store, rng: random.Random) -> None:
    first = kit.new_block(store, rng)
    kit.dump(store, first)
    kit.dump(store, kit.same_name(first, rng))
    kit.dump(store, kit.Block(first.id, (b"short",) * SHARDS))
    if kit.keeps(store):
        kit.expect_published(store, first)
        store.drain(kit.WAIT_MS)
        kit.expect_published(store, first)


@stands_for(Promise.FIRST)
def test_many_copies_at_once_make_one_block(store: Store, rng: random.Random) -> None:
    first = kit.new_block(store, rng)
    for transfer in [kit.start_dump(store, first.pieces()) for _ in range(20)]:
        store.wait(transfer.task)
    kit.expect_published(store, first)


@stands_for(Promise.WHOLE)
def test_whoever_dumps_the_last_shard_learns_that_the_block_is_published(
    store: Store, rng: random.Random
) -> None:
    block = kit.new_block(store, rng)
    early = kit.dump_pieces(store, block.pieces()[:-1])
    assert not any(result.published for result in early.task.results)
    last = kit.dump_pieces(store, block.pieces()[-1:])
    again = kit.dump(store, block)
    if kit.keeps(store) and kit.is_native(store):
        assert last.task.results[0].published
        assert all(result.published for result in again.task.results)
