"""Geometry of a pipeline: how a block is cut into shards and segments."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

from ucm.errors import ConfigError
from ucm.options import Resolved

MAX_SEGMENTS = 4096
MAX_SHARDS = 16384
_FINGERPRINT_BYTES = 200


@dataclasses.dataclass(frozen=True)
class Layout:
    """Sizes in bytes. A block is ``shards_per_block`` shards; a shard is one row of segments.

    ``memory`` and ``device`` say where the rows' addresses point: "host", -1 or "cuda", 0...
    ``encoding`` says how layers above have encoded the bytes, "" not at all, and
    ``raw_shard_size`` how long a shard may be before that. Encoded shards are of any length up to
    ``shard_size``.
    """

    block_size: int
    shard_size: int
    segment_sizes: tuple[int, ...]
    dtype: str
    memory: str = "host"
    device: int = -1
    encoding: str = ""
    raw_shard_size: int = 0  # 0: as shard_size

    def __post_init__(self) -> None:
        if not self.raw_shard_size:
            object.__setattr__(self, "raw_shard_size", self.shard_size)

    def resized(self, shard_size: int) -> Layout:
        """Return the layout of the same shards, encoded to one segment of up to so many bytes."""
        return dataclasses.replace(
            self,
            block_size=shard_size * self.shards_per_block,
            shard_size=shard_size,
            segment_sizes=(shard_size,),
            dtype="bytes",
        )

    @property
    def shards_per_block(self) -> int:
        """How many shards make a block."""
        return self.block_size // self.shard_size

    @property
    def fingerprint(self) -> str:
        """What the layout says about the meaning of the bytes, as short text: 'bf16:4096x2'."""
        runs = [(size, len(list(run))) for size, run in itertools.groupby(self.segment_sizes)]
        text = ",".join(f"{size}x{n}" if n > 1 else str(size) for size, n in runs)
        if len(text) > _FINGERPRINT_BYTES:
            digest = hashlib.sha256(text.encode()).hexdigest()[:32]
            text = f"{len(self.segment_sizes)} segments, sha256 {digest}"
        return f"{self.dtype}:{text}"


def layout_of(config: Resolved) -> Layout | None:
    """Work out the layout from the sizes; None without any, which is enough for lookup only."""
    block, shard = config.get("block_size"), config.get("shard_size")
    tensor, sizes = config.get("tensor_size"), config.get("tensor_size_list")
    if config.get("device_id") == -1 and not (block or shard or tensor or sizes):
        return None
    if tensor and sizes:
        raise ConfigError("tensor_size and tensor_size_list are both given; keep one of them")
    named = "shard_size" if shard else "the sum of tensor_size_list,"
    if not shard:
        shard = sum(sizes) if sizes else block or tensor
    block = block or shard
    if not block:
        raise ConfigError("block_size: it is needed (bytes of one block), unless device_id is -1")
    if block % shard:
        raise ConfigError(f"block_size: {block} is not a multiple of {named} {shard}")
    if sizes and sum(sizes) != shard:
        raise ConfigError(f"tensor_size_list: its sum {sum(sizes)} is not shard_size {shard}")
    if tensor and shard % tensor:
        raise ConfigError(f"shard_size: {shard} is not a multiple of tensor_size {tensor}")
    segments = tuple(sizes) if sizes else (tensor or shard,) * (shard // (tensor or shard))
    if len(segments) > MAX_SEGMENTS:
        raise ConfigError(
            f"tensor_size: {len(segments)} segments in a shard are too many; at most {MAX_SEGMENTS}"
        )
    if block // shard > MAX_SHARDS:
        raise ConfigError(
            f"shard_size: {block // shard} shards in a block are too many; at most {MAX_SHARDS}"
        )
    dtype, memory, device = (config.get(key) for key in ("dtype", "memory", "device_id"))
    if memory == "host" or device == -1:
        return Layout(block, shard, segments, dtype)
    return Layout(block, shard, segments, dtype, memory, device)
