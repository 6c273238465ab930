"""What Heap promises beyond the contract, which `pytest --pyargs ucm.conformance` checks."""

import pytest

import ucm

BYTES = 1 << 18


def ids(n):
    return [bytes([i]) * 16 for i in range(n)]


def test_the_least_recently_used_blocks_make_way():
    with ucm.open_pipeline("Heap", block_size=BYTES, heap_capacity_mb=1) as store:
        block = bytes(BYTES)
        for name in ids(4):
            store.wait(store.dump([name], [0], [[block]]))
        store.wait(store.load(ids(1), [0], [[bytearray(BYTES)]]))
        store.wait(store.dump(ids(5)[4:], [0], [[block]]))
        assert store.lookup(ids(5)) == [True, False, True, True, True]
        assert store.stats()["Heap"]["evicted_blocks_total"] == 1


def test_a_block_that_can_never_fit_is_refused_at_open():
    with pytest.raises(ucm.StoreError, match="heap_capacity_mb is 1"):
        ucm.open_pipeline("Heap", block_size=2 << 20, heap_capacity_mb=1)
