import errno
import os
import struct
import time

import pytest
import xxhash
from ledgers import write_ledger
from support import locked

import ucm
from ucm.directory import collecting, ledger, names

SIZES = {"block_size": 4096, "shard_size": 2048}
BLOCK_BYTES = 3 * 4096


def use(path, age_s):
    stamp = time.time() - age_s
    os.utime(path, (stamp, stamp))


def room(folder, n):
    """Return how much n blocks take, with all that is no block."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    others = [path for path in files if len(path.name) != 32 or ".ucm" in path.parts]
    return n * BLOCK_BYTES + sum(path.stat().st_blocks * 512 for path in others)


def left(folder):
    return {path.name[:2] for path in folder.glob("*/*/???/*")}


def set_depth(path, depth):
    with open(path, "r+b") as file:  # what checks headers is not asked
        file.seek(128)
        file.write(struct.pack("<I", depth))


def test_the_coldest_go_until_it_fits(ucm_command, folder, fill):
    for i, path in enumerate(fill(6)):
        use(path, 2 ** (12 - i))
    outcome = ucm_command("gc", folder, "--to", room(folder, 3), "--json")
    assert outcome.code == 0
    assert (outcome.json["blocks"], outcome.json["after"]) == (3, room(folder, 3))
    assert left(folder) == {"03", "04", "05"}
    assert ucm_command("fsck", folder).code == 0


def test_a_dry_run_removes_nothing_and_says_the_same(ucm_command, folder, fill):
    for i, path in enumerate(fill(6)):
        use(path, 2 ** (12 - i))
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    args = ("gc", folder, "--to", room(folder, 1) + 1000)
    planned = ucm_command(*args, "--dry-run", "--json").json
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before
    assert "would remove 5 blocks" in ucm_command(*args, "--dry-run").out
    done = ucm_command(*args, "--json").json
    assert {**planned, "dry_run": False} == done


def test_used_in_about_the_same_time_the_deeper_go_first(ucm_command, folder, fill):
    paths = fill(4)
    for path, age, depth in zip(paths, (1000, 1010, 1020, 5000), (2, 1, 3, 0), strict=True):
        set_depth(path, depth)
        use(path, age)
    for left_over in ({"00", "01", "02"}, {"00", "01"}, {"01"}):
        ucm_command("gc", folder, "--to", room(folder, len(left_over)))
        assert left(folder) == left_over


def test_unknown_depths_go_by_age_alone(ucm_command, folder, fill):
    for path, age in zip(fill(3), (1000, 1020, 1010), strict=True):
        use(path, age)
    ucm_command("gc", folder, "--to", room(folder, 1))
    assert left(folder) == {"00"}


def test_more_blocks_than_one_walk_keeps(ucm_command, folder, fill, monkeypatch):
    monkeypatch.setattr(collecting, "CANDIDATES", 3)
    for i, path in enumerate(fill(10)):
        use(path, 2 ** (16 - i))
    for dry in (["--dry-run"], []):
        outcome = ucm_command("gc", folder, "--to", room(folder, 1), "--json", *dry)
        assert (outcome.code, outcome.json["blocks"]) == (0, 9)
    assert left(folder) == {"09"}


def test_a_block_that_is_used_meanwhile_stays(ucm_command, folder, fill, monkeypatch):
    paths = fill(3)
    for path in paths:
        use(path, 1000)
    real = collecting._in_order

    def order(coldest, now_ns):
        use(paths[1], 0)
        return real(coldest, now_ns)

    monkeypatch.setattr(collecting, "_in_order", order)
    outcome = ucm_command("gc", folder, "--to", 0, "--json")
    assert left(folder) == {"01"}
    assert outcome.code == 1
    assert outcome.json["blocks_left"] == 1


def test_what_nobody_needs_goes_first(ucm_command, folder, fill):
    fill(2)
    dead = folder / ".ucm" / "writers" / f"{names.machine()}1-0"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / f"{'a' * 32}.0").write_bytes(bytes(8192))
    (dead / "space.1").mkdir()
    (dead / "space.1" / "space").write_text("torn")
    (folder / ".ucm" / "quarantine").mkdir()
    (folder / ".ucm" / "quarantine" / "default.x.y").write_bytes(bytes(4096))
    args = ("gc", folder, "--to", room(folder, 2) - 12288, "--json")
    planned = ucm_command(*args, "--dry-run").json
    done = ucm_command(*args).json
    assert {**planned, "dry_run": False} == done
    assert done["blocks"] == 0
    assert done["orphan_bytes"] >= 8192
    assert not dead.exists()
    assert ucm_command("gc", folder, "--to", room(folder, 2) - 4096, "--quarantine").code == 0
    assert left(folder) == {"00", "01"}


def test_a_running_engine_misses_and_stores_again(ucm_command, folder, fill):
    fill(3)
    ids = [bytes([i]) * 16 for i in range(3)]
    with ucm.open_pipeline("Posix", storage_backends=str(folder), **SIZES) as store:
        assert store.lookup(ids) == [True] * 3
        store.wait(store.dump([b"h" * 16], [0], [[bytes(2048)]]))
        ucm_command("gc", folder, "--to", 0)
        with pytest.raises(ucm.NotFoundError):
            store.wait(store.load([ids[0]], [0], [[bytearray(2048)]]))
        store.wait(store.dump([b"h" * 16], [1], [[bytes(2048)]]))
        assert store.lookup([b"h" * 16]) == [True]


def test_a_time_that_cannot_be_says_nothing(ucm_command, folder, fill):
    cold, wrong, _ = fill(3)
    use(cold, 1000)
    use(wrong, -3 * 86400)
    ucm_command("gc", folder, "--to", room(folder, 2))
    assert left(folder) == {"00", "02"}


def test_what_cannot_be_removed_is_told(ucm_command, folder, fill, monkeypatch):
    fill(2)

    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("os.unlink", refuse)
    outcome = ucm_command("gc", folder, "--to", 0)
    assert outcome.code == 1
    assert "2 blocks cannot be removed" in outcome.err
    assert "Permission denied" in outcome.err


@pytest.mark.parametrize(
    ("error", "advice"),
    [(errno.EROFS, "mount it writable"), (errno.ENOSPC, "make room there")],
)
def test_a_directory_that_cannot_be_written_to(
    ucm_command, refused, folder, fill, monkeypatch, error, advice
):
    fill(1)

    def refuse(path, *_):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr("os.open", refuse)
    refused(ucm_command("gc", folder, "--to", 0), 1, os.strerror(error), advice)


def test_it_waits_for_a_stores_own_collection(ucm_command, refused, folder, fill, monkeypatch):
    monkeypatch.setattr(collecting, "_LOCK_WAIT_S", 0)
    fill(1)
    path = folder / ".ucm" / "gc"
    with locked(path):
        refused(ucm_command("gc", folder, "--to", 0), 1, str(path), "try again later")
        assert ucm_command("gc", folder, "--to", 0, "--dry-run").code == 0
    assert left(folder) == {"00"}
    assert ucm_command("gc", folder, "--to", 0).code == 0


def test_the_lock_is_made_as_the_format_is(ucm_command, folder, fill):
    fill(1, file_mode="0640")
    ucm_command("gc", folder, "--to", 0)
    assert (folder / ".ucm" / "gc").stat().st_mode & 0o777 == 0o640


def test_without_a_size_there_must_be_a_limit(ucm_command, refused, folder, fill):
    fill(2)
    refused(ucm_command("gc", folder), 1, "posix_capacity_gb", "--to")
    write_ledger(folder, ("of-the-dead", 0, 4096))
    refused(ucm_command("gc", folder), 1, "posix_capacity_gb", "--to")
    options = {"storage_backends": str(folder), "posix_capacity_gb": 60000 / 2**30}
    with ucm.open_pipeline("Posix", **options, **SIZES):
        until = time.monotonic() + 20
        while ledger.read(folder).limit == 0 and time.monotonic() < until:
            time.sleep(0.01)  # it enters its account in the background
        found = ucm_command("gc", folder, "--json").json
    assert found["target"] == int(60000 * 0.9 * 0.9)
    assert found["after"] <= found["target"]


@pytest.mark.parametrize("args", [("gc", "--to", 0), ("remove", "--namespace", "default", "--yes")])
def test_the_ledger_is_told_that_it_counts_too_much(ucm_command, folder, fill, args):
    fill(2)
    write_ledger(folder, used=1 << 20)
    assert not ledger.read(folder).recount
    ucm_command(args[0], folder, *args[1:])
    found = ledger.read(folder)
    assert (found.recount, found.used, found.problem) == (True, 1 << 20, None)


def test_stores_that_have_an_index_are_told(ucm_command, folder, fill):
    """As plugins/common/recent.cpp has it: a head that has run away from its readers."""
    (block,) = fill(1)
    header = struct.pack("<8sII16sQ16s", b"UCMRECNT", 1, 8, bytes(range(16)), 5, bytes(16))
    header += struct.pack("<Q", xxhash.xxh3_64_intdigest(header))
    path = block.parents[1] / "recent"
    path.write_bytes(header.ljust(4096 + 8 * 32, b"\0"))
    ucm_command("gc", folder, "--to", 0)
    after = path.read_bytes()
    assert struct.unpack_from("<Q", after, 32) == (5 + 8 + 1,)
    assert struct.unpack_from("<Q", after, 56) == (xxhash.xxh3_64_intdigest(after[:56]),)


def test_a_size_that_is_none_is_2(ucm_command, refused, folder, fill):
    fill(1)
    refused(ucm_command("gc", folder, "--to", "much"), 2, "'much'", "64KiB")


def test_another_folder_is_1(ucm_command, refused, tmp_path):
    refused(ucm_command("gc", tmp_path, "--to", 0), 1, "is not a storage directory")
