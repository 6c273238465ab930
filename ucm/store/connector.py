"""Stores of the oldest interface: a pipeline, with text ids, ``create`` and ``commit``."""

from __future__ import annotations

from typing import Any

from ucm.errors import ConfigError
from ucm.layout import MAX_SHARDS
from ucm.loader import Option
from ucm.options import check_value
from ucm.store import older_options
from ucm.store.blocks import BlockStore
from ucm.store.pipeline.connector import UcmPipelineStore

STAGING = Option(
    "staging_gb",
    "float",
    "0",
    "0..",
    "GiB",
    "Host memory for blocks that are not committed, and for loads of parts of shards; "
    "0: an eighth of what is free.",
)
_SIZE = Option("io_size", "size", "0", "0..", "bytes", "Bytes that are usually moved at once.")


def _available_bytes() -> int:
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":") for line in file)
    return int(fields["MemAvailable"].split()[0]) << 10


class UcmNfsStore(BlockStore):
    """``Cache|Posix``, or ``store_pipeline``, for programs of the oldest interface."""

    def __init__(self, config: dict[str, Any]) -> None:
        older = older_options.translate(config)
        staging_gb = check_value(STAGING, older.config.pop(STAGING.name, "0"))
        if older.config.get("memory") not in (None, "host"):
            raise ConfigError(
                "memory: this interface copies through host memory; use ucm.open_pipeline, or the "
                "interface of ucm.store.ucmstore_v1, for other"
            )
        _cut(older)
        with older.naming():
            store = UcmPipelineStore(older.config)
        older.report(store.store)
        layout = None if store.store.lookup_only else store.store.layout
        block_size = layout.block_size if layout else 0
        limit = int(staging_gb * 2**30) or max(_available_bytes() // 8, block_size)
        super().__init__(config, store, block_size, layout.shard_size if layout else 0, limit)


def _cut(older: older_options.Translated) -> None:
    """Make shards of what is usually moved at once, so that a load reads no more than it needs."""
    config = older.config
    io_size = check_value(
        _SIZE, config.pop("tensor_size", None) or 0, older.older.get("tensor_size")
    )
    block_size = check_value(_SIZE, config.get("block_size") or 0, "block_size")
    if io_size and not config.get("shard_size") and not config.get("tensor_size_list"):
        if block_size % io_size == 0 and block_size <= io_size * MAX_SHARDS:
            config["shard_size"] = io_size
        else:
            older.notes.append(f"io_size: no effect, because {io_size} does not divide a block")


class UcmPCStore(UcmNfsStore):
    """The same under another name."""


UcmPcStore = UcmPCStore
