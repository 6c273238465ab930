"""What Duet promises beyond the contract, which `pytest --pyargs ucm.conformance` checks."""

import threading

import numpy as np
import pytest

import ucm

BYTES = 1 << 18


def opened(**options):
    return ucm.open_pipeline("Duet", block_size=BYTES, tensor_size=BYTES, **options)


def ids(n):
    return [bytes([i]) * 16 for i in range(n)]


def dump(store, names):
    blocks = [np.full(BYTES, name[0], np.uint8) for name in names]
    store.wait(store.dump(names, [0] * len(names), [[block] for block in blocks]))


def test_the_oldest_blocks_make_way():
    with opened(duet_capacity_mb=1) as store:
        dump(store, ids(6))
        assert store.lookup(ids(6)) == [False, False, True, True, True, True]


def test_a_block_that_can_never_fit_is_refused_at_open():
    with pytest.raises(ucm.ConfigError, match="duet_capacity_mb"):
        ucm.open_pipeline("Duet", block_size=2 << 20, duet_capacity_mb=1)


def test_loads_from_many_threads_get_their_own_bytes():
    with opened() as store:
        dump(store, ids(8))
        wrong = []

        def load(name):
            out = np.zeros(BYTES, np.uint8)
            store.wait(store.load([name], [0], [[out]]))
            wrong.extend(out[out != name[0]])

        threads = [threading.Thread(target=load, args=[name]) for name in ids(8) * 4]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
