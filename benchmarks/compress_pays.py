"""How slow a disk must be for Compress to pay: cold loads of real KV cache, the disk throttled.

python benchmarks/compress_pays.py            as Markdown; needs root and a cgroup that limits reads
python benchmarks/compress_pays.py --memory   in /dev/shm, by the instructions that the codec has

Every load is of a new process with an empty cache, whose reads from the device are limited by the
kernel (blkio.throttle of cgroup 1). Pipelines are alternated; figures are medians of raw GB/s.
Beside them what `compress_codec: auto` comes to under the same limit, after 8 rounds of dumps and
loads.
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
from ucm.cli import _codec, _measure

GROUP = Path("/sys/fs/cgroup/blkio/ucm-compress-pays")
CODECS = ("fast", "small", "raw")  # by the gauge
KERNELS = ("avx512", "avx2", "neon", "scalar")
LIMITS = (100, 250, 500, 1000, 1500, 0)  # MB/s; 0: none
SIDES = {
    "without": ("Cache|Posix", {}),
    "raw": ("Cache|Compress|Posix", {"compress_codec": "raw"}),
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
    """In a process of its own: dump and load until auto has chosen; tell what."""
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
        for turn in range(8):
            ids = names(f"auto {os.getpid()} {turn}", blocks)
            store.wait(store.dump_data(ids, [0] * blocks, source))
            store.wait(store.load_data(ids, [0] * blocks, rows(memory, planes)))
            store.remove(ids)
        print(json.dumps(CODECS[store.stats()["Compress"]["codec"]]))


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
    if not megabytes:
        yield
        return
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
    enter = f"open({str(GROUP / 'tasks')!r}, 'w').write(str(os.getpid()))" if GROUP.exists() else ""
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"{enter}\n"
        f"import compress_pays; compress_pays.{call}"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd="/")
    return json.loads(done.stdout)


def run(folder, blocks, pairs, cases):
    size = blocks * demo.SAMPLE.stat().st_size
    stored = {side: plant(side, folder, blocks) for side in SIDES}
    result = {"bytes": size, "ratios": {side: size / stored[side] for side in SIDES}, "cases": {}}
    for name, (limit, kernels) in cases.items():
        os.environ["UCM_COMPRESS_KERNELS"] = kernels
        seconds = {side: [] for side in SIDES}
        with limited(folder, limit):
            for turn in range(-1, pairs):
                for side in list(SIDES)[:: -1 if turn % 2 else 1]:
                    took = measured(f"load({side!r}, {str(folder)!r}, {blocks})")
                    if turn >= 0:
                        seconds[side].append(took)
            auto = measured(f"settle({str(folder)!r}, {blocks // 2})")
        result["cases"][name] = {"seconds": seconds, "auto": auto}
    return result


def table(what, result):
    columns = [
        what,
        *(f"{side}, GB/s" for side in SIDES),
        *(f"{side} / without" for side in ("fast", "small")),
        "auto comes to",
    ]
    lines = []
    for name, each in result["cases"].items():
        seconds = each["seconds"]
        speeds = [result["bytes"] / 1e9 / statistics.median(seconds[side]) for side in SIDES]
        ratios = [
            statistics.median(a / b for a, b in zip(seconds["without"], seconds[side], strict=True))
            for side in ("fast", "small")
        ]
        lines.append([name, *(f"{value:.2f}" for value in (*speeds, *ratios)), each["auto"]])
    ratios = ", ".join(f"{side} {value:.3f}" for side, value in result["ratios"].items())
    return f"Raw bytes by stored bytes: {ratios}.\n\n{peer_tables.table(columns, lines)}"


def kernels_here():
    for name in KERNELS:
        with contextlib.suppress(ucm.UnsupportedError):
            _codec.run(demo.SAMPLE, "bf16", demo.PLANE_BYTES, "fast", 1, name)
            yield name


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--data", type=Path, default=Path("build"), help="blocks are stored below it")
    add("--memory", action="store_true", help="in /dev/shm instead, for every set of kernels")
    add("--blocks", type=int, default=70)
    add("--pairs", type=int, default=5)
    add("--limit", type=int, action="append", help="MB/s")
    add("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    limits = args.limit or LIMITS
    cases = {f"{each} MB/s" if each else "as it can": (each, "") for each in limits}
    what, mark = "disk reads at most", "compress pays"
    if args.memory:
        cases = {name: (0, name) for name in kernels_here()}
        what, mark, args.data = "in memory", "compress pays in memory", Path("/dev/shm")
    elif not os.access(GROUP.parent, os.W_OK):
        raise SystemExit(f"compress_pays: {GROUP.parent}: root and cgroup 1's blkio are needed")
    args.data.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.data.resolve(), prefix="compress-pays-") as folder:
        text = table(what, run(Path(folder), args.blocks, args.pairs, cases))
    machine = "{cpu}, {cores} cores, kernel {kernel}".format(**_measure.machine())
    text += f"\n{machine}; load average {os.getloadavg()[2]:.1f} meanwhile.\n"
    if args.write:
        peer_tables.write(args.write, text, mark)
    else:
        print(text)


if __name__ == "__main__":
    main()
