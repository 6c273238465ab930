"""What ``ucm check`` finds out, apart from how it is shown."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import ucm
from ucm import _secrets, checks, checks_3fs, config, directory, options, pipeline
from ucm.config import Config
from ucm.errors import ConfigError, StoreError
from ucm.loader import Option
from ucm.options import Value

PROBE_BYTES = 1 << 20
_SIZES = (*config.SIZES, "kv_block_size", "io_size")  # the latter are the older stores'
_SECRET = re.compile(r"secret|password|passwd|token|credential|(^|_)key$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Row:
    """One value: what it is, where it comes from and who takes it."""

    key: str
    value: Any
    given: bool
    taken_by: str
    unit: str | None
    help: str
    effect: str | None  # why it has none, or None


def read(path: str) -> Config:
    """Read a whole configuration, or the options of a store alone."""
    data = config.read_file(path)
    if "store_pipeline" in data and "ucm_connectors" not in data:
        entry = {"ucm_connector_name": config.PIPELINE_STORE, "ucm_connector_config": data}
        try:
            found = config.load({"ucm_connectors": [entry]}, path)
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{config.INSIDE}.", "")) from None
        note = "ucm_connectors is missing: open_pipeline takes such a file, an engine does not"
        return dataclasses.replace(found, notes=[note, *found.notes])
    return config.load_file(path)


def explain(found: Config) -> list[Row]:
    """List every value, the store's first."""
    rows = [*_store_rows(found)]
    for name, value in found.values.items():
        reason = options.ENGINE_WITHOUT_EFFECT.get(name)
        effect = f"no effect yet, because {reason}" if reason else None
        rows.append(_row(name, value, "the engine's connector", effect))
    return rows


def _store_rows(found: Config) -> Iterator[Row]:
    shown = set()
    if config.is_pipeline(found):
        checked = pipeline.check(found.connector_config)
        for name, value in checked.options.host.items():
            yield _row(name, value, "the pipeline")
            shown.add(name)
        for word, values in zip(checked.words, checked.options.layers, strict=False):
            layer = word.rpartition(":")[2]
            for value in values:
                yield _row(value.option.name, value, layer)
                shown |= {value.option.name, f"{layer}.{value.option.name}"}
    for key, given in options.flatten(found.connector_config).items():
        if key not in shown:
            yield _leftover(key, given, found)


def _leftover(key: str, given: Any, found: Config) -> Row:
    """Show a key that no table explains."""
    kind = "secret" if _SECRET.search(key) else "string"
    value = Value(Option(key, kind, None, None, None, ""), given, True)
    for note in found.notes:
        if note.startswith(f"{key}: "):
            return _row(key, value, "nobody", note.removeprefix(f"{key}: "))
    return _row(key, value, found.connector_name)


def _row(key: str, value: Value, taken_by: str, effect: str | None = None) -> Row:
    option = value.option
    shown = _secrets.SHOWN if option.hidden and value.value else value.value
    return Row(key, shown, value.given, taken_by, option.unit, option.help, effect)


def warnings(found: Config) -> list[checks.Finding]:
    """Look at this machine with the eyes of the layers."""
    if not config.is_pipeline(found):
        return []
    checked = pipeline.check(found.connector_config)
    layers = {
        word.rpartition(":")[2]: {value.option.name: value.value for value in values}
        for word, values in zip(checked.words, checked.options.layers, strict=False)
    }
    warned: list[checks.Finding] = []
    if "Cache" in layers:
        cache = layers["Cache"]
        warned += checks.pool_warnings(
            cache["cache_buffer_capacity_gb"], cache["share_buffer_enable"]
        )
    if "Ds3fs" in layers:
        of_3fs = layers["Ds3fs"]
        quota = of_3fs["posix_capacity_gb"] * checks.GIB / max(1, len(of_3fs["storage_backends"]))
        warned += checks_3fs.warnings(of_3fs, int(quota))
    if "Posix" in layers:
        posix = layers["Posix"]
        directories = posix["storage_backends"]
        # Directories share it evenly.
        quota = posix["posix_capacity_gb"] * checks.GIB / max(1, len(directories))
        for directory in filter(os.path.isdir, directories):  # opening it says what is missing
            warned += checks.directory_warnings(
                directory,
                posix["io_direct"],
                int(quota),
            )
        threads = 2 * posix["posix_data_trans_concurrency"]
        warned += checks.nofile(threads, len(directories), checks.read_limits())
    return warned


def probe(found: Config) -> dict[str, Any]:
    """Open the store, move a block of random bytes there and back, and remove it."""
    given = dict(found.connector_config)
    ours = config.is_pipeline(found) or found.connector_name in config.OLDER_STORES
    sized = any(given.get(key) for key in _SIZES)
    if ours:
        if not sized:
            given["block_size"] = PROBE_BYTES
        # Not the engine's own: a probe is to disturb no engine that runs, and to move bytes.
        given["unique_id"] = f"ucm-check-{secrets.token_hex(8)}"
        if given.get("device_id") in (-1, "-1"):
            given["device_id"] = 0
            given.pop("memory", None)
    # Where names are recorded the probe has one of its own, and leaves no empty space behind.
    directories = _named_directories(given) if config.is_pipeline(found) else []
    if directories:
        given["namespace"] = given["unique_id"]
    try:
        if ours and given.get("memory") not in (None, "host"):
            _open(found, given).close()  # says what is missing; the probe's block is in host memory
            del given["memory"]
        result = _Probe(lambda: _open(found, given)).run()
    finally:
        for path in directories:
            with contextlib.suppress(StoreError, OSError):
                for space in directory.inspect(path, given["namespace"]).spaces:
                    directory.remove(space)
    return {"sizes": "given" if sized else "a default, because none are given", **result}


