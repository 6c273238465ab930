"""Finding a policy: by its name, or a class in a file or module."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from ucm.errors import ConfigError
from ucm.replay.policies import NAMED

_HOW = "a class of yours is path/to/file.py:ClassName or module:ClassName"


@dataclasses.dataclass(frozen=True)
class Maker:
    """A policy: its name, and what makes one for a capacity."""

    name: str
    make: Callable[[int], Any]
    shipped: bool = True


def find(text: str, others: tuple[str, ...] = ()) -> Maker:
    """Return the policy of this name, or the class that FILE.py:CLASS or MODULE:CLASS names."""
    if text in NAMED:
        return Maker(text, NAMED[text])
    origin, colon, name = text.rpartition(":")
    if not colon:
        known = [*NAMED, *others]
        near = difflib.get_close_matches(text.lower(), known, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)};"
        raise ConfigError(f"--policy {text}: unknown; {hint} {_HOW}")
    if not origin or not name:
        raise ConfigError(f"--policy {text}: {_HOW}")
    is_file = origin.endswith(".py") or os.sep in origin
    module = _load_file(origin, text) if is_file else _load_module(origin, text)
    found = getattr(module, name, None)
    if not isinstance(found, type):
        raise ConfigError(f"--policy {text}: there is no class {name} in {origin}")
    for method in ("hit", "insert"):
        if not callable(getattr(found, method, None)):
            raise ConfigError(
                f"--policy {text}: {name} has no {method}(); a policy has __init__(capacity), "
                "hit(block), and insert(block, depth), which returns what goes"
            )
    return Maker(text, found, shipped=False)


def _load_file(path: str, text: str) -> ModuleType:
    if not os.path.isfile(path):
        raise ConfigError(f"--policy {text}: there is no file {path}")
    spec = importlib.util.spec_from_file_location("ucm_replay_policy", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"--policy {text}: {path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    folder = os.path.dirname(os.path.abspath(path))
    sys.path.insert(0, folder)  # what lies beside it can be imported, as from a script
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--policy {text}: {path} fails: {type(error).__name__}: {error}"
        ) from error
    finally:
        sys.path.remove(folder)
    return module


def _load_module(name: str, text: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"--policy {text}: module {name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
