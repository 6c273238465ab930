"""Where a worker's KV cache lies in memory: the addresses of every block's parts in each layer.

A layer is a shard, so that layers can move one by one; a shard's segments are the dense ranges
that one block has in the layer's tensor: one, or K and V apart.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ucm.errors import UnsupportedError

MAX_SEGMENTS = 16  # more means that a block is scattered over the tensor


Rows = tuple[Any, Any, Any]  # arrays: ids, indexes and addresses of shards


@dataclasses.dataclass(frozen=True)
class _Layer:
    base: int
    stride: int  # bytes from one block to the next
    offsets: tuple[int, ...]  # of the segments, from the block's start
    segment: int  # bytes of each
    order: str  # the dimensions from the innermost to the outermost, as 'place x size'


class KvLayout:
    """The layers' tensors as shards and segments. ``names`` are the layers in order.

    Each block is cut into ``parts`` with as many of its ``heads`` each, which are stored as blocks
    of their own; every size here is a part's.
    """

    def __init__(
        self, tensors: Mapping[str, Any], num_blocks: int, parts: int = 1, heads: int = 0
    ) -> None:
        unique: dict[tuple[int, tuple[int, ...]], str] = {}
        for name in sorted(tensors, key=_natural):
            tensor = tensors[name]
            # Layers that share one cache are stored once.
            unique.setdefault((tensor.data_ptr(), tuple(tensor.shape)), name)
        if not unique:
            raise UnsupportedError("the model has no KV cache that could be stored")
        self.names = tuple(unique.values())
        places = {key: place for place, key in enumerate(unique)}
        # Of every layer, those too that share another's cache.
        self._places = {
            name: places[tensor.data_ptr(), tuple(tensor.shape)] for name, tensor in tensors.items()
        }
        layers = [_layer(name, tensors[name], num_blocks, parts, heads) for name in self.names]
        first = layers[0]
        for name, layer in zip(self.names, layers, strict=True):
            if (layer.segment, len(layer.offsets)) != (first.segment, len(first.offsets)):
                raise UnsupportedError(
                    f"{name}: a block has {len(layer.offsets)} x {layer.segment} bytes there, but "
                    f"{len(first.offsets)} x {first.segment} in {self.names[0]}; models whose "
                    "layers differ are not supported yet"
                )
        self.num_blocks = num_blocks
        self.parts = parts
        self.segment_size = first.segment
        self.segments = len(first.offsets)
        self.shard_size = first.segment * self.segments
        self.block_size = self.shard_size * len(layers)
        self.torch_dtype = str(tensors[self.names[0]].dtype)
        self.signature = [len(layers), *sorted({layer.order for layer in layers})]
        bases = [[layer.base + offset for offset in layer.offsets] for layer in layers]
        inside = np.arange(parts, dtype=np.uint64) * np.uint64(first.segment)
        # Of block 0: parts, layers, segments.
        self._starts = inside[:, None, None] + np.array(bases, np.uint64)
        self._strides = np.array([[layer.stride] for layer in layers], np.uint64)
        self._indexes = np.arange(len(layers), dtype=np.uint32)

    @property
    def shards_per_block(self) -> int:
        """How many layers have a cache of their own."""
        return len(self.names)

    @property
    def layers(self) -> Set[str]:
        """The names of all layers, those that share another's cache too."""
        return self._places.keys()

    def place(self, layer_name: str) -> int | None:
        """Return which shard a layer's cache is, or None if it has none."""
        return self._places.get(layer_name)

    def rows(
        self, ids: Sequence[bytes], blocks: Sequence[int], groups: Iterable[range] | None = None
    ) -> Iterator[Rows]:
        """Yield (ids, indexes, addresses), a row for each shard of each part of these blocks.

        ``ids``: of every block's parts. ``groups``: of layers, each of which gets rows of its own;
        None: one of all. Addresses are uint64 (rows, segments).
        """
        names = np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)
        numbers = np.array(blocks, np.uint64).reshape(-1, 1, 1, 1)
        starts = numbers * self._strides + self._starts  # blocks, parts, layers, segments
        for group in groups or (range(self.shards_per_block),):
            indexes = np.empty((len(ids), len(group)), np.uint32)
            indexes[:] = self._indexes[group.start : group.stop]
            addresses = np.ascontiguousarray(starts[:, :, group.start : group.stop])
            yield (
                names.repeat(len(group), axis=0),
                indexes.reshape(-1),
                addresses.reshape(-1, self.segments),
            )


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort 'layers.10' after 'layers.9'."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


def _layer(name: str, tensor: Any, num_blocks: int, parts: int, heads: int) -> _Layer:
    if tensor.device.type != "cpu":
        raise UnsupportedError(
            f"{name}: its KV cache is on {tensor.device}; only host memory is supported yet"
        )
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    where = f"{name}: a KV cache of shape {shape} and strides {strides}"
    if num_blocks not in shape:
        raise UnsupportedError(f"{where} has no dimension of {num_blocks} blocks")
    # K and V may stand before the blocks; nothing else does.
    block_dim = shape.index(num_blocks, 1) if shape[0] == 2 and num_blocks in shape[1:] else 0
    if shape[block_dim] != num_blocks:
        raise UnsupportedError(f"{where} has its {num_blocks} blocks in an unknown place")
    itemsize = tensor.element_size()
    rest = [d for d in range(len(shape)) if d != block_dim and shape[d] > 1]
    rest.sort(key=lambda d: strides[d])
    dense = 1
    outer: list[int] = []
    for d in rest:
        if not outer and strides[d] == dense:
            dense *= shape[d]
        else:
            outer.append(d)
    offsets = [0]
    for d in reversed(outer):
        offsets = [start + i * strides[d] for start in offsets for i in range(shape[d])]
    if len(offsets) > MAX_SEGMENTS:
        raise UnsupportedError(f"{where} scatters a block over {len(offsets)} places")
    if num_blocks > 1 and strides[block_dim] < dense:
        raise UnsupportedError(f"{where} mixes blocks with each other")
    part = {d: shape[d] for d in rest}
    if parts > 1:
        inside = [d for d in rest if d not in outer]
        if not inside or shape[inside[-1]] != heads or heads % parts:
            raise UnsupportedError(
                f"{where}: its {heads} KV heads do not lie one behind the other in a block, which "
                f"would be cut into {parts} parts"
            )
        part[inside[-1]] //= parts
    return _Layer(
        base=tensor.data_ptr(),
        stride=strides[block_dim] * itemsize,
        offsets=tuple(offset * itemsize for offset in offsets),
        segment=dense * itemsize // parts,
        order=",".join(f"{d}x{size}" for d, size in part.items() if size > 1)
        + f":{len(offsets)}x{tensor.dtype}",
    )
