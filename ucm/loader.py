"""LibraryLoader: a path to a shared library becomes a checked description of its plugin."""

from __future__ import annotations

import dataclasses
import os
import struct
import threading
from typing import Any

from ucm import _trust, errors
from ucm._abi import ffi, lib

TYPES = dict(
    enumerate(("bool", "int", "size", "float", "string", "strings", "ints", "secret"), start=1)
)
UNKNOWN = "unknown"  # an option's type that came after this version: its value is text
_KINDS = {1: "counter", 2: "gauge", 3: "histogram"}
_SCOPES = {0: "store", 1: "shared"}
NEEDS_LOWER = 1
_KNOWN_FLAGS = NEEDS_LOWER
# Where the structs of 1.0 end, for ever: newer hosts read appended members only where they are.
_LAST_OF_1_0 = {
    "ucm_plugin": "open",
    "ucm_option": "help",
    "ucm_metric": "help",
    "ucm_plane": "kind",
}


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a layer.

    ``type`` is one of bool, int, size, float, string, strings, ints, secret; unknown, where it is
    newer than this version. ``initial`` is its default as text, None: required. ``allowed`` is
    "a|b|c" or a closed range, "1..9" or "1..".
    """

    name: str
    type: str
    initial: str | None
    allowed: str | None = None
    unit: str | None = None
    help: str = ""

    @property
    def hidden(self) -> bool:
        """Tell whether values must not be shown: what is not known may be a secret."""
        return self.type in ("secret", UNKNOWN)


@dataclasses.dataclass(frozen=True)
class Metric:
    """One metric of a layer: counter, gauge or histogram."""

    name: str
    kind: str
    scope: str
    unit: str
    help: str


@dataclasses.dataclass(frozen=True)
class Library:
    """A plugin as its library describes it. ``plugin`` is the C descriptor."""

    path: str
    name: str
    version: str
    abi: str
    summary: str
    needs_lower: bool
    takes_cuda: bool
    options: tuple[Option, ...]
    metrics: tuple[Metric, ...]
    plugin: Any


def _text(pointer: Any) -> str | None:
    return None if pointer == ffi.NULL else ffi.string(pointer).decode(errors="replace")


def abi_of(major: int, minor: int, draft: int) -> str:
    """Write the version of an ABI: "1.0", or "1.0 draft 1"."""
    return f"{major}.{minor}" + (f" draft {draft}" if draft else "")


def own_abi() -> str:
    """Write the version of the ABI that this package has."""
    return abi_of(lib.UCM_ABI_MAJOR, lib.UCM_ABI_MINOR, lib.UCM_ABI_DRAFT)


def has(pointer: Any, struct: str, member: str) -> bool:
    """Tell whether the member is inside what the other side provided, as UCM_HAS does."""
    return bool(pointer.struct_size >= _end(struct, member))


def _end(struct: str, member: str) -> int:
    kind = dict(ffi.typeof(struct).fields)[member].type
    return int(ffi.offsetof(struct, member)) + int(ffi.sizeof(kind))


def minimum(struct: str) -> int:
    """Return the bytes that every version of a struct has."""
    return _end(struct, _LAST_OF_1_0[struct])


def strided(ctype: str, first: Any, n: int, stride: int) -> list[Any]:
    """Return pointers to the entries of an array that came with its stride, as UCM_AT does."""
    base = ffi.cast("char *", first)
    return [ffi.cast(f"{ctype} *", base + i * stride) for i in range(n)]


def _check(path: str, plugin: Any) -> None:
    """Refuse a plugin of another ABI, naming the field and both values."""

    def refuse(field: str, theirs: object, ours: object, what: str) -> errors.PluginError:
        return errors.PluginError(
            f"{path}: refused: its {field} is {theirs}, this ucm has {ours}; {what}"
        )

    rebuild = "rebuild it against this version's headers (ucm config --includedir)"
    if plugin.abi_major != lib.UCM_ABI_MAJOR:
        raise refuse("abi_major", plugin.abi_major, lib.UCM_ABI_MAJOR, rebuild)
    _check_draft(path, plugin)
    if not has(plugin, "ucm_plugin", "open"):
        raise refuse("struct_size", plugin.struct_size, minimum("ucm_plugin"), rebuild)
    if plugin.flags & ~_KNOWN_FLAGS:
        raise refuse("flags", hex(plugin.flags), hex(_KNOWN_FLAGS), "upgrade ucm-store")
    for table, ctype in (("option", "ucm_option"), ("metric", "ucm_metric")):
        if not getattr(plugin, f"n_{table}s"):
            continue
        field, stride = f"{table}_stride", getattr(plugin, f"{table}_stride")
        if stride < minimum(ctype) or stride % 8:
            raise refuse(field, stride, minimum(ctype), rebuild)
        if getattr(plugin, f"{table}s") == ffi.NULL:
            raise errors.PluginError(f"{path}: refused: its {table}s are NULL")
    name = _text(plugin.name) or ""
    if not name.isascii() or not name.isalnum() or not name[0].isalpha():
        raise errors.PluginError(
            f"{path}: refused: its name {name!r} is not a letter followed by letters and digits"
        )
    if plugin.open == ffi.NULL:
        raise errors.PluginError(f"{path}: refused: its open is NULL")


def _check_draft(path: str, plugin: Any) -> None:
    """Refuse what was built with a header that was not frozen, unless it is ours."""
    minor, draft = lib.UCM_ABI_MINOR, lib.UCM_ABI_DRAFT
    if (plugin.abi_minor, plugin.abi_draft) == (minor, draft):
        return
    if plugin.abi_draft == 0 and (draft == 0 or plugin.abi_minor < minor):
        return
    if plugin.abi_draft:
        theirs = abi_of(plugin.abi_major, plugin.abi_minor, plugin.abi_draft)
        raise errors.PluginError(
            f"{path}: refused: its abi_draft is {plugin.abi_draft}, this ucm has {draft}: a build "
            f"for a draft, {theirs}; get the vendor's build for "
            f"ABI {plugin.abi_major}.{plugin.abi_minor}, or rebuild it (ucm config --includedir)"
        )
    raise errors.PluginError(
        f"{path}: refused: its abi_minor is {plugin.abi_minor}, and this ucm is a draft of "
        f"{abi_of(lib.UCM_ABI_MAJOR, minor, 0)}; upgrade ucm-store"
    )


def _describe(path: str, plugin: Any) -> Library:
    options = []
    for o in strided("ucm_option", plugin.options, plugin.n_options, plugin.option_stride):
        known = o.type in TYPES
        options.append(
            Option(
                _text(o.name) or "",
                TYPES.get(o.type, UNKNOWN),
                _text(o.initial),
                _text(o.allowed) if known else None,
                _text(o.unit),
                _text(o.help) or "",
            )
        )
    metrics = []
    for m in strided("ucm_metric", plugin.metrics, plugin.n_metrics, plugin.metric_stride):
        if m.kind not in _KINDS:
            break  # how many values it takes is not known, so what follows cannot be found
        metrics.append(
            Metric(
                _text(m.name) or "",
                _KINDS[m.kind],
                _SCOPES.get(m.scope, "store"),
                _text(m.unit) or "",
                _text(m.help) or "",
            )
        )
    return Library(
        path=path,
        name=_text(plugin.name) or "",
        version=_text(plugin.version) or "",
        abi=abi_of(plugin.abi_major, plugin.abi_minor, plugin.abi_draft),
        summary=_text(plugin.summary) or "",
        needs_lower=bool(plugin.flags & NEEDS_LOWER),
        takes_cuda=bool(plugin.memories >> lib.UCM_MEMORY_CUDA & 1),
        options=tuple(options),
        metrics=tuple(metrics),
        plugin=plugin,
    )


def _cut_short(path: str) -> bool:
    """Tell whether segments of a 64-bit library end past its file: dlopen would crash on them."""
    try:
        with open(path, "rb") as file:
            head = file.read(64)
            if len(head) < 64 or head[:6] != b"\x7fELF\x02\x01":
                return False
            (table,) = struct.unpack_from("<Q", head, 32)
            entry_bytes, count = struct.unpack_from("<HH", head, 54)
            file.seek(min(table, 2**62))
            entries = file.read(entry_bytes * count)
    except OSError:
        return False  # dlopen says why
    ends = [sum(struct.unpack_from("<Q16xQ", e, 8)) for e in _pieces(entries, entry_bytes or 56)]
    return len(entries) < entry_bytes * count or max(ends, default=0) > os.path.getsize(path)


def _pieces(data: bytes, size: int) -> list[bytes]:
    pieces = [data[i : i + size] for i in range(0, len(data), size)]
    return [piece for piece in pieces if len(piece) >= 56]


class LibraryLoader:
    """Opens plugin libraries, each once, and keeps them open for the life of the process.

    Where another file has taken a library's place it is another library.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._libraries: dict[tuple[str, int, int], tuple[tuple[int, int], Library]] = {}
        self._opened: dict[str, int] = {}  # how often each path led to another file

    def open(self, path: str, ours: bool = False) -> Library:
        """Return the library's description, or raise PluginError with file, reason and remedy.

        ``ours``: it lies in this package, so that whoever can change it can change this code too.
        """
        with self._lock:
            if not os.path.isabs(path):
                raise errors.PluginError(f"{path}: refused: give the absolute path of the library")
            if not os.path.isfile(path):
                raise errors.PluginError(f"{path}: there is no such file")
            st = os.stat(path)
            key, content = (path, st.st_dev, st.st_ino), (st.st_size, st.st_mtime_ns)
            known = self._libraries.get(key)
            if known is None:
                known = self._libraries[key] = content, self._open(path, ours)
            if known[0] != content:
                raise errors.PluginError(
                    f"{path}: refused: it was written over while it was open; put a new file in "
                    "its place (install does, cp does not), and start again"
                )
            return known[1]

    def _open(self, path: str, ours: bool) -> Library:
        if not ours:
            _trust.check(path)
        if _cut_short(path):
            raise errors.PluginError(f"{path}: refused: it does not load: the file is cut short")
        reason = ffi.new("char[]", 512)
        # dlopen takes a name that it knows for the file that it knows, whatever is there by now.
        folder, name = os.path.split(path)
        fresh = os.path.join(folder, "./" * self._opened.get(path, 0) + name)
        plugin = lib.ucmh_open_library(fresh.encode(), reason, 512)
        if plugin == ffi.NULL:
            why = ffi.string(reason).decode(errors="replace")
            raise errors.PluginError(f"{path}: refused: {why}")
        self._opened[path] = self._opened.get(path, 0) + 1
        _check(path, plugin)
        return _describe(path, plugin)


loader = LibraryLoader()
