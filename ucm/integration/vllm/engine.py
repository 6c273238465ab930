"""What is asked of vLLM's own modules, apart from the connector's interface."""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ucm import hashing
from ucm.errors import UnsupportedError
from ucm.integration.vllm.division import Workers
from ucm.integration.vllm.namespace import digest
from ucm.logs import logger
from ucm.weights import adapter_identity, adapter_stamp

_ATTENTION = ("FullAttentionSpec", "MLAAttentionSpec")
# What vLLM keeps like those, block by block, where its hybrid manager is off.
_LOCAL = ("SlidingWindowSpec", "ChunkedLocalAttentionSpec", "SlidingWindowMLASpec")
_ADAPTERS_MAX = 4096


def check_support(vllm_config: Any, kv_cache_config: Any) -> int:
    """Refuse at the start what cannot be stored rightly; return a block's number of tokens."""
    parallel = vllm_config.parallel_config
    for name, value in (
        ("prefill_context_parallel_size", getattr(parallel, "prefill_context_parallel_size", 1)),
        ("decode_context_parallel_size", getattr(parallel, "decode_context_parallel_size", 1)),
    ):
        if value > 1:
            raise UnsupportedError(f"UCMConnector: {name} is {value}; only 1 is supported yet")
    cache = vllm_config.cache_config
    # vLLM asks connectors even where it knows that a prompt has to be computed as a whole.
    if not getattr(vllm_config.model_config, "is_prefix_caching_supported", True):
        raise UnsupportedError(
            "UCMConnector: vLLM has no prefix cache for this model and pooling (MEAN, CLS, STEP, "
            "or attention in both directions), so nothing can be found again; start without it"
        )
    if kv_cache_config is None:  # the two-argument form
        _check_attention(vllm_config.model_config)
        return int(cache.block_size)
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        kinds = {type(group.kv_cache_spec).__name__ for group in groups}
        helps = kinds & set(_ATTENTION) and kinds <= {*_ATTENTION, *_LOCAL}
        out = "; start vLLM with --disable-hybrid-kv-cache-manager" if helps else ""
        raise UnsupportedError(
            f"UCMConnector: the model has {len(groups)} groups of KV caches, of the kinds "
            f"{', '.join(sorted(kinds))}; hybrid models, which have several, are not supported "
            f"yet{out}"
        )
    kind = type(groups[0].kv_cache_spec).__name__
    if kind not in _ATTENTION:
        raise UnsupportedError(
            f"UCMConnector: the model's KV cache is a {kind}; only full attention is supported yet"
        )
    if getattr(groups[0].kv_cache_spec, "non_causal", False):
        raise UnsupportedError(
            "UCMConnector: the model's attention is non-causal: KV cache depends on what comes "
            "after it, so prompts with the same beginning cannot share it"
        )
    # With decode context parallelism a block covers the tokens of several ranks.
    return int(getattr(kv_cache_config, "hash_block_size", None) or cache.block_size)


def _check_attention(model: Any) -> None:
    """Refuse what is known by a model's configuration alone."""
    for name, value in (
        ("sliding window", model.get_sliding_window()),
        ("attention chunk size", getattr(model, "attention_chunk_size", None)),
        ("hybrid model", getattr(model, "is_hybrid", False)),
    ):
        if value:
            raise UnsupportedError(
                f"UCMConnector: {name} is {value}; only full attention is supported in the "
                "two-argument form"
            )


def bound_caches(forward_context: Any) -> dict[str, Any]:
    """Return the layers' KV caches that a forward is about to use; empty if there are none."""
    layers = getattr(forward_context, "no_compile_layers", None) or {}
    found = {}
    for name, layer in layers.items():
        tensor = getattr(layer, "kv_cache", None)
        if isinstance(tensor, (list, tuple)):  # one for each virtual engine, up to vLLM 0.1x
            tensor = tensor[getattr(forward_context, "virtual_engine", 0)] if tensor else None
        if tensor is not None and tensor.numel():
            found[name] = tensor
    return found


