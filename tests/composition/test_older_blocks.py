"""The oldest interface: text ids, create, ranges of bytes, commit; over any store."""

import ctypes
import gc
import itertools
import weakref

import numpy as np
import pytest
from seed_store import Memory

import ucm
from ucm.store.blocks import BlockStore, Code, block_id
from ucm.store.factory import UcmConnectorFactory

BLOCK, UNIT = 8192, 1024
rng = np.random.default_rng(5)


@pytest.fixture
def config(tmp_path):
    return {
        "storage_backends": str(tmp_path),
        "kv_block_size": BLOCK,
        "io_size": UNIT,
        "role": "worker",
        "device": 0,
        "cache_buffer_capacity_gb": 0.01,
    }


@pytest.fixture
def create():
    stores = []

    def open_one(config, name="UcmNfsStore"):
        stores.append(UcmConnectorFactory.create_connector(name, config))
        return stores[-1]

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(create, config):
    return create(config)


@pytest.fixture
def gate():
    gate = ctypes.c_int(1)
    yield gate
    gate.value = 1


@pytest.fixture
def gated(registered, gate_library, gate, create):
    registered(gate_library)
    config = {
        "store_pipeline": "Gate",
        "gate_address": ctypes.addressof(gate),
        "kv_block_size": 64,
        "io_size": 32,
        "staging_gb": 64 / 2**30,
        "timeout_ms": 20,
    }
    return create(config)


def data(size=BLOCK):
    return rng.integers(0, 256, size, np.uint8)


def put(store, name, block):
    assert store.create([name]) == [0]
    assert store.wait(store.dump([name], [0], [block])) == 0
    store.commit([name])


def get(store, name, offset=0, size=BLOCK):
    memory = np.zeros(size, np.uint8)
    assert store.wait(store.load([name], [offset], [memory])) == 0
    return memory


def test_a_block_is_seen_when_it_is_committed_and_not_before(store):
    block = data()
    assert store.create(["a", "b"]) == [0, 0]
    half = BLOCK // 2
    task = store.dump(["a", "a"], [half, 0], [block[half:], block[:half]])
    assert (store.wait(task), store.check(task)) == (0, (0, True))
    assert store.lookup(["a", "b"]) == [False, False]
    assert store.wait(store.load(["a"], [0], [np.zeros(BLOCK, np.uint8)])) == Code.NOT_FOUND
    store.commit(["a"])
    assert store.lookup(["a", "b"]) == [True, False]
    store.prefetch(["a", "b"])
    assert (get(store, "a") == block).all()


def test_a_block_that_failed_is_discarded(store):
    assert store.create(["a"]) == [0]
    store.wait(store.dump(["a"], [0], [data()]))
    store.commit(["a", "never created"], False)
    assert store.lookup(["a"]) == [False]
    put(store, "a", data())
    assert store.lookup(["a"]) == [True]


def test_a_block_is_created_once(store):
    assert store.create(["a", "b", "a"]) == [0, 0, Code.DUPLICATE]
    assert store.create(["a"]) == [Code.DUPLICATE]
    store.dump(["a"], [0], [data()])
    store.commit(["a"])
    assert store.create(["a"]) == [Code.DUPLICATE]


@pytest.mark.parametrize("io_size", [UNIT, BLOCK, 1000, 0])
def test_any_range_of_bytes_can_be_loaded(create, config, io_size):
    store = create({**config, "io_size": io_size})
    block = data()
    put(store, "a", block)
    starts = rng.integers(0, BLOCK, 50)
    ends = [int(rng.integers(start, BLOCK + 1)) for start in starts]
    ranges = [*zip(starts.tolist(), ends, strict=True), (0, 0), (BLOCK, BLOCK), (UNIT, 3 * UNIT)]
    memory = [np.zeros(end - start, np.uint8) for start, end in ranges]
    task = store.load(["a"] * len(ranges), [start for start, _ in ranges], memory)
    assert store.wait(task) == 0
    for (start, end), got in zip(ranges, memory, strict=True):
        assert (got == block[start:end]).all()


