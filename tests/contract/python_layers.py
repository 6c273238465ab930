"""Layers in Python: one that looks on, one that changes every byte string's length."""

from __future__ import annotations

import zlib

import ucm


class Watch(ucm.LayerBase):
    """Hands everything on."""

    def dump(self, block_ids, shard_index, shards):
        return self.lower.dump(block_ids, shard_index, shards)

    def load(self, block_ids, shard_index, shards):
        return self.lower.load(block_ids, shard_index, shards)

    def lookup(self, block_ids):
        return self.lower.lookup(block_ids)

    def remove(self, block_ids):
        self.lower.remove(block_ids)


class Zlib(ucm.LayerBase):
    """Compresses shards with zlib."""

    encoding = "zlib.1"

    @classmethod
    def lower_layout(cls, layout, options):
        return layout.resized(layout.shard_size + layout.shard_size // 1000 + 64)

    def dump(self, block_ids, shard_index, shards):
        packed = [zlib.compress(b"".join(shard), 1) for shard in shards]
        return self.lower.dump(block_ids, shard_index, packed)

    def load(self, block_ids, shard_index, shards):
        rooms = [bytearray(self.lower.layout.shard_size) for _ in shards]
        ends = self.lower.load(block_ids, shard_index, rooms)
        return [self._unpack(*row) for row in zip(ends, rooms, shards, strict=True)]

    def _unpack(self, end, room, shard):
        if isinstance(end, Exception):
            return end
        try:
            return self.fill(shard, zlib.decompress(room[:end]))
        except zlib.error as error:
            return ucm.CorruptError(str(error))
