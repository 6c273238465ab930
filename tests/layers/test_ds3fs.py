"""Ds3fs: files in 3FS, here over the library that stands in for 3FS's."""

import contextlib
import json
import logging
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT

import ucm
from ucm import Status, config
from ucm.conformance import kit

SHARD, SHARDS = 8192, 4
REAL = bool(os.environ.get("HF3FS_MOUNT"))
WAIT_S = 60

real_3fs = pytest.mark.real_3fs


@pytest.fixture(autouse=True)
def only_what_a_cluster_can_do(request):
    if REAL and not request.node.get_closest_marker("real_3fs"):
        pytest.skip("3FS does not fail on demand")


@pytest.fixture
def folder(hf3fs_mount):
    path = hf3fs_mount / "kv"
    path.mkdir()
    return path


@pytest.fixture
def plan(monkeypatch):
    """Say what goes wrong in the stand-in, for stores that are opened from now on."""
    return lambda words: monkeypatch.setenv("HF3FS_STANDIN", words)


@pytest.fixture
def switch(monkeypatch, tmp_path):
    """Make the daemon of the stand-in dead or hung, and well again."""

    def make(name):
        path = tmp_path / name
        monkeypatch.setenv(f"HF3FS_STANDIN_{name}", str(path))
        return path

    return make


@pytest.fixture
def log(monkeypatch, tmp_path):
    """Return what the stand-in has counted when its rings were destroyed last."""
    path = tmp_path / "standin.json"
    monkeypatch.setenv("HF3FS_STANDIN_LOG", str(path))
    return lambda: json.loads(path.read_text())


@pytest.fixture
def open_store(folder, hf3fs_library):
    opened = []

    def open_one(pipeline="Ds3fs", **options):
        known = {"block_size": SHARDS * SHARD, "shard_size": SHARD}
        if "block_size" in options or "device_id" in options:
            known = {}
        if "Ds3fs" in pipeline and "ds3fs_library" not in options:
            known |= {"ds3fs_library": str(hf3fs_library), "stream_number": 4, "ior_entries": 3}
        store = ucm.open_pipeline(pipeline, **{"storage_backends": str(folder), **known, **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close(kit.WAIT_MS)


def files(folder):
    return sorted(path for path in Path(folder).glob("*/*/???/*"))


def temporary(folder):
    return [path for path in folder.glob(".ucm/writers/*/*") if path.name != "lock"]


def stats(store):
    return store.stats()["Ds3fs"]


def wait_until(true):
    until = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def ends(store, *blocks):
    """Load blocks, and return the different ends of their shards."""
    found = kit.load_pieces(store, kit.pieces_of(blocks))
    return {end if isinstance(end, Status) else "data" for end in found}


def dump_ends(store, *blocks):
    transfer = kit.start_dump(store, kit.pieces_of(blocks))
    with contextlib.suppress(ucm.StoreError):
        store.wait(transfer.task, kit.WAIT_MS)
    return {result.status for result in transfer.task.results}


@real_3fs
def test_blocks_come_back_in_another_store(open_store, folder, rng):
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 40)
        kit.dump(store, *blocks)
        assert store.drain().lost == 0
    assert len(files(folder)) == 40
    with open_store() as store:
        kit.expect_published(store, *blocks)


@real_3fs
@pytest.mark.parametrize("upper", ["", "Compress|"])
def test_posix_reads_what_ds3fs_wrote_and_the_other_way_round(open_store, rng, upper):
    for wrote, reads in (("Ds3fs", "Posix"), ("Posix", "Ds3fs")):
        options = {"dtype": "bf16"} if upper else {}
        with open_store(upper + wrote, **options) as store:
            blocks = kit.new_blocks(store, rng, 3)
            kit.dump(store, *blocks)
        with open_store(upper + reads, **options) as store:
            kit.expect_published(store, *blocks)


def test_a_whole_block_is_one_request_and_one_registration(open_store, log, rng):
    open_store().close()
    before = log()
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 20)
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
        assert stats(store)["requests_total"] == 40
        assert stats(store)["registrations_total"] == 40
        assert stats(store)["buffered_bytes_total"] == 40 * (4096 + SHARDS * SHARD)
    counted = log()
    open_store().close()  # what a store had open is deregistered after its rings are gone
    left = log()
    assert [counted[name] - before[name] for name in ("writes", "reads")] == [20, 20]
    # Published only when the length was known to others; nothing is left to the daemon.
    for name in ("renamed_unsynced", "stale_links", "closed_registered", "registered"):
        assert left[name] == before[name]
    assert left["open_rings"] == before["open_rings"]
    assert left["open_iovs"] == before["open_iovs"]


