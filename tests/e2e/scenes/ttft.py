"""Time to the first token of a 4,000-token prompt, offline, in rounds that take turns.

Each round has a hit in vLLM's own prefix cache, one in Cache's memory, one on the disk through
Compress, and one in vLLM's ExampleConnector; a few have a prompt of which 80 % is found, and one
that is not found at all. Medians are compared, those of ratios within a round.
"""

import statistics

from engines import BLOCK, transfer
from place import check, say

LENGTH, ROUNDS, SLOW_ROUNDS = 4000, 20, 3
BLOCKS = LENGTH // BLOCK
MEMORY = "UCM, hit in memory"
DISK = "UCM, hit on disk"
LOCAL = "vLLM's prefix cache"
EXAMPLE = "ExampleConnector, hit"
PART = "UCM, 80 % hit"
FULL = "UCM, full compute"
EXAMPLE_FULL = "ExampleConnector, full compute"
PLAIN_FULL = "no connector, full compute"
# A hit's median against the prefix cache, at most; full compute's against a hit, at least.
PROMISED = {MEMORY: 1.15, DISK: 1.5}
FASTER = 15
MISS_CPU_MS = 3


def run(test):
    prompts = test.place.prompts("smollm2", 3, LENGTH)
    fresh = test.place.prompts("smollm2", 3 * SLOW_ROUNDS + 1, LENGTH, skip=3 * LENGTH)
    stores = {name: test.folder / name for name in ("blocks", "example")}
    for storage in stores.values():
        storage.mkdir()
    example = {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(stores["example"])},
    }
    # Room for one of three prompts, and not the segment of the other engine.
    small_memory = {"cache_buffer_capacity_gb": 0.095, "unique_id": "e2e-disk"}
    engine = {"model": "smollm2", "max_num_batched_tokens": 8192}
    ucm = transfer(stores["blocks"], audited=True)
    small = transfer(stores["blocks"], store=small_memory, audited=True)
    with (
        test.engines.start(
            "ttft-ucm", transfer=ucm, enable_prefix_caching=True, **engine
        ) as memory,
        test.engines.start("ttft-disk", transfer=small, **engine) as disk,
        test.engines.start("ttft-example", transfer=example, **engine) as other,
        test.engines.start("ttft-plain", **engine) as plain,
    ):
        memory.run(prompts)
        other.run(prompts[:1])
        sizes = {name: test.stored(folder) for name, folder in stores.items()}
        disk.run(prompts)
        disk.spent()
        times = rounds(memory, disk, other, plain, prompts, fresh)
        found = {MEMORY: memory.spent()["tokens"], DISK: disk.spent()["tokens"]}
        memory.run(fresh[-1:], outputs=1)
        spent = memory.spent()["seconds"]
    check_found(found)
    return {"found_tokens": found, **judge(times, sizes, spent)}


def rounds(memory, disk, other, plain, prompts, fresh):
    times = {}

    def note(name, results):
        times.setdefault(name, []).append(results[0]["ttft_ms"])

    for i in range(ROUNDS):
        note(LOCAL, memory.run(prompts[:1], 1))
        check(memory.reset(), "ttft: vLLM refuses to reset its cache")
        note(MEMORY, memory.run(prompts[:1], 1))
        note(DISK, disk.run([prompts[i % 3]], 1))
        note(EXAMPLE, other.run(prompts[:1], 1))
        if i < SLOW_ROUNDS:
            tail = fresh[3 * i + 2]
            note(PART, memory.run([prompts[1][: LENGTH * 4 // 5] + tail[: LENGTH // 5]], 1))
            note(FULL, memory.run(fresh[3 * i : 3 * i + 1], 1))
            note(EXAMPLE_FULL, other.run(fresh[3 * i : 3 * i + 1], 1))
            note(PLAIN_FULL, plain.run(fresh[3 * i : 3 * i + 1], 1))
    return times


def check_found(found):
    say(f"ttft: tokens found: {found}")
    tokens = ROUNDS * BLOCKS * BLOCK
    check(found[DISK].get("DISK", 0) > 0.9 * tokens, f"ttft: not from the disk: {found[DISK]}")
    check(found[MEMORY].get("HOST", 0) >= tokens, f"ttft: not from memory: {found[MEMORY]}")


def judge(times, sizes, spent):
    medians = {name: statistics.median(values) for name, values in times.items()}
    against = {
        name: statistics.median(a / b for a, b in zip(times[name], times[LOCAL], strict=True))
        for name in (MEMORY, DISK, EXAMPLE)
    }
    miss_ms = 1000 * sum(v for name, v in spent.items() if not name.startswith("of that"))
    # Timings are for who reads them: a busy machine fails no promise.
    promises = [
        (f"{name}, against the prefix cache", round(against[name], 3), f"at most {most}")
        for name, most in PROMISED.items()
    ]
    promises += [
        (
            f"full compute against {name}",
            round(medians[FULL] / medians[name], 1),
            f"at least {FASTER}",
        )
        for name in (MEMORY, DISK)
    ]
    promises.append(
        ("the connector's CPU for a miss, ms", round(miss_ms, 2), f"at most {MISS_CPU_MS}")
    )
    promises.append(
        ("ExampleConnector's hit against the prefix cache", round(against[EXAMPLE], 3), "slower")
    )
    return {
        "ttft_ms": {name: [round(v, 1) for v in values] for name, values in times.items()},
        "promises": promises,
        "bytes": {
            "UCM, 3 prompts": sizes["blocks"],
            "ExampleConnector, 1 prompt": sizes["example"],
        },
        "miss_cpu_ms": {name: round(1000 * value, 3) for name, value in spent.items()},
    }


def table(results):
    lines = [f"Time to the first token, {LENGTH} tokens, ms:", ""]
    lines += ["| run | median | least | most | times |", "| --- | --- | --- | --- | --- |"]
    for name, values in results["ttft_ms"].items():
        middle = statistics.median(values)
        lines.append(
            f"| {name} | {middle:.0f} | {min(values):.0f} | {max(values):.0f} | {len(values)} |"
        )
    lines += ["", "| what | measured | promised |", "| --- | --- | --- |"]
    lines += [f"| {what} | {value} | {promised} |" for what, value, promised in results["promises"]]
    lines += [f"| bytes of {what} | {value:,} | |" for what, value in results["bytes"].items()]
    return "\n".join(lines)
