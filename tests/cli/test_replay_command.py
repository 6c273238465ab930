import json
import sys

import pytest
from support import ROOT

from ucm import replay

TRACE = ROOT / "tests/data/trace-200.jsonl"

LARGEST = """
class Largest:
    def __init__(self, capacity):
        self.capacity, self.kept = capacity, set()
    def hit(self, block):
        pass
    def insert(self, block, depth):
        self.kept.add(block)
        if len(self.kept) > self.capacity:
            self.kept.remove(gone := max(self.kept))
            return gone
"""


@pytest.fixture
def policy(tmp_path):
    """Write a class Mine with this body of insert(); return how to name it."""

    def write(insert, before=""):
        path = tmp_path / "mine.py"
        path.write_text(
            f"{before}\nclass Mine:\n def __init__(self, capacity): self.kept = []\n"
            f" def hit(self, block): pass\n def insert(self, block, depth):\n  {insert}\n"
        )
        return f"{path}:Mine"

    return write


def test_every_policy_at_every_capacity(ucm_command):
    outcome = ucm_command("replay", TRACE, "--json")
    assert outcome.code == 0
    found = outcome.json
    assert (found["requests"], found["blocks"], found["distinct_blocks"]) == (200, 3601, 1689)
    assert found["ids_cover_prefixes"] is True
    names = [*replay.NAMED, "optimum"]
    limits = [16, 33, 84, 168, 337, 844]
    places = [(one["policy"], one["capacity_blocks"]) for one in found["results"]]
    assert places == [(name, limit) for name in names for limit in limits]
    for one in found["results"]:
        assert one["hit_ratio"] == one["hits"] / 3601
        assert one["prefix_hit_ratio"] == one["prefix_hits"] / 3601
        assert one["prefix_hits"] <= one["hits"]


def test_the_table(ucm_command):
    outcome = ucm_command("replay", TRACE, "--policy", "lru", "--capacity", 400)
    assert outcome.code == 0
    assert "200 requests, 3,601 blocks, 1,689 distinct; at most 53.10% can hit" in outcome.out
    assert "33.85 / 33.85" in outcome.out
    assert "23.7%" in outcome.out


def test_capacities_as_blocks_parts_and_bytes(ucm_command):
    line = ["--policy", "fifo", "--capacity", "10%", "--capacity", "7", "--capacity", "168"]
    line += ["--capacity-gb", "0.25", "--block-bytes", "4MiB"]
    outcome = ucm_command("replay", TRACE, *line, "--json")
    assert [one["capacity_blocks"] for one in outcome.json["results"]] == [7, 64, 168]
    assert outcome.json["block_bytes"] == 4 << 20
    assert "28.0 MiB" in ucm_command("replay", TRACE, *line).out


def test_a_trace_whose_ids_cover_no_prefixes_is_said_to_be_one(ucm_command, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text('{"hash_ids": [1, 2]}\n{"hash_ids": [2, 1]}\n')
    outcome = ucm_command("replay", path, "--capacity", 2)
    assert outcome.code == 0
    assert "some blocks follow different ones" in outcome.out


def test_a_policy_in_a_file(ucm_command, tmp_path):
    path = tmp_path / "largest.py"
    path.write_text(LARGEST)
    outcome = ucm_command("replay", TRACE, "--policy", f"{path}:Largest", "--json")
    assert outcome.code == 0
    assert {one["policy"] for one in outcome.json["results"]} == {f"{path}:Largest"}
    assert outcome.json["results"][0]["hits"] > 0


def test_a_policy_in_a_module(ucm_command, tmp_path, monkeypatch):
    (tmp_path / "largest_module.py").write_text(LARGEST)
    monkeypatch.syspath_prepend(tmp_path)
    outcome = ucm_command("replay", TRACE, "--policy", "largest_module:Largest", "--capacity", 9)
    assert outcome.code == 0
    assert "largest_module:Largest" in outcome.out
    sys.modules.pop("largest_module")


@pytest.mark.parametrize(
    ("insert", "said"),
    [
        ("return None", "evicts nothing, and the cache holds 6 blocks"),
        ("return -1", "insert(0) evicts -1, which is not in the cache"),
        ("return [1]", "TypeError"),
        ("raise ValueError('oh')", "ValueError: oh"),
        ("raise SystemExit(7)", "SystemExit: 7"),
    ],
)
def test_a_policy_that_does_what_no_cache_can(ucm_command, refused, policy, insert, said):
    outcome = ucm_command("replay", TRACE, "--policy", policy(insert), "--capacity", 5)
    refused(outcome, 1, "mine.py:Mine, capacity 5, request", said)


def test_a_policy_need_not_keep_what_it_is_given(ucm_command, policy):
    outcome = ucm_command("replay", TRACE, "--policy", policy("return block"), "--json")
    assert {one["hits"] for one in outcome.json["results"]} == {0}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lrru", "did you mean lru?"),
        ("optimun", "did you mean optimum?"),
        ("??", "there are fifo, lru, s3fifo, arc, cache, optimum"),
        ("nowhere.py:Mine", "there is no file nowhere.py"),
        ("nowhere_at_all:Mine", "module nowhere_at_all cannot be imported"),
        ("json:JSONDecoder", "JSONDecoder has no hit()"),
        ("json:Nobody", "there is no class Nobody in json"),
        ("json:", "a class of yours is path/to/file.py:ClassName"),
    ],
)
def test_a_policy_that_is_not_there(ucm_command, refused, name, said):
    refused(ucm_command("replay", TRACE, "--policy", name), 2, f"--policy {name}: ", said)


