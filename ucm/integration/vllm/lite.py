"""``use_lite``: counts what would hit, and moves no KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ucm import config
from ucm.errors import StoreError
from ucm.hashing import Namer
from ucm.integration.vllm.scheduler import Part
from ucm.logs import logger
from ucm.store.pipeline.connector import UcmPipelineStoreBuilder

_BYTES = 4096  # of a block that stands for others


def open_counting(
    settings: config.Config, namespace: str
) -> tuple[Part, Callable[[Sequence[bytes]], None]]:
    """Open a pipeline that ends in Fake; return what looks blocks up, and what takes them."""
    sizes = {"block_size": _BYTES, "shard_size": _BYTES, "tensor_size": _BYTES}
    options = {k: v for k, v in settings.connector_config.items() if k != "tensor_size_list"}
    store = UcmPipelineStoreBuilder.open({**options, **sizes, "dtype": "bytes", "device_id": 0})
    namer = Namer(namespace, "lite")
    block = np.zeros(_BYTES, np.uint8)

    def remember(hashes: Sequence[bytes]) -> None:
        if not hashes:
            return
        rows = np.full((len(hashes), 1), block.ctypes.data, np.uint64)
        try:
            store.wait(store.dump_data(namer(hashes), [0] * len(hashes), rows))
        except StoreError as error:
            logger.warning("%d blocks are not counted: %s", len(hashes), error)

    return Part(store, namer), remember
