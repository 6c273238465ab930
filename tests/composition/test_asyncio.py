"""Awaiting tasks: told through one descriptor; no thread, no polling, nothing lost."""

import asyncio
import ctypes
import gc
import os
import threading
import weakref

import numpy as np
import pytest

import ucm

BLOCK = 4096


def ids(n):
    return [i.to_bytes(16, "big") for i in range(n)]


@pytest.fixture
def store(tmp_path):
    with ucm.open_pipeline("Posix", storage_backends=str(tmp_path), block_size=BLOCK) as store:
        yield store


@pytest.fixture
def gate():
    """The int that the gated store's transfers wait for."""
    gate = ctypes.c_int(1)
    yield gate
    gate.value = 1


@pytest.fixture
def gated(registered, gate_library, gate):
    registered(gate_library)
    store = ucm.open_pipeline("Gate", block_size=64, gate_address=ctypes.addressof(gate))
    gate.value = 0
    yield store
    gate.value = 1
    store.close()


def dump_one(gated):
    return gated.dump([bytes(16)], [0], [[bytes(64)]])


class Memory(ucm.StoreBase):
    """A store in Python whose transfers wait for an event."""

    go = threading.Event()

    def dump(self, block_ids, shard_index, shards):
        self.go.wait(10)

    def load(self, block_ids, shard_index, shards):
        self.go.wait(10)
        raise KeyError(block_ids[0])


@pytest.fixture
def python_store(registered):
    Memory.go.clear()
    registered(Memory=Memory)
    store = ucm.open_pipeline("Memory", block_size=64)
    yield store
    Memory.go.set()
    store.close()


def test_a_transfer_is_awaited_and_gives_its_task(store):
    async def main():
        data = os.urandom(BLOCK)
        memory = bytearray(BLOCK)
        await store.dump(ids(1), [0], [[data]])
        task = await store.load(ids(1), [0], [[memory]])
        assert (memory, task.results[0].bytes) == (data, BLOCK)
        assert await task is task

    asyncio.run(main())


def test_a_failure_is_raised_as_by_wait(store):
    async def main():
        task = store.load(ids(1), [0], [[bytearray(BLOCK)]])
        with pytest.raises(ucm.NotFoundError, match=ids(1)[0].hex()):
            await task
        with pytest.raises(ucm.NotFoundError):
            await task

    asyncio.run(main())


def test_a_thousand_tasks_are_awaited_at_once(store):
    n = 1000
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, (n, BLOCK), np.uint8)
    memory = np.zeros_like(data)

    async def main():
        await asyncio.gather(
            *(store.dump([i], [0], [[row]]) for i, row in zip(ids(n), data, strict=True))
        )
        loads = (store.load([i], [0], [[row]]) for i, row in zip(ids(n), memory, strict=True))
        tasks = await asyncio.gather(*loads)
        assert all(task.done() for task in tasks)

    asyncio.run(main())
    assert (memory == data).all()


def test_waiting_takes_no_thread_and_lets_the_loop_run(gated, gate):
    async def main():
        task = dump_one(gated)
        before = len(os.listdir("/proc/self/task"))
        awaits = [asyncio.ensure_future(task) for _ in range(1000)]
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/task")) <= before
        assert not any(a.done() for a in awaits)
        gate.value = 1
        assert await asyncio.gather(*awaits) == [task] * 1000

    asyncio.run(main())


def test_a_cancelled_await_leaves_the_task_and_its_memory_alone(gated, gate):
    memory = np.zeros(64, np.uint8)
    alive = weakref.ref(memory)

    async def main():
        nonlocal memory
        awaited = asyncio.ensure_future(gated.dump([bytes(16)], [0], [[memory]]))
        await asyncio.sleep(0)
        awaited.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaited
        memory = awaited = None
        gc.collect()
        assert alive() is not None

    asyncio.run(main())
    gc.collect()
    assert alive() is not None
    gate.value = 1
    gated.drain()
    while alive() is not None:
        gated.wait(gated.dump([], [], []))
        gc.collect()


def test_wait_for_gives_up_and_the_task_may_be_awaited_again(gated, gate):
    async def main():
        task = dump_one(gated)
        for _ in range(3):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(task, 0.001)
            assert not task.done()
        gate.value = 1
        await asyncio.wait_for(task, 60)
        assert task.done()

    asyncio.run(main())


