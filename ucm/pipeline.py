"""A pipeline string becomes open stores: layouts are asked for top-down, handles made bottom-up."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ucm import _secrets, errors, logs, options
from ucm._abi import ffi, lib
from ucm._bridge import names_of
from ucm._kind import Place, PythonKind
from ucm._native import SUBMITTED, new_error, raise_for
from ucm.errors import ConfigError, Status
from ucm.layout import MAX_SEGMENTS, Layout, layout_of
from ucm.loader import TYPES, UNKNOWN, Library, has, minimum, strided
from ucm.registry import Entry, Kind, kind_of, registry
from ucm.task import Result, new_token

if TYPE_CHECKING:
    from ucm._ends import Ends

TYPE_NUMBERS = {name: number for number, name in TYPES.items()}
TYPE_NUMBERS[UNKNOWN] = TYPE_NUMBERS["string"]
_MAX_LAYERS = 16
_PUBLISHED, _DECLINED = 1, 2
_PENDING = int(Status.PENDING)
_PLANE_ROOM = 64  # bytes, for planes that have grown since
_CANARY = bytes(range(1, 65))
_ENCODING = re.compile(r"([a-z0-9.-]+(\+[a-z0-9.-]+)*)?")


def parse(pipeline: str) -> list[str]:
    """Split 'Cache|Posix' into its words."""
    words = [word.strip() for word in pipeline.split("|")]
    if not pipeline.strip():
        raise ConfigError("store_pipeline: it is empty; name a store, as in 'Cache|Posix'")
    if not all(words):
        raise ConfigError(f"store_pipeline: {pipeline!r} has an empty place between two '|'")
    if len(words) > _MAX_LAYERS:
        raise ConfigError(f"store_pipeline: {len(words)} layers; at most {_MAX_LAYERS} can stand")
    return words


class Checked(NamedTuple):
    """A configuration that can be opened."""

    words: list[str]
    kinds: list[Kind]
    options: options.Resolved


def check(config: Mapping[str, Any]) -> Checked:
    """Check everything but the sizes of ``config``, without opening a store."""
    pipeline = options.check_value(options.HOST_OPTIONS[0], config.get("store_pipeline") or "")
    words = parse(pipeline)
    entries = [registry().find(word) for word in words]  # all of them, before one is opened
    kinds = [kind_of(entry) for entry in entries]
    _check_order(words, kinds)
    table = [(w, kind.options) for w, kind in zip(words, kinds, strict=True)]
    return Checked(words, kinds, options.resolve(config, table))


def shown(pipeline: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options as they may be shown: what some layer takes as a secret is not."""
    kinds = [kind_of(registry().find(word)) for word in parse(pipeline)]
    secrets = {o.name for kind in kinds for o in kind.options or () if o.hidden}
    return {k: _secrets.SHOWN if k.rpartition(".")[2] in secrets else v for k, v in given.items()}


def open_stack(config: Mapping[str, Any]) -> tuple[Stack, Layout | None, options.Resolved]:
    """Open the pipeline of ``config``; return the stack, its layout and the checked options."""
    words, kinds, checked = check(config)
    layout = layout_of(checked)
    _check_memory(words[0], kinds[0].takes_cuda, layout)
    _default_fingerprint(checked, layout)
    return Stack(words, kinds, checked, layout, [config] * len(words)), layout, checked


def _default_fingerprint(checked: options.Resolved, layout: Layout | None) -> None:
    """Have the top layout say what the bytes mean, in every layer that asks, unless it is given."""
    if layout is None:
        return
    for values in checked.layers:
        for i, value in enumerate(values):
            if value.option.name == "fingerprint" and not value.value:
                values[i] = dataclasses.replace(value, value=layout.fingerprint)


def _check_memory(word: str, takes_cuda: bool, layout: Layout | None) -> None:
    if layout is not None and layout.memory == "cuda" and not takes_cuda:
        raise ConfigError(
            f"memory: {word} takes host memory only, not 'cuda'; put a layer that takes it on top "
            f"('ucm plugins NAME' says which do), as in 'Cache|{word}', or copy to the host first"
        )


