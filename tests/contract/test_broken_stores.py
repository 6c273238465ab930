"""The suite finds a store that breaks a promise, and names the promise."""

import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Runs the suite on one store after the other.
RUN = """\
import json, sys, pytest
suite = ["-q", "-p", "no:cacheprovider", "--pyargs", "ucm.conformance", "--basetemp", "inner"]
for arguments in json.loads(sys.argv[1]):
    pytest.main([*suite, *arguments])
"""
MODULES = {
    "blocks": "test_blocks or keep_their_order",
}


def arguments_of(name, tests, folder, *more):
    report = ["--ucm-report", str(folder / f"{name}.json")]
    return ["--ucm-pipeline", f"broken_stores:{name}", "-k", tests, *report, *more]