def test_dumps_of_any_ranges_make_a_block(store):
    block = data()
    cuts = [0, *sorted(rng.choice(np.arange(1, BLOCK), 40, replace=False).tolist()), BLOCK]
    ranges = list(itertools.pairwise(cuts))
    rng.shuffle(ranges)
    assert store.create(["a"]) == [0]
    for start, end in ranges[:20]:
        assert store.wait(store.dump(["a"], [int(start)], [block[start:end]])) == 0
    rest = [(int(start), block[start:end]) for start, end in ranges[20:]]
    addresses = [part.ctypes.data for _, part in rest]
    sizes = [part.nbytes for _, part in rest]
    task = store.dump_data(["a"] * len(rest), [start for start, _ in rest], addresses, sizes)
    assert store.wait(task) == 0
    store.commit(["a"])
    memory = np.zeros(BLOCK, np.uint8)
    assert store.wait(store.fetch_data(["a"], [0], [memory.ctypes.data], [BLOCK])) == 0
    assert (memory == block).all()


def test_a_block_with_holes_is_not_published_and_the_others_are(store):
    assert store.create(["hole", "whole", "empty"]) == [0, 0, 0]
    block = data()
    store.dump(["hole", "hole", "whole"], [0, 5000, 0], [block[:4999], block[5000:], block])
    with pytest.raises(ucm.InvalidError) as raised:
        store.commit(["hole", "whole", "empty", "unknown"])
    message = str(raised.value)
    assert "commit: 3 of 4 blocks are not published" in message
    assert "block hole: 1 bytes were never dumped" in message
    assert "block empty: 8192 bytes were never dumped" in message
    assert "block unknown: it was not created here" in message
    assert store.lookup(["hole", "whole", "empty"]) == [False, True, False]
    assert store.create(["hole"]) == [0]


def test_a_dump_of_a_block_that_was_not_created_is_not_found(store):
    store.create(["a"])
    task = store.dump(["a", "b"], [0, 0], [data(), data()])
    assert store.wait(task) == Code.NOT_FOUND
    assert store.check(task) == (Code.NOT_FOUND, True)
    store.commit(["a"])
    assert store.lookup(["a", "b"]) == [True, False]


def test_the_memory_of_a_dump_is_the_callers_again(store):
    block = data()
    store.create(["a"])
    scratch = block.copy()
    store.dump(["a"], [0], [scratch])
    scratch[:] = 0
    store.commit(["a"])
    assert (get(store, "a") == block).all()


def test_host_memory_is_bounded_and_given_back(create, config, caplog):
    store = create({**config, "staging_gb": 2.5 * BLOCK / 2**30})
    assert store.create(["a", "b", "c"]) == [0, 0, Code.NO_SPACE]
    assert "create: 1 of 3 blocks: the 20480 bytes of host memory" in caplog.text
    assert "set staging_gb higher" in caplog.text
    store.dump(["a"], [0], [data()])
    store.commit(["a"])
    with pytest.raises(ucm.InvalidError):
        store.commit(["b"])
    for _ in range(3):
        assert store.create(["c", "d", "e"]) == [0, 0, Code.NO_SPACE]
        store.commit(["c", "d"], False)
    for _ in range(50):
        get(store, "a", 1, BLOCK - 2)
        store.load(["a"], [1], [np.zeros(7, np.uint8)])
    many = [np.zeros(1, np.uint8) for _ in range(21)]
    put(store, "f", data())
    names = [name for name in "af" for _ in range(8)]
    store.wait(store.load(names, [UNIT * (i % 8) for i in range(16)], many[:16]))
    store.create(["g"])
    with pytest.raises(ucm.NoSpaceError, match="load: 16384 bytes for parts of shards"):
        store.load(names, [UNIT * (i % 8) for i in range(16)], many[:16])


