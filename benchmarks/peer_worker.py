"""One side of posix_peers.py: keeps one store open and does a round for each line it reads.

Ours and others run the same code on the same memory. It runs under the python of each side, so it
imports nothing of this package at the top.
"""

import importlib
import importlib.util
import itertools
import json
import mmap
import os
import random
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

FILES_OF_ONE_INODE = 60000  # ext4 allows 65,000 links


class Shape:
    def __init__(self, block, shard, blocks):
        self.block, self.shard, self.blocks = block, shard, blocks
        self.shards = block // shard
        self.bytes = block * blocks


class Memory:
    """Page-aligned, touched memory for all blocks, layer after layer as an engine has it.

    All sides map the same file in memory: how many physical pages lie in a row decides how fast a
    disk takes them, by more than 2 times, and is a matter of luck.
    """

    def __init__(self, shape, path=None):
        if path:
            with open(path, "r+b") as file:
                self.mapping = mmap.mmap(file.fileno(), shape.bytes)
        else:
            self.mapping = mmap.mmap(-1, shape.bytes)
        self.bytes = np.frombuffer(self.mapping, np.uint8)
        self.first_words = self.bytes.view(np.uint64)[::512].copy()
        base = self.bytes.ctypes.data
        blocks, shards = np.arange(shape.blocks), np.arange(shape.shards)
        offsets = (shards[None, :] * shape.blocks + blocks[:, None]) * shape.shard
        self.addresses = (base + offsets.reshape(-1, 1)).astype(np.uint64)
        self.indexes = np.tile(shards, shape.blocks).astype(np.uint32)

    def stamp(self, number):
        """Make every page differ from what it is with another number."""
        self.bytes.view(np.uint64)[::512] = self.first_words + np.uint64(number)


def random_ids(n):
    return np.frombuffer(os.urandom(16 * n), np.uint8).reshape(n, 16)


