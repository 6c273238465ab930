"""The scheduler's side: what is found, and what each step loads and saves."""

from __future__ import annotations

import collections
import dataclasses
import fractions
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ucm.errors import StoreError
from ucm.hashing import Namer
from ucm.integration.vllm.collector import Collector
from ucm.integration.vllm.metadata import Load, Plan, Save
from ucm.logs import logger
from ucm.store_api import Store

_ON_THE_WAY_S = 10.0  # so long after a save was planned lookup may not see it yet
_ON_THE_WAY_MAX = 65536
_ANSWER_S = 0.1  # so long an answer holds for a request that waits for room and asks in every step
_GONE_MAX = 64

Hashes = Callable[[Any], Sequence[bytes]]
Remember = Callable[[Sequence[bytes]], None]
# Takes a request, its hashes, the places of the blocks that are going to be saved, and the number.
Planned = Callable[[Any, Sequence[bytes], Sequence[int], int], None]


class Part(NamedTuple):
    """What every block has a piece of: a worker's layers and heads."""

    store: Store
    name: Namer


class Match(NamedTuple):
    """What a request's prompt finds, in blocks."""

    total: int
    local: int
    external: int


class _Looked(NamedTuple):
    """A lookup: what was found, why the others were missed, how long it took, and when it was."""

    match: Match
    missed: dict[str, int]
    seconds: float
    at: float


@dataclasses.dataclass(frozen=True, slots=True)
class Policy:
    """What a configuration lets the scheduler look for and keep."""

    hit_ratio: float | None = None  # hits are at most that part of a prompt's tokens
    persist_token_threshold: int = 0  # shorter prompts are neither loaded nor saved
    load_tokens_threshold: int = 0  # smaller hits are not loaded
    async_load: bool = False  # requests wait for their loads outside the batch
    async_save: bool = False  # requests hold their blocks until these are saved
    lite: bool = False  # hits are counted, nothing is loaded
    loads: bool = True
    saves: bool = True


_ALL = Policy()


@dataclasses.dataclass(slots=True)
class _Tracked:
    request: Any
    load: int = 0  # so many blocks are to be loaded in its first step
    hit: range = range(0)  # these of its blocks are loaded, then or before
    table: list[int] = dataclasses.field(default_factory=list)  # the engine's block numbers
    done: int = 0  # so many blocks need not be looked at again
    keep: bool = True  # its blocks may be saved


