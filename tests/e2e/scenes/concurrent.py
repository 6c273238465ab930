"""Many requests at once, in too little memory, some of them aborted: every block is as it was."""

from engines import BLOCK, audited, same, transfer
from place import check, say
from scenes.modes import MODES

GROUPS, EACH, SHARED = 4, 8, 8 * BLOCK
TAIL, OUTPUTS = 300, 150
ABORTED = {3: 1, 9: 2, 14: 20, 20: 60, 27: 140}  # by place: after this step
KV_BYTES = 7 << 20  # 56 blocks of the random model; a request needs 12


def run(test):
    return {mode: one(test, mode) for mode in ("default", "async-load", "direct")}


def requests(test):
    """Return prompts, a few of which always begin alike; their lengths differ."""
    shared = test.place.prompts("tiny", GROUPS, SHARED)
    tails = test.place.prompts("tiny", GROUPS * EACH, TAIL, skip=GROUPS * SHARED)
    return [shared[i % GROUPS] + tail[: TAIL - 5 * i] for i, tail in enumerate(tails)]


def one(test, mode):
    folder = test.folder / mode
    storage = folder / "blocks"
    storage.mkdir(parents=True)
    prompts = requests(test)
    config = transfer(storage, options=MODES[mode].get("options"), audited=True)
    witnesses, preemptions, texts = [], 0, []
    for name, caching in (("first", True), ("second", False), ("third", True)):
        witnesses.append(folder / f"{name}.audit")
        with test.engines.start(
            f"concurrent-{mode}-{name}",
            transfer=config,
            environment={"AUDIT": str(witnesses[-1])},
            kv_cache_memory_bytes=KV_BYTES,
            max_model_len=2048,
            enable_prefix_caching=caching,
        ) as engine:
            results = engine.together(prompts, OUTPUTS, ABORTED)
            for i, result in enumerate(results):
                if i in ABORTED and not result:
                    continue
                complete = result and len(result["tokens"]) == OUTPUTS
                check(complete, f"{mode}: request {i} of the {name} engine has no text: {result}")
            preemptions += engine.metrics()["vllm:num_preemptions"]
            texts.append([result and result["tokens"] for result in results])
            if not caching:  # what the store has is the same each time
                once, twice = engine.run(prompts[:2]), engine.run(prompts[:2])
                for got, right in zip(twice, once, strict=True):
                    same(f"{mode}: a prompt found twice", got, right)
    check(preemptions, f"{mode}: nothing was preempted, so that was not tried")
    left = test.left(engine.segments)
    check(not left, f"{mode}: left in shared memory: {left}")
    counts = audited(witnesses)
    equal = sum(a == b == c for a, b, c in zip(*texts, strict=True) if a and b and c)
    say(
        f"concurrent: {mode}: {int(preemptions)} preemptions; {counts['loaded']} shards loaded, "
        f"all as saved; {equal} of {len(prompts)} texts equal in all engines"
    )
    return {"requests": 3 * len(prompts), "aborted": 3 * len(ABORTED), "equal_texts": equal,
            "preemptions": preemptions, "shards": counts}  # fmt: skip
