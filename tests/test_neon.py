"""The kernels of Compress for ARM, emulated beside the plain code (tests/neon)."""

import pytest
from neon import run

pytestmark = pytest.mark.skipif(
    bool(run.missing()), reason=f"not installed: {', '.join(run.missing())} (make neon does)"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return run.build_emulated(tmp_path_factory.mktemp("neon"))


@pytest.mark.parametrize("case", run.CASES)
def test_neon_gives_the_bytes_of_the_plain_code(program, case):
    assert run.emulate(program, case).endswith(" checks")


def test_arm_stores_what_this_machine_stores(program, tmp_path):
    there, here = run.digests(tmp_path, program)
    assert there == here
