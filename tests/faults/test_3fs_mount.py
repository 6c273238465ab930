"""Ds3fs where the kernel says fuse.hf3fs: plain files through FUSE, under the stand-in."""

import subprocess

import pytest
import yaml
from storage import Storage

import ucm
from ucm import Status, checks_3fs, directory
from ucm.cli import _check
from ucm.conformance import kit


@pytest.fixture(params=["Ds3fs"])
def pipeline(request):
    return request.param


@pytest.fixture
def of_3fs(hf3fs_library):
    return {"ds3fs_library": str(hf3fs_library), "stream_number": 4}


@pytest.fixture
def disk(mount, tmp_path):
    backing = tmp_path / "3fs"
    (backing / "3fs-virt" / "iovs").mkdir(parents=True)
    (backing / "kv").mkdir(mode=0o700)
    return mount(backing, options=",subtype=hf3fs,fsname=hf3fs.stage")


@pytest.fixture
def storage(disk):
    return Storage(disk.folder / "kv")


@pytest.fixture
def warnings(storage, of_3fs, tmp_path):
    """Return what ``ucm check`` warns of, by its name."""

    def check(**options):
        path = tmp_path / "config.yaml"
        given = {"store_pipeline": "Ds3fs", "storage_backends": str(storage.folder)}
        path.write_text(yaml.safe_dump({**given, **of_3fs, **options}))
        report = _check.run(str(path))
        return report["error"], {found["check"]: found for found in report["warnings"]}

    return check


def test_a_limit_is_refused_since_other_hosts_would_not_see_it(open_store, warnings):
    """The message and the check name the option, and what to do instead."""
    with pytest.raises(ucm.UnavailableError, match=r"posix_capacity_gb: .* is on 3FS") as raised:
        open_store(posix_capacity_gb=1)
    assert "leave it out, and let one host make room with ucm gc" in str(raised.value)
    error, found = warnings(posix_capacity_gb=1)
    assert error == str(raised.value)
    assert "posix_capacity_gb is set" in found["quota"]["what"]
    assert "ucm gc" in found["quota"]["remedy"]
    error, found = warnings()
    assert error is None
    assert "posix_capacity_gb" not in str(found)
    assert "ucm gc" in found["unbounded"]["remedy"]


def test_a_host_makes_room_with_ucm_gc_under_open_stores(open_store, storage, rng):
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 8)
        kit.dump(store, *blocks)
        half = 4 * 36864
        found = directory.collect(storage.folder, to=half)
        assert 0 < found.blocks < 8
        assert found.enough
        assert len(storage.published()) == 8 - found.blocks
        ends = kit.load_pieces(store, kit.pieces_of(blocks))
        kit.expect_ends(kit.pieces_of(blocks), ends, [Status.NOT_FOUND])
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)


def test_the_mount_is_known_by_its_type_and_what_its_daemon_lacks_is_named(warnings, disk):
    _, found = warnings()
    assert "has no submit-ios" in found["3fs_daemon"]["what"]
    # Not by this process, whose links in that folder make memory known.
    link = disk.folder / "3fs-virt" / "iovs" / "submit-ios"
    subprocess.run(["ln", "-s", "/dev/shm/none", link], check=True)
    _, found = warnings()
    assert not {name for name in found if name.startswith("3fs")}
    assert checks_3fs.mount_point(str(disk.folder / "kv"), checks_3fs.read_mounts()) == disk.folder


@pytest.mark.parametrize("pipeline", ["Ds3fs", "Cache|Ds3fs"])
def test_a_daemon_that_hangs_holds_up_neither_close_nor_loads_of_cache(
    open_store, disk, rng, pipeline
):
    limits = {"Cache.timeout_ms": 300} if pipeline.startswith("Cache") else {}
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 4)
        kit.dump(store, *blocks)
    store = open_store(**limits)
    disk.break_with("* hang match=/kv")
    loading = kit.start_load(store, blocks[0].pieces())
    if limits:
        assert set(kit.ends_of_load(store, loading)) == {Status.TIMEOUT}
    with pytest.raises(ucm.StoreTimeout, match="close again"):
        store.close(100)
    disk.break_with()
    store.close(kit.WAIT_MS)
    assert store.check(loading.task)
    with open_store() as other:
        kit.expect_published(other, *blocks)


def test_the_close_of_an_idle_store_waits_for_no_daemon_that_hangs(open_store, disk, rng):
    store = open_store()
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    disk.break_with("* hang match=/kv")
    with pytest.raises(ucm.StoreTimeout, match="close again"):
        store.close(100)
    disk.break_with()
    store.close(kit.WAIT_MS)
    with open_store() as other:
        kit.expect_published(other, block)
