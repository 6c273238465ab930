"""The other process of the tests: opens a store, and evaluates what it is told."""

import random
import sys

import ucm

SHARDS, SHARD = 4, 1 << 16


def block(seed):
    """Return the name and the shards of a block that every process can make for itself."""
    rng = random.Random(seed)
    return rng.randbytes(16), [rng.randbytes(SHARD) for _ in range(SHARDS)]


def dump(store, seed, indexes=range(SHARDS)):
    name, shards = block(seed)
    rows = [[shards[i]] for i in indexes]
    store.wait(store.dump([name] * len(rows), list(indexes), rows))
    return True


def load(store, seed):
    """Tell whether the bytes are right."""
    name, shards = block(seed)
    rows = [[bytearray(SHARD)] for _ in shards]
    store.wait(store.load([name] * SHARDS, range(SHARDS), rows))
    return [bytes(row[0]) for row in rows] == shards


def open_store(address, segment, pipeline="UcmMooncakeStore", **options):
    options = {"mooncake_timeout_ms": 4000, **options}
    return ucm.open_pipeline(
        pipeline,
        block_size=SHARDS * SHARD,
        shard_size=SHARD,
        master_server_address=address,
        local_hostname="127.0.0.1",
        global_segment_size=segment,
        local_buffer_size=0,
        **options,
    )


if __name__ == "__main__":
    with open_store(sys.argv[1], int(sys.argv[2])) as store:
        print("ready", flush=True)
        for line in sys.stdin:
            print(repr(eval(line)), flush=True)
