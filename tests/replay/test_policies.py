"""What policies keep, against naive ones and every possible choice."""

import functools
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import ROOT

from ucm import replay
from ucm.replay.policies import Cache, Ghosts, S3Fifo

TRACE = ROOT / "tests/data/trace-200.jsonl"
CAPACITIES = st.integers(1, 6)
REQUESTS = st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=40)


def chained(paths):
    """Number blocks by all that comes before them, as ids do."""
    numbers = {}
    return [
        [numbers.setdefault(tuple(path[: i + 1]), len(numbers)) for i in range(len(path))]
        for path in paths
    ]


CHAINED = st.lists(st.lists(st.integers(0, 2), max_size=4), max_size=30).map(chained)


def score(requests, name, capacity):
    return replay.replay(requests, replay.find(name), capacity)


@given(REQUESTS, CAPACITIES)
@pytest.mark.parametrize("name", replay.NAMED)
def test_no_policy_keeps_too_much_or_beats_the_optimum(name, requests, capacity):
    found = score(requests, name, capacity)  # raises if it holds more
    blocks = [block for request in requests for block in request]
    most, _ = replay.optimum(requests, capacity)
    assert found.blocks == len(blocks)
    assert 0 <= found.prefix_hits <= found.hits <= most <= len(blocks) - len(set(blocks))


@given(REQUESTS)
@pytest.mark.parametrize("name", replay.NAMED)
def test_a_cache_for_all_blocks_misses_each_once(name, requests):
    blocks = [block for request in requests for block in request]
    assert score(requests, name, 10).hits == len(blocks) - len(set(blocks))


@given(REQUESTS, CAPACITIES)
@pytest.mark.parametrize(("name", "moves"), [("lru", True), ("fifo", False)])
def test_lru_and_fifo_are_lists(name, moves, requests, capacity):
    kept, hits = [], 0
    for block in itertools.chain(*requests):
        if block in kept:
            hits += 1
            if moves:
                kept.append(kept.pop(kept.index(block)))
            continue
        kept = [*kept, block][-capacity:]
    assert score(requests, name, capacity).hits == hits


def most_hits(requests, capacity, prefixes):
    """Try every set that a cache could keep after every block."""
    at = [(block, i == 0) for request in requests for i, block in enumerate(request)]

    @functools.cache
    def best(position, present, leading):
        if position == len(at):
            return 0
        block, first = at[position]
        leading = leading or first
        if block in present:
            counts = leading or not prefixes
            return counts + best(position + 1, present, leading)
        leading = False
        kept = [present]
        if len(present) < capacity:
            kept.append(present | {block})
        else:
            kept += [present - {gone} | {block} for gone in present]
        return max(best(position + 1, one, leading) for one in kept)

    return best(0, frozenset(), False)


@settings(max_examples=200)
@given(st.lists(st.lists(st.integers(0, 4), max_size=4), max_size=5), st.integers(1, 3))
def test_no_choice_finds_more_than_the_optimum(requests, capacity):
    assert replay.optimum(requests, capacity)[0] == most_hits(requests, capacity, False)


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 1), max_size=3), max_size=6).map(chained), st.integers(1, 4)
)
def test_no_choice_finds_more_in_prefixes_where_ids_cover_them(requests, capacity):
    found, in_prefixes = replay.optimum(requests, capacity)
    assert found == in_prefixes == most_hits(requests, capacity, True)


@given(CHAINED, CAPACITIES)
def test_the_optimum_keeps_whole_prefixes(requests, capacity):
    found, in_prefixes = replay.optimum(requests, capacity)
    assert found == in_prefixes


def test_without_such_ids_the_optimum_is_none_for_prefixes():
    requests = [[0], [1, 2], [3, 1], [4, 1], [0]]
    assert replay.optimum(requests, 1) == (2, 0)
    assert most_hits(requests, 1, True) == 1


WORKING_SET = [[0, 1, 2, 3]] * 10
SCAN = [list(range(100 * i, 100 * i + 50)) for i in range(1, 5)]


@pytest.mark.parametrize("name", ["s3fifo", "arc", "cache"])
def test_a_scan_leaves_what_is_used(name):
    found = score([*WORKING_SET, *SCAN, [0, 1, 2, 3]], name, 20)
    assert found.hits == 40
    assert score([*WORKING_SET, *SCAN, [0, 1, 2, 3]], "lru", 20).hits == 36


def test_s3fifo_keeps_what_was_used_twice_in_small():
    policy = S3Fifo(10)  # small is 1
    for block in range(10):
        assert policy.insert(block, 0) is None
    for block in (0, 0, 1):
        policy.hit(block)
    assert policy.insert(10, 0) == 1  # used once; 0 went to main
    assert list(policy.main) == [0]
    assert policy.insert(1, 0) == 2  # known
    assert list(policy.main) == [0, 1]


def test_cache_lengthens_small_for_what_comes_back_and_shortens_it_for_main():
    policy = Cache(100)
    before = policy.target
    for block in range(101):
        gone = policy.insert(block, 0)
    assert gone == 0
    policy.insert(0, 0)
    assert policy.target == before + 2
    assert list(policy.main) == [0]
    policy.main_ghosts.add(500)
    policy.insert(500, 0)
    assert policy.target == before - 2
    assert list(policy.main) == [0, 500]


def test_cache_takes_what_comes_back_late_to_main_alone():
    policy = Cache(8)  # near is 2, known 16
    before = policy.target
    for block in range(20):
        policy.insert(block, 0)
    policy.insert(0, 0)
    assert (policy.target, list(policy.main)) == (before, [0])


def test_the_target_of_cache_stays_between_its_limits():
    policy = Cache(100)
    for block in range(1000, 1200):
        policy.main_ghosts.add(block)
        policy.insert(block, 0)
    assert policy.target == policy.least == 2
    for block in range(2000, 2200):
        policy.small_ghosts.add(block)
        policy.insert(block, 0)
    assert policy.target == policy.most == 60


@given(st.lists(st.integers(0, 5)), st.integers(1, 4))
def test_ghosts_are_known_for_as_many_as_the_limit_says(blocks, limit):
    ghosts, left = Ghosts(limit), []
    for block in blocks:
        known = block in left[-limit:]
        age = ghosts.take(block)
        assert (age is not None) == known
        if known:
            assert age == left[::-1].index(block)
            left = [one if one != block else None for one in left]
        ghosts.add(block)
        left.append(block)


def test_cache_is_still_the_policy_of_the_layer():
    # As plugins/cache/table.cpp does it: change both.
    trace = replay.read(str(TRACE))
    found = [score(trace.requests, "cache", capacity) for capacity in (50, 200, 400)]
    assert [(one.hits, one.prefix_hits) for one in found] == [(278, 270), (726, 686), (1273, 1144)]
