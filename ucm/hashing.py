"""Names of blocks: what the vLLM connector calls the blocks of a prompt, without vLLM."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ucm.errors import InvalidError
from ucm.weights import adapter_identity

# What stands before the first block, and the seed that vLLM makes it from.
NONE_HASH_SEED = "vllm-none-hash"

_PURPOSE = b"ucm block id 1"  # other formulas get another number


def sha256(value: Any) -> bytes:
    """Hash as vLLM's prefix_caching_hash_algo ``sha256`` does."""
    return hashlib.sha256(pickle.dumps(value, protocol=5)).digest()


def sha256_cbor(value: Any) -> bytes:
    """Hash as vLLM's prefix_caching_hash_algo ``sha256_cbor`` does."""
    return hashlib.sha256(_cbor(value)).digest()


ALGORITHMS: dict[str, Callable[[Any], bytes]] = {"sha256": sha256, "sha256_cbor": sha256_cbor}


def _cbor(value: Any) -> bytes:
    """Encode as RFC 8949 section 4.2 says, what blocks are hashed from."""
    if value is None:
        return b"\xf6"
    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return _cbor_head(0, value) if value >= 0 else _cbor_head(1, -1 - value)
    if isinstance(value, bytes):
        return _cbor_head(2, len(value)) + value
    if isinstance(value, str):
        return _cbor_head(3, len(text := value.encode())) + text
    if isinstance(value, (tuple, list)):
        return _cbor_head(4, len(value)) + b"".join(map(_cbor, value))
    raise InvalidError(f"sha256_cbor: {type(value).__name__} cannot be hashed")


def _cbor_head(kind: int, number: int) -> bytes:
    if number < 24:
        return bytes([kind << 5 | number])
    for code, width in ((24, 1), (25, 2), (26, 4), (27, 8)):
        if number < 1 << 8 * width:
            return bytes([kind << 5 | code]) + number.to_bytes(width, "big")
    raise InvalidError(f"sha256_cbor: {number} has more than 64 bits")


def chain(
    blocks: Iterable[tuple[Sequence[int], tuple[Any, ...] | None]],
    hash_function: Callable[[Any], bytes],
    parent: bytes | None = None,
) -> list[bytes]:
    """Hash blocks of (tokens, extra keys), each over the one before it."""
    previous = parent or hash_function(NONE_HASH_SEED)
    hashes = []
    for tokens, extra_keys in blocks:
        previous = hash_function((previous, tuple(map(int, tokens)), extra_keys))
        hashes.append(previous)
    return hashes


def told_apart(by: bytes, block_hashes: Iterable[bytes]) -> list[bytes]:
    """Return other hashes for what differs in more than the hashes say."""
    return [hashlib.sha256(by + each).digest() for each in block_hashes]


class Namer:
    """Makes block ids of block hashes, for one rank of one namespace."""

    def __init__(self, namespace: str, rank: str) -> None:
        parts = b"\0".join((_PURPOSE, namespace.encode(), rank.encode(), b""))
        self._prefix = hashlib.sha256(parts)

    def __call__(self, block_hashes: Iterable[bytes]) -> list[bytes]:
        """Return 16 bytes for each."""
        ids = []
        for block_hash in block_hashes:
            named = self._prefix.copy()
            named.update(block_hash)
            ids.append(named.digest()[:16])
        return ids


class Namers:
    """Makes the ids of all parts of a block that one worker holds, one after the other."""

    def __init__(self, namespace: str, parts: Sequence[str]) -> None:
        self._namers = [Namer(namespace, part) for part in parts]

    def __call__(self, block_hashes: Iterable[bytes]) -> list[bytes]:
        """Return 16 bytes for each part of each block."""
        named = [namer(block_hashes) for namer in self._namers]
        return [part for parts in zip(*named, strict=True) for part in parts]


def rank_name(tensor_rank: int) -> str:
    """Name the part of a block's bytes that one worker holds."""
    return f"tp{tensor_rank}"


def block_ids(
    tokens: Sequence[int],
    block_tokens: int,
    namespace: str,
    *,
    rank: int = 0,
    part: str | None = None,
    algorithm: str = "sha256",
    cache_salt: str | None = None,
    lora: tuple[str, str] | None = None,
) -> list[bytes]:
    """Return the ids under which the vLLM connector keeps the full blocks of a text prompt.

    ``namespace`` is what the connector logs at its start; ``rank`` is the tensor-parallel rank, or
    ``part`` what the connector logs as such.
    ``algorithm`` is vLLM's ``prefix_caching_hash_algo``, ``sha256`` (its default) or
    ``sha256_cbor``; ``lora`` is the adapter's (name, path), which is looked into if it is there.

    >>> [i.hex() for i in block_ids(range(5), 2, "example")]
    ['2e4c6af31cacae5086fe3e8db9d43436', '21179291c37ab5faa2fed7ce4fae9ed0']
    """
    if block_tokens < 1:
        raise InvalidError(f"block_tokens: {block_tokens} is not a number of tokens")
    every = (("lora", *lora),) if lora else ()
    first = (("cache_salt", cache_salt),) if cache_salt else ()
    whole = len(tokens) // block_tokens * block_tokens
    blocks = [
        (tokens[i : i + block_tokens], every + (first if i == 0 else ()) or None)
        for i in range(0, whole, block_tokens)
    ]
    hash_function = ALGORITHMS.get(algorithm)
    if hash_function is None:
        raise InvalidError(f"algorithm: {algorithm!r} is not one of {', '.join(ALGORITHMS)}")
    hashes = chain(blocks, hash_function)
    adapter = adapter_identity(lora[1]) if lora else b""
    return Namer(namespace, part or rank_name(rank))(
        told_apart(adapter, hashes) if adapter else hashes
    )
