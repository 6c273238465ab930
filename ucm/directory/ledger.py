"""The ledger of a storage directory, ``.ucm/ledger``, as plugins/common/ledger.h has it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import struct
from pathlib import Path

import xxhash

from ucm.directory import names

# Defaults of posix_gc_trigger_threshold_ratio and posix_gc_recycle_percent.
TRIGGER, RECYCLE = 0.9, 0.1

_MAGIC = b"UCMLEDGR"
# magic, version, flags, nonce, inode, used, added, granted, wanted, limit, rounds, clock_ns,
# eviction_age_ns, left_ns, slots, writers, check
_PAGE = struct.Struct("<8sII16s7Q3qIIQ")
_AT_FLAGS = 12
_ACCOUNT = struct.Struct("<216s4QQ")
_FIRST_ACCOUNT = 4096
_SLOTS = 1024
_CHECK_BYTES = 8
_COUNT_FIRST, _TOO_HIGH = 1, 2


@dataclasses.dataclass
class Account:
    """What one writer has of it; capacity: what it asks the limit to be, 0: none."""

    writer: str
    granted: int
    capacity: int
    alive: bool


@dataclasses.dataclass
class Ledger:
    """Bytes in use, and who may write how many.

    limit: that of the living, 0: none. clock_ns: the latest that a block was used.
    """

    limit: int = 0
    used: int = 0
    granted: int = 0
    recount: bool = False
    clock_ns: int = 0
    problem: str | None = None
    accounts: list[Account] = dataclasses.field(default_factory=list)

    @property
    def setters(self) -> list[Account]:
        """Those who set the limit."""
        return [one for one in self.accounts if one.alive and one.capacity == self.limit > 0]


def read(directory: Path) -> Ledger | None:
    """Read it, without a lock; None where there is none."""
    try:
        data = _path(directory).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        return Ledger(problem=f"it cannot be read: {error.strerror}")
    if not _is_sound(data):
        return Ledger(problem="it is torn; the next writer counts anew")
    _, version, flags, nonce, _, used, *rest = _PAGE.unpack_from(data)
    clock_ns, _, _, slots = rest[-6:-2]
    if version != 1:
        return Ledger(problem=f"its version is {version}, which this version does not know")
    recount = bool(flags & (_COUNT_FIRST | _TOO_HIGH))
    found = Ledger(used=used, recount=recount, clock_ns=clock_ns)
    seed = xxhash.xxh3_64_intdigest(nonce)
    for slot in range(min(slots, _SLOTS)):
        at = _FIRST_ACCOUNT + slot * _ACCOUNT.size
        record = data[at : at + _ACCOUNT.size]
        if len(record) < _ACCOUNT.size:
            break
        writer, granted, capacity, _, _, check = _ACCOUNT.unpack(record)
        name = writer.rstrip(b"\0").decode(errors="replace")
        if not name or check != xxhash.xxh3_64_intdigest(record[:-_CHECK_BYTES], seed):
            continue
        alive = names.is_locked(str(directory / ".ucm" / "writers" / name / "lock"))
        found.accounts.append(Account(name, granted, capacity, alive))
        found.granted += granted
    found.limit = min((a.capacity for a in found.accounts if a.alive and a.capacity), default=0)
    return found


def want_recount(directory: Path) -> None:
    """Say in it that less is used than it knows; without that it is counted at the next walk."""
    with names.locked(_path(directory)) as fd:
        if fd < 0:
            return
        data = bytearray(os.pread(fd, _PAGE.size, 0))
        if not _is_sound(data) or _PAGE.unpack_from(data)[1] != 1:
            return
        data[_AT_FLAGS] |= _TOO_HIGH
        data[-_CHECK_BYTES:] = _check(data).to_bytes(_CHECK_BYTES, "little")
        with contextlib.suppress(OSError):
            os.pwrite(fd, data, 0)


def _path(directory: Path) -> Path:
    return directory / ".ucm" / "ledger"


def _is_sound(data: bytes | bytearray) -> bool:
    if len(data) < _PAGE.size or data[:8] != _MAGIC:
        return False
    return bool(_PAGE.unpack_from(data)[-1] == _check(data))


def _check(data: bytes | bytearray) -> int:
    return xxhash.xxh3_64_intdigest(bytes(data[: _PAGE.size - _CHECK_BYTES]))
