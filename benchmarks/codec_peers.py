"""The codec of Compress beside memcpy, ZipNN, OpenZL, blosc2, pcodec, zstd and lz4, on one thread.

python benchmarks/codec_peers.py                         the packaged sample, as Markdown
python benchmarks/codec_peers.py --data FOLDER           and all samples of real KV cache in it;
                                                         in blocks of 16 tokens, too, of each model
python benchmarks/codec_peers.py FILE=bf16,65536         and a file, its numbers, bytes of a plane
python benchmarks/codec_peers.py --quick --peers ""      does the script still run?
python benchmarks/codec_peers.py --write docs/performance.md
"""

import argparse
import ctypes
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

import codec_coders
import codec_tables
import numpy as np
import peer_install
from peer_side import Failed, add_common, installed, kept, place, say, show, this_run

import ucm
from ucm import demo, options
from ucm.cli import _codec
from ucm.cli._measure import machine

RATES = ("compress", "decompress")
KIB, MIB = 1 << 10, 1 << 20
KERNELS = ("avx512", "avx2", "neon", "scalar")  # the best first
NAMED = re.compile(r"(?P<model>[^_]+)_(?P<dtype>[^_]+)_.+_b(?P<block>\d+)")
VALUES = {"smollm2": 3 * 64, "gemma3": 1 * 256}  # in K or V of a token in one layer
LAYERS = {"smollm2": 30, "gemma3": 18}
BLOCK = 16  # tokens, as engines have them
DTYPES = {"bf16": "bf16", "fp16": "fp16", "fp32": "fp32", "fp8": "fp8_e4m3"}
FIELDS = {"bf16": (np.uint16, 7, 8), "fp16": (np.uint16, 10, 5), "fp32": (np.uint32, 23, 8)}
FIELDS |= {"fp8_e4m3": (np.uint8, 3, 4), "fp8_e5m2": (np.uint8, 2, 5)}


