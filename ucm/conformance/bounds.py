"""No test takes for ever, whatever a store does."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ucm import Store, StoreError, StoreTimeout
from ucm.conformance import kit
from ucm.conformance.promises import Promise, promise_of

# Kept for ever: what still runs may use them.
_abandoned: list[Any] = []
_HUNG = ("ucm_hung", True)
_HANGS = pytest.StashKey[int]()  # of a session
_MOST_HANGS = 5  # each takes its whole time, and the next ones tell nothing new
# Where other bytes than were dumped are not what the test is about.
_NOT_OF_BYTES = (
    Promise.WHOLE,
    Promise.LOOKUP,
    Promise.METRICS,
    Promise.WAIT,
    Promise.ROOM,
    Promise.CANCEL,
    Promise.REPORTS,
)


class Hung(AssertionError):
    """A test did not end in time."""


def bounded(item: pytest.Function) -> Callable[..., None]:
    """Return the test, run in a thread of its own, which is left alone when time is over."""
    test: Callable[..., None] = item.obj

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        raised: list[BaseException] = []

        def work() -> None:
            try:
                test(*args, **kwargs)
            except BaseException as error:  # handed on
                raised.append(error)

        thread = threading.Thread(target=work, name=item.name, daemon=True)
        thread.start()
        limit_s = 5 * kit.WAIT_MS / 1000
        thread.join(limit_s)
        if thread.is_alive():
            where = _where(thread)
            _abandon(item, thread)
            raise Hung(f"it has not ended after {limit_s:g} s; it is in {where}")
        if raised:
            if isinstance(raised[0], StoreTimeout):
                stands_for_ends(item)
            if isinstance(raised[0], kit.OtherBytes) and promise_of(test) in _NOT_OF_BYTES:
                item.user_properties.append(("ucm_promise", Promise.BYTES.name))
            raise raised[0]

    return run


def _where(thread: threading.Thread) -> str:
    """Name the innermost call of this suite that a thread is in."""
    frame = sys._current_frames().get(thread.ident or 0)
    while frame and f"{os.sep}conformance{os.sep}" not in frame.f_code.co_filename:
        frame = frame.f_back
    if frame is None:
        return "no call of the suite"
    return f"{frame.f_code.co_name}, {os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


def _abandon(item: pytest.Function, thread: threading.Thread) -> None:
    stands_for_ends(item)
    _abandoned.append(thread)
    # A loop in Python would take the time of the tests that follow.
    stop = ctypes.py_object(SystemExit)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), stop)


def stands_for_ends(item: pytest.Item) -> None:
    """Have the score card say that a task or call did not end, whatever else the test is about."""
    item.user_properties += [_HUNG, ("ucm_promise", Promise.ENDS.name)]
    hangs = item.session.stash.get(_HANGS, 0) + 1
    item.session.stash[_HANGS] = hangs
    if hangs == _MOST_HANGS:
        item.session.shouldstop = f"{hangs} tests have hung; the rest is left out"


def close_all(item: pytest.Item, stores: Sequence[Store]) -> None:
    """Close the stores of a test, last first; what does not close in time is abandoned."""
    if _HUNG in item.user_properties:
        _abandoned.extend(stores)
        return
    failed: list[BaseException] = []
    for store in reversed(stores):
        thread = threading.Thread(target=_close, args=(store, failed), daemon=True)
        thread.start()
        thread.join(2 * kit.WAIT_MS / 1000)
        if thread.is_alive() or failed:
            _abandoned.append(store)
        if thread.is_alive():
            failed.append(Hung("close has not returned"))
    if failed:
        item.user_properties.append(("ucm_promise", Promise.CLOSES.name))
        raise failed[0]


def _close(store: Store, failed: list[BaseException]) -> None:
    try:
        store.close(kit.WAIT_MS)
    except StoreError as error:
        failed.append(error)


def leave_if_abandoned(code: int) -> None:
    """End the process here and now if something was abandoned: it would keep it for ever."""
    if _abandoned:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
