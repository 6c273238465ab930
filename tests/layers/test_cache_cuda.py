"""Cache with device memory, over the stand-in for the CUDA driver of the native tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import cuda_standin


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    return cuda_standin(tmp_path_factory.mktemp("driver"))


def run(driver, pipeline, folder):
    """Run device_memory.py with the driver in that folder."""
    return subprocess.run(
        [sys.executable, Path(__file__).with_name("device_memory.py"), pipeline, folder],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("pipeline", ["Cache|Posix", "Cache|Compress|Posix", "Cache|Empty"])
def test_blocks_move_between_a_device_and_the_store(driver, tmp_path, pipeline):
    ran = run(driver, pipeline, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "moved\n"), ran.stdout + ran.stderr
