"""What is loaded is, bit for bit, what was dumped."""

from __future__ import annotations

import array
import concurrent.futures
import random

import pytest

from ucm import Store
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for
from ucm.options import DTYPES

SEGMENTS = {
    "1 segment": (4096,),
    "1 odd segment": (5003,),
    "2 unequal segments": (4096, 1024),
    "3 unequal odd segments": (1, 4097, 700),
}


@stands_for(Promise.BYTES)
@pytest.mark.parametrize("shards", [1, 64], ids=["1 shard", "64 shards"])
@pytest.mark.parametrize("sizes", SEGMENTS.values(), ids=SEGMENTS.keys())
def test_round_trip(
    open_store: OpenStore, rng: random.Random, sizes: tuple[int, ...], shards: int
) -> None:
    store = open_store(block_size=shards * sum(sizes), tensor_size_list=sizes)
    blocks = kit.new_blocks(store, rng, 3)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)


@stands_for(Promise.SEGMENTS)
@pytest.mark.parametrize("sizes", [(512,) * 8, (100, 4000, 7)], ids=["equal", "unequal"])
def test_the_segments_of_a_shard_keep_their_order(
    open_store: OpenStore, rng: random.Random, sizes: tuple[int, ...]
) -> None:
    store = open_store(block_size=2 * sum(sizes), tensor_size_list=sizes)
    shard = b"".join(bytes([65 + k]) * size for k, size in enumerate(sizes))
    block = kit.Block(rng.randbytes(16), (shard, shard[: -sizes[-1] // 2]))
    kit.dump(store, block)
    kit.expect_published(store, block)


@stands_for(Promise.BYTES)
@pytest.mark.parametrize("size", [1, 15, 16, 512, 4095, 4097, 65536, 1048577])
def test_round_trip_of_a_block_of_any_size(
    open_store: OpenStore, rng: random.Random, size: int
) -> None:
    store = open_store(block_size=size)
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_published(store, block)


@stands_for(Promise.MEMORY)
@pytest.mark.parametrize("shift", [1, 8, 513])
def test_memory_need_not_be_aligned(store: Store, rng: random.Random, shift: int) -> None:
    blocks = kit.new_blocks(store, rng, 2)
    kit.dump_pieces(store, kit.pieces_of(blocks), shift)
    kit.expect_served(store, kit.pieces_of(blocks), shift + 2)


def patterns(size: int, rng: random.Random) -> dict[str, bytes]:
    """Return bytes that codecs treat differently; numbers of every width among them."""
    count = size // 4 + 1
    floats = array.array("f", (rng.gauss(0, 1) for _ in range(count)))
    special = (float("nan"), float("inf"), -0.0, 1e-45)
    floats[: len(special)] = array.array("f", special)
    wide = floats.tobytes()
    halves = b"".join(wide[i + 2 : i + 4] for i in range(0, len(wide), 4)) * 2
    return {
        "random": rng.randbytes(size),
        "zeros": bytes(size),
        "ones": b"\xff" * size,
        "period 3": (b"abc" * size)[:size],
        "fp32 numbers": wide[:size],
        "bf16 numbers": halves[:size],
        "one bit set": bytes(size - 1) + b"\x80",
        "random, then zeros": rng.randbytes(size // 2) + bytes(size - size // 2),
    }


@stands_for(Promise.BYTES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sizes", [(65536, 65536), (4099,)], ids=["even", "odd"])
def test_every_dtype_takes_arbitrary_bytes(
    open_store: OpenStore, rng: random.Random, dtype: str, sizes: tuple[int, ...]
) -> None:
    data = list(patterns(sum(sizes), rng).values())
    store = open_store(dtype=dtype, tensor_size_list=sizes, block_size=len(data) * sum(sizes))
    block = kit.Block(rng.randbytes(16), tuple(data))
    kit.dump(store, block)
    kit.expect_published(store, block)


@stands_for(Promise.MEMORY)
def test_objects_with_a_buffer_are_rows_as_well(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    first, second = kit.layout_of(store).segment_sizes
    rows = [[shard[:first], bytearray(shard[first:])] for shard in block.shards]
    indexes = array.array("i", range(len(rows)))
    store.wait(store.dump([block.id] * len(rows), indexes, rows))
    kit.expect_published(store, block)
    if kit.loads(store):
        memory = [[bytearray(first), array.array("B", bytes(second))] for _ in rows]
        store.wait(store.load([block.id] * len(rows), indexes, memory))
        assert tuple(bytes(a) + bytes(b) for a, b in memory) == block.shards


@stands_for(Promise.BYTES)
def test_shards_move_in_any_order_over_several_tasks(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 6)
    pieces = kit.pieces_of(blocks)
    rng.shuffle(pieces)
    parts = [pieces[i::5] for i in range(5)]
    for transfer in [kit.start_dump(store, part) for part in parts]:
        store.wait(transfer.task)
    kit.expect_published(store, *blocks)
    rng.shuffle(pieces)
    kit.expect_served(store, pieces)


@stands_for(Promise.THREADS)
def test_shards_of_one_block_come_from_several_threads(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=64 * 100, shard_size=100)
    blocks = kit.new_blocks(store, rng, 4)
    pieces = kit.pieces_of(blocks)
    rng.shuffle(pieces)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for dumped in [pool.submit(kit.dump_pieces, store, pieces[i::8]) for i in range(8)]:
            dumped.result()
    kit.expect_published(store, *blocks)


@stands_for(Promise.BYTES)
@pytest.mark.parametrize("index", [0, 1, 3])
def test_one_shard_of_a_block_can_be_loaded_alone(
    store: Store, rng: random.Random, index: int
) -> None:
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_served(store, [kit.Piece(block, index)])


@stands_for(Promise.BYTES)
def test_a_shard_may_be_loaded_twice_in_one_task(store: Store, rng: random.Random) -> None:
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_served(store, [*block.pieces(), *block.pieces()])


@stands_for(Promise.LENGTHS)
def test_shorter_shards_come_back_with_their_length(
    open_store: OpenStore, rng: random.Random
) -> None:
    store = open_store(block_size=8 * 5000, tensor_size_list=(3000, 2000))
    lengths = [5000, 4999, 4096, 3001, 3000, 2999, 1, 0]
    blocks = [kit.new_block(store, rng, rng.sample(lengths, len(lengths))) for _ in range(3)]
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)


@stands_for(Promise.BYTES)
def test_a_transfer_of_nothing_is_fine(store: Store) -> None:
    dumped = store.dump([], [], [])
    store.wait(dumped)
    assert store.check(dumped)
    assert list(dumped.results) == []
    if kit.loads(store):
        store.wait(store.load([], [], []))
        store.wait(store.load_data([], [], []))


@stands_for(Promise.MEMORY)
def test_the_source_may_be_reused_as_soon_as_the_dump_is_done(
    store: Store, rng: random.Random
) -> None:
    block = kit.new_block(store, rng)
    transfer = kit.dump(store, block)
    for row in transfer.rows:
        for segment in row.segments:
            segment[:] = bytes(len(segment))
    kit.expect_published(store, block)
    store.drain(kit.WAIT_MS)
    kit.expect_published(store, block)
