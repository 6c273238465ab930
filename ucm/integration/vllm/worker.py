"""The worker's side: moves blocks between the KV cache and the store."""

from __future__ import annotations

import bisect
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ucm.errors import Status, StoreError, StoreTimeout
from ucm.hashing import Namers
from ucm.integration.vllm.collector import Collector
from ucm.integration.vllm.layout import KvLayout, Rows
from ucm.integration.vllm.metadata import Load, Plan, Save
from ucm.integration.vllm.metrics import failure
from ucm.logs import logger
from ucm.store_api import Store
from ucm.task import Task

# Layers are handed over in groups: a call costs 0.3 ms of the engine's thread, as what it needs is
# in no cache of the processor behind a layer, and each group opens the blocks' files again. Groups
# to load double in size: the first one, which nothing hides, is small.
_LOAD_GROUPS = 2  # and those before the largest
_SAVE_GROUPS = 3  # or fewer: where there is less than this for each
_SAVE_GROUP_BYTES = 16 << 20
_NEVER = 1 << 62  # so many layers no model has
_BACKGROUND = -1  # the priority of what this thread does not wait for

# Takes this worker's failed blocks and returns those of all workers that compute together.
Agree = Callable[[set[int]], set[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Moving:
    """How blocks move: layer by layer within the forward, and who waits for what is saved."""

    layerwise: bool = False
    async_save: bool = False  # a step does not wait; requests hold their blocks until saved
    tells: bool = False  # which blocks have been dumped is asked for
    keeps: bool = True  # False: another worker has the same bytes and saves them


_PLAIN = Moving()


class Picks(NamedTuple):
    """Blocks to move, in columns; ``requests`` and ``depths`` belong to a save."""

    hashes: list[bytes]
    blocks: list[int]
    depths: list[int]
    requests: list[str]


class Transfer:
    """Tasks over whole blocks, each over all layers or over one of them."""

    def __init__(self, what: str, picks: Picks, ids: list[bytes]) -> None:
        self.what = what
        self.ids = ids  # of the picks' parts
        self.numbers: list[int] = []  # of the saves in a plan
        self._tasks: list[tuple[Task, int]] = []  # and its rows for each block
        self._began = time.monotonic()
        self._ended: float | None = None  # when all tasks were first seen to have ended
        self.picks = picks
        self.failed: dict[int, int] = {}  # the engine's blocks, and the status of each

    def start(self, move: Callable[..., Task], rows: Rows, **hints: Any) -> bool:
        """Begin a task; False: it was refused, and every block has failed."""
        try:
            task = move(*rows, **hints)
        except StoreError as error:
            count = len(self.picks.blocks)
            logger.warning("%s of %d blocks was refused: %s", self.what, count, error)
            self.fail(error.status)
            return False
        except Exception:
            logger.exception("%s of %d blocks broke off", self.what, len(self.picks.blocks))
            self.fail(Status.INTERNAL)
            return False
        self._tasks.append((task, len(rows[1]) // len(self.picks.blocks)))
        self._ended = None
        return True

    def fail(self, status: int) -> None:
        """Count every block as failed."""
        self.failed.update(dict.fromkeys(self.picks.blocks, status))

    @property
    def seconds(self) -> float:
        """How long it has been running, or was."""
        return (self._ended or time.monotonic()) - self._began

    def done(self) -> bool:
        """Tell whether every task has ended."""
        if self._ended is None and all(task.done() for task, _ in self._tasks):
            self._ended = time.monotonic()
        return self._ended is not None

    def finish(self, store: Store, first: int | None = None) -> None:
        """Wait for the tasks, or the ``first`` ones, and note what failed.

        To their very end: until then the store may read or write the engine's memory.
        """
        ending = self._tasks if first is None else self._tasks[:first]
        self._tasks = self._tasks[len(ending) :]
        for task, rows in ending:
            try:
                self._wait(store, task)
            except StoreError as error:
                logger.warning("%s", error)
                for i, result in enumerate(task.results):
                    if result.status:
                        self.failed[self.picks.blocks[i // rows]] = result.status
        self.done()

    @staticmethod
    def _wait(store: Store, task: Task) -> None:
        while True:
            try:
                return store.wait(task)
            except StoreTimeout:
                if task.done():  # the shards themselves were late
                    raise
                logger.warning("%r goes on; its memory cannot be used before its end", task)


class _Group(NamedTuple):
    """Layers that are saved by one task."""

    names: set[str]
    rows: Rows
    depths: Any  # of the rows


def _growing(layers: int) -> list[range]:
    """Cut layers into groups, each twice as large as the one before, up to a limit."""
    groups, first, size = [], 0, 1
    while first < layers:
        groups.append(range(first, min(first + size, layers)))
        first, size = first + size, min(2 * size, max(1, layers // _LOAD_GROUPS))
    return groups


class WorkerSide:
    """Executes plans; every call comes from the worker's one thread."""

    def __init__(
        self,
        store: Store,
        layout: KvLayout,
        namer: Namers,
        agree: Agree,
        moving: Moving = _PLAIN,
        metrics: Collector | None = None,
    ) -> None:
        self._store: Store | None = store
        self._layout = layout
        self._namer = namer
        self._agree = agree
        self._moving = moving
        self._metrics = metrics or Collector(None)
        self._failed: set[int] = set()  # to be reported after this step
        # Blocks that hold wrong bytes, here or at another worker, until they are computed again.
        self._tainted: set[int] = set()
        self._load_groups = _growing(layout.shards_per_block)
        self._loading: Transfer | None = None  # this step's, layer by layer
        self._waited = 0  # so many groups of it are there
        # Layers at which no forward has stopped: not every attention in vLLM does.
        self._unmet = set(layout.layers)
        self._whole = 0  # steps that loaded all layers before the forward because of that
        self._dumping: Transfer | None = None  # this step's, layer by layer
        self._groups: list[_Group] = []  # its layers that are yet to be dumped
        self._computed: list[str] = []  # this step's layers
        self._enough = 1  # so many of them that there may be something to dump
        self._saving: list[Transfer] = []  # of earlier steps
        self._receiving: dict[str, Transfer] = {}  # of requests that wait outside the batch
        self._leaving: set[str] = set()  # finished requests whose blocks are held for saves
        self._stored: list[bytes] = []  # hashes to be told of
        self._ended: list[int] = []  # numbers of saves to be told of

    # The order of a step: begin, load, per layer: wait_layer, computed and save_layers if that says
    # so, then save, finished. Without loads for its forward, load comes behind the layers.

    def begin(self, plan: Plan) -> None:
        """Before anything of the step: let go of the blocks of preempted requests."""
        if not plan.preempted or self._store is None:
            return
        gone = set(plan.preempted)
        for saving in self._saving:
            if not gone.isdisjoint(saving.picks.requests):
                saving.finish(self._store)
        self._reap()

    def load(self, plan: Plan) -> None:
        """Begin this step's loads; those for its forward are waited for unless layerwise."""
        for load in plan.background:
            self._receiving[load.request_id] = self._start_load([load])
        if not plan.loads:
            return
        layerwise = self._moving.layerwise and self._stops()
        self._loading = self._start_load(plan.loads, layerwise)
        self._waited = 0
        if not layerwise:
            self._end_loading()

    def _stops(self) -> bool:
        """Tell whether forwards wait at every layer: one that does not would compute too early."""
        if not self._unmet:
            return True
        self._whole += 1
        if self._whole == 2:  # before the first load there may have been no forward
            logger.warning(
                "use_layerwise: no effect on loads, because this model's attention does not wait "
                "for its layers; they are loaded before the forward"
            )
        return False

    def _start_load(self, loads: Iterable[Load], layerwise: bool = False) -> Transfer:
        loads = list(loads)
        hashes = [block_hash for load in loads for block_hash in load.hashes]
        blocks = [block for load in loads for block in load.blocks]
        names = [load.request_id for load in loads]
        transfer = Transfer("load", Picks(hashes, blocks, [], names), self._namer(hashes))
        if self._store is None:
            transfer.fail(Status.CLOSED)
            return transfer
        groups = self._load_groups if layerwise else None
        priority = 0  # of the first group; a forward comes to the others later
        for rows in self._layout.rows(transfer.ids, blocks, groups):
            if not transfer.start(self._store.load_data, rows, priority=priority):
                break
            priority = _BACKGROUND
        return transfer

    def wait_layer(self, layer_name: str) -> None:
        """Return when a layer's part of this step's loads is there or has failed."""
        if self._unmet:
            self._unmet.discard(layer_name)
        if self._loading is None or self._store is None:
            return
        place = self._layout.place(layer_name)
        groups = self._load_groups[self._waited :]
        wanted = 0 if place is None else sum(group.start <= place for group in groups)
        if wanted:
            self._loading.finish(self._store, wanted)
            self._waited += wanted
        self._loading.done()  # a load lasts until its end, not until the forward's

    def _end_loading(self) -> None:
        """Wait for the rest of this step's loads, and agree with the others what has failed."""
        loading, self._loading = self._loading, None
        if loading is None:
            return
        try:
            if self._store is not None:
                loading.finish(self._store)
        except Exception:
            # The other workers wait in agree(), and the engine can compute what is not there.
            logger.exception("load of %d blocks broke off", len(loading.picks.blocks))
            loading.fail(Status.INTERNAL)
        self._loaded(loading, self._agree(set(loading.failed)))

    def _loaded(self, transfer: Transfer, failed: set[int]) -> None:
        """Take note of a load that has ended, and of what failed here or at another worker."""
        self._measure(transfer)
        self._failed |= failed
        self._tainted = (self._tainted - set(transfer.picks.blocks)) | failed

    def computed(self, layer_name: str) -> bool:
        """Take note of a layer; tell whether ``save_layers`` may have something to do.

        Between a model's layers nothing is in the processor's caches: this is as short as can be.
        """
        self._computed.append(layer_name)
        return len(self._computed) >= self._enough

    def save_layers(self, plan: Plan) -> None:
        """Begin to save groups of layers of what this step completes, all of which are computed.

        Not where blocks are loaded in the same step: whether what it computes is right, and may be
        published, is known at its end.
        """
        self._enough = _NEVER
        if not self._moving.layerwise or plan.loads or not plan.saves:
            return
        if self._dumping is None:
            self._dumping = self._picked(plan)
            size = len(self._dumping.ids) * self._layout.shard_size  # of a layer
            part = -(-self._layout.shards_per_block // _SAVE_GROUPS)
            together = max(part, _SAVE_GROUP_BYTES // max(size, 1))
            self._groups = self._grouped(self._dumping, together)
        there = set(self._computed)
        waiting = []
        for group in self._groups:
            missing = len(group.names - there)
            if missing:
                waiting.append(group)
                self._enough = min(self._enough, len(self._computed) + missing)
            else:
                self._dump(self._dumping, group)
        self._groups = waiting

    def _grouped(self, transfer: Transfer, together: int) -> list[_Group]:
        """Cut layers into groups of so many; all rows at once take a third of the time."""
        _, blocks, depths, _ = transfer.picks
        if not blocks or not self._moving.keeps:
            return []
        names = self._layout.names
        groups = [
            range(first, min(first + together, len(names)))
            for first in range(0, len(names), together)
        ]
        hints = np.array(depths, np.uint32)
        return [
            _Group(set(names[g.start : g.stop]), rows, hints.repeat(len(g) * self._layout.parts))
            for g, rows in zip(groups, self._layout.rows(transfer.ids, blocks, groups), strict=True)
        ]

    def save(self, plan: Plan) -> None:
        """Save what this step completed. What cannot be stored is logged and left out."""
        self._end_loading()
        dumping, self._dumping = self._dumping, None
        if dumping is None and plan.saves:
            dumping = self._picked(plan)
            self._groups = self._grouped(dumping, self._layout.shards_per_block)
        groups, self._groups = self._groups, []
        self._computed.clear()
        self._enough = 1
        if dumping is not None:
            for group in groups:
                self._dump(dumping, group)
            # The scheduler waits for all of them, whatever became of the picks.
            dumping.numbers = [save.number for save in plan.saves if save.number]
            self._saving.append(dumping)
        if not self._moving.async_save and self._store is not None:
            for saving in self._saving:
                saving.finish(self._store)
        self._reap()

    def _picked(self, plan: Plan) -> Transfer:
        picks = Picks([], [], [], [])
        held = 0
        for save in plan.saves:
            good = bisect.bisect_left(save.picks, self._clean(save))
            held += len(save.picks) - good
            picks.hashes.extend(save.hashes[:good])
            picks.blocks.extend([save.table[place] for place in save.picks[:good]])
            picks.depths.extend(save.picks[:good])
            picks.requests.extend([save.request_id] * good)
        if held:
            self._metrics.count("held_back_blocks_total", held)
        return Transfer("save", picks, self._namer(picks.hashes))

    def _clean(self, save: Save) -> int:
        """Return how many blocks of the table do not build on one which failed to load."""
        table, computed, good = save.table, save.computed_from, len(save.table)
        if self._tainted:
            good = next((i for i in range(computed) if table[i] in self._tainted), good)
            if good < computed:  # what is computed from a wrong block is wrong as well
                self._tainted.update(table[good:])
            else:
                self._tainted.difference_update(table[computed:])
        return good

    def _dump(self, transfer: Transfer, group: _Group) -> None:
        # Whoever misses a layer is not published; there is no use in the rest.
        if transfer.failed or self._store is None:
            return
        priority = _BACKGROUND if self._moving.async_save else 0
        transfer.start(self._store.dump_data, group.rows, depths=group.depths, priority=priority)

    def _reap(self) -> None:
        """Let go of what has been saved."""
        still = []
        for saving in self._saving:
            if not saving.done():
                still.append(saving)
                continue
            if self._store is not None:
                saving.finish(self._store)
            if self._moving.keeps:
                self._measure(saving)
            if saving.failed:
                failed, count = len(saving.failed), len(saving.picks.blocks)
                logger.warning("%d of %d blocks are not stored", failed, count)
            self._ended += saving.numbers
            if self._moving.tells and self._moving.keeps:
                rows = zip(saving.picks.hashes, saving.picks.blocks, strict=True)
                self._stored += (name for name, block in rows if block not in saving.failed)
        self._saving = still

    def _measure(self, transfer: Transfer) -> None:
        """Count what a transfer moved and what it did not; it has ended."""
        self._metrics.moved(
            transfer.what,
            len(set(transfer.picks.requests)),
            len(transfer.picks.blocks) - len(transfer.failed),
            self._layout.block_size * self._layout.parts,
            transfer.seconds,
            Counter(map(failure, transfer.failed.values())),
        )

    def finished(self, leaving: Iterable[str]) -> tuple[set[str], set[str]]:
        """Return the requests of which all is saved, and those that have received their blocks.

        Of the first only those that a plan let go, in this call's ``leaving`` or earlier.
        """
        self._leaving.update(leaving)
        self._reap()
        busy = {name for saving in self._saving for name in saving.picks.requests}
        sent = self._leaving - busy
        self._leaving -= sent
        received = {name for name, transfer in self._receiving.items() if transfer.done()}
        for name in received:
            transfer = self._receiving.pop(name)
            if self._store is not None:
                transfer.finish(self._store)
            self._loaded(transfer, set(transfer.failed))
        return sent, received

    def take_failed(self) -> set[int]:
        """Return the blocks that failed to load since the last call, in this step's loads too.

        Where a draft model runs behind the forward, it is asked before the step's saves.
        """
        self._end_loading()
        failed, self._failed = self._failed, set()
        return failed

    def take_ended(self) -> list[int]:
        """Return the numbers of the saves that have ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def take_stored(self) -> list[bytes]:
        """Return the hashes of the blocks that have been dumped since the last call."""
        stored, self._stored = self._stored, []
        return stored

    def detach(self) -> Store | None:
        """Hand the store back; nothing is moved any more."""
        store, self._store = self._store, None
        return store
