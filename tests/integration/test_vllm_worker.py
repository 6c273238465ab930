"""Blocks on their way between KV cache and store, and what a failure costs."""

import time
import types

import numpy as np
import pytest
from kv_tensors import BLOCKS

import ucm
from ucm.hashing import Namers
from ucm.integration.vllm import worker as worker_module
from ucm.integration.vllm.collector import Collector
from ucm.integration.vllm.metadata import Load, Plan, Save
from ucm.integration.vllm.worker import Moving, WorkerSide

NAMER = Namers("space", ["tp0"])
HASHES = [f"block {i}".encode() for i in range(BLOCKS)]


def alone(failed):
    return failed


@pytest.fixture(params=[Moving(a, b) for a in (False, True) for b in (False, True)], ids=str)
def moving(request):
    """Every way in which blocks move: all promises hold in each."""
    return request.param


@pytest.fixture
def worker(layout, tmp_path, moving):
    side = make(layout, tmp_path, moving=moving)
    yield side
    side.detach().close()


PLAIN = Moving()


def make(layout, folder, agree=alone, moving=PLAIN, metrics=None):
    store = ucm.open_pipeline(
        "Posix",
        storage_backends=str(folder),
        block_size=layout.block_size,
        shard_size=layout.shard_size,
        tensor_size=layout.segment_size,
        dtype="fp16",
    )
    return WorkerSide(store, layout, NAMER, agree, moving, metrics)


def step(worker, plan):
    """Run one step of an engine, with a forward over all layers."""
    worker.begin(plan)
    worker.load(plan)
    for name in worker._layout.names:
        worker.wait_layer(name)
        save_layer(worker, name, plan)
    worker.save(plan)
    return worker.finished(plan.leaving)


def save_layer(worker, name, plan):
    """Come by a layer, as the connector does."""
    if worker.computed(name):
        worker.save_layers(plan)


def settle(worker):
    """Let what is being saved end."""
    while worker._saving:
        step(worker, Plan())


def save_all(worker, places=range(BLOCKS)):
    """Save block i of the KV cache as the i-th block of a request."""
    places = list(places)
    hashes = [HASHES[i] for i in places]
    step(worker, Plan(saves=[Save("r", 1, list(range(BLOCKS)), 0, places, hashes)]))
    settle(worker)


def load(hashes, blocks):
    return Plan(loads=[Load("r", [HASHES[i] for i in hashes], list(blocks))])


def file_of(folder, i):
    (path,) = folder.rglob(NAMER([HASHES[i]])[0].hex())
    return path


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_what_was_saved_is_loaded_into_other_blocks(worker, kv):
    before = kv.copy()
    save_all(worker)
    kv[:] = 0
    step(worker, load([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]))
    assert (kv.view(np.uint16) == before[:, ::-1].view(np.uint16)).all()
    assert worker.take_failed() == set()


def test_several_requests_load_in_one_step(worker, kv):
    before = kv.copy()
    save_all(worker)
    kv[:] = 0
    plan = load([0], [3])
    plan.loads += load([1, 2], [5, 1]).loads
    step(worker, plan)
    for source, place in ((0, 3), (1, 5), (2, 1)):
        assert (kv[:, place].view(np.uint16) == before[:, source].view(np.uint16)).all()


def test_a_missing_block_fails_alone_and_is_told_once(worker):
    save_all(worker, [0, 2])
    step(worker, load([0, 1, 2], [3, 4, 5]))
    assert worker.take_failed() == {4}
    assert worker.take_failed() == set()


def test_a_damaged_block_fails_alone(worker, tmp_path, kv):
    before = kv.copy()
    save_all(worker)
    damage(file_of(tmp_path, 1))
    kv[:] = 0
    step(worker, load([0, 1, 2], [0, 1, 2]))
    assert worker.take_failed() == {1}
    assert (kv[:, [0, 2]].view(np.uint16) == before[:, [0, 2]].view(np.uint16)).all()


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_computed_after_a_failed_block_is_not_saved(worker, at_once):
    """Blocks 3 and 4 were computed in a step for which block 1 could not be loaded."""
    save_all(worker, [0])
    plan = load([0, 1, 2], [0, 1, 2])
    wrong = Save("r", 1, [0, 1, 2, 3, 4], 3, [3, 4], HASHES[3:5])
    other = Save("s", 1, [5], 0, [0], [HASHES[5]])
    if not at_once:
        step(worker, plan)
        plan = Plan()
    plan.saves += [wrong, other]
    step(worker, plan)
    assert stored(worker) == [0, 5]


def test_a_step_planned_before_the_failure_was_known_is_not_saved_either(worker):
    step(worker, load([1], [1]))
    step(worker, Plan())
    step(worker, Plan(saves=[Save("r", 1, [0, 1, 2], 2, [2], [HASHES[2]])]))
    assert stored(worker) == []


