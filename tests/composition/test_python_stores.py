"""Stores in Python, alone and below native layers: what goes well, what fails, and how."""

import errno
import threading
import time

import pytest

import ucm
from ucm import Status

BLOCK = 64
ONE, TWO, THREE = (bytes([i] * 16) for i in (1, 2, 3))
CACHE = {"cache_buffer_capacity_gb": 0.01}
SHORT = {"timeout_ms": 400}  # and long enough for a thread to begin on a busy machine


class Memory(ucm.StoreBase):
    """Keeps blocks of one shard; ``errors`` has what it raises or answers for some ids."""

    capabilities = frozenset({"keeps", "loads", "remove"})

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self.blocks, self.calls, self.errors = {}, [], {}
        self.open = threading.Event()
        self.open.set()
        self.inside = threading.Semaphore(0)
        made.append(self)

    def _enter(self, verb, block_ids):
        self.calls.append((verb, list(block_ids)))
        self.inside.release()
        assert self.open.wait(60)
        for block_id in block_ids:
            if isinstance(self.errors.get(block_id), type):
                raise self.errors[block_id]("no")

    def lookup(self, block_ids):
        return [block_id in self.blocks for block_id in block_ids]

    def dump(self, block_ids, shard_index, shards):
        self._enter("dump", block_ids)
        for block_id, shard in zip(block_ids, shards, strict=True):
            self.blocks.setdefault(block_id, b"".join(shard))
        return [self.errors.get(block_id) for block_id in block_ids]

    def load(self, block_ids, shard_index, shards):
        self._enter("load", block_ids)
        return [
            self.errors[i] if i in self.errors else self.fill(shard, self.blocks[i])
            for i, shard in zip(block_ids, shards, strict=True)
        ]

    def remove(self, block_ids):
        self.calls.append(("remove", list(block_ids)))
        for block_id in block_ids:
            self.blocks.pop(block_id, None)

    def close(self):
        self.calls.append(("close", []))


made = []


@pytest.fixture
def opened(registered):
    """Return a function that opens a pipeline of given classes; stores are closed at the end."""
    stores = []
    made.clear()

    def open_one(pipeline, options=None, **classes):
        registered(**{"Memory": Memory, **classes})
        stores.append(ucm.open_pipeline(pipeline, block_size=BLOCK, **(options or {})))
        return stores[-1]

    yield open_one
    for store in made:
        store.open.set()
    for store in stores:
        store.close()


def dump(store, *block_ids):
    return store.dump(block_ids, [0] * len(block_ids), [[i * 4] for i in block_ids])


def load(store, *block_ids):
    rooms = [bytearray(BLOCK) for _ in block_ids]
    return store.load(block_ids, [0] * len(block_ids), [[room] for room in rooms]), rooms


def ends(store, task):
    while not store.check(task):
        time.sleep(0.001)
    return [result.status for result in task.results]


@pytest.mark.parametrize("pipeline", ["Memory", "Cache|Memory", "Compress|Memory"])
def test_a_store_in_python_may_stand_at_the_bottom(opened, pipeline):
    store = opened(pipeline, CACHE if "Cache" in pipeline else {})
    store.wait(dump(store, ONE, TWO))
    assert store.drain().stored == 2
    task, (one, two) = load(store, ONE, TWO)
    store.wait(task)
    assert (one, two) == (ONE * 4, TWO * 4)
    assert store.lookup([ONE, THREE]) == [True, False]
    assert store.layers[-1] == "Memory"
    store.remove([ONE])
    assert store.lookup([ONE]) == [False]
    store.close()
    assert made[0].calls[-1] == ("close", [])


EXCEPTIONS = {
    ucm.NoSpaceError: Status.NO_SPACE,
    ucm.BusyError: Status.UNAVAILABLE,
    KeyError: Status.NOT_FOUND,
    OSError: Status.IO,
    TimeoutError: Status.TIMEOUT,
    MemoryError: Status.UNAVAILABLE,
    ZeroDivisionError: Status.INTERNAL,
    SystemExit: Status.INTERNAL,
}


