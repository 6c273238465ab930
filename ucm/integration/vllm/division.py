"""How a block's bytes are divided among an engine's workers, and what each part is called."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ucm.errors import ConfigError, UnsupportedError
from ucm.hashing import rank_name
from ucm.integration.vllm.layout import KvLayout
from ucm.logs import logger


@dataclasses.dataclass(frozen=True, slots=True)
class Workers:
    """One worker's place among those that compute together, and what it holds."""

    tensor_rank: int
    tensor_size: int
    heads: int  # KV heads that it holds
    all_heads: int  # that the model has
    replicated: bool  # every tensor-parallel rank holds the same (MLA)
    stages: int = 1  # of the pipeline; each has layers of its own


@dataclasses.dataclass(frozen=True, slots=True)
class Division:
    """What one worker calls its parts of a block, and what its namespace says of the division."""

    parts: tuple[str, ...]
    keeps: bool  # False: another worker saves the same
    identity: Any
    worker: str  # who holds them: no other worker of the engine is called so


def divide(workers: Workers, layers: Sequence[str], groups: int | None) -> Division:
    """Divide blocks by rank, or by groups of KV heads if so many are asked for.

    By rank only engines of the same tensor parallelism share blocks. A group of heads is the same
    whoever holds it, and one that several ranks hold is saved by the first of them.
    """
    stage = f"-{_range(layers)}" if workers.stages > 1 else ""
    stages = ["stages", workers.stages]
    worker = rank_name(workers.tensor_rank) + stage
    if workers.replicated:
        return Division((f"all{stage}",), workers.tensor_rank == 0, ["all", stages], worker)
    if groups is None:
        return Division((worker,), True, ["tp", workers.tensor_size, stages], worker)
    if workers.all_heads % groups:
        raise ConfigError(
            f"kv_head_groups: {groups} does not divide the model's {workers.all_heads} KV heads"
        )
    size = workers.tensor_size
    copies = max(1, size // workers.all_heads)  # so many ranks hold the same heads
    first_head = workers.tensor_rank // copies * workers.heads
    each = workers.all_heads // groups
    if workers.heads % each or first_head % each:
        raise ConfigError(
            f"kv_head_groups: a worker holds {workers.heads} of {workers.all_heads} KV heads, no "
            f"whole groups of {each}; give a multiple of every engine's tensor parallelism"
        )
    held = range(first_head // each, (first_head + workers.heads) // each)
    names = tuple(f"heads{g}of{groups}{stage}" for g in held)
    keeps = workers.tensor_rank % copies == 0
    return Division(names, keeps, ["heads", groups, stages], worker)


def lay_out(
    kv_caches: Mapping[str, Any], blocks: int, workers: Workers, groups: int | None
) -> tuple[KvLayout, Division]:
    """Cut blocks by heads if that is asked for and can be done, else by rank."""
    whole = KvLayout(kv_caches, blocks)
    if groups is not None and not workers.replicated:
        division = divide(workers, whole.names, groups)
        try:
            parts = len(division.parts)
            return KvLayout(kv_caches, blocks, parts, workers.heads), division
        except UnsupportedError as error:
            logger.warning(
                "kv_head_groups: no effect, blocks are shared with engines of the same tensor "
                "parallelism only, because %s", error,
            )  # fmt: skip
    return whole, divide(workers, whole.names, None)


def _range(layers: Sequence[str]) -> str:
    """Name layers by their numbers in the model, 'layers0-14'."""
    numbers = [int(found[0]) for name in layers if (found := re.search(r"\d+", name))]
    return f"layers{min(numbers)}-{max(numbers)}" if numbers else f"layers-{len(layers)}"
