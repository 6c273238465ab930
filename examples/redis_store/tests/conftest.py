import pytest
from peer import Peer, open_store
from servers import Server


@pytest.fixture
def run():
    """Start processes that end with the test."""
    started = []

    def keep(process):
        started.append(process)
        return process

    yield keep
    for process in reversed(started):
        process.kill()


@pytest.fixture
def server(run, tmp_path_factory):
    # A socket's path has to be short.
    return run(Server(tmp_path_factory.mktemp("r")))


@pytest.fixture
def store(server):
    with open_store(server.url) as store:
        yield store


@pytest.fixture
def peer(run, server):
    return run(Peer(server.url))
