"""Tells vLLM's KV events of blocks that the store has: each once every rank's part is dumped.

By the engine's own hashes, by which others know the block; what the workers tell is ours.
"""

from __future__ import annotations

import array
import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

_PLANNED_TOKENS = 1 << 20  # of blocks under way, 4 bytes each

# Takes a request, a block's first token and the one behind it, and the first of the request's media
# to look at; returns what the block is hashed with beside its tokens, and the next of the media.
ExtraKeys = Callable[[Any, int, int, int], tuple[Any, int]]


class _Planned(NamedTuple):
    name: bytes  # the engine's hash; ours may tell more apart
    parent: bytes | None
    tokens: array.array[int]
    extra_keys: tuple[Any, ...] | None
    session: str | None
    lora_id: int | None
    lora_name: str | None


class Announcer:
    """Collects what is planned and what the workers report; every call is the scheduler's."""

    def __init__(self, block_tokens: int, extra_keys: ExtraKeys) -> None:
        self._block_tokens = block_tokens
        self._extra_keys = extra_keys
        self._planned: collections.OrderedDict[bytes, _Planned] = collections.OrderedDict()
        self._saves: dict[int, list[bytes]] = {}  # what each save under way is of
        self._save_of: dict[bytes, int] = {}
        self._parts: collections.Counter[bytes] = collections.Counter()  # stored ones
        self._stored: list[dict[str, Any]] = []

    def planned(
        self, request: Any, hashes: Sequence[bytes], places: Sequence[int], save: int
    ) -> None:
        """Remember what is to be told of these blocks of a request, which a save is of."""
        lora, size, media = getattr(request, "lora_request", None), self._block_tokens, 0
        for i in places:
            self._forget(hashes[i])  # of a time before, when not every rank could
            tokens = request.all_token_ids[i * size : (i + 1) * size]
            keys, media = self._extra_keys(request, i * size, (i + 1) * size, media)
            self._planned[hashes[i]] = _Planned(
                request.block_hashes[i],
                request.block_hashes[i - 1] if i else None,
                array.array("I", tokens),
                keys,
                getattr(request, "session_id", None),
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
                        "block_hashes": [known.name],
                        "parent_block_hash": known.parent,
                        "token_ids": known.tokens.tolist(),
                        "block_size": self._block_tokens,
                        "lora_id": known.lora_id,
                        "lora_name": known.lora_name,
                        "extra_keys": [known.extra_keys],
                        "session_id": known.session,
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
