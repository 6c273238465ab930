"""What both factories of stores share."""

from __future__ import annotations

import importlib
from typing import Any

from ucm.errors import ConfigError


class Connectors:
    """Names of stores, imported when first created; one that is broken breaks only itself."""

    _known: dict[str, tuple[str, str]] = {}
    _base: type[Any] = object

    @classmethod
    def register_connector(cls, name: str, module_path: str, class_name: str) -> None:
        """Make a class known under a name."""
        if name in cls._known and cls._known[name] != (module_path, class_name):
            raise ConfigError(
                f"connector {name!r} is already registered as {'.'.join(cls._known[name])}"
            )
        cls._known[name] = (module_path, class_name)

    @classmethod
    def _create(cls, name: str, config: dict[str, Any], module_path: str | None) -> Any:
        if module_path:
            home, class_name = module_path, name
        elif name in cls._known:
            home, class_name = cls._known[name]
        else:
            raise ConfigError(
                f"ucm_connector_name: {name!r} is unknown; known: "
                f"{', '.join(sorted(cls._known))}; or give the module of the class "
                "(ucm_connector_module_path)"
            )
        try:
            store_class = getattr(importlib.import_module(home), class_name)
        except Exception as error:  # whatever a module does when it is imported
            raise ConfigError(
                f"connector {name!r}: {home}.{class_name} cannot be imported: {error}"
            ) from error
        if not (isinstance(store_class, type) and issubclass(store_class, cls._base)):
            raise ConfigError(
                f"connector {name!r}: {home}.{class_name} is not derived from {cls._base.__name__}"
            )
        return store_class(config)
