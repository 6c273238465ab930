"""One side of cache_peers.py: keeps one store open and does a round for each line it reads.

It runs under the python of each side, so it imports nothing of this package at the top.
"""

import ctypes
import importlib
import mmap
import os
import random
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import peer_worker
from peer_worker import Memory, random_ids

KEPT_SECONDS = 10  # how long the reference gets to move below what it has accepted
WARM_LOADS = 4  # a new block that nobody has loaded may make way for the next one


class Ours(peer_worker.Ours):
    def __init__(self, folder, shape, options):
        import ucm

        self.folder, self.shape, self.space, self.writer = Path(folder), shape, None, None
        self.pipeline = options.pop("store_pipeline")
        self.sizes = {"block_size": shape.block, "shard_size": shape.shard}
        self.sizes["tensor_size"] = shape.shard
        self.files = {"storage_backends": folder, "io_direct": True}
        below = self.files if "Posix" in self.pipeline else {}
        self.open = ucm.open_pipeline
        self.store = self.open(self.pipeline, **{**self.sizes, **below, **options})

    def prepare(self, ids, memory, rows):
        return ids[rows], memory.indexes[rows], memory.addresses[rows]

    def dump(self, batch):
        self.store.wait(self.store.dump_data(*batch))

    def load(self, batch):
        self.store.wait(self.store.load_data(*batch))

    def settle(self, _ids):
        """Wait until all that was accepted is stored."""
        report = self.store.drain()
        if report.lost or report.pending or report.unfinished:
            raise AssertionError(f"not everything was stored: {report}")

    def plant(self, ids, memory):
        """Store blocks below, without the cache knowing of them."""
        if not self.writer:
            self.writer = self.open("Posix", **self.sizes, **self.files)
        batch = self.prepare(ids, memory, slice(None))
        self.writer.wait(self.writer.dump_data(*batch))

    def counts(self):
        stats = self.store.stats()
        read = stats.get("Posix", {}).get("load_in_bytes_total", 0)
        return {"hits": stats.get("Cache", {}).get("hit_shards_total", 0), "read": read}

    def lookups(self, array, listed):
        store = self.store
        return {
            "lookup, array": lambda: store.lookup(array),
            "lookup, list": lambda: store.lookup(listed),
            "prefix, array": lambda: store.lookup_on_prefix(array) + 1,
            "prefix, list": lambda: store.lookup_on_prefix(listed) + 1,
        }

    def close(self):
        for store in filter(None, (self.writer, self.store)):
            store.close()


class Reference(peer_worker.Reference):
    """Cache of uc-manager over its Posix, stacked and called as its own Python layer does."""

    def __init__(self, folder, shape, options):
        self.folder, self.shape = Path(folder), shape
        home, lower = Path(options.pop("home")), options.pop("store_pipeline").split("|")[-1]
        sys.path.insert(0, str(home))
        os.environ["UC_LOGGER_LEVEL"] = "error"
        os.environ["UCM_LOG_PATH"] = str(self.folder.parent / "log")
        ctypes.CDLL(str(home / "ucm/shared/metrics/libmetrics.so"), mode=ctypes.RTLD_GLOBAL)
        native = importlib.import_module("ucm.store.pipeline.ucmpipelinestore")
        config = {
            "store_pipeline": f"Cache|{lower}",
            "storage_backends": [folder],
            "tensor_size": shape.shard,
            "shard_size": shape.shard,
            "block_size": shape.block,
            "io_direct": True,
            "share_buffer_enable": True,
            "posix_gc_enable": False,
            "device_id": 0,
            **options,
        }
        self.store, self.lower = native.PipelineStore(), lower
        for name in (lower, "Cache"):
            library = home / f"ucm/store/{name.lower()}/lib{name.lower()}store.so"
            self.store.Stack(name, str(library), config)

    def prepare(self, ids, memory, rows):
        return ids[rows].reshape(-1), memory.indexes[rows].astype(np.uint64), memory.addresses[rows]

    def dump(self, batch):
        self.store.Wait(self.store.Dump(*batch, 0))

    def load(self, batch):
        self.store.Wait(self.store.Load(*batch))

    def settle(self, ids):
        """It cannot tell when it has stored all: look at its files."""
        until = time.monotonic() + KEPT_SECONDS
        paths = {self.path(i) for i in ids} if self.lower == "Posix" else set()
        while paths and time.monotonic() < until:
            paths = {path for path in paths if not os.path.exists(path)}
            time.sleep(0.001)

    def plant(self, ids, memory):
        """Write its files, which are the shards one after another."""
        shape = self.shape
        shards = memory.bytes.reshape(shape.shards, shape.blocks, shape.shard)
        with mmap.mmap(-1, shape.block) as aligned:
            for i, block_id in enumerate(ids[:: shape.shards]):
                aligned[:] = shards[:, i].tobytes()
                flags = os.O_CREAT | os.O_WRONLY | os.O_DIRECT
                file = os.open(self.path(block_id), flags, 0o644)
                os.write(file, aligned)
                os.close(file)

    def counts(self):
        return {"hits": None, "read": None}

    def lookups(self, array, listed):
        store, flat = self.store, array.reshape(-1)

        def joined():
            return np.frombuffer(b"".join(listed), np.uint8)

        return {
            "lookup, array": lambda: np.frombuffer(store.Lookup(flat), bool),
            "lookup, list": lambda: np.frombuffer(store.Lookup(joined()), bool),
            "prefix, array": lambda: store.LookupOnPrefix(flat) + 1,
            "prefix, list": lambda: store.LookupOnPrefix(joined()) + 1,
        }


