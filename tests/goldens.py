"""A storage directory of every version of the block file, in tests/data/blocks-VERSION.

``python tests/goldens.py VERSION`` writes that of a new version, once; what is there stays as it
is. tests/native/golden_test.cpp knows the same shapes and contents.
"""

from __future__ import annotations

import array
import itertools
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import ucm

DATA = Path(__file__).parent / "data"
# VERSION of each.
DIRECTORIES = sorted(DATA.glob("blocks-*"))


class Golden(NamedTuple):
    """Blocks of one space; each has the lengths of its shards."""

    pipeline: str
    options: dict[str, object]
    blocks: dict[int, tuple[int, ...]]

    def open(self, folder):
        """Open the store that they are of."""
        options = {**self.options, "storage_backends": str(folder), "namespace": "golden"}
        return ucm.open_pipeline(self.pipeline, **options)


PLAIN = Golden(
    "Posix",
    {
        "model": "plain",
        "block_size": 20000,
        "shard_size": 5000,
        "tensor_size_list": [3000, 2000],
    },
    {1: (5000,) * 4, 2: (5000, 1, 0, 4096), 3: (0, 0, 0, 0)},
)
TINY = Golden("Posix", {"model": "tiny", "block_size": 1}, {4: (1,)})
CODED = Golden(
    "Compress|Posix",
    {"model": "coded", "block_size": 24576, "shard_size": 8192, "dtype": "bf16"},
    {5: (8192,) * 3, 6: (8192, 2, 0)},
)
ALL = (PLAIN, TINY, CODED)


def block_id(block):
    return bytes([block]) * 16


def contents(block, shard, length):
    """Bytes that change slowly, are all the same, or look like chance, in turn."""
    kind = (block + shard) % 3
    if kind == 0:
        return bytes((37 * block + 11 * shard + i // 16) & 255 for i in range(length))
    if kind == 1:
        return bytes([block + shard]) * length
    state, found = 1000 * block + shard, bytearray()
    for _ in range(length):
        state = (state * 1664525 + 1013904223) & 0xFFFFFFFF
        found.append(state >> 24)
    return bytes(found)


def memory_of(store, n):
    """Return memory for n shards, and where their segments are."""
    size, sizes = store.layout.shard_size, store.layout.segment_sizes
    memory = [array.array("B", bytes(size)) for _ in range(n)]
    starts = list(itertools.accumulate((0, *sizes[:-1])))
    return memory, [[shard.buffer_info()[0] + start for start in starts] for shard in memory]


def names_of(block, n):
    return [block_id(block)] * n, list(range(n))


def dump(store, block, lengths):
    memory, rows = memory_of(store, len(lengths))
    for i, length in enumerate(lengths):
        memory[i][:length] = array.array("B", contents(block, i, length))
    store.wait(store.dump_data(*names_of(block, len(lengths)), rows, list(lengths)))


def load(store, block, lengths):
    """Return the shards of a block, cut to these lengths."""
    memory, rows = memory_of(store, len(lengths))
    store.wait(store.load_data(*names_of(block, len(lengths)), rows))
    return [shard.tobytes()[:length] for shard, length in zip(memory, lengths, strict=True)]


def write(folder):
    folder.mkdir(parents=True)
    for golden in ALL:
        with golden.open(folder) as store:
            for block, lengths in golden.blocks.items():
                dump(store, block, lengths)
            assert store.drain().lost == 0
    # Marks of this run; a directory that has them not is as good.
    shutil.rmtree(folder / ".ucm" / "writers")


if __name__ == "__main__":
    write(DATA / f"blocks-{int(sys.argv[1])}")
