"""``UcmConnectorFactoryV1``: stores by the name that configurations use."""

from __future__ import annotations

from typing import Any, cast

from ucm.store._factory import Connectors
from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1


class UcmConnectorFactoryV1(Connectors):
    """Stores with raw ids, by name."""

    _known: dict[str, tuple[str, str]] = {}
    _base = UcmKVStoreBaseV1

    @classmethod
    def create_connector(
        cls, connector_name: str, config: dict[str, Any], module_path: str | None = None
    ) -> UcmKVStoreBaseV1:
        """Create a store. With ``module_path`` the name is a class in that module."""
        return cast(UcmKVStoreBaseV1, cls._create(connector_name, config, module_path))


UcmConnectorFactoryV1.register_connector(
    "UcmPipelineStore", "ucm.store.pipeline.connector", "UcmPipelineStore"
)
for _name in ("UcmNfsStore", "UcmPCStore", "UcmPcStore"):
    UcmConnectorFactoryV1.register_connector(_name, "ucm.store.connector_v1", _name)
