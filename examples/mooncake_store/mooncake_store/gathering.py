"""Blocks that this process is writing: one call at a time writes to a block."""

import contextlib
import secrets
import threading
from typing import NamedTuple

import ucm
from mooncake_store.record import TOKEN_BYTES

_UNFINISHED = 4096  # blocks; shards of those that are forgotten go when the pool evicts them


class Unfinished(NamedTuple):
    """A block of which some shards are stored: index to (length, checksum)."""

    token: bytes
    shards: dict[int, tuple[int, int]]


class Gathering:
    """Unfinished blocks, and which blocks a call has to itself."""

    def __init__(self):
        self._changed = threading.Condition()  # guards both
        self._claimed = set()
        self._blocks = {}

    @contextlib.contextmanager
    def claim(self, block_ids, timeout):
        """Wait until no other call has any of these blocks, and keep others from them."""
        ids = set(block_ids)
        with self._changed:
            if not self._changed.wait_for(lambda: not ids & self._claimed, timeout):
                raise ucm.BusyError("another call that writes the same block waits for Mooncake")
            self._claimed |= ids
        try:
            yield
        finally:
            with self._changed:
                self._claimed -= ids
                self._changed.notify_all()

    def of(self, block_id):
        """Return the block, begun if it is not; the caller has claimed it."""
        with self._changed:
            if block_id not in self._blocks:
                if len(self._blocks) >= _UNFINISHED:
                    oldest = next((b for b in self._blocks if b not in self._claimed), None)
                    self._blocks.pop(oldest, None)
                self._blocks[block_id] = Unfinished(secrets.token_bytes(TOKEN_BYTES), {})
            return self._blocks[block_id]

    def pop(self, block_id):
        """Forget the block and return it, or None; the caller has claimed it."""
        with self._changed:
            return self._blocks.pop(block_id, None)

    def count(self):
        """Return how many shards wait for the rest of their blocks."""
        with self._changed:
            return sum(len(block.shards) for block in self._blocks.values())
