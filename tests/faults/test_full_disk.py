"""A file system that is full, or turns read-only: named errors, nothing wrong, and recovery."""

import os
import subprocess

import pytest
from storage import Storage

import ucm
from ucm.conformance import kit

MIB = 1 << 20


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True, capture_output=True)


@pytest.fixture
def storage(tmp_path):
    """Make a file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system of its own cannot be mounted here (root is needed): {error}")
    yield Storage(folder)
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def open_small(open_store):
    return lambda **more: open_store(block_size=MIB, tensor_size_list=(MIB // 4,), **more)


def dump_each(store, blocks):
    """Dump blocks one by one; return those that failed, and how many shards went well."""
    failed, good = [], 0
    for block in blocks:
        transfer = kit.start_dump(store, block.pieces())
        kit.finish(store, transfer)
        statuses = [result.status for result in transfer.task.results]
        assert set(statuses) <= {ucm.Status.OK, ucm.Status.NO_SPACE}
        good += statuses.count(ucm.Status.OK)
        if ucm.Status.NO_SPACE in statuses:
            failed.append(block)
            assert isinstance(transfer.task.error(), ucm.NoSpaceError)
            assert "No space left on device" in str(transfer.task.error())
    return failed, good


def test_a_full_disk(open_small, rng):
    with open_small() as store:
        blocks = kit.new_blocks(store, rng, 14)
        failed, good = dump_each(store, blocks)
        report = store.drain(kit.WAIT_MS)
        assert report.pending == 0
        assert report.stored + report.lost >= good - 4 * len(failed)
        if "write_back" in store.capabilities:
            assert report.lost > 0
        else:
            assert failed
        kit.expect_nothing_wrong(store, *blocks)
    with open_small() as store:
        found = store.lookup(kit.ids_of(blocks))
        visible = [block for block, here in zip(blocks, found, strict=True) if here]
        hidden = [block for block, here in zip(blocks, found, strict=True) if not here]
        assert len(visible) >= 5
        assert len(hidden) >= 5
        kit.expect_published(store, *visible)
        kit.expect_absent(store, *hidden)
        store.remove(kit.ids_of(visible))
        kit.dump(store, *hidden[:4])
        kit.expect_published(store, *hidden[:4])
        assert store.drain(kit.WAIT_MS).lost == 0
    with open_small() as store:
        kit.expect_published(store, *hidden[:4])


def test_an_unfinished_block_gives_its_room_back(open_small, storage, rng):
    with open_small() as store:
        halves = kit.new_blocks(store, rng, 5)
        for block in halves:
            kit.dump_pieces(store, block.pieces()[:3])
    assert storage.temporaries() == []
    assert storage.published() == set()
    with open_small() as store:
        blocks = kit.new_blocks(store, rng, 5)
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0
        kit.expect_published(store, *blocks)


def test_a_disk_that_turns_read_only_still_serves(open_small, storage, pipeline, rng):
    with open_small() as store:
        blocks = kit.new_blocks(store, rng, 3)
        kit.dump(store, *blocks)
    mount("-o", "remount,ro", str(storage.folder))
    options = {"storage_backends": str(storage.folder), "device_id": -1}
    with ucm.open_pipeline(pipeline.partition(",")[0], **options) as looking:
        assert looking.lookup(kit.ids_of(blocks)) == [True] * 3
    with pytest.raises(ucm.StoreError, match=str(storage.folder)) as raised:
        open_small()
    assert "Read-only file system" in str(raised.value)
    assert "mount it writable" in str(raised.value)
    mount("-o", "remount,rw", str(storage.folder))
    with open_small() as store:
        kit.expect_published(store, *blocks)


def test_a_directory_that_vanishes_is_a_miss(open_small, storage, rng):
    with open_small() as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    with open_small() as store:
        folder = storage.path(block.id).parent
        away = storage.folder / "away"
        folder.rename(away)
        kit.expect_absent(store, block)
        away.rename(folder)
    # Nobody tells a store of that; one that has looked before sees it within half a minute.
    with open_small() as store:
        kit.expect_published(store, block)
    assert os.listdir(storage.folder)