def _named_directories(given: dict[str, Any]) -> list[str]:
    """Return the directories of layers that keep blocks by their namespace."""
    layers = [
        {v.option.name: v.value for v in layer} for layer in pipeline.check(given).options.layers
    ]
    return [d for o in layers if "namespace" in o for d in o.get("storage_backends", ())]


def _open(found: Config, given: dict[str, Any]) -> ucm.Store:
    """Open a pipeline, or another connector; of those only stores of ours can be probed."""
    from ucm.store.factory_v1 import UcmConnectorFactoryV1

    if config.is_pipeline(found):
        return ucm.open_pipeline(given)
    name, module = found.connector_name, found.connector_module_path
    made: Any = UcmConnectorFactoryV1.create_connector(name, given, module)
    store = getattr(made, "store", None)
    if isinstance(store, ucm.Store):
        return store
    made.lookup([secrets.token_bytes(16)])
    raise NotProbed(f"{name} was created and asked for a block; only our own stores are probed")


class NotProbed(Exception):
    """A store of somebody else's, whose sizes only its author knows."""


class _Probe:
    """One block through a store that is opened again in between, so that it is really read."""

    def __init__(self, reopen: Callable[[], ucm.Store]) -> None:
        self._reopen = reopen
        self._times: dict[str, float] = {}
        self._id = secrets.token_bytes(16)
        self._removed = False

    def run(self) -> dict[str, Any]:
        store: ucm.Store = self._timed("open", self._reopen)
        with store:
            layout, can = store.layout, store.capabilities
            assert layout is not None
            data, again = os.urandom(layout.block_size), bytearray(layout.block_size)
            self._timed("dump", lambda: self._dump(store, layout, data))
            if "persistent" not in can:
                self._load_and_remove(store, layout, data, again)
        if "persistent" in can:
            with self._reopen() as store:
                self._load_and_remove(store, layout, data, again)
        return {
            "id": self._id.hex(),
            "block_size": layout.block_size,
            "shard_size": layout.shard_size,
            "capabilities": sorted(can),
            "verified": again == data if {"keeps", "loads"} <= can else None,
            "removed": self._removed,
            "times_ms": {name: round(ms, 3) for name, ms in self._times.items()},
        }

    def _timed(self, name: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        self._times[name] = (time.perf_counter() - start) * 1e3
        return result

    def _shards(self, layout: ucm.Layout, memory: Any) -> tuple[list[bytes], list[int], Any]:
        view, at, rows = memoryview(memory), 0, []
        for _ in range(layout.shards_per_block):
            row = []
            for size in layout.segment_sizes:
                row.append(view[at : at + size])
                at += size
            rows.append(row)
        return [self._id] * len(rows), list(range(len(rows))), rows

    def _dump(self, store: ucm.Store, layout: ucm.Layout, data: bytes) -> None:
        store.wait(store.dump(*self._shards(layout, data)))
        report = store.drain()
        if report.lost or report.pending or report.unfinished:
            raise ucm.StoreError(f"the probe block was not stored: {report}; the log says why")

    def _load_and_remove(
        self, store: ucm.Store, layout: ucm.Layout, data: bytes, again: bytearray
    ) -> None:
        try:
            self._load(store, layout, data, again)
        finally:
            if "remove" in store.capabilities:
                self._timed("remove", lambda: store.remove([self._id]))
                self._removed = True

    def _load(self, store: ucm.Store, layout: ucm.Layout, data: bytes, again: bytearray) -> None:
        can = store.capabilities
        found = self._timed("lookup", lambda: store.lookup([self._id]))
        if "keeps" in can and not all(found):
            raise ucm.NotFoundError("the probe block was stored, and then not found")
        if not {"keeps", "loads"} <= can:
            return
        self._timed("load", lambda: store.wait(store.load(*self._shards(layout, again))))
        if again != data:
            raise ucm.CorruptError("the probe block came back as other bytes than went in")


def run(path: str) -> dict[str, Any]:
    """Check a file: its values, this machine, and a block there and back."""
    found = read(path)
    report: dict[str, Any] = {
        "file": path,
        "ok": False,
        "connector": found.connector_name,
        "pipeline": found.connector_config.get("store_pipeline"),
        "values": [dataclasses.asdict(row) for row in explain(found)],
        "notes": found.notes,
        "warnings": [],
        "probe": None,
        "error": None,
    }
    report["warnings"] = [dataclasses.asdict(warning) for warning in warnings(found)]
    try:
        report["probe"] = probe(found)
        report["ok"] = True
    except NotProbed as reason:
        report["notes"] = [*found.notes, str(reason)]
        report["ok"] = True
    except (StoreError, OSError) as error:
        report["error"] = str(error)
    except Exception as error:  # a connector of somebody else's may raise anything
        report["error"] = f"{type(error).__name__}: {error}"
    return report
