"""A store in Python: blocks in a dictionary."""

from __future__ import annotations

import threading

import ucm


class DictStore(ucm.StoreBase):
    """Keeps blocks in a dictionary."""

    capabilities = frozenset({"keeps", "loads", "remove"})

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self._lock = threading.Lock()  # guards both
        self._blocks = {}
        self._unfinished = {}

    def lookup(self, block_ids):
        with self._lock:
            return [block_id in self._blocks for block_id in block_ids]

    def dump(self, block_ids, shard_index, shards):
        for block_id, index, segments in zip(block_ids, shard_index, shards, strict=True):
            self._dump(block_id, index, b"".join(segments))

    def _dump(self, block_id, index, data):
        with self._lock:
            if block_id in self._blocks:
                return
            block = self._unfinished.setdefault(block_id, {})
            block.setdefault(index, data)
            if len(block) == self.layout.shards_per_block:
                self._blocks[block_id] = self._unfinished.pop(block_id)

    def load(self, block_ids, shard_index, shards):
        return [self._load(*shard) for shard in zip(block_ids, shard_index, shards, strict=True)]

    def _load(self, block_id, index, segments):
        with self._lock:
            data = self._blocks.get(block_id, {}).get(index)
        if data is None:
            return ucm.NotFoundError("not stored")
        left = memoryview(data)
        for segment in segments:
            part = left[: len(segment)]
            segment[: len(part)] = part
            left = left[len(part) :]
        return len(data)

    def remove(self, block_ids):
        with self._lock:
            for block_id in block_ids:
                self._blocks.pop(block_id, None)
                self._unfinished.pop(block_id, None)