def test_once_computed_again_everything_is_saved(worker):
    step(worker, load([1], [1]))
    step(worker, Plan(saves=[Save("r", 1, [0, 1, 2], 1, [1, 2], HASHES[1:3])]))
    assert stored(worker) == [1, 2]


def test_a_block_that_is_loaded_well_later_is_good_again(worker):
    step(worker, load([1], [1]))
    save_all(make_clean(worker), [0])
    step(worker, load([0], [1]))
    step(worker, Plan(saves=[Save("r", 1, [1, 2], 1, [1], [HASHES[2]])]))
    assert stored(worker) == [0, 2]


def make_clean(worker):
    """Let block 1 count as computed, which a save of it says."""
    step(worker, Plan(saves=[Save("r", 1, [1], 0, [], [])]))
    return worker


def test_what_fails_at_another_worker_spoils_this_ones_blocks(layout, tmp_path):
    worker = make(layout, tmp_path, agree=lambda failed: failed | {1})
    save_all(worker, [0, 1])
    step(worker, load([0, 1], [0, 1]))
    step(worker, Plan(saves=[Save("r", 1, [0, 1, 2], 2, [2], [HASHES[2]])]))
    assert stored(worker) == [0, 1]
    assert worker.take_failed() == {1}
    worker.detach().close()


def test_workers_agree_in_every_step_that_loads_and_in_no_other(layout, tmp_path):
    calls = []
    worker = make(layout, tmp_path, agree=lambda failed: calls.append(failed) or failed)
    step(worker, Plan())
    step(worker, load([0], [0]))
    worker.detach().close()
    step(worker, load([0], [2]))
    assert calls == [{0}, {2}]


def test_a_layer_is_there_once_it_has_been_waited_for(layout, tmp_path, kv):
    before = kv.copy()
    worker = make(layout, tmp_path, moving=Moving(layerwise=True))
    save_all(worker)
    kv[:] = 0
    plan = load([0, 1, 2], [3, 4, 5])
    worker.load(plan)
    for i, name in enumerate(layout.names):
        worker.wait_layer(name)
        worker.wait_layer(name)  # two layers may share a cache
        assert (kv[i, 3:6].view(np.uint16) == before[i, :3].view(np.uint16)).all()
    worker.save(plan)
    assert worker.take_failed() == set()
    worker.detach().close()


class Measured(Collector):
    """Keeps how long what moved took."""

    def __init__(self):
        super().__init__(None)
        self.seconds = {}

    def moved(self, what, requests, blocks, block_size, seconds, failures):
        self.seconds[what] = seconds


def test_a_load_lasts_until_its_end_and_not_until_that_of_its_forward(
    layout, tmp_path, monkeypatch
):
    clock, measured = [1.0], Measured()
    worker = make(layout, tmp_path, moving=Moving(layerwise=True), metrics=measured)
    save_all(worker)
    monkeypatch.setattr(worker_module, "time", types.SimpleNamespace(monotonic=lambda: clock[0]))
    plan = load([0, 1], [3, 4])
    worker.load(plan)
    for name in layout.names:
        worker.wait_layer(name)
    clock[0] += 100
    worker.save(plan)
    assert measured.seconds["load"] == 0
    worker.detach().close()


def test_layers_are_loaded_before_a_forward_that_may_not_wait_for_them(
    layout, tmp_path, kv, caplog
):
    before = kv.copy()
    save_all(make(layout, tmp_path))
    worker = make(layout, tmp_path, moving=Moving(layerwise=True))
    for place in (3, 4):
        kv[:, place] = 0
        plan = load([0], [place])
        worker.load(plan)  # and the forward stops at one layer only
        assert (kv[:, place].view(np.uint16) == before[:, 0].view(np.uint16)).all()
        worker.wait_layer(layout.names[0])
        worker.save(plan)
    assert caplog.text.count("use_layerwise: no effect on loads") == 1
    worker.detach().close()


def test_a_layer_is_saved_as_it_was_when_it_was_computed(layout, tmp_path, kv):
    """What the step does to a layer's cache before that, and to other blocks after, is not seen."""
    worker = make(layout, tmp_path, moving=Moving(layerwise=True, async_save=True))
    plan = Plan(saves=[Save("r", 1, [2], 0, [0], [HASHES[0]])])
    before = kv[:, 2].copy()
    for i, name in enumerate(layout.names):
        kv[i, 2] = before[i]
        save_layer(worker, name, plan)
        save_layer(worker, name, plan)
    worker.save(plan)
    settle(worker)
    kv[:] = 0
    step(worker, load([0], [4]))
    assert (kv[:, 4].view(np.uint16) == before.view(np.uint16)).all()
    worker.detach().close()


