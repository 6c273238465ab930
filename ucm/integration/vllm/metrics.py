"""The metrics that the connector has, and which of them a configuration selects.

They leave through the engine's own Prometheus endpoint. Needs no vLLM.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ucm.errors import ConfigError, Status

if TYPE_CHECKING:
    from ucm.config import Config

PREFIX = "ucm:"
LAYER_PREFIX = "store_"  # before the name of a layer's metric
LAYER_LABELS = ("layer", "rank")
KINDS = ("counter", "gauge", "histogram")

MISSES = (
    "absent",
    "persist_token_threshold",
    "load_tokens_threshold",
    "hit_ratio",
    "lookup_failed",
    "not_open",
    "load_failed",
    "not_asked",
)
FAILURES = ("missing", "corrupt", "late", "full", "busy", "other")
_FAILURE = {
    Status.NOT_FOUND: "missing",
    Status.CORRUPT: "corrupt",
    Status.TIMEOUT: "late",
    Status.NO_SPACE: "full",
    Status.BUSY: "busy",
}


def failure(status: int) -> str:
    """Name the cause of a failed load or save, as the label ``cause`` has it."""
    return _FAILURE.get(Status(status), "other") if status in set(Status) else "other"


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric; ``values`` are those that its label may have."""

    name: str
    kind: str
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_COUNTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
_RATIOS = tuple(i / 10 for i in range(11))
_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
_SECONDS = (0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5)
_GBPS = (0.1, 0.2, 0.5, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 40, 60, 100)


def _moves(what: str, done: str) -> tuple[Metric, ...]:
    """Return the metrics that loads and saves both have."""
    of = "of them in a step, or in a request that waits outside the batch"
    return (
        Metric(
            f"{what}_requests_total", "counter", "requests",
            f"Requests that {what} blocks, in each step.",
        ),
        Metric(f"{what}_blocks_total", "counter", "blocks", f"Blocks that were {done}."),
        Metric(f"{what}_bytes_total", "counter", "bytes", "Their bytes, at all ranks."),
        Metric(
            f"{what}_seconds_total", "counter", "s", "From start to end of each; may overlap."
        ),
        Metric(
            f"{what}_failed_blocks_total", "counter", "blocks", f"Blocks that were not {done}.",
            ("cause",), FAILURES,
        ),
        Metric(
            f"{what}_requests_num", "histogram", "requests", f"Requests {of}.", buckets=_COUNTS
        ),
        Metric(f"{what}_blocks_num", "histogram", "blocks", f"Blocks {of}.", buckets=_COUNTS),
        Metric(f"{what}_duration", "histogram", "ms", f"How long it took, {of}.", buckets=_MS),
        Metric(f"{what}_speed", "histogram", "GB/s", f"How fast it was, {of}.", buckets=_GBPS),
    )  # fmt: skip


