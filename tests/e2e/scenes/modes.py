"""However blocks move, a second process says bit for bit what vLLM's own prefix cache says."""

from engines import BLOCK, alike, audited, same, transfer
from place import check, say

LENGTH = 2000
BLOCKS = LENGTH // BLOCK
TWO = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
MODES = {
    "default": {},
    "async-load": {"options": {"use_layerwise": False, "use_request_async_load": True}},
    "direct": {"options": {"use_layerwise": False, "use_async_save": False}},
    "sync-save": {"options": {"use_async_save": False}},
    "files-as-they-are": {"pipeline": "Cache|Posix"},
    "small-files": {"store": {"compress_codec": "small"}},
    "no-memory": {"pipeline": "Compress|Posix"},
    "chunks": {"engine": {"max_num_batched_tokens": 512}},
    "two-workers": {"engine": TWO},
    "one-then-two-workers": {"second": TWO, "options": {"kv_head_groups": 2}},
    "two-then-one-worker": {"engine": TWO, "second": {}, "options": {"kv_head_groups": 2}},
    "wrapped": {"kv_connector": "UCMConnectorV1", "kv_connector_module_path": "wrapper"},
}
SMALL = ("default", "async-load")


def run(test):
    return {mode: one(test, mode, **MODES[mode]) for mode in (SMALL if test.small else MODES)}


def one(test, mode, engine=None, second=None, options=None, **more):
    prompts = test.place.prompts("tiny", 2, LENGTH)
    folder = test.folder / mode
    storage = folder / "blocks"
    storage.mkdir(parents=True)
    witnesses = [folder / "first.audit", folder / "second.audit"]
    first_config = transfer(storage, options=options, audited=True, **more)
    second_config, wanted = first_config, (BLOCKS, 0, BLOCKS)
    if mode == "chunks":  # a beginning is found, and the rest computed in several steps
        prompts = test.place.prompts("tiny", 2, 2 * LENGTH)
        options = {**(options or {}), "hit_ratio": 0.5}
        second_config = transfer(storage, options=options, audited=True, **more)
        wanted = (2 * LENGTH // BLOCK, 0, BLOCKS)

    with test.engines.start(
        f"{mode}-first",
        transfer=first_config,
        environment={"AUDIT": str(witnesses[0])},
        enable_prefix_caching=True,
        **(engine or {}),
    ) as first:
        cold = first.run([prompt[: BLOCKS * BLOCK + 1] for prompt in prompts])
        right = first.run(prompts)
        found = first.hits(wanted[0])[-2:]
        check(found == [(wanted[0], BLOCKS, 0)] * 2, f"{mode}: the first engine found {found}")
    check(not test.left(first.segments), f"{mode}: left behind: {test.left(first.segments)}")

    with test.engines.start(
        f"{mode}-second",
        transfer=second_config,
        environment={"AUDIT": str(witnesses[1])},
        **((engine or {}) if second is None else second),
    ) as other:
        hot = other.run(prompts)
        found = other.hits(wanted[0])
        check(found == [wanted] * 2, f"{mode}: the second engine found {found}, not {wanted}")
    # Engines of one and of two workers add up in another order.
    compare, gaps = (same if second is None else alike), []
    for i, (got, want) in enumerate(zip(hot, right, strict=True)):
        gaps.append(compare(f"{mode}: prompt {i}, found in the store", got, want) or 0.0)
    counts = audited(witnesses) if mode != "wrapped" else None
    word = f"within {max(gaps):.3f} of" if second is not None else "as"
    say(f"modes: {mode}: {word} vLLM's own hit; shards: {counts or 'not hashed'}")
    rows = {"cold": cold, "local hit": right, "external hit": hot}
    times = {name: [round(r["ttft_ms"], 1) for r in row] for name, row in rows.items()}
    return {"ttft_ms": times, "shards": counts, "gap": max(gaps)}
