"""Blocks on their way between KV cache and store, and what a failure costs."""

import numpy as np
import pytest
from kv_tensors import BLOCKS

import ucm
from ucm.hashing import Namer
from ucm.integration.vllm.metadata import Load, Plan, Save
from ucm.integration.vllm.worker import WorkerSide

NAMER = Namer("space", "tp0")
HASHES = [f"block {i}".encode() for i in range(BLOCKS)]


def alone(failed):
    return failed


@pytest.fixture
def worker(layout, tmp_path):
    side = make(layout, tmp_path)
    yield side
    side.detach().close()


def make(layout, folder, agree=alone):
    store = ucm.open_pipeline(
        "Posix",
        storage_backends=str(folder),
        block_size=layout.block_size,
        shard_size=layout.shard_size,
        tensor_size=layout.segment_size,
        dtype="fp16",
    )
    return WorkerSide(store, layout, NAMER, agree)


def save_all(worker, places=range(BLOCKS)):
    """Save block i of the KV cache as the i-th block of a request."""
    places = list(places)
    hashes = [HASHES[i] for i in places]
    worker.save(Plan(saves=[Save("r", list(range(BLOCKS)), 0, places, hashes)]))


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
    worker.load(load([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]))
    assert (kv.view(np.uint16) == before[:, ::-1].view(np.uint16)).all()
    assert worker.take_failed() == set()


def test_several_requests_load_in_one_step(worker, kv):
    before = kv.copy()
    save_all(worker)
    kv[:] = 0
    plan = load([0], [3])
    plan.loads += load([1, 2], [5, 1]).loads
    worker.load(plan)
    for source, place in ((0, 3), (1, 5), (2, 1)):
        assert (kv[:, place].view(np.uint16) == before[:, source].view(np.uint16)).all()


def test_a_missing_block_fails_alone_and_is_told_once(worker):
    save_all(worker, [0, 2])
    worker.load(load([0, 1, 2], [3, 4, 5]))
    assert worker.take_failed() == {4}
    assert worker.take_failed() == set()


def test_a_damaged_block_fails_alone(worker, tmp_path, kv):
    before = kv.copy()
    save_all(worker)
    damage(file_of(tmp_path, 1))
    kv[:] = 0
    worker.load(load([0, 1, 2], [0, 1, 2]))
    assert worker.take_failed() == {1}
    assert (kv[:, [0, 2]].view(np.uint16) == before[:, [0, 2]].view(np.uint16)).all()


def test_what_is_computed_after_a_failed_block_is_not_saved(worker, tmp_path):
    """Blocks 3 and 4 were computed in a step for which block 1 could not be loaded."""
    save_all(worker, [0])
    worker.load(load([0, 1, 2], [0, 1, 2]))
    wrong = Save("r", [0, 1, 2, 3, 4], 3, [3, 4], HASHES[3:5])
    other = Save("s", [5], 0, [0], [HASHES[5]])
    worker.save(Plan(saves=[wrong, other]))
    assert stored(worker) == [0, 5]


def test_a_step_planned_before_the_failure_was_known_is_not_saved_either(worker):
    worker.load(load([1], [1]))
    worker.save(Plan())
    worker.save(Plan(saves=[Save("r", [0, 1, 2], 2, [2], [HASHES[2]])]))
    assert stored(worker) == []


def test_once_computed_again_everything_is_saved(worker):
    worker.load(load([1], [1]))
    worker.save(Plan(saves=[Save("r", [0, 1, 2], 1, [1, 2], HASHES[1:3])]))
    assert stored(worker) == [1, 2]


def test_a_block_that_is_loaded_well_later_is_good_again(worker):
    worker.load(load([1], [1]))
    save_all(make_clean(worker), [0])
    worker.load(load([0], [1]))
    worker.save(Plan(saves=[Save("r", [1, 2], 1, [1], [HASHES[2]])]))
    assert stored(worker) == [0, 2]


def make_clean(worker):
    """Let block 1 count as computed, which a save of it says."""
    worker.save(Plan(saves=[Save("r", [1], 0, [], [])]))
    return worker


def test_what_fails_at_another_worker_spoils_this_ones_blocks(layout, tmp_path):
    worker = make(layout, tmp_path, agree=lambda failed: failed | {1})
    save_all(worker, [0, 1])
    worker.load(load([0, 1], [0, 1]))
    worker.save(Plan(saves=[Save("r", [0, 1, 2], 2, [2], [HASHES[2]])]))
    assert stored(worker) == [0, 1]
    assert worker.take_failed() == {1}
    worker.detach().close()


def test_workers_agree_in_every_step_that_loads_and_in_no_other(layout, tmp_path):
    calls = []
    worker = make(layout, tmp_path, agree=lambda failed: calls.append(failed) or failed)
    worker.load(Plan())
    worker.load(load([0], [0]))
    worker.detach().close()
    worker.load(load([0], [2]))
    assert calls == [{0}, {2}]


def test_a_save_that_fails_is_no_error_of_the_engine(layout, tmp_path, monkeypatch):
    worker = make(layout, tmp_path)

    def refuse(*args, **hints):
        raise ucm.NoSpaceError("the disk is full")

    monkeypatch.setattr(worker._store, "dump_data", refuse)
    save_all(worker)
    monkeypatch.setattr(worker._store, "load_data", lambda *args: 1 / 0)
    worker.load(load([0], [0]))
    assert worker.take_failed() == {0}
    worker.detach().close()


def stored(worker):
    return [i for i, known in enumerate(worker._store.lookup(NAMER(HASHES))) if known]
