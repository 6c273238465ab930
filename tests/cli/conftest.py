import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

import ucm.cli


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture
def ucm_command(capsys):
    """Run a command line in this process."""

    def run(*args):
        capsys.readouterr()
        code = ucm.cli.main([str(arg) for arg in args])
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture
def ucm_process(tmp_path):
    """Run a command line in a process of its own, away from the checkout."""

    def run(*args, **variables):
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys, ucm.cli; sys.exit(ucm.cli.main())",
                *map(str, args),
            ],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def refused():
    """Check that a command ended with one line that says all of this, and printed nothing else."""

    def check(outcome, code, *words):
        assert outcome.code == code, outcome
        assert outcome.out == ""
        assert outcome.err.startswith("ucm: ")
        assert outcome.err.count("\n") == 1, outcome.err
        for word in words:
            assert word in outcome.err

    return check