@pytest.mark.parametrize(("error", "status"), EXCEPTIONS.items(), ids=str)
def test_what_is_raised_is_the_end_of_every_shard_of_its_call(opened, error, status):
    store = opened("Memory")
    made[0].errors[TWO] = error
    assert ends(store, dump(store, ONE, TWO)) == [status] * 2
    assert ends(store, dump(store, ONE)) == [Status.OK]


def test_an_exception_that_is_returned_is_the_end_of_one_shard(opened):
    store = opened("Memory")
    made[0].errors[TWO] = OSError(errno.EIO, "no")
    assert ends(store, dump(store, ONE, TWO)) == [Status.OK, Status.IO]
    task, _ = load(store, ONE, TWO)
    assert ends(store, task) == [Status.OK, Status.IO]
    assert task.results[1].os_errno == errno.EIO


def test_a_bug_shows_where_it_is(opened, caplog):
    store = opened("Memory")
    made[0].errors[ONE] = ZeroDivisionError
    ends(store, dump(store, ONE))
    (record,) = [r for r in caplog.records if r.name == "ucm.Memory"]
    assert record.getMessage() == "ZeroDivisionError: no"
    assert record.exc_info[2].tb_next is not None


@pytest.mark.parametrize("answer", [[], [1, 2], 7, ["much"], [-1], [BLOCK + 1], [None], None])
def test_a_load_that_answers_nonsense_fails(opened, answer):
    class Odd(Memory):
        def load(self, block_ids, shard_index, shards):
            return answer

    store = opened("Odd", Odd=Odd)
    assert ends(store, load(store, ONE)[0]) == [Status.INTERNAL]


def test_calls_other_than_transfers_raise_what_the_method_raised(opened):
    class Odd(Memory):
        def lookup(self, block_ids):
            raise OSError(errno.ESTALE, "the share has moved")

        def remove(self, block_ids):
            raise ValueError("which one?")

    store = opened("Odd", Odd=Odd)
    with pytest.raises(ucm.IoError, match="the share has moved") as raised:
        store.lookup([ONE])
    assert raised.value.os_errno == errno.ESTALE
    with pytest.raises(ucm.StoreError, match=r"which one\?"):
        store.remove([ONE])


def hold(store, *block_ids):
    """Dump while the store's gate is shut; return the task that is inside."""
    made[0].open.clear()
    task = dump(store, *block_ids)
    assert made[0].inside.acquire(timeout=60)
    return task


class OneByOne(Memory):
    threads = 1


def test_transfers_that_wait_share_a_call(opened):
    store = opened("OneByOne", OneByOne=OneByOne)
    tasks = [hold(store, ONE), dump(store, TWO), dump(store, THREE)]
    made[0].open.set()
    assert [ends(store, task) for task in tasks] == [[Status.OK]] * 3
    assert made[0].calls == [("dump", [ONE]), ("dump", [TWO, THREE])]
    assert store.stats()["OneByOne"]["calls_total"] == 2


def test_what_one_transfer_raises_is_not_the_end_of_another(opened):
    store = opened("OneByOne", OneByOne=OneByOne)
    made[0].errors[TWO] = OSError
    tasks = [hold(store, ONE), dump(store, TWO), dump(store, THREE)]
    made[0].open.set()
    assert [ends(store, task) for task in tasks] == [[Status.OK], [Status.IO], [Status.OK]]


def test_a_full_queue_is_busy_until_there_is_room(opened):
    class Small(Memory):
        max_shards = 1

    store = opened("Small", SHORT, Small=Small)
    task = hold(store, ONE, TWO)
    with pytest.raises(ucm.BusyError):
        dump(store, THREE)
    made[0].open.set()
    assert ends(store, task) == [Status.OK] * 2
    assert ends(store, dump(store, THREE)) == [Status.OK]