def test_a_file_that_is_no_policy(ucm_command, refused, policy):
    name = policy("pass", before="import nothing_of_this_name")
    refused(ucm_command("replay", TRACE, "--policy", name), 2, "fails: ModuleNotFoundError")
    name = policy("pass", before="raise SystemExit(3)")
    refused(ucm_command("replay", TRACE, "--policy", name), 2, "fails: SystemExit: 3")


def test_a_file_may_import_what_lies_beside_it(ucm_command, policy, tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "beside_it", raising=False)
    (tmp_path / "beside_it.py").write_text("def gone(block): return block\n")
    name = policy("return gone(block)", before="from beside_it import gone")
    before = list(sys.path)
    assert ucm_command("replay", TRACE, "--policy", name, "--capacity", 5).code == 0
    assert sys.path == before


def test_what_a_policy_prints_is_no_part_of_the_answer(ucm_command, policy):
    name = policy("print('in'); return block", before="print('at the top')")
    outcome = ucm_command("replay", TRACE, "--policy", name, "--capacity", 5, "--json")
    assert outcome.json["results"][0]["policy"] == name
    assert outcome.err.startswith("at the top\nin\n")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["--capacity", "0"], "--capacity 0: write 1 block or more"),
        (["--capacity", "-5"], "--capacity -5: write 1 block or more"),
        (["--capacity", "many"], "--capacity many: write 1 block or more"),
        (["--capacity", "0%"], "or a part of all such as 5%"),
        (["--capacity", "nan%"], "or a part of all such as 5%"),
        (["--capacity", "1e308%"], "or a part of all such as 5%"),
        (["--capacity", "1" * 400], "--capacity 1111"),
        (["--capacity-gb", "1e308", "--block-bytes", "1"], "--capacity-gb 1e+308: write a number"),
        (["--capacity-gb", "1"], "--capacity-gb needs --block-bytes"),
        (["--capacity-gb", "0", "--block-bytes", "1"], "--capacity-gb 0: write a number greater"),
        (["--capacity-gb", "-1", "--block-bytes", "1"], "--capacity-gb -1: write a number greater"),
        (["--capacity-gb", "1", "--block-bytes", "2GiB"], "no block of 2147483648 B fits"),
        (["--capacity-gb", "1", "--block-bytes", "0"], "--block-bytes 0: a block takes 1 byte"),
        (["--capacity-gb", "1", "--block-bytes", "big"], "'big' is not a number of bytes"),
    ],
)
def test_capacities_that_are_none(ucm_command, refused, line, said):
    refused(ucm_command("replay", TRACE, *line), 2, said)


def test_a_trace_that_is_not_there(ucm_command, refused, tmp_path):
    refused(ucm_command("replay", tmp_path / "none"), 2, "none", "does not exist")


def test_a_broken_trace_is_named_with_its_line(ucm_command, refused, tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({"hash_ids": [1]}) + '\n{"hash_ids": "all"}\n')
    refused(ucm_command("replay", path), 1, f"{path}:2: ", 'hash_ids: "all" is no list')
