import json
import os
import random
import threading

import pytest
import xxhash

import ucm
from ucm.directory import block_file, names

SIZES = {"block_size": 4096, "shard_size": 2048}


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def seal(path, at, value):
    """Change bytes of a header, and make its checksum right again."""
    data = bytearray(path.read_bytes())
    data[at : at + len(value)] = value
    data[248:256] = bytes(8)
    data[248:256] = xxhash.xxh3_64_intdigest(bytes(data[:4096])).to_bytes(8, "little")
    path.write_bytes(data)


def kinds(outcome):
    (found,) = outcome.json
    return [finding["kind"] for finding in found["findings"]]


def test_a_sound_directory_is_0(ucm_command, folder, fill):
    fill(3, model="llama")
    fill(2, "Compress|Posix", dtype="bf16")
    outcome = ucm_command("fsck", folder, "--json")
    assert outcome.code == 0
    (found,) = outcome.json
    assert (found["blocks"], found["damaged"], found["findings"]) == (5, 0, [])
    assert found["bytes"] == sum(path.stat().st_size for path in folder.glob("*/*/???/*"))
    assert "5 blocks" in ucm_command("fsck", folder).out


def test_every_flipped_bit_is_found(ucm_command, folder, fill):
    (path,) = fill(1)
    sound = path.read_bytes()
    assert len(sound) == 3 * 4096
    for at in (*range(0, 4096, 257), *range(4096, len(sound), 251)):
        flip(path, at)
        outcome = ucm_command("fsck", folder, "--json")
        assert (at, outcome.code, kinds(outcome)) == (at, 1, ["corrupt"])
        path.write_bytes(sound)
    assert ucm_command("fsck", folder).code == 0


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 8192, 12287, 12289, 16384])
def test_a_file_of_another_size_is_corrupt(ucm_command, folder, fill, size):
    (path,) = fill(1)
    os.truncate(path, size)
    assert kinds(ucm_command("fsck", folder, "--json")) == ["corrupt"]


def test_shards_longer_than_a_window(ucm_command, folder):
    size = block_file.WINDOW + 5000
    options = {"storage_backends": str(folder), "block_size": 2 * size, "shard_size": size}
    with ucm.open_pipeline("Posix", **options) as store:
        store.wait(store.dump([bytes(16)] * 2, [0, 1], [[os.urandom(size)] for _ in range(2)]))
    (path,) = folder.glob("*/*/???/*")
    sound = path.read_bytes()
    assert ucm_command("fsck", folder).code == 0
    for at in (4096, 4096 + block_file.WINDOW, 4096 + size, len(sound) - 1):
        flip(path, at)
        assert kinds(ucm_command("fsck", folder, "--json")) == ["corrupt"]
        path.write_bytes(sound)


def test_the_quarantine_takes_what_is_damaged_and_nothing_else(ucm_command, folder, fill):
    good, bad = fill(2)
    flip(bad, 5000)
    (found,) = ucm_command("fsck", folder, "--quarantine", "--json").json
    kept = folder / ".ucm" / "quarantine" / f"default.{bad.parent.parent.name}.{bad.name}"
    assert found["findings"][0]["action"] == f"moved to {kept}"
    assert kept.exists()
    assert not bad.exists()
    assert good.exists()
    assert ucm_command("fsck", folder).code == 0


def test_a_full_quarantine_deletes(ucm_command, folder, fill):
    paths = fill(66)
    for path in paths:
        flip(path, 5000)
    assert ucm_command("fsck", folder, "--quarantine").code == 1
    assert len(list(folder.glob(".ucm/quarantine/*"))) == 64
    assert list(folder.glob("*/*/???/*")) == []


def test_delete(ucm_command, folder, fill):
    good, bad = fill(2)
    flip(bad, 5000)
    outcome = ucm_command("fsck", folder, "--delete")
    assert outcome.code == 1
    assert "deleted" in outcome.out
    assert (good.exists(), bad.exists()) == (True, False)
    assert ucm_command("fsck", folder).code == 0


