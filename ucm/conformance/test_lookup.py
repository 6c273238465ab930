"""Lookup finds what is published, and nothing else."""

from __future__ import annotations

import random

import pytest

from ucm import Store
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for


def expect_found(store: Store, blocks: list[kit.Block], dumped: set[int]) -> None:
    ids = kit.ids_of(blocks)
    found = store.lookup(ids)
    prefix, last = store.lookup_on_prefix(ids), store.lookup_on_reverse(ids)
    tiers = store.tiers(ids)
    if kit.keeps(store):
        # Sets of numbers: pytest's comparison of long lists takes minutes where CI is set.
        assert not {i for i, present in enumerate(found) if present != (i in dumped)}
        assert prefix == next((i for i in range(len(blocks)) if i not in dumped), len(blocks)) - 1
        assert last == max(dumped, default=-1)
        assert not {i for i, tier in enumerate(tiers) if (tier > 0) != found[i]}
    assert len(found) == len(tiers) == len(blocks)
    assert {i for i, present in enumerate(found) if present} <= dumped
    assert prefix == -1 or set(range(prefix + 1)) <= dumped
    assert last == -1 or last in dumped
    assert all(0 <= tier <= len(store.layers) for tier in tiers)


@stands_for(Promise.LOOKUP)
def test_a_new_store_has_no_block(store: Store, rng: random.Random) -> None:
    expect_found(store, kit.new_blocks(store, rng, 5), set())


@stands_for(Promise.LOOKUP)
def test_lookup_of_no_ids_finds_nothing(store: Store) -> None:
    assert store.lookup([]) == []
    assert store.tiers([]) == []
    assert store.lookup_on_prefix([]) == -1
    assert store.lookup_on_reverse([]) == -1


@stands_for(Promise.LOOKUP)
@pytest.mark.parametrize(
    "dumped",
    [{0, 1, 2, 3, 4}, {0}, {4}, {0, 1, 2}, {2, 3}, {0, 1, 3}, {1, 3}],
    ids=["all", "first", "last", "prefix", "middle", "prefix and gap", "gaps"],
)
def test_lookup_finds_exactly_the_blocks_that_were_dumped(
    store: Store, rng: random.Random, dumped: set[int]
) -> None:
    blocks = kit.new_blocks(store, rng, 5)
    kit.dump(store, *(blocks[i] for i in sorted(dumped)))
    expect_found(store, blocks, dumped)


@stands_for(Promise.LOOKUP)
def test_an_id_asked_twice_is_answered_twice(store: Store, rng: random.Random) -> None:
    here, missing = kit.new_blocks(store, rng, 2)
    kit.dump(store, here)
    expect_found(store, [here, here, missing, here], {0, 1, 3})


@stands_for(Promise.LOOKUP)
def test_ids_that_differ_in_one_bit_are_different_blocks(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    others = []
    for bit in range(128):
        name = bytearray(block.id)
        name[bit // 8] ^= 1 << bit % 8
        others.append(kit.Block(bytes(name), block.shards))
    kit.dump(store, block)
    expect_found(store, [block, *others], {0})


@stands_for(Promise.LOOKUP)
@pytest.mark.parametrize("name", [bytes(16), b"\xff" * 16, b"/../../etc/pass\n", b"\0" * 15 + b"1"])
def test_any_16_bytes_are_an_id(store: Store, rng: random.Random, name: bytes) -> None:
    block = kit.Block(name, kit.new_block(store, rng).shards)
    kit.expect_absent(store, block)
    kit.dump(store, block)
    kit.expect_published(store, block)


@stands_for(Promise.LOOKUP)
def test_ids_may_be_an_array_of_rows(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 3)
    kit.dump(store, *blocks[:2])
    rows = memoryview(b"".join(kit.ids_of(blocks))).cast("B", (3, 16))
    found = store.lookup(rows)
    assert found == ([True, True, False] if kit.keeps(store) else found)
    assert not found[2]
    assert store.lookup_on_prefix(rows) == (1 if kit.keeps(store) else -1) or not kit.keeps(store)


@stands_for(Promise.LOOKUP)
def test_a_thousand_blocks_are_looked_up_in_one_call(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=64)
    blocks = kit.new_blocks(store, rng, 1000)
    dumped = set(rng.sample(range(1000), 100))
    kit.dump(store, *(blocks[i] for i in sorted(dumped)))
    expect_found(store, blocks, dumped)


@stands_for(Promise.LOOKUP)
def test_prefetch_is_a_hint_that_changes_no_answer(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 4)
    kit.dump(store, *blocks[:3])
    store.prefetch([])
    store.prefetch(kit.ids_of(blocks))
    expect_found(store, blocks, {0, 1, 2})
    kit.expect_published(store, *blocks[:3])
