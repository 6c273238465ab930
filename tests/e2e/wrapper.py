"""A connector of an engine's own that holds ours, as vLLM-Ascend's does, for vLLM 0.32.

It passes on these methods and no others: no registered caches, no handshake, no finished transfers.
"""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

from ucm.integration.vllm.ucm_connector import UCMConnector

FORWARDED = (
    "start_load_kv",
    "wait_for_layer_load",
    "save_kv_layer",
    "wait_for_save",
    "clear_connector_metadata",
    "bind_connector_metadata",
    "get_block_ids_with_load_errors",
    "get_num_new_matched_tokens",
    "update_state_after_alloc",
    "build_connector_meta",
    "request_finished",
)


def _forward(name: str) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._ucm_engine, name)(*args, **kwargs)

    return call


class UCMConnectorV1(KVConnectorBase_V1):
    """Holds a UCMConnector made with two arguments."""

    for _name in FORWARDED:
        locals()[_name] = _forward(_name)

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._ucm_engine = UCMConnector(vllm_config, role)

    @classmethod
    def build_kv_connector_stats(cls, data: Any = None) -> Any:
        """Class methods go to the class."""
        return UCMConnector.build_kv_connector_stats(data)

    @classmethod
    def build_prom_metrics(cls, *args: Any) -> Any:
        """Likewise."""
        return UCMConnector.build_prom_metrics(*args)
