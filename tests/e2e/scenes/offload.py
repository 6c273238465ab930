"""A prompt that the engine's own memory had no room to keep is served again from the store."""

from engines import BLOCK, same, transfer
from place import check, say

LENGTH = 4000
BLOCKS = LENGTH // BLOCK
KV_BYTES = 40 << 17  # of the random model: room for 40 blocks, where a prompt needs 32
CACHE_BYTES = 4 << 20  # less than a prompt and a half has
BESIDE_BYTES = 136 << 20  # what docs/vllm.md says a worker takes beside that, with eight threads
WARM, MORE = 3, 20  # times all prompts, each time with other blocks
GROWN_BYTES = 16 << 20  # where 240 MB are moved; tests/integration/test_vllm_memory.py is finer


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    prompts = test.place.prompts("tiny", 3, LENGTH)
    found = {}
    with test.engines.start(
        "offload-alone", enable_prefix_caching=True, kv_cache_memory_bytes=8 * KV_BYTES
    ) as alone:
        alone.run(prompts)
        right = alone.run(prompts)
        without = alone.memory()  # with more room for KV cache
    memory = {}
    for name, options in (("default", {}), ("half by hit_ratio", {"hit_ratio": 0.5})):
        store = {"cache_buffer_capacity_gb": CACHE_BYTES / (1 << 30)}
        config = transfer(storage, options=options, store=store)
        with test.engines.start(
            f"offload-{name.split()[0]}", transfer=config,
            enable_prefix_caching=True, kv_cache_memory_bytes=KV_BYTES, max_model_len=4608,
        ) as engine:  # fmt: skip
            engine.run(prompts)
            got = engine.run(prompts)
            hits = engine.hits(BLOCKS)
            memory[name] = engine.memory() - without
            if not options:
                grown = steady(engine, prompts)
        again = found[name] = hits[len(prompts) :]
        wanted = BLOCKS if not options else BLOCKS // 2
        check(
            all(sum(hit[1:]) == wanted and hit[2] for hit in again),
            f"offload, {name}: found {again}",
        )
        for one, want in zip(got, right, strict=True) if not options else ():
            same("offload: served again", one, want)
    most = max(memory.values())
    check(most < CACHE_BYTES + BESIDE_BYTES, f"offload: the connector took {most:,} bytes")
    say(f"offload: evicted prompts are found again: {found['default']}; bytes taken: {memory}")
    return {"hits": found, "bytes taken": memory, "grown with more requests": grown}


def steady(engine, prompts):
    """Return by how much the engine's memory grows with many more requests."""

    def turned(times):
        """The prompts with other beginnings, so that none of their blocks is known."""
        return [prompt[97 * i :] + prompt[: 97 * i] for i in times for prompt in prompts]

    engine.run(turned(range(1, WARM + 1)), 1)
    before = engine.memory()
    engine.run(turned(range(WARM + 1, WARM + 1 + MORE)), 1)
    grown = engine.memory() - before
    check(grown < GROWN_BYTES, f"offload: {MORE * len(prompts)} requests took {grown:,} bytes")
    say(f"offload: {MORE * len(prompts)} more requests: the peak of memory grew by {grown:,} bytes")
    return grown
