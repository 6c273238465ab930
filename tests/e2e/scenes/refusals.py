"""An engine that is configured wrongly does not start, and says where and what to do."""

from engines import transfer
from place import Failed, check, say
from server import serve, written


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    said = {}
    for name, (file, words) in files(test, storage).items():
        config = transfer(None, kv_connector_extra_config={"UCM_CONFIG_FILE": str(file)})
        said[name] = refused(test, name, config, [str(file), *words])
    file, words = files(test, storage)["no folder"]
    config = transfer(
        None,
        kv_connector="UCMConnectorV1",
        kv_connector_module_path="wrapper",
        kv_connector_extra_config={"UCM_CONFIG_FILE": str(file)},
    )
    said["wrapped"] = refused(test, "wrapped", config, [str(file), *words])
    policy = transfer(storage, kv_load_failure_policy="retry")
    words = ["Input should be 'recompute' or 'fail'", "input_value='retry'"]
    said["policy"] = refused(test, "policy", policy, words)
    said["vllm serve"] = served(test, *files(test, storage)["unknown key"])
    say(f"refusals: {len(said)} engines did not start, and said why")
    return said


def files(test, storage):
    """Return files with a mistake each, and what has to be said of it beside the file's name."""

    def write(name, *lines, place=storage):
        return written(test.folder / f"{name}.yaml", place, 0.1, *lines)

    broken = test.folder / "broken.yaml"
    broken.write_text("ucm_connectors:\n  - ucm_connector_name: [UcmPipelineStore\nhit_ratio: 1\n")
    inside = write("inside")
    inside.write_text(inside.read_text().replace("storage_backends", "storage_backend"))
    gone = test.folder / "gone"
    return {
        "no file": (test.folder / "none.yaml", ["cannot be read", "UCM_CONFIG_FILE"]),
        "broken": (broken, ["line 3", "is not YAML"]),
        "unknown key": (
            write("unknown", "use_layerwize: true"),
            ["use_layerwize: unknown key; did you mean 'use_layerwise'?"],
        ),
        "unknown option": (
            inside,
            ["ucm_connector_config.storage_backend: unknown option", "'storage_backends'"],
        ),
        "wrong type": (write("type", "hit_ratio: most"), ["hit_ratio: 'most' is not"]),
        "wrong number": (
            write("number", "hit_ratio: 3"),
            ["hit_ratio: 3 is not allowed; it must be from 0 to 1"],
        ),
        "no folder": (write("folder", place=gone), ["storage_backends", str(gone)]),
    }


def refused(test, name, config, words):
    """Return the line that an engine ends with."""
    name = f"refused-{name.replace(' ', '-')}"
    try:
        with test.engines.start(name, transfer=config):
            started = True
    except Failed:
        started = False
    check(not started, f"{name}: it started")
    return said_last(name, (test.engines.folder / f"{name}.log").read_text(), words)


def said_last(name, text, words):
    lines = [line for line in text.splitlines() if all(word in line for word in words)]
    check(
        lines, f"{name}: no line says {words}; the last ones:\n" + "\n".join(text.splitlines()[-5:])
    )
    return lines[-1]


def served(test, file, words):
    """`vllm serve` ends by itself, and says it too."""
    server = serve(test, "refused-serve", file, model="tiny")
    try:
        code = server.start().wait(300)
        server.wait()
    finally:
        server.__exit__()
    check(code, f"vllm serve ended with {code}")
    return said_last("vllm serve", server.text(), [str(file), *words])
