"""What a storage directory holds. Writes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import xxhash

from ucm.directory import block_file, frames, ledger, names
from ucm.options import DTYPES

# Of a space, unless all are asked for: enough for a ratio, and no wait where there are a million.
SAMPLED_HEADERS = 1000
# And of them blocks whose frames are looked into, for codecs: a shard is two more reads.
SAMPLED_FRAMES = 32
# Ages of a block's last use, in seconds.
AGES = {"hour": 3600, "day": 86400, "week": 7 * 86400}
_MANIFEST_BYTES = 16384
_FINGERPRINT = re.compile(rf"({'|'.join(DTYPES)}):\d+(x\d+)?(,.*)?|({'|'.join(DTYPES)}):\d+ segm.*")


@dataclasses.dataclass(frozen=True)
class Block:
    """One published block, from its header."""

    id: str
    path: str
    bytes: int
    shards: int
    shard_bytes: tuple[int, ...]
    raw_bytes: int
    published: float
    used: float
    depth: int | None = None
    problem: str | None = None


@dataclasses.dataclass
class Headers:
    """What the headers of a space's blocks say, of those that were read."""

    read: int = 0
    problems: int = 0
    stored_bytes: int = 0
    raw_bytes: int = 0
    oldest: float | None = None
    newest: float | None = None
    framed: int = 0  # blocks whose frames say the codecs
    codecs: dict[str, frames.Coded] = dataclasses.field(default_factory=dict)

    def add(self, block: Block) -> None:
        """Count one."""
        self.read += 1
        if block.problem:
            self.problems += 1
            return
        self.stored_bytes += sum(block.shard_bytes)
        self.raw_bytes += block.raw_bytes
        self.oldest = min(self.oldest or block.published, block.published)
        self.newest = max(self.newest or block.published, block.published)

    @property
    def ratio(self) -> float | None:
        """Bytes before any encoding for each byte that is stored."""
        return self.raw_bytes / self.stored_bytes if self.stored_bytes else None


@dataclasses.dataclass
class Space:
    """Blocks that may share, in one directory. Times are seconds of the Unix clock.

    The file's mtime says when a block was last used; when it was published stands in its header.
    """

    directory: str
    namespace: str
    space: str
    model: str = ""
    fingerprint: str = ""
    dtype: str = ""
    shards_per_block: int = 0
    raw_capacity: int = 0
    encoding: str = ""
    problem: str | None = None
    blocks: int = 0
    bytes: int = 0
    disk_bytes: int = 0
    coldest: float | None = None
    hottest: float | None = None
    used: dict[str, int] = dataclasses.field(
        default_factory=lambda: dict.fromkeys((*AGES, "older"), 0)
    )
    headers: Headers = dataclasses.field(default_factory=Headers)

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
    ledger: ledger.Ledger | None = None


def inspect(
    directory: str | os.PathLike[str], namespace: str | None = None, headers: int | None = 0
) -> Directory:
    """Read what a storage directory holds, with so many headers a space (None: all)."""
    path = Path(directory)
    found = Directory(str(path), names.check_format(path), list(spaces(path, namespace)))
    for space in found.spaces:
        _count(space, headers)
    for writer in names.scan(path / ".ucm" / "writers"):
        found.writers += names.is_locked(os.path.join(writer.path, "lock"))
        found.temporary_bytes += sum(size for _, size in _files(Path(writer.path)))
    for name, size in _files(path / ".ucm" / "quarantine"):
        if namespace is None or name.rpartition(".")[0].rpartition(".")[0] == namespace:
            found.quarantined += 1
            found.quarantined_bytes += size
    found.trash = len(list(names.scan(path / ".ucm" / "trash")))
    found.ledger = ledger.read(path)
    return found


def spaces(path: Path, namespace: str | None = None) -> Iterator[Space]:
    """List the spaces, with what their manifests say."""
    for entry in names.spaces(path):
        label = os.path.basename(os.path.dirname(entry.path))
        if namespace in (None, label):
            yield _manifest(Space(str(path), label, entry.name))


def blocks(space: Space) -> Iterator[Block]:
    """Read the headers of a space's blocks. Payloads are not looked at."""
    for entry in names.blocks(space.path):
        with contextlib.suppress(FileNotFoundError):
            yield _block(entry.path, space)


def idle_seconds(space: Space) -> float:
    """How long ago something in it was last used."""
    latest = space.hottest
    if latest is None:
        try:
            latest = os.stat(space.path).st_mtime
        except FileNotFoundError:
            latest = 0.0
    return time.time() - latest


