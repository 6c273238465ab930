"""What is asked of vLLM's own modules, apart from the connector's interface."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ucm import hashing
from ucm.errors import UnsupportedError

_ATTENTION = ("FullAttentionSpec", "MLAAttentionSpec")


def check_support(vllm_config: Any, kv_cache_config: Any) -> int:
    """Refuse at the start what cannot be stored rightly; return a block's number of tokens."""
    parallel = vllm_config.parallel_config
    for name, value in (
        ("pipeline_parallel_size", parallel.pipeline_parallel_size),
        ("prefill_context_parallel_size", getattr(parallel, "prefill_context_parallel_size", 1)),
    ):
        if value > 1:
            raise UnsupportedError(f"UCMConnector: {name} is {value}; only 1 is supported yet")
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise UnsupportedError(
            f"UCMConnector: the model has {len(groups)} groups of KV caches; hybrid models, which "
            "have several, are not supported yet"
        )
    kind = type(groups[0].kv_cache_spec).__name__
    if kind not in _ATTENTION:
        raise UnsupportedError(
            f"UCMConnector: the model's KV cache is a {kind}; only full attention is supported yet"
        )
    # With decode context parallelism a block covers the tokens of several ranks.
    cache = vllm_config.cache_config
    return int(getattr(kv_cache_config, "hash_block_size", None) or cache.block_size)


def tensor_rank() -> int:
    """Return this worker's tensor-parallel rank."""
    from vllm.distributed.parallel_state import get_tp_group

    return int(get_tp_group().rank_in_group)


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


class Rehash:
    """Hashes requests as vLLM does by default, and remembers what it hashed of each."""

    def __init__(
        self, block_tokens: int, function: Callable[[Any], bytes], extra_keys: Callable[..., Any]
    ) -> None:
        self._block_tokens = block_tokens
        self._function = function
        self._extra_keys = extra_keys
        # Hashes, and the place among the request's media to go on from.
        self._known: weakref.WeakKeyDictionary[Any, tuple[list[bytes], int]] = (
            weakref.WeakKeyDictionary()
        )

    def __call__(self, request: Any) -> Sequence[bytes]:
        """Return the hashes of the request's full blocks."""
        hashes, media = self._known.get(request, ([], 0))
        size, blocks = self._block_tokens, []
        for start in range(len(hashes) * size, request.num_tokens - size + 1, size):
            keys, media = self._extra_keys(request, start, start + size, media)
            blocks.append((request.all_token_ids[start : start + size], keys))
        hashes += hashing.chain(blocks, self._function, hashes[-1] if hashes else None)
        self._known[request] = (hashes, media)
        return hashes
