"""Tells vLLM's KV events of blocks that the store has: each once every rank's part is dumped."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Any

_PLANNED_MAX = 65536  # blocks; some are never stored


class Announcer:
    """Collects what is planned and what the workers report; every call is the scheduler's."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._planned: collections.OrderedDict[bytes, dict[str, Any]] = collections.OrderedDict()
        self._parts: collections.Counter[bytes] = collections.Counter()  # stored ones
        self._stored: list[dict[str, Any]] = []

    def planned(self, request: Any, hashes: Sequence[bytes], places: Sequence[int]) -> None:
        """Remember what is to be told of these blocks of a request."""
        lora, size = getattr(request, "lora_request", None), self._block_tokens
        for i in places:
            del self._parts[hashes[i]]  # of a time before, when not every rank could
            self._planned[hashes[i]] = {
                "block_hashes": [hashes[i]],
                "parent_block_hash": hashes[i - 1] if i else None,
                "token_ids": list(request.all_token_ids[i * size : (i + 1) * size]),
                "block_size": size,
                "lora_id": lora.adapter_id if lora else None,
                "lora_name": lora.name if lora else None,
            }
        while len(self._planned) > _PLANNED_MAX:
            gone, _ = self._planned.popitem(last=False)
            del self._parts[gone]

    def stored(self, parts: Mapping[bytes, int], ranks: int) -> None:
        """Take note of how many ranks have dumped which blocks since the last call."""
        for block_hash, count in parts.items():
            if block_hash not in self._planned:
                continue
            self._parts[block_hash] += count
            if self._parts[block_hash] >= ranks:
                self._stored.append(self._planned.pop(block_hash))
                del self._parts[block_hash]

    def take(self) -> list[dict[str, Any]]:
        """Return what is to be told since the last call, as the fields of vLLM's BlockStored."""
        told, self._stored = self._stored, []
        return told
