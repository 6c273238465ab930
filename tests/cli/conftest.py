import json
import os
import subprocess
import sys
from typing import NamedTuple

import pytest

import ucm
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


SIZES = {"block_size": 4096, "shard_size": 2048}


@pytest.fixture
def fill(folder):
    """Store blocks 0 to n of two shards; return where they are."""

    def dump(n, pipeline="Posix", **options):
        options = {"storage_backends": str(folder), **SIZES, **options}
        with ucm.open_pipeline(pipeline, **options) as store:
            for i in range(n):
                store.wait(store.dump([bytes([i]) * 16] * 2, [0, 1], [[bytes([i]) * 2048]] * 2))
        return sorted(folder.glob("*/*/???/*"))

    return dump


@pytest.fixture
def uc_manager(folder):
    """Lay out a directory as UCM's uc-manager does."""

    def make(kind):
        if kind == "config":
            (folder / ".ucm_gc.config").write_text("{}")
            return
        top = folder if kind == "folders" else folder / "data"
        for number in range(4096) if kind != "flat" else ():
            (top / f"{number:03x}").mkdir(parents=True)
        block = top / "abc" / ("abc" * 11)[:32] if kind != "flat" else top / ("f" * 32)
        block.parent.mkdir(parents=True, exist_ok=True)
        block.write_bytes(b"raw" * 1000)

    return make