def test_layers_that_no_forward_came_by_are_saved_at_the_end(layout, tmp_path):
    worker = make(layout, tmp_path, moving=Moving(layerwise=True))
    plan = Plan(saves=[Save("r", 1, [2], 0, [0], [HASHES[0]])])
    save_layer(worker, layout.names[1], plan)
    worker.save(plan)
    assert stored(worker) == [0]
    worker.detach().close()


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 1, 2, 0]], ids=str)
def test_groups_of_layers_are_saved_as_soon_as_they_are_computed_in_any_order(
    layout, tmp_path, kv, monkeypatch, order
):
    monkeypatch.setattr(worker_module, "_SAVE_GROUPS", 2)  # layers 0 and 1, then 2
    monkeypatch.setattr(worker_module, "_SAVE_GROUP_BYTES", 0)
    worker = make(layout, tmp_path, moving=Moving(layerwise=True))
    dumped, dump_data = [], worker._store.dump_data

    def note(ids, indexes, *rest, **hints):
        dumped.append(sorted(set(map(int, indexes))))
        return dump_data(ids, indexes, *rest, **hints)

    monkeypatch.setattr(worker._store, "dump_data", note)
    plan = Plan(saves=[Save("r", 1, [2, 5], 0, [0, 1], HASHES[:2])])
    before = kv[:, [2, 5]].copy()
    kv[:] = 0
    there = set()
    for layer in order:
        kv[layer, [2, 5]] = before[layer]
        there.add(layer)
        save_layer(worker, layout.names[layer], plan)
        assert sorted(dumped) == [g for g in ([0, 1], [2]) if there >= set(g)]
    worker.save(plan)
    step(worker, load([0, 1], [3, 4]))
    assert (kv[:, 3:5].view(np.uint16) == before.view(np.uint16)).all()
    worker.detach().close()


def test_layers_at_which_no_group_ends_have_nothing_done(layout, tmp_path, monkeypatch):
    worker = make(layout, tmp_path, moving=Moving(layerwise=True))
    plan = Plan(saves=[Save("r", 1, [2], 0, [0], [HASHES[0]])])
    first, second, last = layout.names
    for _ in range(2):  # one group: the blocks are small
        assert worker.computed(first)
        worker.save_layers(plan)
        assert not worker.computed(second)
        assert worker.computed(last)
        worker.save_layers(plan)
        worker.save(plan)
    for nothing in (Plan(), load([0], [3])):
        assert worker.computed(first)
        worker.save_layers(nothing)
        assert not worker.computed(second)
        assert not worker.computed(last)
        worker.save(nothing)
    worker.detach().close()


def background(hashes, blocks, name="r"):
    return Plan(background=[Load(name, [HASHES[i] for i in hashes], blocks)])


def received(worker):
    """Step until a request has received its blocks."""
    for _ in range(1000):
        sent, got = step(worker, Plan())
        assert not sent
        if got:
            return got
        time.sleep(0.005)
    raise AssertionError("nothing was received")


def test_a_request_outside_the_batch_is_told_once_that_its_blocks_are_there(worker, kv):
    before = kv.copy()
    save_all(worker)
    kv[:] = 0
    _, got = step(worker, background([0, 1], [4, 5]))
    assert (got or received(worker)) == {"r"}
    assert (kv[:, 4:6].view(np.uint16) == before[:, :2].view(np.uint16)).all()
    assert step(worker, Plan()) == (set(), set())


def test_what_cannot_be_loaded_outside_the_batch_is_told_with_it_or_before(worker):
    save_all(worker, [0])
    _, got = step(worker, background([0, 1], [4, 5]))
    failed = worker.take_failed()
    if not got:
        assert received(worker) == {"r"}
    assert failed | worker.take_failed() == {5}
    step(worker, Plan(saves=[Save("r", 1, [4, 5, 3], 2, [2], [HASHES[2]])]))
    assert stored(worker) == [0]


def sent(worker, names):
    """Let go of requests, and step until nothing of them is being saved."""
    told, _ = step(worker, Plan(leaving=names))
    for _ in range(1000):
        if told >= set(names):
            return told
        time.sleep(0.005)
        told |= step(worker, Plan())[0]
    raise AssertionError("nothing was sent")


def test_a_request_that_is_let_go_is_told_once_when_all_of_it_is_saved(layout, tmp_path):
    worker = make(layout, tmp_path, moving=Moving(async_save=True))
    saves = [Save(name, i + 1, [i], 0, [0], [HASHES[i]]) for i, name in enumerate("rs")]
    assert step(worker, Plan(saves=saves)) == (set(), set())  # they have not ended
    assert sent(worker, ["r"]) == {"r"}
    assert sent(worker, ["s"]) == {"s"}
    assert step(worker, Plan()) == (set(), set())
    assert stored(worker) == [0, 1]
    worker.detach().close()


