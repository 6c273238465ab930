"""Metrics on their way through vLLM: between its processes, into its log and to Prometheus."""

from __future__ import annotations

import contextlib
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
)

from ucm.integration.vllm import collector
from ucm.integration.vllm.metrics import LAYER_LABELS, Metric, Selection, layer_metrics


class UCMStats(KVConnectorStats):  # type: ignore[misc]
    """What happened in a step, or in several; ``data`` is what a ``Collector`` gives."""

    def reset(self) -> None:
        """Forget everything."""
        self.data: collector.Data = {}

    def aggregate(self, other: KVConnectorStats) -> UCMStats:
        """Add another rank's or a later step's."""
        collector.merge(self.data, other.data)
        return self

    def reduce(self) -> dict[str, int | float]:
        """Return what the engine logs."""
        return collector.summary(self.data)

    def is_empty(self) -> bool:
        """Tell whether nothing happened."""
        return not self.data


def take(from_: collector.Collector) -> UCMStats | None:
    """Return what a connector's ``get_kv_connector_stats`` does."""
    data = from_.take()
    return None if data is None else UCMStats(data=data)


def rebuild(data: dict[str, Any] | None) -> UCMStats:
    """Return what ``build_kv_connector_stats`` does; ``data`` itself stays as it is."""
    return UCMStats(data=collector.merge({}, data or {}))


# Metrics made so far by name, with what they were made of. An engine may be made again in the same
# process, and Prometheus refuses a name that stands already; vLLM lets go of its own names only.
_made: dict[str, tuple[tuple[Any, ...], Any]] = {}


class UCMPromMetrics(KVConnectorPromMetrics):  # type: ignore[misc]
    """Registers the selected metrics with vLLM's classes, and adds to them what happened."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
        selection: Selection,
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._classes = {
            "counter": self._counter_cls,
            "gauge": self._gauge_cls,
            "histogram": self._histogram_cls,
        }
        self._prefix = selection.prefix
        self._known = {**layer_metrics(), **selection.metrics}
        self._metrics: dict[str, Any] = {}
        self._children: dict[tuple[int, str, str], Any] = {}
        for metric in selection.metrics.values():
            if selection.takes(metric.kind, metric.name):
                for engine_idx in per_engine_labelvalues:
                    for value in metric.values or ("",):  # so that 0 is shown, too
                        self._child(metric.kind, metric.name, value, engine_idx)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        """Add what happened in an engine."""
        for name, values in transfer_stats_data.get("counters", {}).items():
            for key, value in values.items():
                self._child("counter", name, key, engine_idx).inc(value)
        for name, values in transfer_stats_data.get("gauges", {}).items():
            for key, value in values.items():
                self._child("gauge", name, key, engine_idx).set(value)
        for name, buckets in transfer_stats_data.get("histograms", {}).items():
            child = self._child("histogram", name, "", engine_idx)
            limits = self._known[name].buckets
            for bucket, (count, total) in buckets.items():
                # The mean of a bucket's values is in it, and keeps the sum; but for rounding.
                place, mean = int(bucket), total / count
                mean = min(mean, limits[place]) if place < len(limits) else mean
                for _ in range(count):
                    child.observe(mean)

    def _child(self, kind: str, name: str, key: str, engine_idx: int) -> Any:
        place = (engine_idx, name, key)
        child = self._children.get(place)
        if child is None:
            metric = self._metrics.get(name)
            if metric is None:
                metric = self._metrics[name] = self._make(kind, name)
            values = [*self.per_engine_labelvalues[engine_idx], *(key.split("|") if key else ())]
            child = self._children[place] = metric.labels(*values)
        return child

    def _make(self, kind: str, name: str) -> Any:
        known = self._known.get(name) or Metric(name, kind, "", name, LAYER_LABELS)
        unit = f" In {known.unit}." if known.unit else ""
        more: dict[str, Any] = {}
        if kind == "histogram":
            more["buckets"] = list(known.buckets)
        if kind == "gauge":
            more["multiprocess_mode"] = "mostrecent"
        labels = [*self._labelnames, *known.labels]
        told, made_of = self._prefix + name, (self._classes[kind], labels, more)
        if told in _made:
            before, metric = _made[told]
            if before == made_of:
                return metric
            from prometheus_client import REGISTRY

            with contextlib.suppress(KeyError):  # it is Ray's
                REGISTRY.unregister(metric)
        metric = self._classes[kind](
            name=told, documentation=known.help + unit, labelnames=labels, **more
        )
        _made[told] = (made_of, metric)
        return metric
