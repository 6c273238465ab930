"""``Store.replace``: another stack takes over while calls come, and nothing is lost or doubled."""

import os
import shutil
import threading
import time

import numpy as np
import pytest
from support import ROOT, compile_library

import ucm
from ucm.registry import registry

BYTES = 4096
SIZES = {"block_size": BYTES, "tensor_size": BYTES}


def named(i):
    return i.to_bytes(16, "little")


def filled(i):
    return np.full(BYTES, i % 251, np.uint8)


def dump(store, numbers):
    names = [named(i) for i in numbers]
    return store.dump(names, [0] * len(names), [[filled(i)] for i in numbers])


def loaded(store, i):
    out = np.zeros(BYTES, np.uint8)
    store.wait(store.load([named(i)], [0], [[out]]))
    return out


def test_other_options_are_in_force_afterwards(tmp_path):
    with ucm.open_pipeline("Posix", storage_backends=str(tmp_path), **SIZES) as store:
        store.wait(dump(store, range(4)))
        report = store.replace(posix_capacity_gb=1, timeout_ms=5000)
        assert report == ucm.Report(4, 0, 0, 0)
        assert store.stats()["Posix"]["quota_limit_bytes"] == 1 << 30
        assert (loaded(store, 3) == filled(3)).all()


def test_other_layers_stand_afterwards(tmp_path):
    with ucm.open_pipeline("Posix", storage_backends=str(tmp_path), **SIZES) as store:
        store.wait(dump(store, range(4)))
        store.replace("Cache|Posix")
        assert store.layers == ("Cache", "Posix")
        assert store.pipeline == "Cache|Posix"
        assert store.lookup([named(i) for i in range(5)]) == [True] * 4 + [False]
        store.replace("Fault|Posix")
        assert (loaded(store, 2) == filled(2)).all()


def test_what_a_shared_segment_keeps_stays_hot(tmp_path):
    options = {"storage_backends": str(tmp_path), "unique_id": f"replace-{os.getpid()}"}
    options["cache_buffer_capacity_gb"] = 0.1
    with ucm.open_pipeline("Cache|Posix", **options, **SIZES) as store:
        store.wait(dump(store, range(8)))
        store.drain()
        store.replace(posix_data_trans_concurrency=2)
        assert store.tiers([named(i) for i in range(8)]) == [1] * 8
        assert (loaded(store, 5) == filled(5)).all()
        assert store.stats()["Posix"]["load_shards_total"] == 0


def test_what_was_accepted_is_stored_by_the_stack_that_accepted_it(tmp_path):
    with ucm.open_pipeline("Cache|Posix", storage_backends=str(tmp_path), **SIZES) as store:
        tasks = [dump(store, range(i, i + 16)) for i in range(0, 320, 16)]
        report = store.replace("Posix")
        assert (report.stored, report.lost) == (320, 0)
        for task in tasks:
            store.wait(task)
        assert store.lookup([named(i) for i in range(320)]) == [True] * 320


def test_no_task_is_lost_or_doubled_under_load(tmp_path):
    stop, done, wrong = threading.Event(), [], []

    def work(first):
        i = first
        while not stop.is_set():
            task = dump(store, [i])
            store.wait(task)
            if [r.status for r in task.results] != [ucm.Status.OK]:
                wrong.append(task)
            done.append(i)
            if i % 3 == 0 and not (loaded(store, i) == filled(i)).all():
                wrong.append(i)
            i += 1
            time.sleep(0.002)  # the disk is to keep up

    options = {"storage_backends": str(tmp_path), "unique_id": f"replace-load-{os.getpid()}"}
    options["cache_buffer_capacity_gb"] = 0.1
    with ucm.open_pipeline("Cache|Posix", **options, **SIZES) as store:
        threads = [threading.Thread(target=work, args=[n << 20]) for n in range(3)]
        for thread in threads:
            thread.start()
        reports = [store.replace(posix_data_trans_concurrency=2 + n % 2) for n in range(6)]
        stop.set()
        for thread in threads:
            thread.join()
        reports.append(store.drain())
        assert not wrong
        assert sum(r.stored for r in reports) == len(done)
        assert sum(r.lost + r.pending + r.unfinished for r in reports[-1:]) == 0
        assert all(store.lookup([named(i) for i in done]))


def test_a_replacement_that_cannot_be_opened_changes_nothing(tmp_path):
    with ucm.open_pipeline("Posix", storage_backends=str(tmp_path), **SIZES) as store:
        store.wait(dump(store, [1]))
        for bad in ({"storage_backends": "/absent"}, {"posix_capacity": 1}, {"block_size": 8192}):
            with pytest.raises(ucm.StoreError):
                store.replace(**bad)
        assert (loaded(store, 1) == filled(1)).all()
        assert store.pipeline == "Posix"


class Held(ucm.StoreBase):
    """Ends no dump before it is told to."""

    go = threading.Event()

    def lookup(self, block_ids):
        return [False] * len(block_ids)

    def dump(self, block_ids, shard_index, shards):
        self.go.wait(60)


def test_an_old_stack_that_needs_longer_goes_on_until_close(tmp_path):
    registry().register("Held", Held)
    store = ucm.open_pipeline("Held", **SIZES)
    task = dump(store, [1])
    with pytest.raises(ucm.StoreTimeout, match="the new stack serves"):
        store.replace("Posix", storage_backends=str(tmp_path), wait_ms=50)
    store.wait(dump(store, [2]))
    assert not task.done()
    store.cancel(task)
    Held.go.set()
    store.close()
    assert task.done()


def test_a_stack_whose_address_was_given_out_is_not_replaced(tmp_path):
    with ucm.open_pipeline("Posix", storage_backends=str(tmp_path), **SIZES) as store:
        store.native_handle()
        with pytest.raises(ucm.UnsupportedError, match="native_handle"):
            store.replace("Posix")


def test_a_closed_store_is_not_replaced():
    store = ucm.open_pipeline("Empty", **SIZES)
    store.close()
    with pytest.raises(ucm.ClosedError):
        store.replace("Fake")


@pytest.fixture
def build(tmp_path):
    """Make a library of a version, under a name."""

    def build(name, version):
        source = (ROOT / "examples" / "c_store" / "heap.c").read_text()
        source = source.replace('.name = "Heap"', f'.name = "{name}"')
        file = tmp_path / f"{name}-{version}.c"
        file.write_text(source.replace('.version = "0.1.0"', f'.version = "{version}"'))
        return compile_library(file, file.with_suffix(".so"))

    return build


def test_a_library_file_that_was_replaced_is_opened_anew(tmp_path, build):
    library = tmp_path / "twice.so"
    shutil.copy(build("Twice", "1.0.0"), library)
    registry().register("Twice", library)
    with ucm.open_pipeline("Twice", **SIZES) as store:
        os.replace(build("Twice", "2.0.0"), library)
        store.replace()
        store.wait(dump(store, [1]))
        assert (loaded(store, 1) == filled(1)).all()
        versions = {info.version for info in ucm.plugins() if info.name == "Twice"}
        assert versions == {"2.0.0"}


def test_a_library_that_was_written_over_is_refused(tmp_path, build):
    library = tmp_path / "over.so"
    shutil.copy(build("Over", "1.0.0"), library)
    registry().register("Over", library)
    with ucm.open_pipeline("Over", **SIZES) as store:
        os.utime(library, (1, 1))
        with pytest.raises(ucm.PluginError, match="written over"):
            store.replace()
        store.wait(dump(store, [1]))
