"""``UcmPipelineStore``: a pipeline of layers behind ``UcmKVStoreBaseV1``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from ucm import pipeline
from ucm.errors import ConfigError
from ucm.store.ucmstore_v1 import Task, UcmKVStoreBaseV1
from ucm.store_api import Store, open_pipeline


class PipelineStore:
    """Layers that a builder stacks, from the bottom up; they are opened when it has returned."""

    def __init__(self) -> None:
        self.layers: list[pipeline.Wired] = []  # top first

    def Stack(
        self,
        name: str,
        path: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """Put a layer on top: the library at ``path``, or the one registered under ``name``.

        ``config`` has its options, and may have the keys of other layers too. Of the sizes those of
        the top layer count: each layer tells the one below what it will be given.
        """
        layer = pipeline.Wired(name, os.fspath(path) if path else None, dict(config or {}))
        self.layers.insert(0, layer)


Builder = Callable[[dict[str, Any], PipelineStore], object]


class UcmPipelineStoreBuilder:
    """Pipelines that need other wiring than their string says, by name."""

    _builders: dict[str, Builder] = {}

    @classmethod
    def register(cls, name: str, builder: Builder) -> None:
        """Let ``builder(config, pipeline)`` stack the layers of the pipeline ``name``."""
        cls._builders[name] = builder

    @classmethod
    def get(cls, name: str) -> Builder:
        """Return the builder of a name; for any other one that stacks what the string says."""

        def as_written(config: dict[str, Any], stack: PipelineStore) -> None:
            for word in reversed(pipeline.parse(name)):
                stack.Stack(word, None, config)

        return cls._builders.get(name, as_written)

    @classmethod
    def open(cls, config: dict[str, Any]) -> Store:
        """Open ``config["store_pipeline"]``, with its builder if it has one."""
        name = config.get("store_pipeline")
        if not name:
            raise ConfigError("store_pipeline: it is needed, as in 'Cache|Posix'")
        if name not in cls._builders:
            return open_pipeline(config)
        stack = PipelineStore()
        cls._builders[name](config, stack)
        if not stack.layers:
            raise ConfigError(
                f"store_pipeline: the builder of {name!r} stacked nothing; it has to call "
                "pipeline.Stack for every layer, from the bottom up"
            )
        return Store(config, stack.layers)


class UcmPipelineStore(UcmKVStoreBaseV1):
    """Opens ``config["store_pipeline"]``; the other keys are options of layers or of the host."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        self.store = UcmPipelineStoreBuilder.open(config)

    def cc_store(self) -> int:
        """Return the address of the top layer's ``ucm_store``, or 0 for a Python store."""
        return self.store.native_handle()

    def lookup(self, block_ids: list[bytes]) -> list[bool]:
        """Tell for each block whether it is published."""
        return self.store.lookup(block_ids)

    def lookup_on_prefix(self, block_ids: list[bytes]) -> int:
        """Return the index of the last block of the longest published prefix, or -1."""
        return self.store.lookup_on_prefix(block_ids)

    def lookup_on_reverse(self, block_ids: list[bytes]) -> int:
        """Return the index of the rightmost published block, or -1."""
        return self.store.lookup_on_reverse(block_ids)

    def prefetch(self, block_ids: list[bytes]) -> None:
        """Hint that blocks will be loaded soon."""
        self.store.prefetch(block_ids)

    def load(self, block_ids: list[bytes], shard_index: list[int], dst_tensor: Any) -> Task:
        """Start to fill rows of tensors."""
        return self.store.load(block_ids, shard_index, dst_tensor)

    def dump(self, block_ids: list[bytes], shard_index: list[int], src_tensor: Any) -> Task:
        """Start to store rows of tensors."""
        return self.store.dump(block_ids, shard_index, src_tensor)

    def load_data(self, block_ids: list[bytes], shard_index: list[int], dst_addr: Any) -> Task:
        """Start to fill memory given by address."""
        return self.store.load_data(block_ids, shard_index, dst_addr)

    def dump_data(
        self,
        block_ids: list[bytes],
        shard_index: list[int],
        src_addr: Any,
        prerequisite_handle: int = 0,
    ) -> Task:
        """Start to store memory given by address, when that event of its device has come."""
        return self.store.dump_data(
            block_ids, shard_index, src_addr, prerequisite_handle=prerequisite_handle
        )

    def wait(self, task: Task) -> None:
        """Block until the task has finished; raise StoreError, a RuntimeError, if it failed."""
        self.store.wait(task)

    def check(self, task: Task) -> bool:
        """Tell whether the task has finished."""
        return self.store.check(task)

    def close(self) -> None:
        """Finish and release everything."""
        self.store.close()
