"""The frame of docs/frame-format.md, as far as it says how its tiles are coded."""

from __future__ import annotations

import dataclasses
import os
import struct

import xxhash

ENCODING = "ucmz.3"
CODECS = ("raw", "constant", "zstd", "classes")
_TRAILER = struct.Struct("<4sHHQQIIQQQQ")
_ENTRY = struct.Struct("<HHBB6x")
_MAX_INDEX_BYTES = 16 << 20


@dataclasses.dataclass
class Coded:
    """What tiles of one codec take; index and trailer of their frames are not in it."""

    tiles: int = 0
    raw_bytes: int = 0
    stored_bytes: int = 0

    @property
    def ratio(self) -> float | None:
        """Bytes before coding for each byte that is stored."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else None


def read(fd: int, offset: int, length: int, codecs: dict[str, Coded]) -> bool:
    """Add the tiles of a frame that is there in a file; False: it is none."""
    at = length - _TRAILER.size
    trailer = os.pread(fd, _TRAILER.size, offset + at) if at >= 0 else b""
    if len(trailer) != _TRAILER.size:
        return False
    magic, version, _, raw, frame, count, _, _, index_hash, _, check = _TRAILER.unpack(trailer)
    index_bytes = count * _ENTRY.size
    if (magic, version, frame, check) != (
        b"UCMZ",
        3,
        length,
        xxhash.xxh3_64_intdigest(trailer[: _TRAILER.size - 8]),
    ) or index_bytes > min(at, _MAX_INDEX_BYTES):
        return False
    index = os.pread(fd, index_bytes, offset + at - index_bytes)
    if count and xxhash.xxh3_64_intdigest(index) != index_hash:
        return False
    tiles = [(r + 1, s + 1, c) for r, s, c, _ in _ENTRY.iter_unpack(index)]
    for raw_bytes, stored_bytes, codec in tiles if count else [(raw, raw, 0)] if raw else []:
        name = CODECS[codec] if codec < len(CODECS) else f"codec {codec}"
        coded = codecs.setdefault(name, Coded())
        coded.tiles += 1
        coded.raw_bytes += raw_bytes
        coded.stored_bytes += stored_bytes
    return True
