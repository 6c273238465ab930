"""Posix over a file system that fails, hangs, lags and moves few bytes at a time."""

import time

import pytest
from storage import Storage

import ucm
from ucm import Status
from ucm.conformance import kit

SHARD_PAGES = 2 * 4096  # 5000 bytes


@pytest.fixture(params=["Posix", "Posix, direct", "Cache|Posix"])
def pipeline(request):
    return request.param


@pytest.fixture
def disk(mount, tmp_path):
    return mount(tmp_path / "backing")


@pytest.fixture
def storage(disk):
    return Storage(disk.folder)


@pytest.fixture
def blocks_on(open_store, rng):
    """Store n blocks, and return them and a store that has none of them in memory."""

    def make(n, **options):
        with open_store() as store:
            blocks = kit.new_blocks(store, rng, n)
            kit.dump(store, *blocks)
        return blocks, open_store(**options)

    return make


def test_a_shard_whose_read_fails_fails_alone(disk, storage, blocks_on):
    blocks, store = blocks_on(3)
    entry = storage.table(blocks[1].id)[2]
    disk.break_with(f"read EIO match={blocks[1].id.hex()} offset={entry.offset + 100}")
    pieces = kit.pieces_of(blocks)
    transfer = kit.start_load(store, pieces)
    ends = kit.ends_of_load(store, transfer)
    assert [i for i, end in enumerate(ends) if end == Status.IO] == [6]
    assert transfer.task.results[6].os_errno == 5
    assert "Input/output error" in str(transfer.task.error())
    kit.expect_ends(pieces, ends, [Status.IO])
    disk.break_with()
    kit.expect_published(store, *blocks)
    assert storage.quarantined() == set()


def test_a_header_that_cannot_be_read_fails_its_block_alone(disk, blocks_on):
    blocks, store = blocks_on(3)
    disk.break_with(f"read EIO match={blocks[1].id.hex()} offset=0")
    ends = kit.load_pieces(store, kit.pieces_of(blocks))
    assert ends == [*blocks[0].shards, *[Status.IO] * 4, *blocks[2].shards]
    disk.break_with()
    kit.expect_published(store, *blocks)


@pytest.mark.parametrize("operation", ["open", "read", "getattr"])
def test_a_stale_handle_is_a_miss_for_the_time(disk, storage, blocks_on, operation):
    blocks, store = blocks_on(2)
    disk.break_with(f"{operation} ESTALE match={blocks[0].id.hex()}")
    ends = kit.load_pieces(store, kit.pieces_of(blocks))
    assert set(ends[:4]) == {Status.NOT_FOUND}
    assert ends[4:] == list(blocks[1].shards)
    # The other one may be known from its folder: a lookup is a hint, the load has told.
    assert store.lookup(kit.ids_of(blocks))[1]
    disk.break_with()
    kit.expect_published(store, *blocks)
    assert storage.quarantined() == set()


def test_a_lookup_that_fails_is_told_or_left_to_the_cache(disk, blocks_on):
    blocks, store = blocks_on(2)
    kit.expect_published(store, blocks[0])
    disk.break_with("getattr EIO match=/", "open EIO match=/")
    if store.layers[0] == "Cache":
        wait_until(lambda: store.lookup(kit.ids_of(blocks)) == [True, False])
    else:
        with pytest.raises(ucm.IoError, match="Input/output error"):
            wait_until(lambda: not store.lookup(kit.ids_of(blocks)))
    disk.break_with()
    assert store.lookup(kit.ids_of(blocks)) == [True, True]


def test_no_room_in_the_middle_of_a_block(disk, storage, open_store, rng):
    store = open_store()
    block = kit.new_block(store, rng)
    disk.break_with(f"write ENOSPC offset={4096 + 2 * SHARD_PAGES + 100}")
    transfer = kit.start_dump(store, block.pieces())
    kit.finish(store, transfer)
    report = store.drain(kit.WAIT_MS)
    statuses = {result.status for result in transfer.task.results}
    assert statuses <= {Status.OK, Status.NO_SPACE}
    assert report.lost == 4 if "write_back" in store.capabilities else Status.NO_SPACE in statuses
    assert storage.published() == set()
    kit.expect_nothing_wrong(store, block)
    disk.break_with()
    store.remove([block.id])
    kit.dump(store, block)
    assert store.drain(kit.WAIT_MS).lost == 0
    with open_store() as other:
        kit.expect_published(other, block)


@pytest.mark.parametrize("operation", ["create", "mkdir", "rename"])
def test_a_step_of_publishing_that_fails_leaves_nothing(disk, storage, open_store, rng, operation):
    store = open_store()
    block = kit.new_block(store, rng)
    disk.break_with(f"{operation} EIO match={block.id.hex()[:3]}")
    transfer = kit.start_dump(store, block.pieces())
    kit.finish(store, transfer)
    report = store.drain(kit.WAIT_MS)
    statuses = {result.status for result in transfer.task.results}
    assert report.lost == 4 if "write_back" in store.capabilities else Status.IO in statuses
    assert storage.published() == set()
    assert storage.temporaries() == []
    disk.break_with()
    store.remove([block.id])
    kit.dump(store, block)
    assert store.drain(kit.WAIT_MS).lost == 0
    with open_store() as other:
        kit.expect_published(other, block)