def test_layer_after_layer_a_file_stays_registered(open_store, rng):
    store = open_store(block_size=32 * SHARD, shard_size=SHARD)
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    before = stats(store)["registrations_total"]
    for piece in block.pieces():
        kit.expect_served(store, [piece])
    # A shard is told before its file is put back, and the next may come to another thread.
    assert stats(store)["registrations_total"] <= before + 4


def test_a_removed_block_is_gone_although_its_file_was_open(open_store, rng):
    store, other = open_store(), open_store()
    block, again = kit.new_blocks(store, rng, 2)
    kit.dump(store, block, again)
    kit.expect_published(store, block, again)
    other.remove([block.id])
    assert ends(store, block) == {Status.NOT_FOUND}
    kit.expect_published(store, again)


def test_nothing_is_left_when_a_store_is_closed_or_killed(
    open_store, folder, hf3fs_mount, hf3fs_library
):
    links = hf3fs_mount / "3fs-virt" / "iovs"
    open_store().close()
    assert list(links.iterdir()) == []
    code = """
import os, signal, sys, ucm
options = {"storage_backends": sys.argv[1], "ds3fs_library": sys.argv[2]}
store = ucm.open_pipeline("Ds3fs", block_size=8192, **options)
os.kill(os.getpid(), signal.SIGKILL)
"""
    command = [sys.executable, "-c", code, str(folder), str(hf3fs_library)]
    assert subprocess.run(command, check=False, cwd=links).returncode == -signal.SIGKILL
    # The daemon takes away the links of the dead; the memory has no name any more.
    left = [os.readlink(link) for link in links.iterdir()]
    assert left
    assert not any(map(os.path.exists, left))


@pytest.mark.parametrize("seed", [1, 2])
def test_many_requests_in_any_order_with_few_descriptors(open_store, plan, rng, seed):
    plan(f"seed={seed} random_us=300")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        options = {"stream_number": 40, "ior_entries": 40 if seed == 1 else 3}
        store = open_store(block_size=40 * SHARD, shard_size=SHARD, **options)
        blocks = kit.new_blocks(store, rng, 30)
        pieces = kit.pieces_of(blocks)
        rng.shuffle(pieces)
        kit.dump_pieces(store, pieces)
        kit.expect_published(store, *blocks)
        rng.shuffle(pieces)
        kit.expect_served(store, pieces)
        assert stats(store)["requests_running"] == stats(store)["stuck_buffers"] == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


REFERENCE = """
ucm_connectors:
  - ucm_connector_name: UcmPipelineStore
    ucm_connector_config:
      store_pipeline: "{pipeline}"
      storage_backends: "{folder}"
      unique_id: {unique_id}
      device_id: 0
      tensor_size: 8192
      shard_size: 8192
      block_size: 32768
      cache_buffer_capacity_gb: 0.03125
      share_buffer_enable: true
      timeout_ms: 30000
      io_direct: true
      stream_number: 8
      ior_entries: 1
      ior_depth: 1
      numa_id: -1
      ds3fs_library: {library}
"""


