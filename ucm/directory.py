"""What is in storage directories, as docs/block-format.md says; no store is opened for it."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import re
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ucm import errors

_SPACE = re.compile("[0-9a-f]{32}")
_FOLDER = re.compile("[0-9a-f]{3}")
_NAMESPACE = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
_MANIFEST_BYTES = 16384
_HEADER = struct.Struct("<8sII16sIIQQ64sQI4x16s")


@dataclasses.dataclass(frozen=True)
class Block:
    """One published block, from its header."""

    id: str
    path: str
    bytes: int
    shards: int
    shard_bytes: tuple[int, ...]
    published: float
    problem: str | None = None


@dataclasses.dataclass
class Space:
    """Blocks that may share, in one directory. Times are seconds of the Unix clock."""

    directory: str
    namespace: str
    space: str
    model: str = ""
    fingerprint: str = ""
    shards_per_block: int = 0
    raw_capacity: int = 0
    encoding: str = ""
    problem: str | None = None
    blocks: int = 0
    bytes: int = 0
    oldest: float | None = None
    newest: float | None = None

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.directory, self.namespace, self.space)


@dataclasses.dataclass
class Directory:
    """One storage directory."""

    directory: str
    uuid: str
    spaces: list[Space]
    writers: int = 0
    temporary_bytes: int = 0
    quarantined: int = 0
    quarantined_bytes: int = 0
    trash: int = 0


def inspect(directory: str | os.PathLike[str], namespace: str | None = None) -> Directory:
    """Read what a storage directory holds. Writes nothing."""
    path = Path(directory)
    found = Directory(str(path), _uuid(path), list(_spaces(path, namespace)))
    for space in found.spaces:
        _count(space)
    for writer in _scan(path / ".ucm" / "writers"):
        found.writers += _is_locked(os.path.join(writer.path, "lock"))
        found.temporary_bytes += sum(size for _, size in _files(Path(writer.path)))
    for name, size in _files(path / ".ucm" / "quarantine"):
        if namespace is None or name.rpartition(".")[0].rpartition(".")[0] == namespace:
            found.quarantined += 1
            found.quarantined_bytes += size
    found.trash = len(list(_scan(path / ".ucm" / "trash")))
    return found


def blocks(space: Space) -> Iterator[Block]:
    """Read the headers of a space's blocks. Checksums are not looked at."""
    for entry in _blocks(space.path):
        try:
            yield _block(entry, space)
        except FileNotFoundError:
            continue


def idle_seconds(space: Space) -> float:
    """How long ago something was last added."""
    latest = space.newest
    if latest is None:
        try:
            latest = os.stat(space.path).st_mtime
        except FileNotFoundError:
            latest = 0.0
    return time.time() - latest


def remove(space: Space) -> tuple[int, int, list[str]]:
    """Remove a space; running engines make it again when they dump.

    Returns how many blocks and bytes went, and what is left because it is none of ours.
    """
    trash = _trash(Path(space.directory))
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
    return count, size, left


def _uuid(path: Path) -> str:
    mark = path / ".ucm" / "format"
    try:
        lines = mark.read_text().split("\n")
    except (FileNotFoundError, NotADirectoryError):
        raise errors.InvalidError(
            f"{path}: is not a storage directory, there is no {mark.relative_to(path)} in it"
        ) from None
    if len(lines) != 3 or lines[0] != "ucm blocks 1":
        raise errors.IncompatibleError(f"{mark}: says {lines[0]!r}, which this version cannot read")
    return lines[1]


def _scan(path: Path | str) -> Iterator[os.DirEntry[str]]:
    """List a folder that may vanish, in the order of names."""
    try:
        with os.scandir(path) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return


def _files(path: Path) -> Iterator[tuple[str, int]]:
    for entry in _scan(path):
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                yield entry.name, entry.stat(follow_symlinks=False).st_size


