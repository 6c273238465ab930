"""The worker's side: moves blocks between the KV cache and the store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ucm.errors import StoreError, StoreTimeout
from ucm.hashing import Namer
from ucm.integration.vllm.layout import KvLayout
from ucm.integration.vllm.metadata import Plan, Save
from ucm.logs import logger
from ucm.store_api import Store
from ucm.task import Task

# Takes this worker's failed blocks and returns those of all workers that compute together.
Agree = Callable[[set[int]], set[int]]


class WorkerSide:
    """Executes plans; every call comes from the worker's one thread."""

    def __init__(self, store: Store, layout: KvLayout, namer: Namer, agree: Agree) -> None:
        self._store: Store | None = store
        self._layout = layout
        self._namer = namer
        self._agree = agree
        self._failed: set[int] = set()  # to be reported after this step
        # Blocks that hold wrong bytes, here or at another worker, until they are computed again.
        self._tainted: set[int] = set()

    def load(self, plan: Plan) -> None:
        """Fill the blocks that the plan loads; returns when they are there or have failed."""
        if not plan.loads:
            return
        hashes = [block_hash for load in plan.loads for block_hash in load.hashes]
        blocks = [block for load in plan.loads for block in load.blocks]
        try:
            failed = self._move(False, hashes, blocks)
        except Exception:
            # The other workers wait in agree(), and the engine can compute what is not there.
            logger.exception("load of %d blocks broke off; they are computed", len(blocks))
            failed = set(blocks)
        failed = self._agree(failed)
        self._failed |= failed
        self._tainted = (self._tainted - set(blocks)) | failed

    def save(self, plan: Plan) -> None:
        """Store the blocks that the plan saves. What cannot be stored is logged and left out."""
        picks = [pick for save in plan.saves for pick in self._clean(save)]
        if not picks:
            return
        hashes, blocks, depths = map(list, zip(*picks, strict=True))
        try:
            failed = self._move(True, hashes, blocks, depths)
        except Exception:
            logger.exception("save of %d blocks broke off; they are not stored", len(blocks))
            return
        if failed:
            logger.warning("%d of %d blocks are not stored", len(failed), len(blocks))

    def _clean(self, save: Save) -> Iterable[tuple[bytes, int, int]]:
        """Yield the picks that do not build on a block which failed to load.

        Each is its hash, the engine's block, and its place in the prefix.
        """
        if self._tainted:
            self._tainted.difference_update(save.table[save.computed_from :])
        good = next((i for i, b in enumerate(save.table) if b in self._tainted), len(save.table))
        for place, block_hash in zip(save.picks, save.hashes, strict=True):
            if place < good:
                yield block_hash, save.table[place], place

    def _move(
        self, dump: bool, hashes: Sequence[bytes], blocks: Sequence[int], depths: Sequence[int] = ()
    ) -> set[int]:
        """Load or dump whole blocks; return those of which a part failed."""
        store, what = self._store, "save" if dump else "load"
        if store is None:
            return set(blocks)
        ids, indexes = self._layout.shards(self._namer(hashes))
        addresses = self._layout.addresses(blocks)
        try:
            if dump:
                hints = np.repeat(np.asarray(depths, "u4"), self._layout.shards_per_block)
                task = store.dump_data(ids, indexes, addresses, depths=hints)
            else:
                task = store.load_data(ids, indexes, addresses)
        except StoreError as error:
            logger.warning("%s of %d blocks was refused: %s", what, len(blocks), error)
            return set(blocks)
        try:
            self._wait(store, task)
        except StoreError as error:
            logger.warning("%s", error)
            bad = [i for i, result in enumerate(task.results) if result.status]
            places = np.unique(np.asarray(bad) // self._layout.shards_per_block)
            return {blocks[place] for place in places}
        return set()

    def _wait(self, store: Store, task: Task) -> None:
        """Wait to the end: until then the store may read or write the engine's memory."""
        while True:
            try:
                return store.wait(task)
            except StoreTimeout:
                if task.done():  # the shards themselves were late
                    raise
                logger.warning("%r goes on; its memory cannot be used before its end", task)

    def take_failed(self) -> set[int]:
        """Return the blocks that failed to load since the last call."""
        failed, self._failed = self._failed, set()
        return failed

    def detach(self) -> Store | None:
        """Hand the store back; nothing is moved any more."""
        store, self._store = self._store, None
        return store
