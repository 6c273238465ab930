"""Opens the configured pipeline for a worker or for the scheduler."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

from ucm import config, pipeline
from ucm.errors import ConfigError, StoreError
from ucm.integration.vllm.layout import KvLayout
from ucm.integration.vllm.namespace import unique_id
from ucm.logs import logger
from ucm.store import older_options
from ucm.store_api import Store

_DTYPES = {
    "torch.bfloat16": "bf16",
    "torch.float16": "fp16",
    "torch.float32": "fp32",
    "torch.float8_e4m3fn": "fp8_e4m3",
    "torch.float8_e5m2": "fp8_e5m2",
}


def settings(extra_config: dict[str, Any]) -> config.Config:
    """Check the connector's configuration."""
    checked = config.load(extra_config)
    name = checked.connector_name
    if checked.connector_module_path or name not in (config.PIPELINE_STORE, *config.OLDER_STORES):
        raise ConfigError(
            f"{checked.source}: ucm_connector_name: {name} cannot be used here; "
            f"write {config.PIPELINE_STORE}"
        )
    if name == config.PIPELINE_STORE:
        return checked
    older = older_options.translate(checked.connector_config)
    return dataclasses.replace(
        checked,
        connector_name=config.PIPELINE_STORE,
        connector_config=older.config,
        notes=[*checked.notes, *older.notes],
    )


def share_logging() -> None:
    """Show the store's messages beside the engine's, unless UC_LOGGER_LEVEL asks otherwise."""
    engine = logging.getLogger("vllm")
    if os.environ.get("UC_LOGGER_LEVEL") or not engine.handlers:
        return
    for handler in engine.handlers:
        if handler not in logger.handlers:
            logger.addHandler(handler)
    logger.setLevel(engine.getEffectiveLevel())


def sizes(layout: KvLayout, cache_dtype: str) -> dict[str, Any]:
    """Return a layout as options. The scheduler gives them too: they tell where to look."""
    return {
        "block_size": layout.block_size,
        "shard_size": layout.shard_size,
        "tensor_size": layout.segment_size,
        "dtype": _dtype(layout.torch_dtype, cache_dtype),
    }


def open_store(
    checked: config.Config,
    namespace: str,
    model: str,
    data_parallel_rank: int,
    role: str,
    sizes: dict[str, Any],
    lookup_only: bool,
) -> Store:
    """Open the pipeline for a worker, or for lookup only."""
    from ucm.store.pipeline.connector import UcmPipelineStoreBuilder

    options = dict(checked.connector_config)
    taken = _option_names(checked)
    for name, value in (
        ("namespace", namespace),
        ("model", model[-200:]),
        ("fingerprint", namespace),
    ):
        if name in taken:
            options.setdefault(name, value)
    if not options.get("unique_id"):
        shared = {**options, "block_size": sizes["block_size"]}  # stages of a pipeline differ
        options["unique_id"] = unique_id(namespace, data_parallel_rank, role, shared)
    if options.get("memory") not in (None, "host"):
        raise ConfigError(
            f"memory: {options['memory']!r} is not supported by this connector yet, which takes KV "
            "cache from host memory; leave it out"
        )
    options.pop("tensor_size_list", None)
    options.update(sizes, device_id=-1 if lookup_only else 0)
    try:
        return UcmPipelineStoreBuilder.open(options)
    except StoreError as error:
        text = f"{checked.source}: {error}"
        raise type(error)(text, error.status, error.os_errno) from error


def try_open(checked: config.Config) -> None:
    """Open and close the pipeline before its sizes are known, for what it refuses in any case."""
    names = ("unique_id", "namespace", "fingerprint")  # under these there may be other sizes
    rest = {k: v for k, v in checked.connector_config.items() if k not in names}
    any_sizes = {"block_size": 4096, "shard_size": 4096, "tensor_size": 4096, "dtype": "bytes"}
    nameless = dataclasses.replace(checked, connector_config=rest)
    open_store(nameless, "start", "start", 0, "", any_sizes, lookup_only=True).close()


def _option_names(checked: config.Config) -> set[str]:
    """Return the options that the pipeline's layers have."""
    if not config.is_pipeline(checked):
        return set()
    layers = pipeline.check(checked.connector_config).options.layers
    return {value.option.name for values in layers for value in values}


def _dtype(torch_dtype: str, cache_dtype: str) -> str:
    """Name what the numbers are; vLLM keeps fp8 in tensors of bytes."""
    if torch_dtype == "torch.uint8" and cache_dtype.startswith("fp8"):
        return "fp8_e5m2" if cache_dtype.endswith("e5m2") else "fp8_e4m3"
    return _DTYPES.get(torch_dtype, "bytes")