def test_one_task_is_awaited_in_several_loops_and_threads(gated, gate):
    task = dump_one(gated)
    inside = threading.Barrier(9)
    answers = []

    async def main():
        awaited = asyncio.ensure_future(task)
        await asyncio.sleep(0)
        inside.wait()
        answers.append(await awaited)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    inside.wait()
    gate.value = 1
    for thread in threads:
        thread.join()
    assert answers == [task] * 8


def test_loops_in_threads_each_await_their_own(store):
    errors = []

    async def main(k):
        for i in range(50):
            name = [(1000 * k + i).to_bytes(16, "big")]
            data, memory = os.urandom(BLOCK), bytearray(BLOCK)
            await store.dump(name, [0], [[data]])
            await store.load(name, [0], [[memory]])
            if memory != data:
                errors.append(name)

    threads = [threading.Thread(target=asyncio.run, args=(main(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_loop_that_ends_while_it_awaits_takes_nothing_with_it(gated, gate):
    task = dump_one(gated)

    async def leave():
        left = asyncio.ensure_future(task)
        await asyncio.sleep(0)
        assert not left.done()

    async def stay():
        return await task

    asyncio.run(leave())
    loop = asyncio.new_event_loop()
    still = loop.create_task(stay())
    loop.call_soon(loop.stop)
    loop.run_forever()
    gate.value = 1
    assert asyncio.run(stay()) is task
    assert loop.run_until_complete(still) is task
    loop.close()


def test_a_loop_watches_the_descriptor_only_while_somebody_awaits(gated, gate):
    async def main():
        loop = asyncio.get_running_loop()
        watched = lambda: len(loop._selector.get_map())  # noqa: E731
        before = watched()
        task = dump_one(gated)
        awaits = [asyncio.ensure_future(task) for _ in range(3)]
        await asyncio.sleep(0)
        assert watched() == before + 1
        gate.value = 1
        await asyncio.gather(*awaits)
        assert watched() == before

    asyncio.run(main())


def test_the_store_is_closed_while_somebody_awaits(gated, gate):
    async def main():
        awaited = asyncio.ensure_future(dump_one(gated))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(gated.close))
        await asyncio.sleep(0.01)
        assert not awaited.done()
        gate.value = 1
        await closing
        assert (await awaited).done()

    asyncio.run(main())


def test_a_close_in_the_loop_itself_ends_what_is_awaited(store):
    async def main():
        data = np.zeros((64, BLOCK), np.uint8)
        tasks = [store.dump([i], [0], [[row]]) for i, row in zip(ids(64), data, strict=True)]
        awaited = asyncio.gather(*tasks)
        await asyncio.sleep(0)
        store.close()
        assert all(task.done() for task in await awaited)

    asyncio.run(main())


def test_python_stores_are_awaited_too(python_store):
    async def main():
        dump = python_store.dump([bytes(16)], [0], [[bytes(64)]])
        awaits = [asyncio.ensure_future(dump) for _ in range(3)]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(dump, 0.001)
        Memory.go.set()
        assert await asyncio.gather(*awaits) == [dump] * 3
        with pytest.raises(ucm.NotFoundError):
            await python_store.load([bytes(16)], [0], [[bytearray(64)]])

    asyncio.run(main())


def test_an_await_outside_a_loop_is_refused(gated):
    with pytest.raises(RuntimeError, match="no running event loop"):
        dump_one(gated).__await__().send(None)


def test_a_forked_child_awaits_by_itself(run_python, tmp_path):
    code = """
import asyncio, os, sys, ucm

def move(folder):
    async def main(store):
        tasks = [store.dump([os.urandom(16)], [0], [[bytes(4096)]]) for _ in range(50)]
        return len(await asyncio.gather(*tasks))
    with ucm.open_pipeline("Posix", storage_backends=folder, block_size=4096) as store:
        return asyncio.run(main(store))

print(move(sys.argv[1]), flush=True)
child = os.fork()
if child == 0:
    print(move(sys.argv[1]), flush=True)
    os._exit(0)
print(move(sys.argv[1]), os.waitpid(child, 0)[1], flush=True)
"""
    assert sorted(run_python(code, tmp_path).split()) == ["0", "50", "50", "50"]