def _check_order(words: Sequence[str], kinds: Sequence[Kind]) -> None:
    for i, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        last = i == len(words) - 1
        if kind.needs_lower and last:
            raise ConfigError(
                f"store_pipeline: {word} needs a store below it; write '{'|'.join(words)}|Posix', "
                "or '|Empty' to keep nothing"
            )
        if kind.needs_lower is False and not last:
            raise ConfigError(
                f"store_pipeline: {word} takes no store below it, but {words[i + 1]} stands there; "
                f"{word} must be the last"
            )


@dataclasses.dataclass(frozen=True)
class Wired:
    """A layer wired by hand: its library, or None for the one of that name, and its own options."""

    name: str
    path: str | None
    options: Mapping[str, Any] = dataclasses.field(repr=False)  # secrets may be among them


def open_wired(
    config: Mapping[str, Any], wired: Sequence[Wired]
) -> tuple[Stack, Layout | None, options.Resolved]:
    """Open layers, top first; ``config`` has the keys of the host that the top layer lacks."""
    words = [layer.name for layer in wired]
    if len(words) > _MAX_LAYERS:
        raise ConfigError(f"Stack: {len(words)} layers; at most {_MAX_LAYERS} can stand")
    kinds = [_wired_kind(layer) for layer in wired]
    _check_order(words, kinds)
    checked = options.resolve_each(
        config,
        [(w.name, kind.options, w.options) for w, kind in zip(wired, kinds, strict=True)],
    )
    layout = layout_of(checked)
    _check_memory(words[0], kinds[0].takes_cuda, layout)
    _default_fingerprint(checked, layout)
    configs = [{**config, **layer.options} for layer in wired]
    return Stack(words, kinds, checked, layout, configs), layout, checked


def _wired_kind(layer: Wired) -> Kind:
    if layer.path:
        return kind_of(Entry(layer.name, "Stack", layer.path))
    return kind_of(registry().find(layer.name))


class _Values:
    """One layer's option values as a C array, with everything that it points to."""

    def __init__(self, values: Sequence[options.Value]) -> None:
        self.own = values
        self.count = len(values)
        self.array = ffi.new("ucm_value[]", max(1, len(values)))
        self._keep: list[Any] = []
        for slot, value in zip(self.array, values, strict=False):
            slot.given = int(value.given)
            self._fill(slot, value)

    def _fill(self, slot: Any, value: options.Value) -> None:
        kind, data = value.option.type, value.value
        slot.type = TYPE_NUMBERS[kind]
        if kind in ("bool", "int", "size"):
            slot.i = int(data)
        elif kind == "float":
            slot.f = data
        elif kind in ("string", "secret", UNKNOWN):
            slot.s = self._text(data)
        elif kind == "strings":
            slot.count = len(data)
            slot.strings = self._array("char *[]", [self._text(part) for part in data])
        else:
            slot.count = len(data)
            slot.ints = self._array("int64_t[]", data)

    def _text(self, text: str) -> Any:
        return self._array("char[]", text.encode())

    def _array(self, ctype: str, data: Any) -> Any:
        made = ffi.new(ctype, data)
        self._keep.append(made)
        return made


def _top_layout(layout: Layout, keep: list[Any]) -> Any:
    made = ffi.new("ucm_layout *")
    made.struct_size = ffi.sizeof("ucm_layout")
    made.shards_per_block = layout.shards_per_block
    made.n_segments = len(layout.segment_sizes)
    segments = ffi.new("uint64_t[]", layout.segment_sizes)
    planes = ffi.new("ucm_plane[]", len(layout.segment_sizes))
    for plane, size in zip(planes, layout.segment_sizes, strict=True):
        plane.bytes = size
        plane.dtype = options.DTYPES.index(layout.dtype)
    keep += [segments, planes]
    made.segment_bytes = segments
    made.capacity = made.raw_capacity = layout.shard_size
    made.n_planes = len(layout.segment_sizes)  # where they end is known, whatever is in them
    made.plane_stride = ffi.sizeof("ucm_plane")
    made.planes = planes
    made.memory = {"host": lib.UCM_MEMORY_HOST, "cuda": lib.UCM_MEMORY_CUDA}[layout.memory]
    made.device = layout.device
    return made


