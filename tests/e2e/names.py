"""Names of blocks with vLLM's own requests and configurations: names.py FOLDER [MODEL]

Prints JSON: the names of a few requests' blocks; and with a model, what two stages of a pipeline
share.
"""

import json
import logging
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import torch
from vllm import SamplingParams
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorHandshakeMetadata,
    KVConnectorRole,
)
from vllm.engine.arg_utils import EngineArgs
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend
from vllm.v1.core import kv_cache_utils
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from ucm.hashing import Namer
from ucm.integration.vllm import engine
from ucm.integration.vllm.events import Announcer
from ucm.integration.vllm.metadata import Load, Plan, Save
from ucm.integration.vllm.ucm_connector import UCMConnector, UCMMetadata

TOKENS, BLOCK, BLOCKS = list(range(300)), 128, 8
LAYERS, HEADS, SIZE = 4, 2, 32  # of the random model


def request(algorithm, **more):
    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)
    hasher = kv_cache_utils.get_request_block_hasher(BLOCK, function)
    return Request("r", TOKENS, SamplingParams(max_tokens=1), None, block_hasher=hasher, **more)


def picture(name):
    place = PlaceholderRange(offset=140, length=5)  # in the second block
    return [MultiModalFeatureSpec(data=None, modality="image", identifier=name, mm_position=place)]


def names(folder):
    """Return the ids of requests that differ in one thing each."""
    os.chdir(folder)  # the path is part of the name
    trained = Path("adapter")
    trained.mkdir()
    adapter = LoRARequest("a", 1, str(trained))

    def ids(algorithm="sha256", lora=None, **more):
        cache = SimpleNamespace(prefix_caching_hash_algo=algorithm)
        hashes = engine.block_hashes(SimpleNamespace(cache_config=cache), BLOCK)
        one = request(algorithm, lora_request=lora, **more)
        made = engine.Apart(hashes, engine.Adapters())(one)
        return [each.hex() for each in Namer("space", "tp0")(made)]

    found = {
        "plain": ids(),
        "salt": ids(cache_salt="tenant"),
        "other salt": ids(cache_salt="other"),
        "picture": ids(mm_features=picture("cat")),
        "other picture": ids(mm_features=picture("dog")),
        "xxhash": ids("xxhash"),
        "sha256_cbor": ids("sha256_cbor"),
    }
    for name in ("adapter", "adapter trained further"):
        (trained / "adapter_model.safetensors").write_text(name)
        found[name] = ids(lora=adapter)
    return found


def events():
    """Return how our events of a few requests' blocks differ from vLLM's own; they should not."""
    different = {}
    adapter = LoRARequest("a", 1, ".")
    for algorithm, more in (
        ("sha256", {"cache_salt": "tenant", "mm_features": picture("cat")}),
        ("sha256", {"lora_request": adapter, "session_id": "s"}),
        ("xxhash", {}),
    ):
        one = request(algorithm, **more)
        pool = BlockPool(BLOCKS, True, BLOCK, enable_kv_cache_events=True)
        pool.cache_full_blocks(one, pool.get_new_blocks(2), 0, 2, BLOCK, 0)
        (own,) = pool.take_events()
        announcer = Announcer(BLOCK, engine.extra_keys)
        announcer.planned(one, [b"ours0", b"ours1"], [0, 1], 1)
        announcer.stored({b"ours0": 1, b"ours1": 1}, 1)
        first, second = engine.stored_events(announcer.take())
        ours = msgspec.structs.asdict(first)
        ours.update(
            {
                name: ours[name] + getattr(second, name)
                for name in ("block_hashes", "token_ids", "extra_keys")
            },
            medium=own.medium,
        )
        theirs = msgspec.structs.asdict(own)
        if ours != theirs or second.parent_block_hash != first.block_hashes[-1]:
            different[f"{algorithm} {more}"] = [str(ours), str(theirs)]
    return different


def config(model, storage, **more):
    store = {"store_pipeline": "Posix", "storage_backends": str(storage)}
    entry = {"ucm_connector_name": "UcmPipelineStore", "ucm_connector_config": store}
    transfer = KVTransferConfig(
        kv_connector="UCMConnector",
        kv_role="kv_both",
        kv_connector_module_path="ucm.integration.vllm.ucm_connector",
        kv_load_failure_policy="recompute",
        kv_connector_extra_config={"ucm_connectors": [entry]},
    )
    return EngineArgs(
        model=model, dtype="bfloat16", block_size=BLOCK, enforce_eager=True,
        kv_transfer_config=transfer, distributed_executor_backend="mp", **more,
    ).create_engine_config()  # fmt: skip


