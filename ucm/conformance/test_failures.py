"""A shard fails alone and says why; a wrong call does nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from ucm import InvalidError, NotFoundError, Status, Store, StoreError
from ucm._abi import ffi
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for


@stands_for(Promise.ALONE)
def test_a_missing_block_fails_alone(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 5)
    missing = blocks[2]
    kit.dump(store, *(block for block in blocks if block is not missing))
    pieces = kit.pieces_of(blocks)
    rng.shuffle(pieces)
    for piece, end in zip(pieces, kit.load_pieces(store, pieces), strict=True):
        if piece.block is missing:
            assert end in kit.ABSENT
        else:
            kit.expect_end(piece, end, () if kit.loads(store) else kit.ABSENT)


@stands_for(Promise.ALONE)
def test_wait_raises_what_the_results_name(store: Store, rng: random.Random) -> None:
    here, missing = kit.new_blocks(store, rng, 2)
    kit.dump(store, here)
    if not kit.loads(store):
        return kit.expect_nothing_wrong(store, here, missing)
    transfer = kit.start_load(store, [*here.pieces(), kit.Piece(missing, 1)])
    with pytest.raises(NotFoundError, match=missing.id.hex()) as raised:
        store.wait(transfer.task)
    assert isinstance(raised.value, RuntimeError)
    assert raised.value.status == Status.NOT_FOUND
    assert "shard 1" in str(raised.value)
    statuses = [result.status for result in transfer.task.results]
    assert statuses == [Status.OK] * len(here.shards) + [Status.NOT_FOUND]
    assert transfer.task.results[-1].bytes == 0
    return None


@stands_for(Promise.ALONE)
def test_a_failed_task_raises_every_time(store: Store, rng: random.Random) -> None:
    missing = kit.new_block(store, rng)
    if "loads" not in store.capabilities:
        return kit.expect_absent(store, missing)
    transfer = kit.start_load(store, missing.pieces())
    for _ in range(3):
        with pytest.raises(NotFoundError):
            store.wait(transfer.task)
        assert store.check(transfer.task)
    return None


@stands_for(Promise.SHAPES)
@pytest.mark.parametrize(
    "sizes",
    [
        {"tensor_size_list": (1024, 512), "block_size": 4 * 1536},
        {"tensor_size_list": (512, 1536), "block_size": 4 * 2048},
        {"tensor_size_list": (1536, 512), "block_size": 2 * 2048},
        {"tensor_size_list": (3072, 1024), "block_size": 4 * 4096},
    ],
    ids=["smaller shards", "other segments", "fewer shards", "larger shards"],
)
def test_what_was_stored_in_another_shape_is_a_miss_or_incompatible(
    open_store: OpenStore, rng: random.Random, sizes: dict[str, Any]
) -> None:
    with open_store() as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    with open_store(**sizes) as store:
        twin = kit.Block(block.id, kit.new_block(store, rng).shards)
        allowed = (*kit.ABSENT, Status.INCOMPATIBLE, Status.CORRUPT)
        for end in kit.load_pieces(store, twin.pieces()):
            # Where bytes do not depend on their segments, the same ones are no mistake.
            assert end in (*allowed, *block.shards), "bytes of another shape were served"
        kit.dump(store, twin)
        ends = tuple(kit.load_pieces(store, twin.pieces()))
        right = ends in (twin.shards, block.shards) or not kit.loads(store)
        assert right, "a dump did not replace what was stored in another shape"


BLOCK = bytes(range(16))
BAD_CALLS: dict[str, Callable[[Store, list[Any]], Any]] = {
    "id of 15 bytes": lambda s, rows: s.dump([BLOCK[:15]], [0], rows),
    "id of 17 bytes": lambda s, rows: s.dump([BLOCK + b"!"], [0], rows),
    "ids in one piece": lambda s, rows: s.dump(BLOCK, [0], rows),
    "id that is text": lambda s, rows: s.dump(["a" * 16], [0], rows),
    "index past the end": lambda s, rows: s.dump([BLOCK], [4], rows),
    "index below 0": lambda s, rows: s.dump([BLOCK], [-1], rows),
    "index of 33 bits": lambda s, rows: s.dump([BLOCK], [1 << 32], rows),
    "index that is no number": lambda s, rows: s.dump([BLOCK], ["0"], rows),
    "index that is a fraction": lambda s, rows: s.dump([BLOCK], [0.5], rows),
    "more ids than rows": lambda s, rows: s.dump([BLOCK] * 2, [0, 1], rows),
    "more rows than ids": lambda s, rows: s.dump([BLOCK], [0], rows * 2),
    "fewer indexes than ids": lambda s, rows: s.dump([BLOCK], [], rows),
    "a segment too few": lambda s, rows: s.dump([BLOCK], [0], [rows[0][:1]]),
    "a segment too many": lambda s, rows: s.dump([BLOCK], [0], [rows[0] * 2]),
    "a segment too short": lambda s, rows: s.dump([BLOCK], [0], [[rows[0][0][:-1], rows[0][1]]]),
    "no memory at all": lambda s, rows: s.dump([BLOCK], [0], None),
    "a row that is a number": lambda s, rows: s.dump([BLOCK], [0], [[1, 2]]),
    "a negative address": lambda s, rows: s.dump_data([BLOCK], [0], [[-1, 2]]),
    "an address too few": lambda s, rows: s.dump_data([BLOCK], [0], [[1]]),
    "a length above the shard": lambda s, rows: s.dump_data([BLOCK], [0], [[1, 2]], [2049]),
    "a negative length": lambda s, rows: s.dump_data([BLOCK], [0], [[1, 2]], [-1]),
    "a length too many": lambda s, rows: s.dump_data([BLOCK], [0], [[1, 2]], [1, 1]),
    "load at an index past the end": lambda s, rows: s.load([BLOCK], [4], rows),
    "load into read-only memory": lambda s, rows: s.load([BLOCK], [0], [list(map(bytes, rows[0]))]),
    "lookup of a short id": lambda s, rows: s.lookup([BLOCK, b"short"]),
    "lookup of a number": lambda s, rows: s.lookup(7),
    "prefix of a short id": lambda s, rows: s.lookup_on_prefix([b""]),
    "remove of a short id": lambda s, rows: s.remove([b"short"]),
}


@stands_for(Promise.REFUSED)
@pytest.mark.parametrize("call", BAD_CALLS.values(), ids=BAD_CALLS.keys())
def test_a_wrong_call_is_refused_and_does_nothing(
    store: Store, rng: random.Random, call: Callable[[Store, list[Any]], Any]
) -> None:
    rows = [[bytearray(size) for size in kit.layout_of(store).segment_sizes]]
    before = store.stats()
    with pytest.raises(InvalidError) as raised:
        call(store, rows)
    assert isinstance(raised.value, (ValueError, StoreError))
    assert len(str(raised.value)) > 20
    assert store.stats() == before
    assert store.lookup([BLOCK]) == [False]
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_published(store, block)


# Calls for no block at all, which do nothing where the flag is overlooked.
FLAGGED = {
    "lookup": "ucm_lookup_args",
    "prefetch": "ucm_ids_args",
    "touch": "ucm_ids_args",
    "remove": "ucm_ids_args",
    "register_memory": "ucm_memory_args",
    "metrics": "ucm_metrics_args",
    "drain": "ucm_wait_args",
    "close": "ucm_wait_args",
}


@stands_for(Promise.REFUSED)
def test_flags_and_modes_of_a_later_version_are_refused(store: Store, rng: random.Random) -> None:
    handle = ffi.cast("ucm_store *", store.native_handle())
    for slot, struct in FLAGGED.items():
        call: Any = getattr(handle.ops, slot)
        if call == ffi.NULL:
            continue  # it is optional
        args = ffi.new(f"{struct} *")
        args.struct_size, args.flags = ffi.sizeof(args[0]), 1 << 63
        report = [ffi.NULL] if slot in ("drain", "close") else []
        assert call(handle, args, *report, ffi.NULL) == Status.UNSUPPORTED, slot
    lookup = ffi.new("ucm_lookup_args *")
    lookup.struct_size, lookup.mode = ffi.sizeof(lookup[0]), 3
    assert handle.ops.lookup(handle, lookup, ffi.NULL) == Status.UNSUPPORTED
    block = kit.new_block(store, rng)  # it goes on, after close too
    kit.dump(store, block)
    kit.expect_published(store, block)
