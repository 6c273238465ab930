"""How workers and scheduler meet without the engine's help."""

import json
import subprocess

import pytest

import ucm
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
    Rendezvous("e")
    (home,) = folder.iterdir()
    (home / "gone-0.json").write_text(json.dumps({"pid": killed.pid, **TOLD}))
    (home / "other.json").write_text("not ours")
    Rendezvous("e")
    assert [path.name for path in home.iterdir()] == ["other.json"]


def test_a_folder_that_others_can_write_is_refused(folder):
    Rendezvous("e")
    (home,) = folder.iterdir()
    home.chmod(0o777)
    with pytest.raises(ucm.ConfigError, match="set TMPDIR"):
        Rendezvous("e")
