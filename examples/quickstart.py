"""What an engine does with a store: find a prefix, load it, compute the rest, dump that.

Run it twice with the same directory: the second time nothing is computed.

    python quickstart.py /tmp/kv-blocks
"""

import hashlib
import sys
from pathlib import Path

import numpy as np

import ucm

LAYERS, TOKENS, HEADS, DIM = 8, 16, 4, 64
PLANE = TOKENS * HEADS * DIM * 2  # bytes of K, or of V, of one layer of one block

PROMPT = "The quick brown fox jumps over the lazy dog. " * 8


def block_ids(text: str) -> list[bytes]:
    """An id stands for its tokens and for all before them; here, a token is a letter."""
    ids, previous = [], b"example-model/fp16"
    for start in range(0, len(text) - TOKENS + 1, TOKENS):
        previous = hashlib.blake2b(
            previous + text[start : start + TOKENS].encode(), digest_size=16
        ).digest()
        ids.append(previous)
    return ids


def compute(block_id: bytes) -> np.ndarray:
    """Stands for the model: [layer, K or V, token, head, dimension]."""
    seed = int.from_bytes(block_id, "big")
    shape = (LAYERS, 2, TOKENS, HEADS, DIM)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def shards(ids: list[bytes], blocks: list[np.ndarray]) -> tuple:
    """Every layer of a block is a shard of its own, with two segments: K and V."""
    return (
        [block_id for block_id in ids for _ in range(LAYERS)],
        [layer for _ in ids for layer in range(LAYERS)],
        [list(layer) for block in blocks for layer in block],
    )


def main(directory: str) -> None:
    Path(directory).mkdir(parents=True, exist_ok=True)
    ids = block_ids(PROMPT)
    with ucm.open_pipeline(
        "Cache|Compress|Posix",
        storage_backends=directory,
        cache_buffer_capacity_gb=0.25,
        block_size=LAYERS * 2 * PLANE,
        shard_size=2 * PLANE,
        tensor_size=PLANE,
        dtype="fp16",
    ) as store:
        known = store.lookup_on_prefix(ids) + 1
        blocks = [np.empty((LAYERS, 2, TOKENS, HEADS, DIM), np.float16) for _ in ids[:known]]
        store.wait(store.load(*shards(ids[:known], blocks)))

        new = [compute(block_id) for block_id in ids[known:]]
        store.wait(store.dump(*shards(ids[known:], new)))
        report = store.drain()

        for block_id, block in zip(ids, blocks + new, strict=True):
            assert (block == compute(block_id)).all()
        print(f"{len(ids)} blocks: {known} loaded, {len(new)} computed")
        print(f"{report.stored} shards stored, {report.lost} lost")


if __name__ == "__main__":
    main(sys.argv[1])
