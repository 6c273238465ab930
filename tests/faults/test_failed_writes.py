"""Writes that the kernel refuses under an open store: an error or a named loss, then recovery."""

import contextlib
import resource

import pytest

import ucm
from ucm.conformance import kit

MIB = 1 << 20


@contextlib.contextmanager
def files_limited_to(size):
    """Let writes past ``size`` fail with EFBIG, in all threads of this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 4096, 600000], ids=["nothing", "a page", "half"])
def test_a_refused_write_spoils_nothing(open_store, storage, rng, room):
    sizes = {"block_size": MIB, "tensor_size_list": (MIB // 4,)}
    with open_store(**sizes) as store:
        old, new = kit.new_blocks(store, rng, 2)
        kit.dump(store, old)
        store.drain(kit.WAIT_MS)
        with files_limited_to(room):
            transfer = kit.start_dump(store, new.pieces())
            kit.finish(store, transfer)
            report = store.drain(kit.WAIT_MS)
        statuses = [result.status for result in transfer.task.results]
        assert report.lost == 4 or ucm.Status.IO in statuses
        assert storage.published() == {old.id}
        kit.expect_nothing_wrong(store, new)
        kit.expect_published(store, old)
        store.remove([new.id])
        kit.dump(store, new)
        assert store.drain(kit.WAIT_MS).lost == 0
        kit.expect_published(store, old, new)
    with open_store(**sizes) as store:
        kit.expect_published(store, old, new)
