"""A ``UcmKVStoreBaseV1`` class as a Python store of a pipeline string."""

from __future__ import annotations

from typing import Any

from ucm._abi import ffi
from ucm._lower import Lower
from ucm.errors import InvalidError
from ucm.layout import Layout
from ucm.python_store import StoreBase
from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1


class SeedStore(StoreBase):
    """Runs the older interface, which has one outcome for a whole call, under the newer one.

    A class with ``needs_lower`` finds the address of the store below as ``store_backend``.
    """

    def __init__(
        self,
        store_class: type[UcmKVStoreBaseV1],
        layout: Layout | None,
        config: dict[str, Any],
        lower: Lower | None,
    ) -> None:
        config = dict(config)
        if layout is not None:  # which may be another one than the caller's, under other layers
            config.pop("tensor_size", None)
            config["block_size"], config["shard_size"] = layout.block_size, layout.shard_size
            config["tensor_size_list"] = list(layout.segment_sizes)
        if lower is not None:
            config["store_backend"] = lower.native_handle()
        super().__init__(layout, config)
        self._store = store_class(config)
        self.capabilities = getattr(store_class, "capabilities", self.capabilities)

    def lookup(self, block_ids: list[bytes]) -> list[bool]:
        """Ask the store."""
        return list(self._store.lookup(block_ids))

    def _addresses(self, shards: list[list[memoryview]]) -> list[list[int]]:
        return [
            [int(ffi.cast("uintptr_t", ffi.from_buffer(segment))) for segment in row]
            for row in shards
        ]

    def dump(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> None:
        """Dump and wait; the older interface has no shorter lengths."""
        if self.layout and any(sum(map(len, row)) != self.layout.shard_size for row in shards):
            raise InvalidError(f"{type(self._store).__name__} can only store whole shards")
        self._store.wait(self._store.dump_data(block_ids, shard_index, self._addresses(shards)))

    def load(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> list[int]:
        """Load and wait."""
        self._store.wait(self._store.load_data(block_ids, shard_index, self._addresses(shards)))
        return [sum(map(len, row)) for row in shards]

    def close(self) -> None:
        """Close the store, if it can be."""
        close = getattr(self._store, "close", None)
        if close is not None:
            close()
