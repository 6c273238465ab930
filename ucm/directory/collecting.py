"""Making room in a storage directory, in the order in which a store makes it."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ucm import errors
from ucm.directory import block_file, ledger, names, removing, ring

# The coldest that one walk keeps, as a store's own.
CANDIDATES = 131072
_DEPTHS_READ = 16384  # at a time
_DAY_NS = 86400 * 10**9
_LOCK_WAIT_S = 15  # a store keeps it for 10 seconds after its work


@dataclasses.dataclass
class Collected:
    """What one collection did, or would do. Bytes are those on the disk, of all that is ours."""

    directory: str
    target: int
    before: int = 0
    after: int = 0
    blocks: int = 0
    block_bytes: int = 0
    blocks_left: int = 0
    spaces: dict[str, int] = dataclasses.field(default_factory=dict)
    orphan_bytes: int = 0
    quarantine_bytes: int = 0
    refused: int = 0
    problem: str | None = None

    @property
    def enough(self) -> bool:
        """Whether no more is left than wanted, or nothing that could go."""
        return self.after <= self.target or not self.blocks_left


class _Candidate(NamedTuple):
    """A block that may go; smaller is colder. Stamp 0: its time cannot be."""

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
        found.orphan_bytes = removing.sweep_trash(path, dry_run) + sum(
            size for _, size in removing.sweep_writers(path, dry_run)
        )
        if quarantine:
            found.quarantine_bytes = removing.empty_quarantine(path, dry_run)
        _evict(path, found, dry_run)
        if not dry_run:
            ledger.want_recount(path)
            for space in found.spaces:
                ring.tell(path / space)
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
    told = ledger.read(path)
    now_ns = time.time_ns()
    if told and told.clock_ns < now_ns + _DAY_NS:
        now_ns = max(now_ns, told.clock_ns)
    swept = found.orphan_bytes + found.quarantine_bytes
    after: _Candidate | None = None  # everything colder has had its turn
    while True:
        used, blocks, coldest = _walk(path, after, now_ns + _DAY_NS)
        if after is None or not dry_run:
            found.after, found.blocks_left = used - (swept if dry_run else 0), blocks
        if after is None:
            found.before = found.after + swept
        gone = found.blocks
        for candidate in _in_order(coldest, now_ns):
            if found.after <= found.target:
                return
            if dry_run or _unlink(candidate, found):
                _count(path, candidate, found)
        if found.blocks == gone:  # nothing is left, or all of it is in use or cannot be removed
            return
        after = coldest[-1]


def _count(path: Path, candidate: _Candidate, found: Collected) -> None:
    found.after -= candidate.bytes
    found.blocks += 1
    found.blocks_left -= 1
    found.block_bytes += candidate.bytes
    space = os.path.relpath(os.path.dirname(os.path.dirname(candidate.path)), path)
    found.spaces[space] = found.spaces.get(space, 0) + 1


def _unlink(candidate: _Candidate, found: Collected) -> bool:
    """Remove a block, if it was not used since; False where it stays or went by itself."""
    try:
        if os.lstat(candidate.path).st_mtime_ns != candidate.stamp_ns != 0:
            return False
        os.unlink(candidate.path)
    except FileNotFoundError:
        return False
    except OSError as error:
        found.refused += 1
        found.problem = found.problem or f"{candidate.path}: {error.strerror}"
        return False
    return True


def _walk(
    path: Path, after: _Candidate | None, no_later_ns: int
) -> tuple[int, int, list[_Candidate]]:
    """Count the bytes of all and the blocks, and find the coldest, the very coldest first."""
    total = sum(names.bytes_in(folder) for folder in _other_folders(path))
    blocks = 0

    def candidates() -> Iterator[_Candidate]:
        nonlocal total, blocks
        for space in names.spaces(path):
            for entry in names.blocks(space.path):
                try:
                    info = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                blocks += 1
                size, stamp_ns = names.disk_bytes(info), info.st_mtime_ns
                total += size
                one = _Candidate(stamp_ns if stamp_ns <= no_later_ns else 0, entry.path, size)
                if after is None or one > after:
                    yield one

    coldest = heapq.nsmallest(CANDIDATES, candidates())
    return total, blocks, coldest


def _other_folders(path: Path) -> Iterator[str]:
    """List the folders in which files of ours lie that are no blocks in use."""
    for top, _, _ in os.walk(path / ".ucm"):
        yield top
    for space in names.spaces(path):
        yield space.path


def _in_order(coldest: list[_Candidate], now_ns: int) -> Iterator[_Candidate]:
    """By classes of age, the oldest first; in a class tails of prefixes before heads."""

    def age_class(one: _Candidate) -> int:
        return math.floor(2 * math.log2(max((now_ns - one.stamp_ns) / 1e9, 1.0)))

    for _, equals in itertools.groupby(coldest, age_class):
        # Depths are read no sooner than needed.
        while part := list(itertools.islice(equals, _DEPTHS_READ)):
            depths = {one.path: block_file.read_depth(one.path) for one in part}
            yield from sorted(part, key=lambda one: (-depths[one.path], one.stamp_ns))
