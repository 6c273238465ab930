"""Verifying every byte of a storage directory."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from ucm.directory import block_file, ledger, names, reading, removing, ring
from ucm.directory.reading import Space

# More than these are counted only.
_TOLD_FOREIGN = 1000

# Kinds of findings that are damage; the others are no more than worth knowing.
DAMAGE = {
    "corrupt": "a block that fails a check",
    "misplaced": "a sound block in a place where no store looks for it",
    "unknown": "a block of a version that cannot be checked here",
    "unreadable": "what this user may not read, or the device cannot",
    "manifest": "a space whose manifest is not whole",
}
NOTES = {
    "orphan": "what a writer or a removal that was killed has left; the next writer sweeps it",
    "foreign": "what no store has written",
}


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it should be."""

    kind: str
    path: str
    problem: str
    action: str = ""

    @property
    def damage(self) -> bool:
        """Whether it is damage."""
        return self.kind in DAMAGE


@dataclasses.dataclass
class Checked:
    """What was verified in one directory."""

    directory: str
    blocks: int = 0
    bytes: int = 0
    foreign: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    @property
    def total(self) -> int:
        """How many findings there are, listed or not."""
        return len(self.findings) + max(0, self.foreign - _TOLD_FOREIGN)

    @property
    def damaged(self) -> int:
        """How many findings are damage."""
        return sum(finding.damage for finding in self.findings)

    def add(self, finding: Finding) -> None:
        """Keep a finding; of foreign files only the first."""
        self.foreign += finding.kind == "foreign"
        if finding.kind != "foreign" or self.foreign <= _TOLD_FOREIGN:
            self.findings.append(finding)


def stored_bytes(directory: str | os.PathLike[str]) -> int:
    """Return how many bytes a check will read."""
    return sum(space.bytes for space in reading.inspect(directory).spaces)


def check(
    directory: str | os.PathLike[str],
    threads: int,
    action: str | None = None,
    progress: Callable[[int], None] = lambda size: None,
) -> Checked:
    """Verify a storage directory; ``action`` for damaged blocks: quarantine, delete or None.

    Stores may go on meanwhile: what they remove or replace is no finding.
    """
    path = Path(directory)
    names.check_format(path)
    found = Checked(str(path))
    for finding in _around(path):
        found.add(finding)
    checker = _Checker(action, progress)
    pool = concurrent.futures.ThreadPoolExecutor(threads, "ucm-fsck")
    try:
        waiting = []
        for space in reading.spaces(path):
            if space.problem:
                found.add(Finding("manifest", str(space.path / "space"), space.problem))
            for entry in _list(space.path, found):
                if names.FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    waiting.append(pool.submit(checker.folder, space, entry.path))
                elif entry.name not in names.SPACE_FILES:
                    found.add(_foreign(entry))
        for future in waiting:
            part = future.result()
            found.blocks += part.blocks
            found.bytes += part.bytes
            for finding in part.findings:
                found.add(finding)
    finally:
        checker.stopped = True
        pool.shutdown(cancel_futures=True)
    acted = {Path(finding.path).parents[1] for finding in found.findings if finding.action}
    if acted:
        ledger.want_recount(path)
    for folder in acted:
        ring.tell(folder)
    found.findings.sort(key=lambda finding: (not finding.damage, finding.kind, finding.path))
    return found


def _around(path: Path) -> Iterator[Finding]:
    """Look at all that is no block."""
    for entry in names.scan(path / ".ucm"):
        if entry.name not in names.MARKS:
            yield _foreign(entry)
    for writer, size in removing.sweep_writers(path, only_look=True):
        yield Finding("orphan", writer, f"its writer is gone; {size} bytes in temporary files")
    for entry in names.scan(path / ".ucm" / "trash"):
        yield Finding("orphan", entry.path, "a removed space that is not deleted yet")
    for folder in names.scan(path):
        if folder.name == ".ucm":
            continue
        is_folder = folder.is_dir()
        inside = list(names.scan(folder.path)) if is_folder else []
        named = {e.name for e in inside if names.SPACE.fullmatch(e.name) and e.is_dir()}
        if not names.NAMESPACE.fullmatch(folder.name) or not is_folder or (inside and not named):
            yield _foreign(folder)
        else:
            yield from (_foreign(entry) for entry in inside if entry.name not in named)


def _list(path: Path | str, found: Checked) -> list[os.DirEntry[str]]:
    try:
        return list(names.scan(path))
    except OSError as error:
        found.add(Finding("unreadable", str(path), f"it cannot be read: {error.strerror}"))
        return []


def _foreign(entry: os.DirEntry[str]) -> Finding:
    return Finding("foreign", entry.path, "it is none of a store's")


class _Checker:
    """What the threads of one check share."""

    def __init__(self, action: str | None, progress: Callable[[int], None]) -> None:
        self.stopped = False
        self._action = action
        self._progress = progress
        self._of_thread = threading.local()

    def folder(self, space: Space, path: str) -> Checked:
        """Verify the blocks of one folder."""
        found = Checked(path)
        for entry in _list(path, found):
            if self.stopped:
                break
            if not names.BLOCK.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                found.add(_foreign(entry))
                continue
            try:
                size, finding = self._block(space, entry)
            except FileNotFoundError:  # a store has removed it
                continue
            found.blocks += 1
            found.bytes += size
            self._progress(size)
            if finding:
                found.add(finding)
        return found

    def _block(self, space: Space, entry: os.DirEntry[str]) -> tuple[int, Finding | None]:
        reader = getattr(self._of_thread, "reader", None)
        if reader is None:
            reader = self._of_thread.reader = block_file.Reader()
        info = None
        try:
            info = reader.open(entry.path)
            kind, problem = _judge(reader, entry, space)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                raise FileNotFoundError from error
            kind = "corrupt" if error.errno == errno.EIO else "unreadable"
            problem = f"it cannot be read: {error.strerror}"
        finally:
            reader.close()
        info = info or os.lstat(entry.path)
        # Otherwise a store has replaced it, or moved it away.
        if not problem or not removing.is_still(entry.path, info):
            return info.st_size, None
        done = ""
        if self._action and kind in ("corrupt", "misplaced"):
            done = self._act(space, entry.path, info)
        return info.st_size, Finding(kind, entry.path, problem, done)

    def _act(self, space: Space, path: str, info: os.stat_result) -> str:
        try:
            if self._action == "delete":
                return removing.delete(path, info)
            return removing.quarantine(space, path, info)
        except OSError as error:
            return f"failed: {error.strerror}"


def _judge(reader: block_file.Reader, entry: os.DirEntry[str], space: Space) -> tuple[str, str]:
    """Say what is wrong with the open file, as a kind and in words. What fails is read twice."""
    try:
        try:
            return _verify(reader, entry, space)
        except (block_file.Bad, OSError):
            reader.read_again()
            return _verify(reader, entry, space)
    except block_file.Unknown as error:
        return "unknown", str(error)
    except block_file.Bad as error:
        return "corrupt", str(error)


def _verify(reader: block_file.Reader, entry: os.DirEntry[str], space: Space) -> tuple[str, str]:
    header = reader.header(entry.name)
    # In the order of the file.
    for index, shard in sorted(enumerate(header.table), key=lambda shard: shard[1].offset):
        reader.check_shard(header.id, index, shard)
    if problem := reading.misplaced(header, space):
        return "misplaced", problem
    if os.path.basename(os.path.dirname(entry.path)) != entry.name[:3]:
        return "misplaced", f"its folder should be {entry.name[:3]}"
    return "", ""
