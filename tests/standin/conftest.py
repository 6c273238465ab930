"""Programs that are clients of the stand-in, in processes that it may end."""

from pathlib import Path

import pytest

PROGRAM = """
import ctypes, errno, os, sys, threading, time
from usrbio import *
client = Client(sys.argv[1], sys.argv[2])
"""


@pytest.fixture
def run_client(run_python, hf3fs_library, hf3fs_mount):
    """Run a program that has a client; return what it prints, or the sentence that it ends with."""

    def run(program, **variables):
        done = run_python(
            PROGRAM + program,
            hf3fs_library,
            hf3fs_mount,
            path=[Path(__file__).parent],
            check=False,
            **variables,
        )
        assert done.returncode in (0, -6), done.stderr
        return done.stderr.partition("3FS stand-in: ")[2].strip() or done.stdout.strip()

    return run
