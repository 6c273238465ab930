"""Policies: which block goes when a cache is full."""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class Policy(Protocol):
    """What a policy does; it starts empty. Blocks are numbers that stand for the trace's ids."""

    def __init__(self, capacity: int) -> None:
        """Be told how many blocks may be kept."""

    def hit(self, block: int) -> None:
        """A block that is kept was used."""

    def insert(self, block: int, depth: int) -> int | None:
        """Keep a block; return the one that goes for it (may be itself), or None if there is room.

        ``depth``: how many blocks of its request come before it.
        """


class Fifo:
    """The oldest goes."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.queue: OrderedDict[int, None] = OrderedDict()  # next to go first

    def hit(self, block: int) -> None:
        """Change nothing."""

    def insert(self, block: int, depth: int) -> int | None:
        """Append it."""
        full = len(self.queue) >= self.capacity
        gone = self.queue.popitem(last=False)[0] if full else None
        self.queue[block] = None
        return gone


class Lru(Fifo):
    """What was not used for longest goes."""

    def hit(self, block: int) -> None:
        """Put it at the end."""
        self.queue.move_to_end(block)


class S3Fifo:
    """S3-FIFO (Yang et al., SOSP 2023): small queue 10 %, as many ghosts as main, 2-bit counts."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.small_limit = max(1, capacity // 10)
        self.ghost_limit = capacity - self.small_limit
        self.small: OrderedDict[int, None] = OrderedDict()
        self.main: OrderedDict[int, None] = OrderedDict()
        self.ghosts: OrderedDict[int, None] = OrderedDict()
        self.uses: dict[int, int] = {}

    def hit(self, block: int) -> None:
        """Count up to 3."""
        self.uses[block] = min(3, self.uses[block] + 1)

    def insert(self, block: int, depth: int) -> int | None:
        """Put it into small, or into main if it left small lately."""
        gone = self._evict() if len(self.uses) >= self.capacity else None
        if block in self.ghosts:
            del self.ghosts[block]
            self.main[block] = None
        else:
            self.small[block] = None
        self.uses[block] = 0
        return gone

    def _evict(self) -> int:
        while True:
            if len(self.small) >= self.small_limit or not self.main:
                block = self.small.popitem(last=False)[0]
                if self.uses[block] > 1:
                    self.uses[block] = 0
                    self.main[block] = None
                    continue
                self._remember(block)
            else:
                block = self.main.popitem(last=False)[0]
                if self.uses[block] > 0:
                    self.uses[block] -= 1
                    self.main[block] = None
                    continue
            del self.uses[block]
            return block

    def _remember(self, block: int) -> None:
        self.ghosts[block] = None
        if len(self.ghosts) > self.ghost_limit:
            self.ghosts.popitem(last=False)


class Arc:
    """ARC (Megiddo and Modha, FAST 2003): recent and frequent, balanced by what either missed."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.target = 0.0  # of recent
        self.recent: OrderedDict[int, None] = OrderedDict()
        self.frequent: OrderedDict[int, None] = OrderedDict()
        self.recent_ghosts: OrderedDict[int, None] = OrderedDict()
        self.frequent_ghosts: OrderedDict[int, None] = OrderedDict()

    def hit(self, block: int) -> None:
        """Make it the last of frequent."""
        self.recent.pop(block, None)
        self.frequent[block] = None
        self.frequent.move_to_end(block)

    def insert(self, block: int, depth: int) -> int | None:
        """Put it into recent, or into frequent if it was known lately."""
        left, right = len(self.recent_ghosts), len(self.frequent_ghosts)
        if block in self.recent_ghosts:
            self.target = min(self.capacity, self.target + max(1, right / left))
            gone = self._replace(False)
            del self.recent_ghosts[block]
            self.frequent[block] = None
        elif block in self.frequent_ghosts:
            self.target = max(0, self.target - max(1, left / right))
            gone = self._replace(True)
            del self.frequent_ghosts[block]
            self.frequent[block] = None
        else:
            gone = self._make_room()
            self.recent[block] = None
        return gone

    def _make_room(self) -> int | None:
        if len(self.recent) + len(self.recent_ghosts) >= self.capacity:
            if len(self.recent) >= self.capacity:
                return self.recent.popitem(last=False)[0]
            self.recent_ghosts.popitem(last=False)
            return self._replace(False)
        known = (self.recent, self.frequent, self.recent_ghosts, self.frequent_ghosts)
        if sum(map(len, known)) >= 2 * self.capacity:
            self.frequent_ghosts.popitem(last=False)
        return self._replace(False)

    def _replace(self, frequent_missed: bool) -> int | None:
        size = len(self.recent)
        if size + len(self.frequent) < self.capacity:
            return None
        if size and (size > self.target or (frequent_missed and size == self.target)):
            gone = self.recent.popitem(last=False)[0]
            self.recent_ghosts[gone] = None
        else:
            gone = self.frequent.popitem(last=False)[0]
            self.frequent_ghosts[gone] = None
        return gone


class Cache:
    """What the layer Cache does: S3-FIFO whose small queue grows and shrinks with what it misses.

    A block that comes back soon after it left small says that small is too short; one that comes
    back soon after it left main, that main is. docs/eviction.md has the figures.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.target = max(1, capacity // 2)  # of small
        self.least, self.most = max(1, capacity // 50), max(1, capacity * 6 // 10)
        self.near = max(1, capacity // 4)
        self.small: OrderedDict[int, None] = OrderedDict()
        self.main: OrderedDict[int, None] = OrderedDict()
        self.small_ghosts = Ghosts(2 * capacity)
        self.main_ghosts = Ghosts(self.near)
        self.uses: dict[int, int] = {}

    def hit(self, block: int) -> None:
        """Count up to 3."""
        if self.uses[block] < 3:
            self.uses[block] += 1

    def insert(self, block: int, depth: int) -> int | None:
        """Put it into small, or into main if it is known."""
        age = self.small_ghosts.take(block)
        known = age is not None
        if age is not None:
            if age < self.near:
                self.target = min(self.most, self.target + 2)
        elif self.main_ghosts.take(block) is not None:
            known = True
            self.target = max(self.least, self.target - 4)
        gone = self._evict() if len(self.uses) >= self.capacity else None
        (self.main if known else self.small)[block] = None
        self.uses[block] = 0
        return gone

    def _evict(self) -> int:
        while True:
            from_small = bool(self.small) and (len(self.small) >= self.target or not self.main)
            block = (self.small if from_small else self.main).popitem(last=False)[0]
            if self.uses[block]:
                self.uses[block] -= 1
                self.main[block] = None
                continue
            (self.small_ghosts if from_small else self.main_ghosts).add(block)
            del self.uses[block]
            return block


class Ghosts:
    """Blocks that left a queue, for as long as so many more have left it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.left = 0
        self.numbers: OrderedDict[int, int] = OrderedDict()

    def add(self, block: int) -> None:
        """Remember a block, and forget the one whose time is over."""
        self.left += 1
        self.numbers[block] = self.left
        oldest = next(iter(self.numbers))
        if self.numbers[oldest] <= self.left - self.limit:
            del self.numbers[oldest]

    def take(self, block: int) -> int | None:
        """Forget a block; return how many have left after it, or None if it is not known."""
        number = self.numbers.pop(block, None)
        return None if number is None else self.left - number


NAMED: dict[str, type[Policy]] = {
    "fifo": Fifo,
    "lru": Lru,
    "s3fifo": S3Fifo,
    "arc": Arc,
    "cache": Cache,
}