@pytest.mark.parametrize(
    ("offset", "size", "words"),
    [
        ([-1], [5], "bytes -1 to 4 of block a are not inside its 8192 bytes"),
        ([BLOCK], [1], "bytes 8192 to 8193 of block a"),
        ([0], [BLOCK + 1], "bytes 0 to 8193 of block a"),
        ([0, 1], [1], "offset: 2 for 1 block ids"),
        ([0], [1, 1], "size: 2 for 1"),
    ],
)
def test_a_range_outside_a_block_is_refused(store, offset, size, words):
    with pytest.raises(ucm.InvalidError, match=words):
        store.fetch_data(["a"], offset, [1], size)
    with pytest.raises(ucm.InvalidError, match=words):
        store.dump_data(["a"], offset, [1], size)


def test_ids_are_text_and_the_same_for_ever():
    assert block_id("00112233445566778899aabbccddeeff").hex() == "00112233445566778899aabbccddeeff"
    assert block_id("hello").hex() == "46fb7408d4f285228f4af516ea25851b"
    assert block_id("").hex() == "cae66941d9efbd404e4d88758ea67670"
    # Other spellings are other texts, and must not meet the block of the lower-case digits.
    assert block_id("00112233445566778899AABBCCDDEEFF") not in (
        block_id("00112233445566778899aabbccddeeff"),
        bytes.fromhex("00112233445566778899aabbccddeeff"),
    )
    with pytest.raises(ucm.InvalidError, match="an id is text, not bytes"):
        block_id(bytes(16))


def test_a_scheduler_looks_up_what_workers_commit(create, config, store):
    put(store, "a", data())
    store.store.store.drain()
    scheduler = create({**config, "role": "scheduler"})
    assert scheduler.lookup(["a", "b"]) == [True, False]
    for call in (
        lambda: scheduler.create(["a"]),
        lambda: scheduler.load(["a"], [0], [np.zeros(1, np.uint8)]),
    ):
        with pytest.raises(ucm.UnsupportedError, match="role 'scheduler'"):
            call()


def test_a_load_keeps_its_memory_until_it_has_ended(gated, gate):
    gate.value = 0
    memory = np.zeros(50, np.uint8)
    alive = weakref.ref(memory)
    task = gated.load(["a"], [7], [memory])
    assert gated.check(task) == (0, False)
    assert gated.wait(task) == Code.TIMEOUT
    del memory, task
    gc.collect()
    assert alive() is not None
    # The transfer still has the memory for parts of shards, and nothing else is left.
    with pytest.raises(ucm.NoSpaceError):
        gated.load(["a"], [7], [np.zeros(50, np.uint8)])
    gate.value = 1
    gated.store.store.drain()
    while alive() is not None:
        assert gated.wait(gated.load(["a"], [0], [np.zeros(32, np.uint8)])) == 0
        gc.collect()


def test_a_wait_that_timed_out_is_called_again(gated, gate):
    gate.value = 0
    task = gated.load(["a"], [0], [np.zeros(64, np.uint8)])
    assert gated.wait(task) == Code.TIMEOUT
    gate.value = 1
    while not gated.check(task)[1]:
        pass
    assert gated.wait(task) == 0


def test_a_commit_that_times_out_keeps_the_block_until_its_transfer_has_ended(gated, gate):
    assert gated.create(["a"]) == [0]
    gated.dump(["a"], [0], [data(64)])
    gate.value = 0
    with pytest.raises(ucm.StoreTimeout, match="commit: 1 of 1 blocks are not published"):
        gated.commit(["a"])
    gate.value = 1
    while gated.create(["b"]) != [0]:
        pass


def test_any_older_store_can_lie_below():
    below = Memory({})
    store = BlockStore({}, below, 128, 64, 1024)
    block = data(128)
    put(store, "a", block)
    assert sorted(below.shards) == [(block_id("a"), 0), (block_id("a"), 1)]
    assert (get(store, "a", 10, 100) == block[10:110]).all()
    assert store.lookup(["a", "b"]) == [True, False]
    with pytest.raises(KeyError):
        store.load(["b"], [0], [np.zeros(1, np.uint8)])


