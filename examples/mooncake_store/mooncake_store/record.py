"""The record that publishes a block: which objects hold its shards, how long, with which sums.

Little-endian: magic "UCMM", version 1, count of shards, token; then for each shard length and
xxh3-64; then xxh3-64 of all before.
"""

import struct
from typing import NamedTuple

import xxhash

import ucm

MAGIC = b"UCMM"
VERSION = 1
TOKEN_BYTES = 16
_HEAD = struct.Struct(f"<4sII{TOKEN_BYTES}s4x")
_SHARD = struct.Struct("<QQ")
_SUM = struct.Struct("<Q")


class Record(NamedTuple):
    """One published block. ``token`` is part of its objects' names; no two copies share one."""

    token: bytes
    shards: tuple[tuple[int, int], ...]

    def pack(self):
        """Return the bytes."""
        body = _HEAD.pack(MAGIC, VERSION, len(self.shards), self.token)
        body += b"".join(_SHARD.pack(*shard) for shard in self.shards)
        return body + _SUM.pack(xxhash.xxh3_64_intdigest(body))


def size_of(shards):
    """Return the bytes of a record of so many shards."""
    return _HEAD.size + shards * _SHARD.size + _SUM.size


def unpack(data, shards):
    """Read a record of a block of so many shards; raises CorruptError."""
    data = bytes(data)
    body, checksum = data[: -_SUM.size], data[-_SUM.size :]
    if len(data) != size_of(shards) or _SUM.pack(xxhash.xxh3_64_intdigest(body)) != checksum:
        raise ucm.CorruptError("the record of the block fails its checksum")
    magic, version, count, token = _HEAD.unpack_from(body)
    if (magic, version, count) != (MAGIC, VERSION, shards):
        raise ucm.IncompatibleError("the record of the block is of another version")
    return Record(token, tuple(_SHARD.iter_unpack(body[_HEAD.size :])))


def checksum(block_id, index, data):
    """Return the sum of a shard, which covers whose it is and its length."""
    seed = xxhash.xxh3_64_intdigest(block_id + index.to_bytes(4, "little"))
    return xxhash.xxh3_64_intdigest(data, seed)
