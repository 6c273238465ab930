"""``UCMConnector``: vLLM's KV cache in a pipeline of stores.

    --kv-transfer-config '{"kv_connector": "UCMConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "ucm.integration.vllm.ucm_connector",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"UCM_CONFIG_FILE": "/path/of/config.yaml"}}'

Made for vLLM 0.32. How blocks move (before the forward or within it, layer by layer or whole, in
the step or outside it) is a matter of the configuration's top-level keys.
"""

from __future__ import annotations

import atexit
import dataclasses
import time
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)

from ucm.config import Config
from ucm.errors import ConfigError, StoreError, UnsupportedError
from ucm.hashing import Namer, Namers
from ucm.integration.vllm import engine, lite, prometheus
from ucm.integration.vllm.collector import Collector
from ucm.integration.vllm.division import lay_out
from ucm.integration.vllm.events import Announcer
from ucm.integration.vllm.metadata import Plan
from ucm.integration.vllm.metrics import select
from ucm.integration.vllm.namespace import data_parallel_rank, model_name, model_parts, namespace
from ucm.integration.vllm.opening import (
    open_store,
    settings,
    share_logging,
    sizes,
    try_open,
)
from ucm.integration.vllm.prometheus import UCMPromMetrics, UCMStats
from ucm.integration.vllm.rendezvous import Rendezvous
from ucm.integration.vllm.scheduler import Part, Policy, SchedulerSide
from ucm.integration.vllm.traces import Recorder
from ucm.integration.vllm.worker import Moving, WorkerSide
from ucm.logs import logger
from ucm.store_api import Store

_ATTACH_AGAIN_S = 1.0


class UCMMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """A step's plan on its way to the workers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class UCMHandshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """What only a worker knows and the scheduler needs, to look up what the workers store."""

    def __init__(self, namespace: str, parts: list[str], sizes: dict[str, Any]) -> None:
        self.namespace = namespace
        self.parts = parts  # of a block, that this worker holds
        self.sizes = sizes


class UCMSaved(KVConnectorWorkerMetadata):  # type: ignore[misc]
    """Which saves have ended in a step, which blocks they have dumped, and at how many workers."""

    def __init__(self, saves: dict[int, int], parts: dict[bytes, int]) -> None:
        self.saves = saves
        self.parts = parts

    def aggregate(self, other: KVConnectorWorkerMetadata) -> UCMSaved:
        """Add up what two workers tell."""
        assert isinstance(other, UCMSaved)
        return UCMSaved(
            dict(Counter(self.saves) + Counter(other.saves)),
            dict(Counter(self.parts) + Counter(other.parts)),
        )


class UCMConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """One instance is the scheduler's, one each worker's; ``role`` says which.

    Without ``kv_cache_config`` it is the two-argument form that engines wrap in a class of their
    own: KV caches are taken from the forward's context, and a step waits for what it saves.
    """

    def __init__(
        self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any = None
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        share_logging()
        self._config = vllm_config
        self._cache_config = kv_cache_config
        self._transfer = vllm_config.kv_transfer_config
        self._settings = settings(dict(self._transfer.kv_connector_extra_config))
        self._block_tokens = engine.check_support(vllm_config, kv_cache_config)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._handshake: UCMHandshake | None = None
        self._keepers = 1  # workers that save each block, in parts of their own
        self._rendezvous: Rendezvous | None = None
        self._attach_at = 0.0  # not before that, as it has failed
        wrapped = kv_cache_config is None
        if wrapped:
            self._rendezvous = Rendezvous(str(self._transfer.engine_id))
        now = self._settings
        self._metrics = Collector(select(now))
        self._recorder: Recorder | None = None
        stages = int(vllm_config.parallel_config.pipeline_parallel_size)
        if wrapped and stages > 1:
            raise UnsupportedError(
                f"UCMConnector: pipeline_parallel_size is {stages}; the two-argument form takes 1"
            )
        # A stage cannot tell the next one within a step what it failed to load.
        self._outside = (now.use_request_async_load and not wrapped) or stages > 1
        events = engine.wants_events(vllm_config) and not wrapped and not now.use_lite
        self._announcer = Announcer(self._block_tokens, engine.extra_keys) if events else None
        self._moving = Moving(
            layerwise=self._layerwise(now) and not wrapped and stages == 1,
            async_save=now.use_async_save and not wrapped and not now.use_lite,
            tells=events,
        )
        # An engine inside the caller's process is never told to shut down.
        atexit.register(_shut_down, weakref.ref(self))
        if role == KVConnectorRole.SCHEDULER:
            hashes = engine.block_hashes(vllm_config, self._block_tokens)
            self._hashes = engine.Apart(hashes, engine.Adapters(vllm_config))
            policy = Policy(
                hit_ratio=now.hit_ratio,
                persist_token_threshold=now.persist_token_threshold,
                load_tokens_threshold=now.load_tokens_threshold,
                async_load=self._outside,
                async_save=self._moving.async_save,
                lite=now.use_lite,
                loads=self._transfer.is_kv_consumer,
                saves=self._transfer.is_kv_producer,
            )
            planned = self._announcer.planned if self._announcer else None
            self._scheduler = SchedulerSide(
                self._block_tokens, self._hashes, policy, planned, self._metrics
            )
            if now.enable_record_traces:
                self._recorder = Recorder(self._block_tokens)
            self._remark()
            if now.use_lite:
                part, remember = lite.open_counting(now, self._namespace({}))
                self._scheduler.attach([part], remember)
            elif wrapped:  # what is wrong with the store would come as a dead engine later
                try_open(now)

    def _remark(self) -> None:
        """Say at the start what else would be found out late."""
        for note in self._settings.notes:
            logger.warning("%s", note)
        policy = self._transfer.kv_load_failure_policy
        if policy != "recompute" and not self._settings.use_lite:
            logger.warning(
                'kv_load_failure_policy is "%s": a request fails when one of its blocks cannot '
                'be loaded; put "kv_load_failure_policy": "recompute" into --kv-transfer-config',
                policy,
            )

    def _namespace(self, more: dict[str, Any]) -> str:
        parts = model_parts(self._config)
        parts["block_tokens"] = self._block_tokens
        return namespace(model_name(str(self._config.model_config.model)), {**parts, **more})

    def _open(self, name: str, sizes: dict[str, Any], lookup_only: bool) -> Store:
        return open_store(
            self._settings,
            name,
            model_name(str(self._config.model_config.model)),
            data_parallel_rank(self._config),
            str(self._transfer.kv_role),
            sizes,
            lookup_only,
        )

    # The worker's methods.

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Open the store: now its geometry is known."""
        if self._settings.use_lite:
            return
        blocks = engine.number_of_blocks(self._config, self._cache_config, kv_caches)
        workers = engine.workers(self._config, self._cache_config)
        groups = self._settings.kv_head_groups
        layout, division = lay_out(kv_caches, blocks, workers, groups)
        packing = engine.packing(self._config, layout.names[0])
        one = workers.stages == 1
        signature = layout.signature if one else layout.signature[1:]  # stages differ in layers
        name = self._namespace({"layout": [signature, packing], "division": division.identity})
        told = sizes(layout, str(self._config.cache_config.cache_dtype))
        store = self._open(name, told, lookup_only=False)
        logger.info(
            "namespace %s, rank %s: a block of %d tokens has %d bytes, in %d layers of %d segments",
            name, " and ".join(division.parts), self._block_tokens, layout.block_size,
            layout.shards_per_block, layout.segments,
        )  # fmt: skip
        self._handshake = UCMHandshake(name, list(division.parts), told)
        moving = dataclasses.replace(self._moving, keeps=division.keeps)
        self._worker = WorkerSide(
            store, layout, Namers(name, division.parts), engine.agree, moving, self._metrics
        )
        self._metrics.watch(store, division.worker)
        if self._rendezvous is not None:
            self._rendezvous.tell(engine.tensor_rank(), dict(vars(self._handshake)))

    @staticmethod
    def _layerwise(now: Config) -> bool:
        return now.use_layerwise and not now.use_request_async_load

    def get_handshake_metadata(self) -> UCMHandshake | None:
        """Return what the scheduler needs to know."""
        return self._handshake

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Finish what is being saved of preempted requests, whose blocks others get now."""
        if self._worker is not None and isinstance(kv_connector_metadata, UCMMetadata):
            self._worker.begin(kv_connector_metadata.plan)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Begin this step's loads; unless layerwise, those for its forward are there after it."""
        if self._worker is None and self._rendezvous is not None:
            tensors = engine.bound_caches(forward_context)
            if tensors:
                self.register_kv_caches(tensors)
        if self._worker is not None:
            self._worker.load(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Return when the layer's part of the step's loads is there."""
        if self._worker is not None:
            self._worker.wait_layer(layer_name)

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Begin to save a layer of what the step completes, if layerwise."""
        if self._worker is not None and self._worker.computed(layer_name):
            self._worker.save_layers(self._plan())

    def wait_for_save(self) -> None:
        """Begin to save what is left of the step, and wait for it unless saving is asynchronous."""
        if self._worker is not None:
            self._worker.save(self._plan())

    def _plan(self) -> Plan:
        metadata = self._get_connector_metadata()
        return metadata.plan if isinstance(metadata, UCMMetadata) else Plan()

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Return the requests that have been saved, and those that have received their blocks."""
        if self._worker is None:
            return None, None
        sent, received = self._worker.finished(self._plan().leaving)
        return sent or None, received or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that could not be loaded, as far as it is known now."""
        return self._worker.take_failed() if self._worker is not None else set()

    def build_connector_worker_meta(self) -> UCMSaved | None:
        """Tell the scheduler what has been saved."""
        if self._worker is None:
            return None
        ended, stored = self._worker.take_ended(), self._worker.take_stored()
        if not ended and not stored:
            return None
        return UCMSaved(dict.fromkeys(ended, 1), dict.fromkeys(stored, 1))

    # The scheduler's methods.

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        """Open the store for lookup: now the workers' names for blocks are known."""
        told = [metadata[key] for key in sorted(metadata)]
        ours = [each for each in told if isinstance(each, UCMHandshake)]
        if told and not ours:
            logger.warning(
                "nothing is found or saved: MultiConnector passes on one connector's handshake "
                "alone, and it was another's; list UCMConnector first, beside connectors without"
            )
        self._attach(ours)

    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        """Do the same where ranks are told in one dimension."""
        self.set_xfer_handshake_metadata_pp_aware({(0, key): metadata[key] for key in metadata})

    def _attach(self, workers: list[UCMHandshake]) -> None:
        names = {worker.namespace for worker in workers}  # the sizes are part of it
        if self._scheduler is None or not names:
            return
        if len(names) > 1:
            raise ConfigError(
                f"the workers do not agree on the blocks' namespace: {', '.join(sorted(names))}; "
                "their models, attention backends or machines differ"
            )
        (name,) = names
        stores: dict[str, Store] = {}  # stages of a pipeline have blocks of other sizes
        parts: dict[str, Part] = {}
        for worker in workers:
            key = repr(sorted(worker.sizes.items()))
            if key not in stores:
                stores[key] = self._open(name, worker.sizes, lookup_only=True)
            for part in worker.parts:
                parts[part] = Part(stores[key], Namer(name, part))
        self._scheduler.attach(list(parts.values()), workers=len(workers))
        self._keepers = len({tuple(worker.parts) for worker in workers})

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return how many tokens can be loaded, and whether outside the batch."""
        assert self._scheduler is not None
        self._meet(self._scheduler)
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    def _meet(self, scheduler: SchedulerSide) -> None:
        """In the two-argument form, open the store once all workers have shown their caches."""
        if self._rendezvous is None or scheduler.attached or time.monotonic() < self._attach_at:
            return
        told = self._rendezvous.ask(int(self._config.parallel_config.tensor_parallel_size))
        try:
            self._attach([UCMHandshake(**each) for each in told or ()])
        except StoreError as error:
            if not self._attach_at:
                logger.warning("nothing is found or saved until this is mended: %s", error)
            self._attach_at = time.monotonic() + _ATTACH_AGAIN_S

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Take note that a request has its blocks."""
        assert self._scheduler is not None
        table: Iterable[int] = ()
        if num_external_tokens and self._outside:
            (table,) = blocks.get_block_ids()
        found = self._scheduler.admit(request, num_external_tokens, list(table))
        if found is not None:
            logger.info(
                "request_id: %s, total_blocks_num: %d, hit hbm: %d, hit external: %d",
                request.request_id, found.total, found.local, found.external,
            )  # fmt: skip

    def get_external_cache_hit_sources(
        self, request: Any, num_external_tokens: int
    ) -> dict[Any, int]:
        """Split a hit by where its blocks lie: in Cache's memory, or below it."""
        if not num_external_tokens or self._scheduler is None:
            return {}
        tiers = self._scheduler.hit_tiers(request.request_id)
        return engine.hit_sources(self._scheduler.layers, tiers, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> UCMMetadata:
        """Return this step's plan."""
        assert self._scheduler is not None
        self._meet(self._scheduler)
        return UCMMetadata(self._scheduler.plan(scheduler_output))

    def update_connector_output(self, connector_output: Any) -> None:
        """Take note of what the workers report."""
        if self._scheduler is None:
            return
        self._scheduler.saved(connector_output.finished_sending or ())
        if connector_output.invalid_block_ids:
            wrong = self._scheduler.load_failed(connector_output.invalid_block_ids)
            if self._kv_cache_manager is not None:
                self._kv_cache_manager.evict_blocks(wrong)
        told = connector_output.kv_connector_worker_meta
        if not isinstance(told, UCMSaved):
            return
        ended = self._scheduler.ended(told.saves)
        if self._announcer is not None:
            self._announcer.stored(told.parts, self._keepers)
            self._announcer.ended(ended)

    def take_events(self) -> Iterable[Any]:
        """Return vLLM's events for what has been stored."""
        return engine.stored_events(self._announcer.take() if self._announcer else ())

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget the request; its blocks stay as long as they are being saved."""
        if self._scheduler is None:
            return False, None
        if self._recorder is not None:
            length = int(request.num_output_tokens)
            self._recorder.finished(request, self._hashes(request), length)
        return self._scheduler.finished(request.request_id), None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Do the same; there is one group."""
        return self.request_finished(request, [])

    def has_pending_block_frees(self) -> bool:
        """Tell whether blocks come free by themselves, so that nobody need be preempted."""
        return self._scheduler is not None and self._scheduler.holds_blocks

    def reset_cache(self) -> bool | None:
        """From now on find nothing that was stored before: other weights may compute it."""
        if self._scheduler is None:
            return None
        self._hashes.reset()
        self._scheduler.forget()
        logger.warning(
            "reset: this engine finds nothing any more that was stored before; what it stores from "
            "now on is found neither by others nor after a restart"
        )
        return True

    @property
    def requires_kv_delivery(self) -> bool:
        """A store is a cache: nobody waits for what it did not keep."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layers that move one by one need the graph to be cut at each."""
        return cls._layerwise(settings(dict(extra_config)))

    # Both.

    def get_kv_connector_stats(self) -> UCMStats | None:
        """Return what happened since the last call, if metrics are on."""
        return prometheus.take(self._metrics)

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> UCMStats:
        """Make of what another process sent what can be added up."""
        return prometheus.rebuild(data)

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: Any,
        metric_types: dict[Any, Any],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> UCMPromMetrics | None:
        """Register the selected metrics, if any, beside the engine's own."""
        extra = dict(vllm_config.kv_transfer_config.kv_connector_extra_config)
        selection = select(settings(extra))
        if selection is None:
            return None
        return UCMPromMetrics(
            vllm_config, metric_types, labelnames, per_engine_labelvalues, selection
        )

    def shutdown(self) -> None:
        """Store what was saved, and close. May be called again."""
        self._metrics.unwatch()
        if self._recorder is not None:
            self._recorder.close()
        if self._rendezvous is not None:
            self._rendezvous.leave()
        stores = self._scheduler.detach() if self._scheduler is not None else []
        own = self._worker.detach() if self._worker is not None else None
        for store in (*stores, *([own] if own is not None else ())):
            try:
                report = store.close()
            except StoreError as error:
                logger.error("%s", error)
                continue
            if report.lost or report.pending or report.unfinished:
                logger.warning("the store was closed with losses: %s", report)


def _shut_down(connector: weakref.ref[UCMConnector]) -> None:
    alive = connector()
    if alive is not None:
        alive.shutdown()
