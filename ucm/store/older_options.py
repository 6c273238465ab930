"""Keys of older configurations, as those of today.

A key in camel case, as in ``transferIoSize``, is read as ``io_size``. Every other key goes through
as it is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ucm.errors import ConfigError
from ucm.loader import Option
from ucm.logs import logger
from ucm.options import check_value
from ucm.store_api import Store

PIPELINE = "Cache|Posix"

RENAMED = {
    "kv_block_size": "block_size",
    "io_size": "tensor_size",
    "device": "device_id",
    "use_direct": "io_direct",
    "storage_capacity": "posix_capacity_gb",
    "recycle_enable": "posix_gc_enable",
    "recycle_threshold_ratio": "posix_gc_trigger_threshold_ratio",
}

WITHOUT_EFFECT = {
    "buffer_number": "Cache's memory is set by cache_buffer_capacity_gb",
    "use_scatter_gather": "memory may lie anywhere",
    "scatter_gather_enable": "memory may lie anywhere",
    "shard_data_dir": "folders are always named by three hex digits",
    "local_rank_size": "ranks are found by their unique_id",
    "stream_number": "host memory needs no copy streams",
    "transfer_enable": "role says who moves blocks",
}

_CAPACITY = Option("storage_capacity", "size", "0", "0..", "bytes", "Most that may be stored.")
_ROLE = Option("role", "string", "worker", "scheduler|worker", None, "Who looks up, who moves.")


@dataclasses.dataclass
class Translated:
    """A configuration of today, and how it came from an older one."""

    config: dict[str, Any]
    older: dict[str, str] = dataclasses.field(default_factory=dict)  # its keys by today's
    notes: list[str] = dataclasses.field(default_factory=list)

    def put(self, key: str, older: str, value: Any) -> None:
        """Set a key of today from an older one."""
        if self.config.get(key) not in (None, value):
            raise ConfigError(
                f"{older}: {value!r} means {key}, but {self.older.get(key, key)} is "
                f"{self.config[key]!r}; keep one of them"
            )
        self.config[key] = value
        self.older[key] = older
        self.notes.append(f"{older}: read as {key}: {value!r}")

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Let errors about a key name the older one that it came from."""
        try:
            yield
        except ConfigError as error:
            older = self.older.get(str(error).partition(":")[0])
            if older is None:
                raise
            raise ConfigError(f"{older}: read as {error}") from None

    def report(self, store: Store) -> None:
        """Put the notes before those of the store, which has reported its own."""
        for note in self.notes:
            logger.info("%s", note)
        store.notes[:0] = self.notes


def _snake(key: str) -> str:
    if key.islower() or "." in key or not key[:1].islower():
        return key
    return re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), key).removeprefix("transfer_")


def translate(config: Mapping[str, Any]) -> Translated:
    """Return the configuration with today's keys, and a note for each that was another."""
    older = {key: _snake(key) for key in config if isinstance(key, str)}
    known = RENAMED.keys() | WITHOUT_EFFECT.keys() | {"role"}
    result = Translated(
        {k: v for k, v in config.items() if older.get(k, k) == k and k not in known}
    )
    result.config.setdefault("store_pipeline", PIPELINE)
    for key, snake in older.items():
        if key in result.config:
            continue
        value = config[key]
        if snake == "buffer_number" and "Fake" in str(result.config["store_pipeline"]):
            result.put(snake, key, value)
        elif snake in WITHOUT_EFFECT:
            result.notes.append(f"{key}: no effect, because {WITHOUT_EFFECT[snake]}")
        elif snake == "storage_capacity":
            capacity = check_value(_CAPACITY, value, key)
            result.put(RENAMED[snake], key, capacity / 2**30)
            result.notes.append(f"{key}: taken as bytes")
        elif snake != "role":
            result.put(RENAMED.get(snake, snake), key, value)
    _take_role(config, result)
    return result


def _take_role(config: Mapping[str, Any], result: Translated) -> None:
    """A scheduler only looks up, whatever device it names."""
    if config.get("role") is None:
        return
    if check_value(_ROLE, config["role"]) == "scheduler":
        result.config.pop("device_id", None)
        result.put("device_id", "role", -1)
    elif result.config.get("device_id") in (-1, "-1"):
        raise ConfigError(
            f"role: 'worker' moves blocks, but {result.older.get('device_id', 'device_id')} is -1, "
            "which only looks up; keep one of them"
        )
