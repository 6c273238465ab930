"""Posix: what all writers of a directory may take together, and which blocks go for it."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support import locked, taken

import ucm
from ucm.conformance import kit

MIB = 1 << 20
SIZES = {"block_size": MIB, "shard_size": MIB // 4}
FILE = MIB + 4096

WRITER = """
import json, random, sys, ucm
from ucm.conformance import kit
config, seed, count = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
with ucm.open_pipeline("Posix", **config) as store:
    print("open", flush=True)
    sys.stdin.readline()
    for _ in range(count):
        kit.dump(store, kit.new_block(store, rng))
    print("done", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def start_writer(folder):
    """Start a process that opens the directory, and dumps when it is told to."""
    running = []

    def start(count=0, seed=0, **options):
        config = {"storage_backends": str(folder), **SIZES, **options}
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, json.dumps(config), str(seed), str(count)],
            cwd=folder.parent,  # away from the checkout
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stdout.readline() == "open\n"
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def open_store(folder):
    """Open Posix; blocks have 4 shards of 256 KiB."""
    with contextlib.ExitStack() as opened:

        def open_one(capacity="16MiB", **options):
            given = {"storage_backends": str(folder), "posix_capacity_gb": capacity, **SIZES}
            return opened.enter_context(ucm.open_pipeline("Posix", **{**given, **options}))

        yield open_one


def path_of(folder, block):
    name = block.id.hex()
    (space,) = folder.glob("*/*/space")
    return space.parent / name[:3] / name


def until(happened):
    """Wait for what another thread or process does."""
    end = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


def load(store, folder, *blocks):
    """Load blocks; return when they count as used."""
    before = {block.id: path_of(folder, block).stat().st_mtime_ns for block in blocks}
    kit.expect_published(store, *blocks)
    for block in blocks:
        until(lambda b=block: path_of(folder, b).stat().st_mtime_ns > before[b.id])


def dump_each(store, rng, count):
    blocks = kit.new_blocks(store, rng, count)
    for block in blocks:
        kit.dump(store, block)
    return blocks


def sighted(processes, folder):
    """Return what files take while no process can change it."""
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    for process in processes:
        until(lambda p=process: Path(f"/proc/{p.pid}/stat").read_text().split()[2] in "TZ")
    size = taken(folder)
    for process in processes:
        process.send_signal(signal.SIGCONT)
    return size


