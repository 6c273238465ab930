"""Engines as a scene sees them: started on a directory, told what to do, closed or killed."""

import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from place import HERE, check, tail

BLOCK = 128  # tokens
PIPELINE = "Cache|Compress|Posix"
START_S, ANSWER_S = 1200, 600  # a busy machine takes minutes
ROUNDING = 0.25  # between log-probabilities, of sums of bf16 in another order
HIT = re.compile(  # as the guide to UcmPipelineStore has it
    r"ucm_connector\.py:\d+\] request_id: \S+, "
    r"total_blocks_num: (\d+), hit hbm: (\d+), hit external: (\d+)\n"
)
NAMESPACE = re.compile(r"namespace (\S+), rank tp0")
SEGMENT = re.compile(r"/dev/shm/ucm-cache-\S+")


def transfer(storage, pipeline=PIPELINE, store=None, options=None, audited=False, **more):
    """Return vLLM's kv_transfer_config; ``options`` are the configuration's top-level keys."""
    config = {"store_pipeline": pipeline, "storage_backends": str(storage), **(store or {})}
    if pipeline.startswith("Cache"):
        config.setdefault("cache_buffer_capacity_gb", 0.5)
    entry = {"ucm_connector_name": "UcmPipelineStore", "ucm_connector_config": config}
    return {
        "kv_connector": "AuditedConnector" if audited else "UCMConnector",
        "kv_connector_module_path": "audit" if audited else "ucm.integration.vllm.ucm_connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"ucm_connectors": [entry], **(options or {})},
        **more,
    }


class Engines:
    """The process that forks engines; a context manager that ends it."""

    def __init__(self, place, folder):
        self.place, self.folder = place, folder
        self._running = []
        folder.mkdir(parents=True)

    def __enter__(self):
        self._sockets = tempfile.TemporaryDirectory(prefix="ucm-e2e-")
        self._path = str(Path(self._sockets.name) / "engines")
        self.log = self.folder / "engines.log"
        command = [self.place.python, HERE / "engine.py", self._path]
        with self.log.open("w") as log:
            env = {**os.environ, "PYTHONPATH": "", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                list(map(str, command)), stdin=subprocess.PIPE, stdout=log, stderr=log, env=env
            )
        return self

    def __exit__(self, *_):
        for engine in self._running:
            engine.kill()
        self._process.stdin.close()
        self._process.wait(60)
        self._sockets.cleanup()

    def connect(self):
        end = time.monotonic() + START_S
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._path)
                return connection
            except OSError:
                connection.close()
            alive = self._process.poll() is None and time.monotonic() < end
            check(alive, f"vLLM is not imported, see {self.log}:\n{tail(self.log)}")
            time.sleep(0.1)

    @contextmanager
    def start(self, name, model="tiny", transfer=None, environment=None, **engine):
        """Yield an engine; it is closed at the end."""
        log = self.folder / f"{name}.log"
        arguments = {
            "model": str(self.place.models / model),
            "dtype": "bfloat16",
            "max_model_len": 8192,
            "block_size": BLOCK,
            "enforce_eager": True,
            "enable_prefix_caching": False,
            "kv_cache_memory_bytes": 1 << 30,
            "kv_transfer_config": transfer,
            "disable_log_stats": False,
            **engine,
        }
        spec = {"log": str(log), "environment": environment or {}, "engine": arguments}
        one = Engine(name, self.connect(), spec, log, Path(self._path + ".ends"))
        self._running.append(one)
        try:
            one.wait_ready()
            yield one
            one.close()
        finally:
            one.kill()
            self._running.remove(one)


