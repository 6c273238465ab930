"""A Python class or builder as a pipeline needs it: described and opened like a library."""

from __future__ import annotations

import dataclasses
import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ucm import _secrets, errors, options
from ucm._abi import ffi, lib
from ucm._bridge import METRICS, Bridge, names_of, passes_through
from ucm._lower import Lower
from ucm.layout import Layout
from ucm.loader import TYPES, Metric, Option, strided
from ucm.options import Value
from ucm.python_store import LayerBase, StoreBase
from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1


class Secret(str):
    """An option's value that does not show where it is printed with others."""

    def __repr__(self) -> str:
        return "'(secret)'"


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a store is to stand; layouts and the lower store as the C ABI has them, or NULL."""

    name: str
    layout: Any
    lower_layout: Any
    lower: Any
    values: Sequence[Value]
    config: Mapping[str, Any]
    lookup_only: bool


class PythonKind:
    """What makes one kind of store in Python: a class, or a callable ``(layout, options, lower)``.

    A callable may have the attributes that a class has: OPTIONS, needs_lower, lower_layout,
    encoding. Without needs_lower it may stand at the bottom, where lower is None, and elsewhere.
    """

    version = abi = ""
    takes_cuda = False
    metrics: tuple[Metric, ...] = METRICS

    def __init__(self, name: str, make: Any) -> None:
        self.name = name
        self._make: Any = make
        logging.getLogger(f"ucm.{name}").addFilter(_secrets.hide_in)  # what the author logs
        module = getattr(make, "__module__", type(make).__module__)
        qualname = getattr(make, "__qualname__", type(make).__qualname__)
        self.path = f"{module}.{qualname}"
        self.summary = (inspect.getdoc(make) or "").split("\n")[0]
        is_class = inspect.isclass(make)
        is_older = is_class and issubclass(make, UcmKVStoreBaseV1)
        self.needs_lower: bool | None = getattr(make, "needs_lower", False if is_class else None)
        table = getattr(make, "OPTIONS", None if is_older else ())
        self.options = None if table is None else _checked(name, table)

    def lower_layout(self, layout: Any, values: Sequence[Value], keep: list[Any]) -> Any:
        """Return the native layout for the store below; ``keep`` has what it points to."""
        answer: Any = getattr(self._make, "lower_layout", None)
        encoding = getattr(self._make, "encoding", "")
        own = answer is not None and getattr(answer, "__func__", answer) is not _DEFAULT
        if inspect.isclass(self._make) and passes_through(self._make) and not (own or encoding):
            return layout
        mine = layout_from(layout)
        wanted = answer(mine, _options(values)) if own else mine
        if not isinstance(wanted, Layout):
            raise errors.PluginError(f"{self.name}: lower_layout has to return a ucm.Layout")
        if encoding and wanted.encoding == mine.encoding:
            joined = "+".join(filter(None, (mine.encoding, encoding)))
            wanted = dataclasses.replace(wanted, encoding=joined)
        return _native(self.name, layout, wanted, keep)

    def open(self, place: Place) -> Bridge:
        """Make the store and the threads that work for it."""
        layout = lower = None
        if place.layout != ffi.NULL:
            layout = layout_from(place.layout)
        if place.lower != ffi.NULL:
            below = layout_from(place.lower_layout) if place.lower_layout != ffi.NULL else None
            can = names_of(place.lower.capabilities)
            only_looks_up = place.lower.capacity == 0
            lower = Lower(place.lower, None if only_looks_up else below, can, place.name)
        try:
            store = self._made(layout, place, lower)
        except Exception as error:
            error.args = tuple(_secrets.hide(a) if type(a) is str else a for a in error.args)
            raise
        if not isinstance(store, StoreBase):
            raise errors.PluginError(
                f"{self.name}: its builder returned {type(store).__name__}, "
                "which is not derived from ucm.StoreBase"
            )
        native = ffi.NULL if place.lookup_only else place.layout
        try:
            return Bridge(place.name, store, layout, native, lower)
        except BaseException:
            store.close()
            raise

    def _made(self, layout: Layout | None, place: Place, lower: Lower | None) -> Any:
        given = place.config if self.options is None else _options(place.values)
        if not inspect.isclass(self._make):
            return self._make(layout, given, lower)
        if issubclass(self._make, UcmKVStoreBaseV1):
            from ucm.store.adapter import SeedStore

            return SeedStore(self._make, layout, {**place.config, **given}, lower)
        if self.options is None:
            host = {o.name for o in options.HOST_OPTIONS if o.name not in options.IDENTITY}
            given = {k.rpartition(".")[2]: v for k, v in place.config.items() if k not in host}
        own = (layout, given, lower) if lower else (layout, given)
        return self._make(*own)


_DEFAULT = LayerBase.__dict__["lower_layout"].__func__


def _checked(name: str, table: Any) -> tuple[Option, ...]:
    """Refuse a table that would fail later, in front of a user."""
    seen = set()
    for option in table:
        if not isinstance(option, Option) or option.type not in TYPES.values():
            raise errors.PluginError(f"{name}: OPTIONS has {option!r}, which is no ucm.Option")
        if option.name in seen:
            raise errors.PluginError(f"{name}: OPTIONS has {option.name!r} twice")
        seen.add(option.name)
        if option.initial is not None:
            options.check_value(option, option.initial)
    return tuple(table)


def _options(values: Sequence[Value]) -> dict[str, Any]:
    return {
        v.option.name: Secret(v.value) if v.option.type == "secret" else v.value for v in values
    }


def layout_from(native: Any) -> Layout:
    """Read a native layout, of which ``pipeline`` has checked flags and memory."""
    planes = strided("ucm_plane", native.planes, native.n_planes, native.plane_stride)
    dtypes = {plane.dtype for plane in planes}
    dtype = dtypes.pop() if len(dtypes) == 1 else 0
    return Layout(
        block_size=native.capacity * native.shards_per_block,
        shard_size=native.capacity,
        segment_sizes=tuple(native.segment_bytes[0 : native.n_segments]),
        dtype=options.DTYPES[dtype] if 0 <= dtype < len(options.DTYPES) else "bytes",
        memory="host" if native.memory == lib.UCM_MEMORY_HOST else "cuda",
        device=native.device,
        encoding=ffi.string(native.encoding).decode(errors="replace"),
        raw_shard_size=native.raw_capacity,
    )


def _native(name: str, layout: Any, wanted: Layout, keep: list[Any]) -> Any:
    out = ffi.new("ucm_layout *", layout[0])
    keep.append(out)
    out.flags, out.n_planes, out.planes = 0, 0, ffi.NULL
    out.memory, out.device = lib.UCM_MEMORY_HOST, -1
    encoding = wanted.encoding.encode()
    if len(encoding) >= lib.UCM_ENCODING_BYTES:
        raise errors.UnsupportedError(
            f"{name}: the encoding {wanted.encoding!r} has more than "
            f"{lib.UCM_ENCODING_BYTES - 1} characters; use fewer encoding layers"
        )
    out.encoding = encoding
    mine = layout_from(layout)
    if (wanted.segment_sizes, wanted.encoding) == (mine.segment_sizes, mine.encoding):
        out.n_planes, out.planes = layout.n_planes, layout.planes  # the same numbers
    else:
        segments = ffi.new("uint64_t[]", wanted.segment_sizes)
        keep.append(segments)
        out.n_segments, out.segment_bytes = len(segments), segments
    out.shards_per_block, out.capacity = wanted.shards_per_block, wanted.shard_size
    return out
