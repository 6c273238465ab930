"""The ring of a space, ``recent``, by which stores tell each other what they publish and remove."""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path

import xxhash

from ucm.directory import names

_MAGIC = b"UCMRECNT"
# magic, version, slots, nonce, head, zeros, check
_HEADER = struct.Struct("<8sII16sQ16sQ")
_AT_HEAD = 32
_CHECK_BYTES = 8


def tell(space: Path) -> None:
    """Have stores look into the folders again; without that they do so after a while.

    As plugins/common/recent.cpp does when records are lost: a head that is further ahead than
    there are slots.
    """
    with names.locked(space / "recent") as fd:
        if fd < 0:
            return
        data = bytearray(os.pread(fd, _HEADER.size, 0))
        if len(data) < _HEADER.size:
            return
        magic, version, slots, _, head, _, check = _HEADER.unpack(data)
        if magic != _MAGIC or version != 1 or check != _check(data):
            return
        struct.pack_into("<Q", data, _AT_HEAD, head + slots + 1)
        struct.pack_into("<Q", data, _HEADER.size - _CHECK_BYTES, _check(data))
        with contextlib.suppress(OSError):
            os.pwrite(fd, data, 0)


def _check(header: bytes | bytearray) -> int:
    return xxhash.xxh3_64_intdigest(bytes(header[: _HEADER.size - _CHECK_BYTES]))
