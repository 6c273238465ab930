"""A running or finished load or dump."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ucm import errors

if TYPE_CHECKING:
    from ucm._ends import Ends

_numbers = itertools.count(1)


def new_token() -> int:
    """Return a number that no other transfer of the process has."""
    return next(_numbers)


class Result(NamedTuple):
    """How one shard ended. ``bytes`` is its length after a load, else 0.

    ``declined``: a dump of a block that the store chose not to keep.
    """

    status: errors.Status
    bytes: int
    os_errno: int
    published: bool
    declined: bool = False


class Outcome(Protocol):
    """The transfer behind a task, native or Python."""

    stack: Any  # which runs it
    number: int
    token: int  # no other transfer of the process has it

    def wait(self, timeout_ms: int) -> int:
        """Return PENDING, OK, or the first bad status; never blocks when 0."""

    def result(self, i: int) -> Result:
        """Return the end of shard i; only once finished."""

    def failures(self, limit: int) -> tuple[int, list[int]]:
        """Return how many failed, and the first ones."""

    def watch(self, ends: Ends) -> bool:
        """Let the end be told to ``ends`` under the token; False: it has ended already."""


class Results(Sequence[Result]):
    """Results by shard, in the order of the call; complete once the task has finished."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def __len__(self) -> int:
        return self._task.n

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        if not self._task.done():
            return Result(errors.Status.PENDING, 0, 0, False)
        return self._task.outcome.result(i % len(self))

    def __iter__(self) -> Iterator[Result]:
        return (self[i] for i in range(len(self)))


class Task:
    """An asynchronous load or dump of ``n`` shards; ``results[i]`` tells how each one ended.

    Memory given to the call stays referenced, and must not be freed or reused by other means,
    until ``done()``. ``await task`` in a coroutine returns the task, or raises like ``wait``; it
    has no time limit of its own, ``asyncio.wait_for`` gives it one. Who stops awaiting leaves the
    task running, and may await it again.
    """

    def __init__(self, operation: str, n: int, outcome: Outcome, shards: Any, keep: Any) -> None:
        self.operation = operation
        self.n = n
        self.outcome = outcome
        self.results = Results(self)
        self._shards = shards
        self._keep = keep
        self._status = errors.Status.PENDING

    def __repr__(self) -> str:
        state = self._status.name if self.done() else "running"
        return f"<Task {self.outcome.number} {self.operation} of {self.n} shards: {state}>"

    def __await__(self) -> Generator[Any, None, Task]:
        if not self.done():
            from ucm import _ends

            yield from _ends.ends.wait_for(self.outcome)
            self.poll(0)
        error = self.error()
        if error is not None:
            raise error
        return self

    @property
    def task_id(self) -> int:
        """The store's number for this task, as in its log lines; 0 if it gives none."""
        return self.outcome.number

    def done(self) -> bool:
        """Tell whether every shard has ended, well or badly."""
        return self.poll(0) != errors.Status.PENDING

    def poll(self, timeout_ms: int) -> errors.Status:
        """Wait up to ``timeout_ms``; return PENDING, OK or the first bad status."""
        if self._status == errors.Status.PENDING:
            self._status = errors.status_of(self.outcome.wait(timeout_ms))
            if self._status != errors.Status.PENDING:
                self._keep = None
        return self._status

    def error(self) -> errors.StoreError | None:
        """Return the exception that says which shards failed and why, or None."""
        if self._status in (errors.Status.OK, errors.Status.PENDING):
            return None
        count, first = self.outcome.failures(3)
        parts = []
        for i in first:
            result = self.outcome.result(i)
            block, shard = self._shards(i)
            why = errors.explain(result.status, result.os_errno)
            parts.append(f"shard {shard} of block {block.hex()}: {result.status.name}, {why}")
        more = ", ..." if count > len(first) else ""
        message = f"{self.operation}: {count} of {self.n} shards failed: {'; '.join(parts)}{more}"
        return errors.error_for(self._status, message, self.outcome.result(first[0]).os_errno)