@pytest.mark.parametrize("pipeline", ["Cache|Ds3fs", "Cache|Compress|Ds3fs"])
def test_the_options_of_the_reference_are_taken_or_it_is_said_why_not(
    folder, hf3fs_library, rng, tmp_path, pipeline, caplog
):
    caplog.set_level(logging.INFO, "ucm")
    path = tmp_path / "ucm.yaml"
    parts = {"folder": folder, "library": hf3fs_library, "unique_id": f"reference-{os.getpid()}"}
    text = REFERENCE.format(pipeline=pipeline, **parts)
    path.write_text(text + ("      dtype: bf16\n" if "Compress" in pipeline else ""))
    notes = config.load_file(path).notes
    assert notes == [
        "io_direct: not used, Posix is not in the pipeline",
        "ior_depth: no effect, because no request to 3FS waits until a batch is full",
    ]
    with ucm.open_pipeline(path) as store:
        blocks = kit.new_blocks(store, rng, 4)
        kit.dump(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0
    assert len(files(folder)) == 4
    ucm.logs.flush()
    # Eight streams of one entry each.
    assert "8 threads for loads and as many for dumps, 1 requests under way" in caplog.text


def test_a_wrong_value_is_refused_by_its_name(open_store):
    for key, value in (("stream_number", 0), ("ior_entries", "many"), ("numa_id", -2)):
        with pytest.raises(ucm.ConfigError, match=key):
            open_store(**{key: value})


@pytest.mark.parametrize("enabled", [True, False])
def test_a_limit_holds_where_locks_do(open_store, folder, rng, enabled):
    """As for Posix; on a mount of 3FS it is refused: tests/faults/test_3fs_mount.py."""
    block_bytes = SHARDS * SHARD + 4096
    limit = 10 * block_bytes
    with open_store(posix_capacity_gb=limit / 2**30, posix_gc_enable=enabled) as store:
        blocks = kit.new_blocks(store, rng, 30)
        statuses = [dump_ends(store, block) for block in blocks]
        assert ({Status.NO_SPACE} in statuses) != enabled
        assert (stats(store)["evicted_blocks_total"] > 0) == enabled
    assert 0 < sum(path.stat().st_blocks * 512 for path in files(folder)) <= limit


# What is missing.


def test_without_the_library_it_is_named(open_store):
    with pytest.raises(ucm.UnavailableError, match=r"ds3fs_library: cannot open libnone\.so"):
        open_store(ds3fs_library="libnone.so")
    with pytest.raises(ucm.InvalidError, match="ds3fs_library is empty"):
        open_store(ds3fs_library="")


def test_every_missing_symbol_is_named(open_store, tmp_path):
    source, library = tmp_path / "old.c", tmp_path / "old.so"
    source.write_text("int hf3fs_reg_fd(int fd) { return fd; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    with pytest.raises(ucm.UnavailableError, match="has no hf3fs_extract_mount_point, ") as raised:
        open_store(ds3fs_library=str(library))
    assert "hf3fs_wait_for_ios" in str(raised.value)
    assert "hf3fs_reg_fd" not in str(raised.value)


def test_a_directory_elsewhere_is_refused(open_store, folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(ucm.UnavailableError, match="is on no mount of 3FS") as raised:
        open_store(storage_backends=str(elsewhere))
    assert str(elsewhere) in str(raised.value)
    assert list(elsewhere.iterdir()) == []
    other = tmp_path / "other"
    (other / "3fs-virt" / "iovs").mkdir(parents=True)
    with pytest.raises(ucm.InvalidError, match="name directories of one mount"):
        open_store(storage_backends=f"{folder}:{other}")


def test_too_few_descriptors_are_refused(open_store):
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        with pytest.raises(ucm.UnavailableError, match=r"stream_number.*RLIMIT_NOFILE. is 256"):
            open_store(stream_number=64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_dead_daemon_is_told_at_open(open_store, switch):
    switch("DEAD").touch()
    with pytest.raises(ucm.StoreError):
        open_store()


def test_lookups_need_no_library(open_store, rng):
    with open_store() as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    reader = open_store(device_id=-1, ds3fs_library="libnone.so")
    assert reader.lookup([block.id, bytes(16)]) == [True, False]


# What fails.


def test_short_reads_and_writes_go_on(open_store, plan, rng):
    plan("read_short=1+:3000 write_short=1+:3000")
    store = open_store()
    blocks = kit.new_blocks(store, rng, 3)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)


@pytest.mark.parametrize("error", ["EIO", "EREMOTEIO", "EAGAIN", "EINTR"])
def test_one_failed_read_is_tried_again(open_store, plan, rng, error):
    plan(f"read_error=1:{error}")
    store = open_store()
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_published(store, block)


def test_reads_that_fail_are_io_and_the_block_stays(open_store, plan, folder, rng):
    with open_store() as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    plan("read_error=1+:EIO")
    with open_store() as store:
        assert ends(store, block) == {Status.IO}
    plan("")
    assert len(files(folder)) == 1
    kit.expect_published(open_store(), block)


def test_writes_that_fail_leave_nothing(open_store, plan, folder, rng):
    plan("write_error=1:EIO write_error=2:ENOSPC")
    store = open_store()
    block = kit.new_block(store, rng)
    assert Status.IO in dump_ends(store, block)
    assert store.lookup([block.id]) == [False]
    assert files(folder) == []
    kit.dump(store, block)
    kit.expect_published(store, block)


@pytest.mark.parametrize("damage", ["cut", "hole", "flip"])
def test_what_is_not_as_it_was_written_is_corrupt(open_store, folder, rng, damage):
    with open_store() as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    (path,) = files(folder)
    whole = path.read_bytes()
    if damage == "cut":
        os.truncate(path, 4096 + SHARD)
    elif damage == "flip":
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    else:
        path.unlink()
        with open(path, "wb") as file:
            file.write(whole[: 4096 + SHARD])
            file.seek(4096 + 3 * SHARD)
            file.write(whole[4096 + 3 * SHARD :])
    store = open_store()
    assert Status.CORRUPT in ends(store, block)
    kit.dump(store, block)
    kit.expect_published(store, block)


# What never ends.


def test_a_read_that_never_ends_is_given_up_and_its_buffer_rests(open_store, plan, rng):
    with open_store() as store:
        blocks = kit.new_blocks(store, rng, 8)
        kit.dump(store, *blocks)
    plan("read_never=1")
    store = open_store(ds3fs_request_timeout_ms=1000)
    assert ends(store, blocks[0]) == {Status.TIMEOUT}
    for _ in range(3):
        kit.expect_published(store, *blocks)
    found = stats(store)
    assert (found["stuck_buffers"], found["given_up_requests_total"]) == (1, 1)


def test_a_write_that_never_ends_is_no_block(open_store, plan, folder, rng):
    plan("write_never=1")
    store = open_store(ds3fs_request_timeout_ms=1000)
    block = kit.new_block(store, rng)
    assert dump_ends(store, block) == {Status.TIMEOUT}
    assert files(folder) == temporary(folder) == []
    kit.dump(store, block)
    kit.expect_published(store, block)
    assert stats(store)["stuck_buffers"] == 1


def test_with_every_buffer_stuck_it_refuses_at_once_and_recovers(open_store, switch, rng):
    hung = switch("HUNG")
    store = open_store(stream_number=2, ior_entries=1, ds3fs_request_timeout_ms=200)
    blocks = kit.new_blocks(store, rng, 6)
    kit.dump(store, *blocks)
    hung.touch()
    # Two are given up; those that wait behind them need not wait for anything.
    assert ends(store, *blocks) <= {Status.TIMEOUT, Status.UNAVAILABLE}
    wait_until(lambda: stats(store)["stuck_buffers"] == 2)
    with pytest.raises(ucm.UnavailableError, match="does not answer"):
        kit.start_load(store, blocks[0].pieces())
    assert all(store.lookup(kit.ids_of(blocks)))
    hung.unlink()
    wait_until(lambda: stats(store)["stuck_buffers"] == 0)
    wait_until(lambda: ends_or_none(store, blocks[0]) == {"data"})
    kit.expect_published(store, *blocks)


def ends_or_none(store, *blocks):
    try:
        return ends(store, *blocks)
    except ucm.UnavailableError:
        return None


def test_a_daemon_that_dies_and_comes_back(open_store, switch, plan, rng):
    dead = switch("DEAD")
    plan("random_us=2000")
    store = open_store(stream_number=3, ior_entries=2, ds3fs_request_timeout_ms=200)
    blocks = kit.new_blocks(store, rng, 40)
    kit.dump(store, *blocks[:20])
    transfers = [kit.start_dump(store, block.pieces()) for block in blocks[20:]]
    transfers += [kit.start_load(store, block.pieces()) for block in blocks[:20]]
    dead.touch()
    for transfer in transfers:
        try:
            store.wait(transfer.task, kit.WAIT_MS)
        except ucm.StoreTimeout:
            assert store.check(transfer.task), "it does not end"
        except ucm.StoreError:
            pass
    dead.unlink()
    # Each thread finds out by itself.
    wait_until(lambda: ends_or_none(store, *blocks[:20]) == {"data"})
    kit.expect_nothing_wrong(store, *blocks)


def test_a_close_that_had_to_wait_reports_all_that_was_stored(open_store, switch, rng):
    hung = switch("HUNG")
    store = open_store()
    block, other = kit.new_blocks(store, rng, 2)
    kit.dump(store, block)
    hung.touch()
    kit.start_dump(store, other.pieces())
    with pytest.raises(ucm.StoreTimeout):
        store.close(250)
    hung.unlink()
    assert store.close(kit.WAIT_MS).stored == 2 * SHARDS


# With a timeout of a day: what ends before, the loss of the daemon has ended.
A_DAY = 86400000


def test_requests_of_a_daemon_that_is_gone_end_before_their_timeout(open_store, switch, plan, rng):
    dead = switch("DEAD")
    store = open_store(ds3fs_request_timeout_ms=A_DAY)
    block, other = kit.new_blocks(store, rng, 2)
    kit.dump(store, block)
    plan("delay_us=50000")
    open_store().close()  # the plan is read
    load = kit.start_load(store, block.pieces())
    dump = kit.start_dump(store, other.pieces())
    wait_until(lambda: stats(store)["requests_running"] > 0)
    dead.touch()
    for transfer in (load, dump):
        with contextlib.suppress(ucm.StoreError):
            store.wait(transfer.task, kit.WAIT_MS)
        assert Status.UNAVAILABLE in {result.status for result in transfer.task.results}
    assert ends(store, block) == {Status.UNAVAILABLE}
    dead.unlink()
    # Each thread finds out by itself.
    wait_until(lambda: dump_ends(store, other) == {Status.OK})
    wait_until(lambda: ends_or_none(store, block, other) == {"data"})


# Memory of Cache.


def test_memory_of_cache_moves_without_a_copy(open_store, hf3fs_mount, rng):
    options = {"cache_buffer_capacity_gb": 0.03125, "ds3fs_zero_copy": True}
    with open_store("Cache|Ds3fs", unique_id=f"zero-copy-{os.getpid()}", **options) as store:
        links = hf3fs_mount / "3fs-virt" / "iovs"
        targets = [os.readlink(link) for link in links.iterdir()]
        assert any("ucm-cache" in target for target in targets)
        blocks = kit.new_blocks(store, rng, 5)
        kit.dump(store, *blocks)
        assert store.drain().pending == 0
        assert stats(store)["buffered_bytes_total"] == 5 * 4096  # headers
    with open_store("Cache|Ds3fs", unique_id=f"zero-copy-2-{os.getpid()}", **options) as store:
        kit.expect_published(store, *blocks)
        assert stats(store)["buffered_bytes_total"] == 5 * 4096
    assert list(links.iterdir()) == []


@pytest.mark.parametrize("shards", [1, SHARDS])
def test_whole_pages_of_cache_are_neither_dumped_nor_loaded_by_a_copy(open_store, rng, shards):
    options = {"cache_buffer_capacity_gb": 0.03125, "ds3fs_zero_copy": True}
    options |= {"block_size": shards * SHARD, "shard_size": SHARD}
    with open_store("Cache|Ds3fs", unique_id=f"pages-{shards}-{os.getpid()}", **options) as store:
        blocks = kit.new_blocks(store, rng, 5)
        kit.dump(store, *blocks)
    with open_store("Cache|Ds3fs", unique_id=f"pages-{shards}-2-{os.getpid()}", **options) as store:
        kit.expect_published(store, *blocks)
        assert stats(store)["buffered_bytes_total"] == 5 * 4096
        assert stats(store)["requests_total"] == 5 * 2


def test_memory_of_cache_is_given_back_when_the_daemon_stays_dead(open_store, switch, plan, rng):
    dead = switch("DEAD")
    plan("delay_us=2000000")
    options = {"cache_buffer_capacity_gb": 0.03125, "ds3fs_zero_copy": True}
    options["ds3fs_request_timeout_ms"] = A_DAY
    store = open_store("Cache|Ds3fs", unique_id=f"stays-dead-{os.getpid()}", **options)
    kit.dump(store, *kit.new_blocks(store, rng, 5))
    wait_until(lambda: stats(store)["requests_running"] > 0)
    dead.touch()
    assert store.close(kit.WAIT_MS).stored < 5 * SHARDS


def test_memory_of_cache_waits_for_a_daemon_that_hangs(open_store, switch, rng):
    hung = switch("HUNG")
    options = {"cache_buffer_capacity_gb": 0.03125, "ds3fs_zero_copy": True}
    options["ds3fs_request_timeout_ms"] = 50
    store = open_store("Cache|Ds3fs", unique_id=f"hangs-{os.getpid()}", **options)
    blocks = kit.new_blocks(store, rng, 5)
    hung.touch()
    kit.dump(store, *blocks)
    with pytest.raises(ucm.StoreTimeout):
        store.close(1500)
    hung.unlink()
    assert store.close(kit.WAIT_MS).stored > 0


def test_private_memory_is_copied_once(open_store, rng):
    options = {"cache_buffer_capacity_gb": 0.03125, "share_buffer_enable": False}
    with open_store("Cache|Ds3fs", ds3fs_zero_copy=True, **options) as store:
        blocks = kit.new_blocks(store, rng, 5)
        kit.dump(store, *blocks)
        store.drain()
        assert stats(store)["buffered_bytes_total"] == 5 * (4096 + SHARDS * SHARD)


# The real one, where it is.


@real_3fs
@pytest.mark.skipif("HF3FS_INCLUDE" not in os.environ, reason="HF3FS_INCLUDE names no header")
def test_structs_and_calls_are_those_of_the_header_of_3fs():
    command = ["c++", "-std=c++17", "-Werror", "-fsyntax-only", "-isystem"]
    source = ROOT / "tests" / "native" / "hf3fs_header.cpp"
    subprocess.run([*command, os.environ["HF3FS_INCLUDE"], source], check=True)


@real_3fs
@pytest.mark.skipif("HF3FS_LIBRARY" not in os.environ, reason="HF3FS_LIBRARY names no library")
def test_every_symbol_is_in_the_library_of_3fs():
    told = subprocess.run(
        ["nm", "-D", "--defined-only", os.environ["HF3FS_LIBRARY"]],
        capture_output=True,
        text=True,
        check=True,
    )
    source = (ROOT / "plugins" / "ds3fs" / "usrbio.cpp").read_text()
    wanted = {f"hf3fs_{name}" for name in re.findall(r'find\(handle, "(\w+)"', source)}
    assert len(wanted) == 11
    assert wanted <= {line.split()[-1] for line in told.stdout.splitlines()}
