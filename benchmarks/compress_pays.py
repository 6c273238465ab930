"""How slow a disk must be for Compress to pay: cold loads of real KV cache, the disk throttled.

python benchmarks/compress_pays.py            as Markdown; needs root and a cgroup that limits reads

Every load is of a new process with an empty cache, whose reads from the device are limited by the
kernel (blkio.throttle of cgroup 1). Pipelines are alternated; figures are medians of raw GB/s.
Beside them what `compress_codec: auto` comes to under the same limit: its last of 8 rounds of dumps
and loads.
"""

import argparse
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import peer_tables

import ucm
from ucm import demo

GROUP = Path("/sys/fs/cgroup/blkio/ucm-compress-pays")
LIMITS = (100, 250, 500, 1000, 1500, 0)  # MB/s; 0: none
SIDES = {
    "raw": ("Cache|Posix", {}),
    "fast": ("Cache|Compress|Posix", {"compress_codec": "fast"}),
    "small": ("Cache|Compress|Posix", {"compress_codec": "small"}),
}


def opened(side, folder, block):
    pipeline, options = SIDES[side]
    return ucm.open_pipeline(
        pipeline, storage_backends=str(folder), namespace=side, block_size=block, shard_size=block,
        tensor_size=demo.PLANE_BYTES, dtype="bf16", cache_buffer_capacity_gb=1, io_direct=True,
        **options,
    )  # fmt: skip


def names(side, blocks):
    rng = random.Random(side)
    return np.frombuffer(rng.randbytes(16 * blocks), np.uint8).reshape(blocks, 16)


def rows(memory, planes):
    return (memory.ctypes.data + np.arange(len(memory) * planes) * demo.PLANE_BYTES).reshape(
        len(memory), planes
    ).astype(np.uint64)  # fmt: skip


def load(side, folder, blocks):
    """In a process of its own: load all blocks once, and tell the seconds."""
    data = np.fromfile(demo.SAMPLE, np.uint8)
    memory = np.ones((blocks, len(data)), np.uint8)
    with opened(side, folder, len(data)) as store:
        addresses = rows(memory, len(data) // demo.PLANE_BYTES)
        start = time.perf_counter()
        store.wait(store.load_data(names(side, blocks), [0] * blocks, addresses))
        seconds = time.perf_counter() - start
    assert all((block == data).all() for block in memory), "other bytes came back"
    print(json.dumps(seconds))


def settle(folder, blocks):
    """In a process of its own: dump and load until auto has chosen; tell raw by stored bytes."""
    data = np.fromfile(demo.SAMPLE, np.uint8)
    block = len(data)
    memory = np.ones((blocks, block), np.uint8)
    planes = block // demo.PLANE_BYTES
    source = np.repeat(rows(data[None], planes), blocks, axis=0)
    with ucm.open_pipeline(
        "Compress|Posix", storage_backends=str(folder), namespace="auto", block_size=block,
        shard_size=block, tensor_size=demo.PLANE_BYTES, dtype="bf16", io_direct=True,
        compress_codec="auto",
    ) as store:  # fmt: skip
        stored = 0
        for turn in range(8):
            ids = names(f"auto {os.getpid()} {turn}", blocks)
            before = store.stats()["Compress"]["dump_out_bytes_total"]
            store.wait(store.dump_data(ids, [0] * blocks, source))
            stored = store.stats()["Compress"]["dump_out_bytes_total"] - before
            store.wait(store.load_data(ids, [0] * blocks, rows(memory, planes)))
            store.remove(ids)
    print(json.dumps(blocks * block / stored))


def plant(side, folder, blocks):
    """Write the blocks; return the bytes that they take on the disk."""
    data = np.fromfile(demo.SAMPLE, np.uint8)
    with opened(side, folder, len(data)) as store:
        addresses = np.repeat(rows(data[None], len(data) // demo.PLANE_BYTES), blocks, axis=0)
        store.wait(store.dump_data(names(side, blocks), [0] * blocks, addresses))
        assert store.drain().lost == 0
    files = (folder / side).rglob("*")
    return sum(path.stat().st_blocks * 512 for path in files if path.is_file())


@contextlib.contextmanager
def limited(folder, megabytes):
    """Limit what processes of the group read from the folder's device."""
    number = os.stat(folder).st_dev
    disk = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")
    if (disk / "partition").exists():
        disk = disk.resolve().parent
    device = (disk / "dev").read_text().strip()
    GROUP.mkdir(exist_ok=True)
    try:
        limit = GROUP / "blkio.throttle.read_bps_device"
        limit.write_text(f"{device} {megabytes * 1000000}")
        yield
        limit.write_text(f"{device} 0")
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                GROUP.rmdir()
                break
            time.sleep(0.1)


def measured(call):
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"open({str(GROUP / 'tasks')!r}, 'w').write(str(os.getpid()))\n"
        f"import compress_pays; compress_pays.{call}"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd="/")
    return json.loads(done.stdout)


def run(folder, blocks, pairs, limits):
    size = blocks * demo.SAMPLE.stat().st_size
    stored = {side: plant(side, folder, blocks) for side in SIDES}
    result = {"bytes": size, "ratios": {side: size / stored[side] for side in SIDES}, "limits": []}
    for limit in limits:
        seconds = {side: [] for side in SIDES}
        with limited(folder, limit):
            for turn in range(-1, pairs):
                for side in list(SIDES)[:: -1 if turn % 2 else 1]:
                    took = measured(f"load({side!r}, {str(folder)!r}, {blocks})")
                    if turn >= 0:
                        seconds[side].append(took)
            auto = measured(f"settle({str(folder)!r}, {blocks // 2})")
        result["limits"].append({"mb_per_second": limit, "seconds": seconds, "auto": auto})
    return result


def table(result):
    columns = [
        "disk reads at most",
        *(f"{side}, GB/s" for side in SIDES),
        "fast / raw",
        "small / raw",
        "auto: raw by stored bytes",
    ]
    lines = []
    for each in result["limits"]:
        seconds = each["seconds"]
        speeds = [result["bytes"] / 1e9 / statistics.median(seconds[side]) for side in SIDES]
        ratios = [
            statistics.median(a / b for a, b in zip(seconds["raw"], seconds[side], strict=True))
            for side in ("fast", "small")
        ]
        limit = f"{each['mb_per_second']} MB/s" if each["mb_per_second"] else "as it can"
        lines.append([limit, *(f"{value:.2f}" for value in (*speeds, *ratios, each["auto"]))])
    ratios = ", ".join(f"{side} {value:.3f}" for side, value in result["ratios"].items())
    return f"Raw bytes by bytes on the disk: {ratios}.\n\n{peer_tables.table(columns, lines)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=Path("build"), help="blocks are stored below it"
    )
    parser.add_argument("--blocks", type=int, default=70)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--limit", type=int, action="append", help="MB/s")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    if not GROUP.parent.is_dir() or not os.access(GROUP.parent, os.W_OK):
        raise SystemExit(f"compress_pays: {GROUP.parent}: root and cgroup 1's blkio are needed")
    args.data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.data.resolve(), prefix="compress-pays-") as folder:
        text = table(run(Path(folder), args.blocks, args.pairs, args.limit or LIMITS))
    if args.write:
        peer_tables.write(args.write, text, "compress pays")
    else:
        print(text)


if __name__ == "__main__":
    main()
