"""``UCMConnector``: vLLM's KV cache in a pipeline of stores.

    --kv-transfer-config '{"kv_connector": "UCMConnector", "kv_role": "kv_both",
        "kv_connector_module_path": "ucm.integration.vllm.ucm_connector",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"UCM_CONFIG_FILE": "/path/of/config.yaml"}}'

Made for vLLM 0.32. Blocks are loaded before the forward and saved after it, whole and in the
forward's own thread.
"""

from __future__ import annotations

import atexit
import weakref
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)

from ucm.errors import ConfigError, StoreError
from ucm.hashing import Namer, rank_name
from ucm.integration.vllm import engine
from ucm.integration.vllm.layout import KvLayout
from ucm.integration.vllm.metadata import Plan
from ucm.integration.vllm.namespace import data_parallel_rank, model_name, model_parts, namespace
from ucm.integration.vllm.opening import open_store, settings, share_logging, sizes
from ucm.integration.vllm.scheduler import SchedulerSide
from ucm.integration.vllm.worker import WorkerSide
from ucm.logs import logger
from ucm.store_api import Store


class UCMMetadata(KVConnectorMetadata):  # type: ignore[misc]
    """A step's plan on its way to the workers."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan


class UCMHandshake(KVConnectorHandshakeMetadata):  # type: ignore[misc]
    """What only a worker knows and the scheduler needs, to look up what the workers store."""

    def __init__(self, namespace: str, rank: str, sizes: dict[str, Any]) -> None:
        self.namespace = namespace
        self.rank = rank
        self.sizes = sizes


class UCMConnector(KVConnectorBase_V1, SupportsHMA):  # type: ignore[misc]
    """One instance is the scheduler's, one each worker's; ``role`` says which."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
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
        # An engine inside the caller's process is never told to shut down.
        atexit.register(_shut_down, weakref.ref(self))
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(
                self._block_tokens, engine.block_hashes(vllm_config, self._block_tokens)
            )
            self._remark()

    def _remark(self) -> None:
        """Say at the start what else would be found out late."""
        for note in self._settings.notes:
            logger.warning("%s", note)
        policy = self._transfer.kv_load_failure_policy
        if policy != "recompute":
            logger.warning(
                'kv_load_failure_policy is "%s": a request fails when one of its blocks cannot '
                'be loaded; put "kv_load_failure_policy": "recompute" into --kv-transfer-config',
                policy,
            )

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
        layout = KvLayout(kv_caches, self._cache_config.num_blocks)
        parts = model_parts(self._config)
        parts["block_tokens"] = self._block_tokens
        parts["layout"] = [layout.signature, engine.packing(self._config, layout.names[0])]
        name = namespace(model_name(str(self._config.model_config.model)), parts)
        rank = rank_name(engine.tensor_rank())
        told = sizes(layout, str(self._config.cache_config.cache_dtype))
        store = self._open(name, told, lookup_only=False)
        logger.info(
            "namespace %s, rank %s: a block of %d tokens has %d bytes, in %d layers of %d segments",
            name, rank, self._block_tokens, layout.block_size, layout.shards_per_block,
            layout.segments,
        )  # fmt: skip
        self._handshake = UCMHandshake(name, rank, told)
        self._worker = WorkerSide(store, layout, Namer(name, rank), engine.agree)

    def get_handshake_metadata(self) -> UCMHandshake | None:
        """Return what the scheduler needs to know."""
        return self._handshake

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Do nothing: between steps no block is being read or written."""

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Load what this step needs."""
        if self._worker is not None:
            self._worker.load(self._plan())

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Do nothing: all layers were loaded before the forward."""

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any
    ) -> None:
        """Do nothing: all layers are saved after the forward."""

    def wait_for_save(self) -> None:
        """Save what this step completed."""
        if self._worker is not None:
            self._worker.save(self._plan())

    def _plan(self) -> Plan:
        metadata = self._get_connector_metadata()
        return metadata.plan if isinstance(metadata, UCMMetadata) else Plan()

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Return the blocks that could not be loaded in this step."""
        return self._worker.take_failed() if self._worker is not None else set()

    # The scheduler's methods.

    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        """Open the store for lookup: now the workers' names for blocks are known."""
        told = [metadata[key] for key in sorted(metadata)]
        self._attach([each for each in told if isinstance(each, UCMHandshake)])

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
        namers = [Namer(name, worker.rank) for worker in workers]
        self._scheduler.attach(self._open(name, workers[0].sizes, lookup_only=True), namers)

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        """Return how many tokens can be loaded, and that loading them holds up the step."""
        assert self._scheduler is not None
        return self._scheduler.matched_tokens(request, num_computed_tokens), False

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Take note that a request runs now."""
        assert self._scheduler is not None
        found = self._scheduler.admit(request, num_external_tokens)
        if found is not None:
            logger.info(
                "request_id: %s, total_blocks_num: %d, hit hbm: %d, hit external: %d",
                request.request_id, found.total, found.local, found.external,
            )  # fmt: skip

    def build_connector_meta(self, scheduler_output: Any) -> UCMMetadata:
        """Return this step's plan."""
        assert self._scheduler is not None
        return UCMMetadata(self._scheduler.plan(scheduler_output))

    def request_finished(
        self, request: Any, block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Forget the request; its blocks may be freed at once."""
        if self._scheduler is not None:
            self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: Any, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """Do the same; there is one group."""
        return self.request_finished(request, [])

    @property
    def requires_kv_delivery(self) -> bool:
        """A store is a cache: nobody waits for what it did not keep."""
        return False

    # Both.

    def shutdown(self) -> None:
        """Store what was saved, and close. May be called again."""
        for side in (self._worker, self._scheduler):
            store = side.detach() if side is not None else None
            if store is None:
                continue
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