@pytest.mark.parametrize("name", ["UcmNfsStore", "UcmPCStore", "UcmPcStore"])
def test_every_older_name_is_there(create, config, name):
    store = create(config, name)
    assert store.store.store.layers == ("Cache", "Posix")
    assert store.cc_store() != 0
    put(store, "a", data())


def test_any_pipeline_can_be_named(create, config):
    store = create({**config, "store_pipeline": "Compress|Posix"})
    block = data()
    put(store, "a", block)
    assert (get(store, "a") == block).all()


TRANSLATED = {
    "kv_block_size": (BLOCK, "read as block_size: 8192"),
    "io_size": (UNIT, "read as tensor_size: 1024"),
    "transferIoSize": (UNIT, "read as tensor_size: 1024"),
    "device": (0, "read as device_id: 0"),
    "transferDeviceId": (0, "read as device_id: 0"),
    "use_direct": (False, "read as io_direct: False"),
    "transferIoDirect": (False, "read as io_direct: False"),
    "transferTimeoutMs": (5000, "read as timeout_ms: 5000"),
    "storage_capacity": ("1TiB", "read as posix_capacity_gb: 1024.0"),
    "recycle_enable": (True, "read as posix_gc_enable: True"),
    "recycle_threshold_ratio": (0.7, "read as posix_gc_trigger_threshold_ratio: 0.7"),
    "stream_number": (32, "no effect, because host memory needs no copy streams"),
    "transferStreamNumber": (32, "no effect, because host memory needs no copy streams"),
    "buffer_number": (512, "no effect, because Cache's memory is set by cache_buffer_capacity_gb"),
    "transferBufferNumber": (512, "no effect, because Cache's memory is set by"),
    "local_rank_size": (8, "no effect, because ranks are found by their unique_id"),
    "transferLocalRankSize": (8, "no effect, because ranks are found by their unique_id"),
    "use_scatter_gather": (True, "no effect, because memory may lie anywhere"),
    "shard_data_dir": (True, "no effect, because folders are always named by three hex digits"),
}


@pytest.mark.parametrize("key", TRANSLATED)
def test_an_older_key_is_read_or_reported(create, config, key):
    value, note = TRANSLATED[key]
    for same in ("io_size", "device") if key.startswith("transfer") else ():
        config.pop(same)
    store = create({**config, key: value})
    assert any(n.startswith(f"{key}: {note}") for n in store.store.store.notes)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"block_size": 4096}, r"kv_block_size: 8192 means block_size, but block_size is 4096"),
        ({"transferIoSize": 2048}, r"transferIoSize: 2048 means tensor_size, but io_size is 1024"),
        ({"role": "boss"}, "role: 'boss' is not allowed; it must be one of scheduler, worker"),
        ({"device": -1}, "role: 'worker' moves blocks, but device is -1"),
        ({"device": "gpu"}, r"device: read as device_id: 'gpu' is not a whole number"),
        ({"use_direct": "maybe"}, "use_direct: read as io_direct: 'maybe' is not true or false"),
        ({"io_size": "some"}, "io_size: 'some' is not a number of bytes"),
        ({"storage_capacity": -1}, "storage_capacity: -1 is not allowed"),
        ({"staging_gb": "all"}, "staging_gb: 'all' is not a number"),
        ({"kv_blok_size": 1}, "kv_blok_size: unknown option"),
    ],
)
def test_a_wrong_value_names_the_key_that_was_given(create, config, given, words):
    with pytest.raises(ucm.ConfigError, match=words):
        create({**config, **given})


def test_an_io_size_that_does_not_divide_a_block_is_reported(create, config):
    store = create({**config, "io_size": 1000})
    assert store.store.store.layout.shard_size == BLOCK
    assert any("1000 does not divide a block" in note for note in store.store.store.notes)
