"""What lets calls into something that will be closed, and lets its close wait for those inside."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from ucm import errors


class Gate:
    """Open until ``shut``. ``describe`` names what is behind it, for messages."""

    def __init__(self, describe: Callable[[], str]) -> None:
        self._describe = describe
        self._pid = os.getpid()
        self._inside: list[None] = []  # one for each call; to append and to pop are atomic
        self._shut = False

    def __enter__(self) -> None:
        if self._pid != os.getpid():
            raise errors.InvalidError(
                f"{self._describe()} was opened by the parent process {self._pid}; "
                "open it again in this one"
            )
        self._inside.append(None)  # before looking: shut does it the other way round
        if self._shut:
            self._inside.pop()
            raise errors.ClosedError(f"{self._describe()}: the store is closed")

    def __exit__(self, *_: object) -> None:
        self._inside.pop()

    def shut(self) -> None:
        """Let nobody in any more, and return when nobody is inside."""
        self._shut = True
        # Calls inside are short, and a condition variable would cost every one of them.
        while self._inside:
            time.sleep(0.001)
