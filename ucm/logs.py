"""Messages of native stores, handed to :mod:`logging` by a thread of Python's own.

Native threads write into a bounded ring and never enter Python. Their messages go to the logger
``ucm.NAME`` of their layer. By default nothing is shown; the environment changes that:

- ``UC_LOGGER_LEVEL`` (debug, info, warning, error): the level, and messages go to stderr in the
  form ``[UC][D] message [PID,TID]``;
- ``UCM_LOG_PATH``: a folder; every process writes a file of its own there, see ``ucm._logfile``.
  Without a level, from info on;
- ``UCM_LOG_MAX_FILES`` (10) files are kept of a process, ``UCM_LOG_MAX_SIZE`` (5) MB in each.

Of messages that are alike only the first ten in ten seconds are passed on; a line tells how many
were left out.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import threading
import time
from typing import Any

from ucm import _secrets
from ucm._abi import ffi, lib

logger = logging.getLogger("ucm")
logger.addHandler(logging.NullHandler())

_LEVELS = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
_NAMES = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}
_READ_MS = 500
_lock = threading.Lock()  # guards the start of the reader
_reader: threading.Thread | None = None


class Formatter(logging.Formatter):
    """``[UC][D] message [PID,TID]``, with the time before it if asked for, and any traceback."""

    def __init__(self, times: bool = False) -> None:
        super().__init__()
        self._times = times

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        thread = getattr(record, "native_thread", None) or threading.get_native_id()
        line = f"[UC][{record.levelname[0]}] {record.getMessage()} [{os.getpid()},{thread}]"
        if record.exc_info:
            line += "\n" + (record.exc_text or self.formatException(record.exc_info))
        if not self._times:
            return line
        seconds = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        return f"{seconds}.{int(record.msecs):03d} {line}"


class Limiter:
    """Lets through the first few of messages that are alike, and counts the rest."""

    BURST = 10
    WINDOW_S = 10.0
    KINDS = 256

    # Ids and numbers differ in what is otherwise one complaint.
    _VARYING = re.compile(r"\b[0-9a-f]{16,}\b|\d+")

    def __init__(self) -> None:
        # By kind, oldest first: when it began, how many came, the last of them.
        self._kinds: dict[tuple[str, int, str], tuple[float, int, str]] = {}
        self._over: list[tuple[str, int, str]] = []

    def admit(self, plugin: str, level: int, text: str, now: float) -> bool:
        """Tell whether to pass a message on. Below a warning only equal ones are alike."""
        alike = text if level < logging.WARNING else self._VARYING.sub("#", text)
        kind = (plugin, level, alike)
        if kind in self._kinds and now - self._kinds[kind][0] >= self.WINDOW_S:
            self._end(kind)
        elif kind not in self._kinds and len(self._kinds) == self.KINDS:
            self._end(next(iter(self._kinds)))
        start, count, _ = self._kinds.get(kind, (now, 0, ""))
        self._kinds[kind] = (start, count + 1, text)
        return count < self.BURST

    def _end(self, kind: tuple[str, int, str]) -> None:
        _, count, text = self._kinds.pop(kind)
        if count > self.BURST:
            more = f"{count - self.BURST} more like this were left out: {text}"
            self._over.append((kind[0], kind[1], more))

    def left_out(self, now: float) -> list[tuple[str, int, str]]:
        """Return (plugin, level, text) for all that is over by now, once."""
        for kind, (start, _, _) in list(self._kinds.items()):
            if now - start < self.WINDOW_S:
                break
            self._end(kind)
        over, self._over = self._over, []
        return over


def _number(name: str, default: float, whole: bool, problems: list[str]) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = int(text) if whole else float(text)
        if (1 if whole else 0.001) <= value <= 1_000_000:
            return value
    except ValueError:
        pass
    kind = "a whole number from 1" if whole else "a number of MB from 0.001"
    problems.append(f"{name}={text} is not {kind} to 1000000; {default:g} is used")
    return default


def file_limits(problems: list[str]) -> tuple[int, int]:
    """Return how large a file may become, in bytes, and how many a process keeps."""
    files = _number("UCM_LOG_MAX_FILES", 10, True, problems)
    megabytes = _number("UCM_LOG_MAX_SIZE", 5, False, problems)
    return int(megabytes * 2**20), int(files)


def _file_handler(folder: str, problems: list[str]) -> logging.Handler | None:
    max_bytes, max_files = file_limits(problems)
    try:
        os.makedirs(folder, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as error:
        problems.append(
            f"UCM_LOG_PATH={folder} cannot be written: {error.strerror}; no file is logged to"
        )
        return None
    from ucm._logfile import ProcessFile

    return ProcessFile(folder, max_bytes, max_files)


def _configure() -> None:
    problems: list[str] = []
    name, folder = os.environ.get("UC_LOGGER_LEVEL"), os.environ.get("UCM_LOG_PATH")
    level = _NAMES.get(name.strip().upper()) if name else None
    if name and level is None:
        problems.append(
            f"UC_LOGGER_LEVEL={name} is not one of debug, info, warning, error; info is used"
        )
    stderr = logging.StreamHandler()
    stderr.setFormatter(Formatter())
    if name:
        logger.addHandler(stderr)
        logger.propagate = False
    if folder:
        file = _file_handler(folder, problems)
        if file is not None:
            file.setFormatter(Formatter(times=True))
            logger.addHandler(file)
    if name or folder:
        logger.setLevel(level or logging.INFO)
    for problem in problems:
        record = logger.makeRecord("ucm", logging.WARNING, __file__, 0, "%s", (problem,), None)
        logger.handle(record)
        if not name and not logging.getLogger().handlers:
            stderr.handle(record)


def _log(plugin: str, level: int, text: str, thread: int | None) -> None:
    target = logging.getLogger(f"ucm.{plugin}")
    target.log(level, "%s", _secrets.hide(text), extra={"native_thread": thread})


def _emit(line: Any, limiter: Limiter) -> None:
    plugin = ffi.string(line.plugin).decode(errors="replace")
    text = ffi.string(line.message).decode(errors="replace")
    level = _LEVELS[max(0, min(line.level, 3))]
    if line.dropped:
        lost = f"{line.dropped} log lines were dropped: they came faster than they were read"
        _log(plugin, logging.WARNING, lost, None)
    if limiter.admit(plugin, level, text, time.monotonic()):
        _log(plugin, level, text, line.thread_id)


def _read() -> None:
    line = ffi.new("ucmh_log_line *")
    limiter = Limiter()
    look_again = 0.0
    while True:
        found = lib.ucmh_log_next(line, _READ_MS)
        if found > 0:
            _emit(line, limiter)
            lib.ucmh_log_done()
        now = time.monotonic()
        if found > 0 and now < look_again:
            continue
        look_again = now + _READ_MS / 1000
        sync_level()
        for left_out in limiter.left_out(now if found >= 0 else float("inf")):
            _log(*left_out, None)
        if found < 0:
            return


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


def flush(timeout_s: float = 2.0) -> None:
    """Wait until what native code has said so far is with :mod:`logging`."""
    until = time.monotonic() + timeout_s
    while _reader is not None and lib.ucmh_log_pending() and time.monotonic() < until:
        time.sleep(0.002)


# Registered before any store can be opened, so that it runs after the last is closed.
@atexit.register
def _stop() -> None:
    flush()
    lib.ucmh_log_stop()
    if _reader is not None:
        _reader.join(1.0)


def _after_fork() -> None:
    """Let the child start a reader of its own."""
    global _lock, _reader
    _lock, _reader = threading.Lock(), None
    lib.ucmh_log_after_fork()


os.register_at_fork(after_in_child=_after_fork)
_configure()
