"""What lets calls into something that will be closed, and lets its close wait for those inside."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

from ucm import errors


class Gate:
    """Open until ``shut``. ``describe`` names what is behind it, for messages."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards _inside and _shut
        self._inside = 0
        self._shut = False

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            raise errors.InvalidError(
                f"{self._describe()} was opened by the parent process {self._pid}; "
                "open it again in this one"
            )
        with self._lock:
            if self._shut:
                raise errors.ClosedError(f"{self._describe()}: the store is closed")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1

    def shut(self) -> None:
        """Let nobody in any more, and return when nobody is inside."""
        with self._lock:
            self._shut = True
        # Calls inside are short, and a condition variable would cost every one of them.
        while self._inside:
            time.sleep(0.001)
