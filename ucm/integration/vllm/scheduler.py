"""The scheduler's side: what is found, and what each step loads and saves."""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from ucm.errors import StoreError
from ucm.hashing import Namer
from ucm.integration.vllm.metadata import Load, Plan, Save
from ucm.logs import logger
from ucm.store_api import Store

_ON_THE_WAY_S = 10.0  # so long after a save was planned lookup may not see it yet
_ON_THE_WAY_MAX = 65536

Hashes = Callable[[Any], Sequence[bytes]]


class Match(NamedTuple):
    """What a request's prompt finds, in blocks."""

    total: int
    local: int
    external: int


@dataclasses.dataclass(slots=True)
class _Tracked:
    request: Any
    load: int = 0  # so many blocks are to be loaded in its first step
    table: list[int] = dataclasses.field(default_factory=list)  # the engine's block numbers
    done: int = 0  # so many blocks need not be looked at again


class SchedulerSide:
    """Bookkeeping of requests; every call comes from the scheduler's one thread."""

    def __init__(self, block_tokens: int, hashes: Hashes) -> None:
        self._block_tokens = block_tokens
        self._hashes = hashes
        self._store: Store | None = None
        self._namers: list[Namer] = []
        self._matches: dict[str, Match] = {}
        self._tracked: dict[str, _Tracked] = {}
        self._on_the_way: collections.OrderedDict[bytes, float] = collections.OrderedDict()

    def attach(self, store: Store, namers: Sequence[Namer]) -> None:
        """Take the store to look blocks up in, and what names the blocks of each rank."""
        self._store, self._namers = store, list(namers)

    def detach(self) -> Store | None:
        """Hand the store back; nothing is found any more."""
        store, self._store = self._store, None
        return store

    def matched_tokens(self, request: Any, computed_tokens: int) -> int:
        """Return how many tokens after the computed ones can be loaded. Changes nothing."""
        local = computed_tokens // self._block_tokens
        total = request.num_tokens // self._block_tokens
        external = 0
        if not getattr(request, "skip_reading_prefix_cache", False):
            external = self._prefix(self._hashes(request)[local:total])
        self._matches[request.request_id] = Match(total, local, external)
        # The engine has to compute at least one token.
        usable: int = min(local + external, (request.num_tokens - 1) // self._block_tokens)
        return max(usable - local, 0) * self._block_tokens

    def _prefix(self, hashes: Sequence[bytes]) -> int:
        """Count the leading blocks of which every rank's part is published."""
        if self._store is None:
            return 0
        count = len(hashes)
        try:
            for name in self._namers:
                if not count:
                    break
                count = self._store.lookup_on_prefix(name(hashes[:count])) + 1
        except StoreError as error:
            logger.warning("lookup of %d blocks failed, which counts as a miss: %s", count, error)
            return 0
        return count

    def admit(self, request: Any, external_tokens: int) -> Match | None:
        """Take note of a request that was given its blocks; return what it found, once."""
        blocks = external_tokens // self._block_tokens
        self._tracked[request.request_id] = _Tracked(request, blocks)
        return self._matches.pop(request.request_id, None)

    def finished(self, request_id: str) -> None:
        """Forget a request."""
        self._tracked.pop(request_id, None)
        self._matches.pop(request_id, None)

    def plan(self, step: Any) -> Plan:
        """Say what the workers load and save in this step."""
        plan = Plan()
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
        return plan

    def _step(self, plan: Plan, tracked: _Tracked, computed: int, scheduled: int) -> None:
        hashes = self._hashes(tracked.request)
        request_id = tracked.request.request_id
        first = computed // self._block_tokens
        loaded = range(first - tracked.load, first)
        if tracked.load:
            where = tracked.table[loaded.start : loaded.stop]
            plan.loads.append(Load(request_id, list(hashes[loaded.start : loaded.stop]), where))
            tracked.load = 0
        if first < tracked.done:  # the engine computes again what could not be loaded
            for block_hash in hashes[first : tracked.done]:
                self._on_the_way.pop(block_hash, None)
            tracked.done = first
        full = min((computed + scheduled) // self._block_tokens, len(hashes), len(tracked.table))
        if full <= tracked.done:
            return
        places = [i for i in range(tracked.done, full) if i not in loaded]
        picks = self._wanted(hashes, places)
        tracked.done = full
        table, chosen = tracked.table[:full], [hashes[i] for i in picks]
        plan.saves.append(Save(request_id, table, first, picks, chosen))

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
        """Tell for each block whether every rank's part is published."""
        if self._store is None or not hashes:
            return [self._store is None] * len(hashes)
        known = [True] * len(hashes)
        try:
            for name in self._namers:
                known = [
                    a and b for a, b in zip(known, self._store.lookup(name(hashes)), strict=True)
                ]
        except StoreError as error:
            logger.warning("lookup of %d blocks failed, they are saved: %s", len(hashes), error)
            return [False] * len(hashes)
        return known
