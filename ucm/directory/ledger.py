"""The ledger of a storage directory, ``.ucm/ledger``, as plugins/common/ledger.h writes it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

# Defaults of posix_gc_trigger_threshold_ratio and posix_gc_recycle_percent.
TRIGGER, RECYCLE = 0.9, 0.1


@dataclasses.dataclass
class Account:
    """What one writer has of it."""

    writer: str
    granted: int
    capacity: int
    alive: bool


@dataclasses.dataclass
class Ledger:
    """Bytes in use, and who may write how many."""

    limit: int = 0
    used: int = 0
    granted: int = 0
    recount: bool = False
    problem: str | None = None
    accounts: list[Account] = dataclasses.field(default_factory=list)

    @property
    def setters(self) -> list[Account]:
        """Those who set the limit."""
        return [one for one in self.accounts if self.limit and one.capacity == self.limit]


def read(directory: Path) -> Ledger | None:
    """Read it; None where there is none."""
    return None


def want_recount(directory: Path) -> None:
    """Have the next one who may count do so: something went that the ledger does not know of."""