def test_what_has_not_started_by_its_deadline_never_does(opened):
    store = opened("OneByOne", SHORT, OneByOne=OneByOne)
    first, second = hold(store, ONE), dump(store, TWO)
    assert ends(store, second) == [Status.TIMEOUT]
    assert not store.check(first)
    made[0].open.set()
    assert ends(store, first) == [Status.OK]
    assert TWO not in made[0].blocks


def test_cancel_ends_what_has_not_started(opened):
    store = opened("OneByOne", OneByOne=OneByOne)
    first, second = hold(store, ONE), dump(store, TWO)
    store.cancel(second)
    store.cancel(first)
    assert ends(store, second) == [Status.CANCELLED]
    made[0].open.set()
    assert ends(store, first) == [Status.OK]
    store.cancel(first)


def test_lookups_do_not_queue_behind_transfers(opened):
    store = opened("OneByOne", OneByOne=OneByOne)
    task = hold(store, ONE)
    assert store.lookup([ONE]) == [False]
    made[0].open.set()
    assert ends(store, task) == [Status.OK]


def test_a_lookup_that_hangs_ends_by_its_deadline(opened):
    class Hangs(Memory):
        def lookup(self, block_ids):
            self._enter("lookup", block_ids)
            return super().lookup(block_ids)

    store = opened("Hangs", SHORT, Hangs=Hangs)
    made[0].open.clear()
    with pytest.raises(ucm.StoreTimeout):
        store.lookup([ONE])
    made[0].open.set()
    assert store.lookup([ONE]) == [False]


def test_remove_comes_after_the_dumps_that_came_before_it(opened):
    store = opened("OneByOne", OneByOne=OneByOne)
    hold(store, ONE)
    task = dump(store, TWO)
    removal = threading.Thread(target=store.remove, args=[[ONE, TWO]])
    removal.start()
    made[0].open.set()
    removal.join()
    assert ends(store, task) == [Status.OK]
    assert store.lookup([ONE, TWO]) == [False, False]


def test_a_remove_behind_a_dump_that_hangs_ends_by_its_deadline(opened):
    store = opened("Compress|OneByOne", SHORT, OneByOne=OneByOne)
    task = hold(store, ONE)
    with pytest.raises(ucm.StoreTimeout):
        store.remove([ONE])
    made[0].open.set()
    assert ends(store, task) == [Status.OK]
    store.remove([ONE])
    assert store.lookup([ONE]) == [False]


def test_a_close_that_has_to_wait_may_be_called_again(opened):
    store = opened("Cache|Memory", CACHE)
    task = hold(store, ONE)
    with pytest.raises(ucm.StoreTimeout, match="close again"):
        store.close(20)
    with pytest.raises(ucm.ClosedError):
        store.lookup([ONE])
    assert made[0].calls == [("dump", [ONE])]
    made[0].open.set()
    store.close()
    assert ends(store, task) == [Status.OK]
    assert made[0].calls == [("dump", [ONE]), ("close", [])]


def test_a_close_that_had_to_wait_reports_all_that_was_stored(opened):
    store = opened("Memory")
    store.wait(dump(store, ONE))
    hold(store, TWO)
    with pytest.raises(ucm.StoreTimeout):
        store.close(20)
    made[0].open.set()
    assert store.close().stored == 2


def test_a_close_method_may_report_what_is_lost_and_unfinished(opened):
    class Reports(Memory):
        def close(self):
            return ucm.Report(0, 2, 0, 3)

    store = opened("Reports", Reports=Reports)
    store.wait(dump(store, ONE))
    assert store.close() == ucm.Report(1, 2, 0, 3)


def test_a_close_method_that_hangs_is_called_once(opened):
    class Slow(Memory):
        def close(self):
            self._enter("close", [])

    store = opened("Slow", Slow=Slow)
    made[0].open.clear()
    for _ in range(2):
        with pytest.raises(ucm.StoreTimeout):
            store.close(20)
    made[0].open.set()
    store.close()
    assert made[0].calls == [("close", [])]


