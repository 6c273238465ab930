import os
import time

import pytest

import ucm

SIZES = {"block_size": 4096, "shard_size": 2048}
IDS = [bytes([i]) * 16 for i in range(3)]


@pytest.fixture
def open_store(folder):
    opened = []

    def open_one(**options):
        store = ucm.open_pipeline("Posix", storage_backends=str(folder), **{**SIZES, **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


def fill(store):
    for block_id in IDS:
        store.wait(store.dump([block_id] * 2, [0, 1], [[bytes(2048)]] * 2))


@pytest.fixture
def filled(open_store):
    for options in ({}, {"model": "llama"}, {"namespace": "team-a"}):
        store = open_store(**options)
        fill(store)
        store.close()


def spaces(folder):
    return sorted(path.parent for path in folder.glob("*/*/space"))


def test_a_namespace_goes_whole_and_alone(ucm_command, folder, filled, open_store):
    outcome = ucm_command("remove", folder, "--namespace", "default", "--yes", "--json")
    assert outcome.code == 0
    assert [(one["blocks"], one["bytes"]) for one in outcome.json["removed"]] == [(3, 36864)] * 2
    assert outcome.json["left"] == []
    assert not (folder / "default").exists()
    assert list(folder.glob(".ucm/trash/*")) == []
    assert open_store(namespace="team-a").lookup(IDS) == [True] * 3
    assert open_store().lookup(IDS) == [False] * 3


def test_one_model_alone(ucm_command, folder, filled, open_store):
    args = ("remove", folder, "--namespace", "default", "--model", "llama", "--yes")
    assert "removed 1 spaces, 3 blocks, 36.0 KiB" in ucm_command(*args).out
    assert open_store(model="llama").lookup(IDS) == [False] * 3
    assert open_store().lookup(IDS) == [True] * 3


def test_one_space_alone(ucm_command, folder, filled):
    one, other = [space for space in spaces(folder) if space.parent.name == "default"]
    args = ("remove", folder, "--namespace", "default", "--space", one.name[:8], "--yes")
    assert ucm_command(*args).code == 0
    assert not one.exists()
    assert other.exists()


def test_only_what_was_not_used_for_so_long(ucm_command, folder, filled):
    args = ("remove", folder, "--namespace", "default", "--older-than", "7d", "--yes")
    assert ucm_command(*args).out == "nothing to remove\n"
    old = next(space for space in spaces(folder) if space.parent.name == "default")
    first, *others = old.glob("???/*")
    for path in others:
        os.utime(path, (0, time.time() - 8 * 86400))
    assert ucm_command(*args).out == "nothing to remove\n"
    os.utime(first, (0, time.time() - 8 * 86400))
    assert "removed 1 spaces" in ucm_command(*args).out
    assert not old.exists()
    assert len(spaces(folder)) == 2


def test_a_running_engine_misses_and_stores_again(ucm_command, folder, open_store):
    store = open_store()
    fill(store)
    store.wait(store.dump([b"h" * 16], [0], [[bytes(2048)]]))
    assert ucm_command("remove", folder, "--namespace", "default", "--yes").code == 0
    assert store.lookup(IDS) == [False] * 3
    store.wait(store.dump([b"h" * 16], [1], [[bytes(2048)]]))
    fill(store)
    assert store.lookup([*IDS, b"h" * 16]) == [True] * 4
    again = [[bytearray(2048)]] * 2
    store.wait(store.load([IDS[0]] * 2, [0, 1], again))


def test_quarantined_files_of_it_go_too(ucm_command, folder, filled, open_store):
    for path in folder.glob("*/*/000/*"):
        path.write_bytes(bytes(4096))
    for options in ({}, {"namespace": "team-a"}):
        store = open_store(**options)
        with pytest.raises(ucm.CorruptError):
            store.wait(store.load([IDS[0]], [0], [[bytearray(2048)]]))
    assert len(list(folder.glob(".ucm/quarantine/*"))) == 2
    assert ucm_command("remove", folder, "--namespace", "default", "--yes").code == 0
    (kept,) = folder.glob(".ucm/quarantine/*")
    assert kept.name.startswith("team-a.")


def test_files_that_are_not_blocks_are_left_and_named(ucm_command, folder, filled, tmp_path):
    space = next(space for space in spaces(folder) if space.parent.name == "team-a")
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / ("a" * 32)).write_text("precious")
    (space / "abc").symlink_to(precious)
    (space / "notes").write_text("mine")
    outcome = ucm_command("remove", folder, "--namespace", "team-a", "--yes")
    assert outcome.code == 1
    assert "removed 1 spaces, 3 blocks" in outcome.out
    assert "notes is left" in outcome.err
    assert (precious / ("a" * 32)).exists()
    (left,) = folder.glob(".ucm/trash/*/notes")
    assert left.read_text() == "mine"


def test_without_a_terminal_it_does_not_ask(ucm_process, folder, filled):
    outcome = ucm_process("remove", folder, "--namespace", "default")
    assert outcome.code == 2
    assert "3 blocks" in outcome.out
    assert "--yes" in outcome.err
    assert len(spaces(folder)) == 3


def test_on_a_terminal_it_asks(ucm_command, folder, filled, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "n")
    outcome = ucm_command("remove", folder, "--namespace", "team-a")
    assert outcome.code == 130
    assert "team-a" in outcome.out
    assert len(spaces(folder)) == 3
    monkeypatch.setattr("click.termui.visible_prompt_func", lambda _: "y")
    assert ucm_command("remove", folder, "--namespace", "team-a").code == 0
    assert len(spaces(folder)) == 2


def test_an_unknown_namespace_lists_the_known(ucm_command, refused, folder, filled):
    outcome = ucm_command("remove", folder, "--namespace", "tema-a", "--yes")
    refused(outcome, 2, "'tema-a'", "default, team-a")


def test_an_age_without_a_unit_is_2(ucm_command, refused, folder, filled):
    args = ("remove", folder, "--namespace", "default", "--older-than", "7", "--yes")
    refused(ucm_command(*args), 2, "'7'", "7d")
