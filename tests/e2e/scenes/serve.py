"""`vllm serve` with a file of ours: the guide's table; then it is killed and started again.

Eight prompts of 8,000 tokens at once take three minutes of computing on two cores, so that they
are left to `--long`.
"""

import concurrent.futures
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import time
import urllib.request
from pathlib import Path

from engines import BLOCK, HIT, SEGMENT, transfer
from place import HERE, check, say, tail

MODEL = "smollm2"
CLI = HERE.parents[1] / "examples" / "vllm" / "vllm_cpu.py"
# Tokens, and how many requests at once.
ROWS = [(n, k) for n in (1000, 2000, 4000, 8000) for k in (1, 4, 8)]
LONG = [(8000, 8)]
START_S, ANSWER_S = 300, 600


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    config = test.folder / "ucm.yaml"
    config.write_text(
        "ucm_connectors:\n"
        "  - ucm_connector_name: UcmPipelineStore\n"
        "    ucm_connector_config:\n"
        "      store_pipeline: Cache|Compress|Posix\n"
        f"      storage_backends: {storage}\n"
        "      cache_buffer_capacity_gb: 2\n"
        "hit_ratio: 0.8\n"
    )
    prompts = Prompts()
    rows = []
    with Server(test, config, "serve-first") as first:
        first.ask(prompts.some(1, 300))  # the first one is slow
        for length, count in [row for row in ROWS if test.long or row not in LONG]:
            given = prompts.some(count, length)
            full, hit = first.ask(given), first.ask(given)
            rows.append({"tokens": length, "at once": count, "full_ms": full, "hit_ms": hit})
            say(f"serve: {length} tokens, {count} at once: {mean(full):.0f}, {mean(hit):.0f} ms")
        last = prompts.some(1, 2000)
        first.ask(last)
        segments = first.segments()
        check(segments, "the server has no shared memory")
        hits = first.hits()
    check(test.left(segments), "the killed server left nothing, so nothing could be taken over")
    with Server(test, config, "serve-second", "--shutdown-timeout", "20") as second:
        second.ask(last)
        second.ask(given)
        again = second.hits()
        stale = set(test.left(segments)) - second.segments()
        check(not stale, f"left in shared memory by the killed server: {stale}")
        segments |= second.segments()
        second.end()
    check(not test.left(segments), f"left in shared memory: {test.left(segments)}")
    blocks = int(0.8 * length) // BLOCK
    check(again[-1] == (length // BLOCK, 0, blocks), f"the restarted server found {again}")
    check_hits(rows, hits)
    return {"rows": rows, "hits after restart": again}


def check_hits(rows, hits):
    for row in rows:
        total = row["tokens"] // BLOCK
        wanted = (total, 0, int(0.8 * row["tokens"]) // BLOCK)
        found = hits.count(wanted)
        check(found >= row["at once"], f"serve: {row['tokens']} tokens: {wanted} {found} times")


class Prompts:
    """Random tokens, new ones each time."""

    def __init__(self):
        self._random = random.Random(1)

    def some(self, count, length):
        return [[self._random.randrange(100, 49000) for _ in range(length)] for _ in range(count)]


class Server:
    """`vllm serve`, whose processes are all killed at the end."""

    def __init__(self, test, file, name, *more):
        self.log = test.engines.folder / f"{name}.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        config = transfer(None, kv_connector_extra_config={"UCM_CONFIG_FILE": str(file)})
        words = (
            f"--served-model-name model --dtype bfloat16 --max-model-len 8192 --block_size {BLOCK}"
        )
        self._command = [
            test.place.python, CLI, "serve", test.place.models / MODEL, *words.split(),
            "--host", "127.0.0.1", "--port", self._port, "--enforce-eager",
            "--no-enable-prefix-caching", "--kv-transfer-config", json.dumps(config), *more,
        ]  # fmt: skip

    def __enter__(self):
        env = {
            **os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_CPU_KVCACHE_SPACE": "2",
        }  # fmt: skip
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                list(map(str, self._command)), stdout=log, stderr=log, env=env,
                start_new_session=True,
            )  # fmt: skip
        try:
            self._wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _wait_ready(self):
        end = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health"):
                    return
            except OSError:
                alive = self._process.poll() is None and time.monotonic() < end
                check(alive, f"vllm serve does not start, see {self.log}:\n{tail(self.log)}")
                time.sleep(0.5)

    def __exit__(self, *_):
        for pid in self._pids():
            os.kill(pid, signal.SIGKILL)
        self._process.wait(60)
        while self._pids():
            time.sleep(0.05)

    def end(self):
        """Ask it to end, as a user does."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(90)
        end = time.monotonic() + 30
        while self._pids() and time.monotonic() < end:
            time.sleep(0.1)
        check(not self._pids(), f"processes of vllm serve stay, see {self.log}")

    def _pids(self):
        """Return its processes: those of its session."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self._process.pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
        return found

    def segments(self):
        maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in self._pids())
        return set(SEGMENT.findall(maps))

    def hits(self):
        text = self.log.read_text(errors="replace")
        return [tuple(map(int, match)) for match in HIT.findall(text)]

    def ask(self, prompts):
        """Send prompts at once; return the times to the first token, ms."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return [round(ms, 1) for ms in pool.map(self._first_token, prompts)]

    def _first_token(self, tokens):
        wanted = {"model": "model", "prompt": tokens, "max_tokens": 2, "temperature": 0,
                  "stream": True, "ignore_eos": True}  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/completions",
            json.dumps(wanted).encode(),
            {"Content-Type": "application/json"},
        )
        start, first = time.perf_counter(), None
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    check(b'"error"' not in line, f"vllm serve answers {line!r}, see {self.log}")
                    first = first or time.perf_counter()
        check(first, f"vllm serve sent no token, see {self.log}")
        return 1000 * (first - start)


def mean(values):
    return statistics.fmean(values)


def table(results):
    lines = ["Mean time to the first token, `vllm serve`:", "",
             "| tokens | at once | full compute, ms | 80 % hit, ms | times faster |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in results["rows"]:
        full, hit = mean(row["full_ms"]), mean(row["hit_ms"])
        lines.append(
            f"| {row['tokens']} | {row['at once']} | {full:.0f} | {hit:.0f} | {full / hit:.1f} |"
        )
    return "\n".join(lines)
