"""A side of a comparison, seen from the script that asks it; and what all such scripts share."""

import argparse
import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import peer_install
import peer_meter
import peer_tables


class Failed(Exception):
    """A side said that it could not do a round."""


def say(text):
    print(text, file=sys.stderr, flush=True)


def installed(kinds, names, folder):
    """Return the peers of these names that can be had, and why the others cannot."""
    peers, missing = {}, {}
    for name in filter(None, names.split(",")):
        try:
            peers[name] = kinds[name](folder)
        except peer_install.Missing as reason:
            missing[name] = str(reason)
            say(f"{name} is left out: {reason}")
    return peers, missing


class Side:
    """A worker process, and the folder that is its own."""

    def __init__(
        self, kind, peer, folder, options, variables=(), worker="peer_worker.py", arguments=()
    ):
        self.kind, self.folder, self.options = kind, folder, options
        worker = Path(__file__).with_name(worker)
        # Libraries for linear algebra start threads that are nobody's here.
        env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        env.update(variables)
        self.process = subprocess.Popen(
            [peer.get("python", sys.executable), worker, kind, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )
        folder.mkdir(parents=True, exist_ok=True)

    def ask(self, do, **arguments):
        self.send(do, **arguments)
        return self.answer(do)

    def send(self, do, **arguments):
        """Ask without waiting: the answer is to be had later."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()

    def answer(self, do):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with {self.process.wait()}"}
        if "error" in answer:
            raise Failed(f"{self.kind}, {do}: {answer['error']}")
        return answer

    def open(self, shape, **arguments):
        self.threads_before = len(peer_meter.thread_names(self.process.pid))
        folder = str(self.folder)
        return self.ask("open", folder=folder, shape=shape, options=self.options, **arguments)

    def dump(self):
        return self.ask("dump")

    def load(self):
        return self.ask("load")

    def remove(self):
        return self.ask("remove")

    def counted(self, operation):
        with peer_meter.Counted(self.process.pid) as counted:
            self.ask(operation)
        return counted.counts

    def watched(self, operation):
        """Do a round; return what it was in threads, and how many bytes met the device."""
        moved = peer_meter.device_bytes(self.process.pid, operation)
        with peer_meter.Watched(self.process.pid) as watched:
            self.ask(operation)
        return {
            "threads": watched.peak - self.threads_before,  # Python's own are not counted
            "kernel_threads": watched.kernel,
            "device_bytes": peer_meter.device_bytes(self.process.pid, operation) - moved,
        }

    def end(self):
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def shared_memory(shape):
    """Yield paths of source and target of a case: the same physical pages for every side."""
    files = [os.memfd_create("peers") for _ in range(2)]
    try:
        for file in files:
            for _ in range(shape[2]):
                os.write(file, os.urandom(shape[0]))
        yield [f"/proc/{os.getpid()}/fd/{file}" for file in files]
    finally:
        for file in files:
            os.close(file)


def file_system(folder):
    """Tell its kind and options; files that come and go are dear on ext4 without a journal."""
    command = ["findmnt", "-no", "FSTYPE,OPTIONS,SOURCE", "-T", str(folder)]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    if len(found) != 3:
        return "unknown"
    kind, options, source = found
    journal = any(Path("/proc/fs/jbd2").glob(f"{Path(source).name}-*"))
    bare = " without a journal" if kind == "ext4" and not journal else ""
    return f"{kind}{bare} ({options})"


def pair_of(text):
    key, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def this_run(script):
    """What the tables say of a run, or of a part of it that is about to begin."""
    command = " ".join([f"python benchmarks/{script}", *map(shlex.quote, sys.argv[1:])])
    load = os.getloadavg()[0]
    return {"command": command, "date": time.strftime("%Y-%m-%d"), "load_average": load}


def add_common(parser):
    """Add the options that all such scripts have."""
    add = parser.add_argument
    add("--folder", type=Path, default=Path("build/peers"), help="keeps what peers need")
    add("--quick", action="store_true", help="few rounds of little data: a test of this script")
    add("--results", type=Path, help="keeps the figures, in FOLDER if it is not said where")
    add("--show", action="store_true", help="measure nothing, show what is kept")
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--write", type=Path, metavar="PAGE", help="put the tables into this page")


def place(args, name):
    """Make the folder, and name the file of results after the script."""
    args.folder = args.folder.resolve()
    args.folder.mkdir(parents=True, exist_ok=True)
    args.results = args.results or args.folder / name


def kept(args):
    return json.loads(args.results.read_text()) if args.results.exists() else {}


def show(args, result, text, mark):
    """Print what was measured as it was asked for, and write the page."""
    if args.json:
        print(json.dumps(result, indent=2))
        return
    print(text)
    if args.write:
        peer_tables.write(args.write, text, mark)