def number_of_blocks(vllm_config: Any, kv_cache_config: Any, tensors: Mapping[str, Any]) -> int:
    """Return how many blocks the KV cache has."""
    known = getattr(kv_cache_config, "num_blocks", None)
    known = known or getattr(vllm_config.cache_config, "num_gpu_blocks", None)
    shape = next(iter(tensors.values())).shape
    if known and known in tuple(shape[:2]):
        return int(known)
    # K and V may stand before the blocks.
    return int(shape[1] if shape[0] == 2 else shape[0])


def tensor_rank() -> int:
    """Return this worker's tensor-parallel rank."""
    from vllm.distributed.parallel_state import get_tp_group

    return int(get_tp_group().rank_in_group)


def workers(vllm_config: Any, kv_cache_config: Any) -> Workers:
    """Return this worker's place."""
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    if kv_cache_config is None:
        mla = bool(model.use_mla)
    else:
        groups = kv_cache_config.kv_cache_groups
        mla = any(type(group.kv_cache_spec).__name__ == "MLAAttentionSpec" for group in groups)
    return Workers(
        tensor_rank=tensor_rank(),
        tensor_size=int(parallel.tensor_parallel_size),
        heads=int(model.get_num_kv_heads(parallel)),
        all_heads=int(model.get_total_num_kv_heads()),
        replicated=mla,
        stages=int(parallel.pipeline_parallel_size),
    )


def agree(failed: set[int]) -> set[int]:
    """Return what failed at any tensor-parallel rank; all of them call this in the same steps."""
    import torch
    from vllm.distributed.parallel_state import get_tp_group

    group = get_tp_group()
    if group.world_size == 1:
        return failed
    count = torch.tensor([len(failed)])
    torch.distributed.all_reduce(count, group=group.cpu_group)
    if not int(count):
        return failed
    gathered: list[Any] = [None] * group.world_size
    torch.distributed.all_gather_object(gathered, failed, group=group.cpu_group)
    return set().union(*gathered)


def hit_sources(layers: Sequence[str], tiers: Sequence[int], tokens: int) -> dict[Any, int]:
    """Split a hit's tokens by what keeps them; ``tiers`` has a number for each block."""
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    kinds = {"Cache": CacheHitSource.HOST, "Posix": CacheHitSource.DISK}
    each = tokens // len(tiers) if tiers else 0
    found: dict[Any, int] = {}
    for tier in tiers:
        # A block that has gone since it was found may lie anywhere.
        word = layers[tier - 1] if 0 < tier <= len(layers) else ""
        kind = kinds.get(word.rpartition(":")[2], CacheHitSource.EXTERNAL_UNSPECIFIED)
        found[kind] = found.get(kind, 0) + each
    if sum(found.values()) != tokens:
        return {CacheHitSource.EXTERNAL_UNSPECIFIED: tokens}
    return found


def wants_events(vllm_config: Any) -> bool:
    """Tell whether the engine publishes KV cache events."""
    events = getattr(vllm_config, "kv_events_config", None)
    return bool(events is not None and events.enable_kv_cache_events)


def extra_keys(request: Any, start: int, end: int, media: int) -> tuple[Any, int]:
    """Return what a block is hashed with beside its tokens, and the next of the media."""
    from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys

    found: tuple[Any, int] = generate_block_hash_extra_keys(request, start, end, media)
    return found


