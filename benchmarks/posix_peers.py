"""Posix beside fio, vLLM's file tier and the reference, uc-manager, in alternated pairs.

python benchmarks/posix_peers.py                           all of it, as Markdown; an hour
python benchmarks/posix_peers.py --only lookup --engine auto
python benchmarks/posix_peers.py --quick --peers ""        does the script still run?
python benchmarks/posix_peers.py --write docs/performance.md
"""

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import peer_fio
import peer_install
import peer_meter
import peer_tables
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

KIB, MIB = 1 << 10, 1 << 20
# name: (bytes of a block, bytes of a shard)
CASES = {
    "1 MiB": (MIB, MIB),
    "4 MiB": (4 * MIB, 4 * MIB),
    "64 x 64 KiB": (4 * MIB, 64 * KIB),
    "64 KiB": (64 * KIB, 64 * KIB),
}
OPERATIONS = ("dump", "load")
PARTS = ("transfers", "verification", "lookup", "open")


class Runner:
    def __init__(self, args, folder):
        self.args, self.folder, self.number = args, folder, itertools.count()
        self.perf = peer_meter.perf_counts()
        if not self.perf:
            say("perf cannot count here: as root, apt-get install linux-perf")
        self.peers, self.missing = installed(peer_install.PEERS, args.peers, args.folder)

    def fresh(self):
        return self.folder / str(next(self.number))

    def ours(self, engine, key="", value=""):
        """Ours, with one thing more: an option, or a variable of its environment."""
        given = {"posix_io_engine": engine, **dict(self.args.option)}
        variables = {key: value} if key.isupper() else {}
        given.update({key: value} if key and not variables else {})
        return Side("ours", {}, self.fresh(), given, variables)

    def others(self, shape):
        """Return the sides that can do this case, not yet open, by name."""
        args, sides = self.args, {}
        if "vllm" in self.peers and shape[0] == shape[1]:
            peer = self.peers["vllm"]
            options = {
                "library": peer["library"],
                "threads": args.vllm_threads,
                "blocks_per_job": max(1, min(16, shape[2] // args.vllm_threads)),
            }
            sides["vllm"] = Side("vllm", peer, self.fresh(), options)
        if "reference" in self.peers:
            peer = self.peers["reference"]
            for engine in args.reference_engines.split(","):
                options = {"home": peer["home"], "posix_io_engine": engine}
                sides[f"reference {engine}"] = Side("reference", peer, self.fresh(), options)
        return sides

    def transfers(self, engine, case):
        block, shard = CASES[case]
        shape = [block, shard, self.args.total_mib * MIB // block]
        ours, others, tuned = self.ours(engine), self.others(shape), None
        with contextlib.ExitStack() as stack:
            for side in (ours, *others.values()):
                stack.callback(side.end)
            memory = stack.enter_context(shared_memory(shape))
            row = peer_meter.pages_in_a_row(memory[1])
            for side in (ours, *others.values()):
                side.open(shape, memory=memory)
            if "fio" in self.peers:
                folder = self.fresh() / "now"
                folder.mkdir(parents=True)
                fio = others["fio"] = peer_fio.Fio(self.peers["fio"]["program"], folder, shape)
                tuned = fio.tune(self.args.tune, self.args.quick)
            rounds = self.alternate(ours, others)
            facts = {name: self.facts(side) for name, side in (("ours", ours), *others.items())}
        result = {"shape": shape, "rounds": rounds, "facts": facts, "fio_seconds": tuned}
        result["pages_in_a_row"] = row
        # By the code: aligned memory goes through one buffer, where there are huge pages.
        zero_copy = dict(self.args.option).get("posix_zero_copy") == "true"
        result["copies"] = 0 if zero_copy or not peer_meter.huge_pages() else 1
        if tuned:
            result["fio_chosen"] = {name: fio.chosen(name) for name in OPERATIONS}
        return result

    def alternate(self, ours, others):
        """Pairs of ours and each other, back to back; who is first changes every round."""
        rounds = {name: [] for name in others or ["none"]}
        for side in (ours, *others.values()):  # the first round of each is not counted
            self.once(side)
        for turn in range(self.args.pairs):
            for name in rounds:
                pair = [("ours", ours)] + ([(name, others[name])] if others else [])
                results = {key: {} for key, _ in pair}
                for operation in OPERATIONS:
                    for key, side in pair[:: -1 if turn % 2 else 1]:
                        results[key][operation] = getattr(side, operation)()
                for _, side in pair:
                    side.remove()
                rounds[name].append({"ours": results["ours"], "other": results.get(name)})
        return rounds

    def once(self, side):
        side.dump()
        side.load()
        side.remove()

    def facts(self, side):
        """What is counted rather than timed, in rounds of their own."""
        if isinstance(side, peer_fio.Fio):
            return side.counted() if self.perf else {}
        facts = {name: {} for name in OPERATIONS}
        if self.perf:
            facts = {name: side.counted(name) for name in OPERATIONS}
            side.remove()
        for name in OPERATIONS:
            facts[name].update(side.watched(name))
        side.remove()
        return facts

    def verification(self, engine):
        """CPU with and without checks, alternated, and of the checksum by itself."""
        key, _, value = self.args.unverified_option.partition("=")
        result = {"checksum_ns_per_byte": peer_install.checksum_cost(self.args.folder), "cases": {}}
        for case in ("1 MiB", "64 x 64 KiB") if key else ():
            block, shard = CASES[case]
            shape = [block, shard, self.args.total_mib * MIB // block]
            checked, bare = self.ours(engine), self.ours(engine, key, value)
            with contextlib.ExitStack() as stack:
                memory = stack.enter_context(shared_memory(shape))
                for side, tells in ((checked, True), (bare, False)):
                    stack.callback(side.end)
                    side.open(shape, memory=memory)
                    if side.ask("tells")["tells"] != tells:
                        raise Failed(f"{key}={value} does not switch the checks off; see {case}")
                result["cases"][case] = {"shape": shape, **self.alternate(checked, {"bare": bare})}
        return result

    def lookup(self, engine):
        results = {}
        for stored in self.args.stored:
            sides = {"ours": self.ours(engine)}
            if "reference" in self.peers:
                peer = self.peers["reference"]
                options = {"home": peer["home"], "posix_io_engine": "psync"}
                sides["reference"] = Side("reference", peer, self.fresh(), options)
            try:
                results[stored] = self.lookup_at(sides, stored)
            finally:
                for side in sides.values():
                    side.end()
        return results

    def lookup_at(self, sides, stored):
        shape, n, spans, opened = [4096, 4096, 1], min(1000, stored), {}, {}
        for name, side in sides.items():
            side.open(shape)
            say(f"lookup: {name}, {stored:,} blocks are made")
            side.ask("plant", blocks=stored)
            opened[name] = []
            for _ in range(self.args.opens):
                side.ask("close")
                answer = side.ask("reopen", options=side.options)
                opened[name].append(answer["seconds"])
        until = time.monotonic() + self.args.warm_seconds
        while True:  # an index may need its time
            for side, present in itertools.product(sides.values(), (True, False)):
                side.ask("lookup", present=present, n=n, repeat=20)
            if time.monotonic() > until:
                break
        for _ in range(self.args.pairs):
            for (name, side), present in itertools.product(sides.items(), (True, False)):
                got = side.ask("lookup", present=present, n=n, repeat=20)["spans"]
                key = f"{name}, {'present' if present else 'absent'}"
                spans.setdefault(key, []).append(statistics.median(span for span, _ in got))
        return {"asked": n, "seconds": spans, "open_seconds": opened}

    def open(self, engine):
        """Open empty directories, each a new one."""
        result = {}
        for name in ("ours", *(["reference"] if "reference" in self.peers else [])):
            result[name] = []
            for _ in range(self.args.opens + 1):
                if name == "ours":
                    side = self.ours(engine)
                else:
                    peer = self.peers[name]
                    options = {"home": peer["home"], "posix_io_engine": "psync"}
                    side = Side(name, peer, self.fresh(), options)
                try:
                    side.open([MIB, MIB, 1])  # the library is loaded here
                    side.ask("close")
                    empty = side.folder / "empty"
                    empty.mkdir()
                    answer = side.ask(
                        "open",
                        folder=str(empty),
                        shape=[MIB, MIB, 1],
                        options=side.options,
                    )
                    result[name].append(answer["seconds"])
                finally:
                    side.end()
        return result


def describe(args, runner):
    """What was measured on, and what with."""
    return {
        **machine(),
        "file_system": file_system(args.data),
        "peers": {name: peer["version"] for name, peer in runner.peers.items()},
        "left_out": runner.missing,
    }


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--engine", default="psync", help="posix_io_engine of ours; several with commas")
    add("--option", type=pair_of, action="append", default=[], help="KEY=VALUE for our Posix")
    add(
        "--unverified-option",
        default="",
        metavar="KEY=VALUE",
        help="option or variable for no checks",
    )
    add("--peers", default="fio,vllm,reference", help="which; empty for none")
    add("--reference-engines", default="psync,aio")
    add("--vllm-threads", type=int, default=4)
    add("--data", type=Path, default=Path("build"), help="blocks are stored below it")
    add("--only", choices=PARTS, action="append", help="only this part")
    add("--case", choices=CASES, action="append", help="only this case of transfers")
    add("--pairs", type=int, default=15)
    add("--total-mib", type=int, default=256, help="bytes of a round")
    add("--tune", type=int, default=3, help="rounds of fio for each depth and number of jobs")
    add("--stored", type=int, action="append", help="blocks there at lookups")
    add("--opens", type=int, default=7)
    add("--warm-seconds", type=float, default=10)
    add_common(parser)
    args = parser.parse_args()
    if args.quick:
        args.pairs, args.total_mib, args.tune, args.opens, args.warm_seconds = 2, 8, 1, 1, 0
        args.stored = args.stored or [100]
    args.stored = args.stored or [1000, 1000000]
    args.data = args.data.resolve()
    place(args, "quick.json" if args.quick else "results.json")
    return args


def measure(args, runner, engine, result):
    """Run the parts that are asked for; what another run found of the others stays."""
    result["machine"] = describe(args, runner)
    for part in args.only or PARTS:
        run = this_run("posix_peers.py")
        cases = (args.case or CASES) if part == "transfers" else [None]
        for case in cases:
            say(f"{engine}: {part}{f', blocks of {case}' if case else ''}")
            if case:
                result.setdefault(part, {})[case] = runner.transfers(engine, case)
            else:
                result[part] = getattr(runner, part)(engine)
            result.setdefault("runs", {})[f"{part}, {case}" if case else part] = run
            yield


def main():
    args = parse()
    args.data.mkdir(parents=True, exist_ok=True)
    before = kept(args)
    results = {engine: before.get(engine, {}) for engine in args.engine.split(",")}
    with tempfile.TemporaryDirectory(prefix="posix-peers-", dir=args.data) as folder:
        # Folders in it start far from each other, and from inodes that were deleted just now.
        subprocess.run(["chattr", "+T", folder], capture_output=True, check=False)
        runner = None if args.show else Runner(args, Path(folder))
        for engine, result in results.items() if runner else ():
            try:
                for _ in measure(args, runner, engine, result):
                    args.results.write_text(json.dumps({**before, **results}))
            except Failed as error:
                sys.exit(f"posix_peers: {error}")
    show(args, results, peer_tables.tables(results), "measured")


if __name__ == "__main__":
    main()
