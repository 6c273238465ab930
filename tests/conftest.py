"""Fixtures that several suites use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import compile_library, hf3fs_standin

from ucm import logs

pytest.register_assert_rewrite("ucm.conformance")

HEAP_SOURCE = Path(__file__).parent.parent / "examples" / "c_store" / "heap.c"

REAL_3FS = os.environ.get("HF3FS_MOUNT")


def pytest_configure(config):
    """With HF3FS_MOUNT, which names a mount of 3FS, the folders of all tests are there."""
    if REAL_3FS and not config.option.basetemp:
        config.option.basetemp = Path(REAL_3FS, f"ucm-tests-{os.getpid()}")


@pytest.fixture(autouse=True)
def _all_of_its_own_log(request):
    """What a test finds in its log is its own, and all of it: nothing is late, or left out."""
    with pytest.MonkeyPatch.context() as patch:  # the fixture would outlive tmp_path here
        if "caplog" in request.fixturenames:
            patch.setattr(logs.Limiter, "BURST", sys.maxsize)
            logs.flush()
        yield


@pytest.fixture
def run_python(tmp_path):
    """Run Python code in a process of its own, away from the checkout; return what it printed."""

    def run(code, *args, path=(), check=True, **variables):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **variables}
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        if check:
            assert done.returncode == 0, done.stderr
            return done.stdout
        return done

    return run


@pytest.fixture
def folder(tmp_path):
    """Make an empty folder for a store's files."""
    path = tmp_path / "kv"
    path.mkdir()
    return path


@pytest.fixture(scope="session")
def heap_library(tmp_path_factory):
    """Compile the example store in C."""
    folder = tmp_path_factory.mktemp("heap")
    return compile_library(HEAP_SOURCE, folder / "heap.so")


@pytest.fixture(scope="session")
def hf3fs_library(tmp_path_factory):
    """Compile the library that stands in for 3FS's; with HF3FS_MOUNT, name the real one."""
    if REAL_3FS:
        return os.environ.get("HF3FS_LIBRARY", "libhf3fs_api_shared.so")
    return hf3fs_standin(tmp_path_factory.mktemp("hf3fs"))


@pytest.fixture
def hf3fs_mount(tmp_path):
    """Make a folder in 3FS, or one that the stand-in takes for a mount of it."""
    mount = tmp_path / "3fs"
    mount.mkdir()
    if not REAL_3FS:
        (mount / "3fs-virt" / "iovs").mkdir(parents=True)
    return mount