class Sample:
    """A file, again and again until the caches do not hold it, for us and for the others."""

    def __init__(self, path, dtype, plane, short, least, cut):
        raw, self.name = np.fromfile(path, np.uint8), path.stem
        model = self.name.partition("_")[0]
        if short:
            raw = cut_blocks(raw, 2 * LAYERS[model], plane, short)
            self.name, plane = f"{self.name.rpartition('_')[0]}_b{BLOCK}", short
        # A block of all layers, as stores get them, where that is no more than is copied at once.
        self.shard = min(2 * LAYERS.get(model, 1 << 20) * plane, _codec.SHARD_BYTES)
        raw = raw[: min(len(raw), least if cut else len(raw)) // plane * plane]
        if not len(raw):
            raise Failed(f"{path}: it has not one plane of {plane} bytes")
        self.dtype, self.plane = dtype, plane
        self.copies = math.ceil(least / len(raw))
        self.bytes = np.tile(raw, self.copies)
        self.again = np.ones_like(self.bytes)
        self.bound = exponent_bound(raw, dtype, plane)
        self.file = os.memfd_create("sample")
        self.bytes.tofile(f"/proc/self/fd/{self.file}")

    def ours(self, codec, kernels, checksums, dtype=None, named=None):
        path = Path(f"/proc/self/fd/{self.file}")
        return _codec.run(
            path, dtype or self.dtype, self.plane, codec, 1, kernels, checksums, named, self.shard
        )

    def copy(self, piece):
        """Copy all in pieces of so many bytes; return the seconds, and leave nothing there."""
        to, source, size = self.again.ctypes.data, self.bytes.ctypes.data, len(self.bytes)

        def pieces():
            for at in range(0, size, piece):
                ctypes.memmove(to + at, source + at, min(piece, size - at))

        seconds, _ = cpu_seconds(pieces)
        self.again.fill(1)
        return seconds

    def facts(self):
        """What the tables say, and how much no hint costs: the bytes alone tell what they are."""
        guessed = self.ours("fast", "best", True, dtype="bytes")
        named = self.ours("fast", "best", True, named=self.dtype)
        size = len(self.bytes)
        return {
            "noise": self.noise(),
            "dtype": self.dtype,
            "plane": self.plane,
            "bytes": size,
            "copies": self.copies,
            "bound": self.bound,
            "whole_copy": statistics.median(size / self.copy(size) / 1e9 for _ in range(5)),
            "guessed": guessed["ratio"],
            "named": named["ratio"],
        }

    def noise(self):
        """What as many random bytes take, in parts of memcpy; in many short shards."""
        shard, parts = 8 * self.plane, {}
        with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
            file.write(os.urandom(len(self.bytes)))
            file.flush()
            given = Path(file.name), self.dtype, self.plane, "fast", 5, "best"
            for checksums in (False, True):
                got = _codec.run(*given, checksums, None, shard)
                for name in RATES:
                    what = f"{name}, with checksums" if checksums else name
                    parts[what] = got[f"{name}_gbps"] / got["memcpy_gbps"]
        shards = math.ceil(got["bytes"] / shard)
        return {**parts, "frame_bytes": got["frame_bytes"], "shards": shards}

    def close(self):
        os.close(self.file)


def cut_blocks(raw, planes, long, short):
    """Cut blocks of so many planes of `long` bytes into ones of `short`, in the order of tokens."""
    whole = len(raw) // (planes * long) * planes * long
    return raw[:whole].reshape(-1, planes, long // short, short).swapaxes(1, 2).reshape(-1)


def exponent_bound(raw, dtype, plane):
    """The ratio of an ideal code of the exponents of each plane, all else as it is; no tables."""
    if dtype not in FIELDS:
        return None
    words, shift, bits = FIELDS[dtype]
    width = np.dtype(words).itemsize
    total = 0.0
    for at in range(0, len(raw), plane):
        exponents = raw[at : at + plane].view(words) >> shift & ((1 << bits) - 1)
        counts = np.bincount(exponents, minlength=1)
        counts = counts[counts > 0]
        entropy = -(counts * np.log2(counts / counts.sum())).sum()
        total += entropy + (width * 8 - bits) * counts.sum()
    return len(raw) * 8 / total


def cpu_seconds(work):
    """CPU time of all threads: what a library hands to others is its cost, too."""
    start = time.process_time_ns()
    result = work()
    return (time.process_time_ns() - start) / 1e9, result


class Ours:
    def __init__(self, codec, kernels, checksums):
        self.name = f"ours {codec}, {kernels}{', with checksums' if checksums else ''}"
        self.given = codec, kernels, checksums

    def run(self, sample):
        got = sample.ours(*self.given)
        rates = {name: got[f"{name}_gbps"] for name in ("compress", "decompress", "memcpy")}
        return {"ratio": len(sample.bytes) / got["frame_bytes"], **rates}

    def facts(self):
        return dict(zip(("codec", "kernels", "checksums"), self.given, strict=True))


class Peer:
    def __init__(self, coder, size):
        self.coder, self.compress, self.decompress = coder
        self.size, self.name = size, f"{self.coder}, {size}"

    def cut(self, memory, size):
        return [memory[at : at + size] for at in range(0, len(memory), size)]

    def run(self, sample):
        pieces, rooms = self.cut(sample.bytes, self.size), self.cut(sample.again, self.size)
        size = len(sample.again)
        copied = sample.copy(_codec.SHARD_BYTES)
        coding, coded = cpu_seconds(lambda: list(map(self.compress, pieces)))
        decoding, decoded = cpu_seconds(lambda: list(map(self.decompress, coded, rooms)))
        for piece, got in zip(pieces, decoded, strict=True):
            if not np.array_equal(np.frombuffer(got, np.uint8), piece):
                raise Failed("other bytes came back")
        rates = {"compress": coding, "decompress": decoding, "memcpy": copied}
        return {
            "ratio": size / sum(map(len, coded)),
            **{name: size / seconds / 1e9 for name, seconds in rates.items()},
        }

    def facts(self):
        return {"coder": self.coder, "piece": self.size, "call_us": self.call()}

    def call(self):
        """Microseconds of a round trip of next to nothing: what the binding costs, mostly."""
        piece, room, spans = np.ones(64, np.uint8), np.empty(64, np.uint8), []
        for _ in range(101):
            spans.append(cpu_seconds(lambda: self.decompress(self.compress(piece), room))[0])
        return statistics.median(spans) * 1e6


class Runner:
    def __init__(self, args):
        self.args = args
        self.peers, self.missing = installed(peer_install.CODEC_PEERS, args.peers, args.folder)
        # Behind what is here: numpy and torch are those of this python.
        sys.path += [peer["home"] for peer in self.peers.values()]
        self.kernels = [name for name in KERNELS if self.runs(name)]
        codec_coders.keep_freed_memory()

    def runs(self, kernels):
        try:
            _codec.run(demo.SAMPLE, "bf16", demo.PLANE_BYTES, "fast", 1, kernels)
        except ucm.UnsupportedError:
            if kernels != "neon":  # of other processors
                self.missing[kernels] = "this processor does not run it"
            return False
        return True

    def sides(self, sample):
        for codec in ("fast", "small"):
            for kernels in self.kernels:
                yield from (Ours(codec, kernels, checksums) for checksums in (True, False))
        for name in list(self.peers):
            try:
                coders = list(codec_coders.CODERS[name](sample.dtype))
            except ImportError as error:
                self.leave_out(name, error)
                continue
            for size in (sample.plane, 256 * KIB):
                yield from (Peer(coder, size) for coder in coders)

    def leave_out(self, name, error):
        self.missing[name] = f"{type(error).__name__}: {error}"
        say(f"{name} is left out: {self.missing[name]}")
        self.peers.pop(name, None)

    def measure(self, sample):
        """All sides in turn, round after round, every other time from the last to the first."""
        sides, rows = list(self.sides(sample)), {}
        for turn in range(-1, self.args.repeat):
            say(f"{sample.name}: round {turn + 1} of {self.args.repeat}")
            for side in list(sides)[:: 1 if turn % 2 else -1]:
                try:
                    got = side.run(sample)
                    if turn < 0:  # the first round touches memory, and does not count
                        rows[side.name] = {**side.facts(), "ratio": got["ratio"]}
                        continue
                except Exception as error:  # of a library: no two raise the same
                    if isinstance(side, Ours):
                        raise
                    self.leave_out(f"{sample.name}, {side.name}", error)
                    sides.remove(side)
                    rows.pop(side.name, None)
                    continue
                for name in ("compress", "decompress", "memcpy"):
                    rows[side.name].setdefault(name, []).append(got[name])
        return {**sample.facts(), "kernels": self.kernels[0], "rows": rows}


def file_of(text):
    """Return path, dtype and plane of FILE=DTYPE,PLANE or of a name that says them."""
    name, _, said = text.partition("=")
    path, (dtype, _, plane) = Path(name), said.partition(",")
    found = NAMED.fullmatch(path.stem)
    if not said and found and found["model"] in VALUES and found["dtype"] in DTYPES:
        dtype = DTYPES[found["dtype"]]
        width = codec_coders.width_of(dtype)
        return path, dtype, VALUES[found["model"]] * int(found["block"]) * width
    if dtype not in options.DTYPES or not plane.isdecimal() or not int(plane):
        raise argparse.ArgumentTypeError(f"{text!r}: the name says too little; FILE=DTYPE,PLANE")
    return path, dtype, int(plane)


def in_blocks(files):
    """Return the first file of each model that has none in blocks of BLOCK, to be cut into such."""
    found = [NAMED.fullmatch(path.stem) for path, _, _ in files]
    have = {name["model"] for name in found if int(name["block"]) == BLOCK}
    cut = []
    for (path, dtype, plane), name in zip(files, found, strict=True):
        tokens = int(name["block"])
        if name["model"] not in have and tokens % BLOCK == 0:
            have.add(name["model"])
            cut.append((path, dtype, plane, plane * BLOCK // tokens))
    return cut


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("file", type=file_of, nargs="*", help="FILE=DTYPE,PLANE; the packaged sample")
    add("--data", type=Path, help="a folder of files MODEL_DTYPE_TEXT_bBLOCK.bin")
    add("--peers", default=",".join(peer_install.CODEC_PEERS), help="which; empty for none")
    add("--repeat", type=int, help="rounds that count; 7, or 2 with --data")
    add("--mib", type=int, default=48, help="of a file and its copies, at least")
    add_common(parser)
    args = parser.parse_args()
    args.repeat = args.repeat or (2 if args.data else 7)
    if args.quick:
        args.repeat, args.mib = 1, 1
    if not args.file and not args.data:
        args.file = [file_of(str(demo.SAMPLE))]
    found = sorted(args.data.glob("*_*_b*.bin")) if args.data else []
    try:
        found = [file_of(str(path)) for path in found]
    except argparse.ArgumentTypeError as error:
        parser.error(f"--data: {error}")
    args.file = [(*file, None) for file in (*args.file, *found)] + in_blocks(found)
    place(args, "codec-quick.json" if args.quick else "codec.json")
    return args


def main():
    args = parse()
    result = kept(args)
    runner = None if args.show else Runner(args)
    for path, dtype, plane, short in args.file if runner else ():
        run = this_run("codec_peers.py")
        try:
            sample = Sample(path, dtype, plane, short, args.mib * MIB, cut=args.quick)
            got = runner.measure(sample)
        except (Failed, OSError, ucm.StoreError) as error:
            sys.exit(f"codec_peers: {error}")
        sample.close()
        result.setdefault("files", {})[sample.name] = got
        result.setdefault("runs", {})[sample.name] = run
        result["machine"] = {
            **machine(),
            "peers": {name: peer["version"] for name, peer in runner.peers.items()},
            "left_out": runner.missing,
        }
        args.results.write_text(json.dumps(result))
    show(args, result, codec_tables.tables(result), "measured codec")


if __name__ == "__main__":
    main()
