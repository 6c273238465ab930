"""Who holds which part of a block, and what it is called."""

import numpy as np
import pytest
from kv_tensors import BLOCKS, DIM, HEADS, TOKENS, Tensor

import ucm
from ucm.integration.vllm.division import Workers, divide, lay_out

LAYERS = [f"model.layers.{i}.self_attn.attn" for i in range(4)]


def worker(rank, size, all_heads=4, replicated=False, stages=1):
    return Workers(rank, size, max(1, all_heads // size), all_heads, replicated, stages)


def parts(size, groups=None, **more):
    return [divide(worker(rank, size, **more), LAYERS, groups).parts for rank in range(size)]


def test_by_rank_every_rank_holds_a_part_of_its_own():
    assert parts(1) == [("tp0",)]
    assert parts(2) == [("tp0",), ("tp1",)]


def test_engines_of_other_tensor_parallelism_share_groups_of_heads():
    assert parts(1, 4) == [("heads0of4", "heads1of4", "heads2of4", "heads3of4")]
    assert parts(2, 4) == [("heads0of4", "heads1of4"), ("heads2of4", "heads3of4")]
    assert parts(4, 4) == [(f"heads{i}of4",) for i in range(4)]
    identities = {repr(divide(worker(0, size), LAYERS, 4).identity) for size in (1, 2, 4)}
    assert len(identities) == 1


def test_engines_of_other_tensor_parallelism_share_nothing_by_rank():
    identities = {repr(divide(worker(0, size), LAYERS, None).identity) for size in (1, 2, 4)}
    assert len(identities) == 3


def test_heads_that_several_ranks_hold_are_saved_by_the_first():
    divided = [divide(worker(rank, 4, all_heads=2), LAYERS, 2) for rank in range(4)]
    assert [d.parts for d in divided] == [("heads0of2",)] * 2 + [("heads1of2",)] * 2
    assert [d.keeps for d in divided] == [True, False, True, False]


@pytest.mark.parametrize("groups", [None, 4])
def test_what_all_ranks_hold_is_stored_once(groups):
    divided = [divide(worker(rank, 2, replicated=True), LAYERS, groups) for rank in range(2)]
    assert [d.parts for d in divided] == [("all",), ("all",)]
    assert [d.keeps for d in divided] == [True, False]


@pytest.mark.parametrize("more", [{}, {"replicated": True}, {"all_heads": 2, "groups": 2}])
def test_every_worker_has_a_name_of_its_own_whatever_it_holds(more):
    groups = {"groups": None, **more}.pop("groups")
    more = {key: value for key, value in more.items() if key != "groups"}
    divided = [divide(worker(rank, 4, **more), LAYERS, groups) for rank in range(4)]
    assert [d.worker for d in divided] == ["tp0", "tp1", "tp2", "tp3"]


def test_stages_of_a_pipeline_are_told_by_their_layers():
    first, second = (divide(worker(0, 1, stages=2), LAYERS[a:b], None) for a, b in ((0, 2), (2, 4)))
    assert (first.parts, second.parts) == (("tp0-layers0-1",), ("tp0-layers2-3",))
    assert first.identity == second.identity != divide(worker(0, 1), LAYERS, None).identity


@pytest.mark.parametrize(
    ("groups", "size", "message"),
    [
        (3, 1, "3 does not divide the model's 4 KV heads"),
        (2, 4, "1 of 4 KV heads, no whole groups"),
    ],
)
def test_groups_that_cannot_be_are_refused_by_name(groups, size, message):
    with pytest.raises(ucm.ConfigError, match=f"kv_head_groups: .*{message}"):
        divide(worker(0, size), LAYERS, groups)


def test_engines_of_other_tensor_parallelism_miss_and_say_why_where_heads_do_not_lie_apart(caplog):
    found = []
    for size in (1, 2):
        held = HEADS // size
        cache = Tensor(np.zeros((BLOCKS, TOKENS, held, DIM), np.float16))
        workers = Workers(0, size, held, HEADS, replicated=False)
        found.append(lay_out({"layer.0": cache}, BLOCKS, workers, HEADS)[1])
        if size == 1:
            said = caplog.text
    one, two = found
    assert one.parts == ("tp0",)
    assert one.identity != two.identity
    assert "kv_head_groups: no effect" in said
    assert "2 KV heads do not lie one behind the other" in said


def test_heads_that_lie_apart_are_shared_and_nothing_is_said(kv, caplog):
    cache = {"layer.0": Tensor(kv[0])}
    _, division = lay_out(cache, BLOCKS, Workers(0, 1, HEADS, HEADS, replicated=False), HEADS)
    assert division.parts == ("heads0of2", "heads1of2")
    assert not caplog.text