def test_only_a_report_without_a_flag(ucm_command, folder, fill):
    (bad,) = fill(1)
    flip(bad, 5000)
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    assert ucm_command("fsck", folder).code == 1
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_another_version_is_told_and_never_touched(ucm_command, folder, fill):
    (path,) = fill(1)
    seal(path, 8, (2).to_bytes(4, "little"))
    outcome = ucm_command("fsck", folder, "--delete", "--json")
    assert (outcome.code, kinds(outcome)) == (1, ["unknown"])
    assert "its version is 2" in outcome.json[0]["findings"][0]["problem"]
    assert path.exists()


def test_blocks_in_the_wrong_place(ucm_command, folder, fill):
    one, two, _ = fill(3)
    wrong_name = one.with_name("000" + "f" * 29)
    one.rename(wrong_name)
    wrong_folder = two.parent.with_name("abc")
    wrong_folder.mkdir()
    two.rename(wrong_folder / two.name)
    (found,) = ucm_command("fsck", folder, "--json").json
    told = {finding["path"]: finding["problem"] for finding in found["findings"]}
    assert told == {
        str(wrong_name): f"it is block {one.name}",
        str(wrong_folder / two.name): f"its folder should be {two.name[:3]}",
    }


def test_a_block_of_another_space(ucm_command, folder, fill):
    (one,) = fill(1)
    fill(1, model="llama")
    other = next(path for path in folder.glob("*/*/???/*") if path.parents[1] != one.parents[1])
    other.write_bytes(one.read_bytes())
    outcome = ucm_command("fsck", folder, "--json")
    assert kinds(outcome) == ["misplaced"]
    assert f"of space {one.parents[1].name}" in outcome.json[0]["findings"][0]["problem"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("ucm sp", "torn"),
        ("ucm space 2\nnamespace=default\n\n", "'ucm space 2'"),
        ("ucm space 1\nshards_per_block=2\nraw_capacity=2048\n\n", "of another space"),
    ],
)
def test_a_manifest_that_is_not_whole(ucm_command, folder, fill, text, told):
    (path,) = fill(1)
    (path.parents[1] / "space").write_text(text)
    outcome = ucm_command("fsck", folder, "--json")
    assert (outcome.code, kinds(outcome)) == (1, ["manifest"])
    assert told in outcome.json[0]["findings"][0]["problem"]


def test_what_killed_writers_left_and_foreign_files_are_no_damage(ucm_command, folder, fill):
    (block,) = fill(1)
    dead = folder / ".ucm" / "writers" / f"{names.machine()}1-0"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / f"{'a' * 32}.0").write_bytes(bytes(1000))
    (folder / "README").write_text("mine")
    (folder / "lost+found").mkdir()
    (block.parent / "notes").write_text("mine")
    (block.parents[1] / "more").write_text("mine")
    outcome = ucm_command("fsck", folder, "--delete", "--json")
    assert outcome.code == 0
    assert kinds(outcome) == ["foreign"] * 4 + ["orphan"]
    orphan = outcome.json[0]["findings"][-1]
    assert orphan["path"] == str(dead)
    assert "4096 bytes" in orphan["problem"]
    assert (dead / "lock").exists()


def test_of_many_foreign_files_the_first_are_listed(ucm_command, folder, fill, monkeypatch):
    monkeypatch.setattr("ucm.directory.checking._TOLD_FOREIGN", 10)
    fill(1)
    for i in range(30):
        (folder / f"mine-{i}").touch()
    (found,) = ucm_command("fsck", folder, "--json").json
    assert (found["foreign"], len(found["findings"])) == (30, 10)
    assert "30 notes" in ucm_command("fsck", folder).out


def test_a_living_writer_is_no_orphan(ucm_command, folder, fill):
    fill(1)
    with ucm.open_pipeline("Posix", storage_backends=str(folder), **SIZES) as store:
        store.wait(store.dump([b"h" * 16], [0], [[bytes(2048)]]))
        assert ucm_command("fsck", folder, "--json").json[0]["findings"] == []