@pytest.mark.parametrize("most", [1, 700, 4096, 5001])
def test_what_is_moved_in_pieces_is_moved_whole(disk, storage, open_store, rng, most):
    disk.break_with(f"write short={most} match=.ucm", f"read short={most}")
    sizes = {"block_size": 2000, "tensor_size_list": (300, 200)} if most == 1 else {}
    with open_store(**sizes) as store:
        blocks = kit.new_blocks(store, rng, 2)
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0
    with open_store(**sizes) as store:
        kit.expect_published(store, *blocks)
    assert storage.quarantined() == set()


def test_what_hangs_ends_in_time_or_goes_on_later(disk, open_store, blocks_on, tmp_path, rng):
    beside = tmp_path / "beside"
    beside.mkdir()
    both = f"{disk.folder}:{beside}"
    with open_store(storage_backends=both) as store:
        blocks = kit.new_blocks(store, rng, 12)
        kit.dump(store, *blocks)
    hung = [b for b in blocks if Storage(disk.folder).path(b.id).exists()]
    well = [b for b in blocks if b not in hung]
    assert hung
    assert well
    # Fewer than there are threads: those that hang are lost to others for the time.
    limits = {"Cache.timeout_ms": 2000} if store.layers[0] == "Cache" else {}
    store = open_store(storage_backends=both, **limits)
    pieces = kit.pieces_of(hung[:2])
    disk.break_with("read hang")
    waiting = kit.start_load(store, pieces)
    kit.expect_published(store, *well)
    if store.layers[0] == "Cache":
        assert set(kit.ends_of_load(store, waiting)) == {Status.TIMEOUT}
        disk.break_with()
    else:
        with pytest.raises(ucm.StoreTimeout):
            store.wait(waiting.task, 100)
        disk.break_with()
        kit.expect_ends(pieces, kit.ends_of_load(store, waiting))
    kit.expect_published(store, *blocks)


def test_shards_that_wait_behind_what_hangs_end_in_time(disk, blocks_on):
    blocks, store = blocks_on(8, timeout_ms=1500, posix_data_trans_concurrency=1)
    disk.break_with(f"read hang match={blocks[0].id.hex()}")
    first = kit.start_load(store, blocks[0].pieces()[:1])
    rest = kit.start_load(store, kit.pieces_of(blocks[1:]))
    time.sleep(1.7)
    disk.break_with()
    assert set(kit.ends_of_load(store, rest)) == {Status.TIMEOUT}
    kit.expect_ends(first.pieces, kit.ends_of_load(store, first), [Status.TIMEOUT])
    kit.expect_published(store, *blocks)


def test_a_disk_that_is_full_at_the_first_write_says_so(disk, open_store):
    disk.break_with("write ENOSPC match=format")
    with pytest.raises(ucm.NoSpaceError, match="No space left on device"):
        open_store()
    disk.break_with("write short=20 match=format")
    open_store()
    disk.break_with("read short=3 match=format")
    open_store()


def test_a_dump_that_hangs_does_not_hold_up_loads(disk, open_store, blocks_on, rng):
    blocks, store = blocks_on(2)
    disk.break_with("write hang")
    late = kit.new_block(store, rng)
    dump = kit.start_dump(store, late.pieces())
    kit.expect_published(store, *blocks)
    with pytest.raises(ucm.StoreTimeout):
        store.drain(50)
    disk.break_with()
    kit.finish(store, dump)
    assert store.drain(kit.WAIT_MS).lost == 0
    with open_store() as other:
        kit.expect_published(other, late, *blocks)


def test_close_says_what_hangs_and_can_be_called_again(disk, blocks_on):
    blocks, store = blocks_on(1)
    disk.break_with("read hang")
    transfer = kit.start_load(store, blocks[0].pieces())
    with pytest.raises(ucm.StoreTimeout):
        store.close(50)
    disk.break_with()
    store.close(kit.WAIT_MS)
    assert store.check(transfer.task)


@pytest.mark.parametrize("pipeline", ["Posix"])
def test_the_close_of_an_idle_store_waits_for_no_disk_that_hangs(disk, storage, open_store, rng):
    store = open_store()
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    assert store.drain(kit.WAIT_MS).lost == 0
    disk.break_with("* hang")
    with pytest.raises(ucm.StoreTimeout, match="close again"):
        store.close(50)
    with pytest.raises(ucm.ClosedError):
        store.stats()
    disk.break_with()
    store.close(kit.WAIT_MS)
    assert list(storage.folder.glob(".ucm/writers/*")) == []
    with open_store() as other:
        kit.expect_published(other, block)


