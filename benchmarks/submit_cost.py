"""What it costs to submit one transfer of many shards: microseconds of the caller's time.

The store is Empty, which answers inside the call: the work of layers is not in the figure, the
checks of the arguments and one callback a shard are.
"""

import argparse
import json
import statistics
import time

import ucm
from ucm.cli._measure import machine


def inputs(kind, shards):
    """Ids, indexes and addresses (one segment a shard) as an engine may hold them."""
    ids = [i.to_bytes(16, "big") for i in range(shards)]
    indexes, addresses = [0] * shards, [[4096 * (i + 1)] for i in range(shards)]
    if kind == "lists":
        return ids, indexes, addresses
    import numpy as np

    return (
        np.frombuffer(b"".join(ids), np.uint8).reshape(shards, 16),
        np.array(indexes, np.uint32),
        np.array(addresses, np.uint64),
    )


def measure(store, operation, arguments, repeat):
    submit = store.load_data if operation == "load" else store.dump_data
    costs = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        task = submit(*arguments)
        costs.append((time.perf_counter_ns() - start) / 1000)
        assert store.check(task)
    return {"median_us": statistics.median(costs), "min_us": min(costs), "max_us": max(costs)}


def run(shards, repeat):
    with ucm.open_pipeline("Empty", block_size=4096) as store:
        return {
            f"{operation} of {shards} shards from {kind}": measure(
                store, operation, inputs(kind, shards), repeat
            )
            for operation in ("load", "dump")
            for kind in ("arrays", "lists")
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=2000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    results = run(args.shards, args.repeat)
    if args.json:
        print(json.dumps({"results": results, "machine": machine()}, indent=2))
        return
    for name, figures in results.items():
        print(f"{name}: {figures['median_us']:.1f} us (min {figures['min_us']:.1f})")


if __name__ == "__main__":
    main()
