"""What would be slow or unsafe on this machine: each check looks at what it is given."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import mmap
import os
import re
import resource
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path

GIB = 2**30
TYPE_OF_3FS = "fuse.hf3fs"
_NETWORK = ("nfs", "nfs4")
_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")
_NEARLY_FULL = 0.05
_FEW_FILES = 1024
_MOST_AUTOMATIC = 256 * GIB
_LOGIND = ("usr/lib/systemd", "run/systemd", "etc/systemd")  # the last one wins


@dataclasses.dataclass(frozen=True)
class Finding:
    """What is so, why it matters, and what to do about it."""

    check: str
    what: str
    why: str
    remedy: str


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of /proc/mounts."""

    device: str
    point: str
    type: str
    options: tuple[str, ...]

    def value(self, name: str) -> str | None:
        """Return what follows ``name=``, or None."""
        found = [o.partition("=")[2] for o in self.options if o.startswith(f"{name}=")]
        return found[-1] if found else None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes; ``limit`` is the control group's, None without one, ``used`` what counts in it."""

    available: int
    limit: int | None
    shm_free: int
    used: int = 0


@dataclasses.dataclass(frozen=True)
class Limits:
    """Soft limits of this process; None: unlimited."""

    memlock: int | None
    nofile: int | None
    open_files: int


@dataclasses.dataclass(frozen=True)
class Space:
    """What a file system has."""

    bytes_total: int
    bytes_free: int
    files_total: int
    files_free: int


def parse_mounts(text: str) -> list[Mount]:
    """Read /proc/mounts; blanks in it are written as \\040."""

    def plain(field: str) -> str:
        return re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), field)

    fields = [line.split() for line in text.splitlines()]
    return [
        Mount(plain(f[0]), plain(f[1]), f[2], tuple(f[3].split(","))) for f in fields if len(f) >= 4
    ]


