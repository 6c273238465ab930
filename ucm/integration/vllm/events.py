"""Tells vLLM's KV events of blocks that the store has: each once every rank's part is dumped."""

from __future__ import annotations

import array
import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_PLANNED_TOKENS = 1 << 20  # of blocks under way, 4 bytes each


class _Planned(NamedTuple):
    parent: bytes | None
    tokens: array.array[int]
    lora_id: int | None
    lora_name: str | None


class Announcer:
    """Collects what is planned and what the workers report; every call is the scheduler's."""

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._planned: collections.OrderedDict[bytes, _Planned] = collections.OrderedDict()
        self._saves: dict[int, list[bytes]] = {}  # what each save under way is of
        self._save_of: dict[bytes, int] = {}
        self._parts: collections.Counter[bytes] = collections.Counter()  # stored ones
        self._stored: list[dict[str, Any]] = []

    def planned(
        self, request: Any, hashes: Sequence[bytes], places: Sequence[int], save: int
    ) -> None:
        """Remember what is to be told of these blocks of a request, which a save is of."""
        lora, size = getattr(request, "lora_request", None), self._block_tokens
        for i in places:
            self._forget(hashes[i])  # of a time before, when not every rank could
            tokens = request.all_token_ids[i * size : (i + 1) * size]
            self._planned[hashes[i]] = _Planned(
                hashes[i - 1] if i else None,
                array.array("I", tokens),
                lora.adapter_id if lora else None,
                lora.name if lora else None,
            )
            self._save_of[hashes[i]] = save
        if places:
            self._saves[save] = [hashes[i] for i in places]
        while len(self._planned) * size > _PLANNED_TOKENS:
            self._forget(next(iter(self._planned)))

    def _forget(self, block_hash: bytes) -> _Planned | None:
        del self._parts[block_hash]
        self._save_of.pop(block_hash, None)
        return self._planned.pop(block_hash, None)

    def stored(self, parts: Mapping[bytes, int], ranks: int) -> None:
        """Take note of how many ranks have dumped which blocks since the last call."""
        for block_hash, count in parts.items():
            if block_hash not in self._planned:
                continue
            self._parts[block_hash] += count
            if self._parts[block_hash] >= ranks:
                known = self._forget(block_hash)
                assert known is not None
                self._stored.append(
                    {
                        "block_hashes": [block_hash],
                        "parent_block_hash": known.parent,
                        "token_ids": known.tokens.tolist(),
                        "block_size": self._block_tokens,
                        "lora_id": known.lora_id,
                        "lora_name": known.lora_name,
                    }
                )

    def ended(self, saves: Iterable[int]) -> None:
        """Forget what these saves, of which all workers have told, did not store."""
        for save in saves:
            for block_hash in self._saves.pop(save, ()):
                if self._save_of.get(block_hash) == save:
                    self._forget(block_hash)

    def take(self) -> list[dict[str, Any]]:
        """Return what is to be told since the last call, as the fields of vLLM's BlockStored."""
        told, self._stored = self._stored, []
        return told
