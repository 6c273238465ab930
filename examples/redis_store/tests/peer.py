"""The other process of the tests: opens a store, and evaluates what it is told."""

import random
import subprocess
import sys
from pathlib import Path

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


def open_store(url, pipeline="Redis", **options):
    return ucm.open_pipeline(
        pipeline, redis_url=url, block_size=SHARDS * SHARD, shard_size=SHARD, **options
    )


class Peer:
    """A process with a store of its own."""

    def __init__(self, url):
        self._popen = subprocess.Popen(
            [sys.executable, Path(__file__), url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, line):
        """Run an expression with ``store``, ``dump`` and ``load`` there; return what it is."""
        print(line, file=self._popen.stdin, flush=True)
        answer = self._popen.stdout.readline()
        assert answer, "the peer ended"
        return eval(answer)

    def kill(self):
        self._popen.kill()
        self._popen.wait()


if __name__ == "__main__":
    with open_store(sys.argv[1]) as store:
        for line in sys.stdin:
            print(repr(eval(line)), flush=True)
