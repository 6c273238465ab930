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


def run(driver, script, *arguments):
    """Run that script with the driver in that folder."""
    return subprocess.run(
        [sys.executable, Path(__file__).with_name(script), *arguments],
        env={**os.environ, "LD_LIBRARY_PATH": str(driver)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("pipeline", ["Cache|Posix", "Cache|Compress|Posix", "Cache|Empty"])
def test_blocks_move_between_a_device_and_the_store(driver, tmp_path, pipeline):
    ran = run(driver, "device_memory.py", pipeline, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "moved\n"), ran.stdout + ran.stderr


def test_what_a_device_copies_from_is_not_filled_anew_meanwhile(driver, tmp_path):
    ran = run(driver, "device_eviction.py", tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "nothing wrong\n"), ran.stdout + ran.stderr


@pytest.mark.parametrize(("kind", "lost"), [("dump", 1), ("hit", 0), ("fill", 0)])
def test_after_a_breakdown_slots_stay_unused_and_what_is_lost_is_counted(
    driver, tmp_path, kind, lost
):
    ran = run(driver, "device_breakdown.py", kind, tmp_path)
    assert (ran.returncode, ran.stdout) == (0, f"3 free, {lost} lost\n"), ran.stdout + ran.stderr