def stored_events(blocks: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Make vLLM's events of what an Announcer tells."""
    from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockStored
    from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash as outer
    from vllm.v1.core.kv_cache_utils import to_event_extra_keys

    events = []
    for fields in blocks:
        parent = fields["parent_block_hash"]
        outside = {
            "block_hashes": [outer(each) for each in fields["block_hashes"]],
            "parent_block_hash": parent if parent is None else outer(parent),
            "extra_keys": to_event_extra_keys(fields["extra_keys"]),
        }
        # There is one group, see check_support().
        events.append(BlockStored(**{**fields, **outside}, medium=MEDIUM_STORAGE, group_idx=0))
    return events


def packing(vllm_config: Any, layer_name: str) -> list[str]:
    """Name what arranges the numbers inside a block, as far as shapes and strides do not tell."""
    layers = vllm_config.compilation_config.static_forward_context
    layer = layers[layer_name]
    backend = layer.get_attn_backend()
    named = [f"{backend.__module__}.{backend.__qualname__}"]
    if "cpu" in str(vllm_config.device_config.device_type):
        # Its kernels pack keys as the instruction set likes them, and a version may change that.
        from vllm import __version__
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

        cache, model = vllm_config.cache_config, vllm_config.model_config
        isa = _get_attn_isa(model.dtype, cache.block_size, layer.head_size, cache.cache_dtype)
        named += [isa, str(__version__)]
    return named


def block_hashes(vllm_config: Any, block_tokens: int) -> Callable[[Any], Sequence[bytes]]:
    """Return what gives a request's hashes of full blocks, the same in every process.

    vLLM's own are, unless PYTHONHASHSEED or an xxhash algorithm changes what they start from.
    """
    from vllm.v1.core import kv_cache_utils

    name = str(vllm_config.cache_config.prefix_caching_hash_algo)
    own = name in hashing.ALGORITHMS
    again = Rehash(
        block_tokens,
        hashing.ALGORITHMS.get(name, hashing.sha256),
        kv_cache_utils.generate_block_hash_extra_keys,
    )

    def hashes(request: Any) -> Sequence[bytes]:
        if own and kv_cache_utils.get_none_hash_seed() == hashing.NONE_HASH_SEED:
            known: Sequence[bytes] = request.block_hashes
            return known
        return again(request)

    return hashes


def applied_otherwise(vllm_config: Any) -> bytes:
    """Return what an engine makes of adapters' weights, where it is not told to do as usual."""
    lora = getattr(vllm_config, "lora_config", None)
    if lora is None:
        return b""
    kind, modules = str(lora.lora_dtype), lora.target_modules
    usual = ("None", "auto", str(vllm_config.model_config.dtype))
    switches = ("enable_tower_connector_lora", "enable_moe_shared_loras")
    rare = {
        "target_modules": None if modules is None else sorted(modules),  # of none: nothing changes
        "dtype": None if kind in usual else kind,
        **{name: getattr(lora, name, False) or None for name in switches},
    }
    said = {name: value for name, value in rare.items() if value is not None}
    return digest(said, 32).encode() if said else b""


class _Adapter(NamedTuple):
    stamp: dict[str, tuple[int, ...]]  # of its files when they were looked into
    weights: bytes
    name: bytes | None  # what stands for the weights that the engine has; None: nobody knows those


class Adapters:
    """Which weights the adapters have that requests name.

    Nobody tells when the engine loads an adapter, so what its files say counts only if they are as
    they were at the engine's start, or if every step loads them anew.
    """

    def __init__(self, vllm_config: Any = None) -> None:
        self._applied = applied_otherwise(vllm_config)
        self._since = time.time_ns()
        self._known: dict[tuple[str, int, str], _Adapter] = {}
        self._told: set[str] = set()  # what the log has said

    def __call__(self, request: Any) -> bytes:
        """Return what tells apart what the request's adapter does; empty without one."""
        lora = getattr(request, "lora_request", None)
        return self._applied + self._weights(lora) if lora is not None else b""

    def _weights(self, lora: Any) -> bytes:
        try:
            known = self._look(lora)
        except OSError as error:
            self._say(lora, f"nothing of it is found, because it cannot be read: {error}")
            return secrets.token_bytes(16)
        if known.name is None:
            self._say(
                lora, "nothing of it is found, because its files have changed since it was first "
                "used; load changed weights from a new path",
            )  # fmt: skip
            return secrets.token_bytes(16)
        return known.name

    def _look(self, lora: Any) -> _Adapter:
        key, path = (lora.lora_name, lora.lora_int_id, lora.lora_path), lora.lora_path
        known, stamp = self._known.get(key), adapter_stamp(path)
        if known is None or lora.load_inplace:
            weights = name = adapter_identity(path)
            if not lora.load_inplace and any(when > self._since for *_, when in stamp.values()):
                self._say(
                    lora, "no other engine finds what is stored of it, because its files are newer "
                    "than this engine, and may have been loaded before they were changed",
                )  # fmt: skip
                name = secrets.token_bytes(16)
            known = _Adapter(stamp, weights, name)
        elif stamp and stamp != known.stamp:  # what is gone is not loaded again
            same = adapter_identity(path) == known.weights
            known = known._replace(stamp=stamp, name=known.name if same else None)
        if key not in self._known and len(self._known) >= _ADAPTERS_MAX:
            del self._known[next(iter(self._known))]
        self._known[key] = known
        return known

    def _say(self, lora: Any, what: str) -> None:
        """Say something of an adapter once."""
        said = f"adapter {lora.lora_name} in {lora.lora_path}: {what}"
        if said not in self._told:
            if len(self._told) >= _ADAPTERS_MAX:
                self._told.clear()
            self._told.add(said)
            logger.warning("%s", said)


class Apart:
    """Hashes that tell apart what an engine's own do not: adapters' weights, and resets."""

    def __init__(
        self,
        hashes: Callable[[Any], Sequence[bytes]],
        adapter: Callable[[Any], bytes] = lambda request: b"",
    ) -> None:
        self._hashes = hashes
        self._adapter = adapter
        self._epoch = b""
        # Of each request, by what they are told apart, and of what they were made.
        self._known: weakref.WeakKeyDictionary[Any, tuple[bytes, list[bytes], list[bytes]]] = (
            weakref.WeakKeyDictionary()
        )

    def reset(self) -> None:
        """Begin anew: no other process has these hashes, and this one never had them."""
        self._epoch = secrets.token_bytes(16)
        self._known.clear()

    def __call__(self, request: Any) -> Sequence[bytes]:
        """Return the hashes of the request's full blocks."""
        plain = self._hashes(request)
        told = self._known.get(request)
        by, known, made_of = told or (self._epoch + self._adapter(request), [], [])
        if not by:
            return plain
        if list(plain[: len(made_of)]) != made_of:  # a session has taken tokens back
            known, made_of = [], []
        self._known[request] = (by, known, made_of)
        more = plain[len(made_of) :]
        made_of += more
        known += hashing.told_apart(by, more)
        return known


class Rehash:
    """Hashes requests as vLLM does by default, and remembers what it hashed of each."""

    def __init__(
        self, block_tokens: int, function: Callable[[Any], bytes], extra_keys: Callable[..., Any]
    ) -> None:
        self._block_tokens = block_tokens
        self._function = function
        self._extra_keys = extra_keys
        # Hashes, the place among the request's media to go on from, and the last hashed tokens.
        self._known: weakref.WeakKeyDictionary[Any, tuple[list[bytes], int, list[int]]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, request: Any) -> Sequence[bytes]:
        """Return the hashes of the request's full blocks."""
        hashes, media, last = self._known.get(request, ([], 0, []))
        size, blocks = self._block_tokens, []
        end = len(hashes) * size
        if hashes and list(request.all_token_ids[end - size : end]) != last:
            hashes, media = [], 0  # a session has taken tokens back
        for start in range(len(hashes) * size, request.num_tokens - size + 1, size):
            keys, media = self._extra_keys(request, start, start + size, media)
            blocks.append((request.all_token_ids[start : start + size], keys))
        hashes += hashing.chain(blocks, self._function, hashes[-1] if hashes else None)
        last = blocks[-1][0] if blocks else last
        self._known[request] = (hashes, media, list(last))
        return hashes
