"""What Notes promises beyond the contract, which `pytest --pyargs ucm.conformance` checks."""

import pytest

import ucm

BYTES = 1 << 18


def ids(n):
    return [bytes([i]) * 16 for i in range(n)]


def test_the_oldest_blocks_make_way():
    with ucm.open_pipeline("Notes", block_size=BYTES, notes_mb=1) as store:
        block = bytes(BYTES)
        for name in ids(6):
            store.wait(store.dump([name], [0], [[block]]))
        assert store.lookup(ids(6)) == [False, False, True, True, True, True]


def test_a_block_that_can_never_fit_is_refused_at_open():
    with pytest.raises(ucm.ConfigError, match="notes_mb"):
        ucm.open_pipeline("Notes", block_size=2 << 20, notes_mb=1)
