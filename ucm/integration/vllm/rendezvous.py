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
from pathlib import Path
from typing import Any

from ucm.errors import ConfigError


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
        self._told: Path | None = None

    def _path(self, rank: int) -> Path:
        return self._folder / f"{self._engine_id}-{rank}.json"

    def tell(self, rank: int, told: dict[str, Any]) -> None:
        """Leave what one worker says of itself."""
        path = self._path(rank)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(told))
        new.replace(path)
        self._told = path

    def ask(self, ranks: int) -> list[dict[str, Any]] | None:
        """Return what all workers say, or None as long as one has not spoken."""
        told = []
        try:
            for rank in range(ranks):
                told.append(json.loads(self._path(rank).read_text()))
        except (OSError, ValueError):
            return None
        return told

    def leave(self) -> None:
        """Take this worker's file away."""
        if self._told is not None:
            with contextlib.suppress(OSError):
                self._told.unlink()
            self._told = None
