"""Fuzz the codec of Compress with clang's libFuzzer: `make fuzz`."""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CODEC = ROOT / "plugins" / "compress"
CORPUS = HERE / "corpus"
SAMPLE = ROOT / "ucm" / "data" / "smollm2_bf16_argparse_b16.bin"

# Each with the longest input that it gets.
TARGETS = {"decode_frame": 16384, "decode_tile": 8192, "round_trip": 8192}

FLAGS = [
    *("-std=c++17", "-O2", "-g1", "-Wall", "-Wextra"),
    *("-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=all"),
    # The first has its own buffers.h.
    *(f"-I{HERE}", f"-I{ROOT / 'include'}"),
]
FUZZER = ["-fsanitize=fuzzer"]  # the main() of a target
# By machine.
SETS = {
    "x86_64": {
        "kernels_avx2": ["-mavx2", "-mpopcnt"],
        "kernels_avx512": [
            *("-mavx512f", "-mavx512bw", "-mavx512vl"),
            *("-mavx512vbmi", "-mavx512vbmi2", "-mpopcnt"),
        ],
    },
    "aarch64": {"kernels_neon": []},
}
SOURCES = ["classes", "codec", "frame", "guess", "kernels", "kernels_scalar"]


@dataclass
class Outcome:
    """What libFuzzer said."""

    failed: bool
    executions: int
    said: str


def compiler():
    return shutil.which("clang++")


def all_of(commands):
    """Run them at once."""
    commands = list(commands)
    running = [subprocess.Popen(command) for command in commands]
    for command, each in zip(commands, running, strict=True):
        if each.wait():
            raise RuntimeError(f"{' '.join(map(str, command))}: status {each.returncode}")


def build(folder, targets):
    """Compile these programs into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    sets = SETS.get(platform.machine(), {})
    objects = {folder / f"{name}.o": sets.get(name, []) for name in [*SOURCES, *sets]}
    sources = [CODEC / f"{made.stem}.cpp" for made in objects]
    all_of(
        [compiler(), *FLAGS, *flags, "-c", source, "-o", made]
        for source, (made, flags) in zip(sources, objects.items(), strict=True)
    )
    linked = [*objects, "-lzstd", "-o"]
    all_of(
        [
            compiler(),
            *FLAGS,
            *FUZZER * (name in TARGETS),
            HERE / f"{name}.cpp",
            *linked,
            folder / name,
        ]
        for name in targets
    )


def fuzz(folder, target, seconds):
    """Run the committed inputs, and new ones for so long; what is found and worth it stays."""
    found = folder / "found" / target
    found.mkdir(parents=True, exist_ok=True)
    command = [
        *(folder / target, f"-max_total_time={seconds}", f"-max_len={TARGETS[target]}"),
        *("-timeout=60", "-print_final_stats=1", "-verbosity=1", f"-artifact_prefix={folder}/"),
        *(found, CORPUS / target),
    ]
    # Memory that is kept from being used again for long costs page faults.
    env = {**os.environ, "ASAN_OPTIONS": "quarantine_size_mb=16"}
    ran = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, check=False
    )
    said = ran.stdout.decode(errors="replace")
    executed = re.search(r"number_of_executed_units: (\d+)", said)
    return Outcome(ran.returncode != 0, int(executed[1]) if executed else 0, said)


def merge(folder, target):
    """Replace the committed inputs by few that reach what they, the seeds and those found reach."""
    merged = folder / "merged" / target
    shutil.rmtree(merged, ignore_errors=True)
    merged.mkdir(parents=True)
    inputs = [CORPUS / target, folder / "found" / target, folder / "seeds.d" / target]
    given = [each for each in inputs if each.exists()]
    # By what is reached, not how often: a quarter of the files.
    options = ["-merge=1", "-use_counters=0", f"-max_len={TARGETS[target]}"]
    subprocess.run([folder / target, *options, merged, *given], check=True)
    shutil.rmtree(CORPUS / target, ignore_errors=True)
    shutil.copytree(merged, CORPUS / target)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this one")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz")
    parser.add_argument(
        "--merge",
        action="store_true",
        help="do not fuzz: put what was found into tests/fuzz/corpus",
    )
    args = parser.parse_args()
    if not compiler():
        sys.exit("clang++ is not here; `make deps` installs it")
    targets = args.target or list(TARGETS)
    build(args.folder, [*targets, *["seeds"] * args.merge])
    if args.merge:
        subprocess.run([args.folder / "seeds", SAMPLE, args.folder / "seeds.d"], check=True)
    failed = 0
    for target in targets:
        if args.merge:
            merge(args.folder, target)
            continue
        outcome = fuzz(args.folder, target, args.seconds)
        if outcome.failed:
            print(outcome.said)
        verdict = "FAILED; the words above name its input" if outcome.failed else "nothing found"
        print(f"{target:12} {outcome.executions:>11,} executions: {verdict}")
        failed += outcome.failed
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
