"""The offline optimum: what a cache that knows the future would hit."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

_NEVER = 1 << 62


def optimum(requests: Sequence[Sequence[int]], capacity: int) -> tuple[int, int]:
    """Return the hits, and those in prefixes, of Belady's rule: what is used last goes first.

    It need not keep what it is given. No policy has more hits. Where ids stand for all that
    comes before them, a block is never needed before the one in front of it, so this keeps
    whole prefixes: then no policy has more prefix hits either.
    """
    following = _next_uses(requests)
    position = hits = prefix_hits = 0
    present: dict[int, int] = {}  # when each is used next
    furthest: list[tuple[int, int]] = []  # with what has been used meanwhile, or has gone
    for request in requests:
        leading = True
        for block in request:
            used = following[position]
            position += 1
            if block in present:
                hits += 1
                prefix_hits += leading
            else:
                leading = False
            if used == _NEVER:
                present.pop(block, None)
                continue
            present[block] = used
            heapq.heappush(furthest, (-used, block))
            while len(present) > capacity:
                last, candidate = heapq.heappop(furthest)
                if present.get(candidate) == -last:
                    del present[candidate]
    return hits, prefix_hits


def _next_uses(requests: Sequence[Sequence[int]]) -> list[int]:
    """Return for every use of a block the position of its next one."""
    blocks = [block for request in requests for block in request]
    following = [_NEVER] * len(blocks)
    seen: dict[int, int] = {}
    for position in range(len(blocks) - 1, -1, -1):
        following[position] = seen.get(blocks[position], _NEVER)
        seen[blocks[position]] = position
    return following
