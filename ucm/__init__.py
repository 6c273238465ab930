"""Persist and reuse the KV cache of LLM inference through a pipeline of store plugins.

>>> import ucm
>>> with ucm.open_pipeline("Empty", block_size=4096) as store:
...     store.lookup([bytes(16)])
[False]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ucm._version import __version__

if TYPE_CHECKING:
    from ucm.errors import (
        BusyError,
        CancelledError,
        ClosedError,
        ConfigError,
        CorruptError,
        IncompatibleError,
        InvalidError,
        IoError,
        NoSpaceError,
        NotFoundError,
        PluginError,
        Status,
        StoreError,
        StoreTimeout,
        UnavailableError,
        UnsupportedError,
    )
    from ucm.hashing import block_ids
    from ucm.hookspecs import hookimpl
    from ucm.layout import Layout
    from ucm.loader import Option
    from ucm.python_store import CodecBase, Dumped, LayerBase, StoreBase
    from ucm.registry import PluginInfo, plugins
    from ucm.store_api import Report, Store, open_pipeline
    from ucm.task import Result, Task

# Where each public name lives; modules are imported when a name is first used.
_HOMES = {
    "ucm.errors": (
        "BusyError",
        "CancelledError",
        "ClosedError",
        "ConfigError",
        "CorruptError",
        "IncompatibleError",
        "InvalidError",
        "IoError",
        "NoSpaceError",
        "NotFoundError",
        "PluginError",
        "Status",
        "StoreError",
        "StoreTimeout",
        "UnavailableError",
        "UnsupportedError",
    ),
    "ucm.hashing": ("block_ids",),
    "ucm.hookspecs": ("hookimpl",),
    "ucm.layout": ("Layout",),
    "ucm.loader": ("Option",),
    "ucm.python_store": ("CodecBase", "Dumped", "LayerBase", "StoreBase"),
    "ucm.registry": ("PluginInfo", "plugins"),
    "ucm.store_api": ("Report", "Store", "open_pipeline"),
    "ucm.task": ("Result", "Task"),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BusyError",
    "CancelledError",
    "ClosedError",
    "CodecBase",
    "ConfigError",
    "CorruptError",
    "Dumped",
    "IncompatibleError",
    "InvalidError",
    "IoError",
    "LayerBase",
    "Layout",
    "NoSpaceError",
    "NotFoundError",
    "Option",
    "PluginError",
    "PluginInfo",
    "Report",
    "Result",
    "Status",
    "Store",
    "StoreBase",
    "StoreError",
    "StoreTimeout",
    "Task",
    "UnavailableError",
    "UnsupportedError",
    "__version__",
    "block_ids",
    "get_include",
    "get_pkgconfig_dir",
    "hookimpl",
    "open_pipeline",
    "plugins",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ucm' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _package_file(*parts: str) -> Any:
    from importlib import resources
    from pathlib import Path

    # In an editable install only files can be resolved, not folders.
    return Path(str(resources.files("ucm").joinpath(*parts)))


def get_include() -> str:
    """Return the folder to put on a compiler's include path for ``ucm/store_v1.h``."""
    return str(_package_file("include", "ucm", "store_v1.h").parent.parent)


def get_pkgconfig_dir() -> str:
    """Return the folder of ``ucm-store.pc``, for PKG_CONFIG_PATH."""
    return str(_package_file("lib", "pkgconfig", "ucm-store.pc").parent)
