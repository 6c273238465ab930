"""Segments of shared memory that stores of one ``unique_id`` keep their blocks in.

docs/shared-cache.md says what lies where. They are read with pread alone: a page that was never
written takes no memory, and a file that is cut or goes away meanwhile hurts nobody.
"""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import os
import re
import stat
import struct
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path("/dev/shm")
VERSION = 2
PHASES = ("building", "ready", "removed")
_STATES = ("free", "clean", "gathering", "dirty", "zombie", "spilled")
_NAME = re.compile(r"ucm-[a-z]+-(\d+)-(.+)")
# magic, version, header_bytes, phase, shards_per_block, capacity, raw_capacity, slot_bytes,
# encoding, identity, pid_namespace, label, keeps, loads, frames, records, buckets, ghosts,
# eight offsets: members, stripes, buckets, ghosts, records, shards, data, end
_HEADER = struct.Struct("<8s4I3Q64s2Q128s6I8Q")
_AT_USED, _AT_READY, _AT_FREE = 352, 424, 440
_HEAD_BYTES = 444
_MEMBERS = 64
_MEMBER = struct.Struct("<4Iq40x")  # joined, bell, device, reserved, pid
_RECORD_BYTES, _AT_STATE = 128, 20
_MAGIC = b"UCMCACHE"
_FIRST_MEMBER_BYTE = 1
_FLOCK = struct.Struct("hhqqi4x")
_READ_BYTES = 1 << 20


@dataclasses.dataclass
class Member:
    """A store that has joined; pid: in the PID namespace of the segment."""

    number: int
    pid: int
    alive: bool
    device: bool


@dataclasses.dataclass
class Segment:
    """What a segment says of itself. idle_s: since a store in it last gave a sign of life."""

    path: Path
    unique_id: str
    bytes: int = 0
    allocated_bytes: int = 0
    huge_bytes: int | None = None
    problem: str | None = None
    version: int | None = None
    phase: str | None = None
    label: str = ""
    encoding: str = ""
    shards_per_block: int = 0
    shard_bytes: int = 0
    frame_bytes: int = 0
    keeps: bool = False
    frames: int = 0
    frames_ready: int = 0
    frames_free: int = 0
    blocks: dict[str, int] = dataclasses.field(default_factory=dict)
    idle_s: float | None = None
    members: list[Member] = dataclasses.field(default_factory=list)

    @property
    def alive(self) -> bool:
        """Tell whether any member lives."""
        return any(member.alive for member in self.members)


def inspect(folder: Path = FOLDER) -> list[Segment]:
    """Read all segments of this user; one that goes away meanwhile is left out."""
    found = (_read(path, unique_id) for path, unique_id in _paths(folder))
    return [segment for segment in found if segment]


def _paths(folder: Path) -> Iterator[tuple[Path, str]]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return
    for name in names:
        match = _NAME.fullmatch(name)
        if match and int(match[1]) == os.geteuid():
            yield folder / name, urllib.parse.unquote(match[2])


def _read(path: Path, unique_id: str) -> Segment | None:
    segment = Segment(path, unique_id)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        segment.problem = f"it cannot be opened: {error.strerror}"
        return segment
    try:
        info = os.fstat(fd)
        segment.bytes, segment.allocated_bytes = info.st_size, info.st_blocks * 512
        if not stat.S_ISREG(info.st_mode):
            segment.problem = "it is no file"
        elif info.st_uid != os.geteuid():
            segment.problem = f"it belongs to user {info.st_uid}; no store will use it"
        else:
            segment.problem = _read_parts(fd, segment)
    finally:
        os.close(fd)
    return segment


def _read_parts(fd: int, segment: Segment) -> str | None:
    """Fill it in; return what is wrong."""
    living = {m for m in range(_MEMBERS) if _is_locked(fd, _FIRST_MEMBER_BYTE + m)}
    head = os.pread(fd, _HEAD_BYTES, 0)
    if len(head) < _HEAD_BYTES or not head.startswith(_MAGIC):
        segment.members = [Member(m, 0, True, False) for m in sorted(living)]
        if any(head[:8]):
            return "it is no segment; the next store of this unique_id removes it"
        return "it is not ready; somebody makes it now, or died over it"
    fields = _HEADER.unpack_from(head)
    segment.version = fields[1]
    if segment.version != VERSION:
        segment.members = [Member(m, 0, True, False) for m in sorted(living)]
        return f"its version is {segment.version}, which this version does not know"
    segment.phase = dict(enumerate(PHASES)).get(fields[3], str(fields[3]))
    segment.shards_per_block, segment.shard_bytes = fields[4], fields[5]
    segment.frame_bytes = fields[4] * fields[7]
    segment.encoding, segment.label = _text(fields[8]), _text(fields[11])
    segment.keeps, segment.frames = bool(fields[12]), fields[14]
    records, members_at, records_at, data_at = fields[15], fields[18], fields[22], fields[24]
    segment.frames_ready = struct.unpack_from("<I", head, _AT_READY)[0]
    segment.frames_free = struct.unpack_from("<I", head, _AT_FREE)[0]
    (used_ns,) = struct.unpack_from("<q", head, _AT_USED)
    segment.idle_s = max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - used_ns / 1e9)
    if not members_at < records_at < data_at <= segment.bytes:
        return "its header is not sound; the next store of this unique_id removes it"
    for number, entry in enumerate(_MEMBER.iter_unpack(_whole(fd, _MEMBERS, 64, members_at))):
        if entry[0] or number in living:
            segment.members.append(Member(number, entry[4], number in living, bool(entry[2])))
    segment.blocks = _states(fd, records, records_at)
    segment.huge_bytes = _huge_bytes(segment, fields[10])
    return None


def _text(padded: bytes) -> str:
    return padded.split(b"\0")[0].decode(errors="replace")


def _whole(fd: int, count: int, size: int, at: int) -> bytes:
    """Read so many entries; what lies behind the end of the file is zero."""
    return os.pread(fd, count * size, at).ljust(count * size, b"\0")


def _states(fd: int, records: int, at: int) -> dict[str, int]:
    counts: collections.Counter[int] = collections.Counter()
    step = _READ_BYTES // _RECORD_BYTES
    for first in range(0, records, step):
        count = min(step, records - first)
        read = os.pread(fd, count * _RECORD_BYTES, at + first * _RECORD_BYTES)
        words = memoryview(read[: len(read) // _RECORD_BYTES * _RECORD_BYTES]).cast("I")
        counts.update(words[_AT_STATE // 4 :: _RECORD_BYTES // 4].tolist())
    return {name: counts[value] for value, name in enumerate(_STATES) if name != "free"}


def _is_locked(fd: int, byte: int) -> bool:
    """Tell whether the kernel says that a process holds the lock of that byte."""
    try:
        asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def _huge_bytes(segment: Segment, pid_namespace: int) -> int | None:
    """Return what a living member has mapped as huge pages; None: nobody can be asked."""
    try:
        if os.stat("/proc/self/ns/pid").st_ino != pid_namespace:
            return None
    except OSError:
        return None
    for member in segment.members:
        if not member.alive:
            continue
        try:
            lines = Path(f"/proc/{member.pid}/smaps").read_text().splitlines()
        except OSError:
            continue
        return _mapped_huge(lines, str(segment.path))
    return None


def _mapped_huge(lines: list[str], path: str) -> int:
    total, inside = 0, False
    for line in lines:
        key, _, value = line.partition(":")
        if "-" in line.partition(" ")[0]:  # a mapping begins: its addresses
            inside = line.endswith(path)
        elif inside and key == "ShmemPmdMapped":
            total += int(value.split()[0]) * 1024
    return total
