"""Multi-head latent attention: all workers hold the same, and it is stored once.

vLLM's CPU build has no prefix cache for it, and computes a prompt behind a hit only where one token
of it is left. So what is right is said by an engine that goes on from what it has computed itself.
One worker adds up in another order than two, and a random model's words hang on that: the bytes
that it loads are compared, and that it says the same each time.
"""

from engines import audited, same, transfer
from place import check, say
from scenes.failures import blocks, wait_for

BLOCK, BLOCKS = 16, 60  # the tokens of a block, all that its kernel takes
OUTPUTS = 8
TWO = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    prompts = test.place.prompts("mla", 2, BLOCK * BLOCKS)
    said, found, witnesses = {}, {}, []
    for name, workers in (("two", TWO), ("one", {}), ("two-again", TWO)):
        witnesses.append(test.folder / f"{name}.audit")
        with test.engines.start(
            f"mla-{name}", model="mla", block_size=BLOCK, **workers,
            transfer=transfer(storage, audited=True), environment={"AUDIT": str(witnesses[-1])},
        ) as engine:  # fmt: skip
            if name == "two":
                right = engine.run(prompts, OUTPUTS + 1)
                wait_for(lambda: len(blocks(storage)) >= 2 * BLOCKS, "mla: blocks in the store")
                files = len(blocks(storage))
                check(files == 2 * BLOCKS, f"mla: {2 * BLOCKS} blocks are stored in {files} files")
                for again, want in zip(
                    engine.run(prompts, OUTPUTS + 1, salt="not found"), right, strict=True
                ):
                    same("mla: computed twice", again, want)
                # The first token came out of the prompt, the others out of the KV cache.
                prompts = [p + r["tokens"][:1] for p, r in zip(prompts, right, strict=True)]
                right = [{key: r[key][1:] for key in ("tokens", "logprobs")} for r in right]
            said[name] = engine.run(prompts, OUTPUTS), engine.run(prompts, OUTPUTS)
            found[name] = [hit[2] for hit in engine.hits(BLOCKS)][-4:]
    check(all(hits == [BLOCKS] * 4 for hits in found.values()), f"mla: found {found}")
    for name, (results, again) in said.items():
        wanted = results if name == "one" else right
        for got, second, want in zip(results, again, wanted, strict=True):
            same(f"mla: {name}", got, want)
            same(f"mla: {name}, again", second, want)
    counts = audited(witnesses)
    say(
        "mla: stored once, found by one worker and by two, which say what vLLM says that goes on "
        f"from its own KV cache; a prompt computed twice is the same; shards: {counts}"
    )
    return {"shards": counts}
