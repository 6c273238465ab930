"""The scripts in benchmarks/ run, and judge what they measured as issue and page say."""

import json
import subprocess
import sys
from pathlib import Path

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


def test_copy_cost_runs():
    command = [sys.executable, BENCHMARKS / "copy_cost.py", "--mib", "2", "--pairs", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert {row["direction"] for row in json.loads(done.stdout)} == {"dump", "load"}


def test_ds3fs_counts_runs():
    command = [sys.executable, BENCHMARKS / "ds3fs_counts.py", "--mib", "4", "--cases", "4 MiB"]
    command += ["--first", "2", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    dump, load = json.loads(done.stdout)
    assert (dump["op"], load["op"]) == ("dump", "load")
    assert dump["registrations"] == load["registrations"] == 1
    assert dump["requests"] == 2  # the header is one
    assert dump["copies"] < 0.01


def test_python_store_runs():
    command = [sys.executable, BENCHMARKS / "python_store.py", "--repeat", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert all(call["with_us"] > 0 for pair in told["results"].values() for call in pair.values())
    assert all(us > 0 for us in told["wake_us"])


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


@pytest.fixture
def cache_tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import cache_tables

    return cache_tables


def cache_peers(folder, *line):
    command = [sys.executable, BENCHMARKS / "cache_peers.py", "--quick", "--peers", "", *line]
    command += ["--folder", folder / "peers", "--data", folder / "data"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert list((folder / "data").iterdir()) == []
    assert list(Path("/dev/shm").glob("*bench-*")) == []
    return done.stdout


def test_cache_peers_moves_blocks_without_peers(tmp_path):
    line = "--json", "--only", "transfers", "--only", "single", "--only", "cold"
    result = json.loads(cache_peers(tmp_path, *line))
    assert set(result["transfers"]) == {"1 MiB", "64 x 64 KiB"}
    for figures in result["transfers"].values():
        assert set(figures["load"]) == {"4 MiB"}
        assert set(figures["dump"]) == {"4 MiB", "4 MiB, over Empty"}
        for operation in ("load", "dump"):
            for rounds in figures[operation].values():
                assert list(rounds) == ["memcpy"]
                for pair in rounds["memcpy"]:
                    assert all(pair[who][operation]["seconds"] > 0 for who in ("ours", "other"))
                    assert all(pair[who][operation]["bytes"] == 8 << 20 for who in pair)
    assert set(result["single"]) == {"1 MiB", "4 KiB"}
    assert set(result["cold"]["rounds"]) == {"memcpy", "Posix alone"}
    for pairs in result["cold"]["rounds"].values():
        assert all(pair["ours"]["load"]["read"] >= 8 << 20 for pair in pairs)


def test_cache_peers_looks_up_shares_and_paces(tmp_path):
    line = "--json", "--only", "lookup", "--only", "shared", "--only", "paced"
    result = json.loads(cache_peers(tmp_path, *line))
    assert set(result["lookup"]["seconds"]) == {
        f"ours, {call}, {ids}" for call in ("lookup", "prefix") for ids in ("array", "list")
    }
    assert result["shared"]["ours"]["processes"] == 4
    for turn in result["shared"]["ours"]["rounds"]:
        assert turn["wrong"] == 0
        assert sum(load["read"] for load in turn["loads"]) >= 8 << 20
        assert turn["memory"] > 0
    assert set(result["paced"]) == {
        f"a {who}, over {lower}" for who in ("thread", "process") for lower in ("Posix", "Empty")
    }
    for figures in result["paced"].values():
        for window in figures["windows"]:
            assert {what: len(spans) for what, spans in window["on_core"].items()} == {
                what: len(window[what]) for what in ("load", "hot", "copy")
            }
            assert min(len(window["load"]), len(window["copy"])) > 0
        assert figures["stream"]["bytes_per_second"] > 0


def test_the_tables_of_cache_have_a_place_of_their_own(tmp_path):
    page = tmp_path / "page.md"
    theirs = "<!-- measured: begin -->\nPosix\n<!-- measured: end -->\n"
    page.write_text(
        f"{theirs}<!-- measured cache: begin -->\noutdated\n<!-- measured cache: end -->\n"
    )
    shown = cache_peers(tmp_path, "--only", "lookup", "--write", page)
    text = page.read_text()
    assert text.startswith(theirs)
    assert "### Lookup in memory" in shown
    assert shown.strip() in text
    assert "outdated" not in text


def moved(seconds, size=1 << 20):
    return {"load": {"seconds": seconds, "cpu_seconds": seconds, "bytes": size}}


def passed(cache_tables, result):
    """Return the passed column of the bars by what was judged and the bar."""
    lines = cache_tables.bars(result)[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(what, bar): verdict for what, _, bar, verdict in cells}


def test_a_hot_load_is_nearly_memcpy_and_never_slower_than_others(cache_tables):
    rounds = {
        "memcpy": [{"ours": moved(1.0), "other": moved(0.91)}],
        "reference": [{"ours": moved(1.0), "other": moved(0.99)}],
        "lmcache": [{"ours": moved(1.0), "other": moved(1.01)}],
    }
    figures = {"shape": [1 << 20, 1 << 20, 1], "load": {"4 MiB": rounds}, "dump": {}}
    what = "load, 1 MiB, batches of 4 MiB"
    assert passed(cache_tables, {"transfers": {"1 MiB": figures}}) == {
        (what, "0.9 of memcpy"): "yes",
        (what, "1.0 of reference"): "**no**",
        (what, "1.0 of lmcache"): "yes",
    }


def test_a_call_costs_what_it_takes_beyond_memcpy(cache_tables):
    def judged_call(seconds):
        pairs = [{"ours": moved(seconds), "other": moved(100e-6)}]
        figures = {"shape": [1 << 20, 1 << 20, 1], "rounds": {"memcpy": pairs}}
        return passed(cache_tables, {"single": {"1 MiB": figures}})

    beyond = "one hot block of 1 MiB, us beyond its memcpy", "at most 15"
    assert judged_call(114e-6)[beyond] == "yes"
    assert judged_call(116e-6)[beyond] == "**no**"
    assert judged_call(119e-6)["one hot block of 1 MiB, time", "at most 1.2"] == "yes"
    assert judged_call(121e-6)["one hot block of 1 MiB, time", "at most 1.2"] == "**no**"


def test_processes_read_once_and_keep_one_copy(cache_tables):
    def judged_reads(read, memory):
        loads = [{"read": part, "device_bytes": part, "cpu_seconds": 1} for part in (read, 0)]
        turn = {"loads": loads, "seconds": 1, "wrong": 0, "memory": memory, "shm": 0}
        shared = {"shape": [100, 50, 10], "ours": {"processes": 2, "rounds": [turn]}}
        return passed(cache_tables, {"shared": shared})

    bars = [(f"2 processes, {what}", "1 copy") for what in ("bytes read below", "memory")]
    assert [judged_reads(1010, 2000)[bar] for bar in bars] == ["yes", "**no**"]
    assert [judged_reads(2000, 1010)[bar] for bar in bars] == ["**no**", "yes"]


def test_paced_loads_are_judged_window_by_window_by_their_slowest(cache_tables):
    def judged_windows(slowest):
        window = {"load": [1.0] * 98 + [slowest] * 2, "hot": [1.0] * 98, "copy": [1.0] * 100}
        paced = {"a thread": {"windows": [window, window]}}
        return passed(cache_tables, {"paced": paced})

    what, most = "paced loads beside dumps of a thread, ", "at most 1.5"
    assert judged_windows(1.5)[f"{what}p99", most] == "yes"
    assert judged_windows(1.6)[f"{what}p99", most] == "**no**"
    assert judged_windows(1.6)[f"{what}p99 of hits", most] == "yes"


@pytest.fixture
def codec_tables(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import codec_tables

    return codec_tables


def codec_peers(folder, *line, check=True):
    command = [sys.executable, BENCHMARKS / "codec_peers.py", "--quick", "--peers", "", *line]
    command += ["--folder", folder / "peers"]
    return subprocess.run(command, capture_output=True, text=True, check=check)


def test_codec_peers_runs_without_peers(tmp_path):
    result = json.loads(codec_peers(tmp_path, "--json").stdout)
    figures = result["files"]["smollm2_bf16_argparse_b16"]
    assert (figures["dtype"], figures["plane"]) == ("bf16", 6144)
    assert figures["bytes"] >= 1 << 20
    assert 1.4 < figures["named"] <= figures["bound"] < 1.6
    for row in figures["rows"].values():
        assert 1.4 < row["ratio"] <= figures["bound"]
        assert all(row[name][0] > 0 for name in ("compress", "decompress", "memcpy"))
    measured = {
        (row["codec"], row["kernels"], row["checksums"]) for row in figures["rows"].values()
    }
    assert ("fast", "scalar", True) in measured
    assert ("small", figures["kernels"], False) in measured
    # Kernels that do not run here are named, and not measured.
    for kernels in ("avx512", "avx2"):
        assert (("fast", kernels, True) in measured) != (kernels in result["machine"]["left_out"])


def test_codec_peers_measures_files_that_are_named_and_keeps_the_others(tmp_path):
    codec_peers(tmp_path)
    file = tmp_path / "halves.bin"
    file.write_bytes(bytes(range(256)) * 512)
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- measured codec: begin -->\noutdated\n<!-- measured codec: end -->\nafter\n"
    )
    shown = codec_peers(tmp_path, f"{file}=fp16,4096", "--write", page).stdout
    assert "### Codec, smollm2_bf16_argparse_b16" in shown
    assert "### Codec, halves\n\nfp16, planes of 4 KiB, 1 MiB (8 copies of the file)" in shown
    text = page.read_text()
    assert text.startswith("<!-- measured codec: begin -->\n\nMachine: ")
    assert text.endswith("<!-- measured codec: end -->\nafter\n")
    assert shown.strip() in text
    assert "outdated" not in text


def test_codec_peers_says_what_a_name_does_not(tmp_path):
    file = tmp_path / "numbers.bin"
    file.write_bytes(bytes(100))
    done = codec_peers(tmp_path, file, check=False)
    assert done.returncode == 2
    assert "numbers.bin': the name says too little; FILE=DTYPE,PLANE" in done.stderr
    done = codec_peers(tmp_path, f"{file}=bf16,4096", check=False)
    assert done.returncode == 1
    assert "it has not one plane of 4096 bytes" in done.stderr


def coded(ratio, compress, decompress, **facts):
    return {
        "ratio": ratio,
        "compress": [compress],
        "decompress": [decompress],
        "memcpy": [10],
        **facts,
    }


def coded_by_us(ratio=1.4, compress=4.0, decompress=6.0, codec="fast", checksums=False):
    facts = {"codec": codec, "kernels": "avx512", "checksums": checksums}
    return coded(ratio, compress, decompress, **facts)


def codec_bars(codec_tables, name="new_bf16_text_b128", bound=1.45, **rows):
    for codec in ("fast", "small"):
        rows.setdefault(codec, coded_by_us(codec=codec, checksums=True))
    facts = {"dtype": name.split("_")[1], "kernels": "avx512", "guessed": 1.4, "named": 1.4}
    result = {"files": {name: {**facts, "bound": bound, "rows": rows}}}
    lines = codec_tables.bars(result)[1].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {what: (got, verdict) for _, what, got, _, verdict in cells}


def test_a_ratio_is_judged_by_the_model_or_by_the_bound_of_the_file(codec_tables):
    def verdicts(ratio, **more):
        rows = {c: coded_by_us(ratio, codec=c, checksums=True) for c in ("fast", "small")}
        found = codec_bars(codec_tables, **more, **rows)
        return [found[what][1] for what in ("ratio, fast", "ratio, small") if what in found]

    assert verdicts(1.480, name="smollm2_bf16_text_b128") == ["yes", "**no**"]
    assert verdicts(1.450, name="smollm2_bf16_text_b16") == ["yes", "**no**"]
    assert verdicts(1.154, name="smollm2_fp16_text_b128") == ["**no**"]
    assert verdicts(1.176, name="smollm2_fp8_text_b16") == ["yes"]
    assert verdicts(1.430, bound=1.45) == ["yes", "**no**"]
    assert verdicts(1.442, bound=1.45) == ["yes", "yes"]
    assert verdicts(1.430, name="new_fp16_text_b128") == []


def test_speeds_are_judged_as_parts_of_memcpy_with_and_without_checksums(codec_tables):
    found = codec_bars(
        codec_tables,
        fast=coded_by_us(decompress=3.4, checksums=True),
        alone=coded_by_us(compress=4.0, decompress=5.9),
    )
    assert found["decompress, avx512"] == ("0.59 M", "**no**")
    assert found["compress, avx512"] == ("0.40 M", "yes")
    assert found["decompress, with checksums"] == ("0.34 M", "**no**")
    assert "decompress, avx2" not in found


def test_noise_passes_and_hardly_grows(codec_tables):
    noise = {"compress": 0.79, "decompress": 0.9, "compress, with checksums": 0.8}
    noise |= {"frame_bytes": 2064, "shards": 16}
    figures = {"noise": noise, "bytes": 1024}
    found = {what: (got, ok) for what, got, _, ok in codec_tables.noise_bars(figures)}
    assert found == {
        "compress, noise": ("0.79 M", False),
        "decompress, noise": ("0.90 M", True),
        "compress, with checksums, noise": ("0.80 M", True),
        "bytes that noise grows by, a shard": ("65", True),
    }


def test_a_peer_is_matched_by_one_of_ours_that_is_nowhere_behind(codec_tables):
    what = "peers that one of ours matches in all three"

    def verdict(*facts):
        peer = coded(*facts, coder="peer", piece=4096)
        return codec_bars(codec_tables, peer=peer)[what]

    assert verdict(1.4, 4.0, 6.0) == ("all 1", "yes")
    assert verdict(1.4, 4.1, 1.0) == ("all but peer (ratio 1.400)", "**no**")
    assert verdict(1.401, 1.0, 1.0) == ("all but peer (ratio 1.401)", "**no**")
    assert verdict(1.03, 9.0, 9.0) == ("all 0", "yes")  # as good as not coded at all


def test_where_peers_are_ahead_is_said_in_words(codec_tables):
    ours = {c: coded_by_us(codec=c, checksums=True) for c in ("fast", "small")}
    ours["small"] |= {"ratio": 1.45, "compress": [2.0], "decompress": [3.0]}
    peers = {
        "behind": coded(1.45, 1.9, 2.9, coder="behind", piece=4096),
        "shorter": coded(1.5, 1.0, 1.5, coder="shorter", piece=4096),
        # The table shows pieces of 4 KiB; those of 256 KiB are behind in ratio only.
        "shown": coded(1.42, 1.0, 1.0, coder="faster", piece=4096),
        "faster": coded(1.3, 8.0, 9.0, coder="faster", piece=262144),
        "raw": coded(1.01, 9.0, 9.0, coder="raw", piece=4096),
    }

    def said(**files):
        facts = {"kernels": "avx512"}
        files = {name: {**facts, "rows": {**ours, **rows}} for name, rows in files.items()}
        return codec_tables.frontier({"files": files})

    head, *lines = said(one={"behind": peers["behind"]}, two=peers)
    assert "good in ratio, coding and decoding: of `one`. Beside ours" in head
    assert lines == [
        "- `two`: shorter, 4 KiB, stores 6.7 % less than `fast`, codes at 0.25 and decodes at 0.25"
        " of its speed; stores 3.3 % less than `small`, codes at 0.50 and decodes at 0.50 of its"
        " speed.",
        "- `two`: faster, 256 KiB, stores 7.7 % more than `fast`, codes at 2.00 and decodes at 1.50"
        " of its speed; stores 11.5 % more than `small`, codes at 4.00 and decodes at 3.00 of its"
        " speed.",
        "",
    ]
    assert "decoding: of no file. Beside ours" in said(two=peers)[0]
    assert said(one={"behind": peers["behind"]})[0].endswith("decoding: of `one`.\n")
    assert said(alone={}) == []
    what, rows = "peers that one of ours matches in all three", {"small": ours["small"]}
    found = codec_bars(codec_tables, **{**peers, **rows})[what]
    assert found == ("all but shorter (ratio 1.500), faster (ratio 1.300)", "**no**")


def test_blocks_are_cut_into_shorter_ones_in_the_order_of_tokens(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import codec_peers
    import numpy

    # Two blocks of 3 planes of 4 tokens of 2 bytes: block, plane, token.
    raw = numpy.array([b * 100 + p * 10 + t for b in (0, 1) for p in (0, 1, 2) for t in range(4)])
    raw = numpy.repeat(raw.astype(numpy.uint8), 2)
    cut = codec_peers.cut_blocks(numpy.append(raw, raw[:9]), 3, 8, 4)
    tokens = [
        (b, p, t) for b in (0, 1) for half in (0, 2) for p in range(3) for t in (half, half + 1)
    ]
    assert cut[::2].tolist() == [b * 100 + p * 10 + t for b, p, t in tokens]


def test_codec_peers_cuts_blocks_of_16_tokens_of_models_that_have_none(tmp_path):
    halves = bytes(range(256)) * (36 * 65536 // 256)
    for name in ("gemma3_bf16_text_b128", "smollm2_bf16_text_b16"):
        (tmp_path / f"{name}.bin").write_bytes(halves)
    files = json.loads(codec_peers(tmp_path, "--data", tmp_path, "--json").stdout)["files"]
    planes = {name: figures["plane"] for name, figures in files.items()}
    assert planes == {
        "gemma3_bf16_text_b128": 65536,
        "gemma3_bf16_text_b16": 8192,
        "smollm2_bf16_text_b16": 6144,
    }


def test_a_peer_is_shown_with_the_pieces_that_are_better_for_it(codec_tables):
    def shown(large_ratio, large_speed):
        rows = {
            "small": coded(1.40, 1.0, 1.0, coder="peer", piece=4096),
            "large": coded(large_ratio, 1.0, large_speed, coder="peer", piece=262144),
        }
        return codec_tables.peers({"rows": rows})["peer"]["piece"]

    assert shown(1.45, 0.5) == 262144
    assert shown(1.401, 2.0) == 262144
    assert shown(1.401, 0.5) == 4096
    assert shown(1.35, 2.0) == 4096


def test_synthetic_traces_are_traces(tmp_path):
    command = [sys.executable, BENCHMARKS / "replay_traces.py", tmp_path]
    subprocess.run(command, check=True)
    for name in ("agents", "chats", "documents", "loops", "scans", "shifts", "zipf"):
        trace = replay.read(str(tmp_path / f"{name}.jsonl"))
        assert trace.chained
        assert len(trace.requests) >= 3000
