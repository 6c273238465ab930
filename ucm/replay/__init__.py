"""Replay a trace of requests against caches of blocks: what each policy and capacity would hit.

The blocks of a request are looked at in order. One that the cache holds is a hit; one that it does
not hold is inserted, as an engine dumps what it had to compute. Of the hits of a request, those
before its first miss are the prefix: only these an engine can load.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ucm.errors import InvalidError
from ucm.replay.optimum import optimum
from ucm.replay.policies import NAMED, Policy
from ucm.replay.policy_file import Maker, find
from ucm.replay.trace import Trace, read

__all__ = ["NAMED", "Maker", "Policy", "Score", "Trace", "find", "optimum", "read", "replay"]


@dataclasses.dataclass(frozen=True)
class Score:
    """Hits among the blocks looked at; ``prefix_hits`` come before their request's first miss."""

    blocks: int
    hits: int
    prefix_hits: int

    @property
    def hit_ratio(self) -> float:
        """Hits a block."""
        return self.hits / self.blocks if self.blocks else 0.0

    @property
    def prefix_hit_ratio(self) -> float:
        """Hits a block that an engine can use."""
        return self.prefix_hits / self.blocks if self.blocks else 0.0


def replay(requests: Sequence[Sequence[int]], maker: Maker, capacity: int) -> Score:
    """Replay requests against an empty cache of so many blocks.

    Raises InvalidError if the policy keeps more than that, or evicts what is not there.
    """
    number = 0
    try:
        policy = maker.make(capacity)
        hit, insert = policy.hit, policy.insert
        present: set[int] = set()
        blocks = hits = prefix_hits = 0
        for request in requests:
            number += 1
            leading = True
            blocks += len(request)
            for depth, block in enumerate(request):
                if block in present:
                    hits += 1
                    prefix_hits += leading
                    hit(block)
                    continue
                leading = False
                gone = insert(block, depth)
                if gone == block:
                    continue
                present.add(block)
                if gone is not None:
                    if gone not in present:
                        raise _Broken(f"insert({block}) evicts {gone!r}, which is not in the cache")
                    present.remove(gone)
                elif len(present) > capacity:
                    raise _Broken(
                        f"insert({block}) evicts nothing, and the cache holds {len(present)} "
                        "blocks; return the one that goes for it"
                    )
    except _Broken as error:
        raise InvalidError(f"{_where(maker, capacity, number)}: {error}") from None
    except (Exception, SystemExit) as error:
        if maker.shipped:
            raise
        said = f"{type(error).__name__}: {error}"
        raise InvalidError(f"{_where(maker, capacity, number)}: {said}") from error
    return Score(blocks, hits, prefix_hits)


def _where(maker: Maker, capacity: int, number: int) -> str:
    return f"policy {maker.name}, capacity {capacity}, request {number}"


class _Broken(Exception):
    """A policy does what no cache can."""