def test_a_close_method_that_fails_is_logged_and_the_store_is_gone(opened, caplog):
    class Bad(Memory):
        def close(self):
            raise OSError(errno.EIO, "the last page is lost")

    store = opened("Bad", Bad=Bad)
    store.close()
    assert "the last page is lost" in caplog.text


def test_the_threads_of_a_closed_store_are_gone(opened):
    before = set(threading.enumerate())  # those of another store may end just now
    store = opened("Memory")
    mine = {t for t in threading.enumerate() if t.name.startswith("ucm-Memory")} - before
    assert len(mine) == Memory.threads + 1
    store.close()
    for thread in mine:
        thread.join(60)
        assert not thread.is_alive()


class Later(Memory):
    """Stores what it took when it is drained; the gate holds the drain."""

    capabilities = Memory.capabilities | {"write_back"}

    def drain(self):
        self._enter("drain", [])
        lost = int(ONE in self.blocks)
        return ucm.Report(stored=len(self.blocks) - lost, lost=lost, pending=0, unfinished=2)


def test_a_drain_of_the_stores_own_is_reported(opened):
    store = opened("Later", Later=Later)
    store.wait(dump(store, TWO))
    assert store.drain() == ucm.Report(1, 0, 0, 2)
    store.wait(dump(store, ONE))
    assert store.drain() == ucm.Report(1, 1, 0, 2)


def test_a_drain_that_takes_longer_is_waited_for_again(opened):
    store = opened("Later", Later=Later)
    made[0].open.clear()
    for _ in range(2):
        with pytest.raises(ucm.StoreTimeout):
            store.drain(20)
    made[0].open.set()
    assert store.drain().unfinished == 2
    assert made[0].calls == [("drain", [])]


def test_a_store_that_writes_at_once_may_report_what_is_unfinished(opened):
    class Counts(Memory):
        def drain(self):
            return ucm.Report(stored=7, lost=0, pending=0, unfinished=5)

    store = opened("Counts", Counts=Counts)
    store.wait(dump(store, ONE, TWO))
    assert store.drain() == ucm.Report(2, 0, 0, 5)


@pytest.mark.parametrize("limit", ["threads", "max_shards", "max_bytes"])
def test_a_limit_below_one_is_refused(opened, limit):
    with pytest.raises(ucm.ConfigError, match=f"{limit} is 0"):
        opened("Odd", Odd=type("Odd", (Memory,), {limit: 0}))


def test_a_dump_may_be_declined(opened):
    store = opened("Memory")
    made[0].errors[ONE] = ucm.Dumped.DECLINED
    task = dump(store, ONE, TWO)
    store.wait(task)
    assert [r.declined for r in task.results] == [True, False]
    assert [r.published for r in task.results] == [False, True]
    assert store.drain().stored == 1


def test_whether_a_block_of_more_shards_is_published_is_looked_up(opened):
    class Never(Memory):
        def lookup(self, block_ids):
            return [False] * len(block_ids)

    for name, published in {"Memory": True, "Never": False}.items():
        store = opened(name, {"shard_size": BLOCK // 2}, Never=Never)
        task = store.dump([ONE] * 2, [0, 1], [[ONE * 2]] * 2)
        store.wait(task)
        assert [r.published for r in task.results] == [published] * 2


def test_an_open_that_fails_closes_what_was_open_below(opened):
    class Refuses(ucm.LayerBase):
        def __init__(self, layout, options, lower):
            raise ucm.UnavailableError("no licence")

    with pytest.raises(ucm.UnavailableError, match="no licence"):
        opened("Refuses|Memory", Refuses=Refuses)
    assert made[0].calls == [("close", [])]


def test_an_unknown_capability_is_refused(opened):
    class Brags(Memory):
        capabilities = frozenset({"keeps", "flies"})

    with pytest.raises(ucm.ConfigError, match="no capability 'flies'"):
        opened("Brags", Brags=Brags)
