"""A process that dumps blocks, or loads them, until it is killed."""

import hashlib
import json
import random
import sys

import ucm
from ucm.conformance import kit

SHARDS = 6
SIZES = {"block_size": SHARDS * 5000, "tensor_size_list": (3000, 2000)}


def block_of(number):
    """Make the block of a number, the same in every process."""
    rng = random.Random(number)
    name = hashlib.md5(str(number).encode()).digest()
    return kit.Block(name, tuple(rng.randbytes(5000) for _ in range(SHARDS)))


def write(first, config):
    store = ucm.open_pipeline(config)
    order = random.Random(first)
    for number in range(first, first + 1000):
        pieces = order.sample(block_of(number).pieces(), SHARDS)
        dumps = [kit.start_dump(store, pieces[i : i + 2]) for i in range(0, SHARDS, 2)]
        for dump in dumps:
            store.wait(dump.task)
        print(number, flush=True)


def read(config):
    store = ucm.open_pipeline(config)
    blocks = [block_of(number) for number in range(20)]
    while True:
        kit.expect_published(store, *blocks)
        print("read", flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    if sys.argv[1] == "read":
        read(given)
    else:
        write(int(sys.argv[1]), given)
