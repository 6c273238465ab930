"""What ``enable_record_traces`` writes, and that ``ucm replay`` takes it as it is."""

import json
import os
import types

import pytest

import ucm.cli
from ucm import replay
from ucm.integration.vllm.traces import Recorder

SIZE = 4  # tokens of a block


def request(tokens, arrival=1000.5):
    return types.SimpleNamespace(num_prompt_tokens=tokens, arrival_time=arrival)


def hashes(name, count):
    return [f"{name}{i}".encode().ljust(32, b".") for i in range(count)]


@pytest.fixture
def recorder(tmp_path):
    recorder = Recorder(SIZE, str(tmp_path / "log"))
    yield recorder
    recorder.close()


def files(tmp_path):
    return sorted((tmp_path / "log").iterdir())


def lines(tmp_path):
    return [json.loads(line) for file in files(tmp_path) for line in file.read_text().splitlines()]


def test_a_line_tells_a_request(recorder, tmp_path):
    recorder.finished(request(10), hashes("a", 2), 7)
    (line,) = lines(tmp_path)
    assert line == {
        "timestamp": 1000500,
        "input_length": 10,
        "output_length": 7,
        "hash_ids": [one.hex() for one in hashes("a", 2)],
    }


def test_blocks_that_generation_filled_are_not_of_the_prompt(recorder, tmp_path):
    recorder.finished(request(10), hashes("a", 5), 12)
    assert lines(tmp_path)[0]["hash_ids"] == [one.hex() for one in hashes("a", 2)]


def test_replay_reads_what_several_engines_wrote(capsys, run_python, recorder, tmp_path):
    folder = tmp_path / "log"
    recorder.finished(request(12, arrival=3.0), hashes("a", 3), 1)
    recorder.finished(request(8, arrival=1.0), hashes("a", 2), 1)
    run_python(
        """
import sys, types
from ucm.integration.vllm.traces import Recorder
other = types.SimpleNamespace(num_prompt_tokens=4, arrival_time=2.0)
Recorder(4).finished(other, [b"a0".ljust(32, b".")], 1)
""",
        UCM_LOG_PATH=str(folder),
    )
    assert len(files(tmp_path)) == 2
    assert [len(r) for r in replay.read(*map(str, files(tmp_path))).requests] == [2, 1, 3]
    line = ["replay", *map(str, files(tmp_path)), "--policy", "lru", "--capacity", "9", "--json"]
    assert ucm.cli.main(line) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["requests"], told["distinct_blocks"]) == (3, 3)
    assert told["results"][0]["hits"] == 3
    assert told["ids_cover_prefixes"] is True


@pytest.mark.parametrize("most", [1, 3])
def test_files_are_bounded_in_size_and_number(tmp_path, monkeypatch, most):
    monkeypatch.setenv("UCM_LOG_MAX_FILES", str(most))
    monkeypatch.setenv("UCM_LOG_MAX_SIZE", "0.01")
    recorder = Recorder(SIZE, str(tmp_path / "log"))
    for number in range(200):
        recorder.finished(request(40), hashes(number, 10), 1)
    recorder.close()
    assert len(files(tmp_path)) == most
    assert all(file.stat().st_size <= 0.01 * 2**20 for file in files(tmp_path))
    assert hashes(199, 10)[0].hex() in files(tmp_path)[0].read_text()
    assert replay.read(*map(str, files(tmp_path))).distinct == 10 * len(lines(tmp_path))


def test_without_a_folder_named_it_is_log_here(tmp_path, run_python):
    code = """
import types
from ucm.integration.vllm.traces import Recorder
Recorder(4).finished(types.SimpleNamespace(num_prompt_tokens=4), [bytes(32)], 1)
"""
    run_python(code, UCM_LOG_PATH="")
    assert len(lines(tmp_path)) == 1


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path, caplog):
    (tmp_path / "taken").write_text("")
    recorder = Recorder(SIZE, str(tmp_path / "taken" / "log"))
    for _ in range(3):
        recorder.finished(request(4), hashes("a", 1), 1)
    (said,) = caplog.messages
    assert said.startswith("enable_record_traces: ")
    assert "name another folder with UCM_LOG_PATH" in said


def test_a_full_disk_leaves_whole_lines_and_later_ones_come_again(
    recorder, tmp_path, caplog, monkeypatch
):
    recorder.finished(request(4), hashes("a", 1), 1)
    with monkeypatch.context() as full:
        write = os.write
        full.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        recorder.finished(request(4), hashes("b", 1), 1)
        recorder.finished(request(4), hashes("c", 1), 1)
    recorder.finished(request(4), hashes("d", 1), 1)
    told = [line["hash_ids"][0] for line in lines(tmp_path)]
    assert told == [hashes(name, 1)[0].hex() for name in "ad"]
    assert len(caplog.messages) == 1
    assert "No space left" in caplog.messages[0]


def test_files_of_processes_that_ended_are_swept_and_logs_are_not(tmp_path, monkeypatch):
    monkeypatch.setenv("UCM_LOG_MAX_FILES", "2")
    folder = tmp_path / "log"
    folder.mkdir()
    for pid in range(4):
        (folder / f"ucm-trace-gone-{pid}.jsonl").write_text("{}")
        (folder / f"ucm-gone-{pid}.log").write_text("")
    recorder = Recorder(SIZE, str(folder))
    recorder.finished(request(4), hashes("a", 1), 1)
    recorder.close()
    assert len(list(folder.glob("ucm-trace-gone-*"))) == 2
    assert len(list(folder.glob("*.log"))) == 4
