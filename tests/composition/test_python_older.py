"""Classes of the older interface in a pipeline of today's."""

import ctypes

import pytest
from seed_store import Memory
from ucm._abi import ffi, lib

import ucm

ID = bytes(range(16))
SIZES = {"block_size": 128, "tensor_size": 64}
CACHE = {"cache_buffer_capacity_gb": 0.01}


@pytest.mark.parametrize("pipeline", ["Seed", "Cache|Seed"])
def test_an_older_class_may_stand_at_the_bottom(registered, pipeline):
    registered(Seed=Memory64)
    options = CACHE if "Cache" in pipeline else {}
    with ucm.open_pipeline(pipeline, **SIZES, **options, colour="blue") as store:
        store.wait(store.dump([ID], [0], [[b"a" * 64, b"b" * 64]]))
        store.drain()
        assert store.lookup([ID, bytes(16)]) == [True, False]
        a, b = bytearray(64), bytearray(64)
        store.wait(store.load([ID], [0], [[a, b]]))
        assert (a, b) == (b"a" * 64, b"b" * 64)
    assert Memory64.configs[-1]["colour"] == "blue"
    assert sum(Memory64.configs[-1]["tensor_size_list"]) == 128


class Memory64(Memory):
    """Takes segments of the sizes that it is told."""

    configs = []

    def __init__(self, config):
        super().__init__(config)
        self.configs.append(config)

    def dump_data(self, block_ids, shard_index, src_addr, prerequisite_handle=0):
        sizes = self.config["tensor_size_list"]
        for block_id, index, row in zip(block_ids, shard_index, src_addr, strict=True):
            pieces = zip(row, sizes, strict=True)
            self.shards[block_id, index] = [ctypes.string_at(at, size) for at, size in pieces]

    def load_data(self, block_ids, shard_index, dst_addr):
        for block_id, index, row in zip(block_ids, shard_index, dst_addr, strict=True):
            for address, data in zip(row, self.shards[block_id, index], strict=True):
                ctypes.memmove(address, data, len(data))


class Top(Memory64):
    """Asks the store below itself, by its address."""

    needs_lower = True

    def lookup(self, block_ids):
        error = ffi.new("ucm_error *", {"struct_size": ffi.sizeof("ucm_error")})
        below = ffi.cast("ucm_store *", self.config["store_backend"])
        ids, tiers = ffi.new("uint8_t[]", b"".join(block_ids)), ffi.new("uint8_t[]", len(block_ids))
        hits = ffi.new("size_t *")
        args = (below, lib.UCM_LOOKUP_ALL, len(block_ids), ids, ffi.NULL, 0, hits, tiers, error)
        assert lib.ucmh_lookup(*args) == ucm.Status.OK
        return [tier > 0 for tier in tiers]


def test_an_older_class_on_top_finds_the_native_store_below(registered, tmp_path):
    registered(Top=Top)
    posix = {"storage_backends": str(tmp_path)}
    with ucm.open_pipeline("Posix", **SIZES, **posix) as store:
        store.wait(store.dump([ID], [0], [[b"a" * 64, b"b" * 64]]))
    with ucm.open_pipeline("Top|Posix", **SIZES, **posix) as store:
        assert store.lookup([ID, bytes(16)]) == [True, False]


def test_an_older_class_fails_shards_that_are_cut(registered):
    registered(Seed=Memory64)
    memory = (ctypes.c_char * 64)()
    with ucm.open_pipeline("Seed", **SIZES) as store:
        address = ctypes.addressof(memory)
        task = store.dump_data([ID], [0], [[address, address]], [100])
        with pytest.raises(ucm.InvalidError):
            store.wait(task)
