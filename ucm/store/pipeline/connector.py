"""``UcmPipelineStore``: a pipeline of layers behind ``UcmKVStoreBaseV1``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ucm.errors import ConfigError, UnsupportedError
from ucm.store.ucmstore_v1 import Task, UcmKVStoreBaseV1
from ucm.store_api import Store, open_pipeline

Builder = Callable[[dict[str, Any]], Store]


class UcmPipelineStoreBuilder:
    """Pipelines that need other wiring than their string says, by name."""

    _builders: dict[str, Builder] = {}

    @classmethod
    def register(cls, name: str, builder: Builder) -> None:
        """Let ``builder(config)`` open the pipeline when ``store_pipeline`` is ``name``."""
        cls._builders[name] = builder

    @classmethod
    def get(cls, name: str) -> Builder:
        """Return the builder of a name; for any other the layers are stacked as the string says."""
        return cls._builders.get(name, open_pipeline)


class UcmPipelineStore(UcmKVStoreBaseV1):
    """Opens ``config["store_pipeline"]``; the other keys are options of layers or of the host."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config)
        pipeline = config.get("store_pipeline")
        if not pipeline:
            raise ConfigError("store_pipeline: it is needed, as in 'Cache|Posix'")
        self.store = UcmPipelineStoreBuilder.get(pipeline)(config)

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
        """Start to store memory given by address."""
        if prerequisite_handle:
            raise UnsupportedError(
                "prerequisite_handle: no layer of this pipeline can wait for a device event"
            )
        return self.store.dump_data(block_ids, shard_index, src_addr)

    def wait(self, task: Task) -> None:
        """Block until the task has finished; raise StoreError, a RuntimeError, if it failed."""
        self.store.wait(task)

    def check(self, task: Task) -> bool:
        """Tell whether the task has finished."""
        return self.store.check(task)

    def close(self) -> None:
        """Finish and release everything."""
        self.store.close()
