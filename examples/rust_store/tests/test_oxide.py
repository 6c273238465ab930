"""What Oxide promises beyond the contract, which `pytest --pyargs ucm.conformance` checks."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

import ucm

BYTES = 1 << 18


def opened(**options):
    return ucm.open_pipeline("Oxide", block_size=BYTES, tensor_size=BYTES, **options)


def ids(n):
    return [bytes([i]) * 16 for i in range(n)]


def dump(store, names):
    blocks = [np.full(BYTES, name[0], np.uint8) for name in names]
    store.wait(store.dump(names, [0] * len(names), [[block] for block in blocks]))


def test_members_lie_where_c_has_them(tmp_path):
    source = Path(__file__).parent.parent / "src" / "lib.rs"
    command = ["rustc", "--edition", "2021", "--test", "-o", tmp_path / "test", source]
    subprocess.run(command, check=True)
    subprocess.run([tmp_path / "test"], check=True)


def test_the_least_recently_used_blocks_make_way():
    with opened(oxide_capacity_mb=1) as store:
        names = ids(5)
        dump(store, names[:4])
        out = np.zeros(BYTES, np.uint8)
        store.wait(store.load(names[:1], [0], [[out]]))
        dump(store, names[4:])
        assert store.lookup(names) == [True, False, True, True, True]
        assert store.stats()["Oxide"]["evicted_blocks_total"] == 1
        assert store.stats()["Oxide"]["bytes"] <= 1 << 20


def test_a_block_that_can_never_fit_is_refused_at_open():
    with pytest.raises(ucm.StoreError, match="oxide_capacity_mb is 1, less than one block"):
        ucm.open_pipeline("Oxide", block_size=2 << 20, oxide_capacity_mb=1)


def test_stores_of_one_process_share_nothing():
    with opened() as one, opened() as other:
        dump(one, ids(1))
        assert one.lookup(ids(1)) == [True]
        assert other.lookup(ids(1)) == [False]