def _spaces(path: Path, namespace: str | None) -> Iterator[Space]:
    for folder in _scan(path):
        if not _NAMESPACE.fullmatch(folder.name) or namespace not in (None, folder.name):
            continue
        for entry in _scan(folder.path):
            if _SPACE.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                yield _manifest(Space(str(path), folder.name, entry.name))


def _manifest(space: Space) -> Space:
    try:
        with open(space.path / "space", "rb") as file:
            text = file.read(_MANIFEST_BYTES).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    head, end, _ = text.partition("\n\n")
    version, _, lines = head.partition("\n")
    if not end or version != "ucm space 1":
        space.problem = "its manifest is torn" if not end else f"its manifest is {version!r}"
        return space
    values = dict(line.split("=", 1) for line in lines.split("\n") if "=" in line)
    space.model = values.get("model", "")
    space.fingerprint = values.get("fingerprint", "")
    space.encoding = values.get("encoding", "")
    try:
        space.shards_per_block = int(values["shards_per_block"])
        space.raw_capacity = int(values["raw_capacity"])
    except (KeyError, ValueError):
        space.problem = "its manifest says no layout"
    return space


def _blocks(space: Path) -> Iterator[os.DirEntry[str]]:
    for folder in _scan(space):
        if _FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
            for entry in _scan(folder.path):
                if _SPACE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                    yield entry


def _count(space: Space) -> None:
    for entry in _blocks(space.path):
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        space.blocks += 1
        space.bytes += info.st_size
        space.oldest = min(space.oldest or info.st_mtime, info.st_mtime)
        space.newest = max(space.newest or info.st_mtime, info.st_mtime)


def _block(entry: os.DirEntry[str], space: Space) -> Block:
    size = entry.stat(follow_symlinks=False).st_size
    with open(entry.path, "rb") as file:
        fixed = file.read(256)
        if len(fixed) < 256 or fixed[:8] != b"UCMBLOCK":
            return Block(entry.name, entry.path, size, 0, (), 0.0, "it is no block file")
        header = _HEADER.unpack_from(fixed)
        _, version, _, name, count, _, file_bytes, _, _, published, _, own = header
        problem = None
        if version != 1:
            problem = f"its version is {version}"
        elif name.hex() != entry.name:
            problem = f"it is block {name.hex()}"
        elif own.hex() != space.space:
            problem = f"it is of space {own.hex()}"
        elif file_bytes != size:
            problem = f"it should have {file_bytes} bytes"
        table = file.read(32 * count) if problem is None and count <= 16384 else b""
    lengths = tuple(entry[1] for entry in struct.iter_unpack("<4Q", table[: len(table) // 32 * 32]))
    return Block(entry.name, entry.path, size, count, lengths, published / 1e9, problem)


def _is_locked(path: str) -> bool:
    """Tell whether a living writer of this machine, or of one whose locks reach here, holds it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        # struct flock: type, whence, start, length, pid; asked for as if to read.
        asked = struct.pack("hhqqi4x", fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
        return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
    except OSError:
        return False
    finally:
        os.close(fd)


def _trash(directory: Path) -> Path:
    """Make the trash as the other folders of .ucm are."""
    base, trash = directory / ".ucm", directory / ".ucm" / "trash"
    try:
        os.mkdir(trash, 0o700)
    except FileExistsError:
        return trash
    info = os.stat(base)
    with contextlib.suppress(PermissionError):
        os.chown(trash, info.st_uid, info.st_gid)
    os.chmod(trash, stat.S_IMODE(info.st_mode))
    return trash


def _remove_quarantined(space: Space) -> None:
    start = f"{space.namespace}.{space.space}."
    for entry in _scan(Path(space.directory, ".ucm", "quarantine")):
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
            if _FOLDER.fullmatch(name):
                gone, bytes_gone = _delete_folder(top, name)
                count, size = count + gone, size + bytes_gone
            elif name in ("space", "recent"):
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
            if _SPACE.fullmatch(block):
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
