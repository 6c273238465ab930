"""Small change of the C ABI: errors, reports, arrays."""

from __future__ import annotations

from typing import Any

from ucm import errors
from ucm._abi import ffi

SUBMITTED = ffi.typeof("ucmh_submitted *")


def raise_for(status: int, error: Any, prefix: str = "") -> None:
    """Raise the exception of a status that is not OK."""
    message = ffi.string(error.message).decode(errors="replace")
    text = message or errors.explain(errors.status_of(status))
    raise errors.error_for(status, prefix + text, error.os_errno)


def new_error() -> Any:
    """Make room for what a call has to say."""
    error = ffi.new("ucm_error *")
    error.struct_size = ffi.sizeof("ucm_error")
    return error
