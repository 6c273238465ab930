"""One engine prefills, another one decodes, both alive; the store is between them."""

from engines import BLOCK, audited, same, transfer
from place import check, say
from scenes.failures import wait_for
from scenes.modes import MODES

LENGTH = 2000
BLOCKS = LENGTH // BLOCK


def run(test):
    return {mode: one(test, mode) for mode in ("default", "async-load")}


def stored(storage, ids):
    return [path for path in storage.rglob("*") if path.name in ids]


def one(test, mode):
    folder = test.folder / mode
    storage = folder / "blocks"
    storage.mkdir(parents=True)
    prompts = test.place.prompts("tiny", 3, LENGTH)
    options = MODES[mode].get("options")
    roles = {}
    for role in ("kv_producer", "kv_consumer"):
        config = transfer(storage, options=options, audited=True, kv_role=role)
        roles[role] = {"transfer": config, "environment": {"AUDIT": str(folder / role)}}
    with (
        test.engines.start(
            f"{mode}-producer", enable_prefix_caching=True, **roles["kv_producer"]
        ) as producer,
        test.engines.start(f"{mode}-consumer", **roles["kv_consumer"]) as consumer,
    ):
        got, right = [], []
        for prompt in prompts:
            producer.run([prompt], outputs=1)
            ids = set(test.place.block_ids(prompt, BLOCK, producer.namespace()))
            wait_for(lambda ids=ids: len(stored(storage, ids)) == BLOCKS, "blocks in the store")
            got += consumer.run([prompt], outputs=32)
        hits = consumer.hits(BLOCKS)
        for prompt in prompts:
            right += producer.run([prompt], outputs=32)
    check(hits == [(BLOCKS, 0, BLOCKS)] * 3, f"{mode}: the consumer found {hits}")
    for result, want in zip(got, right, strict=True):
        same(f"{mode}: the consumer", result, want)
    counts = audited([folder / role for role in roles])
    say(f"disaggregation: {mode}: the consumer found {hits}, of {counts['loaded']} shards")
    return {"hits": hits, "shards": counts}
