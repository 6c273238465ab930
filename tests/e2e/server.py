"""A server as a scene sees it: started by a command line, asked over HTTP, ended or killed."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from engines import BLOCK, HIT, SEGMENT, transfer
from place import HERE, check, tail

EXAMPLE = HERE.parents[1] / "examples" / "vllm"
START_S, ANSWER_S = 1200, 600  # a busy machine takes minutes


def written(path, storage, memory_gb, *lines):
    """Write a configuration with more lines at its top level."""
    path.write_text(
        "ucm_connectors:\n"
        "  - ucm_connector_name: UcmPipelineStore\n"
        "    ucm_connector_config:\n"
        "      store_pipeline: Cache|Compress|Posix\n"
        f"      storage_backends: {storage}\n"
        f"      cache_buffer_capacity_gb: {memory_gb}\n" + "".join(f"{line}\n" for line in lines)
    )
    return path


def serve(test, name, file, model="smollm2", more=()):
    """Return a server with a configuration file."""
    config = transfer(None, kv_connector_extra_config={"UCM_CONFIG_FILE": str(file)})
    port = free_port()
    words = f"--served-model-name model --dtype bfloat16 --max-model-len 8192 --block_size {BLOCK}"
    command = [
        test.place.python, EXAMPLE / "vllm_cpu.py", "serve", test.place.models / model,
        *words.split(), "--host", "127.0.0.1", "--port", port, "--enforce-eager",
        "--no-enable-prefix-caching", "--kv-transfer-config", json.dumps(config), *more,
    ]  # fmt: skip
    return Server(test.engines.folder / f"{name}.log", command, port, "model")


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def environment():
    return {
        **os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "2",
    }  # fmt: skip


class Server:
    """A command that serves a model; all its processes are killed at the end."""

    def __init__(self, log, command, port, model, folder=None, variables=None):
        self.log, self._command, self._port, self._model = log, command, port, model
        self._folder = folder
        self._environment = {**environment(), **(variables or {})}

    def start(self):
        """Begin, and wait for nothing."""
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                list(map(str, self._command)), stdout=log, stderr=log, env=self._environment,
                cwd=self._folder, start_new_session=True,
            )  # fmt: skip
        return self._process

    def __enter__(self):
        self.start()
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
                self.get("/health")
                return
            except OSError:
                alive = self._process.poll() is None and time.monotonic() < end
                check(alive, f"vllm serve does not start, see {self.log}:\n{tail(self.log)}")
                time.sleep(0.5)

    def __exit__(self, *_):
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self._process.wait(60)
        while self.pids():
            time.sleep(0.05)

    def end(self):
        """Ask it to end, as a user does."""
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self):
        """Wait until all of it has ended by itself."""
        self._process.wait(90)
        end = time.monotonic() + 30
        while self.pids() and time.monotonic() < end:
            time.sleep(0.1)
        check(not self.pids(), f"processes of vllm serve stay, see {self.log}")

    def pids(self):
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

    def workers(self):
        """Return the processes of its workers."""
        titles = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.pids()}
        return sorted(pid for pid, title in titles.items() if b"::Worker" in title)

    def segments(self):
        maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in self.pids())
        return set(SEGMENT.findall(maps))

    def text(self):
        return self.log.read_text(errors="replace")

    def hits(self):
        return [tuple(map(int, match)) for match in HIT.findall(self.text())]

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}") as answer:
            return answer.read().decode()

    def ask(self, prompts):
        """Send prompts at once; return the times to the first token, ms."""
        return [round(ms, 1) for ms, _ in self.answers(prompts)]

    def answers(self, prompts, outputs=2):
        """Send prompts at once; return of each the time to the first token, ms, and the text."""
        with self.asked(prompts, outputs) as futures:
            return [future.result() for future in futures]

    @contextmanager
    def asked(self, prompts, outputs):
        """Send prompts at once; yield the futures of their answers, which have come at the end."""
        with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            yield [pool.submit(self.answer, prompt, outputs) for prompt in prompts]

    def answer(self, tokens, outputs):
        wanted = {"model": self._model, "prompt": tokens, "max_tokens": outputs, "temperature": 0,
                  "stream": True, "ignore_eos": True}  # fmt: skip
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port}/v1/completions",
            json.dumps(wanted).encode(),
            {"Content-Type": "application/json"},
        )
        start, first, text, ended = time.perf_counter(), None, "", False
        with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    check(b'"error"' not in line, f"vllm serve answers {line!r}, see {self.log}")
                    first = first or time.perf_counter()
                    (choice,) = json.loads(line[6:])["choices"]
                    text += choice["text"]
                    ended = ended or bool(choice["finish_reason"])
        check(first and ended, f"vllm serve broke off, see {self.log}")
        return 1000 * (first - start), text
