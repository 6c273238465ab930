"""After reset_prefix_cache(reset_connector=True) an engine finds nothing that was stored before."""

from engines import BLOCK, same, transfer
from place import check, say

LENGTH = 1000
BLOCKS = LENGTH // BLOCK


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    (prompt,) = test.place.prompts("tiny", 1, LENGTH)
    with test.engines.start(
        "reset", transfer=transfer(storage), enable_prefix_caching=True
    ) as engine:
        (cold,) = engine.run([prompt])
        check(engine.reset(), "vLLM refuses to reset its cache")
        engine.run([prompt])  # found in the store
        check(engine.reset(connector=True), "vLLM refuses to reset the connector")
        (again,) = engine.run([prompt])
        check(engine.reset(), "vLLM refuses to reset its cache")
        engine.run([prompt])  # what was stored since is found
        hits = engine.hits(BLOCKS)
        check("found neither by others nor after a restart" in engine.text(), "no warning")
    found = [hit[2] for hit in hits]
    check(found == [0, BLOCKS, 0, BLOCKS], f"found {found} blocks")
    same("after a reset", again, cold)
    say("reset: what was stored before is not found, what was stored since is")
    return {"found": found}
