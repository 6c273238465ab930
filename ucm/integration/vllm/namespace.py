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
# Rotary embeddings that turn keys alike however long an engine lets prompts be.
_ANY_LENGTH = (
    "default", "linear", "llama3", "mllama4", "proportional", "yarn", "deepseek_yarn",
    "deepseek_llama_scaling", "bailing_mrope", "openpangu",
)  # fmt: skip
_LLAMA4_TUNED = 32768  # longer ones have its attention tuned, unless generation configs say
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
    # Some models write max_model_len there, which by_length() judges.
    for private in ("transformers_version", "_name_or_path", "max_model_len"):
        described.pop(private, None)
    # Told where they are set, so that usual engines keep the names of what they have stored.
    rare = {"by_length": by_length(model), **_unusual(vllm_config)}
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
        **{name: value for name, value in rare.items() if value},
    }


def by_length(model: Any) -> list[Any]:
    """Return what the longest allowed prompt decides over a model's keys; mostly nothing.

    vLLM chooses LongRoPE's factors and Llama 4's temperatures by it. What it does in embeddings
    that are not known here cannot be told, so the length itself keeps them apart.
    """
    longest = model.max_model_len
    auto = getattr(model, "original_max_model_len", None) == -1  # fitted after these choices
    decided: list[Any] = []

    def over(limit: int) -> Any:
        return "auto" if auto else longest > limit

    if any("Llama4" in str(name) for name in getattr(model, "architectures", None) or ()):
        said = {**model.try_get_generation_config(), **model.override_generation_config}
        decided.append(said.get("attn_temperature_tuning", over(_LLAMA4_TUNED)))
    for rope in _ropes(getattr(model, "hf_text_config", None) or model.hf_config):
        kind = rope.get("rope_type") or rope.get("type") or "default"
        original = rope.get("original_max_position_embeddings")
        if kind == "longrope" and original:
            decided.append(over(original))
        elif kind not in _ANY_LENGTH:
            decided.append(longest)
    return decided


def _ropes(config: Any) -> list[dict[str, Any]]:
    """Return a model's rotary embeddings: one, or one for each type of layers."""
    given = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    nested = given and all(isinstance(value, dict) for value in given.values())
    return list(given.values()) if nested else [given]


def _unusual(vllm_config: Any) -> dict[str, Any]:
    """Gather what few engines set: weights, code or media from elsewhere, and drafts."""
    model = vllm_config.model_config
    media = getattr(model, "multimodal_config", None)
    draft = getattr(getattr(vllm_config, "speculative_config", None), "draft_model_config", None)
    own = draft is not None and (draft.model, draft.revision) != (model.model, model.revision)
    implementation = str(getattr(model, "model_impl", "auto"))
    return {
        "code_revision": getattr(model, "code_revision", None),
        "implementation": implementation if implementation != "auto" else None,
        "classes": getattr(model, "model_class_overrides", None),
        "quantized": _text(getattr(model, "quantization_config", None)),
        "weights_from": getattr(model, "model_weights", None),
        "loader": _text(getattr(vllm_config.load_config, "model_loader_extra_config", None)),
        # Media are named by what they are, not by how much of them is left out.
        "pruning": media.get_video_pruning_spec() if media is not None else None,
        "media": _media(media),
        # A draft's layers stand among the model's own.
        "draft": [model_name(str(draft.model)), draft.revision, weights_identity(str(draft.model))]
        if own and draft is not None
        else None,
    }


def _media(config: Any) -> dict[str, str]:
    """Tell how media become tokens, as far as the engine sets it and no request says it."""
    names = (
        "mm_processor_kwargs",
        "media_io_kwargs",
        "mm_encoder_attn_dtype",
        "mm_encoder_fp8_scale_path",
    )
    told = {name: getattr(config, name, None) for name in names}
    return {
        name: json.dumps(value, sort_keys=True, default=str)
        for name, value in told.items()
        if value
    }


def _text(value: Any) -> str | None:
    return str(value) if value else None


def data_parallel_rank(vllm_config: Any) -> int:
    """Return the rank among the engine's replicas; dense models reset the plain one to zero."""
    parallel = vllm_config.parallel_config
    index = getattr(parallel, "data_parallel_index", None)
    return int(parallel.data_parallel_rank if index is None else index)