def _refused(word: str, status: int, error: Any) -> None:
    """Raise what a layer said to being opened; what it does not take is the configuration."""
    try:
        raise_for(status, error, f"{word}: ")
    except errors.InvalidError as refusal:
        raise ConfigError(str(refusal), os_errno=refusal.os_errno) from None


def _lower_layout(word: str, kind: Kind, layout: Any, values: _Values, keep: list[Any]) -> Any:
    if isinstance(kind, PythonKind):
        made = kind.lower_layout(layout, values.own, keep)
        _check_lower_layout(word, layout, made)
        return made
    if kind.plugin.lower_layout == ffi.NULL:
        return layout
    room = ffi.new("ucmh_lower_layout *")
    room.layout = layout[0]
    ffi.memmove(room.canary, _CANARY, len(_CANARY))
    out = ffi.addressof(room, "layout")
    out.flags = 0
    out.n_planes = 0
    out.planes = ffi.NULL
    out.memory, out.device = lib.UCM_MEMORY_HOST, -1
    args = ffi.new("ucm_layout_args *")
    args.struct_size = ffi.sizeof("ucm_layout_args")
    args.layout = layout
    args.n_values, args.value_stride = values.count, ffi.sizeof("ucm_value")
    args.values = values.array
    segments = ffi.new("uint64_t[]", MAX_SEGMENTS)
    planes = ffi.new("uint64_t[]", MAX_SEGMENTS * _PLANE_ROOM // 8)
    args.segments_room, args.segment_bytes = MAX_SEGMENTS, segments
    args.planes_room, args.planes = ffi.sizeof(planes), planes
    keep += [room, segments, planes]
    error = new_error()
    status = lib.ucmh_ask_lower_layout(kind.plugin, args, out, error)
    if status != Status.OK:
        _refused(word, status, error)
    if bytes(ffi.buffer(room.canary)) != _CANARY or out.struct_size != layout.struct_size:
        raise errors.PluginError(f"{word}: its lower_layout writes past the layout, or its size")
    _check_lower_layout(word, layout, out)
    return out


def _check_lower_layout(word: str, layout: Any, out: Any) -> None:
    problem = _problem_of_sizes(layout, out) or _problem_of_bytes(out)
    if problem:
        raise errors.PluginError(f"{word}: its lower_layout is wrong: {problem}")


def _problem_of_sizes(layout: Any, out: Any) -> str | None:
    if not 1 <= out.n_segments <= MAX_SEGMENTS or out.segment_bytes == ffi.NULL:
        return f"{out.n_segments} segments"
    if not 1 <= out.shards_per_block <= lib.UCM_MAX_SHARDS:
        return f"{out.shards_per_block} shards"
    if 0 in out.segment_bytes[0 : out.n_segments]:
        return "a segment of 0 bytes"
    if sum(out.segment_bytes[0 : out.n_segments]) != out.capacity:
        return f"capacity {out.capacity} is not the sum of its segments"
    if out.shards_per_block == layout.shards_per_block and out.raw_capacity != layout.raw_capacity:
        return (
            f"raw_capacity {out.raw_capacity} is not the {layout.raw_capacity} of the layer above"
        )
    if out.flags & ~lib.UCM_LAYOUT_PAGES:
        return f"its flags {out.flags:#x} are not known here; upgrade ucm-store"
    if out.flags & lib.UCM_LAYOUT_PAGES and out.n_segments != 1:
        return "whole pages but more than one segment"
    return None


def _problem_of_bytes(out: Any) -> str | None:
    encoding = bytes(ffi.buffer(out.encoding))
    text = encoding.rstrip(b"\0").decode(errors="replace")
    if encoding[-1] or not _ENCODING.fullmatch(text):
        return f"encoding {text!r}: names of [a-z0-9.-] joined by '+', at most 63 characters"
    if out.memory not in (lib.UCM_MEMORY_HOST, lib.UCM_MEMORY_CUDA):
        return f"memory of kind {out.memory} is not known here; upgrade ucm-store"
    if not out.n_planes:
        return None
    if out.n_planes > MAX_SEGMENTS or out.planes == ffi.NULL:
        return f"{out.n_planes} planes"
    if out.plane_stride < minimum("ucm_plane") or out.plane_stride % 8:
        return f"the stride of its planes is {out.plane_stride}"
    planes = strided("ucm_plane", out.planes, out.n_planes, out.plane_stride)
    if sum(plane.bytes for plane in planes) > out.capacity:
        return "its planes are longer than its capacity"
    return None


def _problem_of_store(store: Any, place: Place) -> str | None:
    """Say what is wrong with what open returned; members of 1.0 alone are looked at."""
    if store == ffi.NULL or store.ops == ffi.NULL:
        return "it is NULL"
    if not has(store, "ucm_store", "reserved") or not has(store.ops, "ucm_store_ops", "close"):
        return "its struct_size is too small"
    for slot in ("lookup", "load", "dump", "drain", "close"):
        if getattr(store.ops, slot) == ffi.NULL:
            return f"its {slot} is NULL"
    for bit, slot in ((lib.UCM_CAP_REMOVE, "remove"), (lib.UCM_CAP_CANCEL, "cancel")):
        if store.capabilities & bit and getattr(store.ops, slot) == ffi.NULL:
            return f"it says that it can {slot}, but has no such slot"
    for name in ("capacity", "raw_capacity", "shards_per_block"):
        wanted = 0 if place.lookup_only else getattr(place.layout, name)
        if getattr(store, name) != wanted:
            return f"its {name} is {getattr(store, name)}, and that of its layout {wanted}"
    return None


def _check_device_memory(word: str, lower_word: str, lower: Kind) -> None:
    if not lower.takes_cuda:
        raise errors.PluginError(
            f"{word}: it hands device memory down, but {lower_word} takes host memory only"
        )


class _Outcome:
    def __init__(self, stack: Stack, submitted: Any) -> None:
        self.stack = stack
        self._task = submitted.task
        self._ended = submitted.ended  # what was here is copied when the submit returns
        self.number = submitted.number
        self.token = new_token()

    def __del__(self) -> None:
        lib.ucmh_task_free(self._task)

    def wait(self, timeout_ms: int) -> int:
        if self._ended == _PENDING:
            self._ended = lib.ucmh_task_wait(self._task, timeout_ms)
        return int(self._ended)

    def result(self, i: int) -> Result:
        r = lib.ucmh_task_results(self._task)[i]
        return Result(
            errors.status_of(r.status),
            r.length,
            r.os_errno,
            bool(r.flags & _PUBLISHED),
            bool(r.flags & _DECLINED),
        )

    def failures(self, limit: int) -> tuple[int, list[int]]:
        indexes = ffi.new("size_t[]", limit)
        count = int(lib.ucmh_task_failures(self._task, indexes, limit))
        return count, list(indexes[0 : min(count, limit)])

    def watch(self, ends: Ends) -> bool:
        code = lib.ucmh_task_watch(self._task, ends.events, self.token)
        if code < 0:
            raise errors.UnavailableError("await: out of memory")
        return int(code) == 0


class Stack:
    """Open layers, top first. Safe to use from many threads, except close."""

    def __init__(
        self,
        words: Sequence[str],
        kinds: Sequence[Kind],
        checked: options.Resolved,
        layout: Layout | None,
        configs: Sequence[Mapping[str, Any]],
    ) -> None:
        logs.start()
        self._kinds = kinds
        self._stores: list[Any] = []  # top first
        self._closed = _counts(_new_report())  # what close was told, until it is over
        self.layers = _layer_names([word.rpartition(":")[2] for word in words])
        self._timeout_ms = checked.get("timeout_ms")
        self._lookup_only = checked.get("device_id") == -1
        self._unique_id = checked.get("unique_id")
        values = [_Values(v) for v in checked.layers]
        keep: list[Any] = []
        layouts = [_top_layout(layout, keep) if layout else ffi.NULL]
        for word, kind, own in zip(words[:-1], kinds, values, strict=False):
            lower = ffi.NULL if not layout else _lower_layout(word, kind, layouts[-1], own, keep)
            if lower and lower.memory != lib.UCM_MEMORY_HOST:
                _check_device_memory(word, words[len(layouts)], kinds[len(layouts)])
            layouts.append(lower)
        layouts.append(ffi.NULL)
        try:
            for i in reversed(range(len(words))):
                place = Place(
                    self.layers[i],
                    layouts[i],
                    layouts[i + 1],
                    self._stores[0] if self._stores else ffi.NULL,
                    values[i].own,
                    configs[i],
                    self._lookup_only,
                )
                kind = kinds[i]
                if isinstance(kind, PythonKind):
                    self._stores.insert(0, kind.open(place).handle)
                else:
                    self._open(words[i], kind, place, values[i])
        except BaseException:
            self.close(-1)
            raise
        self.capabilities = names_of(self._stores[0].capabilities)
        self.top_is_python = isinstance(kinds[0], PythonKind)

    def expect(self) -> None:
        """Let a store in Python wake up while a transfer's arguments are read."""
        lib.ucmb_expect(self._stores[0])

    def _open(self, word: str, library: Library, place: Place, values: _Values) -> None:
        name, which = self._unique_id, place.name.partition("#")[2]
        if name and which:  # two layers of a kind share nothing with each other
            name += f"#{which}"
        unique_id = ffi.new("char[]", name.encode())
        layer = ffi.new("char[]", place.name.encode())
        args = ffi.new("ucm_open_args *")
        args.struct_size = ffi.sizeof("ucm_open_args")
        args.flags = lib.UCM_OPEN_LOOKUP_ONLY if place.lookup_only else 0
        args.host = lib.ucmh_host()
        args.layout, args.lower_layout = place.layout, place.lower_layout
        args.n_values, args.value_stride = values.count, ffi.sizeof("ucm_value")
        args.values = values.array
        args.lower = place.lower
        args.unique_id = unique_id
        args.layer = layer
        out = ffi.new("ucm_store **")
        error = new_error()
        status = lib.ucmh_open(library.plugin, args, out, error)
        if status != Status.OK:
            _refused(word, status, error)
        problem = _problem_of_store(out[0], place)
        if problem:
            self._stores.clear()  # it may use what is below it: that stays, for ever
            raise errors.PluginError(f"{word}: its open returned no sound store: {problem}")
        self._stores.insert(0, out[0])
        logs.logger.info(
            "%s: %s %s, ABI %s, %s",
            place.name, library.name, library.version, library.abi, library.path,
        )  # fmt: skip

    def submit(
        self,
        dump: bool,
        n: int,
        ids: Any,
        shards: Any,
        addresses: Any,
        lengths: Any,
        depths: Any,
        event: int,
        priority: int,
        busy_ms: int,
    ) -> _Outcome:
        """Start a transfer, waiting up to ``busy_ms`` for room in the queue."""
        flags = lib.UCM_TRANSFER_EVENT if event else 0
        out = ffi.new(SUBMITTED)
        status = lib.ucmh_submit(
            self._stores[0], dump, n, ids, shards, addresses, lengths, ffi.NULL, depths,
            flags, event, 0, priority, self._timeout_ms, busy_ms, out,
        )  # fmt: skip
        if status:
            raise_for(status, out.error)
        return _Outcome(self, out)

    def lookup(self, mode: int, n: int, ids: Any) -> tuple[int, Any]:
        """Answer like ``ucm_lookup_args``: (hits, tiers)."""
        hits = ffi.new("size_t *")
        tiers = ffi.new("uint8_t[]", max(n, 1)) if mode == lib.UCM_LOOKUP_ALL else ffi.NULL
        error = new_error()
        status = lib.ucmh_lookup(
            self._stores[0], mode, n, ids, ffi.NULL, self._timeout_ms, hits, tiers, error
        )
        if status != Status.OK:
            raise_for(status, error)
        return hits[0], tiers if tiers == ffi.NULL else ffi.buffer(tiers, n)

    def _ids(self, what: int, n: int, ids: Any) -> None:
        error = new_error()
        status = lib.ucmh_ids(self._stores[0], what, n, ids, self._timeout_ms, error)
        if status != Status.OK:
            raise_for(status, error)

    def prefetch(self, n: int, ids: Any) -> None:
        """Pass the hint on."""
        self._ids(lib.UCMH_PREFETCH, n, ids)

    def remove(self, n: int, ids: Any) -> None:
        """Remove blocks from every layer."""
        self._ids(lib.UCMH_REMOVE, n, ids)

    def cancel(self, number: int) -> None:
        """Cancel a task; one that has finished already is fine."""
        error = new_error()
        status = lib.ucmh_cancel(self._stores[0], number, error)
        if status not in (Status.OK, Status.NOT_FOUND):
            raise_for(status, error)

    def drain(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        """Wait until what was accepted is stored; (OK or PENDING, counts)."""
        report = _new_report()
        error = new_error()
        status = lib.ucmh_drain(self._stores[0], timeout_ms, report, error)
        if status not in (Status.OK, Status.PENDING):
            raise_for(status, error)
        return status, _counts(report)

    def close(self, timeout_ms: int) -> tuple[int, dict[str, int]]:
        """Close from the top down; PENDING leaves the layers that are still open, to call again."""
        until = time.monotonic() + timeout_ms / 1000
        while self._stores:
            left = -1 if timeout_ms < 0 else max(0, int((until - time.monotonic()) * 1000))
            report = _new_report()
            error = new_error()
            status = lib.ucmh_close(self._stores[0], left, report, error)
            counts = _counts(report)
            if status == Status.PENDING:
                # A report starts the counts anew, and who calls again wants all of it.
                for name in ("stored", "lost"):
                    self._closed[name] += counts[name]
                return status, {**_counts(_new_report()), "pending": counts["pending"]}
            if status in (Status.INVALID, Status.UNSUPPORTED):
                # It says that it goes on, so what is below stays too. To ask again would not help.
                message = ffi.string(error.message).decode(errors="replace")
                logs.logger.error("close: refused, the store stays open: %s", message)
                self._stores.clear()
                break
            self._stores.pop(0)
            for name, count in counts.items():
                self._closed[name] += count
            if status != Status.OK:
                logs.logger.error("close: %s", ffi.string(error.message).decode(errors="replace"))
        total, self._closed = self._closed, _counts(_new_report())
        return Status.OK, total

    def native_handle(self) -> int:
        """Return the address of the top layer's ``ucm_store``."""
        return int(ffi.cast("uintptr_t", self._stores[0]))

    def metrics(self) -> dict[str, dict[str, Any]]:
        """Read every layer's metrics: counters and gauges as numbers, histograms as dicts."""
        answer = {}
        for name, kind, store in zip(self.layers, self._kinds, self._stores, strict=True):
            wide = lib.UCM_HISTOGRAM_VALUES
            widths = [wide if m.kind == "histogram" else 1 for m in kind.metrics]
            values = ffi.new("uint64_t[]", max(1, sum(widths)))
            error = new_error()
            status = lib.ucmh_metrics(store, sum(widths), values, error)
            if status != Status.OK:
                raise_for(status, error, f"{name}: ")
            at, layer = 0, {}
            for metric, width in zip(kind.metrics, widths, strict=True):
                layer[metric.name] = _metric(values, at, width)
                at += width
            answer[name] = layer
        return answer


def _layer_names(words: Sequence[str]) -> tuple[str, ...]:
    """Number repeated words, so that each layer has a key of its own: Cache, Cache#2."""
    seen: dict[str, int] = {}
    names = []
    for word in words:
        seen[word] = seen.get(word, 0) + 1
        names.append(word if seen[word] == 1 else f"{word}#{seen[word]}")
    return tuple(names)


def _metric(values: Any, at: int, width: int) -> Any:
    if width == 1:
        return values[at]
    buckets = list(values[at + 2 : at + width])
    return {"count": values[at], "sum": values[at + 1], "buckets": buckets}


def _new_report() -> Any:
    report = ffi.new("ucm_report *")
    report.struct_size = ffi.sizeof("ucm_report")
    return report


def _counts(report: Any) -> dict[str, int]:
    names = ("stored", "lost", "pending", "unfinished")
    return {name: getattr(report, name) for name in names}
