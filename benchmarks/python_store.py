"""What a Python store costs beyond a native one: microseconds of one call, and their ratio.

Pairs of pipelines, the same but for who stands at the bottom or in the middle; calls of both take
turns, one after another, and the interpreter does nothing else. The Python store does nothing
either: what is left is the way from the caller to a thread of Python and back.
"""

import argparse
import json
import statistics
import time

import ucm
from ucm.cli._measure import machine
from ucm.registry import registry

BLOCK = 4096


class Nothing(ucm.StoreBase):
    """Takes every dump and has nothing, as Empty does."""

    def lookup(self, block_ids):
        return [False] * len(block_ids)

    def dump(self, block_ids, shard_index, shards):
        return [False] * len(block_ids)

    def load(self, block_ids, shard_index, shards):
        return [BLOCK] * len(block_ids)


class Passes(ucm.LayerBase):
    """Has no method of its own."""


class Hands(ucm.LayerBase):
    """Hands transfers on, from Python."""

    def dump(self, block_ids, shard_index, shards):
        return self.lower.dump(block_ids, shard_index, shards)


PAIRS = [("Empty", "Nothing"), ("Compress|Empty", "Compress|Nothing"), ("Empty", "Passes|Empty")]
PAIRS += [("Empty", "Hands|Empty")]


def calls(store, shards):
    """Name the calls; each of them is a batch that is waited for."""
    ids = [i.to_bytes(16, "big") for i in range(shards)]
    memory = bytearray(BLOCK * shards)
    rows = [[memoryview(memory)[i * BLOCK : (i + 1) * BLOCK]] for i in range(shards)]
    indexes = [0] * shards
    return {
        "lookup": lambda: store.lookup(ids),
        "dump": lambda: store.wait(store.dump(ids, indexes, rows)),
    }


def measure(pair, shards, repeat):
    with (
        ucm.open_pipeline(pair[0], block_size=BLOCK) as native,
        ucm.open_pipeline(pair[1], block_size=BLOCK) as python,
    ):
        both = [calls(store, shards) for store in (native, python)]
        figures = {}
        for name in both[0]:
            costs = [[], []]
            for _ in range(repeat):
                for cost, each in zip(costs, both, strict=True):
                    start = time.perf_counter_ns()
                    each[name]()
                    cost.append((time.perf_counter_ns() - start) / 1000)
            low, high = (statistics.median(cost) for cost in costs)
            figures[name] = {
                "native_us": round(low, 1),
                "python_us": round(high, 1),
                "more_us": round(high - low, 1),
                "ratio": round(high / low, 2),
            }
        return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    for store in (Nothing, Passes, Hands):
        registry().register(store.__name__, store)
    results = {
        f"{pair[1]} for {pair[0]}": measure(pair, args.shards, args.repeat) for pair in PAIRS
    }
    if args.json:
        print(json.dumps({"results": results, "machine": machine()}, indent=2))
        return
    for name, figures in results.items():
        for call, f in figures.items():
            print(
                f"{name}, {call} of {args.shards}: {f['native_us']} us and {f['python_us']} us, "
                f"{f['more_us']} us more, {f['ratio']} times"
            )


if __name__ == "__main__":
    main()
