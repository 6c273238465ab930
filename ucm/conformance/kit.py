"""Blocks of random bytes, and what a store owes for them."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pytest

from ucm import Layout, Status, Store, StoreError, StoreTimeout, Task, UnsupportedError

USUAL_WAIT_MS = 120000
WAIT_MS = USUAL_WAIT_MS  # --ucm-timeout sets it
GUARD = 64  # bytes around every segment that a load must leave alone
_GUARD_BYTE = 0xA5


@dataclasses.dataclass(frozen=True)
class Block:
    """A name and the bytes of each shard, which may be shorter than the layout allows."""

    id: bytes
    shards: tuple[bytes, ...]

    def pieces(self) -> list[Piece]:
        """Return every shard, by index."""
        return [Piece(self, i) for i in range(len(self.shards))]


@dataclasses.dataclass(frozen=True)
class Piece:
    """One shard of a block."""

    block: Block
    index: int

    @property
    def data(self) -> bytes:
        return self.block.shards[self.index]


def layout_of(store: Store) -> Layout:
    """Return the layout of a store that was not opened for lookup only."""
    assert store.layout is not None
    return store.layout


def new_block(store: Store, rng: random.Random, lengths: Sequence[int] | None = None) -> Block:
    """Make a block of random bytes under a random id."""
    layout = layout_of(store)
    if lengths is None:
        lengths = [layout.shard_size] * layout.shards_per_block
    return Block(rng.randbytes(16), tuple(rng.randbytes(n) for n in lengths))


def new_blocks(store: Store, rng: random.Random, n: int) -> list[Block]:
    """Make n blocks."""
    return [new_block(store, rng) for _ in range(n)]


def same_name(block: Block, rng: random.Random) -> Block:
    """Make a block of other bytes under the same id."""
    return Block(block.id, tuple(rng.randbytes(len(shard)) for shard in block.shards))


def pieces_of(blocks: Iterable[Block]) -> list[Piece]:
    """Return every shard of every block."""
    return [piece for block in blocks for piece in block.pieces()]


def ids_of(blocks: Iterable[Block]) -> list[bytes]:
    """Return the names."""
    return [block.id for block in blocks]


class Row:
    """Memory of one shard: its segments, ``shift`` bytes past an even address, inside guards."""

    def __init__(self, sizes: Sequence[int], data: bytes = b"", shift: int = 0) -> None:
        self._guarded = []
        self.segments: list[memoryview] = []
        for size in sizes:
            memory = bytearray([_GUARD_BYTE]) * (size + 2 * GUARD + shift)
            start = GUARD + shift
            part, data = data[:size], data[size:]
            memory[start : start + len(part)] = part
            self._guarded.append((memory, start, size))
            self.segments.append(memoryview(memory)[start : start + size])

    def addresses(self) -> list[int]:
        """Return where the segments are."""
        return [
            ctypes.addressof(ctypes.c_char.from_buffer(memory)) + start
            for memory, start, _ in self._guarded
        ]

    def read(self, length: int) -> bytes:
        """Return the first bytes, counted across the segments; the guards must be untouched."""
        for memory, start, size in self._guarded:
            around = memory[:start] + memory[start + size :]
            assert set(around) == {_GUARD_BYTE}, "written outside of the segment"
        return b"".join(self.segments)[:length]


class Transfer(NamedTuple):
    """A started dump or load, and the memory that it uses."""

    task: Task
    pieces: list[Piece]
    rows: list[Row]


def rows_for(store: Store, pieces: Sequence[Piece], shift: int = 0, full: bool = True) -> list[Row]:
    """Make memory for shards, with their bytes in it or without."""
    sizes = layout_of(store).segment_sizes
    return [Row(sizes, piece.data if full else b"", shift) for piece in pieces]


def start_dump(
    store: Store, pieces: Sequence[Piece], shift: int = 0, rows: list[Row] | None = None
) -> Transfer:
    """Start to dump shards; ``rows``: from memory that was made before."""
    rows = rows or rows_for(store, pieces, shift)
    task = store.dump_data(
        [piece.block.id for piece in pieces],
        [piece.index for piece in pieces],
        [row.addresses() for row in rows],
        [len(piece.data) for piece in pieces],
    )
    return Transfer(task, list(pieces), rows)


def dump(store: Store, *blocks: Block) -> Transfer:
    """Dump whole blocks in one task, and wait."""
    return dump_pieces(store, pieces_of(blocks))


def dump_pieces(store: Store, pieces: Sequence[Piece], shift: int = 0) -> Transfer:
    """Dump shards in one task, and wait."""
    transfer = start_dump(store, pieces, shift)
    store.wait(transfer.task, WAIT_MS)
    return transfer


def start_load(
    store: Store, pieces: Sequence[Piece], shift: int = 0, rows: list[Row] | None = None
) -> Transfer:
    """Start to load shards; raises UnsupportedError where there is nothing to load."""
    rows = rows or rows_for(store, pieces, shift, full=False)
    task = store.load_data(
        [piece.block.id for piece in pieces],
        [piece.index for piece in pieces],
        [row.addresses() for row in rows],
    )
    return Transfer(task, list(pieces), rows)


def finish(store: Store, transfer: Transfer) -> None:
    """Wait until a task has ended, well or badly."""
    try:
        store.wait(transfer.task, WAIT_MS)
    except StoreError:
        if not store.check(transfer.task):
            raise StoreTimeout(f"not over after {WAIT_MS} ms: {transfer.task!r}") from None


def ends_of_load(store: Store, transfer: Transfer) -> list[bytes | Status]:
    """Wait for a load; return for each shard its bytes, or why there are none."""
    finish(store, transfer)
    return [
        row.read(result.bytes) if result.status == Status.OK else result.status
        for row, result in zip(transfer.rows, transfer.task.results, strict=True)
    ]


def load_pieces(store: Store, pieces: Sequence[Piece], shift: int = 0) -> list[bytes | Status]:
    """Load shards; return for each its bytes, or why there are none."""
    try:
        transfer = start_load(store, pieces, shift)
    except UnsupportedError:
        assert "loads" not in store.capabilities
        return [Status.UNSUPPORTED] * len(pieces)
    return ends_of_load(store, transfer)


def keeps(store: Store) -> bool:
    """Tell whether published blocks must be found again."""
    return "keeps" in store.capabilities


def loads(store: Store) -> bool:
    """Tell whether published blocks must be served."""
    return {"keeps", "loads"} <= store.capabilities


def is_native(store: Store) -> bool:
    """Tell whether the store is behind the C ABI."""
    return store.native_handle() != 0


ABSENT = (Status.NOT_FOUND, Status.UNSUPPORTED)


class OtherBytes(AssertionError):
    """A shard came with bytes that are not its own, whatever the test is about."""


def expect_end(piece: Piece, end: bytes | Status, other_than_served: Sequence[Status] = ()) -> None:
    """Check what a load of a shard gave: its bytes, or one of the other ends that are allowed."""
    if end == piece.data or (isinstance(end, Status) and end in other_than_served):
        return
    if isinstance(end, Status):
        what = end.name
    elif len(end) != len(piece.data):
        what = f"{len(end)} bytes for {len(piece.data)}"
    else:
        # pytest's own comparison of long bytes takes minutes where CI is set.
        at = next(
            i for i, (got, want) in enumerate(zip(end, piece.data, strict=True)) if got != want
        )
        what = f"other bytes, from byte {at} of {len(end)} on"
        raise OtherBytes(f"shard {piece.index} of block {piece.block.id.hex()}: {what}")
    pytest.fail(f"shard {piece.index} of block {piece.block.id.hex()}: {what}")


def expect_ends(
    pieces: Sequence[Piece],
    ends: Sequence[bytes | Status],
    other_than_served: Sequence[Status] = (),
) -> None:
    """Check what a load gave for each of its shards."""
    for piece, end in zip(pieces, ends, strict=True):
        expect_end(piece, end, other_than_served)


def expect_served(store: Store, pieces: Sequence[Piece], shift: int = 0) -> None:
    """Check that shards of published blocks load; a store that promises no loads may have none."""
    expect_ends(pieces, load_pieces(store, pieces, shift), () if loads(store) else ABSENT)


def expect_published(store: Store, *blocks: Block) -> None:
    """Check that blocks are found and served whole, as far as the store promises to keep any."""
    found = store.lookup(ids_of(blocks))
    assert len(found) == len(blocks)
    missing = found.count(False)
    assert not missing or not keeps(store), f"{missing} of {len(blocks)} blocks are not found"
    expect_served(store, pieces_of(blocks))


def expect_absent(store: Store, *blocks: Block) -> None:
    """Check that blocks are not seen and no shard of them is served."""
    seen = sum(store.lookup(ids_of(blocks)))
    assert not seen, f"{seen} of {len(blocks)} blocks are found that are not there"
    pieces = pieces_of(blocks)
    for end in load_pieces(store, pieces):
        what = end.name if isinstance(end, Status) else f"{len(end)} bytes"
        assert end in ABSENT, f"a shard of a block that is not there: {what}"


def expect_nothing_wrong(store: Store, *blocks: Block) -> None:
    """Check that each shard is served right or not at all."""
    pieces = pieces_of(blocks)
    expect_ends(pieces, load_pieces(store, pieces), ABSENT)
