"""What words a pipeline string may use, and where each comes from."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import threading
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import pluggy

from ucm import errors, hookspecs, options
from ucm._kind import PythonKind
from ucm._version import __version__
from ucm.loader import Library, Metric, Option, loader
from ucm.logs import logger
from ucm.python_store import StoreBase

PLUGINS_ENV = "UCM_PLUGINS"
OURS = "ucm-store"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A registered word: exactly one of ``path`` and ``python`` is set."""

    name: str
    origin: str
    path: str | None = None
    python: PythonKind | None = None
    origin_version: str = ""


Kind = Library | PythonKind


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """What ``ucm plugins`` shows of one word. ``error`` says why it cannot be used, or is None.

    ``origin`` is the distribution that registered it, with ``origin_version``; ``abi`` is that of
    a library, "" for a store in Python.
    """

    name: str
    origin: str
    path: str | None
    version: str = ""
    summary: str = ""
    needs_lower: bool = False
    options: tuple[Option, ...] = ()
    metrics: tuple[Metric, ...] = ()
    error: str | None = None
    takes_cuda: bool = False
    origin_version: str = ""
    abi: str = ""


class _Shipped:
    """Our own layers, registered as any other package registers its own."""

    @hookspecs.hookimpl
    def ucm_register_stores(self, register: hookspecs.Register) -> None:
        for path in shipped_libraries():
            register(path.stem.capitalize(), path)


def shipped_libraries() -> list[Path]:
    """Find the libraries in the package's own folder of plugins."""
    return sorted(options.tables_file().parent.glob("*.so"))


