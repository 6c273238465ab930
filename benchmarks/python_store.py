"""What a Python store costs beyond a native one: microseconds of one call, and their ratio.

Pairs of pipelines, the same but for who stands at the bottom, in the middle or on top; calls of
both take turns, one after another, and the interpreter does nothing else. What is compared does
nothing either: what is left is the way from the caller to a thread of Python and back, or, of
Fault without rules, through a native layer.

Beside them stands what the machine takes to wake a process that sleeps, which no call through a
sleeping thread can do without: half of a round trip through two pipes. --pause-ms lets threads and
cores fall asleep between calls; without it calls come one after another.
"""

import argparse
import json
import os
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
PAIRS += [("Empty", "Hands|Empty"), ("Empty", "Fault|Empty")]


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


def median_us(calls, repeat, pause_ms):
    """Time calls that take turns."""
    costs = [[] for _ in calls]
    for _ in range(repeat):
        for cost, call in zip(costs, calls, strict=True):
            if pause_ms:
                time.sleep(pause_ms / 1000)
            start = time.perf_counter_ns()
            call()
            cost.append((time.perf_counter_ns() - start) / 1000)
    return [statistics.median(cost) for cost in costs]


def measure(pair, args):
    with (
        ucm.open_pipeline(pair[0], block_size=BLOCK) as one,
        ucm.open_pipeline(pair[1], block_size=BLOCK) as other,
    ):
        both = [calls(store, args.shards) for store in (one, other)]
        figures = {}
        for name in both[0]:
            low, high = median_us([each[name] for each in both], args.repeat, args.pause_ms)
            figures[name] = {
                "without_us": round(low, 1),
                "with_us": round(high, 1),
                "more_us": round(high - low, 1),
                "more_us_a_shard": round((high - low) / args.shards, 3),
                "ratio": round(high / low, 2),
            }
        return figures


def start_echo():
    """Start a process that answers, before there are threads; return how to ask it."""
    asks, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(asks[1])
        while os.read(asks[0], 1):
            os.write(answers[1], b".")
        os._exit(0)

    def ask():
        os.write(asks[1], b".")
        os.read(answers[0], 1)

    return ask


def wake_us(ask, args):
    (both_ways,) = median_us([ask], args.repeat, args.pause_ms)
    return round(both_ways / 2, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3000)
    parser.add_argument("--pause-ms", type=float, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    echo = start_echo()
    for store in (Nothing, Passes, Hands):
        registry().register(store.__name__, store)
    wakes = [wake_us(echo, args)]
    results = {f"{pair[1]} for {pair[0]}": measure(pair, args) for pair in PAIRS}
    wakes.append(wake_us(echo, args))
    if args.json:
        print(json.dumps({"results": results, "wake_us": wakes, "machine": machine()}, indent=2))
        return
    for name, figures in results.items():
        for call, f in figures.items():
            print(
                f"{name}, {call} of {args.shards}: {f['without_us']} us and {f['with_us']} us, "
                f"{f['more_us']} us more, {f['more_us_a_shard']} a shard, {f['ratio']} times"
            )
    print(f"to wake a process: {wakes[0]} us before, {wakes[1]} us after")


if __name__ == "__main__":
    main()
