"""Taking blocks, spaces and what was left behind out of a storage directory."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ucm import errors
from ucm.directory import ledger, names

if TYPE_CHECKING:
    from ucm.directory.reading import Space

_QUARANTINE_FILES = 64
_TRASH_AGE_S = 60
_quarantining = threading.Lock()  # so that threads count and move one after the other


def remove(space: Space) -> tuple[int, int, list[str]]:
    """Remove a space; running engines make it again when they dump.

    Returns how many blocks and bytes went, and what is left because it is none of ours.
    """
    trash = names.make_folder(Path(space.directory), "trash")
    for number in range(1 << 20):
        target = trash / f"{space.namespace}.{space.space}.{number}"
        if target.exists():
            continue
        try:
            os.rename(space.path, target)
            break
        except FileNotFoundError:
            return 0, 0, []
        except OSError as error:
            if not target.exists():
                raise errors.StoreError(f"{space.path}: cannot be removed: {error}") from error
    _remove_quarantined(space)
    count, size, left = _delete(target)
    with contextlib.suppress(OSError):
        os.rmdir(space.path.parent)
    ledger.want_recount(Path(space.directory))
    return count, size, left


def quarantine(space: Space, path: str, was: os.stat_result) -> str:
    """Move a block away as a store does, if its name still leads to that file; say what was done.

    What the quarantine has no room for is deleted.
    """
    folder = names.make_folder(Path(space.directory), "quarantine")
    kept = folder / f"{space.namespace}.{space.space}.{os.path.basename(path)}"
    if not is_still(path, was):
        return "gone"
    with _quarantining:
        if len(os.listdir(folder)) >= _QUARANTINE_FILES:
            os.unlink(path)
            return "deleted, the quarantine is full"
        os.rename(path, kept)
    return f"moved to {kept}"


def delete(path: str, was: os.stat_result) -> str:
    """Delete a block, if its name still leads to that file; say what was done."""
    if not is_still(path, was):
        return "gone"
    os.unlink(path)
    return "deleted"


def is_still(path: str, was: os.stat_result) -> bool:
    """Tell whether a name still leads to that file."""
    try:
        return os.path.samestat(os.lstat(path), was)
    except FileNotFoundError:
        return False


def sweep_trash(directory: Path, only_look: bool = False) -> int:
    """Delete what removed spaces have left; return what it counts for."""
    freed = 0
    for entry in names.scan(directory / ".ucm" / "trash"):
        with contextlib.suppress(FileNotFoundError):
            info = entry.stat(follow_symlinks=False)
            # Somebody may still be at it.
            if entry.is_dir(follow_symlinks=False) and time.time() - info.st_ctime > _TRASH_AGE_S:
                freed += sum(names.bytes_in(top) for top, _, _ in os.walk(entry.path))
                if not only_look:
                    _delete(Path(entry.path))
    return freed


def sweep_writers(directory: Path, only_look: bool = False) -> list[tuple[str, int]]:
    """Remove the folders of writers that are gone; return them, with the bytes that were in them.

    As plugins/common/writer_lock.cpp: of this machine those whose lock can be taken, of others
    those in which nothing has changed for a day.
    """
    swept = []
    mine = names.machine()
    for entry in names.scan(directory / ".ucm" / "writers"):
        if not entry.is_dir(follow_symlinks=False):
            continue
        lock = os.path.join(entry.path, "lock")
        with names.opened(lock, os.O_RDWR) as fd:
            taken = names.lock(fd)
            dead = taken and names.leads_to(lock, fd) and entry.name.startswith(mine)
            # A lock that is held is believed from wherever it comes.
            if dead or (taken is not False and names.long_idle(Path(entry.path))):
                swept.append((entry.path, _remove_writer(Path(entry.path), only_look)))
    return swept


def _remove_writer(folder: Path, only_look: bool) -> int:
    """The lock file goes last: until then nobody else may take the folder for a new one."""
    size = 0
    for entry in names.scan(folder):
        if entry.name == "lock":
            continue
        if entry.is_dir(follow_symlinks=False):  # on its way to its place
            size += sum(_take(file, only_look) for file in names.scan(entry.path))
            if not only_look:
                with contextlib.suppress(OSError):
                    os.rmdir(entry.path)
        else:
            size += _take(entry, only_look)
    if not only_look:
        with contextlib.suppress(OSError):
            os.unlink(folder / "lock")
        with contextlib.suppress(OSError):
            os.rmdir(folder)
    return size


def _take(entry: os.DirEntry[str], only_look: bool) -> int:
    """Delete a file, unless one only looks; return what it counts for."""
    try:
        info = entry.stat(follow_symlinks=False)
        if not only_look:
            os.unlink(entry.path)
    except OSError:  # it went, or stays for another
        return 0
    return names.disk_bytes(info)


def empty_quarantine(directory: Path, only_look: bool = False) -> int:
    """Delete what was kept for inspection; return the bytes."""
    return sum(
        _take(entry, only_look)
        for entry in names.scan(directory / ".ucm" / "quarantine")
        if entry.is_file(follow_symlinks=False)
    )


def _remove_quarantined(space: Space) -> None:
    start = f"{space.namespace}.{space.space}."
    for entry in names.scan(Path(space.directory, ".ucm", "quarantine")):
        if entry.name.startswith(start):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(entry.path)


def _delete(target: Path) -> tuple[int, int, list[str]]:
    """Delete what a space is made of, by descriptors that follow no link; say what is left."""
    count = size = 0
    left: list[str] = []
    try:
        top = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # an opening store was faster
        return 0, 0, []
    try:
        for name in sorted(os.listdir(top)):
            if names.FOLDER.fullmatch(name):
                gone, bytes_gone = _delete_folder(top, name)
                count, size = count + gone, size + bytes_gone
            elif name in names.SPACE_FILES:
                _unlink(top, name)
        left = [str(target / name) for name in os.listdir(top)]
    finally:
        os.close(top)
    with contextlib.suppress(OSError):
        os.rmdir(target)
    return count, size, left


def _delete_folder(top: int, name: str) -> tuple[int, int]:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        folder = os.open(name, flags, dir_fd=top)
    except OSError:
        return 0, 0
    count = size = 0
    try:
        for block in os.listdir(folder):
            if names.BLOCK.fullmatch(block):
                with contextlib.suppress(FileNotFoundError):
                    info = os.stat(block, dir_fd=folder, follow_symlinks=False)
                    os.unlink(block, dir_fd=folder)
                    count, size = count + 1, size + info.st_size
    finally:
        os.close(folder)
    with contextlib.suppress(OSError):
        os.rmdir(name, dir_fd=top)
    return count, size


def _unlink(folder: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
