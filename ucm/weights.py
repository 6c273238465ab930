"""Tells the weights of a model, or of an adapter, from others."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

_SAMPLES, _SAMPLE_BYTES = 16, 4096
_HEADER_BYTES = 100_000_000  # what safetensors allows


def weights_identity(path: str) -> Any:
    """Return what tells the weights in a local folder from others, or None if it is none.

    Sizes alone would not see that a model was trained further, so samples are read of every file.
    """
    folder = Path(path)
    if not folder.is_dir():
        return None
    small, files = _files(folder)
    return {
        **{f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in small},
        **{f.name: _sampled(f) for f in files},
    }


def _files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files that describe a folder's weights, and those that hold them."""
    suffixes = (".safetensors", ".bin", ".gguf", ".pt")
    files = sorted(f for f in folder.iterdir() if f.suffix in suffixes)
    described = ("config.json", "adapter_config.json", "*.index.json", "*processor_config.json")
    return [f for name in described for f in sorted(folder.glob(name))], files


def _sampled(path: Path) -> list[Any]:
    size = path.stat().st_size
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        for place in _places(file, size):
            file.seek(place)
            hashed.update(file.read(_SAMPLE_BYTES))
    return [size, hashed.hexdigest()]


def _places(file: BinaryIO, size: int) -> list[int]:
    """Where to sample: in the middle of every tensor, as one layer alone may have been trained.

    Format of safetensors: a length in 8 bytes, that much JSON, then the tensors.
    """
    even = [size * i // _SAMPLES for i in range(_SAMPLES)]
    try:
        length = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(length)) if length < min(size, _HEADER_BYTES) else {}
        ranges = [t["data_offsets"] for name, t in tensors.items() if name != "__metadata__"]
        middles = [8 + length + (int(begin) + int(end)) // 2 for begin, end in ranges]
    except (ValueError, LookupError, TypeError, AttributeError):
        return even  # of another format
    return [0, *middles] if middles else even


def adapter_identity(path: str) -> bytes:
    """Return what tells an adapter from those that stood in this local folder before it.

    Empty where there is no such folder: then its name and its path are all that is known.
    """
    found = weights_identity(os.path.expanduser(path))
    if found is None:
        return b""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).digest()


def adapter_stamp(path: str) -> dict[str, tuple[int, ...]]:
    """Return what any change of an adapter's files changes; the last number of each is when."""
    folder = Path(os.path.expanduser(path))
    if not folder.is_dir():
        return {}
    told = {f.name: f.stat() for files in _files(folder) for f in files}
    return {name: (s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in told.items()}
