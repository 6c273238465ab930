"""Which blocks may be mixed: those of one model, in one layout, cut in one way.

Block hashes stand for tokens alone. What else decides over the bytes of a block is gathered here
into one name, which becomes part of every id and, where a layer has the option, its folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

from ucm.weights import weights_identity

FORMULA = 1  # another number keeps blocks of another formula apart
MAX_NAME = 64
_DIGEST = 12


def digest(value: Any, length: int) -> str:
    """Return hex digits that stand for anything JSON can hold, the same in every process."""
    text = json.dumps(value, sort_keys=True, default=lambda other: type(other).__name__)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def slug(name: str, limit: int) -> str:
    """Make a readable part of a file name out of a model's name or path."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(name.rstrip("/")) or name)
    return plain.strip(".-_")[:limit] or "model"


def namespace(model: str, parts: dict[str, Any]) -> str:
    """Return '<model>-<12 hex digits>', at most 64 of A-Z a-z 0-9 . _ -"""
    everything = {"formula": FORMULA, "model": model, **parts}
    return f"{slug(model, MAX_NAME - 1 - _DIGEST)}-{digest(everything, _DIGEST)}"


def unique_id(namespace: str, data_parallel_rank: int, role: str, options: dict[str, Any]) -> str:
    """Name what the processes of one engine share: workers and scheduler of one data-parallel rank.

    It is made of what all of them have and what a restart does not change.
    """
    names = ("store_pipeline", "storage_backends", "block_size")
    where = {key: options.get(key) for key in names}
    return "ucm-" + digest([namespace, data_parallel_rank, role, os.getuid(), where], 16)


def model_name(model: str) -> str:
    """Name a model: on the hub as it is, in a local folder by that folder's name alone.

    Hosts may mount the same weights in different places; weights_identity tells others apart.
    """
    return os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model


def model_parts(vllm_config: Any) -> dict[str, Any]:
    """Gather what an engine's configuration says of the bytes in its KV cache.

    Not how they are divided among workers, see ``division``.
    """
    model, cache = vllm_config.model_config, vllm_config.cache_config
    parallel = vllm_config.parallel_config
    described = model.hf_config.to_dict() if hasattr(model.hf_config, "to_dict") else {}
    for private in ("transformers_version", "_name_or_path"):
        described.pop(private, None)
    return {
        "revision": getattr(model, "revision", None),
        "commit": getattr(model.hf_config, "_commit_hash", None),
        "config": digest(described, 32),
        "weights": weights_identity(str(model.model)),
        "dummy": str(getattr(vllm_config.load_config, "load_format", "")) == "dummy",
        "dtype": str(model.dtype),
        "quantization": str(getattr(model, "quantization", None)),
        "cache_dtype": str(cache.cache_dtype),
        "context_parallel": [
            getattr(parallel, "prefill_context_parallel_size", 1),
            getattr(parallel, "decode_context_parallel_size", 1),
        ],
    }


def data_parallel_rank(vllm_config: Any) -> int:
    """Return the rank among the engine's replicas; dense models reset the plain one to zero."""
    parallel = vllm_config.parallel_config
    index = getattr(parallel, "data_parallel_index", None)
    return int(parallel.data_parallel_rank if index is None else index)