def test_a_slow_disk_is_slow_and_no_more(disk, open_store, rng):
    disk.break_with("* delay=3")
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 3)
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0


def wait_until(happened):
    until = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.02)


def wait_until_found(store, blocks):
    wait_until(lambda: all(store.lookup(kit.ids_of(blocks))))


def test_without_locks_each_lookup_asks_the_files(disk, storage, open_store, caplog, rng):
    disk.break_with("lock ENOLCK")
    with open_store() as store, open_store() as other:
        blocks = kit.new_blocks(store, rng, 3)
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0
        kit.expect_published(other, *blocks)

        def warned():
            assert other.lookup(kit.ids_of(blocks)) == [True] * 3
            ucm.logs.flush()
            return "the file system has no locks" in caplog.text

        wait_until(warned)
        assert other.stats()["Posix"]["index_listed"] == 0
    assert not (storage.space() / "recent").exists()


def test_what_is_removed_on_one_host_is_forgotten_on_another(mount, open_store, tmp_path, rng):
    here, there = (mount(tmp_path / "export", cache_seconds=0) for _ in range(2))
    with (
        open_store(storage_backends=str(here.folder)) as store,
        open_store(storage_backends=str(there.folder)) as other,
    ):
        blocks = kit.new_blocks(store, rng, 6)
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0
        wait_until_found(other, blocks)
        if store.layers[0] == "Cache":
            return
        wait_until(lambda: other.stats()["Posix"]["index_listed"] == 100)
        store.remove([blocks[0].id])
        assert store.lookup([blocks[0].id]) == [False]
        wait_until(lambda: other.lookup([blocks[0].id]) == [False])
        kit.expect_published(other, *blocks[1:])


def test_a_ring_that_hangs_holds_up_nobody_for_good(disk, blocks_on):
    blocks, store = blocks_on(3)
    kit.expect_published(store, *blocks)
    disk.break_with("read EIO match=recent", "write EIO match=recent", "open EIO match=recent")
    wait_until_found(store, blocks)
    kit.expect_published(store, *blocks)
    disk.break_with()
    kit.expect_published(store, *blocks)


def test_another_host_sees_blocks_when_its_attributes_are_old_enough(
    mount, open_store, tmp_path, rng
):
    here, there = (mount(tmp_path / "export", cache_seconds=1) for _ in range(2))
    with (
        open_store(storage_backends=str(here.folder)) as store,
        open_store(storage_backends=str(there.folder)) as other,
    ):
        blocks = kit.new_blocks(store, rng, 6)
        kit.expect_absent(other, *blocks)  # and so it believes for a second
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0
        kit.expect_published(store, *blocks)
        kit.expect_nothing_wrong(other, *blocks)
        wait_until_found(other, blocks)
        kit.expect_published(other, *blocks)


def test_another_host_never_takes_old_attributes_for_damage(mount, open_store, tmp_path, rng):
    """A block is removed and dumped again, shorter, behind the back of a host that knows it."""
    here, there = (mount(tmp_path / "export", cache_seconds=1) for _ in range(2))
    export = Storage(tmp_path / "export")
    with (
        open_store(storage_backends=str(here.folder)) as store,
        open_store(storage_backends=str(there.folder)) as other,
    ):
        block = kit.new_block(store, rng)
        kit.dump(store, block)
        assert store.drain(kit.WAIT_MS).lost == 0
        wait_until_found(other, [block])
        known = Storage(there.folder).path(block.id).stat().st_size
        store.remove([block.id])
        shorter = kit.Block(block.id, tuple(shard[:1000] for shard in block.shards))
        kit.dump(store, shorter)
        assert store.drain(kit.WAIT_MS).lost == 0
        assert export.path(block.id).stat().st_size < known
        kit.expect_nothing_wrong(other, shorter)
        wait_until_found(other, [shorter])
        kit.expect_published(other, shorter)
        kit.expect_published(store, shorter)
        assert export.quarantined() == set()


def test_two_hosts_dump_the_same_blocks(mount, open_store, tmp_path, rng):
    here, there = (mount(tmp_path / "export", cache_seconds=1) for _ in range(2))
    with (
        open_store(storage_backends=str(here.folder)) as store,
        open_store(storage_backends=str(there.folder)) as other,
    ):
        blocks = kit.new_blocks(store, rng, 6)
        dumps = [kit.start_dump(each, kit.pieces_of(blocks)) for each in (store, other)]
        for each, dump in zip((store, other), dumps, strict=True):
            each.wait(dump.task, kit.WAIT_MS)
            assert each.drain(kit.WAIT_MS).lost == 0
        for each in (store, other):
            wait_until_found(each, blocks)
            kit.expect_published(each, *blocks)
    assert Storage(tmp_path / "export").published() == set(kit.ids_of(blocks))
    assert Storage(tmp_path / "export").quarantined() == set()