class Registry:
    """The words known to this process. Thread-safe; nothing is opened before it is named."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards all below
        self._entries: dict[str, list[Entry]] = {}
        self._broken: list[PluginInfo] = []
        self._manager = pluggy.PluginManager("ucm")
        self._manager.add_hookspecs(hookspecs)
        self._load(OURS, _Shipped(), __version__)
        self._broken += _rivals()
        for point in metadata.entry_points(group="ucm"):
            self._load_entry_point(point)
        self._load_files(os.environ.get(PLUGINS_ENV, ""))

    def register(
        self, name: str, store: object, origin: str = "this program", origin_version: str = ""
    ) -> None:
        """Make a store known under a name; see :func:`ucm.hookspecs.ucm_register_stores`."""
        entry = dataclasses.replace(_entry(name, store, origin), origin_version=origin_version)
        with self._lock:
            self._entries.setdefault(name, []).append(entry)

    def find(self, word: str) -> Entry:
        """Return the entry of ``Name``, or of ``dist:Name`` where two packages have the name."""
        dist, _, name = word.rpartition(":")
        with self._lock:
            entries = [e for e in self._entries.get(name, []) if not dist or e.origin == dist]
            broken = [i for i in self._broken if name in (i.name, i.origin) or i.origin == dist]
            files = [info.error for info in self._broken if info.origin == PLUGINS_ENV]
            known = sorted(self._entries)
        if len(entries) == 1:
            return entries[0]
        if len(entries) > 1:
            raise errors.PluginError(_clash(name, entries))
        if broken:
            raise errors.PluginError(f"the store {word!r} was refused: {broken[0].error}")
        near = difflib.get_close_matches(name.capitalize(), known, 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        refused = f"; of {PLUGINS_ENV} was refused: {'; '.join(map(str, files))}" if files else ""
        raise errors.ConfigError(
            f"store_pipeline: there is no store {word!r}{hint}; known: {', '.join(known)}. "
            f"'ucm plugins' says where each comes from{refused}"
        )

    def describe(self) -> list[PluginInfo]:
        """Describe every word, opening the libraries; refused ones carry their reason."""
        with self._lock:
            entries = [entry for name in sorted(self._entries) for entry in self._entries[name]]
            broken = list(self._broken)
        return [_info(entry) for entry in entries] + broken

    def _load(self, origin: str, plugin: object, version: str) -> None:
        self._manager.register(plugin)
        hook = self._manager.subset_hook_caller(
            "ucm_register_stores", [p for p in self._manager.get_plugins() if p is not plugin]
        )
        hook(register=functools.partial(self.register, origin=origin, origin_version=version))

    def _load_entry_point(self, point: metadata.EntryPoint) -> None:
        origin = point.dist.name if point.dist else point.value
        version = point.dist.version if point.dist else ""
        try:
            self._load(origin, point.load(), version)
        except (Exception, SystemExit) as error:  # one broken package breaks only itself
            reason = (
                f"{origin} ({point.value}): {type(error).__name__}: {error}; "
                f"repair or pip uninstall {origin}"
            )
            self._broken.append(
                PluginInfo(point.name, origin, None, error=reason, origin_version=version)
            )

    def _load_files(self, paths: str) -> None:
        """Make libraries known that an environment variable names, by themselves or by folder."""
        named = list(filter(None, paths.split(":")))
        inside = {p: sorted(map(str, Path(p).glob("*.so"))) for p in named if os.path.isdir(p)}
        for path in (file for p in named for file in inside.get(p, [p])):
            try:
                self.register(loader.open(path).name, path, origin=PLUGINS_ENV)
            except errors.StoreError as error:
                name = Path(path).stem
                self._broken.append(PluginInfo(name, PLUGINS_ENV, path, error=str(error)))


def _clash(name: str, entries: Sequence[Entry]) -> str:
    if len({entry.origin for entry in entries}) == 1:
        what = " and ".join(str(e.path or (e.python and e.python.path)) for e in entries)
        return f"the store {name!r} is registered twice by {entries[0].origin}: {what}; keep one"
    known = " and ".join(f"{e.origin} {e.origin_version}".strip() for e in entries)
    choices = " or ".join(f"{e.origin}:{name}" for e in entries)
    return f"the store {name!r} is registered more than once, by {known}; say which one: {choices}"


def _rivals() -> list[PluginInfo]:
    """Find other installed packages that own the name ``ucm``; their files and ours would mix."""
    found = []
    for dist in metadata.distributions():
        name = (dist.name or "").lower().replace("_", "-")
        # Reading every package's file list would take too long.
        if not name.startswith(("uc-manager", "ucm")) or name == "ucm-store":
            continue
        if "\nucm/" not in "\n" + (dist.read_text("RECORD") or ""):
            continue
        reason = (
            f"{dist.name} {dist.version} installs a package 'ucm' over this one; "
            f"pip uninstall {dist.name}, then pip install --force-reinstall ucm-store"
        )
        logger.warning("%s", reason)
        found.append(PluginInfo("ucm", dist.name, None, error=reason))
    return found


def _entry(name: str, store: object, origin: str) -> Entry:
    if not (name.isascii() and name.isalnum() and name[0].isalpha()):
        raise errors.ConfigError(
            f"register({name!r}): a store's name is a letter followed by letters and digits"
        )
    if inspect.isclass(store):
        from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1

        if not issubclass(store, (StoreBase, UcmKVStoreBaseV1)):
            raise errors.ConfigError(
                f"register({name!r}): {store.__name__} is derived from neither ucm.StoreBase nor "
                "UcmKVStoreBaseV1"
            )
        return Entry(name, origin, python=PythonKind(name, store))
    if isinstance(store, (str, os.PathLike)):
        return Entry(name, origin, path=os.fspath(store))
    if callable(store):
        return Entry(name, origin, python=PythonKind(name, store))
    raise errors.ConfigError(
        f"register({name!r}): give the path of a library, a class or a builder, "
        f"not {type(store).__name__}"
    )


def kind_of(entry: Entry) -> Kind:
    """Return what makes the entry's stores; a library is opened, and is what it is named."""
    if entry.python is not None:
        return entry.python
    assert entry.path is not None
    library = loader.open(entry.path, ours=entry.origin == OURS)
    if library.name != entry.name:
        raise errors.PluginError(
            f"{entry.path}: refused: registered as {entry.name!r}, but it calls itself "
            f"{library.name!r}"
        )
    return library


def _info(entry: Entry) -> PluginInfo:
    try:
        kind = kind_of(entry)
    except errors.StoreError as error:
        return PluginInfo(
            entry.name,
            entry.origin,
            entry.path,
            error=str(error),
            origin_version=entry.origin_version,
        )
    return PluginInfo(
        entry.name,
        entry.origin,
        kind.path,
        kind.version or entry.origin_version,
        kind.summary,
        bool(kind.needs_lower),
        kind.options or (),
        kind.metrics,
        takes_cuda=kind.takes_cuda,
        origin_version=entry.origin_version,
        abi=kind.abi,
    )


@functools.cache
def registry() -> Registry:
    """Return the process's registry, made when first needed."""
    return Registry()


def plugins() -> list[PluginInfo]:
    """List every store that a pipeline string may name, and every one that was refused and why."""
    return registry().describe()
