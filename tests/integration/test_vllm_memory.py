"""What the connector keeps does not grow with what it has moved before: docs/vllm.md, Limits."""

import gc
import logging
import tracemalloc

import pytest
from test_vllm_scheduler import Ids, attached, publish, request, step
from test_vllm_worker import make
from test_vllm_worker import step as forward

import ucm.integration.vllm.scheduler as scheduler
from ucm.integration.vllm.metadata import Load, Plan, Save

BLOCKS = 100  # of a request
MOST = 128 << 10  # bytes; a number for each block of a round below would be more


def grown(work, first, more):
    """Return how many bytes more are held after so many more rounds."""
    tracemalloc.start()
    try:
        for i in range(first):
            work(i)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        for i in range(first, first + more):
            work(i)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


@pytest.fixture
def no_time_passes(monkeypatch):
    """Nothing is forgotten because it is old, only because there is too much of it."""
    monkeypatch.setattr(scheduler.time, "monotonic", lambda: 1.0)
    monkeypatch.setattr(scheduler, "_ON_THE_WAY_MAX", 10 * BLOCKS)


@pytest.mark.parametrize("ends", ["saved", "aborted", "never admitted", "preempted"])
def test_requests_leave_nothing_behind_at_the_scheduler(ends, no_time_passes):
    side = attached(Ids(), async_save=True)

    def one(i):
        made = request(f"r{i}", 4 * BLOCKS, prefix=f"{i}-")
        external, _ = side.matched_tokens(made, 0)
        if ends != "never admitted":
            side.admit(made, external)
            plan = side.plan(step(new=[(made, list(range(BLOCKS)), 0, 4 * BLOCKS)]))
            if ends == "preempted":
                side.plan(step(preempted=[made]))
            held = side.finished(made.request_id)
            assert held == (ends != "preempted")
            side.ended({save.number: 1 for save in plan.saves})
            side.plan(step())
            side.saved([made.request_id])
        else:
            side.finished(made.request_id)

    assert grown(one, 100, 400) < MOST


@pytest.mark.parametrize("outside", [False, True])
def test_hits_leave_nothing_behind_at_the_scheduler(outside):
    store = Ids()
    side = attached(store, async_load=outside)
    publish(store, request("", 4 * BLOCKS), range(BLOCKS))

    def one(i):
        made = request(f"r{i}", 4 * BLOCKS + 1, num_computed_tokens=4 * BLOCKS)
        table = list(range(BLOCKS + 1))
        external, _ = side.matched_tokens(made, 0)
        assert external == 4 * BLOCKS
        side.admit(made, external, table)
        if outside:
            side.plan(step())
            side.admit(made, 0, table)
        side.plan(step(new=[(made, table, external, 1)]))
        side.finished(made.request_id)

    assert grown(one, 100, 400) < MOST


def test_transfers_leave_nothing_behind_at_a_worker(layout, tmp_path, caplog):
    caplog.set_level(logging.ERROR, "ucm")  # it would keep what is said of blocks that fail
    worker = make(layout, tmp_path)

    def one(i):
        hashes = [f"{i} {k}".encode() for k in range(6)]
        table = list(range(6))
        forward(worker, Plan(saves=[Save(f"r{i}", i + 1, table, 0, table, hashes)]))
        loads = [Load(f"r{i}", [*hashes[:5], b"absent"], table)]  # one fails
        forward(worker, Plan(loads=loads, leaving=[f"r{i}"]))
        assert worker.take_failed() == {5}
        assert worker.take_ended() == [i + 1]

    try:
        assert grown(one, 50, 300) < MOST
    finally:
        worker.detach().close()