def test_blocks_that_vanish_or_change_meanwhile_are_fine(ucm_command, folder, fill, monkeypatch):
    gone, replaced = fill(2)
    flip(replaced, 5000)
    real = block_file.Reader.open

    def disturb(reader, path):
        info = real(reader, path)
        if path == str(replaced):  # as a store: the whole file at once
            aside = folder / "aside"
            aside.write_bytes(replaced.read_bytes())
            aside.rename(replaced)
        gone.unlink(missing_ok=True)
        return info

    monkeypatch.setattr(block_file.Reader, "open", disturb)
    (found,) = ucm_command("fsck", folder, "--delete", "--threads", "1", "--json").json
    assert found["findings"] == []
    assert replaced.exists()


def test_beside_a_running_engine_there_is_no_damage(ucm_command, folder, fill):
    fill(20)
    stop = threading.Event()

    def engine():
        rng = random.Random(5)
        with ucm.open_pipeline("Posix", storage_backends=str(folder), **SIZES) as store:
            while not stop.is_set():
                block_id = bytes([rng.randrange(20)]) * 16
                store.remove([block_id])
                store.wait(store.dump([block_id] * 2, [0, 1], [[rng.randbytes(2048)]] * 2))

    thread = threading.Thread(target=engine)
    thread.start()
    try:
        for _ in range(20):
            outcome = ucm_command("fsck", folder, "--delete", "--json")
            assert (outcome.code, outcome.json[0]["findings"]) == (0, [])
    finally:
        stop.set()
        thread.join()


def test_what_the_device_cannot_read_is_damage(ucm_command, folder, fill, monkeypatch):
    (path,) = fill(1)

    def fail(reader, opened):
        raise OSError(5, "Input/output error", opened)

    monkeypatch.setattr(block_file.Reader, "open", fail)
    outcome = ucm_command("fsck", folder, "--quarantine", "--json")
    assert (outcome.code, kinds(outcome)) == (1, ["corrupt"])
    assert "Input/output error" in outcome.json[0]["findings"][0]["problem"]
    assert not path.exists()


def test_a_file_system_without_direct_io(ucm_command, folder, fill, monkeypatch):
    path, _ = fill(2)
    real = os.open

    def refuse(name, flags, *args, **more):
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return real(name, flags, *args, **more)

    monkeypatch.setattr("os.open", refuse)
    assert ucm_command("fsck", folder).code == 0
    flip(path, 5000)
    assert ucm_command("fsck", folder).code == 1


def test_two_flags_that_contradict_are_2(ucm_command, refused, folder, fill):
    fill(1)
    refused(ucm_command("fsck", folder, "--delete", "--quarantine"), 2, "--quarantine", "--delete")


def test_another_folder_is_2(ucm_command, refused, tmp_path):
    refused(ucm_command("fsck", tmp_path), 2, "is not a storage directory")


def test_a_folder_that_cannot_be_read_is_told(ucm_command, folder, fill, monkeypatch):
    path, _ = fill(2)
    real = os.scandir

    def refuse(opened):
        if str(opened) == str(path.parent):
            raise PermissionError(13, "Permission denied", opened)
        return real(opened)

    monkeypatch.setattr("os.scandir", refuse)
    outcome = ucm_command("fsck", folder, "--delete", "--json")
    assert (outcome.code, kinds(outcome)) == (1, ["unreadable"])
    assert outcome.json[0]["blocks"] == 1


def test_a_bar_on_a_terminal(ucm_command, folder, fill, monkeypatch):
    fill(3)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    outcome = ucm_command("fsck", folder, "--json")
    assert json.loads(outcome.out)[0]["blocks"] == 3
    assert "verifying" in outcome.err


def test_removed_spaces_that_wait_are_told(ucm_command, folder, fill):
    fill(1)
    trash = folder / ".ucm" / "trash"
    trash.mkdir()
    (trash / "default.x.0").mkdir()
    (found,) = ucm_command("fsck", folder, "--json").json
    assert [finding["kind"] for finding in found["findings"]] == ["orphan"]
