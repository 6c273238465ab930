"""Statuses of the ABI and the exceptions made from them."""

from __future__ import annotations

import enum
import os

from ucm import _secrets


class Status(enum.IntEnum):
    """How a call or a shard ended; the numbers of ``ucm_status`` in ``ucm/store_v1.h``."""

    OK = 0
    PENDING = 1
    NOT_FOUND = 2
    INVALID = 3
    UNSUPPORTED = 4
    UNAVAILABLE = 5
    NO_SPACE = 6
    IO = 7
    CORRUPT = 8
    CANCELLED = 9
    INTERNAL = 10
    BUSY = 11
    TIMEOUT = 12
    CLOSED = 13
    INCOMPATIBLE = 14


EXPLANATIONS = {
    Status.NOT_FOUND: "not stored",
    Status.INVALID: "invalid argument",
    Status.UNSUPPORTED: "not supported by this store",
    Status.UNAVAILABLE: "something the store needs is missing",
    Status.NO_SPACE: "no space left",
    Status.IO: "input/output error",
    Status.CORRUPT: "stored bytes fail their check",
    Status.CANCELLED: "cancelled",
    Status.INTERNAL: "a bug in the store",
    Status.BUSY: "the store's queue stayed full",
    Status.TIMEOUT: "the deadline passed before the bytes moved",
    Status.CLOSED: "the store is closed",
    Status.INCOMPATIBLE: "stored with another geometry or encoding",
}


class StoreError(RuntimeError):
    """A store refused or failed. ``status`` says how, ``os_errno`` is 0 or the system's reason."""

    status = Status.INTERNAL

    def __init__(self, message: str, status: Status | None = None, os_errno: int = 0) -> None:
        super().__init__(_secrets.hide(message))
        if status is not None:
            self.status = status
        self.os_errno = os_errno


class NotFoundError(StoreError):
    """A block or shard is not stored."""

    status = Status.NOT_FOUND


class InvalidError(StoreError, ValueError):
    """An argument is wrong."""

    status = Status.INVALID


class ConfigError(InvalidError):
    """A configuration is wrong; the message names the key and what to do."""


class UnsupportedError(StoreError):
    """The store cannot do that, ever."""

    status = Status.UNSUPPORTED


class UnavailableError(StoreError):
    """A library, device, directory, mount or memory is not to be had."""

    status = Status.UNAVAILABLE


class NoSpaceError(StoreError):
    """The disk is full or the quota is reached."""

    status = Status.NO_SPACE


class IoError(StoreError):
    """Input or output failed; ``os_errno`` says why."""

    status = Status.IO


class CorruptError(StoreError):
    """Stored bytes fail their check."""

    status = Status.CORRUPT


class CancelledError(StoreError):
    """The task was cancelled."""

    status = Status.CANCELLED


class BusyError(StoreError):
    """The store's queue stayed full for the whole timeout; nothing was accepted."""

    status = Status.BUSY


class StoreTimeout(StoreError, TimeoutError):
    """Time is over. After ``wait`` or ``drain`` the work goes on and the call may be repeated."""

    status = Status.TIMEOUT


class ClosedError(StoreError):
    """The store is closed."""

    status = Status.CLOSED


class IncompatibleError(StoreError):
    """Stored with another geometry or encoding than this store's."""

    status = Status.INCOMPATIBLE


class PluginError(StoreError):
    """A plugin is unknown or was refused; the message names the file and the reason."""

    status = Status.UNAVAILABLE


_STATUSES: dict[int, Status] = {int(status): status for status in Status}

_CLASSES: dict[Status, type[StoreError]] = {
    Status.NOT_FOUND: NotFoundError,
    Status.INVALID: InvalidError,
    Status.UNSUPPORTED: UnsupportedError,
    Status.UNAVAILABLE: UnavailableError,
    Status.NO_SPACE: NoSpaceError,
    Status.IO: IoError,
    Status.CORRUPT: CorruptError,
    Status.CANCELLED: CancelledError,
    Status.BUSY: BusyError,
    Status.TIMEOUT: StoreTimeout,
    Status.PENDING: StoreTimeout,
    Status.CLOSED: ClosedError,
    Status.INCOMPATIBLE: IncompatibleError,
}


def explain(status: Status, os_errno: int = 0) -> str:
    """Name a status in words, with the system's reason if there is one."""
    text = EXPLANATIONS.get(status, status.name)
    return f"{text} ({os.strerror(os_errno)})" if os_errno else text


def status_of(code: int) -> Status:
    """Take any number from a plugin as a status."""
    return _STATUSES.get(code, Status.INTERNAL)


def error_for(code: int, message: str, os_errno: int = 0) -> StoreError:
    """Make the exception for a status that is not OK."""
    status = status_of(code)
    return _CLASSES.get(status, StoreError)(message, status, os_errno)
