"""fio as a peer: one file a block, O_DIRECT, io_uring, made anew in every round."""

import itertools
import json
import os
import random
import statistics
import subprocess
import tempfile
from pathlib import Path

from peer_meter import EVENTS, parse_perf

DEPTHS, JOBS, OPERATIONS = (1, 2, 4, 8, 16, 32), (1, 2), ("dump", "load")
FINALISTS = 3


def ranked(ways):
    """Return ways by their median times, the fastest first."""
    return sorted(ways, key=lambda way: statistics.median(ways[way]))


class Fio:
    """The same requests as a Worker of others, with the best of the tried depths and jobs."""

    def __init__(self, program, folder, shape):
        self.program, self.folder = program, Path(folder)
        self.block, self.shard, self.blocks = shape
        self.best = {}  # by operation: (depth, jobs, bytes a request)
        self.start = {}  # CPU seconds, by operation
        self.number = itertools.count()

    def candidates(self, quick):
        sizes = {self.shard, min(self.shard, 1 << 20)}
        depths = (8,) if quick else DEPTHS
        return set(itertools.product(depths, JOBS, sizes))

    def try_ways(self, ways, repeat, seen):
        """Run each way so often, in an order that changes."""
        for _ in range(repeat):
            for way in random.sample(sorted(ways), len(ways)):
                self.best = dict.fromkeys(OPERATIONS, way)
                for operation in OPERATIONS:
                    seconds = getattr(self, operation)()["seconds"]
                    seen[operation].setdefault(way, []).append(seconds)
                self.remove()

    def tune(self, repeat, quick=False):
        """Find the best depth, jobs and request size of each operation; return all medians.

        The best of a few noisy tries is a lucky one, so the best are tried again.
        """
        seen = {name: {} for name in OPERATIONS}
        self.try_ways(self.candidates(quick), repeat, seen)
        again = {way for name in OPERATIONS for way in ranked(seen[name])[:FINALISTS]}
        self.try_ways(again, 2 * repeat, seen)
        finals = {name: {way: seen[name][way] for way in again} for name in OPERATIONS}
        self.best = {name: ranked(ways)[0] for name, ways in finals.items()}
        self.measure_start(repeat)
        return {
            name: {
                f"depth {d}, {j} jobs, {s >> 10} KiB": statistics.median(spans)
                for (d, j, s), spans in ways.items()
            }
            for name, ways in seen.items()
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

    def command(self, operation, blocks):
        depth, jobs, size = self.best[operation]
        write = operation == "dump"
        if not write:
            self.arrange(jobs)
        command = [self.program, "--name=x", f"--directory={self.folder}", "--direct=1"]
        command += ["--filename_format=$jobnum.$filenum", f"--nrfiles={blocks // jobs}"]
        command += [f"--filesize={self.block}", f"--bs={size}", "--file_service_type=sequential"]
        command += ["--fallocate=none", "--ioengine=io_uring", f"--iodepth={depth}"]
        command += [f"--rw={'write' if write else 'read'}", f"--numjobs={jobs}"]
        command += ["--group_reporting", "--output-format=json"]
        return command + (["--create_on_open=1"] if write else [])

    def run(self, operation, blocks, counted=False):
        """Return its own figure of the time, CPU time of all that it is, and what perf counts."""
        command = self.command(operation, blocks)
        if counted:
            command = ["perf", "stat", "-x,", "-e", ",".join(EVENTS.values()), *command]
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            fio = subprocess.Popen(command, stdout=out, stderr=err)
            _, status, used = os.wait4(fio.pid, 0)
            fio.returncode = os.waitstatus_to_exitcode(status)
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())
        if fio.returncode != 0:
            raise RuntimeError(f"fio: {''.join(texts).strip()}")
        part = json.loads(texts[0][texts[0].index("{") :])["jobs"][0]
        part = part["write" if operation == "dump" else "read"]
        return {
            "seconds": part["io_bytes"] / part["bw_bytes"],
            "cpu_seconds": used.ru_utime + used.ru_stime,
            "counts": parse_perf(texts[1]) if counted else None,
        }

    def less_start(self, operation):
        """A round, less what fio spends on its start.

        Its own figures of CPU time leave out the kernel's threads that do its io_uring writes.
        """
        result = self.run(operation, self.blocks)
        del result["counts"]
        result["cpu_seconds"] = max(0.0, result["cpu_seconds"] - self.start.get(operation, 0.0))
        return result

    def dump(self):
        return self.less_start("dump")

    def load(self):
        return self.less_start("load")

    def remove(self):
        """As Worker.remove."""
        aside = self.folder.with_name(f"{self.folder.name}.retired.{next(self.number)}")
        self.folder.rename(aside)
        self.folder.mkdir()
        for path in aside.iterdir():
            os.truncate(path, 0)
        return {}

    def measure_start(self, repeat):
        """What a round of one block a job costs, nearly all of it fio's start."""
        cpu = {name: [] for name in OPERATIONS}
        for _ in range(repeat):
            for name in OPERATIONS:
                cpu[name].append(self.run(name, max(JOBS))["cpu_seconds"])
            self.remove()
        self.start = {name: statistics.median(values) for name, values in cpu.items()}

    def counted(self):
        """Return a round's counts by operation, less those of fio's start."""
        sizes = (self.blocks, max(JOBS))
        counts = {}
        for blocks in sizes:
            for name in OPERATIONS:
                counts[name, blocks] = self.run(name, blocks, counted=True)["counts"]
            self.remove()
        whole, start = ({n: counts[n, blocks] for n in OPERATIONS} for blocks in sizes)
        return {
            name: {
                event: None if whole[name][event] is None else whole[name][event] - value
                for event, value in start[name].items()
            }
            for name in OPERATIONS
        }
