"""Compress takes any bytes: what fuzzing has kept, and some seconds of it (tests/fuzz)."""

import pytest
from fuzz import run

pytestmark = pytest.mark.skipif(not run.compiler(), reason="clang++ is not installed")


def test_no_bytes_break_the_codec_or_part_its_kernels(tmp_path):
    run.build(tmp_path, run.TARGETS)
    for target in run.TARGETS:
        outcome = run.fuzz(tmp_path, target, seconds=5)
        assert not outcome.failed, outcome.said
        assert outcome.executions > len(list((run.CORPUS / target).iterdir()))
