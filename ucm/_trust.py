"""Which files may be loaded into this process: those that only its user and root can change."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from ucm import errors
from ucm.logs import logger


def check(path: str) -> None:
    """Refuse a library that other users of the machine can change, naming what is to be done."""
    for step in _steps(path):
        info = os.lstat(step)
        if info.st_uid not in (0, os.geteuid()):
            raise errors.PluginError(
                f"{path}: refused: {step} belongs to another user (uid {info.st_uid}), who could "
                f"change what runs here; chown it to root or to uid {os.geteuid()}"
            )
        if stat.S_ISLNK(info.st_mode):  # its mode means nothing, its owner and its folder do
            continue
        # In a folder with the sticky bit others add files, and neither rename nor remove ours.
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_mode & stat.S_IWOTH and not sticky:
            raise errors.PluginError(
                f"{path}: refused: everybody can write {step}; chmod o-w {step}"
            )
        if info.st_mode & stat.S_IWGRP and not sticky:
            logger.warning("%s: its group can write %s; chmod g-w %s", path, step, step)


def _steps(path: str) -> Iterator[str]:
    """Go through all that a path leads through, links and their targets too, down to the file."""
    at = os.path.sep
    left = path.split(os.path.sep)[::-1]
    yield at
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            at = os.path.dirname(at)
            continue
        at = os.path.join(at, part)
        yield at
        if os.path.islink(at):
            target = os.readlink(at)
            left += target.split(os.path.sep)[::-1]
            at = os.path.sep if os.path.isabs(target) else os.path.dirname(at)
