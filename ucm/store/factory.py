"""``UcmConnectorFactory``: stores of the oldest interface, by name."""

from __future__ import annotations

from typing import Any, cast

from ucm.store._factory import Connectors
from ucm.store.ucmstore import UcmKVStoreBase


class UcmConnectorFactory(Connectors):
    """Stores with text ids, by name."""

    _known: dict[str, tuple[str, str]] = {}
    _base = UcmKVStoreBase

    @classmethod
    def create_connector(
        cls, connector_name: str, config: dict[str, Any], module_path: str | None = None
    ) -> UcmKVStoreBase:
        """Create a store. With ``module_path`` the name is a class in that module."""
        return cast(UcmKVStoreBase, cls._create(connector_name, config, module_path))


for _name in ("UcmNfsStore", "UcmPCStore", "UcmPcStore"):
    UcmConnectorFactory.register_connector(_name, "ucm.store.connector", _name)