def _files(path: Path) -> Iterator[tuple[str, int]]:
    for entry in names.scan(path):
        with contextlib.suppress(FileNotFoundError):
            if entry.is_file(follow_symlinks=False):
                yield entry.name, entry.stat(follow_symlinks=False).st_size


def _manifest(space: Space) -> Space:
    try:
        with open(space.path / "space", "rb") as file:
            text = file.read(_MANIFEST_BYTES).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        text = ""
    except OSError as error:
        space.problem = f"its manifest cannot be read: {error.strerror}"
        return space
    head, end, _ = text.partition("\n\n")
    version, _, lines = head.partition("\n")
    if not end or version != "ucm space 1":
        space.problem = "its manifest is torn" if not end else f"its manifest is {version!r}"
        return space
    values = dict(line.split("=", 1) for line in lines.split("\n") if "=" in line)
    space.model = values.get("model", "")
    space.fingerprint = values.get("fingerprint", "")
    space.encoding = values.get("encoding", "")
    told = _FINGERPRINT.fullmatch(space.fingerprint)
    space.dtype = (told[1] or told[4]) if told else ""
    try:
        space.shards_per_block = int(values["shards_per_block"])
        space.raw_capacity = int(values["raw_capacity"])
    except (KeyError, ValueError):
        space.problem = "its manifest says no layout"
    if xxhash.xxh3_128_hexdigest(f"{lines}\n".encode()) != space.space:
        space.problem = "its manifest is of another space"
    return space


def _count(space: Space, headers: int | None) -> None:
    now, sample = time.time(), list[str]()
    pick = random.Random(space.space)
    for entry in names.blocks(space.path):
        try:
            info = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        space.blocks += 1
        space.bytes += info.st_size
        space.disk_bytes += info.st_blocks * 512
        space.coldest = min(space.coldest or info.st_mtime, info.st_mtime)
        space.hottest = max(space.hottest or info.st_mtime, info.st_mtime)
        age = now - info.st_mtime
        space.used[next((name for name, most in AGES.items() if age < most), "older")] += 1
        if headers is None:
            _add_header(space, entry.path)
        elif len(sample) < headers:
            sample.append(entry.path)
        elif headers and (at := pick.randrange(space.blocks)) < headers:
            sample[at] = entry.path
    for path in sample:
        _add_header(space, path, SAMPLED_FRAMES)


def _add_header(space: Space, path: str, most_framed: int | None = None) -> None:
    with contextlib.suppress(FileNotFoundError):
        block = _block(path, space)
        space.headers.add(block)
        is_framed = space.encoding.rpartition("+")[2] == frames.ENCODING
        more = most_framed is None or space.headers.framed < most_framed
        if is_framed and more and not block.problem:
            _add_frames(space.headers, path)


def _add_frames(headers: Headers, path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        fd, size = file.fileno(), os.fstat(file.fileno()).st_size
        name = os.path.basename(path)
        header = block_file.read_header(lambda most: os.pread(fd, most, 0), size, name)
        for entry in header.table:
            frames.read(fd, entry.offset, entry.length, headers.codecs)
    headers.framed += 1


def _block(path: str, space: Space) -> Block:
    name = os.path.basename(path)
    with open(path, "rb", buffering=0) as file:
        info = os.fstat(file.fileno())
        try:
            header = block_file.read_header(
                lambda most: os.pread(file.fileno(), most, 0), info.st_size, name
            )
        except (block_file.Bad, block_file.Unknown) as error:
            return Block(name, path, info.st_size, 0, (), 0, 0.0, info.st_mtime, None, str(error))
    return Block(
        id=name,
        path=path,
        bytes=info.st_size,
        shards=len(header.table),
        shard_bytes=tuple(entry.length for entry in header.table),
        raw_bytes=sum(entry.raw_length for entry in header.table),
        published=header.published,
        used=info.st_mtime,
        depth=header.depth,
        problem=misplaced(header, space),
    )


def misplaced(header: block_file.Header, space: Space) -> str | None:
    """Say why a sound block does not belong into that space."""
    if header.space.hex() != space.space:
        return f"it is of space {header.space.hex()}"
    if space.problem:
        return None
    if (len(header.table), header.raw_capacity, header.encoding) != (
        space.shards_per_block,
        space.raw_capacity,
        space.encoding,
    ):
        return "it is cut or coded otherwise than its space says"
    return None
