"""The block file of docs/block-format.md, read as the stores read it."""

from __future__ import annotations

import errno
import mmap
import os
import struct
from collections.abc import Callable
from typing import NamedTuple

import xxhash

PAGE = 4096
MAX_SHARDS = 16384
WINDOW = 4 << 20
_MAX_HEADER_BYTES = 1 << 20
_FIXED = struct.Struct("<8sII16sIIQQ64sQI4x16s")
_FIXED_BYTES = 256
_ENTRY = struct.Struct("<4Q")
_AT_DEPTH = 128
_AT_CHECKSUM = 248
_NO_DEPTH = 0xFFFFFFFF
_ZEROS = bytes(PAGE)


class Bad(Exception):
    """What is wrong with a file."""


class Unknown(Exception):
    """A file that is sound, of a version or with flags that this reader does not know."""


class Entry(NamedTuple):
    """Where a shard is."""

    offset: int
    length: int
    raw_length: int
    checksum: int


class Header(NamedTuple):
    """The first pages of a block file."""

    id: bytes
    raw_capacity: int
    encoding: str
    published: float
    depth: int | None
    space: bytes
    table: tuple[Entry, ...]


def round_up(length: int) -> int:
    """Return the bytes of whole pages."""
    return -(-length // PAGE) * PAGE


def read_header(read: Callable[[int], bytes | memoryview], size: int, name: str) -> Header:
    """Judge a file of that size and name; ``read`` gives so many bytes of its beginning."""
    data = read(PAGE)
    if len(data) < PAGE or data[:8] != b"UCMBLOCK":
        raise Bad("it is no block file")
    _, version, header_bytes, own, shards, flags, *rest = _FIXED.unpack_from(data)
    if not header_bytes or header_bytes % PAGE or header_bytes > min(_MAX_HEADER_BYTES, size):
        raise Bad("its header is damaged")
    data = read(header_bytes)
    if len(data) < header_bytes:
        raise Bad("its header is cut off")
    if _checksum(data) != int.from_bytes(data[_AT_CHECKSUM : _AT_CHECKSUM + 8], "little"):
        raise Bad("its header fails its checksum")
    if version != 1 or flags:
        what = f"its version is {version}" if version != 1 else f"it has the flags {flags:#x}"
        raise Unknown(f"{what}, which this version does not know")
    file_bytes, raw_capacity, encoding, published, depth, space = rest
    if not 0 < shards <= MAX_SHARDS or header_bytes != round_up(_FIXED_BYTES + 32 * shards):
        raise Bad("its header is damaged")
    if own.hex() != name:
        raise Bad(f"it is block {own.hex()}")
    if file_bytes != size:
        raise Bad(f"it has {size} bytes and should have {file_bytes}")
    table = data[_FIXED_BYTES : _FIXED_BYTES + 32 * shards]
    entries = tuple(Entry(*entry) for entry in _ENTRY.iter_unpack(table))
    for index, entry in enumerate(entries):
        if not _is_sound(entry, header_bytes, size):
            raise Bad(f"shard {index} lies outside of it")
    text = encoding.rstrip(b"\0").decode(errors="replace")
    at = None if depth == _NO_DEPTH else depth
    return Header(own, raw_capacity, text, published / 1e9, at, space, entries)


def read_depth(path: str) -> int:
    """Return how deep a block is in its prefix, 0 where it cannot be told. Checks nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.pread(fd, 4, _AT_DEPTH)
        finally:
            os.close(fd)
    except OSError:
        return 0
    depth = int.from_bytes(data, "little") if len(data) == 4 else _NO_DEPTH
    return 0 if depth == _NO_DEPTH else depth


class Reader:
    """One thread's way to read files: past the page cache, so that engines keep what they have."""

    def __init__(self) -> None:
        self._buffer = memoryview(mmap.mmap(-1, WINDOW))  # O_DIRECT wants whole pages
        self._start = self._end = self._size = 0
        self._fd = -1
        self._cached = False

    def open(self, path: str) -> os.stat_result:
        """Open a file in place of the one before, and read its beginning."""
        self.close()
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            info = self._open(path, flags | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self.close()  # the file system has no O_DIRECT
            info = self._open(path, flags)
            self._cached = True
        return info

    def _open(self, path: str, flags: int) -> os.stat_result:
        self._fd = os.open(path, flags)
        info = os.fstat(self._fd)
        self._size = info.st_size
        self._fill(0)
        return info

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            if self._cached:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(self._fd)
        self._fd, self._cached = -1, False
        self._start = self._end = self._size = 0

    def read_again(self) -> None:
        """Forget what was read: the device may say something else."""
        self._fill(0)

    def view(self, offset: int, least: int) -> memoryview:
        """Return what is there from this offset: so many bytes and maybe more; less at the end."""
        inside = self._start <= offset < self._end
        if not inside or self._end < min(offset + least, self._size):
            self._fill(offset // PAGE * PAGE)
        return self._buffer[offset - self._start : self._end - self._start]

    def _fill(self, start: int) -> None:
        self._start = self._end = start
        while self._end < min(start + WINDOW, self._size):
            got = os.preadv(self._fd, [self._buffer[self._end - start :]], self._end)
            if not got:
                break
            self._end += got

    def header(self, name: str) -> Header:
        """Judge the header of the open file."""
        return read_header(lambda most: self.view(0, most)[:most], self._size, name)

    def check_shard(self, block_id: bytes, index: int, entry: Entry) -> None:
        """Compare a payload with its checksum, and what fills up its last page with zeros."""
        seed = xxhash.xxh3_64_intdigest(block_id + struct.pack("<IQ", index, entry.length))
        digest, rest = self._digest(entry, seed)
        if len(rest) < round_up(entry.length) - entry.length:
            raise Bad(f"it is cut off in shard {index}")
        if digest != entry.checksum:
            raise Bad(f"shard {index} fails its checksum")
        if rest.strip(b"\0"):
            raise Bad(f"there is something after shard {index}")

    def _digest(self, entry: Entry, seed: int) -> tuple[int, bytes]:
        """Return the checksum, and the rest of the last page."""
        length, whole = entry.length, round_up(entry.length)
        if length == 0:
            return xxhash.xxh3_64_intdigest(b"", seed), b""
        if whole <= WINDOW:  # in one piece, which is much faster
            piece = self.view(entry.offset, whole)[:whole]
            return xxhash.xxh3_64_intdigest(piece[:length], seed), bytes(piece[length:])
        hasher, done, rest = xxhash.xxh3_64(seed=seed), 0, b""
        while done < whole and (piece := self.view(entry.offset + done, 1)[: whole - done]):
            hasher.update(piece[: max(0, length - done)])
            rest = bytes(piece[max(0, length - done) :])
            done += len(piece)
        return hasher.intdigest(), rest


def _is_sound(entry: Entry, header_bytes: int, size: int) -> bool:
    if entry.length == 0:
        return entry.offset == 0
    if entry.offset % PAGE or not header_bytes <= entry.offset <= size:
        return False
    return round_up(entry.length) <= size - entry.offset


def _checksum(header: bytes | memoryview) -> int:
    hasher = xxhash.xxh3_64(header[:_AT_CHECKSUM])
    hasher.update(_ZEROS[:8])
    hasher.update(header[_AT_CHECKSUM + 8 :])
    return hasher.intdigest()
