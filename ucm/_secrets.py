"""Values of options of the type ``secret``, so that no message of a store's own shows one."""

from __future__ import annotations

import logging

SHOWN = "(secret)"
_SHORTEST = 6  # less is no secret, and stands in messages for other reasons
_MOST = 256

_known: dict[str, None] = {}  # the oldest first


def keep(value: str) -> None:
    """Remember a value that is not to be shown."""
    if len(value) < _SHORTEST:
        return
    _known.pop(value, None)
    _known[value] = None
    if len(_known) > _MOST:
        _known.pop(next(iter(_known)), None)


def hide(text: str) -> str:
    """Return a message without the values that are known, longest first: one may have another."""
    if _known:
        for value in sorted(_known.copy(), key=len, reverse=True):
            text = text.replace(value, SHOWN)
    return text


def hide_in(record: logging.LogRecord) -> bool:
    """Do so in a record, as a filter of a logger; any handler's formatter uses ``exc_text``."""
    if _known:
        record.msg, record.args = hide(record.getMessage()), ()
        if record.exc_info:
            record.exc_text = hide(logging.Formatter().formatException(record.exc_info))
    return True
