"""Real vLLM engines on one directory: what the connector promises, shown end to end.

    make e2e                              every scene, with a random model and SmolLM2-135M
    make e2e ARGS="--only modes"          one of them
    make e2e-small                        the shortest: two modes, a damaged block, a random model

It installs vLLM's CPU build in an environment of its own and makes the models. What is right is
said by vLLM's own prefix cache, or by an engine without the connector.
"""

import argparse
import importlib
import json
import os
import platform
import re
import shutil
import sys
import time
import traceback
from pathlib import Path

from engines import Engines
from place import Failed, Place, say

SCENES = (
    "modes",
    "names",
    "mla",
    "options",
    "refusals",
    "failures",
    "workers",
    "concurrent",
    "ttft",
    "defaults",
    "serve",
    "disaggregation",
    "offload",
    "reset",
    "example",
)
SMALL = ("modes", "failures")
# Besides the random one.
MODELS = {"ttft": "smollm2", "defaults": "smollm2", "serve": "smollm2", "mla": "mla"}


class Test:
    """What a scene works with: engines, and a folder of its own."""

    def __init__(self, place, engines, folder, small, long):
        self.place, self.engines, self.folder = place, engines, folder
        self.small, self.long = small, long
        folder.mkdir()

    @staticmethod
    def left(segments):
        """Return which segments of shared memory exist."""
        return [path for path in segments if Path(path).exists()]

    @staticmethod
    def stored(storage):
        """Return the bytes of all files."""
        return sum(f.stat().st_size for f in Path(storage).rglob("*") if f.is_file())


def machine():
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(),
    }


def play(place, scenes, small, long, keep):
    """Run scenes; return what each found, with an error where it failed.

    ``keep`` is called with that after each.
    """
    folder = place.runs / time.strftime("%Y%m%d-%H%M%S")
    report = {}
    with Engines(place, folder) as engines:
        for name in scenes:
            start = time.monotonic()
            entry = report[name] = {}
            try:
                test = Test(place, engines, folder / name, small, long)
                entry["results"] = importlib.import_module(f"scenes.{name}").run(test)
            except Exception as failure:  # the other scenes still have their turn
                entry["failed"] = f"{failure or type(failure).__name__}"
                say(f"{name}: FAILED: {failure}")
                if not isinstance(failure, Failed):
                    traceback.print_exc()
            else:
                shutil.rmtree(folder / name)  # blocks; the logs lie beside it
            entry["seconds"] = round(time.monotonic() - start)
            keep(report)
    return report


def show(report):
    """Print the report: a line for each scene, and the tables that scenes have."""
    for name, entry in report.items():
        table = getattr(importlib.import_module(f"scenes.{name}"), "table", None)
        if table and "results" in entry:
            print(f"\n{table(entry['results'])}")
    print("\n| scene | seconds | |\n| --- | --- | --- |")
    for name, entry in report.items():
        word = entry["failed"].splitlines()[0] if "failed" in entry else "as promised"
        print(f"| {name} | {entry['seconds']} | {word} |")
    print(flush=True)


def unmet(report):
    """Return how many promised figures the scenes have not met."""
    results = [entry["results"] for entry in report.values() if "results" in entry]
    rows = [each.get("promises", ()) for each in results if isinstance(each, dict)]
    return sum(not row["met"] for each in rows for row in each)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="environment, models and runs")
    parser.add_argument("--wheel", type=Path, required=True, help="the package to test")
    parser.add_argument("--small", action="store_true", help="the shortest form")
    parser.add_argument("--long", action="store_true", help="what takes longest too")
    parser.add_argument(
        "--only", action="append", choices=SCENES, help="this scene; may be given again"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    args = parser.parse_args()
    place = Place(args.folder.absolute())
    scenes = args.only or (SMALL if args.small else SCENES)
    os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
    start, before = time.monotonic(), machine()

    def seconds():
        return round(time.monotonic() - start)

    def keep(report):
        if args.json:
            whole = {"machine": before, "scenes": report, "seconds": seconds()}
            args.json.write_text(json.dumps(whole, indent=2) + "\n")

    try:
        place.prepare(args.wheel.absolute(), {MODELS[name] for name in scenes if name in MODELS})
        report = play(place, scenes, args.small, args.long, keep)
    except Failed as failure:
        say(f"FAILED: {failure}")
        return 1
    show(report)
    failed = [name for name, entry in report.items() if "failed" in entry]
    word = f"FAILED: {', '.join(failed)}" if failed else "all is well"
    missed = unmet(report)
    if missed:  # figures depend on the machine, and what else runs on it
        word += f", but {missed} figures were not met, see the tables"
    say(f"{word}, {seconds()} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
