"""What the scheduler tells the workers about one step."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(slots=True)
class Load:
    """Blocks of one request to fill."""

    request_id: str
    hashes: list[bytes]
    blocks: list[int]  # where each goes: the engine's block numbers


@dataclasses.dataclass(slots=True)
class Save:
    """Blocks of one request that are full after the step's forward.

    The whole table is told, because what was computed after a block that failed to load is wrong
    as well, and only the worker knows of that in time.
    """

    request_id: str
    number: int  # by which the workers tell that it has ended; 0 if there are no picks
    table: list[int]  # the engine's block numbers of the request's full blocks, from its start
    computed_from: int  # from here on in the table this step computes, or steps after it
    picks: list[int]  # places in the table that are to be saved, in their order
    hashes: list[bytes]  # of the picks


@dataclasses.dataclass(slots=True)
class Plan:
    """The loads and saves of one step."""

    loads: list[Load] = dataclasses.field(default_factory=list)  # for the step's own forward
    # For requests that wait outside the batch until they are told to have received.
    background: list[Load] = dataclasses.field(default_factory=list)
    saves: list[Save] = dataclasses.field(default_factory=list)
    # Their blocks may be given to others in this very step.
    preempted: list[str] = dataclasses.field(default_factory=list)
    # Finished requests that hold their blocks until the workers say that they are saved.
    leaving: list[str] = dataclasses.field(default_factory=list)
