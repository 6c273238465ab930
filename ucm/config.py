"""Configuration files."""

from __future__ import annotations

from typing import Any

from ucm.errors import ConfigError


def read_yaml(path: str) -> dict[str, Any]:
    """Read a store's options from YAML: a mapping, or one entry of ``ucm_connectors``."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            data = yaml.safe_load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a mapping of options is needed at the top")
    if "ucm_connectors" not in data:
        return data
    connectors = data["ucm_connectors"]
    if not isinstance(connectors, list) or len(connectors) != 1:
        raise ConfigError(f"{path}: ucm_connectors: exactly one connector is needed")
    connector = connectors[0]
    options = connector.get("ucm_connector_config") if isinstance(connector, dict) else None
    if not isinstance(options, dict):
        raise ConfigError(f"{path}: ucm_connectors: ucm_connector_config must be a mapping")
    return options
