"""Why the defaults are what they are: how blocks move, and from which size on a hit pays.

Engines with each way take turns, so that a busy machine is busy for all of them.
"""

import contextlib
import statistics

from engines import BLOCK, transfer
from place import check
from scenes.ttft import settled_ms

LENGTH, SAVED, SHORT = 4000, 2000, 64
ROUNDS, SAVES, REPEATS = 7, 3, 5
DEFAULT = "layer by layer, saved behind the engine (the default)"
WAYS = {
    DEFAULT: {},
    "before the forward": {"use_layerwise": False},
    "outside the batch": {"use_layerwise": False, "use_request_async_load": True},
    "layer by layer, saves waited for": {"use_async_save": False},
    "before the forward, saves waited for": {"use_layerwise": False, "use_async_save": False},
}
SIZES = (1, 2, 4, 8)  # blocks
SAVE_METHODS = ("save_kv_layer", "wait_for_save", "get_finished")


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    with contextlib.ExitStack() as stack:
        engines = {
            way: stack.enter_context(start(test, storage, i, way)) for i, way in enumerate(WAYS)
        }
        moved = ways(test, engines)
        return {"ways": moved, "sizes": sizes(test, engines[DEFAULT])}


def start(test, storage, number, way):
    # Room for one of three prompts.
    store = {"cache_buffer_capacity_gb": 0.095, "unique_id": f"e2e-way-{number}"}
    config = transfer(storage, store=store, options=WAYS[way], audited=True)
    return test.engines.start(f"way-{number}", model="smollm2", transfer=config)


def ways(test, engines):
    """Return of each way: times to the first token, and how long saves hold the engine up."""
    prompts = test.place.prompts("smollm2", 3, LENGTH)
    (saved,) = test.place.prompts("smollm2", 1, SAVED, skip=3 * LENGTH)
    (short,) = test.place.prompts("smollm2", 1, SHORT, skip=3 * LENGTH + SAVED)
    first, *others = engines.values()
    first.run(prompts, 1)
    settled_ms(first)
    for other in others:
        other.run(prompts, 1)
    found = {way: {"disk": [], "memory": [], "beside": [], "save": []} for way in engines}
    for engine in engines.values():
        engine.spent()
    for i in range(ROUNDS):
        for way, engine in engines.items():
            note = found[way]
            for where in ("disk", "memory"):
                note[where].append(engine.run([prompts[i % 3]], 1)[0]["ttft_ms"])
            tokens = engine.spent()["tokens"]
            check(set(tokens) == {"DISK", "HOST"}, f"defaults: {way}: found {tokens}")
            _, beside = engine.together([prompts[(i + 1) % 3], short], 1, {})
            note["beside"].append(beside["ttft_ms"])
            engine.spent()
            if i < SAVES:
                engine.run([saved], 1, salt=f"{way} {i}")
                lasted = engine.spent()["lasted"]
                note["save"].append(1000 * sum(lasted.get(name, 0) for name in SAVE_METHODS))
    return found


def sizes(test, engine):
    """Return by size: what computing takes, finding, and the CPU time of saving."""
    found = {}
    start = 3 * LENGTH + SAVED + SHORT
    long = test.place.prompts("smollm2", 2, LENGTH, skip=start)
    for blocks in SIZES:
        length = blocks * BLOCK + 1
        (prompt,) = test.place.prompts("smollm2", 1, length, skip=start)
        salts = [f"{blocks} {i}" for i in range(REPEATS)]
        before = settled_ms(engine)
        engine.spent()
        computed = [engine.run([prompt], 1, salt=salt)[0]["ttft_ms"] for salt in salts]
        spent = 1000 * sum(
            value for name, value in engine.spent()["seconds"].items() if "of that" not in name
        )
        cpu = (spent + settled_ms(engine) - before) / REPEATS
        engine.run(long, 1)  # most of the small ones go from memory
        disk = []
        for salt in salts:
            engine.spent()
            (result,) = engine.run([prompt], 1, salt=salt)
            if set(engine.spent()["tokens"]) == {"DISK"}:
                disk.append(result["ttft_ms"])
        check(disk, f"defaults: {blocks} blocks: none was only on the disk")
        memory = [engine.run([prompt], 1, salt=salt)[0]["ttft_ms"] for salt in salts]
        found[str(blocks)] = {"computed": computed, "disk": disk, "memory": memory, "cpu": [cpu]}
    return found


def table(results):
    middle = statistics.median
    lines = [
        f"How blocks move; {LENGTH} tokens found, {SAVED} saved, {SHORT} beside a hit, ms:", "",
        "| way | hit in memory | on disk | a short request beside that | saves hold up |",
        "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    for way, each in results["ways"].items():
        numbers = [middle(each[name]) for name in ("memory", "disk", "beside")]
        row = " | ".join(f"{number:.0f}" for number in numbers)
        lines.append(f"| {way} | {row} | {middle(each['save']):.1f} |")
    lines += ["", "What a hit saves, ms:", "",
              "| blocks | computed | found on disk | in memory | CPU to save them |",
              "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for blocks, each in results["sizes"].items():
        numbers = [middle(each[name]) for name in ("computed", "disk", "memory", "cpu")]
        lines.append(f"| {blocks} | " + " | ".join(f"{number:.0f}" for number in numbers) + " |")
    return "\n".join(lines)
