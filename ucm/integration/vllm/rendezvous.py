"""How workers tell the scheduler of themselves where the engine does not pass it on.

The two-argument form of the connector is wrapped by a class that does not forward the handshake,
so each worker leaves a file which the scheduler of the same engine, on the same machine, reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
import weakref
from pathlib import Path
from typing import Any

from ucm.errors import ConfigError

_PID = "pid"


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
        self._sweep()

    def _path(self, rank: int) -> Path:
        return self._folder / f"{self._engine_id}-{rank}.json"

    def tell(self, rank: int, told: dict[str, Any]) -> None:
        """Leave what one worker says of itself."""
        path = self._path(rank)
        new = path.with_suffix(".new")
        new.write_text(json.dumps({_PID: os.getpid(), **told}))
        new.replace(path)
        self._told = weakref.finalize(self, path.unlink, missing_ok=True)

    def ask(self, ranks: int) -> list[dict[str, Any]] | None:
        """Return what all workers say, or None as long as one has not spoken."""
        told = []
        try:
            for rank in range(ranks):
                told.append(json.loads(self._path(rank).read_text()))
                del told[-1][_PID]
        except (OSError, ValueError, LookupError):
            return None
        return told

    def _sweep(self) -> None:
        """Remove what killed workers have left."""
        for path in self._folder.glob("*-*.json"):
            with contextlib.suppress(OSError, ValueError, LookupError):
                if not Path(f"/proc/{json.loads(path.read_text())[_PID]}").exists():
                    path.unlink()

    def leave(self) -> None:
        """Take this worker's file away."""
        if self._told is not None:
            with contextlib.suppress(OSError):
                self._told()
