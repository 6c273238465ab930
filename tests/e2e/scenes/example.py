"""examples/vllm as its README has it: the YAML, serve.sh, bench.sh twice, and the log."""

import re
import shutil
import subprocess

from engines import BLOCK
from place import check, say, tail
from server import EXAMPLE, Server, environment, free_port

LENGTH, PROMPTS = 2000, 4  # of bench.sh
BLOCKS = LENGTH // BLOCK


def run(test):
    folder = test.folder / "vllm"
    shutil.copytree(EXAMPLE, folder)
    storage = test.folder / "kv"
    storage.mkdir()
    config = folder / "ucm.yaml"
    lines = config.read_text().replace("/mnt/kv", str(storage))
    config.write_text(lines + f"metrics_config_path: {folder}/metrics.yaml\n")
    variables = {
        "PATH": f"{test.place.python.parent}:{environment()['PATH']}",
        "VLLM": "python vllm_cpu.py",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    model, port = test.place.models / "tiny", free_port()
    arguments = ["--port", port]
    server = Server(
        test.engines.folder / "example-serve.log",
        ["./serve.sh", model, *arguments],
        port, str(model), folder, variables,
    )  # fmt: skip
    with server:
        means = [bench(test, i, folder, [model, *arguments], variables) for i in range(2)]
        hits, shown = server.hits(), server.get("/metrics")
        segments = server.segments()
        server.end()
    left = test.left(segments)
    check(not left, f"example: left in shared memory: {left}")
    check("namespace tiny-" in server.text(), "example: the log has no namespace")
    check_hits(hits)
    loaded = re.search(r"^ucm:load_blocks_total\{.*\} (\S+)$", shown, re.M)
    check(loaded and float(loaded[1]) >= PROMPTS * (BLOCKS - 1), f"example: metrics: {loaded}")
    say(f"example: mean time to the first token, ms: {means[0]:.0f}, then {means[1]:.0f}")
    return {"mean_ttft_ms": means, "hits": hits}


def bench(test, number, folder, arguments, variables):
    """Run bench.sh; return the mean time to the first token that it prints."""
    log = test.engines.folder / f"example-bench-{number}.log"
    command = ["./bench.sh", *map(str, arguments)]
    with log.open("w") as file:
        env = {**environment(), **variables}
        done = subprocess.run(command, cwd=folder, env=env, stdout=file, stderr=file, timeout=600)
    found = re.search(r"Mean TTFT \(ms\):\s+(\S+)", log.read_text())
    check(done.returncode == 0 and found, f"bench.sh failed, see {log}:\n{tail(log)}")
    return float(found[1])


def check_hits(hits):
    """The first time nothing is found of the prompts, the second time all of each."""
    full = [hit for hit in hits if hit[0] >= BLOCKS]
    first, second = full[: len(full) // 2], full[len(full) // 2 :]
    check(len(second) >= PROMPTS, f"example: the log tells of {hits}")
    check(all(hit[2] >= BLOCKS for hit in second), f"example: the second time found {second}")
    check(sum(hit[2] == 0 for hit in first) >= PROMPTS, f"example: the first time found {first}")
