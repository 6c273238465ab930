"""How workers and scheduler meet without the engine's help."""

import json
import subprocess
import types

import pytest

import ucm
from ucm.integration.vllm import rendezvous
from ucm.integration.vllm.rendezvous import Rendezvous

TOLD = {"namespace": "space", "rank": "tp0", "sizes": {"block_size": 8}}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_scheduler_hears_of_all_workers_or_of_none():
    workers, scheduler = [Rendezvous("e") for _ in range(2)], Rendezvous("e")
    workers[1].tell(1, {**TOLD, "rank": "tp1"})
    assert scheduler.ask(2) is None
    workers[0].tell(0, TOLD)
    assert scheduler.ask(2) == [TOLD, {**TOLD, "rank": "tp1"}]
    assert Rendezvous("another").ask(1) is None


def test_who_leaves_leaves_nothing(folder):
    worker, forgotten = Rendezvous("e"), Rendezvous("f")
    worker.tell(0, TOLD)
    forgotten.tell(0, TOLD)
    worker.leave()
    worker.leave()
    del forgotten
    assert list(folder.rglob("*.json")) == []


def test_what_a_killed_worker_left_is_removed_by_the_next(folder):
    killed = subprocess.Popen(["true"])
    killed.wait()
    worker = Rendezvous("gone")
    worker.tell(0, TOLD)
    (home,) = folder.iterdir()
    (left,) = home.iterdir()
    said = {**json.loads(left.read_text()), "pid": killed.pid}
    left.write_text(json.dumps(said))
    elsewhere = home / "elsewhere-0.json"  # in another container, where that process lives
    elsewhere.write_text(json.dumps({**said, "pid_namespace": "pid:[1]"}))
    (home / "other.json").write_text("not ours")
    Rendezvous("e")
    assert {path.name for path in home.iterdir()} == {"other.json", elsewhere.name}


def test_a_worker_that_never_speaks_is_told_of_once_with_the_file_it_should_leave(
    monkeypatch, caplog
):
    clock = [0.0]
    monkeypatch.setattr(rendezvous, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    worker, scheduler = Rendezvous("e"), Rendezvous("e")
    worker.tell(0, TOLD)
    assert scheduler.ask(2) is None
    assert not caplog.text
    for _ in range(2):
        clock[0] += 60
        assert scheduler.ask(2) is None
    assert caplog.text.count("e-1.json") == 1
    assert caplog.text.count("TMPDIR") == 1


def test_a_folder_that_others_can_write_is_refused(folder):
    Rendezvous("e")
    (home,) = folder.iterdir()
    home.chmod(0o777)
    with pytest.raises(ucm.ConfigError, match="set TMPDIR"):
        Rendezvous("e")
