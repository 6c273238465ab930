"""Cache beside memcpy, the reference uc-manager, and LMCache's memory tier, in alternated pairs.

python benchmarks/cache_peers.py                           all of it, as Markdown; an hour
python benchmarks/cache_peers.py --only lookup --pairs 5
python benchmarks/cache_peers.py --quick --peers ""        does the script still run?
python benchmarks/cache_peers.py --write docs/performance.md
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import cache_tables
import peer_install
from peer_side import (
    Failed,
    Side,
    add_common,
    file_system,
    installed,
    kept,
    pair_of,
    place,
    say,
    shared_memory,
    show,
    this_run,
)

from ucm.cli._measure import machine

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
# name: (bytes of a block, bytes of a shard)
CASES = {"1 MiB": (MIB, MIB), "64 x 64 KiB": (4 * MIB, 64 * KIB)}
PARTS = ("transfers", "single", "cold", "lookup", "shared", "paced")
REFERENCE_LEAST_SLOTS = 2048  # it refuses a pool of fewer shards


class Runner:
    def __init__(self, args, folder):
        self.args, self.folder, self.number = args, folder, itertools.count()
        self.name = f"bench-{os.getpid()}"  # in the names of all that is shared
        try:
            self.library = peer_install.copy_pieces(args.folder)
        except peer_install.Missing as reason:
            sys.exit(f"cache_peers: nothing to compare with, memcpy was not compiled: {reason}")
        self.peers, self.missing = installed(peer_install.CACHE_PEERS, args.peers, args.folder)

    def shape(self, block, shard):
        return [block, shard, max(1, self.args.total_mib * MIB // block)]

    def side(self, kind, lower, shape, folder=None, unique_id=None, capacity_gib=None):
        """Return one side, not yet open; lower is what its Cache is over."""
        number = next(self.number)
        capacity = capacity_gib or self.args.capacity_gib
        peer = self.peers.get(kind, {})
        options = {"unique_id": unique_id or f"{self.name}-{number}"}
        if kind == "ours":
            pipeline = lower if lower == "Posix alone" else f"Cache|{lower}"
            options.update(dict(self.args.option), store_pipeline=pipeline.split()[0])
            if "Cache" in pipeline:
                options["cache_buffer_capacity_gb"] = capacity
        elif kind == "reference":
            least = REFERENCE_LEAST_SLOTS * shape[1] / GIB
            options.update(home=peer["home"], store_pipeline=f"Cache|{lower}")
            options["cache_buffer_capacity_gb"] = math.ceil(max(capacity, least))
        else:
            options = {"capacity_gib": capacity}
        return Side(
            kind,
            peer,
            folder or self.folder / str(number),
            options,
            peer.get("variables", ()),
            worker="cache_worker.py",
            arguments=[self.library],
        )

    @contextlib.contextmanager
    def opened(self, shape, lower, kinds=None, **more):
        """Yield open sides by name, of us and all peers; and the paths of their memory."""
        kinds = ["ours", *self.peers] if kinds is None else kinds
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(shared_memory(shape))
            sides = {}
            for kind in kinds:
                sides[kind] = self.side(kind, lower, shape, **more)
                stack.callback(self.end, sides[kind])
                sides[kind].open(shape, memory=memory)
            yield sides

    def end(self, side):
        with contextlib.suppress(Failed):
            side.ask("close")
        side.end()

    def alternate(self, sides, ask):
        """Pairs of ours and each other, back to back; who is first changes every round.

        ask: what a side is asked for, given its name; memcpy is done by our process, too.
        """
        others = ["memcpy", *(name for name in sides if name != "ours")]
        rounds = {name: [] for name in others}
        for turn, name in itertools.product(range(-1, self.args.pairs), others):
            pair, results = ("ours", name), {}
            for key in pair[:: -1 if turn % 2 else 1]:
                side = sides["ours" if key == "memcpy" else key]
                do, arguments = ask(key)
                results[key] = side.ask(do, **arguments)
            if turn >= 0:  # the first round of each is not counted
                rounds[name].append({"ours": results["ours"], "other": results[name]})
        return rounds

    def transfers(self):
        """Hot loads and dumps until accepted, in batches, for both shapes of a block."""
        result = {}
        for case in self.args.case or CASES:
            shape = self.shape(*CASES[case])
            figures = result[case] = {"shape": shape, "load": {}, "dump": {}}
            for lower in ("Posix", "Empty"):
                with self.opened(shape, lower) as sides:
                    self.touch(sides, shape, lower)
                    for operation in ("load", "dump") if lower == "Posix" else ("dump",):
                        for mib in self.args.batch_mib:
                            say(f"transfers: {case} over {lower}, {operation}, {mib} MiB")
                            key = f"{mib} MiB" if lower == "Posix" else f"{mib} MiB, over Empty"
                            rounds = self.batches(sides, shape, operation, mib)
                            figures[operation][key] = rounds
        return result

    def touch(self, sides, shape, lower):
        """Use every slot once, so that no page is new later; then put hot blocks in."""
        for side in sides.values():
            side.ask("prove")
            for _ in range(math.ceil(self.args.capacity_gib * GIB / (shape[0] * shape[2]))):
                side.ask("dump", blocks=shape[2])
            side.ask("heat", load=lower == "Posix")

    def batches(self, sides, shape, operation, mib):
        blocks = max(1, mib * MIB // shape[0])

        def ask(name):
            if name == "memcpy":
                return "copy", {"operation": operation, "blocks": blocks}
            return operation, {"blocks": blocks}

        return self.wrapped(self.alternate(sides, ask), operation)

    def wrapped(self, rounds, operation):
        """Name the operation in every result, as the tables of all benchmarks expect it."""
        return {
            name: [{key: {operation: facts} for key, facts in pair.items()} for pair in pairs]
            for name, pairs in rounds.items()
        }

    def single(self):
        """Measure what a call costs: one hot block."""
        result = {}
        for name, size, lower in (("1 MiB", MIB, "Posix"), ("4 KiB", 4 * KIB, "Empty")):
            shape = [size, size, min(4096, self.args.total_mib * MIB // size)]
            with self.opened(shape, lower) as sides:
                for side in sides.values():
                    side.ask("heat", load=True)
                rounds = self.alternate(
                    sides, lambda name: ("single", {"what": "copy" if name == "memcpy" else "load"})
                )
            result[name] = {"shape": shape, "rounds": self.wrapped(rounds, "load")}
        return result

    def cold(self):
        """Loads of what is in files only, beside Posix alone that loads as much in whole blocks."""
        shape = self.shape(*CASES["64 x 64 KiB"])
        whole = [shape[0], shape[0], shape[2]]
        kinds = [name for name in ("ours", "reference") if name in ("ours", *self.peers)]
        with contextlib.ExitStack() as stack:
            sides = stack.enter_context(self.opened(shape, "Posix", kinds))
            alone = stack.enter_context(self.opened(whole, "Posix alone", ["ours"]))
            sides["Posix alone"] = alone["ours"]
            warm = math.ceil(self.args.capacity_gib * GIB / (shape[0] * shape[2]))
            for side, _ in itertools.product(sides.values(), range(warm)):
                side.ask("cold")
            rounds = self.alternate(
                sides,
                lambda name: (
                    ("copy", {"operation": "load", "blocks": shape[2]})
                    if name == "memcpy"
                    else ("cold", {})
                ),
            )
        return {"shape": shape, "rounds": self.wrapped(rounds, "load")}

    def lookup(self):
        """Lookups of blocks that are in the cache, from Python."""
        shape, result = [4 * KIB, 4 * KIB, self.args.asked], {}
        with self.opened(shape, "Posix") as sides:
            for side in sides.values():
                side.ask("heat", load=False)
            for _, (name, side) in itertools.product(range(self.args.pairs), sides.items()):
                for how, seconds in side.ask("find", repeat=20)["seconds"].items():
                    result.setdefault(f"{name}, {how}", []).append(seconds)
        return {"asked": shape[2], "seconds": result}

    def shared(self):
        """Processes with one unique_id that load the same cold blocks at once."""
        shape = self.shape(*CASES["64 x 64 KiB"])
        kinds = [name for name in ("ours", "reference") if name in ("ours", *self.peers)]
        return {"shape": shape, **{kind: self.shared_by(kind, shape) for kind in kinds}}

    def shared_by(self, kind, shape):
        folder, rounds = self.folder / f"shared-{kind}", []
        common = {"folder": folder, "unique_id": f"{self.name}-{kind}"}
        # The set of a round beside that of the one before: new blocks may have half of a cache.
        common["capacity_gib"] = 2.25 * shape[0] * shape[2] / GIB
        with contextlib.ExitStack() as stack:
            memory = stack.enter_context(shared_memory(shape))
            writer = self.side(kind, "Posix", shape, folder, f"{self.name}-{kind}-writer")
            stack.callback(self.end, writer)
            writer.open(shape, memory=memory)
            there = set(os.listdir("/dev/shm"))
            sides = [self.side(kind, "Posix", shape, **common) for _ in range(self.args.processes)]
            for side in sides:
                stack.callback(self.end, side)
                side.open(shape, memory=memory, own_target=True)
            for turn in range(min(self.args.pairs, 5)):
                ids = str(self.folder / f"ids-{kind}-{turn}.npy")
                writer.ask("plant", path=ids)
                rounds.append(self.load_together(sides, ids, there))
                writer.ask("remove")
        return {"processes": len(sides), "rounds": rounds}

    def load_together(self, sides, ids, there):
        start = time.monotonic() + 0.3
        for side in sides:
            side.send("load_at", path=ids, at=start)
        loads = [side.answer("load_at") for side in sides]
        after = [side.ask("memory") for side in sides]
        new = set(os.listdir("/dev/shm")) - there
        blocks = sum(os.stat(f"/dev/shm/{name}").st_blocks * 512 for name in new)
        wrong = sum(side.ask("compared")["wrong"] for side in sides)
        before = [load.pop("memory_before") for load in loads]
        pss, shmem = (
            sum(a[name] - b[name] for a, b in zip(after, before, strict=True))
            for name in ("Pss", "Pss_Shmem")
        )
        seconds = max(load["end"] for load in loads) - start
        # What of the segment nobody has mapped is memory, too.
        unmapped = max(0, blocks - max(0, shmem))
        return {"loads": loads, "seconds": seconds, "wrong": wrong, "pss": pss, "shm": blocks} | {
            "memory": pss + unmapped
        }

    def paced(self):
        """Loads at a slow pace beside dumps as fast as they go, of a thread or a process."""
        shape, result = self.shape(MIB, MIB), {}
        for lower, where in itertools.product(("Posix", "Empty"), ("thread", "process")):
            say(f"paced: beside a {where} that dumps over {lower}")
            unique_id, folder = f"{self.name}-{lower}-{where}", self.folder / f"{lower}-{where}"
            with contextlib.ExitStack() as stack:
                sides = self.opened(shape, lower, ["ours"], folder=folder, unique_id=unique_id)
                ours = other = stack.enter_context(sides)["ours"]
                if where == "process":
                    memory = stack.enter_context(shared_memory(shape))
                    other = self.side("ours", lower, shape, folder, unique_id)
                    stack.callback(self.end, other)
                    other.open(shape, memory=memory)
                ours.ask("heat", load=True)
                stack.enter_context(self.emptied(folder))
                result[f"a {where}, over {lower}"] = self.beside(ours, other)
        return result

    def beside(self, ours, other):
        """Windows of loads and of memcpy in turn, while the other side dumps without a pause."""
        windows = []
        options = {"rate": self.args.rate, "seconds": self.args.window_seconds}
        alone = {what: ours.ask("paced", what=what, **options) for what in ("load", "copy")}
        other.ask("start_stream", blocks=16)
        for turn in range(-1, self.args.pairs):
            order = ("load", "copy")[:: -1 if turn % 2 else 1]
            window = {what: ours.ask("paced", what=what, **options) for what in order}
            if turn >= 0:
                spans = {what: got["spans"] for what, got in window.items()}
                on_core = {what: got["on_core"] for what, got in window.items()}
                on_core["hot"] = window["load"]["hot_on_core"]
                windows.append({**spans, "hot": window["load"]["hot"], "on_core": on_core})
        stream = other.ask("stop_stream")
        return {
            "windows": windows,
            "alone": {what: got["spans"] for what, got in alone.items()},
            "stream": stream,
        }

    @contextlib.contextmanager
    def emptied(self, folder):
        """Meanwhile, empty all files that are written in a folder, which would fill the disk."""
        kept, stop = set(folder.glob("*/*/*/*")), threading.Event()

        def empty():
            while not stop.wait(1):
                for path in set(folder.glob("*/*/???/" + "?" * 32)) - kept:
                    with contextlib.suppress(FileNotFoundError):
                        os.truncate(path, 0)
                    kept.add(path)

        thread = threading.Thread(target=empty)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def clean(self):
        """Remove segments that a side left behind."""
        left = sorted(Path("/dev/shm").glob(f"*{self.name}-*"))
        for path in left:
            say(f"{path} was left behind; it is removed")
            path.unlink()


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--option", type=pair_of, action="append", default=[], help="KEY=VALUE for our pipeline")
    add("--peers", default="reference,lmcache", help="which; empty for none")
    add("--data", type=Path, default=Path("build"), help="blocks are stored below it")
    add("--only", choices=PARTS, action="append", help="only this part")
    add("--case", choices=CASES, action="append", help="only this case of transfers")
    add("--pairs", type=int, default=15)
    add("--total-mib", type=int, default=256, help="bytes of a round")
    add("--capacity-gib", type=float, default=1, help="of each cache; more than a round")
    add("--batch-mib", type=int, action="append", help="of transfers; 4, 16 and 64")
    add("--asked", type=int, default=1000, help="blocks of a lookup")
    add("--processes", type=int, default=4, help="that share a cache")
    add("--rate", type=float, default=200, help="paced loads a second")
    add("--window-seconds", type=float, default=1, help="of paced loads")
    add_common(parser)
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.total_mib, args.capacity_gib, args.window_seconds = 2, 8, 0.03, 0.1
        args.asked, args.batch_mib = 100, args.batch_mib or [4]
    args.batch_mib = args.batch_mib or [4, 16, 64]
    args.data = args.data.resolve()
    place(args, "cache-quick.json" if args.quick else "cache.json")
    return args


def measure(args, runner, result):
    """Run the parts that are asked for; what another run found of the others stays."""
    result["machine"] = {
        **machine(),
        "file_system": file_system(args.data),
        "peers": {name: peer["version"] for name, peer in runner.peers.items()},
        "left_out": runner.missing,
    }
    for part in args.only or PARTS:
        say(part)
        run = this_run("cache_peers.py")
        got = getattr(runner, part)()
        # A case of transfers may be measured again, and the other stays.
        result[part] = {**result.get(part, {}), **got} if part == "transfers" else got
        result.setdefault("runs", {})[part] = run
        yield


def main():
    args = parse()
    args.data.mkdir(parents=True, exist_ok=True)
    result = kept(args)
    with tempfile.TemporaryDirectory(prefix="cache-peers-", dir=args.data) as folder:
        # Folders in it start far from each other, and from inodes that were deleted just now.
        subprocess.run(["chattr", "+T", folder], capture_output=True, check=False)
        runner = None if args.show else Runner(args, Path(folder))
        try:
            for _ in measure(args, runner, result) if runner else ():
                args.results.write_text(json.dumps(result))
        except Failed as error:
            sys.exit(f"cache_peers: {error}")
        finally:
            if runner:
                runner.clean()
    show(args, result, cache_tables.tables(result), "measured cache")


if __name__ == "__main__":
    main()
