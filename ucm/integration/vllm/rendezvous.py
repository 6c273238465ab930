"""How workers tell the scheduler of themselves where the engine does not pass it on.

The two-argument form of the connector is wrapped by a class that does not forward the handshake,
so each worker leaves a file which the scheduler of the same engine, on the same machine, reads.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import stat
import tempfile
import time
import weakref
from pathlib import Path
from typing import Any

from ucm.errors import ConfigError
from ucm.logs import logger

_PID, _SPACE = "pid", "pid_namespace"
_SILENT_S = 30.0  # workers speak at the first forward; from then on the wait is told of


def _pid_namespace() -> str:
    """Name the space in which process ids of this process mean something."""
    try:
        space = os.readlink("/proc/self/ns/pid")
        return f"{space} {Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    except OSError:
        return ""


class Rendezvous:
    """The files of one engine, in a folder that only its user can write."""

    def __init__(self, engine_id: str) -> None:
        folder = Path(tempfile.gettempdir()) / f"ucm-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise ConfigError(
                f"{folder}: it is no folder that only user {os.getuid()} can write; workers and "
                "scheduler meet there, remove it or set TMPDIR"
            )
        self._folder = folder
        self._engine_id = engine_id
        self._told: weakref.finalize[..., Rendezvous] | None = None
        self._asked: float | None = None  # first, and infinity once that was told of
        self._sweep()

    def _path(self, rank: int) -> Path:
        return self._folder / f"{self._engine_id}-{rank}.json"

    def tell(self, rank: int, told: dict[str, Any]) -> None:
        """Leave what one worker says of itself."""
        path = self._path(rank)
        new = path.with_suffix(".new")
        new.write_text(json.dumps({_PID: os.getpid(), _SPACE: _pid_namespace(), **told}))
        new.replace(path)
        self._told = weakref.finalize(self, path.unlink, missing_ok=True)

    def ask(self, ranks: int) -> list[dict[str, Any]] | None:
        """Return what all workers say, or None as long as one has not spoken."""
        told = []
        try:
            for rank in range(ranks):
                told.append(json.loads(self._path(rank).read_text()))
                del told[-1][_PID], told[-1][_SPACE]
        except (OSError, ValueError, LookupError):
            self._missed(self._path(len(told)))
            return None
        return told

    def _missed(self, path: Path) -> None:
        """Say once which file does not come."""
        now = time.monotonic()
        if self._asked is None:
            self._asked = now
        elif now - self._asked >= _SILENT_S:
            self._asked = math.inf
            logger.warning(
                "nothing is found yet: no worker has left %s since the first request, %d s ago; "
                "workers and scheduler need the same TMPDIR on the same machine",
                path, _SILENT_S,
            )  # fmt: skip

    def _sweep(self) -> None:
        """Remove what killed workers have left; of other PID namespaces nothing is known."""
        here = _pid_namespace()
        for path in self._folder.glob("*-*.json"):
            with contextlib.suppress(OSError, ValueError, LookupError):
                left = json.loads(path.read_text())
                if left[_SPACE] == here and not Path(f"/proc/{left[_PID]}").exists():
                    path.unlink()

    def leave(self) -> None:
        """Take this worker's file away."""
        if self._told is not None:
            with contextlib.suppress(OSError):
                self._told()
