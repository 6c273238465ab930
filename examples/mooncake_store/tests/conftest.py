import os

import pytest
from cluster import MIB, QUIET, Master, Peer
from peer import open_store

os.environ.update(QUIET)


@pytest.fixture
def run(tmp_path):
    """Start processes that end with the test."""
    started = []

    def keep(process):
        started.append(process)
        return process

    yield keep
    for process in reversed(started):
        process.kill()


@pytest.fixture
def master(run, tmp_path):
    return run(Master(tmp_path / "master.log"))


@pytest.fixture
def peer(run, master):
    """A process that gives memory."""
    return run(Peer(master))


@pytest.fixture
def store(master, peer):
    """A store that gives none: its blocks are in the peer's memory."""
    with open_store(master.address, 0) as store:
        yield store


@pytest.fixture
def own(master):
    """A store that gives memory."""
    with open_store(master.address, 64 * MIB) as store:
        yield store
