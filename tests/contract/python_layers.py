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


class Zlib(ucm.CodecBase):
    """Compresses shards with zlib."""

    encoding = "zlib.1"

    @classmethod
    def encoded_size(cls, size):
        return size + size // 1000 + 64

    def encode(self, data):
        return zlib.compress(data, 1)

    def decode(self, data):
        return zlib.decompress(data)