def mount_of(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """Find the mount that an absolute path lies on: the longest, and of these the last."""
    found = None
    for mount in mounts:
        point = mount.point.rstrip("/") + "/"
        if (path.rstrip("/") + "/").startswith(point) and (
            found is None or len(mount.point) >= len(found.point)
        ):
            found = mount
    return found


def direct_io(directory: str, error: OSError | None) -> list[Finding]:
    """``error``: what came of trying O_DIRECT there."""
    if error is None:
        return []
    return [
        Finding(
            "io_direct",
            f"io_direct is true, but {directory} refuses O_DIRECT: {error.strerror}",
            "Posix goes on through the page cache there, which costs memory and copies",
            "set io_direct: false, or use a directory on a local disk (ext4, xfs) or NFS",
        )
    ]


def pool_memory(pool_bytes: int, memory: Memory) -> list[Finding]:
    """Cache's pool against the memory that is there."""
    found = []
    for name, most in (
        ("memory that is available now", memory.available),
        ("memory that this control group may use", memory.limit),
    ):
        if most is not None and pool_bytes > most:
            found.append(
                Finding(
                    "cache_memory",
                    f"Cache's pool of {_gib(pool_bytes)} is larger than the {_gib(most)} of {name}",
                    "pages are taken as the pool fills, and then the kernel kills processes",
                    f"set cache_buffer_capacity_gb to {max(0.01, most / GIB / 2):.2f} or less",
                )
            )
    return found[-1:]


def automatic_pool(memory: Memory, shared: bool) -> int:
    """Return the size that Cache takes where none is given, as plugins/cache/config.cpp does."""
    pool = min((memory.shm_free if shared else memory.available) // 2, _MOST_AUTOMATIC)
    if memory.limit is None:
        return pool
    return min(pool, max(0, memory.limit - memory.used) // 2)


def pool_shm(pool_bytes: int, memory: Memory) -> list[Finding]:
    """Cache's pool against /dev/shm, where the processes of an engine share it."""
    if pool_bytes <= memory.shm_free:
        return []
    return [
        Finding(
            "dev_shm",
            f"/dev/shm has {_gib(memory.shm_free)} free, Cache's pool is {_gib(pool_bytes)}",
            "the processes of an engine share it there, and keep no more blocks than find room",
            "mount -o remount,size=SIZE /dev/shm, docker --shm-size, a smaller "
            "cache_buffer_capacity_gb, or share_buffer_enable: false",
        )
    ]


def memlock(pool_bytes: int, limits: Limits) -> list[Finding]:
    """Cache's pool against what may be locked."""
    if limits.memlock is None or pool_bytes <= limits.memlock:
        return []
    return [
        Finding(
            "memlock",
            f"RLIMIT_MEMLOCK is {limits.memlock} bytes, Cache's pool is {_gib(pool_bytes)}",
            "this version locks nothing, so the pool may be swapped out; memory that is pinned for "
            "a GPU, RDMA or io_uring counts against the limit",
            "ulimit -l unlimited; LimitMEMLOCK=infinity in a unit; docker --ulimit memlock=-1",
        )
    ]


def nofile(threads: int, directories: int, limits: Limits) -> list[Finding]:
    """Posix has one file open a thread, and two a directory."""
    needed = max(_FEW_FILES, limits.open_files + threads + 2 * directories)
    if limits.nofile is None or limits.nofile >= needed:
        return []
    return [
        Finding(
            "nofile",
            f"RLIMIT_NOFILE is {limits.nofile}; {limits.open_files} files are open already and "
            f"Posix may open {threads + 2 * directories}",
            "an engine's sockets count too; when none is left, loads and dumps fail with EMFILE",
            f"ulimit -n {max(65536, needed)}; LimitNOFILE= in a unit; docker --ulimit nofile=",
        )
    ]


def remove_ipc(uid: int, systemd: bool, logind: str) -> list[Finding]:
    """``logind``: the texts of logind.conf and its drop-ins, the one that wins last."""
    given = re.findall(r"^\s*RemoveIPC\s*=\s*(\S+)", logind, re.MULTILINE | re.IGNORECASE)
    off = given and given[-1].lower() in ("no", "false", "off", "0", "n", "f")
    if off or not systemd or uid < 1000 or uid >= 65534:  # users of the system are spared
        return []
    return [
        Finding(
            "remove_ipc",
            f"systemd removes what user {uid} has in /dev/shm when the last session ends "
            "(RemoveIPC is on)",
            "of an engine started in a session that ends, processes that start later do not share "
            "Cache's memory with those that run",
            "RemoveIPC=no in /etc/systemd/logind.conf, loginctl enable-linger, or run the engine "
            "as a system service",
        )
    ]


def file_system(directory: str, mount: Mount | None, by_daemon: bool = False) -> list[Finding]:
    """Memory instead of a disk, NFS that answers from its memory, and 3FS not by its daemon."""
    if mount is None:
        return []
    if mount.type in _IN_MEMORY:
        return [
            Finding(
                "not_persistent",
                f"{directory} is on {mount.type}",
                "blocks take memory, and are gone after a restart of the machine",
                "use a directory on a disk; for blocks in memory, Cache is faster",
            )
        ]
    if mount.type == TYPE_OF_3FS and not by_daemon:
        return [
            Finding(
                "3fs",
                f"{directory} is on 3FS ({mount.point})",
                "Posix moves bytes through the kernel to 3FS's daemon, in pieces of 1 MiB at most",
                "write Ds3fs in place of Posix: it reads and writes the same files",
            )
        ]
    return _attribute_cache(directory, mount) if mount.type in _NETWORK else []


def _attribute_cache(directory: str, mount: Mount) -> list[Finding]:
    seconds = mount.value("actimeo") or mount.value("acdirmax") or "60"
    fresh = (
        "noac" in mount.options
        or mount.value("lookupcache") in ("none", "pos", "positive")
        or (seconds.isdigit() and int(seconds) <= 1)
    )
    if fresh:
        return []
    return [
        Finding(
            "nfs_attributes",
            f"{directory} is on NFS ({mount.device}) and its client caches what is not there",
            f"a block that another machine has just stored may be missed for up to {seconds} s, "
            "and is computed and written again",
            "mount it with lookupcache=positive (or actimeo=1; noac is slow); one machine alone "
            "needs nothing",
        )
    ]


def permissions(directory: str, mode: int) -> list[Finding]:
    """``mode``: the directory's st_mode."""
    bits = stat.S_IMODE(mode)
    found = []
    if bits & 0o002:
        found.append(
            Finding(
                "writable",
                f"{directory} can be written by every user (mode {bits:04o})",
                "whoever can write a block can have a model continue another text; checksums find "
                "damage, not intent",
                f"chmod 700 {directory}, or 770 with a group of the engine's own",
            )
        )
    elif bits & 0o005:
        found.append(
            Finding(
                "readable",
                f"{directory} can be read by every user (mode {bits:04o})",
                "KV cache tells what was in the prompts",
                f"chmod 700 {directory}, or 750 with a group of the engine's own",
            )
        )
    return found


def space(
    directory: str, has: Space, capacity_bytes: int, mount: Mount | None = None
) -> list[Finding]:
    """``capacity_bytes``: what the directory may take; 0: no limit."""
    found = []
    for what, free, total in (
        (f"{_gib(has.bytes_free)} of {_gib(has.bytes_total)}", has.bytes_free, has.bytes_total),
        (f"{has.files_free} of {has.files_total} files", has.files_free, has.files_total),
    ):
        if total and free / total < _NEARLY_FULL:
            found.append(
                Finding(
                    "nearly_full",
                    f"{directory} has only {what} left",
                    "when it is full, dumps fail with NO_SPACE; what is stored can still be loaded",
                    "free some, or use another directory; any block file may be removed",
                )
            )
    if mount is not None and mount.type == TYPE_OF_3FS:
        return [*found, _without_limit(directory, capacity_bytes)]
    if capacity_bytes > has.bytes_total > 0:
        found.append(
            Finding(
                "quota",
                f"posix_capacity_gb lets {directory} take {_gib(capacity_bytes)}, but its file "
                f"system has {_gib(has.bytes_total)}",
                "the file system is full first: a dump then fails before old blocks go",
                "lower posix_capacity_gb",
            )
        )
    if not capacity_bytes:
        found.append(
            Finding(
                "unbounded",
                f"{directory} may grow until the disk is full: posix_capacity_gb is not set",
                "nothing is collected, and others who use the disk run out of space",
                "set posix_capacity_gb; a file system or project quota bounds it as well",
            )
        )
    return found


def _without_limit(directory: str, capacity_bytes: int) -> Finding:
    """Locks of 3FS do not reach other hosts, so a limit would hold for one of them."""
    remedy = f"have one host run ucm gc {directory} --to SIZE, by cron"
    if capacity_bytes:
        return Finding(
            "quota",
            f"posix_capacity_gb is set, and {directory} is on 3FS",
            "locks there do not reach other hosts, and so no limit does: no store will open",
            f"leave it out, and {remedy}",
        )
    return Finding(
        "unbounded",
        f"{directory} may grow until 3FS is full",
        "locks there do not reach other hosts, so no store keeps a limit, or collects",
        remedy,
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.2f} GiB"


# What the machine says.


def try_direct(directory: str) -> OSError | None:
    """Write and read one page past the page cache in a file that goes away; return the error."""
    try:
        file, path = tempfile.mkstemp(prefix=".ucm-check-", dir=directory)
    except OSError:
        return None  # opening the store says why
    os.close(file)
    try:
        file = os.open(path, os.O_RDWR | os.O_DIRECT)
        try:
            with mmap.mmap(-1, mmap.PAGESIZE) as page:  # aligned, as O_DIRECT wants it
                os.pwrite(file, page, 0)
                os.preadv(file, [page], 0)
        finally:
            os.close(file)
    except OSError as error:
        return error if error.errno in (errno.EINVAL, errno.EOPNOTSUPP) else None
    finally:
        os.unlink(path)
    return None


def read_mounts() -> list[Mount]:
    """Read the mounts that this process sees."""
    return parse_mounts(_text(Path("/proc/self/mounts")))


def read_memory() -> Memory:
    """Read what memory has free, what the control group allows, and what /dev/shm has free."""
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE)
    available = int(found[1]) * 1024 if found else 0
    limit = _text(Path("/sys/fs/cgroup/memory.max")).strip()
    try:
        shm = os.statvfs("/dev/shm")
        # A tmpfs without a limit says that it has no blocks at all.
        shm_free = shm.f_bavail * shm.f_frsize if shm.f_blocks else available
    except OSError:
        shm_free = 0
    current = _text(Path("/sys/fs/cgroup/memory.current")).strip()
    # What files only keep in memory goes when room is needed.
    files = re.search(
        r"^inactive_file (\d+)", _text(Path("/sys/fs/cgroup/memory.stat")), re.MULTILINE
    )
    used = max(0, (int(current) if current.isdigit() else 0) - (int(files[1]) if files else 0))
    return Memory(available, int(limit) if limit.isdigit() else None, shm_free, used)


def read_limits() -> Limits:
    """Read the soft limits of this process."""

    def soft(what: int) -> int | None:
        value = resource.getrlimit(what)[0]
        return None if value == resource.RLIM_INFINITY else value

    open_files = len(os.listdir("/proc/self/fd"))
    return Limits(soft(resource.RLIMIT_MEMLOCK), soft(resource.RLIMIT_NOFILE), open_files)


def read_space(directory: str) -> Space:
    """Read what the directory's file system has."""
    has = os.statvfs(directory)
    return Space(
        has.f_blocks * has.f_frsize, has.f_bavail * has.f_frsize, has.f_files, has.f_favail
    )


def read_logind(root: Path = Path("/")) -> str:
    """Read logind's configuration with its drop-ins, the one that wins last."""
    main = [root / folder / "logind.conf" for folder in _LOGIND]
    dropped = {
        path.name: path  # a later folder's file hides an earlier one of the same name
        for folder in _LOGIND
        for path in (root / folder / "logind.conf.d").glob("*.conf")
    }
    return "\n".join(map(_text, [*main, *(dropped[name] for name in sorted(dropped))]))


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def directory_warnings(
    directory: str, io_direct: bool, capacity_bytes: int, by_daemon: bool = False
) -> list[Finding]:
    """Look at one directory of blocks; ``by_daemon``: Ds3fs uses it."""
    path = os.path.realpath(directory)
    mount = mount_of(path, read_mounts())
    return [
        *(direct_io(directory, try_direct(path)) if io_direct else []),
        *file_system(directory, mount, by_daemon),
        *permissions(directory, os.stat(path).st_mode),
        *space(directory, read_space(path), capacity_bytes, mount),
    ]


def pool_warnings(capacity_gb: float, shared: bool) -> list[Finding]:
    """Look at the memory for Cache's pool; 0: the size that Cache chooses by itself."""
    memory, limits = read_memory(), read_limits()
    pool_bytes = int(capacity_gb * GIB) or automatic_pool(memory, shared)
    found = [*pool_memory(pool_bytes, memory), *memlock(pool_bytes, limits)]
    if shared:
        systemd = Path("/run/systemd/system").is_dir()
        found += pool_shm(pool_bytes, memory)
        found += remove_ipc(os.getuid(), systemd, read_logind())
    return found
