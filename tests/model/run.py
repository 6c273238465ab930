"""Check the model of Cache's shared memory with spin: `make model`."""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).with_name("cache.pml")

# Everything that can happen within these bounds is looked at: these are pytest's, in seconds.
SMALL = {
    "reader": "F=1 IDS=2 STORED=3 LOADS=2 READS=1",
    "loads": "F=1 IDS=2 STORED=2 LOADS=2 KILLS=1",
    "loads-and-dumps": "STORED=1 LOADS=1 DUMPS=1 KILLS=1",
    "dumps": "DUMPS=3 FLUSHES=1 KILLS=1",
    "spill": "F=1 P=1 DUMPS=3 FLUSHES=1 KILLS=2",
    "remove": "DUMPS=2 REMOVES=1 KILLS=1",
    "remove-and-load": "STORED=1 LOADS=1 DUMPS=1 REMOVES=1",
    "leave": "DUMPS=2 FLUSHES=1 LEAVES=2 KILLS=1",
}
# And these are make's.
SOUND = {
    "reader": "F=1 IDS=2 STORED=3 LOADS=2 READS=1",
    "loads": "F=1 IDS=2 STORED=3 LOADS=2 KILLS=1",
    "loads-of-the-slow": "STORED=1 LOADS=2 SLOW=1 KILLS=1",
    "loads-and-dumps": "STORED=1 LOADS=1 DUMPS=2 KILLS=1",
    "dumps": "DUMPS=4 FLUSHES=1 KILLS=2",
    "spill": "F=1 P=1 DUMPS=3 FLUSHES=2 KILLS=2",
    "remove": "DUMPS=2 REMOVES=1 KILLS=2",
    "remove-and-load": "STORED=1 LOADS=1 DUMPS=2 REMOVES=1",
    "leave": "DUMPS=3 FLUSHES=1 LEAVES=2 KILLS=1",
}
# So it is within these, which take minutes.
LARGE = {
    "large-reader": "F=1 IDS=2 STORED=3 LOADS=2 READS=1 KILLS=1",
    "large-loads": "F=1 IDS=2 STORED=3 LOADS=2 SLOW=1 KILLS=2",
    "large-loads-and-dumps": "STORED=1 LOADS=1 DUMPS=2 KILLS=2",
    "large-dumps": "IDS=2 DUMPS=4 KILLS=2",
    "large-remove": "DUMPS=3 REMOVES=1 KILLS=2",
    "large-remove-and-load": "STORED=1 LOADS=1 DUMPS=2 REMOVES=1 KILLS=1",
    "large-leave": "DUMPS=4 LEAVES=2 KILLS=2",
}
# Within these as many states as fit into the bits of 512 MiB.
DEEP = {
    "deep-loads": "IDS=2 STORED=3 LOADS=3 SLOW=1 KILLS=2",
    "deep-loads-and-dumps": "IDS=2 STORED=1 LOADS=2 DUMPS=2 KILLS=2",
    "deep-spill": "F=2 P=1 DUMPS=4 FLUSHES=2 KILLS=2",
    "deep-remove": "STORED=1 LOADS=2 DUMPS=3 REMOVES=2 KILLS=2",
    "deep-reader": "F=2 IDS=2 STORED=3 LOADS=2 READS=1 KILLS=1",
}
# Mistakes made on purpose, and bounds within which they show.
BUGS = {
    "NO_RECHECK": "F=1 IDS=2 STORED=3 LOADS=2 READS=1",
    "GENERATION_LATE": "F=1 IDS=2 STORED=3 LOADS=2 READS=1",
    "GENERATION_STAYS": "F=1 IDS=2 STORED=3 LOADS=2 READS=1",
    "NO_REST": "F=1 IDS=2 STORED=3 LOADS=2 KILLS=1",
    "REST_NOTED_LATE": "F=1 IDS=2 STORED=3 LOADS=2 KILLS=2",
    "OWNER_MOVES": "DUMPS=3 FLUSHES=1 KILLS=1",
    "NO_MERGE": "F=1 P=1 DUMPS=3 FLUSHES=2 KILLS=1",
    "PROMOTE_LATE": "STORED=1 LOADS=1 DUMPS=2 KILLS=1",
    "TWO_WRITES": "DUMPS=4 REMOVES=1",
    "WRITTEN_MEANWHILE": "DUMPS=2 REMOVES=1",
    "FILLED_MEANWHILE": "STORED=1 LOADS=1 DUMPS=2 REMOVES=1",
    "REMOVAL_IN_MEMORY": "DUMPS=2 REMOVES=1 KILLS=2",
    "REMOVAL_HALF_SAID": "DUMPS=2 REMOVES=1 KILLS=2",
    "HEIR_LEAVES": "DUMPS=1 LEAVES=2",
    "OWNER_BEFORE_END": "DUMPS=2 LEAVES=1 KILLS=1",
    "ADOPTS_AS_IT_LEAVES": "DUMPS=1 LEAVES=1 KILLS=1",
}


@dataclass
class Outcome:
    """What spin found."""

    states: int
    depth: int
    complete: bool
    violation: str

    @property
    def sound(self) -> bool:
        return self.complete and not self.violation


def call(command, folder):
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ran.returncode:
        name = " ".join(map(str, command))
        raise RuntimeError(f"{name}: status {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout


def check(bounds, bug="", bits=False, small=False):
    """All that can happen within these bounds, until something that must not."""
    defines = [f"-D{each}" for each in bounds.split()] + [f"-DBUG_{bug}"] * bool(bug)
    mode = ["-DBITSTATE"] if bits else ["-DCOLLAPSE"]
    with tempfile.TemporaryDirectory() as folder:
        call(["spin", "-a", *defines, MODEL], folder)
        flags = ["-DSAFETY", "-DVECTORSZ=512", "-DMEMLIM=4000", "-O0" if bug or small else "-O1"]
        call(["gcc", "-w", *flags, *mode, "-o", "pan", "pan.c"], folder)
        said = call(["./pan", "-m100000", "-w32" if bits else "-w22"], folder)
    stored = re.search(r"(\d+) states, stored", said)
    depth = re.search(r"depth reached (\d+), errors: (\d+)", said)
    cut = "out of memory" in said or "max search depth too small" in said
    found = re.search(r"pan:1: (.*)", said)
    if not stored or not depth or (depth[2] != "0") != bool(found):
        raise RuntimeError(said)
    return Outcome(int(stored[1]), int(depth[1]), not cut, found[1] if found else "")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large", action="store_true", help="larger bounds, for minutes each")
    parser.add_argument("--deep", action="store_true", help="still larger ones, not in full")
    args = parser.parse_args()
    bad = 0
    for name, bounds in (DEEP if args.deep else LARGE if args.large else SOUND).items():
        outcome = check(bounds, bits=args.deep)
        verdict = outcome.violation or ("sound" if outcome.complete else "not in full")
        print(f"{name:22} {outcome.states:>12,} states, depth {outcome.depth:>6}: {verdict}")
        bad += not outcome.sound
    for bug, bounds in ({} if args.deep or args.large else BUGS).items():
        outcome = check(bounds, bug)
        print(f"BUG_{bug:20} {'found' if outcome.violation else 'NOT FOUND'}")
        bad += not outcome.violation
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
