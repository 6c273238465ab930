"""fio as a peer: one file a block, O_DIRECT, io_uring, made anew in every round."""

import itertools
import json
import os
import statistics
import subprocess
from pathlib import Path

from peer_meter import EVENTS, parse_perf

DEPTHS, JOBS = (1, 2, 4, 8, 16, 32), (1, 2)


class Fio:
    """The same requests as a Worker of others, with the best of the tried depths and jobs."""

    def __init__(self, program, folder, shape):
        self.program, self.folder = program, Path(folder)
        self.block, self.shard, self.blocks = shape
        self.best = {}  # by operation: (depth, jobs, bytes a request)
        self.counts, self.number = None, itertools.count()

    def candidates(self, quick):
        sizes = {self.shard, min(self.shard, 1 << 20)}
        depths = (8,) if quick else DEPTHS
        return list(itertools.product(depths, JOBS, sorted(sizes)))

    def tune(self, repeat, quick=False):
        """Find the best depth, jobs and request size of each operation; return all medians."""
        seen = {"dump": {}, "load": {}}
        for _ in range(repeat):
            for way in self.candidates(quick):
                self.best = {"dump": way, "load": way}
                for operation in ("dump", "load"):
                    seconds = getattr(self, operation)()["seconds"]
                    seen[operation].setdefault(way, []).append(seconds)
                self.remove()
        medians = {
            operation: {way: statistics.median(spans) for way, spans in ways.items()}
            for operation, ways in seen.items()
        }
        self.best = {name: min(ways, key=ways.get) for name, ways in medians.items()}
        return {
            name: {
                f"depth {d}, {j} jobs, {s >> 10} KiB": spans for (d, j, s), spans in ways.items()
            }
            for name, ways in medians.items()
        }

    def chosen(self, operation):
        depth, jobs, size = self.best[operation]
        return f"iodepth {depth}, numjobs {jobs}, bs {size >> 10}k"

    def arrange(self, jobs):
        """Name the files as fio will with so many jobs."""
        files = sorted(path for path in self.folder.glob("[0-9]*.*"))
        each = len(files) // jobs
        aside = [path.rename(path.with_name(f"aside.{i}")) for i, path in enumerate(files)]
        for i, path in enumerate(aside):
            path.rename(path.with_name(f"{i // each}.{i % each}"))

    def run(self, operation, blocks):
        depth, jobs, size = self.best[operation]
        jobs = min(jobs, blocks)
        write = operation == "dump"
        if not write:
            self.arrange(jobs)
        command = [self.program, "--name=x", f"--directory={self.folder}", "--direct=1"]
        command += ["--filename_format=$jobnum.$filenum", f"--nrfiles={blocks // jobs}"]
        command += [f"--filesize={self.block}", f"--bs={size}", "--file_service_type=sequential"]
        command += ["--fallocate=none", "--ioengine=io_uring", f"--iodepth={depth}"]
        command += [f"--rw={'write' if write else 'read'}", f"--numjobs={jobs}"]
        command += ["--group_reporting", "--output-format=json"]
        command += ["--create_on_open=1"] if write else []
        if self.counts is not None:
            command = ["perf", "stat", "-x,", "-e", ",".join(EVENTS.values()), *command]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"fio: {(done.stderr or done.stdout).strip()}")
        if self.counts is not None:
            self.counts.append(parse_perf(done.stderr))
        job = json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]
        part = job["write" if write else "read"]
        seconds = part["io_bytes"] / part["bw_bytes"]
        # Its shares are of the time that each job takes, start and end included.
        cpu = (job["usr_cpu"] + job["sys_cpu"]) / 100 * job["job_runtime"] / 1000
        return {"seconds": seconds, "cpu_seconds": cpu}

    def dump(self):
        return self.run("dump", self.blocks)

    def load(self):
        return self.run("load", self.blocks)

    def remove(self):
        """As Worker.remove."""
        aside = self.folder.with_name(f"{self.folder.name}.retired.{next(self.number)}")
        self.folder.rename(aside)
        self.folder.mkdir()
        for path in aside.iterdir():
            os.truncate(path, 0)
        return {}

    def counted(self, operation):
        """Count a round's system calls, less those of a round of one block: fio's own start."""
        self.counts = []
        self.run(operation, self.blocks)
        if operation == "load":  # one file is left for the second round
            for path in self.folder.iterdir():
                if path.name != "0.0":
                    path.rename(self.folder.with_name(f"aside.{path.name}"))
        else:
            self.remove()
        self.run(operation, 1)
        (whole, start), self.counts = self.counts, None
        return {name: None if whole[name] is None else whole[name] - start[name] for name in EVENTS}
