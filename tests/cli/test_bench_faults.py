"""``ucm bench faults``: breaks a pipeline, counts what that does, and fails on wrong bytes."""

import pytest
from support import build_plugins

from ucm import breaking
from ucm.cli import _faults


@pytest.fixture
def faults(ucm_command):
    """Run some faults; return their scores by name."""

    def run(*names, args=(), code=0):
        only = [word for name in names for word in ("--only", name)]
        outcome = ucm_command("bench", "faults", *only, *args, "--json")
        assert outcome.code == code, outcome.err
        return {score["fault"]: score for score in outcome.json["faults"]}

    return run


@pytest.mark.parametrize("pipeline", ["Posix", "Cache|Compress|Posix"])
def test_damaged_files_are_told_and_repaired(faults, pipeline):
    scores = faults(*_faults.DAMAGES, args=["--pipeline", pipeline])
    assert list(scores) == list(_faults.DAMAGES)
    for name, score in scores.items():
        assert (score["stored"], score["hit"], score["wrong"], score["hangs"]) == (8, 4, 0, 0)
        assert (score["told"], score["lost"]) == (0 if name == "deleted" else 4, 4)
        assert (score["recovered"], score["again"]) == (8, 8)


def test_processes_and_errors(faults):
    scores = faults(
        _faults.EIO, _faults.RESTART, _faults.RIVALS, _faults.KILLED, args=["--kills", 1]
    )
    killed = scores.pop("writer killed (SIGKILL) 1 times at random")
    left_out = scores.pop("writer killed (SIGKILL) at every change of state")
    assert "-Dfailpoints=true" in left_out["left_out"]
    for score in [*scores.values(), killed]:
        assert (score["wrong"], score["lost"], score["hangs"]) == (0, 0, 0)
        assert score["recovered"] == score["again"] > 0
    assert scores[_faults.EIO]["told"] > 0
    assert scores[_faults.RESTART]["stored"] == scores[_faults.RIVALS]["stored"] == 8


def test_a_full_disk(faults):
    score = faults(_faults.FULL)[_faults.FULL]
    if score["left_out"]:
        pytest.skip(score["left_out"])
    assert score["stored"] + score["hit"] == 8
    assert score["told"] == score["hit"] > 0
    assert (score["wrong"], score["lost"], score["hangs"]) == (0, 0, 0)
    assert score["recovered"] == score["again"] > 0


def test_a_full_disk_is_left_out_aloud_where_nothing_can_be_mounted(ucm_command, monkeypatch):
    monkeypatch.setattr(
        breaking, "in_tmpfs", lambda place, size: ["sh", "-c", "echo may not >&2; exit 1"]
    )
    outcome = ucm_command("bench", "faults", "--only", _faults.FULL)
    assert outcome.code == 0
    assert f"left out: {_faults.FULL}: a tmpfs cannot be mounted here: may not" in outcome.out


# No quota is set, a ring is made once, and whole blocks are written with their headers.
NOT_PASSED = ("posix.ring_made", "posix.before_header", "posix.header_written")


def test_a_writer_is_killed_where_failpoints_are(faults, monkeypatch):
    from ucm import registry

    libraries = build_plugins("failpoints", ["posix", "compress", "cache"], "-Dfailpoints=true")
    monkeypatch.setenv("UCM_PLUGINS", str(libraries[0]))
    registry.registry.cache_clear()
    args = ["--pipeline", "UCM_PLUGINS:Posix", "--kills", 0]
    scores = faults(_faults.KILLED, args=args)
    monkeypatch.undo()
    registry.registry.cache_clear()
    scores.pop("writer killed (SIGKILL) 0 times at random")
    assert "writer killed (SIGKILL) at posix.published" in scores
    for name, score in scores.items():
        if score["left_out"]:
            assert name.rpartition(" ")[2].startswith(("gc.", *NOT_PASSED)), name
            continue
        assert (score["wrong"], score["lost"], score["hangs"]) == (0, 0, 0)
        assert score["recovered"] == score["again"] > 0


def test_wrong_bytes_are_counted_and_1(faults):
    args = ["--pipeline", "Fault|Posix", "-o", "fault_rules=load:flip at=3; load:short at=9"]
    score = faults("deleted", args=args, code=1)["deleted"]
    assert score["wrong"] == 4  # in either load, of the shards that are there


def test_hangs_are_counted_and_1(faults, monkeypatch):
    monkeypatch.setattr(_faults, "WAIT_MS", 200)
    args = ["--pipeline", "Fault|Posix", "-o", "fault_rules=load:hang at=1"]
    assert faults("emptied", args=args, code=1)["emptied"]["hangs"] > 0


def test_the_table(ucm_command):
    outcome = ucm_command("bench", "faults", "--only", "deleted")
    assert outcome.code == 0, outcome
    assert "fault" in outcome.out
    row = next(line for line in outcome.out.splitlines() if "deleted" in line)
    assert row.split() == ["deleted", "8", "4", "0", "0", "4", "8", "of", "8", "0"]
    assert outcome.out.endswith("0 blocks with wrong bytes, 0 hangs\n")


def test_what_cannot_be_broken_is_2(ucm_command, refused):
    refused(ucm_command("bench", "faults", "--only", "flood"), 2, "'flood'", "'emptied'")
    refused(ucm_command("bench", "faults", "--pipeline", "Cache|Empty"), 2, "storage_backends")


def test_nothing_is_left_in_a_named_directory(ucm_command, tmp_path):
    assert ucm_command("bench", "faults", "--only", "emptied", "--dir", tmp_path).code == 0
    assert list(tmp_path.iterdir()) == []
