"""``UcmKVStoreBaseV1``: the store interface of older programs, with raw 16-byte ids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from ucm.task import Task

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = ["Task", "UcmKVStoreBaseV1"]


class UcmKVStoreBaseV1(ABC):
    """A store of blocks named by 16 raw bytes and moved in shards; errors are exceptions."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def cc_store(self) -> int:
        """Return the address of the top native store, or 0 if there is none."""
        return 0

    @abstractmethod
    def lookup(self, block_ids: list[bytes]) -> list[bool]:
        """Check presence of blocks in external storage."""

    @abstractmethod
    def lookup_on_prefix(self, block_ids: list[bytes]) -> int:
        """Return the index of the last block of the longest present prefix, or -1."""

    def lookup_on_reverse(self, block_ids: list[bytes]) -> int:
        """Return the index of the rightmost present block, or -1."""
        present = self.lookup(block_ids)
        return next((i for i in reversed(range(len(present))) if present[i]), -1)

    @abstractmethod
    def prefetch(self, block_ids: list[bytes]) -> None:
        """Hint that blocks will be loaded soon."""

    @abstractmethod
    def load(
        self, block_ids: list[bytes], shard_index: list[int], dst_tensor: list[list[torch.Tensor]]
    ) -> Task:
        """Start to move shards from storage to tensors."""

    @abstractmethod
    def dump(
        self, block_ids: list[bytes], shard_index: list[int], src_tensor: list[list[torch.Tensor]]
    ) -> Task:
        """Start to move shards from tensors to storage."""

    @abstractmethod
    def load_data(
        self, block_ids: list[bytes], shard_index: list[int], dst_addr: list[list[int]] | np.ndarray
    ) -> Task:
        """Start to move shards from storage to addresses."""

    @abstractmethod
    def dump_data(
        self,
        block_ids: list[bytes],
        shard_index: list[int],
        src_addr: list[list[int]] | np.ndarray,
        prerequisite_handle: int = 0,
    ) -> Task:
        """Start to move shards from addresses to storage."""

    @abstractmethod
    def wait(self, task: Task) -> None:
        """Block until the task has finished; raise if it failed."""

    @abstractmethod
    def check(self, task: Task) -> bool:
        """Tell whether the task has finished."""