class Engine:
    """One engine, alone in a process."""

    def __init__(self, name, connection, spec, log, ends):
        self.name, self.log = name, log
        self._ends, self._killed = ends, False
        self._connection = connection
        self._lines = connection.makefile("rw")
        connection.settimeout(START_S)
        self.pid = self._exchange(spec)

    def wait_ready(self):
        self._answer()
        self._connection.settimeout(ANSWER_S)
        self.segments = set(SEGMENT.findall(Path(f"/proc/{self.pid}/maps").read_text()))

    def _exchange(self, value):
        self._send(value)
        return self._answer()

    def _send(self, value):
        self._lines.write(json.dumps(value) + "\n")
        self._lines.flush()

    def _answer(self):
        why = "it has ended"
        try:
            line = self._lines.readline()
        except OSError as error:
            line, why = "", error
        check(line, f"engine {self.name!r}: {why}, see {self.log}; its end:\n{self.tail()}")
        return json.loads(line)

    def tail(self):
        return tail(self.log) if self.log.exists() else ""

    def text(self):
        return self.log.read_text(errors="replace")

    def hits(self, blocks):
        """Return (total, hbm, external) of each request of so many blocks in the log."""
        found = [tuple(map(int, match)) for match in HIT.findall(self.text())]
        return [hit for hit in found if hit[0] == blocks]

    def namespace(self):
        return NAMESPACE.search(self.text())[1]

    def run(self, prompts, outputs=8, salt=None):
        return self._exchange({"do": "run", "prompts": prompts, "outputs": outputs, "salt": salt})

    def begin_run(self, prompts, outputs=8):
        """Begin to run prompts, without waiting for what becomes of them."""
        self._send({"do": "run", "prompts": prompts, "outputs": outputs})

    def together(self, prompts, outputs=8, abort=None):
        order = {"do": "together", "prompts": prompts, "outputs": outputs}
        return self._exchange({**order, "abort": {str(k): v for k, v in (abort or {}).items()}})

    def reset(self, connector=False):
        return self._exchange({"do": "reset", "connector": connector})

    def metrics(self):
        return self._exchange({"do": "metrics"})

    def endpoint(self):
        return self._exchange({"do": "endpoint"})

    def memory(self):
        """Return the most memory that it has had, in bytes."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10

    def spent(self):
        return self._exchange({"do": "spent"})

    def _code(self, seconds):
        """Return how it ended, or None if it has not after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            lines = self._ends.read_text().splitlines() if self._ends.exists() else []
            codes = [line.split()[1] for line in lines if line.split()[0] == str(self.pid)]
            if codes or time.monotonic() > end:
                return int(codes[0]) if codes else None
            time.sleep(0.05)

    def close(self):
        """Let it end by itself, and complain if it does not."""
        if self._killed:
            return
        self._connection.shutdown(socket.SHUT_WR)
        code = self._code(90)
        check(code == 0, f"engine {self.name!r} ended with {code}, see {self.log}:\n{self.tail()}")

    def store_ms(self):
        """Return the CPU time that threads of the store have taken, ms."""
        spent = 0
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            try:
                if (task / "comm").read_text().startswith("ucm-"):
                    spent += int((task / "schedstat").read_text().split()[0])
            except OSError:  # it has ended
                continue
        return spent / 1e6

    def kill(self):
        if self._code(0) is None:
            os.kill(self.pid, signal.SIGKILL)
            self._code(30)
        self._killed = True
        self._lines.close()
        self._connection.close()


def same(what, got, right):
    for key in ("tokens", "logprobs"):
        check(got[key] == right[key], f"{what}: {key} {got[key]} differ from vLLM's {right[key]}")


def alike(what, got, right):
    """Check that two texts are the same but for how sums are rounded."""
    check(got["tokens"] == right["tokens"], f"{what}: {got['tokens']} is not {right['tokens']}")
    gap = max(abs(a - b) for a, b in zip(got["logprobs"], right["logprobs"], strict=True))
    check(gap < ROUNDING, f"{what}: log-probabilities are {gap:.3f} apart")
    return gap


def audited(files):
    """Check what witnesses wrote: every loaded shard is what was saved. Return the counts."""
    saved, counts = {}, {"saved": 0, "changed": 0, "loaded": 0}
    lines = [line.split() for file in files for line in Path(file).read_text().splitlines()]
    for what, *rest in lines:
        if what == "saved":
            block, shard, hashed = rest
            saved.setdefault((block, shard), set()).add(hashed)
    wrong = []
    for what, *rest in lines:
        if what in counts:
            counts[what] += 1
        if what == "changed" or (
            what == "loaded" and rest[2] not in saved.get((rest[0], rest[1]), ())
        ):
            wrong.append(" ".join([what, *rest]))
    check(not wrong, f"{len(wrong)} shards are not what was saved: {wrong[:5]}")
    check(counts["loaded"], "no shard was loaded")
    return counts
