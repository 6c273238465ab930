"""Messages of native stores, handed to :mod:`logging` by a thread of Python's own.

Native threads write into a bounded ring and never enter Python. ``UC_LOGGER_LEVEL`` (debug, info,
warning, error) sets the level of the logger ``ucm`` and shows its messages on stderr in the form
``[UC][D] message [PID,TID]``.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time

from ucm._abi import ffi, lib

logger = logging.getLogger("ucm")
logger.addHandler(logging.NullHandler())

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_lock = threading.Lock()  # guards the start of the reader
_reader: threading.Thread | None = None


class _SeedFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        thread = getattr(record, "native_thread", None) or threading.get_native_id()
        return f"[UC][{record.levelname[0]}] {record.getMessage()} [{os.getpid()},{thread}]"


def _configure() -> None:
    name = os.environ.get("UC_LOGGER_LEVEL")
    if not name:
        return
    level = {"DEBUG": 10, "INFO": 20, "WARN": 30, "WARNING": 30, "ERROR": 40}.get(name.upper())
    if level is None:
        logger.warning("UC_LOGGER_LEVEL=%s is not one of debug, info, warning, error", name)
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_SeedFormatter())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False


def _emit(line: object) -> None:
    plugin = ffi.string(line.plugin).decode(errors="replace")  # type: ignore[attr-defined]
    message = ffi.string(line.message).decode(errors="replace")  # type: ignore[attr-defined]
    level = _LEVELS[max(0, min(line.level, 3))]  # type: ignore[attr-defined]
    target = logging.getLogger(f"ucm.{plugin}")
    if line.dropped:  # type: ignore[attr-defined]
        target.warning("%d log lines were dropped", line.dropped)  # type: ignore[attr-defined]
    thread = line.thread_id  # type: ignore[attr-defined]
    target.log(level, "%s", message, extra={"native_thread": thread})


def _read() -> None:
    line = ffi.new("ucmh_log_line *")
    while True:
        found = lib.ucmh_log_next(line, 500)
        if found < 0:
            return
        if found == 0:
            sync_level()
            continue
        _emit(line)
        lib.ucmh_log_done()


def sync_level() -> None:
    """Tell native code which level is worth formatting."""
    level = logger.getEffectiveLevel()
    lib.ucmh_log_level(next((i for i, known in enumerate(_LEVELS) if known >= level), 4))


def start() -> None:
    """Start reading, once in a process; called when a pipeline opens."""
    global _reader
    with _lock:
        sync_level()
        if _reader is None:
            _reader = threading.Thread(target=_read, name="ucm-log", daemon=True)
            _reader.start()
            atexit.register(_stop)


def flush(timeout_s: float = 2.0) -> None:
    """Wait until what native code has said so far is with :mod:`logging`."""
    until = time.monotonic() + timeout_s
    while _reader is not None and lib.ucmh_log_pending() and time.monotonic() < until:
        time.sleep(0.002)


def _stop() -> None:
    flush()
    lib.ucmh_log_stop()
    if _reader is not None:
        _reader.join(1.0)


_configure()