class SchedulerSide:
    """Bookkeeping of requests; every call comes from the scheduler's one thread."""

    def __init__(
        self,
        block_tokens: int,
        hashes: Hashes,
        policy: Policy = _ALL,
        planned: Planned | None = None,
        metrics: Collector | None = None,
    ) -> None:
        self._block_tokens = block_tokens
        self._hashes = hashes
        self._policy = policy
        self._planned = planned
        ratio = policy.hit_ratio
        # As it was written: 0.57 is a little less in binary, and would lose a block.
        self._share = None if ratio is None else fractions.Fraction(str(ratio))
        self._metrics = metrics or Collector(None)
        self._parts: list[Part] = []
        self._remember: Remember | None = None
        self._looked: dict[str, _Looked] = {}  # requests that were not admitted since
        self._tracked: dict[str, _Tracked] = {}
        self._on_the_way: collections.OrderedDict[bytes, float] = collections.OrderedDict()
        self._background: list[Load] = []  # for the next step
        # Requests outside the batch: which of their blocks they load, and where to.
        self._receiving: dict[str, tuple[range, list[int]]] = {}
        self._denied: set[str] = set()  # a load of theirs has failed; another may fail as well
        self._number = 0  # of the last save
        self._saving: dict[int, tuple[str, int]] = {}  # whose it is, and workers that still do it
        self._savers: dict[str, set[int]] = {}  # requests of which something is being saved
        self._leaving: set[str] = set()  # finished ones that hold their blocks until then
        self._left: list[str] = []  # those of them that the workers do not know of yet
        # Tables that requests had to give up: an older step may yet report blocks of them.
        self._gone: collections.deque[list[int]] = collections.deque(maxlen=_GONE_MAX)
        self._workers = 1

    def attach(
        self, parts: Sequence[Part], remember: Remember | None = None, workers: int = 1
    ) -> None:
        """Take what a block consists of, and where each part of it is looked up.

        ``remember`` takes what would be saved, where hits are only counted; ``workers`` is how many
        tell of each save.
        """
        self._parts, self._remember, self._workers = list(parts), remember, workers

    @property
    def layers(self) -> tuple[str, ...]:
        """The pipeline's layers, top first."""
        return self._parts[0].store.layers if self._parts else ()

    @property
    def attached(self) -> bool:
        """Whether there is a store."""
        return bool(self._parts)

    def detach(self) -> list[Store]:
        """Hand the stores back; nothing is found any more."""
        parts, self._parts = self._parts, []
        return list({id(part.store): part.store for part in parts}.values())

    def matched_tokens(self, request: Any, computed_tokens: int) -> tuple[int, bool]:
        """Return how many tokens after the computed ones can be loaded, and whether outside.

        Outside the batch, that is. Changes nothing.
        """
        size = self._block_tokens
        local = computed_tokens // size
        total = request.num_tokens // size
        began = time.monotonic()
        last = self._looked.get(request.request_id)
        if last and last.match[:2] == (total, local) and began - last.at < _ANSWER_S:
            external = last.match.external
        else:
            found, cause = self._find(request, local, total)
            external, limit = self._limited(request, local, found)
            missed = {cause: total - local - found, limit: found - external}
            match, now = Match(total, local, external), time.monotonic()
            self._looked[request.request_id] = _Looked(match, missed, now - began, now)
        if self._policy.lite:
            return 0, False
        # The engine has to compute at least one token.
        usable: int = min(local + external, (request.num_tokens - 1) // size)
        tokens = max(usable - local, 0) * size
        return tokens, self._policy.async_load and tokens > 0

    def _find(self, request: Any, local: int, total: int) -> tuple[int, str]:
        """Return how many blocks are found, and why the others are not."""
        if not self._policy.loads or getattr(request, "skip_reading_prefix_cache", False):
            return 0, "not_asked"
        if request.request_id in self._denied:
            return 0, "load_failed"
        if not self._keeps(request):
            return 0, "persist_token_threshold"
        if not self._parts:
            return 0, "not_open"
        hashes = self._hashes(request)[local:total]
        try:
            return self._prefix(hashes), "absent"
        except StoreError as error:
            count = len(hashes)
            logger.warning("lookup of %d blocks failed, which counts as a miss: %s", count, error)
            return 0, "lookup_failed"

    def _keeps(self, request: Any) -> bool:
        return _prompt_tokens(request) >= self._policy.persist_token_threshold

    def _limited(self, request: Any, local: int, found: int) -> tuple[int, str]:
        """Return how many of the found blocks are wanted, and what takes the others away."""
        wanted = found
        if self._share is not None:
            most = int(self._share * _prompt_tokens(request)) // self._block_tokens
            wanted = max(0, min(found, most - local))
        if wanted * self._block_tokens < self._policy.load_tokens_threshold:
            return 0, "load_tokens_threshold"
        return wanted, "hit_ratio"

    def _prefix(self, hashes: Sequence[bytes]) -> int:
        """Count the leading blocks of which every part is published."""
        count = len(hashes)
        for part in self._parts:
            if not count:
                break
            count = part.store.lookup_on_prefix(part.name(hashes[:count])) + 1
        return count

    def admit(self, request: Any, external_tokens: int, table: Sequence[int] = ()) -> Match | None:
        """Take note of a request that was given its blocks; return what it found, once.

        A request that loads outside the batch comes twice, the second time when all is there, and a
        session again for what is added to its prompt.
        """
        name, blocks = request.request_id, external_tokens // self._block_tokens
        looked = self._looked.pop(name, None)
        # As in the engine's own statistics, preempted requests are not counted again.
        counted = name in self._tracked and name not in self._denied
        keep = self._policy.saves and self._keeps(request)
        before = self._tracked.get(name)
        if before and (name in self._receiving or request.num_computed_tokens):
            keep = keep and before.keep
        tracked = _Tracked(request, keep=keep)
        self._tracked[name] = tracked
        if looked is not None:
            tracked.hit = range(looked.match.local, looked.match.local + blocks)
            if not counted:
                self._metrics.looked_up(*looked.match, looked.missed, looked.seconds)
        if name in self._receiving:
            hit, _ = self._receiving.pop(name)
            there = request.num_computed_tokens // self._block_tokens  # fewer if some have failed
            tracked.hit = range(hit.start, max(hit.start, min(hit.stop, there)))
        elif blocks and self._policy.async_load:
            where = list(table[tracked.hit.start : tracked.hit.stop])
            hashes = self._hashes(request)[tracked.hit.start : tracked.hit.stop]
            self._background.append(Load(name, list(hashes), where))
            self._receiving[name] = (tracked.hit, where)
        else:
            tracked.load = blocks
        return looked.match if looked else None

    def hit_tiers(self, request_id: str) -> list[int]:
        """Tell for each block that a request loads how deep in the pipeline it lies."""
        tracked = self._tracked.get(request_id)
        if not self._parts or tracked is None or not tracked.hit:
            return []
        hashes = self._hashes(tracked.request)[tracked.hit.start : tracked.hit.stop]
        try:
            return self._parts[0].store.tiers(self._parts[0].name(hashes))
        except StoreError:
            return []

    def finished(self, request_id: str) -> bool:
        """Forget a request; tell whether its blocks are still being saved."""
        tracked = self._tracked.pop(request_id, None)
        if tracked is not None:
            self._gone.append(tracked.table)
        self._looked.pop(request_id, None)
        self._denied.discard(request_id)
        receives = self._receiving.pop(request_id, None) is not None
        holds = self._savers.pop(request_id, None) is not None and not receives
        if holds:
            self._leaving.add(request_id)
            self._left.append(request_id)
        return holds

    def saved(self, request_ids: Iterable[str]) -> None:
        """Take note of finished requests of which all has been saved."""
        self._leaving.difference_update(request_ids)

    @property
    def holds_blocks(self) -> bool:
        """Whether blocks of finished requests come free as soon as they are saved."""
        return bool(self._leaving)

    def ended(self, saves: Mapping[int, int]) -> list[int]:
        """Take note of saves that have ended, by their numbers, at so many workers.

        Returns those that have ended at all of them.
        """
        whole = []
        for number, workers in saves.items():
            name, left = self._saving.pop(number, ("", 0))
            if left > workers:
                self._saving[number] = (name, left - workers)
                continue
            whole.append(number)
            if name in self._savers:
                self._savers[name].discard(number)
                if not self._savers[name]:
                    del self._savers[name]
        return whole

    def load_failed(self, blocks: Iterable[int]) -> set[int]:
        """Have all requests of these blocks compute from there on, and not look them up again.

        Returns the blocks and what was computed from them: none of it may be a hit of the engine's
        own.
        """
        bad = set(blocks)
        wrong = set(bad)
        for table in self._gone:
            wrong.update(table[_first(table, bad) :])
        for name, tracked in self._tracked.items():
            waits = name in self._receiving
            hit, table = self._receiving[name] if waits else (range(0), tracked.table)
            first = _first(table, bad)
            if first == len(table):
                continue
            wrong.update(table[first:])
            for block_hash in self._hashes(tracked.request)[hit.start + first :]:
                self._on_the_way.pop(block_hash, None)  # whoever computes it next saves it
            self._denied.add(name)
            self._looked.pop(name, None)
            if not waits:
                # The engine sends back only the first of those that share a block, and takes it for
                # computed when the others go on; but the first may end before, or be slower.
                request, good = tracked.request, first * self._block_tokens
                request.num_computed_tokens = min(request.num_computed_tokens, good)
        return wrong

    def forget(self) -> None:
        """What is computed already is not to be saved: from now on it counts as outdated."""
        for tracked in self._tracked.values():
            tracked.keep = False
        self._on_the_way.clear()
        self._looked.clear()

    def plan(self, step: Any) -> Plan:
        """Say what the workers load and save in this step."""
        plan = Plan(preempted=sorted(getattr(step, "preempted_req_ids", None) or ()))
        for name in plan.preempted:
            self._savers.pop(name, None)
            if name in self._tracked:  # what fails in them from now on is not its failure
                self._gone.append(self._tracked[name].table)
                self._tracked[name].table = []
        plan.leaving, self._left = self._left, []
        plan.background, self._background = self._background, []
        scheduled = step.num_scheduled_tokens
        for new in step.scheduled_new_reqs:
            tracked = self._tracked.get(new.req_id)
            if tracked is not None:
                tracked.table = list(new.block_ids[0])
                self._step(plan, tracked, new.num_computed_tokens, scheduled[new.req_id])
        cached = step.scheduled_cached_reqs
        rows = zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True)
        for request_id, blocks, computed in rows:
            tracked = self._tracked.get(request_id)
            if tracked is None:
                continue
            if request_id in cached.resumed_req_ids:
                tracked.table = list(blocks[0])
            elif blocks:
                tracked.table.extend(blocks[0])
            self._step(plan, tracked, computed, scheduled[request_id])
        if self._remember is not None:
            for save in plan.saves:
                self._remember(save.hashes)
            plan.saves.clear()
        return plan

    def _step(self, plan: Plan, tracked: _Tracked, computed: int, scheduled: int) -> None:
        hashes = self._hashes(tracked.request)
        request_id = tracked.request.request_id
        first = computed // self._block_tokens
        loaded, tracked.hit = tracked.hit, range(0)
        if tracked.load:
            loaded = range(first - tracked.load, first)
            where = tracked.table[loaded.start : loaded.stop]
            plan.loads.append(Load(request_id, list(hashes[loaded.start : loaded.stop]), where))
            tracked.load = 0
        tracked.done = min(tracked.done, first)  # what could not be loaded is computed again
        full = min((computed + scheduled) // self._block_tokens, len(hashes), len(tracked.table))
        if full <= tracked.done or not self._parts:  # that is saved once there is a store
            return
        places = [i for i in range(tracked.done, full) if i not in loaded]
        tracked.done = full
        picks = self._wanted(hashes, places) if tracked.keep else []
        chosen = [hashes[i] for i in picks]
        number = self._numbered(request_id) if picks else 0
        if self._planned is not None:
            self._planned(tracked.request, hashes, picks, number)
        plan.saves.append(Save(request_id, number, tracked.table[:full], first, picks, chosen))

    def _numbered(self, request_id: str) -> int:
        """Begin a save of which the workers tell that it has ended, if anyone wants to know.

        The request has to outlive it if saving is asynchronous.
        """
        if not self._policy.async_save and self._planned is None:
            return 0
        self._number += 1
        self._saving[self._number] = (request_id, self._workers)
        if self._policy.async_save:
            self._savers.setdefault(request_id, set()).add(self._number)
        return self._number

    def _wanted(self, hashes: Sequence[bytes], places: Iterable[int]) -> list[int]:
        """Choose the blocks that are neither published nor on their way."""
        now = time.monotonic()
        while self._on_the_way:
            oldest, planned = next(iter(self._on_the_way.items()))
            if planned + _ON_THE_WAY_S > now and len(self._on_the_way) <= _ON_THE_WAY_MAX:
                break
            del self._on_the_way[oldest]
        places = [i for i in places if hashes[i] not in self._on_the_way]
        published = self._published([hashes[i] for i in places])
        picks = [i for i, known in zip(places, published, strict=True) if not known]
        self._on_the_way.update((hashes[i], now) for i in picks)
        return picks

    def _published(self, hashes: Sequence[bytes]) -> list[bool]:
        """Tell for each block whether every part of it is published; all are without a store."""
        known = [True] * len(hashes)
        if not hashes:
            return known
        try:
            for part in self._parts:
                found = part.store.lookup(part.name(hashes))
                known = [a and b for a, b in zip(known, found, strict=True)]
        except StoreError as error:
            logger.warning("lookup of %d blocks failed, they are saved: %s", len(hashes), error)
            return [False] * len(hashes)
        return known


def _first(table: Sequence[int], blocks: set[int]) -> int:
    """Return the place of the first of some blocks in a table, or its length."""
    return next((i for i, block in enumerate(table) if block in blocks), len(table))


def _prompt_tokens(request: Any) -> int:
    return int(getattr(request, "num_prompt_tokens", request.num_tokens))
