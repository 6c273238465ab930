"""Removed blocks are absent and may be dumped again."""

from __future__ import annotations

import random

import pytest

from ucm import Store, UnsupportedError
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for


def can_remove(store: Store) -> bool:
    """Tell whether the store removes; check that it says so if not."""
    if "remove" in store.capabilities:
        return True
    with pytest.raises(UnsupportedError):
        store.remove([bytes(16)])
    return False


@stands_for(Promise.REMOVE)
def test_a_removed_block_is_absent(store: Store, rng: random.Random) -> None:
    gone, stays = kit.new_blocks(store, rng, 2)
    kit.dump(store, gone, stays)
    if can_remove(store):
        store.remove([gone.id])
        kit.expect_absent(store, gone)
    kit.expect_published(store, stays)


@stands_for(Promise.REMOVE)
def test_removing_nothing_or_what_is_not_there_is_fine(store: Store, rng: random.Random) -> None:
    missing = kit.new_block(store, rng)
    if can_remove(store):
        store.remove([])
        store.remove([missing.id, missing.id])
    kit.expect_absent(store, missing)


@stands_for(Promise.REMOVE)
@pytest.mark.parametrize("drained", [False, True], ids=["at once", "after drain"])
def test_a_removed_block_does_not_come_back(
    store: Store, rng: random.Random, drained: bool
) -> None:
    blocks = kit.new_blocks(store, rng, 10)
    kit.dump(store, *blocks)
    if drained:
        store.drain(kit.WAIT_MS)
    if can_remove(store):
        store.remove(kit.ids_of(blocks))
        kit.expect_absent(store, *blocks)
        store.drain(kit.WAIT_MS)
        kit.expect_absent(store, *blocks)


@stands_for(Promise.REMOVE)
def test_a_removed_block_may_be_dumped_with_other_bytes(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    other = kit.same_name(block, rng)
    for _ in range(3):
        kit.dump(store, block)
        if not can_remove(store):
            break
        store.remove([block.id])
        kit.dump(store, other)
        kit.expect_published(store, other)
        store.remove([block.id])


@stands_for(Promise.REMOVE)
def test_removing_an_unfinished_block_forgets_its_shards(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    kit.dump_pieces(store, block.pieces()[:-1])
    if can_remove(store):
        store.remove([block.id])
        kit.dump_pieces(store, block.pieces()[-1:])
        kit.expect_absent(store, block)
    kit.dump(store, block)
    kit.expect_published(store, block)


@stands_for(Promise.REMOVE)
def test_a_removed_block_is_gone_for_the_next_store(
    open_store: OpenStore, rng: random.Random
) -> None:
    with open_store() as store:
        gone, stays = kit.new_blocks(store, rng, 2)
        kit.dump(store, gone, stays)
        removes = can_remove(store)
        if removes:
            store.remove([gone.id])
    again = open_store()
    if removes:
        kit.expect_absent(again, gone)
    if "persistent" in again.capabilities:
        kit.expect_published(again, stays)
