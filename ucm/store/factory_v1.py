"""``UcmConnectorFactoryV1``: stores by the name that configurations use."""

from __future__ import annotations

import importlib
from typing import Any

from ucm.errors import ConfigError
from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1


class UcmConnectorFactoryV1:
    """Names of stores, imported when first created; one that is broken breaks only itself."""

    _known: dict[str, tuple[str, str]] = {}

    @classmethod
    def register_connector(cls, name: str, module_path: str, class_name: str) -> None:
        """Make a class known under a name."""
        if name in cls._known and cls._known[name] != (module_path, class_name):
            raise ConfigError(
                f"connector {name!r} is already registered as {'.'.join(cls._known[name])}"
            )
        cls._known[name] = (module_path, class_name)

    @classmethod
    def create_connector(
        cls, connector_name: str, config: dict[str, Any], module_path: str | None = None
    ) -> UcmKVStoreBaseV1:
        """Create a store. With ``module_path`` the name is a class in that module."""
        if module_path:
            home, class_name = module_path, connector_name
        elif connector_name in cls._known:
            home, class_name = cls._known[connector_name]
        else:
            raise ConfigError(
                f"ucm_connector_name: {connector_name!r} is unknown; known: "
                f"{', '.join(sorted(cls._known))}; or give the module of the class "
                "(ucm_connector_module_path)"
            )
        try:
            store_class = getattr(importlib.import_module(home), class_name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"connector {connector_name!r}: {home}.{class_name} cannot be imported: {error}"
            ) from error
        if not (isinstance(store_class, type) and issubclass(store_class, UcmKVStoreBaseV1)):
            raise ConfigError(
                f"connector {connector_name!r}: {home}.{class_name} is not derived from "
                "UcmKVStoreBaseV1"
            )
        return store_class(config)


UcmConnectorFactoryV1.register_connector(
    "UcmPipelineStore", "ucm.store.pipeline.connector", "UcmPipelineStore"
)