class Ours:
    def __init__(self, folder, shape, options):
        import ucm

        self.folder, self.shape, self.space = Path(folder), shape, None
        sizes = {"block_size": shape.block, "shard_size": shape.shard, "tensor_size": shape.shard}
        given = {"storage_backends": folder, "io_direct": True, **options}
        self.store = ucm.open_pipeline("Posix", **sizes, **given)

    def dump(self, ids, memory):
        self.store.wait(self.store.dump_data(ids, memory.indexes, memory.addresses))

    def load(self, ids, memory):
        self.store.wait(self.store.load_data(ids, memory.indexes, memory.addresses))

    def lookup(self, ids):
        return self.store.lookup(ids)

    def path(self, block_id):
        name = block_id.tobytes().hex()
        if not self.space:  # it is made with the first block
            self.space = next(self.folder.glob(f"*/*/*/{name}")).parent.parent
        return f"{self.space}/{name[:3]}/{name}"

    def plant(self, n):
        """Publish n blocks by linking a few real files to new names; return their ids."""
        roots = random_ids(n // FILES_OF_ONE_INODE + 1)
        shape = Shape(self.shape.block, self.shape.shard, len(roots))
        memory = Memory(shape)
        self.dump(np.repeat(roots, shape.shards, axis=0), memory)
        paths = [self.path(i) for i in roots]
        return plant(str(self.space), paths, n)

    def close(self):
        self.store.close()


class Reference:
    """Posix of uc-manager, called as its own Python layer does."""

    def __init__(self, folder, shape, options):
        self.folder, self.shape = Path(folder), shape
        home = Path(options.pop("home"))
        sys.path.insert(0, str(home))
        os.environ["UC_LOGGER_LEVEL"] = "error"
        os.environ["UCM_LOG_PATH"] = str(self.folder.parent / "log")
        native = importlib.import_module("ucm.store.pipeline.ucmpipelinestore")
        config = {
            "store_pipeline": "Posix",
            "storage_backends": [folder],
            "unique_id": os.urandom(6).hex(),
            "tensor_size": shape.shard,
            "shard_size": shape.shard,
            "block_size": shape.block,
            "io_direct": True,
            "device_id": 0,
            **options,
        }
        self.store = native.PipelineStore()
        self.store.Stack("Posix", str(home / "ucm/store/posix/libposixstore.so"), config)

    def dump(self, ids, memory):
        indexes = memory.indexes.astype(np.uint64)
        self.store.Wait(self.store.Dump(ids.reshape(-1), indexes, memory.addresses, 0))

    def load(self, ids, memory):
        indexes = memory.indexes.astype(np.uint64)
        self.store.Wait(self.store.Load(ids.reshape(-1), indexes, memory.addresses))

    def lookup(self, ids):
        return np.frombuffer(self.store.Lookup(ids.reshape(-1)), bool)

    def path(self, block_id):
        name = block_id.tobytes().hex()
        return f"{self.folder}/{name[:3]}/{name}"

    def plant(self, n):
        names = [os.urandom(16).hex() for _ in range(n // FILES_OF_ONE_INODE + 1)]
        paths = [str(self.folder / name[:3] / name) for name in names]
        for path in paths:
            Path(path).write_bytes(bytes(self.shape.block))
        return plant(str(self.folder), paths, n)

    def close(self):
        self.store = None


class VllmFiles:
    """The native functions under vLLM's secondary tier "fs", in jobs on threads as it does."""

    def __init__(self, folder, shape, options):
        importlib.import_module("torch")  # the library below needs its libraries
        spec = importlib.util.spec_from_file_location("fs_io_C", options["library"])
        self.io = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.io)
        self.folder, self.shape, self.job = folder, shape, options["blocks_per_job"]
        self.threads = ThreadPoolExecutor(options["threads"])

    def path(self, block_id):
        name = block_id.tobytes().hex()
        return f"{self.folder}/{name[:3]}/{name[3:5]}/{name}.bin"

    def jobs(self, ids, memory):
        view, size, shards = memoryview(memory.mapping), self.shape.block, self.shape.shards
        paths = [self.path(i) for i in ids[::shards]]
        views = [view[k * size : (k + 1) * size] for k in range(len(paths))]
        return [
            (paths[k : k + self.job], views[k : k + self.job])
            for k in range(0, len(paths), self.job)
        ]

    def dump(self, ids, memory):
        def store(job):
            paths, views = job
            temporary = [f"{path}_{random.getrandbits(62)}.tmp" for path in paths]
            self.io.batch_store_block(temporary, paths, views, True)

        list(self.threads.map(store, self.jobs(ids, memory)))

    def load(self, ids, memory):
        list(
            self.threads.map(
                lambda job: self.io.batch_load_block(*job, True), self.jobs(ids, memory)
            )
        )

    def close(self):
        self.threads.shutdown()


SIDES = {"ours": Ours, "reference": Reference, "vllm": VllmFiles}


def plant(root, paths, n):
    """Link files to n new names, folder by folder, and return the ids."""
    ids = np.sort(random_ids(n).view("V16").reshape(-1)).view(np.uint8).reshape(n, 16)
    source = itertools.cycle(paths)
    folder = None
    for name in (i.tobytes().hex() for i in ids):
        if name[:3] != folder:
            folder = name[:3]
            os.makedirs(f"{root}/{folder}", 0o700, exist_ok=True)
        os.link(next(source), f"{root}/{folder}/{name}")
    return ids


def cpu_seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Worker:
    def __init__(self, kind):
        self.kind, self.side, self.planted = SIDES[kind], None, None
        self.number = itertools.count()

    def open(self, folder, shape, options, memory=None):
        """Start a case in an empty folder; memory: paths of source, which is filled, and target."""
        self.shape, self.folder, self.retired = Shape(*shape), folder, f"{folder}.retired"
        os.makedirs(self.retired, exist_ok=True)
        if memory:
            self.source, self.target = (Memory(self.shape, path) for path in memory)
        start = time.perf_counter()
        self.side = self.kind(folder, self.shape, dict(options))
        return {"seconds": time.perf_counter() - start}

    def timed(self, call):
        cpu, start = cpu_seconds(), time.perf_counter()
        call()
        return {"seconds": time.perf_counter() - start, "cpu_seconds": cpu_seconds() - cpu}

    def dump(self):
        self.stamp = random.getrandbits(40)
        self.source.stamp(self.stamp)
        self.ids = np.repeat(random_ids(self.shape.blocks), self.shape.shards, axis=0)
        return self.timed(lambda: self.side.dump(self.ids, self.source))

    def load(self):
        self.target.bytes[:] = 0
        result = self.timed(self.load_once)
        self.source.stamp(self.stamp)  # another side may have dumped since
        result["wrong"] = not np.array_equal(self.source.bytes, self.target.bytes)
        if result["wrong"] and self.kind is Ours:
            raise AssertionError("the bytes that were loaded are not those that were dumped")
        return result

    def load_once(self):
        try:
            self.side.load(self.ids, self.target)
        except Exception as error:  # the bytes tell
            if self.kind is Ours:
                raise
            print(f"{self.kind.__name__}, load: {error}", file=sys.stderr)

    def remove(self):
        """Free the room of the last blocks, and keep their inodes.

        ext4 without a journal goes round inodes deleted in the last minutes one by one, so
        that a round would pay for the files of those before it.
        """
        for block_id in self.ids[:: self.shape.shards]:
            path, aside = self.side.path(block_id), f"{self.retired}/{next(self.number)}"
            if self.kind is not Ours and not os.path.exists(path):
                continue  # it was told to be dumped, and is not there
            os.rename(path, aside)
            os.truncate(aside, 0)
        return {}

    def tells(self):
        """Tell whether a load tells of a byte that was changed in a file."""
        self.dump()
        path = self.side.path(self.ids[0])
        with open(path, "r+b") as file:
            at = file.seek(-1, os.SEEK_END)
            last = file.read(1)
            file.seek(at)
            file.write(bytes([last[0] ^ 1]))
        try:
            self.side.load(self.ids, self.target)
            told = False
        except Exception:
            told = True
        Path(path).touch()  # it may have been moved away
        self.remove()
        return {"tells": told}

    def plant(self, blocks):
        self.planted = self.side.plant(blocks)
        return {}

    def lookup(self, present, n, repeat):
        """Time lookups of n ids; what is measured is the call with an array."""
        spans = []
        for _ in range(repeat):
            if present:
                ids = np.ascontiguousarray(
                    self.planted[np.random.randint(len(self.planted), size=n)]
                )
            else:
                ids = random_ids(n)
            cpu, start = cpu_seconds(), time.perf_counter()
            found = self.side.lookup(ids)
            span = time.perf_counter() - start
            spans.append([span, cpu_seconds() - cpu])
            if sum(found) != n * present:
                raise AssertionError(f"{sum(found)} of {n * present} blocks were found")
        return {"spans": spans}

    def close(self):
        if self.side:
            self.side.close()
        self.side = self.source = self.target = None
        return {}

    def reopen(self, options):
        start = time.perf_counter()
        self.side = self.kind(self.folder, self.shape, dict(options))
        return {"seconds": time.perf_counter() - start}


def serve(make):
    """Answer requests until there are no more, with what make() returns."""
    # Libraries may print; the answers have a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = make()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # some leave threads behind


if __name__ == "__main__":
    serve(lambda: Worker(sys.argv[1]))
