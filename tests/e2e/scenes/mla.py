"""Multi-head latent attention: all workers hold the same, and it is stored once.

vLLM's CPU build computes a prompt behind a hit only where one token of it is left. What it says is
not compared: two runs without any hit said different things, and why was not found out.
"""

from engines import audited, transfer
from place import check, say
from scenes.failures import blocks

BLOCK, BLOCKS = 16, 60  # the tokens of a block, all that its kernel takes
LENGTH = BLOCK * BLOCKS + 1
TWO = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    prompts = test.place.prompts("mla", 2, LENGTH)
    found, witnesses = {}, []
    for name, workers in (("two", TWO), ("one", {}), ("two-again", TWO)):
        witnesses.append(test.folder / f"{name}.audit")
        with test.engines.start(
            f"mla-{name}", model="mla", block_size=BLOCK, **workers,
            transfer=transfer(storage, audited=True), environment={"AUDIT": str(witnesses[-1])},
        ) as engine:  # fmt: skip
            engine.run(prompts)
            found[name] = [hit[2] for hit in engine.hits(BLOCKS)]
        if name == "two":
            files = len(blocks(storage))
            check(files == 2 * BLOCKS, f"mla: {2 * BLOCKS} blocks are stored in {files} files")
    wanted = {"two": [0, 0], "one": [BLOCKS] * 2, "two-again": [BLOCKS] * 2}
    check(found == wanted, f"mla: found {found}")
    counts = audited(witnesses)
    say(f"mla: stored once, found by one worker and by two, all as saved: {counts}")
    return {"shards": counts}
