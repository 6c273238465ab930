"""The kernels of Compress for AVX-512 beside the plain code, also without VBMI (tests/neon)."""

import pytest
from neon import run

pytestmark = pytest.mark.skipif(not run.has_avx512bw(), reason="this processor has no AVX-512BW")


def test_avx512_gives_the_bytes_of_the_plain_code(tmp_path):
    program = run.build_avx512(tmp_path)
    for case in run.CASES:
        assert run.call(program, case, run.SAMPLE).endswith(" checks")
