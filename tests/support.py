"""Helpers that several suites use."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import sys
from pathlib import Path

import ucm

ROOT = Path(__file__).parent.parent


def compile_library(source, library, *flags):
    """Compile one C file against the installed header; return the library's path."""
    command = ["cc", "-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", "-pthread", f"-I{ucm.get_include()}", *flags]
    subprocess.run([*command, str(source), "-o", str(library)], check=True)
    return library


def cuda_standin(folder):
    """Compile the stand-in for the CUDA driver in a folder for LD_LIBRARY_PATH; return that."""
    source = ROOT / "tests" / "native" / "fake_cuda.c"
    compile_library(source, Path(folder) / "libcuda.so.1", "-fvisibility=hidden")
    return folder


def hf3fs_standin(folder):
    """Compile the stand-in for 3FS's library (tests/standin); return its path."""
    library = Path(folder) / "libhf3fs_api_shared.so"
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Werror"]
    command += ["-shared", "-fPIC", "-pthread", "-fvisibility=hidden", "-o", str(library)]
    subprocess.run([*command, *sorted((ROOT / "tests" / "standin").glob("*.c"))], check=True)
    return library


def build_plugins(name, layers, *options):
    """Build some layers of this checkout in build/NAME, as far as they changed; return their paths.

    ``UCM_PLUGINS`` makes them known beside the shipped ones: as UCM_PLUGINS:Posix and so on.
    """
    folder = ROOT / "build" / name
    # The tools are where this Python is, activated or not.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path}
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the suite may run in several processes
        made = folder / "build.ninja"
        known = made.read_text() if made.exists() else ""
        if not all(f"plugins/{layer}.so" in known for layer in layers):
            setup = ["meson", "setup", folder, *(["--reconfigure"] if known else [])]
            setup += ["-Doptimization=1", "-Ddebug=false", "-Dpython=false", "--unity=on", *options]
            setup += [f"-Dplugins={','.join(layers)}"]
            subprocess.run(setup, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
        subprocess.run(["ninja", "-C", folder], env=env, check=True, stdout=subprocess.DEVNULL)
    return [folder / "plugins" / f"{layer}.so" for layer in layers]


@contextlib.contextmanager
def locked(path):
    """Hold the lock of a file as a process of the store would; it is made where there is none."""
    with open(path, "ab") as held:
        whole = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(held, fcntl.F_OFD_SETLK, whole)
        yield


def taken(folder):
    """Return what all files take; of a file with two names once."""
    files = {}
    for path in Path(folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            info = path.lstat()
            if path.is_file():
                files[info.st_ino] = max(info.st_blocks * 512, info.st_size)
    return sum(files.values())
