"""Waiting: no call holds the GIL, BUSY is waited out, a timeout loses nothing."""

import ctypes
import gc
import threading
import time
import weakref

import numpy as np
import pytest

import ucm

ROWS = [[bytes(64)]]


class Gate:
    """The int that the store's calls wait for; opened by a thread, a moment later."""

    def __init__(self):
        self.value = ctypes.c_int(1)

    @property
    def address(self):
        return ctypes.addressof(self.value)

    def shut(self):
        self.value.value = 0

    def open(self):
        self.value.value = 1

    def open_soon(self):
        self.shut()
        self.opener = threading.Timer(0.02, self.open)
        self.opener.start()


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.open()


@pytest.fixture
def open_gate(registered, gate_library, gate):
    registered(gate_library)
    stores = []

    def open_one(**options):
        store = ucm.open_pipeline("Gate", block_size=64, gate_address=gate.address, **options)
        stores.append(store)
        return store

    yield open_one
    gate.open()
    for store in stores:
        store.close()


CALLS = {
    "lookup": lambda store: store.lookup([bytes(16)]),
    "lookup_on_prefix": lambda store: store.lookup_on_prefix([bytes(16)]),
    "lookup_on_reverse": lambda store: store.lookup_on_reverse([bytes(16)]),
    "dump and wait": lambda store: store.wait(store.dump([bytes(16)], [0], ROWS)),
    "prefetch": lambda store: store.prefetch([bytes(16)]),
    "remove": lambda store: store.remove([bytes(16)]),
    "stats": lambda store: store.stats(),
    "drain": lambda store: store.drain(),
    "close": lambda store: store.close(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_other_threads_run_while_a_call_waits(open_gate, gate, call):
    store = open_gate()
    gate.open_soon()
    call(store)


def test_other_threads_run_while_a_store_opens(open_gate, gate):
    gate.open_soon()
    open_gate()


def test_busy_is_waited_out(open_gate):
    store = open_gate(gate_busy=20)
    store.wait(store.dump([bytes(16)], [0], ROWS))


def test_other_threads_run_while_the_store_is_busy(open_gate):
    store = open_gate(gate_busy=1 << 40, timeout_ms=200)
    busy = threading.Thread(target=pytest.raises, args=(ucm.BusyError, store.dump, [], [], []))
    busy.start()
    while busy.is_alive():
        store.lookup([bytes(16)])
    busy.join()


def test_a_store_that_stays_busy_is_an_error_and_nothing_is_accepted(open_gate):
    store = open_gate(gate_busy=1 << 40, timeout_ms=30)
    with pytest.raises(ucm.BusyError) as raised:
        store.dump([bytes(16)], [0], ROWS)
    assert raised.value.status == ucm.Status.BUSY


def test_a_wait_that_times_out_may_be_called_again(open_gate, gate):
    store = open_gate()
    gate.shut()
    task = store.dump([bytes(16)], [0], ROWS)
    for limit in (0, 1, 150):
        with pytest.raises(ucm.StoreTimeout) as raised:
            store.wait(task, limit)
        assert isinstance(raised.value, TimeoutError)
        assert f"within {limit} ms" in str(raised.value)
    assert not store.check(task)
    assert [result.status for result in task.results] == [ucm.Status.PENDING]
    gate.open()
    store.wait(task)
    assert store.check(task)
    assert [result.status for result in task.results] == [ucm.Status.OK]


def test_the_default_timeout_is_the_option(open_gate, gate):
    store = open_gate(timeout_ms=20)
    gate.shut()
    task = store.dump([bytes(16)], [0], ROWS)
    with pytest.raises(ucm.StoreTimeout, match="within 20 ms"):
        store.wait(task)
    with pytest.raises(ucm.StoreTimeout, match=r"drain: .* after 20 ms"):
        store.drain()
    gate.open()
    store.wait(task)


def test_what_was_lost_before_a_timeout_is_in_the_next_report(open_gate, monkeypatch):
    store = open_gate()

    def answer(status, **counts):
        usual = dict.fromkeys(("stored", "lost", "pending", "unfinished"), 0)
        return status, {**usual, **counts}

    pending = ucm.Status.PENDING
    answers = [answer(pending, stored=1, lost=2, pending=4), answer(pending, lost=1, pending=3)]
    answers += [answer(ucm.Status.OK, stored=3), answer(ucm.Status.OK)]
    monkeypatch.setattr(store, "_drain_slice", lambda timeout_ms: answers.pop(0))
    with pytest.raises(ucm.StoreTimeout, match=r"4 shards .* \(2 are lost\)"):
        store.drain(0)
    with pytest.raises(ucm.StoreTimeout, match=r"3 shards .* \(3 are lost\)"):
        store.drain(0)
    assert store.drain(0) == ucm.Report(4, 3, 0, 0)
    assert store.drain(0) == ucm.Report(0, 0, 0, 0)


def test_memory_stays_referenced_until_the_task_has_ended(open_gate, gate):
    store = open_gate()
    gate.shut()
    memory = np.zeros(64, np.uint8)
    alive = weakref.ref(memory)
    task = store.dump([bytes(16)], [0], [[memory]])
    del memory, task
    gc.collect()
    assert alive() is not None
    gate.open()
    store.drain()
    while alive() is not None:
        store.wait(store.dump([], [], []))
        gc.collect()


def test_a_close_that_times_out_may_be_called_again(open_gate, gate):
    store = open_gate()
    gate.shut()
    task = store.dump([bytes(16)], [0], ROWS)
    with pytest.raises(ucm.StoreTimeout, match=r"close: after 10 ms it goes on, .*; close again"):
        store.close(10)
    with pytest.raises(ucm.ClosedError):
        store.lookup([bytes(16)])
    gate.open()
    store.close()
    store.wait(task)
    assert store.close() == ucm.Report(0, 0, 0, 0)


def test_close_waits_for_calls_that_are_inside(open_gate, gate):
    store = open_gate()
    gate.shut()
    answers = []
    inside = threading.Thread(target=lambda: answers.append(store.lookup([bytes(16)])))
    inside.start()
    while not store._service.gate._inside:
        time.sleep(0.001)
    gate.open_soon()
    store.close()
    inside.join()
    assert answers == [[False]]
