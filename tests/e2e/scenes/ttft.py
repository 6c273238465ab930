"""Time to the first token of a 4,000-token prompt, offline, in rounds that take turns.

Each round has a hit in vLLM's own prefix cache, one in Cache's memory, one in files through
Compress, and one in vLLM's ExampleConnector; some have the last two with files that are not in
the page cache; a few have a prompt of which 80 % is found, and one that is not found at all.
Medians are compared, those of ratios within a round.
"""

import os
import statistics
import time

from engines import BLOCK, transfer
from place import Failed, check, say

LENGTH, ROUNDS, COLD_ROUNDS, SLOW_ROUNDS = 4000, 20, 8, 3
BLOCKS = LENGTH // BLOCK
MEMORY = "UCM, hit in memory"
DISK = "UCM, hit on disk"
COLD = "UCM, hit on disk, not in the page cache"
LOCAL = "vLLM's prefix cache"
EXAMPLE = "ExampleConnector, hit"
EXAMPLE_COLD = "ExampleConnector, hit, not in the page cache"
PART = "UCM, 80 % hit"
FULL = "UCM, full compute"
EXAMPLE_FULL = "ExampleConnector, full compute"
PLAIN_FULL = "no connector, full compute"
# What is measured, against what, and the most that the median of the ratios may be.
PROMISED = (
    (MEMORY, LOCAL, 1.15),
    (DISK, LOCAL, 1.5),
    (MEMORY, EXAMPLE, 1),
    (DISK, EXAMPLE, 1),
    (COLD, EXAMPLE_COLD, 1),
)
FASTER = 15  # is a hit than full compute, at least
MISS_CPU_MS = 3  # of the thread that runs the model, at most
IDLE_MS = 2  # a second: what threads of the store take that only look around
MOST_S = 60  # for storing what one run left


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
        times = rounds(memory, disk, other, plain, prompts, fresh, stores)
        found = {MEMORY: memory.spent()["tokens"], DISK: disk.spent()["tokens"]}
        spent = miss(memory, fresh[-1:])
    check_found(found, len(times[DISK]) + len(times[COLD]))
    return {"found_tokens": found, **judge(times, sizes, spent)}


def miss(engine, prompt):
    """Return what a prompt that is not found costs: ms of CPU, by method and of other threads."""
    before = engine.store_ms()
    engine.run(prompt, outputs=1)
    seconds = engine.spent()["seconds"]
    by_method = {name: 1000 * value for name, value in seconds.items()}
    return {**by_method, "of threads of the store": settled_ms(engine) - before}


def settled_ms(engine):
    """Return the CPU time of the store's threads, once they have stored what they were given."""
    before = engine.store_ms()
    for _ in range(MOST_S):
        time.sleep(1)
        now = engine.store_ms()
        if now - before < IDLE_MS:
            return now
        before = now
    raise Failed(f"ttft: threads of the store are busy for {MOST_S} s")


def forget(folder):
    """Let go of what the page cache has of files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rounds(memory, disk, other, plain, prompts, fresh, stores):
    times, turn = {}, iter(range(10**6))

    def note(name, results):
        times.setdefault(name, []).append(results[0]["ttft_ms"])

    for i in range(ROUNDS):
        note(LOCAL, memory.run(prompts[:1], 1))
        check(memory.reset(), "ttft: vLLM refuses to reset its cache")
        note(MEMORY, memory.run(prompts[:1], 1))
        note(DISK, disk.run([prompts[next(turn) % 3]], 1))
        note(EXAMPLE, other.run(prompts[:1], 1))
        if i < COLD_ROUNDS:
            for folder in stores.values():
                forget(folder)
            note(COLD, disk.run([prompts[next(turn) % 3]], 1))
            note(EXAMPLE_COLD, other.run(prompts[:1], 1))
        if i < SLOW_ROUNDS:
            tail = fresh[3 * i + 2]
            note(PART, memory.run([prompts[1][: LENGTH * 4 // 5] + tail[: LENGTH // 5]], 1))
            note(FULL, memory.run(fresh[3 * i : 3 * i + 1], 1))
            note(EXAMPLE_FULL, other.run(fresh[3 * i : 3 * i + 1], 1))
            note(PLAIN_FULL, plain.run(fresh[3 * i : 3 * i + 1], 1))
    return times


def check_found(found, hits):
    say(f"ttft: tokens found: {found}")
    tokens = BLOCKS * BLOCK
    on_disk = found[DISK].get("DISK", 0)
    # What is used again and again stays in memory, however little there is.
    check(on_disk > 0.8 * hits * tokens, f"ttft: not from the disk: {found[DISK]}")
    in_memory = found[MEMORY].get("HOST", 0)
    check(in_memory >= ROUNDS * tokens, f"ttft: not from memory: {found[MEMORY]}")


def judge(times, sizes, spent):
    """Timings are for who reads them: a busy machine fails no scene."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    promises = []

    def promise(what, value, bound, met):
        promises.append({"what": what, "measured": value, "promised": bound, "met": met})

    for name, other, most in PROMISED:
        value = statistics.median(a / b for a, b in zip(times[name], times[other], strict=True))
        promise(f"{name}, against {other}", round(value, 3), f"at most {most}", value <= most)
    for name in (MEMORY, DISK):
        value = medians[FULL] / medians[name]
        what = f"full compute against {name}"
        promise(what, round(value, 1), f"at least {FASTER}", value >= FASTER)
    miss_ms = sum(v for name, v in spent.items() if not name.startswith("of "))
    what = "CPU of the thread that runs the model, for a miss, ms"
    promise(what, round(miss_ms, 2), f"at most {MISS_CPU_MS}", miss_ms <= MISS_CPU_MS)
    ratio = sizes["blocks"] / 3 / sizes["example"]
    what = "bytes on the disk, against ExampleConnector"
    promise(what, round(ratio, 3), "less than 1", ratio < 1)
    return {
        "ttft_ms": {name: [round(v, 1) for v in values] for name, values in times.items()},
        "promises": promises,
        "bytes": {
            "UCM, 3 prompts": sizes["blocks"],
            "ExampleConnector, 1 prompt": sizes["example"],
        },
        "miss_cpu_ms": {name: round(value, 3) for name, value in spent.items()},
    }


def table(results):
    lines = [f"Time to the first token, {LENGTH} tokens, ms:", ""]
    lines += ["| run | median | least | most | times |", "| --- | --- | --- | --- | --- |"]
    for name, values in results["ttft_ms"].items():
        middle = statistics.median(values)
        lines.append(
            f"| {name} | {middle:.0f} | {min(values):.0f} | {max(values):.0f} | {len(values)} |"
        )
    lines += ["", "| what | measured | promised | |", "| --- | --- | --- | --- |"]
    for each in results["promises"]:
        word = "met" if each["met"] else "not met"
        lines.append(f"| {each['what']} | {each['measured']} | {each['promised']} | {word} |")
    store = results["miss_cpu_ms"]["of threads of the store"]
    lines.append(f"| CPU of the store's own threads, for a miss, ms | {store:.0f} | | |")
    lines += [f"| bytes of {what} | {value:,} | | |" for what, value in results["bytes"].items()]
    return "\n".join(lines)
