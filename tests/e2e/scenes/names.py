"""What names blocks, with vLLM's own requests and configurations; and the stages of a pipeline.

vLLM's CPU build runs no pipeline, so that workers and scheduler are made here without an engine.
"""

import json

from place import HERE, check, say


def run(test):
    names = {seed: ask(test, seed)["names"] for seed in ("0", "1")}
    check(names["0"] == names["1"], "names: they differ with PYTHONHASHSEED")
    found = ask(test, None, test.place.models / "tiny")
    check(found["names"] == names["0"], "names: they differ without PYTHONHASHSEED")
    isolated(found["names"])
    check(not found["events"], f"names: events differ from the engine's own: {found['events']}")
    stages(found["stages"])
    say("names: the same in every process; salts, adapters and pictures keep apart; so do stages")
    return found["stages"]


def ask(test, seed, *models):
    folder = test.folder / f"seed-{seed}"
    folder.mkdir()
    log = test.engines.folder / "names.log"
    variables = {} if seed is None else {"PYTHONHASHSEED": seed}
    command = [HERE / "names.py", folder, *models]
    return json.loads(test.place.run_script(command, log, **variables).splitlines()[-1])


def isolated(names):
    """Every name is its own, but what begins alike: the block before a picture."""
    plain = names.pop("plain")
    check(names["xxhash"] == plain, "names: another algorithm of the engine's changes ours")
    del names["xxhash"]
    for key in ("picture", "other picture"):
        check(names[key][0] == plain[0], f"names: {key}: the block before it has another name")
        names[key] = names[key][1:]
    every = [name for each in (plain, *names.values()) for name in each]
    check(len(set(every)) == len(every), f"names: some are alike: {names}")


def stages(found):
    wanted = {
        "found": [[0, False], [0, False], [256, True], [0, False]],
        "same": [True, True],
        "parts": [["tp0-layers0-2"], ["tp0-layers3-3"]],
        "namespaces": 2,
        "piecewise": [True, False],
        "delivery": False,
    }
    warnings = found.pop("handshake_of_another")
    check(
        len(warnings) == 1 and "list UCMConnector first" in warnings[0],
        f"names: another connector's handshake: {warnings}",
    )
    check(found == wanted, f"names: stages: {found}")
