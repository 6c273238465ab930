"""The scripts in benchmarks/ run, and judge what they measured as issue and page say."""

import json
import subprocess
import sys

import pytest
from support import ROOT

from ucm import replay

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peer_tables

    return peer_tables


def transfers(name, ours_s, other_s, ours_cpu=1.0, other_cpu=1.0, pairs=3):
    """Figures of one case in which every pair was alike."""
    ours = {"seconds": ours_s, "cpu_seconds": ours_cpu}
    other = {"seconds": other_s, "cpu_seconds": other_cpu}
    pair = {
        "ours": dict.fromkeys(("dump", "load"), ours),
        "other": dict.fromkeys(("dump", "load"), other),
    }
    facts = {"ours": {"dump": {"threads": 9, "kernel_threads": 1}, "load": {"threads": 7}}}
    return {"shape": [1 << 20, 1 << 20, 256], "rounds": {name: [pair] * pairs}, "facts": facts}


def judged(tables, case, figures, engine="psync"):
    """Return the passed column by what was judged."""
    lines = tables.bars({"transfers": {case: figures}}, engine)[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(what, bar): passed for what, _, bar, passed in cells}


def test_posix_peers_runs_without_peers(tmp_path):
    command = [sys.executable, BENCHMARKS / "posix_peers.py", "--quick", "--peers", "", "--json"]
    command += ["--folder", tmp_path / "peers", "--data", tmp_path / "data"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)["psync"]
    assert set(result["transfers"]) == {"1 MiB", "4 MiB", "64 x 64 KiB", "64 KiB"}
    for figures in result["transfers"].values():
        (pairs,) = figures["rounds"].values()
        assert all(pair["ours"][name]["seconds"] > 0 for pair in pairs for name in ("dump", "load"))
        assert figures["facts"]["ours"]["dump"]["threads"] > 0
    assert set(result["lookup"]) == {"100"}
    assert list(result["open"]) == ["ours"]
    assert list((tmp_path / "data").iterdir()) == []


def test_a_part_is_measured_again_and_the_others_stay(tmp_path):
    def run(*line):
        command = [sys.executable, BENCHMARKS / "posix_peers.py", "--quick", "--peers", "", *line]
        command += ["--folder", tmp_path, "--data", tmp_path / "data"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    run("--only", "open")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured: begin -->\noutdated\n<!-- measured: end -->\nafter\n")
    shown = run("--only", "transfers", "--case", "4 MiB", "--write", page)
    assert "### Opening an empty directory" in shown
    assert "### Blocks of 4 MiB" in shown
    text = page.read_text()
    assert text.startswith("before\n<!-- measured: begin -->\n")
    assert text.endswith("<!-- measured: end -->\nafter\n")
    assert shown.strip() in text
    assert "outdated" not in text


def test_large_blocks_pass_with_either_of_fio_and_vllm(tables):
    bar = ("dump, 1 MiB", "0.9 of fio or 1.2 of vllm")
    assert judged(tables, "1 MiB", transfers("fio", 1.0, 0.91))[bar] == "yes"
    assert judged(tables, "1 MiB", transfers("fio", 1.0, 0.89))[bar] == "**no**"
    assert judged(tables, "1 MiB", transfers("vllm", 1.0, 1.19))[bar] == "**no**"
    both = transfers("fio", 1.0, 0.5)
    both["rounds"]["vllm"] = transfers("vllm", 1.0, 1.21)["rounds"]["vllm"]
    assert judged(tables, "1 MiB", both)[bar] == "yes"


def test_small_shards_have_to_be_some_times_as_fast_as_the_better_engine_of_the_reference(tables):
    figures = transfers("reference psync", 1.0, 2.5)
    figures["rounds"]["reference aio"] = transfers("reference aio", 1.0, 4.0)["rounds"][
        "reference aio"
    ]
    passed = judged(tables, "64 KiB", figures)
    assert passed["dump, 64 KiB", "3.0 of the reference"] == "**no**"
    assert passed["load, 64 KiB", "2.0 of the reference"] == "yes"


def test_cpu_time_is_half_of_the_reference_s(tables):
    bar = ("load, 4 MiB, CPU", "at most 0.5")
    at = transfers("reference aio", 1.0, 1.0, 0.5, 1.0)
    over = transfers("reference aio", 1.0, 1.0, 0.51, 1.0)
    assert judged(tables, "4 MiB", at)[bar] == "yes"
    assert judged(tables, "4 MiB", over)[bar] == "**no**"


def test_the_threads_of_io_uring_are_bounded(tables, monkeypatch):
    monkeypatch.setattr(tables.os, "cpu_count", lambda: 2)
    passed = judged(tables, "1 MiB", transfers("fio", 1.0, 1.0), "io_uring")
    assert passed["dump, 1 MiB, threads", "at most 8"] == "**no**"
    assert passed["load, 1 MiB, threads", "at most 8"] == "yes"


def test_synthetic_traces_are_traces(tmp_path):
    command = [sys.executable, BENCHMARKS / "replay_traces.py", tmp_path]
    subprocess.run(command, check=True)
    for name in ("agents", "chats", "documents", "loops", "scans", "shifts", "zipf"):
        trace = replay.read(str(tmp_path / f"{name}.jsonl"))
        assert trace.chained
        assert len(trace.requests) >= 3000
