"""Traces of requests: one JSON object a line, with the ids of the blocks of its prompt in order."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from ucm.errors import InvalidError

_NUMBERS = ("timestamp", "input_length", "output_length")
_RECORD = "a record has timestamp, input_length, output_length and hash_ids"


@dataclasses.dataclass(frozen=True)
class Trace:
    """Requests in the order of their timestamps; blocks are numbered as they appear."""

    path: str
    requests: Sequence[Sequence[int]]
    distinct: int

    @cached_property
    def blocks(self) -> int:
        """How many blocks all requests have."""
        return sum(map(len, self.requests))

    @cached_property
    def chained(self) -> bool:
        """Whether every block always follows the same one, as an id that covers its prefix does."""
        before: dict[int, int] = {}
        for request in self.requests:
            last = -1
            for block in request:
                if before.setdefault(block, last) != last:
                    return False
                last = block
        return True


def read(*paths: str) -> Trace:
    """Read a trace in one file or several, also such as gzip has packed.

    Requests are put in the order of their timestamps, if all have one. InvalidError names the line
    that is wrong.
    """
    numbers: dict[int | str, int] = {}
    found: list[tuple[float | None, list[int]]] = []
    for path in paths:
        for timestamp, ids in _records(path):
            found.append((timestamp, [numbers.setdefault(one, len(numbers)) for one in ids]))
    shown = ", ".join(paths)
    if not numbers:
        what = "no block in any request" if found else "no requests"
        raise InvalidError(f"{shown}: {what}; give a file with one JSON object a line, {_RECORD}")
    if all(timestamp is not None for timestamp, _ in found):
        found.sort(key=lambda record: record[0] or 0)
    return Trace(shown, [request for _, request in found], len(numbers))


def _records(path: str) -> Iterator[tuple[float | None, list[int | str]]]:
    """Yield each request's timestamp and ids."""
    try:
        with open(path, "rb") as file:  # once: what a pipe has given is gone
            packed = file.peek(2).startswith(b"\x1f\x8b")
            plain: Any = gzip.GzipFile(fileobj=file) if packed else file
            for number, line in enumerate(io.TextIOWrapper(plain, "utf-8-sig"), 1):
                if line.strip():
                    yield _record(line, f"{path}:{number}")
    except UnicodeDecodeError as error:
        raise InvalidError(f"{path}: not UTF-8 text ({error.reason}); {_RECORD}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InvalidError(f"{path}: {error}; pack it again, or unpack it first") from None


def _record(line: str, where: str) -> tuple[float | None, list[int | str]]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise InvalidError(f"{where}: not JSON ({reason}); write one object a line") from None
    if not isinstance(record, dict):
        raise InvalidError(f"{where}: {_shown(record)} is no object; {_RECORD}")
    for name in _NUMBERS:
        _check_number(name, record.get(name, 0), where)
    if "hash_ids" not in record:
        raise InvalidError(f"{where}: hash_ids is missing; {_RECORD}")
    ids = record["hash_ids"]
    if not isinstance(ids, list):
        raise InvalidError(f"{where}: hash_ids: {_shown(ids)} is no list of block ids")
    if not set(map(type, ids)) <= {int}:
        ids = [_id(one, f"{where}: hash_ids[{i}]") for i, one in enumerate(ids)]
    return record.get("timestamp"), ids


def _check_number(name: str, value: Any, where: str) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or (isinstance(value, float) and not math.isfinite(value)):
        raise InvalidError(f"{where}: {name}: {_shown(value)} is no number")
    if value < 0:
        raise InvalidError(f"{where}: {name}: {_shown(value)} is negative; write 0 or more")


def _id(value: Any, where: str) -> int | str:
    """Return an id as what equals it alone: hex digits are the same in both cases."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value:
        digits = value.removeprefix("0x").lower()
        return digits if len(digits) in (32, 64) and _is_hex(digits) else value
    raise InvalidError(f"{where}: {_shown(value)} is no id; write an integer, or 32 bytes as hex")


def _is_hex(text: str) -> bool:
    return not text.strip("0123456789abcdef")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