def test_every_save_is_told_by_its_number_once_it_has_ended(worker):
    saves = [Save(name, i + 7, [i], 0, [0], [HASHES[i]]) for i, name in enumerate("rs")]
    step(worker, Plan(saves=[*saves, Save("t", 0, [3], 0, [], [])]))
    settle(worker)
    assert sorted(worker.take_ended()) == [7, 8]
    assert worker.take_ended() == []


def test_a_save_of_blocks_that_are_held_back_ends_as_well(worker):
    plan = load([0], [0])
    plan.saves.append(Save("r", 5, [0, 1], 1, [1], [HASHES[1]]))
    step(worker, plan)
    settle(worker)
    assert worker.take_ended() == [5]
    assert sent(worker, ["r"]) == {"r"}
    assert stored(worker) == []


def test_a_failed_load_is_told_before_the_saves_of_its_step(worker):
    """A draft model may run between the two, and what it is told then it is told in time."""
    plan = load([1], [4])
    worker.begin(plan)
    worker.load(plan)
    for name in worker._layout.names:
        worker.wait_layer(name)
        save_layer(worker, name, plan)
    worker.finished([])
    assert worker.take_failed() == {4}
    worker.save(plan)
    assert worker.take_failed() == set()


def test_what_builds_on_a_failed_block_stays_wrong_until_it_is_computed_again(worker):
    """Block 1 is computed again alone; then another request finds 2 and 3 in the engine."""
    save_all(worker, [0])
    plan = load([0, 1], [0, 1])
    plan.saves.append(Save("r", 1, [0, 1, 2, 3], 2, [2, 3], HASHES[2:4]))
    step(worker, plan)
    step(worker, Plan(saves=[Save("r", 2, [0, 1], 1, [1], HASHES[1:2])]))
    other = Save("s", 3, [0, 1, 2, 3, 4], 4, [2, 3, 4], HASHES[2:5])
    step(worker, Plan(saves=[other]))
    assert stored(worker) == [0, 1]
    step(worker, Plan(saves=[Save("r", 4, [0, 1, 2, 3], 2, [2, 3], HASHES[2:4])]))
    assert stored(worker) == [0, 1, 2, 3]


def test_blocks_of_a_preempted_request_are_saved_before_others_get_them(layout, tmp_path, kv):
    before = kv.copy()
    worker = make(layout, tmp_path, moving=Moving(async_save=True))
    step(worker, Plan(saves=[Save("r", 1, [0, 1], 0, [0, 1], HASHES[:2])]))
    worker.begin(Plan(preempted=["r"]))
    assert not worker._saving
    kv[:, :2] = 0
    step(worker, load([0, 1], [3, 4]))
    assert (kv[:, 3:5].view(np.uint16) == before[:, :2].view(np.uint16)).all()
    worker.detach().close()


def test_a_step_that_waits_for_its_saves_leaves_nothing_under_way(layout, tmp_path):
    worker = make(layout, tmp_path)
    step(worker, Plan(saves=[Save("r", 0, [0], 0, [0], [HASHES[0]])]))
    assert not worker._saving
    assert worker.take_ended() == []  # nobody waits for it
    worker.detach().close()


def test_without_a_store_requests_are_let_go_of_all_the_same(layout, tmp_path):
    worker = make(layout, tmp_path, moving=Moving(async_save=True))
    worker.detach().close()
    plan = background([0], [1], "b")
    plan.saves.append(Save("r", 1, [0], 0, [0], [HASHES[0]]))
    plan.leaving.append("r")
    assert step(worker, plan) == ({"r"}, {"b"})
    assert worker.take_failed() == {1}


def test_a_save_that_fails_is_no_error_of_the_engine(layout, tmp_path, monkeypatch):
    worker = make(layout, tmp_path)

    def refuse(*args, **hints):
        raise ucm.NoSpaceError("the disk is full")

    monkeypatch.setattr(worker._store, "dump_data", refuse)
    save_all(worker)
    monkeypatch.setattr(worker._store, "load_data", lambda *args: 1 / 0)
    step(worker, load([0], [0]))
    assert worker.take_failed() == {0}
    worker.detach().close()


def stored(worker):
    settle(worker)
    return [i for i, known in enumerate(worker._store.lookup(NAMER(HASHES))) if known]


def test_what_has_been_dumped_is_told_if_asked_for(layout, tmp_path):
    worker = make(layout, tmp_path, moving=Moving(async_save=True, tells=True))
    save_all(worker, [0, 2])
    assert sorted(worker.take_stored()) == sorted([HASHES[0], HASHES[2]])
    assert worker.take_stored() == []
    worker.detach().close()
