"""What numpy and torch bring: good arrays work, wrong ones are told why."""

import array

import numpy as np
import pytest

import ucm

torch = pytest.importorskip("torch", reason="these tests pass torch tensors")

DTYPES = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "bytes": torch.int8,
}


@pytest.fixture
def open_posix(tmp_path):
    stores = []

    def open_one(**options):
        sizes = {"block_size": 512, "shard_size": 256, "tensor_size": 128}
        store = ucm.open_pipeline("Posix", storage_backends=str(tmp_path), **sizes, **options)
        stores.append(store)
        return store

    yield open_one
    for store in stores:
        store.close()


@pytest.fixture
def store(open_posix):
    return open_posix()


def random_rows(dtype):
    bits = torch.randint(0, 256, (4, 128), dtype=torch.uint8).view(dtype)
    return [[bits[0], bits[1]], [bits[2], bits[3]]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_torch_tensors_go_in_and_come_out(open_posix, dtype):
    store = open_posix(dtype=dtype)
    rows = random_rows(DTYPES[dtype])
    store.wait(store.dump([b"k" * 16] * 2, [0, 1], rows))
    loaded = [[torch.zeros_like(tensor) for tensor in row] for row in rows]
    store.wait(store.load([b"k" * 16] * 2, torch.tensor([0, 1]), loaded))
    for tensors, expected in zip(loaded, rows, strict=True):
        for tensor, other in zip(tensors, expected, strict=True):
            assert torch.equal(tensor.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize(
    "indexes",
    [
        [0, 1],
        (0, 1),
        range(2),
        array.array("q", [0, 1]),
        np.array([0, 1]),
        np.array([0, 1], np.uint8),
        np.array([0, 9, 1, 9], np.uint32)[::2],
        torch.tensor([0, 1], dtype=torch.int32),
    ],
    ids=lambda indexes: f"{type(indexes).__name__} {getattr(indexes, 'dtype', '')}",
)
def test_indexes_are_any_sequence_of_integers(store, indexes):
    rows = np.arange(512, dtype=np.uint16).view(np.uint8).reshape(4, 256)[:, :128].copy()
    task = store.dump([bytes(16)] * 2, indexes, [[rows[0], rows[1]], [rows[2], rows[3]]])
    store.wait(task)
    out = np.zeros((2, 256), np.uint8)
    store.wait(store.load([bytes(16)] * 2, [0, 1], [[r[:128], r[128:]] for r in out]))
    assert out.tobytes() == rows.tobytes()


def test_ids_and_addresses_may_be_arrays(store):
    ids = np.random.default_rng(1).integers(0, 256, (6, 16), dtype=np.uint8)
    memory = np.random.default_rng(2).integers(0, 256, (12, 2, 128), dtype=np.uint8)
    each = np.repeat(ids, 2, axis=0)
    addresses = memory.ctypes.data + 128 * np.arange(24, dtype=np.uint64).reshape(12, 2)
    indexes = np.tile(np.arange(2), 6)
    store.wait(store.dump_data(each, indexes, addresses, np.full(12, 256)))
    out = np.zeros_like(memory)
    rows = (out.ctypes.data + 128 * np.arange(24).reshape(12, 2)).tolist()
    store.wait(store.load_data([row.tobytes() for row in each], indexes.tolist(), rows))
    assert (out == memory).all()
    assert store.lookup(ids) == [True] * 6
    assert store.lookup_on_prefix(ids) == store.lookup_on_reverse(ids) == 5


U8 = np.zeros((2, 16), np.uint8)
BAD_IDS = {
    "a vector": U8[0],
    "rows of 15": np.zeros((2, 15), np.uint8),
    "signed": U8.view(np.int8),
    "64-bit": np.zeros((2, 2), np.uint64),
    "three axes": U8.reshape(1, 2, 16),
    "every other column": np.zeros((2, 32), np.uint8)[:, ::2],
}


@pytest.mark.parametrize("ids", BAD_IDS.values(), ids=BAD_IDS.keys())
def test_wrong_arrays_of_ids_are_refused(store, ids):
    with pytest.raises(ucm.InvalidError, match="block_ids: "):
        store.lookup(ids)


ONE = b"1" * 16
BAD_LISTS = {
    "short": ([ONE, b"2" * 15], "an id is 16 bytes, but .* has 15"),
    "long": ([b"2" * 17, ONE], "an id is 16 bytes, but .* has 17"),
    "one more, one less": ([bytes(17), bytes(15)], "an id is 16 bytes, but .* has 17"),
    "both in one": ([b"", b"2" * 32], "an id is 16 bytes, but b'' has 0"),
    "a short bytearray": ([ONE, bytearray(15)], "an id is 16 bytes, but .* has 15"),
    "text": ([ONE, "2" * 16], "an id is 16 bytes, not str"),
    "nothing": ([None], "an id is 16 bytes, not NoneType"),
    "a tuple, short": ((ONE, b"2"), "an id is 16 bytes, but b'2' has 1"),
    "the last of many": ([ONE] * 999 + [ONE[1:]], "an id is 16 bytes, but .* has 15"),
}


@pytest.mark.parametrize(("ids", "why"), BAD_LISTS.values(), ids=BAD_LISTS.keys())
def test_a_wrong_id_in_a_list_is_refused(store, ids, why):
    for ask in (store.lookup, store.lookup_on_prefix, store.remove):
        with pytest.raises(ucm.InvalidError, match=f"block_ids: {why}"):
            ask(ids)


def test_ids_of_other_types_are_joined(store):
    store.wait(store.dump([ONE] * 2, [0, 1], [[np.zeros(128, np.uint8)] * 2] * 2))

    class Id(bytes):
        pass

    for same in (bytearray(ONE), memoryview(ONE), Id(ONE)):
        assert store.lookup([ONE, same, bytes(16)]) == [True, True, False]
    assert store.lookup((bytes(16), ONE)) == [False, True]
    assert store.lookup([]) == []


def test_each_answer_of_a_lookup_is_a_bool(store):
    store.wait(store.dump([ONE] * 2, [0, 1], [[np.zeros(128, np.uint8)] * 2] * 2))
    for there in ([], [True], [False], [True, False], [False, True], [True, False, True, False]):
        answers = store.lookup([ONE if here else bytes(16) for here in there])
        assert answers == there
        assert {type(answer) for answer in answers} <= {bool}


BAD_INDEXES = {
    "fractions": np.array([0.0, 1.0]),
    "past the end": np.array([0, 2]),
    "below 0": np.array([0, -1]),
    "too many": np.array([0, 1, 0]),
    "bool": np.array([False, True]),
    "far too big": np.array([0, 1 << 40]),
}


@pytest.mark.parametrize("indexes", BAD_INDEXES.values(), ids=BAD_INDEXES.keys())
def test_wrong_arrays_of_indexes_are_refused(store, indexes):
    rows = [[np.zeros(128, np.uint8)] * 2] * 2
    with pytest.raises(ucm.InvalidError, match="shard_index: "):
        store.dump([bytes(16)] * 2, indexes, rows)
    assert store.lookup([bytes(16)]) == [False]


BAD_ADDRESSES = {
    "signed": np.zeros((1, 2), np.int64),
    "32-bit": np.zeros((1, 2), np.uint32),
    "a vector": np.zeros(2, np.uint64),
    "a row too many": np.zeros((2, 2), np.uint64),
    "a column too few": np.zeros((1, 1), np.uint64),
    "not contiguous": np.zeros((1, 4), np.uint64)[:, ::2],
}


@pytest.mark.parametrize("addresses", BAD_ADDRESSES.values(), ids=BAD_ADDRESSES.keys())
def test_wrong_arrays_of_addresses_are_refused(store, addresses):
    with pytest.raises(ucm.InvalidError, match="addresses: "):
        store.dump_data([bytes(16)], [0], addresses)


@pytest.mark.parametrize("depths", [[1, 2], np.array([1, 2], np.uint32), [-1], ["a"], 3], ids=str)
def test_wrong_depths_are_refused(store, depths):
    row = [[np.zeros(128, np.uint8)] * 2]
    with pytest.raises(ucm.InvalidError, match="depths: "):
        store.dump([bytes(16)], [0], row, depths=depths)


BAD_TENSORS = {
    "strided tensor": torch.zeros(256, dtype=torch.uint8)[::2],
    "strided array": np.zeros(256, np.uint8)[::2],
    "transposed tensor": torch.zeros(8, 16, dtype=torch.uint8).T,
    "short tensor": torch.zeros(127, dtype=torch.uint8),
    "long array": np.zeros(129, np.uint8),
    "tensor elsewhere": torch.zeros(128, dtype=torch.uint8, device="meta"),
    "list": [0] * 128,
    "text": "x" * 128,
}


@pytest.mark.parametrize("tensor", BAD_TENSORS.values(), ids=BAD_TENSORS.keys())
def test_wrong_tensors_are_refused(store, tensor):
    good = np.zeros(128, np.uint8)
    for transfer in (store.dump, store.load):
        with pytest.raises(ucm.InvalidError, match="tensors: "):
            transfer([bytes(16)], [0], [[good, tensor]])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(64, dtype=torch.float16),
        torch.zeros(32, dtype=torch.float32),
        torch.zeros(128, dtype=torch.float8_e5m2),
        np.zeros(64, np.float16),
        np.zeros(32, np.float32),
    ],
    ids=str,
)
def test_a_tensor_of_another_dtype_than_the_pipeline_is_refused(open_posix, tensor):
    store = open_posix(dtype="bf16")
    with pytest.raises(ucm.InvalidError, match="but the pipeline was opened for bf16"):
        store.dump([bytes(16)], [0], [[tensor, tensor]])


def test_read_only_memory_can_be_dumped_but_not_loaded_into(store):
    frozen = np.ones(128, np.uint8)
    frozen.flags.writeable = False
    store.wait(store.dump([bytes(16)], [0], [[frozen, frozen]]))
    with pytest.raises(ucm.InvalidError, match="read-only"):
        store.load([bytes(16)], [0], [[frozen, frozen]])