class Lmcache:
    """LocalCPUBackend of LMCache: memory is allocated, copied into and indexed, block by block."""

    def __init__(self, folder, shape, options):
        import torch
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.memory_management import MemoryFormat
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

        torch.set_num_threads(1)  # threads of a copy wait for each other on a busy machine
        self.torch, self.shape, self.key = torch, shape, CacheEngineKey
        self.kind, self.format = torch.bfloat16, MemoryFormat.KV_2LTD
        layers = max(1, shape.shards)
        values = shape.block // (2 * layers * 2)  # of K, or of V, in a layer
        tokens = 16 if values >= 16 * 128 else 1
        self.form = torch.Size([2, layers, tokens, values // tokens])
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=tokens, local_cpu=True, max_local_cpu_size=options["capacity_gib"]
        )
        metadata = LMCacheMetadata(
            model_name="m",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=self.kind,
            kv_shape=(layers, 2, tokens, 1, values // tokens),
            chunk_size=tokens,
        )
        self.store = LocalCPUBackend(config, metadata=metadata, dst_device="cpu")

    def keys(self, ids):
        return [self.key("m", 1, 0, int.from_bytes(bytes(i[:7]), "little"), self.kind) for i in ids]

    def prepare(self, ids, memory, rows):
        shape, start = self.shape, (rows.start or 0) // self.shape.shards
        layers = memory.bytes.reshape(shape.shards, shape.blocks, shape.shard)
        layers = self.torch.from_numpy(layers)
        keys = self.keys(ids[rows][:: shape.shards])
        return [(key, layers[:, start + i]) for i, key in enumerate(keys)]

    def as_layers(self, kept):
        return kept.tensor.view(self.torch.uint8).view(self.shape.shards, self.shape.shard)

    def dump(self, batch):
        for key, layers in batch:
            kept = self.store.allocate(self.form, self.kind, self.format)
            self.as_layers(kept).copy_(layers)
            self.store.submit_put_task(key, kept)
            kept.ref_count_down()

    def load(self, batch):
        for key, layers in batch:
            kept = self.store.get_blocking(key)
            layers.copy_(self.as_layers(kept))
            kept.ref_count_down()

    def settle(self, _ids):
        """Nothing is below."""

    def path(self, _id):
        return ""

    def counts(self):
        return {"hits": None, "read": None}

    def lookups(self, array, _listed):
        keys = self.keys(array)
        return {"lookup, its keys": lambda: [self.store.contains(key) for key in keys]}

    def close(self):
        self.store = None


SIDES = {"ours": Ours, "reference": Reference, "lmcache": Lmcache}


class Pool:
    """Touched memory in huge pages, as a cache has it, and memcpy to and from it."""

    def __init__(self, shape, library):
        self.size = shape.shard
        self.mapping = mmap.mmap(-1, shape.bytes)
        self.mapping.madvise(mmap.MADV_HUGEPAGE)
        memory = np.frombuffer(self.mapping, np.uint8)
        memory[:] = 1
        rows = np.arange(shape.blocks * shape.shards, dtype=np.uint64)
        self.addresses = memory.ctypes.data + rows * np.uint64(shape.shard)
        self.copy = ctypes.CDLL(library).copy_pieces
        self.copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64]
        self.copy.restype = None


def rollup(pid):
    """Return the process's share of memory in bytes, all of it and what of it is shared memory."""
    names = {"Pss": 0, "Pss_Shmem": 0}
    with open(f"/proc/{pid}/smaps_rollup") as lines:
        for line in lines:
            name, _, rest = line.partition(":")
            if name in names:
                names[name] = int(rest.split()[0]) * 1024
    return names


class Worker(peer_worker.Worker):
    def __init__(self, kind, library):
        super().__init__("ours")
        self.kind, self.library, self.hot, self.pool = SIDES[kind], library, None, None
        self.running, self.ours = None, kind == "ours"

    def open(self, folder, shape, options, memory, own_target=False):
        answer = super().open(folder, shape, options, memory)
        if own_target:
            self.target = Memory(self.shape)
            self.target.bytes[:] = 1
        return answer

    def new_ids(self):
        return np.repeat(random_ids(self.shape.blocks), self.shape.shards, axis=0)

    def rows(self, blocks):
        step, n = blocks * self.shape.shards, self.shape.blocks * self.shape.shards
        return [slice(k, k + step) for k in range(0, n, step)]

    def calls(self, operation, blocks, ids=None):
        """Return what does the operation, and its arguments for every batch of so many blocks."""
        memory = self.source if operation == "dump" else self.target
        ids = self.hot if ids is None else ids
        batches = [self.side.prepare(ids, memory, rows) for rows in self.rows(blocks)]
        return getattr(self.side, operation), batches

    def each(self, call, batches):
        result = self.timed(lambda: [call(batch) for batch in batches])
        result["bytes"] = self.shape.bytes
        return result

    def check(self, result):
        """Compare what was loaded with what was dumped."""
        result["wrong"] = not np.array_equal(self.source.bytes, self.target.bytes)
        if result["wrong"] and self.ours:
            raise AssertionError("the bytes that were loaded are not those that were dumped")
        return result

    def heat(self, load):
        """Dump all blocks: those that are loaded later, until it is called again."""
        self.ids = self.hot = self.new_ids()
        self.each(*self.calls("dump", self.shape.blocks))
        self.side.settle(self.hot[:: self.shape.shards])
        for _ in range(WARM_LOADS if load else 0):
            if self.load(self.shape.blocks, must_be_hot=False)["hits"] == len(self.hot):
                break
        return {}

    def load(self, blocks, must_be_hot=True):
        """Load the hot blocks in batches of so many."""
        self.target.bytes[:] = 0
        before = self.side.counts()["hits"]
        result = {"hits": None, **self.each(*self.calls("load", blocks))}
        if before is not None:
            result["hits"] = self.side.counts()["hits"] - before
            if must_be_hot and result["hits"] < len(self.hot):
                raise AssertionError(f"{result['hits']} of {len(self.hot)} shards were hot")
        return self.check(result)

    def dump(self, blocks):
        """Dump new blocks in batches of so many: accepted; then until they are stored below."""
        self.ids = self.new_ids()
        cpu = peer_worker.cpu_seconds()
        result = self.each(*self.calls("dump", blocks, self.ids))
        self.side.settle(self.ids[:: self.shape.shards])
        result["stored_cpu_seconds"] = peer_worker.cpu_seconds() - cpu
        self.put_aside()
        return result

    def put_aside(self):
        """Free the room of the last blocks, if they are in files."""
        if self.side.path and os.path.isdir(self.folder) and os.listdir(self.folder):
            self.remove()

    def prove(self):
        """Dump into an empty cache and load that."""
        self.ids = self.hot = self.new_ids()
        self.each(*self.calls("dump", self.shape.blocks))
        self.target.bytes[:] = 0
        self.check(self.each(*self.calls("load", self.shape.blocks)))
        self.side.settle(self.ids[:: self.shape.shards])
        self.put_aside()
        return {}

    def copies(self, operation, blocks):
        if not self.pool:
            self.pool = Pool(self.shape, self.library)
        memory = self.source if operation == "dump" else self.target
        batches = []
        for rows in self.rows(blocks):
            store, outside = self.pool.addresses[rows], memory.addresses[rows, 0].copy()
            to, source = (store, outside) if operation == "dump" else (outside, store)
            batches.append((to, source))  # their memory has to outlive the calls

        def call(batch):
            to, source = batch
            self.pool.copy(to.ctypes.data, source.ctypes.data, self.shape.shard, len(to))

        return call, batches

    def copy(self, operation, blocks):
        """Copy the same pieces, in the same batches, with memcpy."""
        return self.each(*self.copies(operation, blocks))

    def single(self, what):
        """Move every block by a call of its own, in any order; return the median call."""
        call, batches = self.calls("load", 1) if what == "load" else self.copies("load", 1)
        random.shuffle(batches)
        before = self.side.counts()["hits"]
        spans, cpu = [], peer_worker.cpu_seconds()
        for batch in batches:
            start = time.perf_counter()
            call(batch)
            spans.append(time.perf_counter() - start)
        cpu = peer_worker.cpu_seconds() - cpu
        if what == "load" and before is not None:
            hits = self.side.counts()["hits"] - before
            if hits < len(batches):
                raise AssertionError(f"{hits} of {len(batches)} blocks were hot")
        result = {"seconds": statistics.median(spans), "cpu_seconds": cpu / len(spans)}
        return {**result, "bytes": self.shape.block}

    def cold(self):
        """Load blocks, all in one task, that the cache has never seen."""
        self.ids = self.new_ids()
        self.side.plant(self.ids, self.source)
        self.target.bytes[:] = 0
        before, device = self.side.counts(), self.device_bytes()
        result = self.each(*self.calls("load", self.shape.blocks, self.ids))
        result["device_bytes"] = self.device_bytes() - device
        if before["hits"] is not None:
            after = self.side.counts()
            result.update({name: after[name] - before[name] for name in before})
        self.check(result)
        self.remove()
        return result

    def plant(self, path):
        """Store new blocks below and write their ids to a file."""
        self.ids = self.new_ids()
        self.side.plant(self.ids, self.source)
        np.save(path, self.ids)
        return {}

    def load_at(self, path, at):
        """Load these blocks at this time, as others do; tell what it took."""
        self.ids = np.load(path)
        self.target.bytes[:] = 0
        call, batches = self.calls("load", self.shape.blocks, self.ids)
        before, device, memory = self.side.counts(), self.device_bytes(), rollup("self")
        time.sleep(max(0, at - time.monotonic()))
        result = self.each(call, batches)
        result["end"] = time.monotonic()
        result["device_bytes"] = self.device_bytes() - device
        if before["read"] is not None:
            result["read"] = self.side.counts()["read"] - before["read"]
        result["memory_before"] = memory
        return result

    def memory(self):
        """Tell how much memory is this process's, when all have loaded; only then compare."""
        return rollup("self")

    def compared(self):
        return self.check({})

    def device_bytes(self):
        with open("/proc/self/io") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))

    def find(self, repeat):
        """Time lookups of all hot blocks, in every way; return the median of each."""
        ids = np.ascontiguousarray(self.hot[:: self.shape.shards])
        result = {}
        for name, call in self.side.lookups(ids, [bytes(i) for i in ids]).items():
            spans = []
            for _ in range(repeat):
                start = time.perf_counter()
                found = call()
                spans.append(time.perf_counter() - start)
                if np.sum(found) != len(ids):
                    raise AssertionError(f"{name}: {np.sum(found)} of {len(ids)} blocks were found")
            result[name] = statistics.median(spans)
        return {"seconds": result}

    def paced(self, what, rate, seconds):
        """Move one hot block after another at this rate; return each call's time, and of hits.

        Of each also the time without what the thread waited for a core.
        """
        call, batches = self.calls("load", 1) if what == "load" else self.copies("load", 1)
        hits = self.side.counts()["hits"]
        result = {name: [] for name in ("spans", "on_core", "hot", "hot_on_core")}
        due = time.perf_counter()
        with open("/proc/thread-self/schedstat", "rb") as file:

            def waited():
                return int(os.pread(file.fileno(), 100, 0).split()[1]) / 1e9

            for i in range(int(rate * seconds)):
                due = max(due + 1 / rate, time.perf_counter())
                time.sleep(max(0, due - time.perf_counter()))
                queued, start = waited(), time.perf_counter()
                call(batches[i % len(batches)])
                span = time.perf_counter() - start
                on_core = span - (waited() - queued)
                before, hits = hits, self.side.counts()["hits"]  # memcpy pays for this, too
                for kind in ("", "hot_") if hits > before else ("",):
                    result[kind + "on_core"].append(on_core)
                    result["hot" if kind else "spans"].append(span)
        return result

    def start_stream(self, blocks):
        """Dump new blocks, batch after batch, until stop_stream."""
        sys.setswitchinterval(0.0005)
        self.running, self.moved, self.refused = True, 0, 0
        self.since = time.monotonic()
        self.stream = threading.Thread(target=self.dump_on, args=(blocks,))
        self.stream.start()
        return {}

    def dump_on(self, blocks):
        rows = self.rows(blocks)
        while self.running:
            ids = self.new_ids()
            for part in rows:
                try:
                    self.side.dump(self.side.prepare(ids, self.source, part))
                    self.moved += blocks * self.shape.block
                except Exception as error:  # it has too much to do
                    if not self.refused:
                        print(f"dumps are refused: {error}", file=sys.stderr)
                    self.refused += 1
                    time.sleep(0.001)
                if not self.running:
                    break

    def stop_stream(self):
        self.running = False
        self.stream.join()
        span = time.monotonic() - self.since
        self.side.settle([])
        return {"bytes_per_second": self.moved / span, "refused": self.refused}


if __name__ == "__main__":
    peer_worker.serve(lambda: Worker(sys.argv[1], sys.argv[2]))
