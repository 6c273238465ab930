"""Metrics: named as in the layer's table, counters that only grow."""

from __future__ import annotations

import random
from typing import Any

from ucm import PluginInfo, Store, plugins
from ucm.conformance import kit
from ucm.conformance.promises import Promise, stands_for


def tables(store: Store) -> list[PluginInfo]:
    """Return what each layer's plugin says of itself, top first."""
    known: dict[str, PluginInfo] = {}
    for info in plugins():
        known.setdefault(info.name, info)
    return [known[layer.partition("#")[0]] for layer in store.layers]


@stands_for(Promise.METRICS)
def test_stats_have_every_metric_of_every_layer(store: Store) -> None:
    stats = store.stats()
    assert tuple(stats) == store.layers
    for values, info in zip(stats.values(), tables(store), strict=True):
        assert [metric.name for metric in info.metrics] in (list(values), [])
        for metric in info.metrics:
            value = values[metric.name]
            wide = metric.kind == "histogram"
            assert set(value) == {"count", "sum", "buckets"} if wide else value >= 0


def counters(store: Store) -> dict[tuple[str, str], Any]:
    """Return all counters, and the count of every histogram."""
    kinds = {
        (layer, metric.name): metric.kind
        for layer, info in zip(store.layers, tables(store), strict=True)
        for metric in info.metrics
    }
    return {
        (layer, name): value["count"] if isinstance(value, dict) else value
        for layer, values in store.stats().items()
        for name, value in values.items()
        if kinds.get((layer, name)) != "gauge"
    }


@stands_for(Promise.METRICS)
def test_counters_never_go_down(store: Store, rng: random.Random) -> None:
    seen = counters(store)
    assert set(seen.values()) <= {0}
    for _ in range(5):
        blocks = kit.new_blocks(store, rng, 3)
        kit.expect_absent(store, blocks[0])
        kit.dump(store, *blocks)
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
        now = counters(store)
        assert all(now[name] >= value for name, value in seen.items())
        seen = now


@stands_for(Promise.METRICS)
def test_the_top_layer_counts_shards_and_bytes(store: Store, rng: random.Random) -> None:
    blocks = kit.new_blocks(store, rng, 3)
    pieces = kit.pieces_of(blocks)
    bytes_in = sum(len(piece.data) for piece in pieces)
    kit.dump(store, *blocks)
    top = store.stats()[store.layers[0]]
    if "dump_shards_total" in top:
        assert (top["dump_shards_total"], top["dump_bytes_total"]) == (len(pieces), bytes_in)
    if kit.loads(store):
        kit.load_pieces(store, pieces)
        top = store.stats()[store.layers[0]]
        if "load_shards_total" in top:
            assert (top["load_shards_total"], top["load_bytes_total"]) == (len(pieces), bytes_in)