@pytest.mark.parametrize("count", [1, 4])
def test_nobody_writes_beyond_the_limit(start_writer, folder, count):
    limit = 24 * MIB
    processes = [start_writer(60, seed, posix_capacity_gb="24MiB") for seed in range(count)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    most = 0
    # Between two looks they are left to write: stopped for most of the time, they need minutes.
    while not select.select([processes[0].stdout], [], [], 0.005)[0]:
        most = max(most, sighted(processes, folder))
    for process in processes:
        assert process.stdout.readline() == "done\n"
    most = max(most, sighted(processes, folder))
    assert 12 * MIB < most <= limit + count * FILE


def test_a_limit_holds_for_what_was_there_before(open_store, folder, rng):
    with ucm.open_pipeline("Posix", storage_backends=str(folder), **SIZES) as store:
        dump_each(store, rng, 30)
    store = open_store("8MiB")
    kit.dump(store, kit.new_block(store, rng))
    assert taken(folder) <= 8 * MIB + FILE


def test_what_was_loaded_last_stays(open_store, folder, rng):
    store = open_store()
    blocks = dump_each(store, rng, 12)
    load(store, folder, *blocks[:4])
    dump_each(store, rng, 7)
    found = store.lookup(kit.ids_of(blocks))
    assert found[:4] == [True] * 4
    assert not any(found[4:8])


def test_a_restart_forgets_nothing(open_store, folder, rng):
    with open_store() as store:
        blocks = dump_each(store, rng, 12)
        load(store, folder, *blocks[:4])
    store = open_store()
    dump_each(store, rng, 7)
    found = store.lookup(kit.ids_of(blocks))
    assert found[:4] == [True] * 4
    assert not any(found[4:8])


def test_blocks_of_other_spaces_count_and_go_too(open_store, folder, rng):
    with open_store(namespace="other") as store:
        others = dump_each(store, rng, 12)
    store = open_store()
    dump_each(store, rng, 6)
    with open_store(namespace="other") as store:
        assert 0 < sum(store.lookup(kit.ids_of(others))) < 10
    assert taken(folder) <= 16 * MIB


def test_foreign_files_neither_count_nor_go(open_store, folder, rng):
    (folder / "notes").write_bytes(bytes(32 * MIB))
    (folder / "default").mkdir()
    (folder / "default" / "a photo").write_bytes(bytes(MIB))
    store = open_store()
    blocks = dump_each(store, rng, 30)
    assert sum(store.lookup(kit.ids_of(blocks))) > 8
    assert (folder / "notes").stat().st_size == 32 * MIB
    assert (folder / "default" / "a photo").exists()


def test_all_directories_are_collected(open_store, tmp_path, rng):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    store = open_store("36MiB", storage_backends=":".join(map(str, folders)))
    dump_each(store, rng, 90)
    for folder in folders:
        assert 6 * MIB < taken(folder) <= 12 * MIB


def test_a_limit_that_holds_no_four_blocks_is_refused(open_store, tmp_path):
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    with pytest.raises(
        ucm.InvalidError, match=r"posix_capacity_gb: .* less than 4 blocks"
    ) as error:
        open_store("8MiB", storage_backends=":".join(map(str, folders)))
    enough = str(error.value).rsplit("give ", 1)[1].split()[0]
    open_store(float(enough) + 1e-6, storage_backends=":".join(map(str, folders)))


def test_the_smallest_limit_of_the_living_holds(open_store, start_writer, folder, rng, caplog):
    strict = start_writer(posix_capacity_gb="8MiB")
    store = open_store("64MiB")
    dump_each(store, rng, 20)
    assert taken(folder) <= 8 * MIB
    said = f"posix_capacity_gb: {folder} is limited to 0.00781 GiB by writer"
    until(lambda: said in caplog.text)
    assert "this store asks for 0.0625 GiB" in caplog.text
    strict.kill()
    strict.wait()
    until(lambda: store.stats()["Posix"]["quota_limit_bytes"] == 64 * MIB)
    dump_each(store, rng, 20)
    assert taken(folder) > 16 * MIB


def test_a_limit_that_comes_later_holds_at_once(open_store, start_writer, folder, rng):
    store = open_store(0)
    dump_each(store, rng, 4)
    start_writer(posix_capacity_gb="8MiB")
    until(lambda: store.stats()["Posix"]["quota_limit_bytes"] == 8 * MIB)
    for _ in range(20):
        dump_each(store, rng, 1)
        assert taken(folder) <= 8 * MIB + FILE


def deleted(ledger, _older):
    ledger.unlink()


def torn(ledger, _older):
    data = bytearray(ledger.read_bytes())
    data[50] ^= 1
    ledger.write_bytes(data)


def short(ledger, _older):
    os.truncate(ledger, 100)


def emptied(ledger, _older):
    ledger.write_bytes(b"")


def restored(ledger, older):
    shutil.copy2(older, ledger.with_suffix(".new"))
    ledger.with_suffix(".new").rename(ledger)


def older_in_place(ledger, older):
    ledger.write_bytes(older.read_bytes())


def foreign(ledger, _older):
    ledger.write_bytes(b"something else\n" * 1000)


DAMAGES = [deleted, torn, short, emptied, restored, older_in_place, foreign]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("used", [True, False], ids=["in use", "at rest"])
def test_a_ledger_that_lies_is_found_out(open_store, folder, tmp_path, rng, damage, used):
    ledger, older = folder / ".ucm" / "ledger", tmp_path / "older"
    with open_store() as store:
        dump_each(store, rng, 1)
        until(ledger.exists)
        if used:
            shutil.copy2(ledger, older)
    if not used:
        shutil.copy2(ledger, older)
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(open_store())
        dump_each(store, rng, 10)
        if not used:
            stack.close()
            time.sleep(0.2)  # a file's change is told by its time
        damage(ledger, older)
        store = open_store()
        for _ in range(16):
            dump_each(store, rng, 1)
            assert taken(folder) <= 16 * MIB + 2 * FILE


def test_without_collecting_a_full_directory_is_said_to_be(open_store, folder, rng, caplog):
    store = open_store(posix_gc_enable=False)
    blocks = dump_each(store, rng, 15)
    with pytest.raises(ucm.NoSpaceError):
        kit.dump(store, kit.new_block(store, rng))
    until(lambda: "posix_gc_enable is false" in caplog.text)
    assert "posix_capacity_gb: " in caplog.text
    assert store.lookup(kit.ids_of(blocks)) == [True] * 15
    store.remove(kit.ids_of(blocks[:8]))
    dump_each(store, rng, 8)


def test_what_is_removed_makes_room(open_store, folder, rng):
    store = open_store()
    blocks = dump_each(store, rng, 13)
    store.remove(kit.ids_of(blocks[1:]))
    more = dump_each(store, rng, 12)
    assert store.lookup(kit.ids_of([blocks[0], *more])) == [True] * 13


def test_unfinished_blocks_count(open_store, folder, rng):
    store = open_store()
    blocks = kit.new_blocks(store, rng, 40)
    for block in blocks:
        kit.dump_pieces(store, block.pieces()[:2])
        assert taken(folder) <= 16 * MIB + FILE
    assert store.drain(kit.WAIT_MS).pending == 0


def test_files_that_are_used_seldom_are_not_stamped_at_every_load(open_store, folder, rng):
    store = open_store(0)
    (block,) = dump_each(store, rng, 1)
    before = path_of(folder, block).stat().st_mtime_ns
    kit.expect_published(store, block)
    old = before - 2 * 3600 * 10**9
    os.utime(path_of(folder, block), ns=(old, old))
    load(store, folder, block)
    after = path_of(folder, block).stat().st_mtime_ns
    assert after >= before


@pytest.fixture
def results_of():
    def dump(store, block, pieces=None):
        transfer = kit.dump_pieces(store, block.pieces() if pieces is None else pieces)
        return [(r.status.name, r.published, r.declined) for r in transfer.task.results]

    return dump


KEPT, PART, DECLINED = ("OK", True, False), ("OK", False, False), ("OK", False, True)


def test_second_sight(open_store, folder, rng, results_of):
    store = open_store(0, posix_admission="second_sight")
    block, other = kit.new_blocks(store, rng, 2)
    assert results_of(store, block) == [DECLINED] * 4
    kit.expect_absent(store, block)
    assert results_of(store, block) == [KEPT] * 4
    assert results_of(store, block) == [KEPT] * 4
    kit.expect_published(store, block)
    # Shards that come later follow the first.
    for piece in other.pieces():
        assert results_of(store, other, [piece]) == [DECLINED]
    assert results_of(store, other, other.pieces()[:3]) == [PART] * 3
    assert results_of(store, other, other.pieces()[3:]) == [KEPT]
    report = store.drain(kit.WAIT_MS)
    assert (report.stored, report.lost) == (12, 0)
    assert store.stats()["Posix"]["declined_blocks_total"] == 2
    assert not list(folder.glob(".ucm/writers/*/*.[0-9]*"))


def test_a_rate_of_writes(open_store, folder, rng, results_of):
    store = open_store(0, posix_write_mbps_max=2)
    ends = [results_of(store, block)[0] for block in kit.new_blocks(store, rng, 8)]
    assert ends[0] == KEPT
    assert DECLINED in ends
    assert set(ends) == {KEPT, DECLINED}


def test_the_place_of_a_block_in_its_prefix_is_kept_with_it(open_store, folder, rng):
    store = open_store()
    block = kit.new_block(store, rng)
    pieces = block.pieces()
    rows = [[np.frombuffer(piece.data, np.uint8)] for piece in pieces]
    task = store.dump([block.id] * len(pieces), range(len(pieces)), rows, depths=[7] * len(pieces))
    store.wait(task)
    (path,) = folder.glob("*/*/???/*")
    assert int.from_bytes(path.read_bytes()[128:132], "little") == 7


@pytest.fixture
def full_and_locked(open_store, folder, rng):
    """Fill the limit but for less than a block, and collect elsewhere, for a long time."""
    with open_store("8MiB") as store:
        for _ in range(7):
            kit.dump(store, kit.new_block(store, rng))
    with locked(folder / ".ucm" / "gc"):
        yield


@pytest.mark.parametrize("engine", ["psync", "io_uring"])
def test_a_dump_that_waits_for_room_can_be_cancelled(open_store, rng, full_and_locked, engine):
    store = open_store("8MiB", posix_io_engine=engine)
    waiting = kit.start_dump(store, kit.new_block(store, rng).pieces())
    with pytest.raises(ucm.StoreTimeout):
        store.wait(waiting.task, 500)
    store.cancel(waiting.task)
    with pytest.raises(ucm.StoreError, match="CANCELLED"):
        store.wait(waiting.task, 10000)


def test_dumps_that_find_no_room_in_time_say_so(open_store, rng, full_and_locked):
    store = open_store("8MiB", timeout_ms=1000)
    waiting = [kit.start_dump(store, kit.new_block(store, rng).pieces()) for _ in range(20)]
    for dump in waiting:
        with pytest.raises(ucm.NoSpaceError):
            store.wait(dump.task, 10000)
