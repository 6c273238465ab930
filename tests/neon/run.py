"""Check the kernels of Compress for ARM, cross-compiled and emulated: `make neon`.

Those for AVX-512 run without VBMI and VBMI2 too: their instructions are plain code in vbmi.h.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
COMPRESS = ROOT / "plugins" / "compress"
SAMPLE = ROOT / "ucm" / "data" / "smollm2_bf16_argparse_b16.bin"
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

CASES = (
    "hash",
    "split_and_merge",
    "translate",
    "levels",
    "stray_codes",
    "tiles",
    "tight_room",
    "real_cache",
    "spoilt_tiles",
)


def missing():
    """What of this machine's tools is not there."""
    tools = {COMPILER: shutil.which(COMPILER), "qemu-aarch64": EMULATOR}
    return [name for name, path in tools.items() if not path]


def call(*command):
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    if ran.returncode:
        name = " ".join(map(str, command))
        raise RuntimeError(f"{name}: status {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return ran.stdout.strip()


def build(folder, compiler, *kernels, extra=()):
    program = Path(folder) / f"{compiler}-test"
    sources = [HERE / "neon_test.cpp"]
    sources += [COMPRESS / f"{name}.cpp" for name in ("classes", "kernels_scalar", *kernels)]
    flags = ["-std=c++17", "-O2", "-static", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    flags += ["-ffp-contract=off"]  # as plugins/meson.build has it
    include = [f"-I{ROOT / 'include'}", f"-I{ROOT / 'plugins' / 'common'}"]
    call(compiler, *flags, *extra, *include, "-o", program, *sources)
    return program


def build_emulated(folder):
    return build(folder, COMPILER, "kernels", "kernels_neon")


def has_avx512bw():
    return "avx512bw" in Path("/proc/cpuinfo").read_text().split()


def build_avx512(folder):
    # Headers of gcc 12 read variables that they leave undefined on purpose.
    extra = [*(f"-mavx512{of}" for of in ("f", "bw", "vl")), "-mpopcnt", "-Wno-uninitialized"]
    extra += ["-Wno-maybe-uninitialized", "-include", HERE / "vbmi.h"]
    return build(folder, "c++", "kernels_avx512", extra=extra)


def emulate(program, case):
    return call(EMULATOR, program, case, SAMPLE)


def digests(folder, emulated):
    """Of what is stored for the sample, by ARM and by this machine."""
    return emulate(emulated, "digest"), call(build(folder, "c++"), "digest", SAMPLE)


def main():
    if missing():
        print(f"make neon: not on this machine: {', '.join(missing())}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        program = build_emulated(folder)
        for case in CASES:
            print(f"{case:16} {emulate(program, case)}", flush=True)
        there, here = digests(folder, program)
    print(f"{'digest':16} {there}{'' if there == here else f', but {here} on this machine'}")
    return 0 if there == here else 1


if __name__ == "__main__":
    sys.exit(main())
