"""Ends of tasks for event loops, told through one eventfd of the process.

A native thread that ends a task writes the descriptor and goes on; it never enters Python. Every
loop in which somebody awaits watches the descriptor, and whichever comes first passes on all that
was told.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING

from ucm import errors
from ucm._abi import ffi, lib

if TYPE_CHECKING:
    from ucm.task import Outcome

    Future = asyncio.Future[None]
    Loop = asyncio.AbstractEventLoop


def _wake(future: Future) -> None:
    if not future.done():
        future.set_result(None)


class Ends:
    """Who awaits which task. Thread-safe."""

    def __init__(self) -> None:
        self.events = lib.ucmh_events_new()
        if self.events == ffi.NULL:
            raise errors.UnavailableError(f"await: no eventfd: {os.strerror(ffi.errno)}")
        self._fd = lib.ucmh_events_fd(self.events)
        self._lock = threading.Lock()  # guards all below
        self._waiting: dict[int, list[Future]] = {}  # by token
        self._loops: dict[Loop, int] = {}  # how many await in each

    def wait_for(self, outcome: Outcome) -> Generator[object, None, None]:
        """Suspend the running coroutine until the transfer has ended."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        self._enter(loop, outcome.token, future)
        try:
            if outcome.watch(self):
                yield from future
        finally:
            self._leave(loop, outcome.token, future)

    def _enter(self, loop: Loop, token: int, future: Future) -> None:
        with self._lock:
            self._waiting.setdefault(token, []).append(future)
            count = self._loops[loop] = self._loops.get(loop, 0) + 1
        if count == 1:
            loop.add_reader(self._fd, self._take, loop)

    def _leave(self, loop: Loop, token: int, future: Future) -> None:
        with self._lock:
            futures = self._waiting.get(token, [])
            if future in futures:
                futures.remove(future)
                if not futures:
                    del self._waiting[token]
            self._loops[loop] -= 1
            last = self._loops[loop] == 0
            if last:
                del self._loops[loop]
        if last and not loop.is_closed():
            loop.remove_reader(self._fd)

    def _take(self, loop: Loop) -> None:
        tokens = []
        event = lib.ucmh_events_take(self.events)
        while event != ffi.NULL:
            tokens.append(event.token)
            event, old = event.next, event
            lib.ucmh_event_free(old)
        self.told(tokens, loop)

    def told(self, tokens: Iterable[int], running: Loop | None = None) -> None:
        """Wake who awaits these; ``running`` is the loop of this thread, if it runs one."""
        with self._lock:
            futures = [f for token in tokens for f in self._waiting.pop(token, ())]
        for future in futures:
            loop = future.get_loop()
            if loop is running:
                _wake(future)
            else:
                with contextlib.suppress(RuntimeError):  # closed meanwhile
                    loop.call_soon_threadsafe(_wake, future)


ends = Ends()


def _after_fork() -> None:
    """Give the child a descriptor of its own: what its parent's threads tell is not for it."""
    global ends
    ends = Ends()


os.register_at_fork(after_in_child=_after_fork)
