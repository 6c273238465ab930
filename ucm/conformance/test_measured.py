"""A small measured run, for the score card. Nothing is asserted of time."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import pytest

from ucm import Store
from ucm.conformance import kit
from ucm.conformance.fixtures import OpenStore
from ucm.conformance.promises import Promise, stands_for

SHARD = 65536
BLOCKS, BLOCK = 32, 1 << 20
LIMIT_S = 1.0  # of each row of single shards, for slow stores
TIMES = 300


def span_of(store: Store, dump: bool, pieces: Sequence[kit.Piece]) -> float:
    """Move shards in one task; return the seconds from the call to the end of the wait."""
    rows = kit.rows_for(store, pieces, full=dump)
    start_task = kit.start_dump if dump else kit.start_load
    start = time.perf_counter()
    transfer = start_task(store, pieces, rows=rows)
    store.wait(transfer.task, kit.WAIT_MS)
    return time.perf_counter() - start


def one_by_one(store: Store, dump: bool, pieces: Sequence[kit.Piece]) -> dict[str, float]:
    """Move shards one after the other, as many as there is time for."""
    spans: list[float] = []
    for piece in pieces:
        spans.append(span_of(store, dump, [piece]))
        if sum(spans) > LIMIT_S:
            break
    hundredths = statistics.quantiles(spans, n=100, method="inclusive") if spans[1:] else spans * 99
    return {"p50_us": hundredths[49] * 1e6, "p99_us": hundredths[98] * 1e6, "count": len(spans)}


def rate(pieces: Sequence[kit.Piece], span: float) -> dict[str, float]:
    size = sum(len(piece.data) for piece in pieces)
    return {"gb_per_s": size / span / 1e9, "bytes": size}


@stands_for(Promise.BYTES)
def test_a_measured_run(
    open_store: OpenStore, rng: random.Random, request: pytest.FixtureRequest
) -> None:
    figures: dict[str, Any] = {}
    with open_store(block_size=SHARD) as store:
        pieces = kit.pieces_of(kit.new_blocks(store, rng, TIMES))
        figures["dump of one shard of 64 KiB"] = one_by_one(store, True, pieces)
        if kit.loads(store):
            dumped = pieces[: int(figures["dump of one shard of 64 KiB"]["count"])]
            figures["load of one shard of 64 KiB"] = one_by_one(store, False, dumped)
        ids = [piece.block.id for piece in pieces]
        start = time.perf_counter()
        store.lookup(ids)
        span = time.perf_counter() - start
        figures["lookup"] = {"us_per_block": span / len(ids) * 1e6, "blocks": len(ids)}
    with open_store(block_size=BLOCK) as store:
        blocks = kit.new_blocks(store, rng, BLOCKS)
        pieces = kit.pieces_of(blocks)
        span = span_of(store, True, pieces)
        figures["dump"] = rate(pieces, span)
        start = time.perf_counter()
        store.drain(kit.WAIT_MS)
        figures["dump and drain"] = rate(pieces, span + time.perf_counter() - start)
        if kit.loads(store):
            figures["load"] = rate(pieces, span_of(store, False, pieces))
        kit.expect_published(store, *blocks)
    request.node.user_properties.append(("ucm_measured", figures))