METRICS = {
    metric.name: metric
    for metric in (
        Metric("lookup_requests_total", "counter", "requests", "Requests that were looked up."),
        Metric("prompt_blocks_total", "counter", "blocks", "Full blocks of their tokens."),
        Metric(
            "hit_blocks_total", "counter", "blocks",
            "Those the engine had itself (local), and those found in the store (external).",
            ("source",), ("local", "external"),
        ),
        Metric(
            "missed_blocks_total", "counter", "blocks", "Those that are computed, and why.",
            ("cause",), MISSES,
        ),
        Metric(
            "lookup_seconds", "histogram", "s", "Time of a request's lookup.", buckets=_SECONDS
        ),
        Metric(
            "interval_lookup_hit_rates", "histogram", "",
            "Of the blocks that the engine did not have, the part found in the store.",
            buckets=_RATIOS,
        ),
        *_moves("load", "loaded"),
        *_moves("save", "saved"),
        Metric(
            "held_back_blocks_total", "counter", "blocks",
            "Blocks that are not saved because they build on one that failed to load.",
        ),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is measured. Of a kind that ``names`` lacks, all metrics are."""

    prefix: str = PREFIX
    metrics: Mapping[str, Metric] = dataclasses.field(default_factory=lambda: METRICS)
    names: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def takes(self, kind: str, name: str) -> bool:
        """Tell whether a metric is selected."""
        return kind not in self.names or name in self.names[kind]


def layer_metrics() -> dict[str, Metric]:
    """Describe the metrics of all installed layers, by the names they have here.

    A histogram of a layer is told as two counters, of what was observed and of its sum.
    """
    from ucm.registry import plugins

    found: dict[str, Metric] = {}
    for plugin in plugins():
        for own in plugin.metrics:
            for ending in ("_count", "_sum") if own.kind == "histogram" else ("",):
                name = f"{LAYER_PREFIX}{own.name}{ending}"
                kind = "counter" if ending else own.kind
                metric = Metric(name, kind, own.unit, own.help, LAYER_LABELS)
                if found.setdefault(name, metric).kind != kind:  # layers disagree
                    found[name] = dataclasses.replace(metric, kind="gauge")
    return found


def select(config: Config) -> Selection | None:
    """Return what a configuration wants to be measured, or None; ConfigError says what is wrong."""
    given = config.metrics_config_path is not None or config.metrics_config is not None
    if not (given if config.enable_metrics is None else config.enable_metrics):
        return None
    if config.metrics_config_path is not None:
        from ucm.config import read_file

        path = config.metrics_config_path
        try:
            data = read_file(path)
        except ConfigError as error:
            raise ConfigError(f"{config.source}: metrics_config_path: {error}") from None
        return _Reader(path).read(data)
    return _Reader(f"{config.source}: metrics_config").read(config.metrics_config or {})


# Keys of files for other monitors, and of their entries: accepted, and reported with the reason.
_WITHOUT_EFFECT = {
    "log_interval": "vLLM decides when it logs",
    "multiproc_dir": "vLLM finds the folder by itself, or in PROMETHEUS_MULTIPROC_DIR",
    "histogram_max_length": "histograms are counted in their buckets at once",
    "multiprocess_mode": "of a gauge the newest value is shown, by rank",
}
# How metrics begin that tell the layers' insides elsewhere. Ours never begin so.
_ELSEWHERE = re.compile(r"(cache|posix|layerwise|connector|mooncake|yuanrong|dramstore|pcstore)_")
_LISTS = {word: kind for kind in KINDS for word in (kind, f"{kind}s")}
_PREFIX = re.compile("([a-zA-Z_:][a-zA-Z0-9_:]*)?")


class _Reader:
    """Reads a selection; ``where`` begins every message."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._notes: list[str] = []
        self._unknown_elsewhere: list[str] = []
        self._changed = dict(METRICS)
        self._layers: dict[str, Metric] | None = None

    def read(self, data: Mapping[str, Any]) -> Selection:
        names: dict[str, frozenset[str]] = {}
        off: list[str] = []
        prefix = PREFIX
        for key, value in data.items():
            if key == "metric_prefix":
                prefix = self._prefix(value)
            elif key == "enabled_metrics":
                off = self._disabled(value)
            elif key in _LISTS:
                kind = _LISTS[key]
                names[kind] = names.get(kind, frozenset()) | self._list(key, value)
            elif key in _WITHOUT_EFFECT:
                self._note(key)
            else:
                known = ("metric_prefix", "enabled_metrics", *(f"{kind}s" for kind in KINDS))
                raise self._refusal(str(key), "unknown key", known)
        if self._unknown_elsewhere:
            first, more = self._unknown_elsewhere[0], len(self._unknown_elsewhere) - 1
            others = f" and {more} others" if more else ""
            self._notes.append(
                f"{self._where}: {first}{others}: no effect, because layers are measured by "
                f"{LAYER_PREFIX}* with the label layer"
            )
        names.update(dict.fromkeys(off, frozenset()))
        return Selection(prefix, self._changed, names, tuple(self._notes))

    def _note(self, key: str) -> None:
        note = f"{self._where}: {key}: no effect, because {_WITHOUT_EFFECT[key]}"
        if note not in self._notes:
            self._notes.append(note)

    def _refusal(self, what: str, problem: str, known: Iterable[str]) -> ConfigError:
        word = what.split(".")[-1].split(" ")[-1]
        near = difflib.get_close_matches(word, sorted(known), 1, 0.6)
        hint = f"did you mean {near[0]!r}?" if near else "docs/metrics.md lists what there is"
        return ConfigError(f"{self._where}: {what}: {problem}; {hint}")

    def _prefix(self, value: Any) -> str:
        if not isinstance(value, str) or not _PREFIX.fullmatch(value):
            raise ConfigError(
                f"{self._where}: metric_prefix: {value!r} is not allowed; write letters, digits, "
                "'_' and ':', such as 'ucm:'"
            )
        return value

    def _disabled(self, value: Any) -> list[str]:
        where = f"{self._where}: enabled_metrics"
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: {value!r} is not a mapping such as counters: true")
        for key, on in value.items():
            if key not in _LISTS:
                problem = "unknown kind of metrics"
                raise self._refusal(f"enabled_metrics.{key}", problem, [f"{k}s" for k in KINDS])
            if not isinstance(on, bool):
                raise ConfigError(f"{where}.{key}: {on!r} is not true or false")
        return [_LISTS[key] for key, on in value.items() if not on]

    def _list(self, key: str, value: Any) -> frozenset[str]:
        if value is not None and not isinstance(value, list):
            raise ConfigError(f"{self._where}: {key}: {value!r} is not a list of metrics")
        return frozenset(
            name for entry in value or [] if (name := self._entry(key, entry)) is not None
        )

    def _entry(self, key: str, entry: Any) -> str | None:
        """Take one entry: a name, or a mapping with it. None: it is another monitor's."""
        given = {"name": entry} if isinstance(entry, str) else entry
        name = given.get("name") if isinstance(given, Mapping) else None
        if not isinstance(name, str):
            raise ConfigError(f"{self._where}: {key}: {entry!r} has no name")
        metric = self._find(name, _LISTS[key])
        if metric is None:
            self._unknown_elsewhere.append(name)
            return None
        if metric.kind != _LISTS[key]:
            raise ConfigError(
                f"{self._where}: {key}: {name} is a {metric.kind}; move it to {metric.kind}s"
            )
        for word, value in given.items():
            if word == "documentation":
                metric = dataclasses.replace(metric, help=str(value))
            elif word == "buckets" and metric.kind == "histogram":
                metric = dataclasses.replace(metric, buckets=self._buckets(name, value))
            elif word in _WITHOUT_EFFECT:
                self._note(word)
            elif word != "name":
                known = ("name", "documentation", "buckets")
                raise self._refusal(f"{name}: {word}", "unknown key", known)
        if name in self._changed:
            self._changed[name] = metric
        return name

    def _find(self, name: str, kind: str) -> Metric | None:
        if name in METRICS:
            return METRICS[name]
        if self._layers is None:
            self._layers = layer_metrics()
        if name in self._layers:
            return self._layers[name]
        known = {**METRICS, **self._layers}
        alike = [other for other, metric in known.items() if metric.kind == kind]
        if _ELSEWHERE.match(name):
            return None
        raise self._refusal(name, f"unknown {kind}", alike)

    def _buckets(self, name: str, value: Any) -> tuple[float, ...]:
        numbers = value if isinstance(value, list) else []
        good = all(
            isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n)
            for n in numbers
        )
        if not numbers or not good or any(a >= b for a, b in itertools.pairwise(numbers)):
            raise ConfigError(
                f"{self._where}: {name}: buckets: {value!r} is not a list of rising numbers"
            )
        return tuple(float(n) for n in numbers)
