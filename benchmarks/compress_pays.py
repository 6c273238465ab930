"""How slow a disk must be for Compress to pay: cold loads of real KV cache, the disk throttled.

python benchmarks/compress_pays.py            as Markdown; needs root and a cgroup that limits reads
python benchmarks/compress_pays.py --memory   in /dev/shm, by the instructions that the codec has

Every load is of a new process, of blocks that its cache does not have, past the page cache; the
kernel limits what it reads from the device (blkio.throttle of cgroup 1). That lets a tenth of a
second pass at once: so a load is of what the limit lets pass in two. Buffers are touched before, by
a small load. Pipelines are alternated; figures are medians of raw GB/s, ratios those of neighbours
in time. Beside them what `compress_codec: auto` comes to by such loads alone.
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
LIMITS = (250, 500, 750, 1000, 0)  # MB/s; 0: none
SIDES = {
    "without": ("Cache|Posix", {}),
    "raw": ("Cache|Compress|Posix", {"compress_codec": "raw"}),
    "fast": ("Cache|Compress|Posix", {"compress_codec": "fast"}),
    "small": ("Cache|Compress|Posix", {"compress_codec": "small"}),
}
AUTO = ("Cache|Compress|Posix", {"compress_codec": "auto"})
SECONDS = 2  # of reading raw bytes
WARM, AT_ONCE, ROUNDS = 16, 35, 8  # blocks before a load, and of one of the loads of auto


def opened(side, folder, block):
    pipeline, options = SIDES.get(side, AUTO)
    return ucm.open_pipeline(
        pipeline, storage_backends=str(folder), namespace=side, block_size=block, shard_size=block,
        tensor_size=demo.PLANE_BYTES, dtype="bf16", cache_buffer_capacity_gb=1, io_direct=True,
        **options,
    )  # fmt: skip


def names(seed, blocks):
    rng = random.Random(seed)
    return np.frombuffer(rng.randbytes(16 * blocks), np.uint8).reshape(blocks, 16)


def sets(side, blocks):
    """Which blocks are loaded at once, one set after another."""
    if side == "auto":
        return [names(f"auto {turn}", AT_ONCE) for turn in range(ROUNDS)]
    return [names(f"{side} warm", WARM), names(side, blocks)]


def rows(memory, planes):
    return (memory.ctypes.data + np.arange(len(memory) * planes) * demo.PLANE_BYTES).reshape(
        len(memory), planes
    ).astype(np.uint64)  # fmt: skip


def load(side, folder, blocks):
    """In a process of its own: load each set once; tell the seconds of the last, and the codec."""
    data = np.fromfile(demo.SAMPLE, np.uint8)
    memory = np.ones((max(blocks, AT_ONCE), len(data)), np.uint8)
    addresses = rows(memory, len(data) // demo.PLANE_BYTES)
    with opened(side, folder, len(data)) as store:
        for ids in sets(side, blocks):
            start = time.perf_counter()
            store.wait(store.load_data(ids, [0] * len(ids), addresses[: len(ids)]))
            seconds = time.perf_counter() - start
            wrong = [i for i in range(len(ids)) if not (memory[i] == data).all()]
            assert not wrong, "other bytes came back"
            memory[:] = 1
        codec = store.stats().get("Compress", {}).get("codec")
    print(json.dumps([seconds, None if codec is None else CODECS[codec]]))


def plant(side, folder, blocks):
    """Write the blocks; return the bytes that a raw one takes on the disk."""
    data = np.fromfile(demo.SAMPLE, np.uint8)
    with opened(side, folder, len(data)) as store:
        source = rows(data[None], len(data) // demo.PLANE_BYTES)
        for ids in sets(side, blocks):
            store.wait(store.dump_data(ids, [0] * len(ids), np.repeat(source, len(ids), axis=0)))
            assert store.drain().lost == 0
    files = [path.stat() for path in (folder / side).rglob("*") if path.is_file()]
    written = sum(len(ids) for ids in sets(side, blocks)) * len(data)
    return sum(file.st_blocks * 512 for file in files) / written


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


def measured(side, folder, blocks):
    enter = f"open({str(GROUP / 'tasks')!r}, 'w').write(str(os.getpid()))" if GROUP.exists() else ""
    code = (
        f"import os, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"{enter}\n"
        f"import compress_pays; compress_pays.load({side!r}, {str(folder)!r}, {blocks})"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, cwd="/")
    return json.loads(done.stdout)


def run(folder, seconds, pairs, cases):
    size = demo.SAMPLE.stat().st_size
    # Without a limit as many as with the highest.
    most = max((limit for limit, _ in cases.values()), default=0) or 1000
    blocks = {
        limit: max(1, int((limit or most) * 1e6 * seconds / size)) for limit, _ in cases.values()
    }
    stored = {side: plant(side, folder, max(blocks.values())) for side in (*SIDES, "auto")}
    result = {"ratios": {side: 1 / stored[side] for side in SIDES}, "cases": {}}
    for name, (limit, kernels) in cases.items():
        os.environ["UCM_COMPRESS_KERNELS"] = kernels
        times = {side: [] for side in SIDES}
        with limited(folder, limit):
            for turn in range(pairs):
                for side in list(SIDES)[:: -1 if turn % 2 else 1]:
                    times[side].append(measured(side, folder, blocks[limit])[0])
            autos = [measured("auto", folder, blocks[limit])[1] for _ in range(2)]
        result["cases"][name] = {
            "bytes": blocks[limit] * size,
            "seconds": times,
            "auto": " or ".join(sorted(set(autos))),
        }
    return result


def times_as_fast(case, side):
    """As `without`, turn by turn."""
    seconds = case["seconds"]
    return statistics.median(
        a / b for a, b in zip(seconds["without"], seconds[side], strict=True)
    )  # fmt: skip


def table(what, result):
    sides = [side for side in SIDES if side != "without"]
    columns = [
        what,
        *(f"{side}, GB/s" for side in SIDES),
        *(f"{side} / without" for side in sides),
        "auto comes to",
    ]
    lines = []
    for name, case in result["cases"].items():
        speeds = [case["bytes"] / 1e9 / statistics.median(case["seconds"][side]) for side in SIDES]
        ratios = [times_as_fast(case, side) for side in sides]
        lines.append([name, *(f"{value:.2f}" for value in (*speeds, *ratios)), case["auto"]])
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
    add("--seconds", type=float, default=SECONDS, help="a load takes at its limit, uncoded")
    add("--pairs", type=int, default=4)
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
    busy = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.data.resolve(), prefix="compress-pays-") as folder:
        text = table(what, run(Path(folder), args.seconds, args.pairs, cases))
    machine = "{cpu}, {cores} cores, kernel {kernel}".format(**_measure.machine())
    text += f"\n{machine}; {args.pairs} turns; load average {busy:.1f} when they began.\n"
    if args.write:
        peer_tables.write(args.write, text, mark)
    else:
        print(text)


if __name__ == "__main__":
    main()