class Worker:
    """A stage's connector, over KV cache with random contents."""

    def __init__(self, vllm_config, layers):
        self.names = [f"model.layers.{i}.self_attn.attn" for i in layers]
        layer = SimpleNamespace(get_attn_backend=lambda: CPUAttentionBackend, head_size=SIZE)
        vllm_config.compilation_config.static_forward_context.update(
            dict.fromkeys(self.names, layer)
        )
        shape = (BLOCKS, HEADS, BLOCK, 2 * SIZE)
        self.caches = {name: torch.randn(shape).to(torch.bfloat16) for name in self.names}
        self.connector = UCMConnector(vllm_config, KVConnectorRole.WORKER, cache_config(self.names))
        self.connector.register_kv_caches(self.caches)
        self.handshake = self.connector.get_handshake_metadata()

    def step(self, plan):
        self.connector.bind_connector_metadata(UCMMetadata(plan))
        self.connector.start_load_kv(None)
        for name in self.names:
            self.connector.wait_for_layer_load(name)
            self.connector.save_kv_layer(name, None, None)
        self.connector.wait_for_save()
        while self.connector.get_finished(set())[1] is None and plan.background:
            pass
        failed = self.connector.get_block_ids_with_load_errors()
        self.connector.clear_connector_metadata()
        return failed


def cache_config(names):
    spec = FullAttentionSpec(
        block_size=BLOCK, num_kv_heads=HEADS, head_size=SIZE, dtype=torch.bfloat16
    )
    return KVCacheConfig(
        num_blocks=BLOCKS, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(names, spec)]
    )


def stages(model, folder):
    """Store with two stages; return what a scheduler finds meanwhile, and what comes back."""
    engine.tensor_rank = lambda: 0
    halves = (range(3), range(3, LAYERS))  # stages may differ in size
    vllm_config = config(model, folder, pipeline_parallel_size=2)
    workers = [Worker(vllm_config, half) for half in halves]
    told = {(i, 0): worker.handshake for i, worker in enumerate(workers)}
    scheduler = UCMConnector(vllm_config, KVConnectorRole.SCHEDULER, cache_config(workers[0].names))
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda line: warnings.append(line.getMessage())
    logging.getLogger("ucm").addHandler(handler)
    scheduler.set_xfer_handshake_metadata_pp_aware({(0, 0): KVConnectorHandshakeMetadata()})
    logging.getLogger("ucm").removeHandler(handler)
    scheduler.set_xfer_handshake_metadata_pp_aware(told)
    one = request("sha256")
    hashes = list(one.block_hashes)
    found = []

    def look(side):
        one.request_id = f"r{len(found)}"  # who asks again at once is told the same
        found.append(side.get_num_new_matched_tokens(one, 0))

    for worker in workers:
        look(scheduler)
        worker.step(Plan(saves=[Save("r", 1, [0, 1], 0, [0, 1], hashes)]))
        worker.connector._worker._store.drain()
    look(scheduler)
    same = []
    for worker in workers:
        failed = worker.step(Plan(background=[Load("r", hashes, [5, 6])]))
        same.append(
            not failed and all(torch.equal(kv[:2], kv[5:7]) for kv in worker.caches.values())
        )
    alone = config(model, folder)
    single = Worker(alone, range(LAYERS))
    other = UCMConnector(alone, KVConnectorRole.SCHEDULER, cache_config(single.names))
    other.set_xfer_handshake_metadata_pp_aware({(0, 0): single.handshake})
    look(other)
    for each in (scheduler, other, single.connector, *(worker.connector for worker in workers)):
        each.shutdown()
        each.shutdown()  # it may be called again
    return {
        "found": found,
        "same": same,
        "parts": [worker.handshake.parts for worker in workers],
        "namespaces": len({w.handshake.namespace for w in (*workers, single)}),
        "piecewise": [
            UCMConnector.requires_piecewise_for_cudagraph(
                {**alone.kv_transfer_config.kv_connector_extra_config, "use_layerwise": value}
            )
            for value in (True, False)
        ],
        "handshake_of_another": warnings,
        "delivery": scheduler.requires_kv_delivery,
    }


if __name__ == "__main__":
    place, *models = sys.argv[1:]
    result = {"names": names(Path(place)), "events": events()}
    for model in models:
        stored = Path(place) / "blocks"
        stored.mkdir()
        result["stages"] = stages(model, stored)
    print(json.dumps(result))
