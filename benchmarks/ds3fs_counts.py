"""What Ds3fs asks of the machine for one shard: copies, system calls, registrations, requests.

python benchmarks/ds3fs_counts.py            the table of docs/ds3fs.md, in a minute
python benchmarks/ds3fs_counts.py --mib 4 --cases "4 MiB"

The library is the stand-in of tests/standin, told not to check what costs time; it makes the
system calls that 3FS's makes, on threads that are not counted where the daemon would make them. So
these are counts, and no rates: what 3FS itself takes is not in them. Bytes are copied once unless
requests name memory of Cache. perf counts system calls: as root, apt-get install linux-perf.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import ucm
from ucm.cli._measure import machine

ROOT = Path(__file__).parent.parent
KIB, MIB = 1 << 10, 1 << 20
# name: (bytes of a block, bytes of a shard)
CASES = {
    "64 KiB": (64 * KIB, 64 * KIB),
    "1 MiB": (MIB, MIB),
    "4 MiB": (4 * MIB, 4 * MIB),
    "64 x 64 KiB": (4 * MIB, 64 * KIB),
}
ZERO_COPY = {"ds3fs_zero_copy": True}
PIPELINES = (("Ds3fs", {}), ("Cache|Ds3fs", {}), ("Cache|Ds3fs", ZERO_COPY))


def compiled(library):
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-shared", "-fPIC", "-pthread"]
    command += ["-fvisibility=hidden", "-o", library, *(ROOT / "tests" / "standin").glob("*.c")]
    subprocess.run(command, check=True)
    return library


class SystemCalls:
    """A with block in which the system calls of this process are counted, by kind of thread."""

    def __init__(self):
        self.ours = self.others = None

    def __enter__(self):
        control, self.control = os.pipe()
        self.ack, ack = os.pipe()
        command = ["perf", "stat", "--per-thread", "-x,", "-D", "-1"]
        command += ["-e", "raw_syscalls:sys_enter", "-p", str(os.getpid())]
        command += ["--control", f"fd:{control},{ack}"]
        try:
            self.perf = subprocess.Popen(
                command, pass_fds=(control, ack), stderr=subprocess.PIPE, text=True
            )
        except FileNotFoundError:
            self.perf = None
        os.close(control)
        os.close(ack)
        self.tell(b"enable\n")
        return self

    def tell(self, what):
        if self.perf:
            try:
                os.write(self.control, what)
                os.read(self.ack, 16)
            except BrokenPipeError:
                self.perf = None

    def __exit__(self, *_):
        self.tell(b"disable\n")
        if self.perf:
            self.perf.send_signal(2)
            self.add_up(self.perf.communicate()[1])
        os.close(self.control)
        os.close(self.ack)

    def add_up(self, text):
        self.ours = self.others = 0
        for line in text.splitlines():
            thread, _, rest = line.partition(",")
            count = rest.partition(",")[0]
            if not count.isdigit() or "standin" in thread:
                continue
            if "ds3fs" in thread:
                self.ours += int(count)
            else:
                self.others += int(count)


def worker(job):
    """Dump, or load, all shards with one call; print what was counted."""
    block, shard = CASES[job["case"]]
    blocks, per_block = job["mib"] * MIB // block, block // shard
    rng = random.Random(7)
    ids = [rng.randbytes(16) for _ in range(blocks)]
    memory = np.zeros(blocks * block + 4096, np.uint8)
    start = -memory.ctypes.data % 4096
    rows = np.arange(blocks * per_block, dtype=np.uint64) * shard + memory.ctypes.data + start
    options = {"block_size": block, "shard_size": shard, **job["options"]}
    if "Cache" in job["pipeline"]:
        options["cache_buffer_capacity_gb"] = 2 * job["mib"] / 1024
    options.update(
        storage_backends=job["folder"], ds3fs_library=job["library"], unique_id=job["id"]
    )
    with ucm.open_pipeline(job["pipeline"], **options) as store:
        start_call = store.load_data if job["op"] == "load" else store.dump_data
        named = [id for id in ids for _ in range(per_block)]
        indexes = list(range(per_block)) * blocks
        with SystemCalls() as calls:
            store.wait(start_call(named, indexes, rows.reshape(-1, 1)), 120000)
            if job["op"] == "dump":
                assert store.drain().lost == 0
    shards = blocks * per_block
    counted = calls.ours is not None
    calls = [calls.ours / shards, calls.others / shards] if counted else [None, None]
    print(json.dumps({"shards": shards, "bytes": blocks * block, "calls": calls}))


def run(job, folder):
    """Run one worker; add what the stand-in has counted."""
    log = folder / "log"
    given = {"HF3FS_STANDIN": "strict=0", "HF3FS_STANDIN_LOG": str(log)}
    env = {**os.environ, **given}
    command = [sys.executable, __file__, "--worker", json.dumps(job)]
    done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
    answer, counted = json.loads(done.stdout), json.loads(log.read_text())
    moved = counted["read_bytes"] + counted["written_bytes"]
    answer["copies"] = (moved - counted["linked_bytes"]) / moved
    answer["requests"] = (counted["reads"] + counted["writes"]) / answer["shards"]
    for name in ("registrations", "submits", "waits"):
        answer[name] = counted[name] / answer["shards"]
    answer["in_flight"] = counted["in_flight_most"]
    return answer


def measure(args, folder):
    library = compiled(folder / "libhf3fs_api_shared.so")
    results = []
    for pipeline, options in PIPELINES[args.first :]:
        for case in args.cases.split(","):
            place = folder / str(len(results))
            (place / "3fs-virt" / "iovs").mkdir(parents=True)
            (place / "kv").mkdir()
            for op in ("dump", "load"):
                job = {"pipeline": pipeline, "options": options, "case": case, "op": op}
                job["mib"] = args.mib
                job |= {"folder": str(place / "kv"), "library": str(library)}
                job["id"] = f"counts-{os.getpid()}-{len(results)}"
                results.append({**job, **run(job, folder)})
    return results


def show(results):
    head = ["pipeline", "shards", "", "requests", "copies", "system calls", "registrations"]
    head += ["in flight"]
    print("| " + " | ".join(head) + " |")
    print("| --- | --- | --- |" + " --: |" * 5)
    for row in results:
        calls = f"{row['calls'][0]:.1f}" if row["calls"][0] is not None else "not counted"
        name = row["pipeline"] + (", zero copy" if row["options"] else "")
        cells = [name, row["case"], row["op"], f"{row['requests']:.2f}"]
        cells += [f"{row['copies']:.2f}", calls, f"{row['registrations']:.2f}"]
        print(
            "| " + " | ".join([*cells, str(row["in_flight"])]).replace("Cache|", "Cache\\|") + " |"
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=256, help="of data for each line")
    parser.add_argument("--cases", default=",".join(CASES), help="default: %(default)s")
    parser.add_argument("--first", type=int, default=0, help="leave out so many pipelines")
    parser.add_argument("--data", help="where the files go; default: a temporary folder")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker(args.worker)
    with tempfile.TemporaryDirectory(dir=args.data) as folder:
        results = measure(args, Path(folder))
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        print(", ".join(str(value) for value in machine().values()), "\n", sep="")
        show(results)
    return None


if __name__ == "__main__":
    sys.exit(main())
