"""192 blocks of 32 shards, in every order: each block that is seen is whole and right."""

import concurrent.futures
import threading

import pytest

from ucm.conformance import kit

BLOCKS = 192
SIZES = {"block_size": 32 * 512, "tensor_size_list": (500, 12)}


def parts_in_order(pieces, rng):
    return [pieces]


def parts_reversed(pieces, rng):
    return [pieces[::-1]]


def parts_shuffled(pieces, rng):
    return [rng.sample(pieces, len(pieces))]


def parts_shard_by_shard(pieces, rng):
    """The first shards of all blocks, then the second ones, as layers of a model come."""
    return [[piece for piece in pieces if piece.index == index] for index in range(32)]


def parts_for_eight_threads(pieces, rng):
    shuffled = rng.sample(pieces, len(pieces))
    return [shuffled[i::8] for i in range(8)]


@pytest.mark.parametrize(
    "parts",
    [
        parts_in_order,
        parts_reversed,
        parts_shuffled,
        parts_shard_by_shard,
        parts_for_eight_threads,
    ],
)
def test_every_block_is_published_whole(open_store, rng, parts):
    with open_store(**SIZES) as store:
        blocks = kit.new_blocks(store, rng, BLOCKS)
        done = threading.Event()

        def watch():
            """Load whatever is visible, while it is written."""
            seen = 0
            while not (done.is_set() and seen):
                visible = [
                    block
                    for block, found in zip(blocks, store.lookup(kit.ids_of(blocks)), strict=True)
                    if found
                ]
                seen = len(visible)
                kit.expect_served(store, kit.pieces_of(visible[-8:]))

        with concurrent.futures.ThreadPoolExecutor(9) as pool:
            watching = pool.submit(watch)
            pieces = kit.pieces_of(blocks)
            dumps = [pool.submit(kit.dump_pieces, store, p) for p in parts(pieces, rng)]
            for dumped in dumps:
                dumped.result()
            done.set()
            watching.result()
        kit.expect_published(store, *blocks)
        report = store.drain(kit.WAIT_MS)
        assert (report.lost, report.pending, report.unfinished) == (0, 0, 0)
    with open_store(**SIZES) as store:
        kit.expect_published(store, *blocks)
