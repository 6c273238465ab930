"""How the fault tests reach what a store keeps."""

from __future__ import annotations

import glob
import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest

from ucm import breaking


class Storage(Protocol):
    """What keeps blocks. ``Files`` is one; a store without files brings its own class.

    The class is made with the pipeline's options. It may also have ``stop()`` and ``start()``, of
    the service that keeps the blocks.
    """

    def read(self, block_id: bytes) -> Mapping[str, bytes]:
        """Return the pieces that keep a block, by names of your own; empty: nothing does."""

    def write(self, block_id: bytes, name: str, data: bytes | None) -> None:
        """Put other bytes in the place of a piece; None: delete it."""


class Files:
    """The files that a pattern finds when ``{id}`` is the block's id in hex."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def read(self, block_id: bytes) -> dict[str, bytes]:
        """Return the bytes of each file."""
        paths = glob.glob(self._pattern.replace("{id}", block_id.hex()), recursive=True)
        return {path: Path(path).read_bytes() for path in sorted(paths) if Path(path).is_file()}

    def write(self, block_id: bytes, name: str, data: bytes | None) -> None:
        """Write a file in place."""
        breaking.replace_file(Path(name), data)


def storage_of(files: str, options: Mapping[str, str], folder: Path) -> Storage:
    """Make what ``--ucm-files`` names: a pattern with ``{id}``, or ``module:Class``."""
    if "{id}" in files:
        return Files(files.replace("{tmp}", glob.escape(str(folder))))
    module, colon, name = files.partition(":")
    if not colon:
        raise pytest.UsageError(
            f"--ucm-files {files!r}: neither a pattern with {{id}} nor module:Class"
        )
    try:
        made: Any = getattr(importlib.import_module(module), name)(options)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--ucm-files {files!r}: {error}") from error
    storage: Storage = made
    return storage


def damage(storage: Storage, block_ids: list[bytes], how: breaking.Damage, rng: Any) -> None:
    """Do it to what keeps these blocks, piece by piece."""
    kept = [storage.read(block_id) for block_id in block_ids]
    for block_id, pieces in zip(block_ids, kept, strict=True):
        if not pieces:
            pytest.fail(f"--ucm-files: it finds nothing that keeps block {block_id.hex()}")
    for names in zip(*(sorted(pieces) for pieces in kept), strict=False):
        was = [pieces[name] for pieces, name in zip(kept, names, strict=True)]
        for block_id, name, data in zip(block_ids, names, how(was, rng), strict=True):
            storage.write(block_id, name, data)
