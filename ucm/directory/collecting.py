"""Making room in a storage directory, in the order in which a store makes it."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ucm import errors
from ucm.directory import block_file, ledger, names, removing

# The coldest that one walk keeps, as a store's own.
CANDIDATES = 131072
_LOCK_WAIT_S = 10


@dataclasses.dataclass
class Collected:
    """What one collection did, or would do. Bytes are those on the disk."""

    directory: str
    target: int
    before: int = 0
    after: int = 0
    blocks: int = 0
    block_bytes: int = 0
    spaces: dict[str, int] = dataclasses.field(default_factory=dict)
    orphan_bytes: int = 0
    quarantine_bytes: int = 0
    kept: int = 0
    problem: str | None = None


class _Candidate(NamedTuple):
    """A block that may go; smaller is colder."""

    stamp_ns: int
    path: str
    bytes: int


def collect(
    directory: str | os.PathLike[str],
    to: int | None = None,
    dry_run: bool = False,
    quarantine: bool = False,
) -> Collected:
    """Evict the coldest blocks until no more than ``to`` bytes are left; sweep what is nobody's.

    Stores may go on meanwhile: they miss what is gone. Without ``to``: what a store's own round
    leaves of the limit in the ledger.
    """
    path = Path(directory)
    names.check_format(path)
    found = Collected(str(path), _target(path) if to is None else to)
    with contextlib.ExitStack() as stack:
        if not dry_run:
            stack.enter_context(_alone(path))
            removing.sweep_trash(path)
        found.orphan_bytes = sum(size for _, size in removing.sweep_writers(path, dry_run))
        if quarantine:
            found.quarantine_bytes = removing.empty_quarantine(path, dry_run)
        _evict(path, found, dry_run)
        if not dry_run:
            ledger.want_recount(path)
    return found


def _target(path: Path) -> int:
    told = ledger.read(path)
    limit = told.limit if told else 0
    if not limit:
        raise errors.InvalidError(
            f"{path}: no running store sets posix_capacity_gb there; say how much is to be left, "
            "such as --to 100GiB"
        )
    return int(limit * ledger.TRIGGER * (1 - ledger.RECYCLE))


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keep stores, and others like this one, from collecting meanwhile."""
    lock = path / ".ucm" / "gc"
    names.make_file(path, "gc")
    until = time.monotonic() + _LOCK_WAIT_S
    while True:
        with names.opened(lock, os.O_RDWR) as fd:
            if fd < 0:
                raise errors.StoreError(f"{lock}: cannot be opened; run as the user it belongs to")
            taken = names.lock(fd)
            if taken and names.leads_to(lock, fd):
                yield
                return
        if taken is None:
            raise errors.StoreError(f"{lock}: this file system has no locks; stop the stores first")
        if time.monotonic() > until:
            raise errors.StoreError(f"{lock}: another collection goes on there; try again later")
        time.sleep(0.1)


def _evict(path: Path, found: Collected, dry_run: bool) -> None:
    after: _Candidate | None = None  # everything colder has had its turn
    swept = found.orphan_bytes + found.quarantine_bytes if dry_run else 0
    while True:
        used, coldest = _walk(path, after)
        if after is None:
            found.before = used
            found.after = used - swept
        elif not dry_run:
            found.after = used
        if found.after <= found.target or not coldest:
            return
        gone = found.blocks
        for candidate in _in_order(coldest, time.time_ns()):
            if found.after <= found.target:
                return
            if dry_run or _unlink(candidate, found):
                found.after -= candidate.bytes
                found.blocks += 1
                found.block_bytes += candidate.bytes
                space = os.path.relpath(os.path.dirname(os.path.dirname(candidate.path)), path)
                found.spaces[space] = found.spaces.get(space, 0) + 1
        if found.blocks == gone:  # in use, all of them, or not to be removed
            return
        after = coldest[-1]


def _unlink(candidate: _Candidate, found: Collected) -> bool:
    """Remove a block, if it was not used since; False where it stays or went by itself."""
    try:
        if os.lstat(candidate.path).st_mtime_ns != candidate.stamp_ns:
            return False
        os.unlink(candidate.path)
    except FileNotFoundError:
        return False
    except OSError as error:
        found.kept += 1
        found.problem = found.problem or f"{candidate.path}: {error.strerror}"
        return False
    return True


def _walk(path: Path, after: _Candidate | None) -> tuple[int, list[_Candidate]]:
    """Count everything, and find the coldest blocks, the very coldest first."""
    total = 0

    def candidates() -> Iterator[_Candidate]:
        nonlocal total
        for space in names.spaces(path):
            for entry in names.blocks(space.path):
                with contextlib.suppress(FileNotFoundError):
                    info = entry.stat(follow_symlinks=False)
                    total += names.disk_bytes(info)
                    one = _Candidate(info.st_mtime_ns, entry.path, names.disk_bytes(info))
                    if after is None or one > after:
                        yield one
        for folder in ("writers", "quarantine", "trash"):
            for top, _, files in os.walk(path / ".ucm" / folder):
                for name in files:
                    with contextlib.suppress(FileNotFoundError):
                        total += names.disk_bytes(os.lstat(os.path.join(top, name)))

    coldest = heapq.nsmallest(CANDIDATES, candidates())
    return total, coldest


def _in_order(coldest: list[_Candidate], now_ns: int) -> list[_Candidate]:
    """By classes of age, the oldest first; in a class tails of prefixes before heads."""

    def key(one: _Candidate) -> tuple[int, int, int]:
        age_s = max((now_ns - one.stamp_ns) / 1e9, 1.0)
        age_class = math.floor(2 * math.log2(age_s))
        return -age_class, -block_file.read_depth(one.path), one.stamp_ns

    return sorted(coldest, key=key)
