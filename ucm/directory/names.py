"""What stands where in a storage directory, and the marks and locks of its writers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ucm import errors

SPACE = BLOCK = re.compile("[0-9a-f]{32}")
FOLDER = re.compile("[0-9a-f]{3}")
NAMESPACE = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
# What else may lie in a space, and in .ucm.
SPACE_FILES = ("space", "recent")
MARKS = ("format", "writers", "quarantine", "trash", "gc", "ledger")
_FORMAT = "ucm blocks 1"
_OLDER_FILES = (".ucm_gc.config", ".ucm_gc.cfglock", ".ucm_gc.lock")
# It makes all 4,096 when it opens: a few tell, and no listing is needed.
_OLDER_FOLDERS = ("000", "555", "aaa", "fff")
_OLDER_BLOCK = re.compile(r"[0-9a-f]{32}(\.tmp)?")
_OLDER_NAMES = 16
_FOREIGN_IDLE_S = 24 * 3600
_LOCK_WAIT_S = 2
# struct flock: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")


def check_format(directory: str | os.PathLike[str]) -> str:
    """Return a storage directory's UUID; raise where it is none, or one of another kind."""
    path = Path(directory)
    mark = path / ".ucm" / "format"
    try:
        lines = mark.read_text().split("\n")
    except (FileNotFoundError, NotADirectoryError):
        if is_older(path):
            raise errors.IncompatibleError(
                f"{path}: holds blocks of UCM's uc-manager, files without a header or checksums, "
                "which can be neither read nor imported; name another directory, or a new one in it"
            ) from None
        if not path.is_dir():
            what = "is not a directory" if path.exists() else "does not exist"
            raise errors.InvalidError(
                f"{path}: {what}; name a directory of storage_backends"
            ) from None
        raise errors.InvalidError(
            f"{path}: is not a storage directory, there is no {mark.relative_to(path)} in it"
        ) from None
    if len(lines) != 3 or lines[0] != _FORMAT:
        raise errors.IncompatibleError(f"{mark}: says {lines[0]!r}, which this version cannot read")
    return lines[1]


def is_older(path: Path) -> bool:
    """Tell whether uc-manager has written there, as plugins/common/older.cpp does."""
    if any((path / name).exists() for name in _OLDER_FILES):
        return True
    for top in (path, path / "data"):
        if all((top / name).is_dir() for name in _OLDER_FOLDERS) and not (top / "space").exists():
            return True
    return _has_older_blocks(path / "data")


def _has_older_blocks(folder: Path) -> bool:
    """Tell whether a folder holds nothing but files named as blocks, by the first few."""
    seen = 0
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not _OLDER_BLOCK.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
                return False
            seen += 1
            if seen == _OLDER_NAMES:
                break
    return seen > 0


def scan(path: Path | str) -> Iterator[os.DirEntry[str]]:
    """List a folder that may vanish, in the order of names."""
    try:
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return


def spaces(path: Path) -> Iterator[os.DirEntry[str]]:
    """List the folders that are named as spaces; the namespace is the folder above."""
    for folder in scan(path):
        if NAMESPACE.fullmatch(folder.name):
            for entry in scan(folder.path):
                if SPACE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                    yield entry


def block_folders(space: Path | str) -> Iterator[os.DirEntry[str]]:
    """List the folders of a space."""
    for folder in scan(space):
        if FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
            yield folder


def blocks(space: Path | str) -> Iterator[os.DirEntry[str]]:
    """List the files of a space that are named as blocks."""
    for folder in block_folders(space):
        for entry in scan(folder.path):
            if BLOCK.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                yield entry


@contextlib.contextmanager
def opened(path: Path | str, flags: int) -> Iterator[int]:
    """Open a file for a while; -1 where it cannot be, and has no locks."""
    try:
        fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        fd = -1
    try:
        yield fd
    finally:
        if fd >= 0:
            os.close(fd)


def is_locked(path: str) -> bool:
    """Tell whether a living writer of this machine, or of one whose locks reach here, holds it."""
    with opened(path, os.O_RDONLY) as fd:
        try:
            # Asked for as if to read.
            asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        except (OSError, ValueError):
            return False
        return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)


def lock(fd: int) -> bool | None:
    """Take a lock that goes with the descriptor; False: another holds it; None: no locks here."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        return False
    except (OSError, ValueError):
        return None
    return True


def leads_to(path: Path | str, fd: int) -> bool:
    """Tell whether a path still leads to the file that is open."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:
        return False


@contextlib.contextmanager
def locked(path: Path | str) -> Iterator[int]:
    """Open and lock a small file that stores change in turn; -1 where it cannot be."""
    until = time.monotonic() + _LOCK_WAIT_S
    while True:
        with opened(path, os.O_RDWR) as fd:
            taken = lock(fd)
            if taken and leads_to(path, fd):
                yield fd
                return
        if taken is None or time.monotonic() > until:
            yield -1
            return
        time.sleep(0.001)


def machine() -> str:
    """Return how the folders of this machine's writers begin, until it boots again."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
    return f"{socket.gethostname().replace('/', '_')}-{boot}-"


def long_idle(folder: Path) -> bool:
    """Tell whether nothing in a writer's folder has changed for a day."""
    latest = 0.0
    for path in (folder, *folder.glob("*")):
        with contextlib.suppress(FileNotFoundError):
            latest = max(latest, path.stat().st_mtime)
    return time.time() - latest > _FOREIGN_IDLE_S


def disk_bytes(info: os.stat_result) -> int:
    """Return what a file counts for."""
    return max(info.st_blocks * 512, info.st_size)


def bytes_in(folder: Path | str) -> int:
    """Return what the files in a folder count for."""
    total = 0
    for entry in scan(folder):
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                total += disk_bytes(entry.stat(follow_symlinks=False))
    return total


def make_folder(directory: Path, name: str) -> Path:
    """Make a folder in .ucm as the others there are."""
    base, path = directory / ".ucm", directory / ".ucm" / name
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return path
    info = os.stat(base)
    with contextlib.suppress(PermissionError):
        os.chown(path, info.st_uid, info.st_gid)
    os.chmod(path, stat.S_IMODE(info.st_mode))
    return path


def make_file(directory: Path, name: str) -> None:
    """Make an empty file in .ucm where it is not there, as .ucm/format is."""
    path = directory / ".ucm" / name
    info = os.stat(directory / ".ucm" / "format")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, 0o600)
    except FileExistsError:
        return
    try:
        with contextlib.suppress(PermissionError):
            os.fchown(fd, info.st_uid, info.st_gid)
        os.fchmod(fd, stat.S_IMODE(info.st_mode))
    finally:
        os.close(fd)
