"""The kernels of Compress for ARM, emulated beside the plain code (tests/neon)."""

import fcntl
import os

import pytest
from neon import run

pytestmark = pytest.mark.skipif(
    bool(run.missing()), reason=f"not installed: {', '.join(run.missing())} (make neon does)"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # of all processes of the suite: one compiles
    folder /= "neon"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = folder / f"{run.COMPILER}-test"
        return made if made.exists() else run.build_emulated(folder)


@pytest.mark.parametrize("case", run.CASES)
def test_neon_gives_the_bytes_of_the_plain_code(program, case):
    assert run.emulate(program, case).endswith(" checks")


def test_arm_stores_what_this_machine_stores(program, tmp_path):
    there, here = run.digests(tmp_path, program)
    assert there == here
