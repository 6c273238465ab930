"""Collects metrics in the scheduler and in every worker, in a form that can be sent and added up.

That form is plain: ``counters`` and ``gauges`` have a number for each name and labels, and
``histograms``, for each name and bucket that has any, how many there were and their sum. Its size
is bounded by the metrics that exist, however much happens. Needs no vLLM.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ucm.errors import StoreError
from ucm.integration.vllm.metrics import (
    LAYER_PREFIX,
    METRICS,
    Metric,
    Selection,
    layer_metrics,
)

Data = dict[str, dict[str, dict[str, Any]]]

_BETWEEN_LOOKS_S = 1.0
_SEPARATOR = "|"  # between the values of labels


class Measured(Protocol):
    """What has layers with metrics: an open store."""

    def stats(self) -> Mapping[str, Mapping[str, Any]]:
        """Return every layer's metrics."""


class Collector:
    """One for each connector; all calls come from its one thread. Off without a selection."""

    def __init__(
        self, selection: Selection | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._selection = selection
        self._clock = clock
        chosen: Iterable[Metric] = selection.metrics.values() if selection else ()
        self._on = {m.name: m for m in chosen if selection and selection.takes(m.kind, m.name)}
        self._layers: Layers | None = None
        self._looked = float("-inf")
        self._data: Data = {}

    @property
    def on(self) -> bool:
        """Whether anything is measured."""
        return self._selection is not None

    def count(self, name: str, value: float = 1, **labels: str) -> None:
        """Add to a counter."""
        metric = self._find(name)
        if metric is None or not value:
            return
        of = self._data.setdefault("counters", {}).setdefault(name, {})
        key = _SEPARATOR.join(labels[label] for label in metric.labels)
        of[key] = of.get(key, 0) + value

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        metric = self._find(name)
        if metric is not None:
            key = _SEPARATOR.join(labels[label] for label in metric.labels)
            self._data.setdefault("gauges", {}).setdefault(name, {})[key] = value

    def observe(self, name: str, value: float) -> None:
        """Add to a histogram."""
        metric = self._find(name)
        if metric is not None:
            bucket = str(bisect.bisect_left(metric.buckets, value))
            of = self._data.setdefault("histograms", {}).setdefault(name, {})
            count, total = of.get(bucket, (0, 0))
            of[bucket] = [count + 1, total + value]

    def _find(self, name: str) -> Metric | None:
        metric = self._on.get(name)
        if metric is None and name not in METRICS:
            raise KeyError(f"no metric {name}")
        return metric

    def looked_up(
        self, total: int, local: int, external: int, causes: Mapping[str, int], seconds: float
    ) -> None:
        """Take note of one request's lookup, in blocks; ``causes`` say why the others missed."""
        if not self.on:
            return
        self.count("lookup_requests_total")
        self.count("prompt_blocks_total", total)
        self.count("hit_blocks_total", local, source="local")
        self.count("hit_blocks_total", external, source="external")
        for cause, blocks in causes.items():
            self.count("missed_blocks_total", blocks, cause=cause)
        self.observe("lookup_seconds", seconds)
        if total > local:
            self.observe("interval_lookup_hit_rates", external / (total - local))

    def moved(
        self,
        what: str,
        requests: int,
        blocks: int,
        block_bytes: int,
        seconds: float,
        failed: Mapping[str, int] | None = None,
    ) -> None:
        """Take note of a transfer that has ended; ``what`` is "load" or "save".

        ``blocks`` are those that went well, ``failed`` those that did not, by cause.
        """
        if not self.on:
            return
        for cause, count in (failed or {}).items():
            self.count(f"{what}_failed_blocks_total", count, cause=cause)
        if not blocks:
            return
        moved = blocks * block_bytes
        self.count(f"{what}_requests_total", requests)
        self.count(f"{what}_blocks_total", blocks)
        self.count(f"{what}_bytes_total", moved)
        self.count(f"{what}_seconds_total", seconds)
        self.observe(f"{what}_requests_num", requests)
        self.observe(f"{what}_blocks_num", blocks)
        self.observe(f"{what}_duration", seconds * 1e3)
        if seconds > 0:
            self.observe(f"{what}_speed", moved / seconds / 1e9)

    def watch(self, store: Measured, rank: str) -> None:
        """Tell the store's layers too from now on; ``rank`` names this process among all."""
        if self._selection is not None:
            self._layers = Layers(store, rank, self._selection)

    def unwatch(self) -> None:
        """Leave the store alone: it is about to be closed."""
        self._layers = None

    def take(self) -> Data | None:
        """Return what happened since the last call, or None."""
        if self._selection is None:
            return None
        now = self._clock()
        if self._layers is not None and now >= self._looked + _BETWEEN_LOOKS_S:
            self._looked = now
            merge(self._data, self._layers.changes())
        data, self._data = self._data, {}
        return data or None


class Layers:
    """Turns what the layers of a store have counted so far into what they counted since."""

    def __init__(self, store: Measured, rank: str, selection: Selection) -> None:
        from ucm.registry import plugins

        self._store = store
        self._rank = rank
        self._selection = selection
        self._known = layer_metrics()
        self._shared = {
            (p.name, m.name) for p in plugins() for m in p.metrics if m.scope == "shared"
        }
        self._before: dict[tuple[str, str], float] = {}

    def changes(self) -> Data:
        """Return the counters' increments, and the gauges that changed."""
        changes: Data = {}
        try:
            stats = self._store.stats()
        except StoreError:  # closed
            return changes
        for layer, metrics in stats.items():
            key = f"{layer}{_SEPARATOR}{self._rank}"
            word = layer.partition("#")[0].rpartition(":")[2]
            for name, value in _flat(metrics):
                told = LAYER_PREFIX + name
                guess = "counter" if name.endswith("_total") else "gauge"
                kind = self._known[told].kind if told in self._known else guess
                if not self._selection.takes(kind, told):
                    continue
                before = self._before.get((layer, name))
                self._before[layer, name] = value
                if kind == "gauge":
                    if value != before:
                        changes.setdefault("gauges", {}).setdefault(told, {})[key] = value
                    continue
                # What processes share began to be counted before this one came.
                first = 0 if (word, name) in self._shared else value
                more = first if before is None else value - before
                if more or before is None:
                    more = value if more < 0 else more  # it was made anew
                    changes.setdefault("counters", {}).setdefault(told, {})[key] = more
        return changes


def _flat(metrics: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Yield names and numbers; a histogram has two."""
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield f"{name}_count", value["count"]
            yield f"{name}_sum", value["sum"]
        else:
            yield name, value


def merge(into: Data, other: Data) -> Data:
    """Add what came later, or from another rank; nothing of ``other`` is kept or changed.

    Counters and histograms add up. Of a gauge the later value counts; gauges of ranks have labels
    of their own.
    """
    for name, values in other.get("counters", {}).items():
        of = into.setdefault("counters", {}).setdefault(name, {})
        for key, value in values.items():
            of[key] = of.get(key, 0) + value
    for name, values in other.get("gauges", {}).items():
        into.setdefault("gauges", {}).setdefault(name, {}).update(values)
    for name, values in other.get("histograms", {}).items():
        of = into.setdefault("histograms", {}).setdefault(name, {})
        for bucket, (count, total) in values.items():
            before, sum_before = of.get(bucket, (0, 0))
            of[bucket] = [before + count, sum_before + total]
    return into


def summary(data: Data) -> dict[str, int | float]:
    """Say in few words what happened: what the engine logs from time to time."""
    counters = data.get("counters", {})

    def total(name: str, key: str | None = None) -> float:
        values = counters.get(name, {})
        return sum(values.values()) if key is None else values.get(key, 0)

    said: dict[str, int | float] = {"lookups": int(total("lookup_requests_total"))}
    blocks = total("prompt_blocks_total")
    if blocks:
        for source in ("local", "external"):
            said[f"{source}_hit_ratio"] = round(total("hit_blocks_total", source) / blocks, 3)
    for what in ("load", "save"):
        said[f"{what}_blocks"] = int(total(f"{what}_blocks_total"))
        seconds = total(f"{what}_seconds_total")
        if seconds:
            said[f"{what}_GB/s"] = round(total(f"{what}_bytes_total") / seconds / 1e9, 3)
        failed = total(f"{what}_failed_blocks_total")
        if failed:
            said[f"{what}_failed_blocks"] = int(failed)
    held_back = total("held_back_blocks_total")
    if held_back:
        said["held_back_blocks"] = int(held_back)
    return said
