"""Files that processes write in a folder they share: their logs, and traces of requests."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import socket
import sys
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path


class ProcessFile(RotatingFileHandler):
    """Writes ``ucm-HOST-PID.log``, made with the first message and turned over when it is full.

    Other kinds of files have other beginnings and endings than these. At most ``max_files`` of this
    process are kept, and as many of processes that have ended. A lock on its file tells that a
    process is alive.
    """

    beginning, ending = "ucm", "log"

    def __init__(self, folder: str, max_bytes: int, max_files: int) -> None:
        self._folder = Path(folder).absolute()
        self._max_files = max_files
        self._complained = False
        older = max_files - 1
        super().__init__(self._path(), "a", max_bytes, older, encoding="utf-8", delay=True)
        os.register_at_fork(after_in_child=self._after_fork)

    def _path(self) -> str:
        name = f"{self.beginning}-{socket.gethostname()}-{os.getpid()}.{self.ending}"
        return str(self._folder / name)

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        self._sweep()
        return stream

    def _sweep(self) -> None:
        """Remove the oldest files of processes that have ended."""
        found = []
        ours = re.compile(rf"({self.beginning}-.+-\d+\.{self.ending})(\.\d+)?")
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                match = ours.fullmatch(path.name)
                if match and not _alive(self._folder / match[1]):
                    found.append((path.stat().st_mtime, path))
        for _, path in sorted(found)[: -self._max_files]:
            with contextlib.suppress(OSError):
                path.unlink()

    def doRollover(self) -> None:
        """Begin a new file; the only one is emptied."""
        if self.backupCount:
            super().doRollover()
        elif self.stream:
            self.stream.truncate(0)

    def handleError(self, record: logging.LogRecord) -> None:
        """Say once that the file cannot be written."""
        if not self._complained and sys.stderr:
            self._complained = True
            reason = sys.exc_info()[1]
            print(f"UCM_LOG_PATH: {self.baseFilename} is not written: {reason}", file=sys.stderr)

    def _after_fork(self) -> None:
        if self.stream:
            self.stream.close()
            self.stream = None
        self.baseFilename = self._path()


def _alive(path: Path) -> bool:
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
