"""``UcmKVStoreBase``: the oldest store interface, with text ids, ``create`` and ``commit``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Task", "UcmKVStoreBase"]


class Task:
    """A running or finished load or dump; the store's ``wait`` and ``check`` take it."""


class UcmKVStoreBase(ABC):
    """A store of blocks named by text and moved as ranges of bytes; outcomes are numbers, 0 good.

    A block is created, dumped in any pieces, and seen by others once it is committed.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def cc_store(self) -> int:
        """Return the address of the top native store, or 0 if there is none."""
        return 0

    @abstractmethod
    def create(self, block_ids: list[str]) -> list[int]:
        """Make room for blocks; 0 for each that may be dumped now."""

    @abstractmethod
    def lookup(self, block_ids: list[str]) -> list[bool]:
        """Check presence of committed blocks."""

    @abstractmethod
    def prefetch(self, block_ids: list[str]) -> None:
        """Hint that blocks will be loaded soon."""

    @abstractmethod
    def load(self, block_ids: list[str], offset: list[int], dst_tensor: list[torch.Tensor]) -> Task:
        """Start to fill tensors from the bytes of blocks, each from its offset on."""

    @abstractmethod
    def dump(self, block_ids: list[str], offset: list[int], src_tensor: list[torch.Tensor]) -> Task:
        """Start to write tensors into created blocks, each at its offset."""

    @abstractmethod
    def fetch_data(
        self, block_ids: list[str], offset: list[int], dst_addr: list[int], size: list[int]
    ) -> Task:
        """Start to fill memory given by address."""

    @abstractmethod
    def dump_data(
        self, block_ids: list[str], offset: list[int], src_addr: list[int], size: list[int]
    ) -> Task:
        """Start to write memory given by address."""

    @abstractmethod
    def wait(self, task: Task) -> int:
        """Block until the task has finished; 0 if all went well."""

    @abstractmethod
    def commit(self, block_ids: list[str], is_success: bool = True) -> None:
        """Let created blocks be seen, or discard them."""

    @abstractmethod
    def check(self, task: Task) -> tuple[int, bool]:
        """Return (0 or how it failed, whether it has finished)."""
