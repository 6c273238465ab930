"""The file faults of ``ucm bench faults`` on the file tiers of others; docs/faults.md has the card.

    python benchmarks/faults_peers.py vllm       needs vllm
    python benchmarks/faults_peers.py lmcache    needs lmcache and what it imports

Each keeps 8 blocks of 1 MiB, 4 of them are hit, all are loaded and compared, what lookup does not
find is stored again, and all are loaded once more. "restart" opens the directory anew.
"""

import argparse
import asyncio
import collections
import importlib.util
import json
import mmap
import os
import random
import tempfile
import threading
from pathlib import Path

from ucm.breaking import DAMAGES, damage_files

BLOCKS, SIZE = 8, 1 << 20


class VllmFiles:
    """The functions under vLLM's secondary tier "fs"."""

    name = "vllm"

    def __init__(self, folder):
        importlib.import_module("torch")  # the library below needs its libraries
        spec = importlib.util.find_spec("vllm")
        library = Path(spec.submodule_search_locations[0]) / "fs_io_C.abi3.so"
        spec = importlib.util.spec_from_file_location("fs_io_C", library)
        self.io = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.io)
        self.folder = folder

    def path(self, number):
        return self.folder / f"{number}.bin"

    def put(self, number, data):
        final = str(self.path(number))
        self.io.batch_store_block([final + ".tmp"], [final], [memoryview(data)], False)

    def has(self, number):
        return bool(self.io.batch_lookup([str(self.path(number))])[0])

    def get(self, number):
        memory = mmap.mmap(-1, SIZE)
        self.io.batch_load_block([str(self.path(number))], [memoryview(memory)], False)
        return memory[:]


class LmcacheDisk:
    """LMCache's LocalDiskBackend."""

    name = "lmcache"
    loop = None

    def __init__(self, folder):
        import torch
        from lmcache.utils import CacheEngineKey
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.memory_management import MemoryFormat
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
        from lmcache.v1.storage_backend.local_disk_backend import LocalDiskBackend

        if not LmcacheDisk.loop:
            LmcacheDisk.loop = asyncio.new_event_loop()
            threading.Thread(target=self.loop.run_forever, daemon=True).start()
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=16,
            local_cpu=False,
            max_local_cpu_size=0.1,
            local_disk=f"file://{folder}/",
            max_local_disk_size=1,
        )
        metadata = LMCacheMetadata(
            model_name="m",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.bfloat16,
            kv_shape=(32, 2, 16, 4, 128),
            chunk_size=16,
        )
        self.torch = torch
        self.key = lambda number: CacheEngineKey("m", 1, 0, 1000 + number, torch.bfloat16)
        self.memory = LocalCPUBackend(config, metadata=metadata, dst_device="cpu")
        self.disk = LocalDiskBackend(config, self.loop, self.memory, "cpu", None, metadata)
        self.format = MemoryFormat.KV_2LTD

    def path(self, number):
        return Path(self.disk.dict[self.key(number)].path)

    def put(self, number, data):
        torch, stored = self.torch, threading.Event()
        shape = torch.Size([2, 32, 16, 512])
        memory = self.memory.allocate(shape, torch.bfloat16, self.format)
        flat = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        memory.tensor.view(torch.uint8).reshape(-1).copy_(flat)
        self.disk.submit_put_task(
            self.key(number), memory, on_complete_callback=lambda _: stored.set()
        )
        assert stored.wait(20)
        memory.ref_count_down()

    def has(self, number):
        return self.disk.contains(self.key(number))

    def get(self, number):
        memory = self.disk.get_blocking(self.key(number))
        if memory is None:
            return None
        data = bytes(memory.tensor.view(self.torch.uint8).reshape(-1).numpy())
        memory.ref_count_down()
        return data


def ends_of(store, blocks):
    ends = []
    for number, data in enumerate(blocks):
        if not store.has(number):
            ends.append("missed")
            continue
        try:
            got = store.get(number)
        except Exception:
            ends.append("told")
            continue
        ends.append("missed" if got is None else "right" if got == data else "wrong")
    return collections.Counter(ends)


def score(peer, damage, folder):
    store, blocks = peer(folder), [os.urandom(SIZE) for _ in range(BLOCKS)]
    for number, data in enumerate(blocks):
        store.put(number, data)
    if damage:
        damage_files([store.path(n) for n in range(1, BLOCKS, 2)], damage, random.Random(1))
    else:
        store = peer(folder)
    ends = ends_of(store, blocks)
    for number, data in enumerate(blocks):
        if not store.has(number):
            store.put(number, data)
    again = ends_of(store, blocks)
    return {
        "wrong": ends["wrong"],
        "told": ends["told"],
        "lost": BLOCKS - ends["right"],
        "recovered": again["right"],
    }


def main():
    peers = {peer.name: peer for peer in (VllmFiles, LmcacheDisk)}
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=peers)
    peer = peers[parser.parse_args().peer]
    scores = {}
    for name, damage in {**DAMAGES, "restart": None}.items():
        if "header" in name:
            continue  # they have none
        with tempfile.TemporaryDirectory() as folder:
            scores[name] = score(peer, damage, Path(folder))
    print(json.dumps(scores, indent=2), flush=True)
    os._exit(0)  # some leave threads behind


if __name__ == "__main__":
    main()
