"""What 3FS needs on this machine, and what of it is missing."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ucm.checks import (
    TYPE_OF_3FS,
    Finding,
    Mount,
    directory_warnings,
    mount_of,
    read_memory,
    read_mounts,
)

_IOVS = Path("3fs-virt", "iovs")
_RUN_BYTES = 4 << 20  # of a buffer


def mount_point(directory: str, mounts: Iterable[Mount]) -> Path | None:
    """Find the mount of 3FS that a directory is on: by its type, or by the folder it shows."""
    path = Path(os.path.realpath(directory))
    mount = mount_of(str(path), mounts)
    if mount is not None and mount.type == TYPE_OF_3FS:
        return Path(mount.point)
    return next((p for p in (path, *path.parents) if (p / _IOVS).is_dir()), None)


def no_mount(directory: str, mount: Mount | None) -> Finding:
    """The directory is elsewhere."""
    where = mount.type if mount else "another file system"
    return Finding(
        "3fs_mount",
        f"{directory} is on {where}, and no folder above it holds {_IOVS}",
        "Ds3fs moves bytes through the daemon of a 3FS mount alone",
        "mount 3FS and name a directory in it, or use Posix here",
    )


def daemon(root: Path, writable: bool, rings: bool) -> list[Finding]:
    """``writable``: memory can be made known; ``rings``: the daemon says how it is woken."""
    iovs = root / _IOVS
    found = []
    if not writable:
        found.append(
            Finding(
                "3fs_iovs",
                f"{iovs} is not there, or this user cannot make links in it",
                "that is how memory and rings are made known to the daemon",
                f"see that hf3fs_fuse serves {root}, for this user too (allow_other)",
            )
        )
    elif not rings:
        found.append(
            Finding(
                "3fs_daemon",
                f"{iovs} has no submit-ios",
                "the daemon offers no rings, so no store can be opened",
                f"restart hf3fs_fuse for {root}; its log says why",
            )
        )
    return found


def library(name: str, here: bool) -> list[Finding]:
    """``here``: the loader would find it."""
    if here:
        return []
    return [
        Finding(
            "3fs_library",
            f"ds3fs_library: {name} is not there",
            "it comes with 3FS, as hf3fs_fuse does, and no package has it",
            "install it from the build of 3FS, run ldconfig, or give its path",
        )
    ]


def shared_memory(needed: int, free: int) -> list[Finding]:
    """Compare the buffers of a store with what /dev/shm has."""
    if needed <= free:
        return []
    return [
        Finding(
            "3fs_memory",
            f"the buffers take {needed >> 20} MiB of /dev/shm, which has {free >> 20} MiB free",
            "the daemon pins them, so they are taken at once and whole",
            "lower stream_number, or make /dev/shm larger",
        )
    ]


def find_library(name: str) -> bool:
    """Look where the loader does, without loading it: that has effects of its own."""
    if "/" in name:
        return os.path.exists(name)
    folders = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if any(folder and os.path.exists(os.path.join(folder, name)) for folder in folders):
        return True
    for command in ("ldconfig", "/sbin/ldconfig"):
        try:
            told = subprocess.run([command, "-p"], capture_output=True, text=True, check=False)
        except OSError:
            continue
        return f"{name} " in told.stdout
    return True  # nobody can tell; opening the store will


def warnings(options: Mapping[str, Any], quota: int) -> list[Finding]:
    """Look at everything that an open store of Ds3fs would use."""
    mounts = read_mounts()
    found = library(options["ds3fs_library"], find_library(options["ds3fs_library"]))
    needed = 2 * options["stream_number"] * _RUN_BYTES
    found += shared_memory(needed, read_memory().shm_free)
    for directory in filter(os.path.isdir, options["storage_backends"]):
        root = mount_point(directory, mounts)
        if root is None:
            found.append(no_mount(directory, mount_of(os.path.realpath(directory), mounts)))
            continue
        iovs = root / _IOVS
        # Only a real mount shows how its daemon is woken.
        real = mount_of(os.path.realpath(directory), mounts)
        rings = real is None or real.type != TYPE_OF_3FS or os.path.islink(iovs / "submit-ios")
        found += daemon(root, os.access(iovs, os.W_OK | os.X_OK), rings)
        found += directory_warnings(directory, False, quota, by_daemon=True)
    return found
