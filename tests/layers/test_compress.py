"""Compress: lossless, never much longer, and readable whatever it was told."""

import array
import random
from pathlib import Path

import pytest
from support import compile_library

from ucm.conformance import kit

SIZE = 1 << 18
TRAILER = 64


def gaussian(dtype):
    """Return normal numbers as bytes."""
    rng = random.Random(1)
    wide = array.array("f", (rng.gauss(0, 1) for _ in range(SIZE // 2))).tobytes()
    if dtype == "fp32":
        return wide[:SIZE]
    return b"".join(wide[i + 2 : i + 4] for i in range(0, len(wide), 4))


def passed_below(store, data):
    """Dump one block of these bytes; return how many bytes Compress made of them."""
    block = kit.Block(random.Random(data[:64]).randbytes(16), (data,))
    before = store.stats()["Compress"]["dump_out_bytes_total"]
    kit.dump(store, block)
    kit.expect_published(store, block)
    return store.stats()["Compress"]["dump_out_bytes_total"] - before


@pytest.fixture
def compress(open_store):
    return lambda **options: open_store(
        "Compress|Posix", block_size=SIZE, shard_size=SIZE, **options
    )


@pytest.mark.parametrize(("dtype", "most"), [("bf16", 0.8), ("fp32", 0.9)])
def test_numbers_get_shorter(compress, dtype, most):
    assert passed_below(compress(dtype=dtype), gaussian(dtype)) < most * SIZE


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_dtype_is_seen_from_the_bytes(open_store, dtype):
    data = gaussian(dtype)
    sizes = {}
    for named in ("auto", dtype):
        with open_store(
            "Compress|Posix", block_size=SIZE, shard_size=SIZE, compress_dtype=named,
            fingerprint=named,
        ) as store:  # fmt: skip
            sizes[named] = passed_below(store, data)
    assert sizes["auto"] < 1.01 * sizes[dtype]


def test_a_named_dtype_is_that_of_all_bytes(open_store):
    data, sizes = gaussian("bf16"), {}
    for named in ("bf16", "fp16", "fp8", "fp32"):
        with open_store(
            "Compress|Posix", block_size=SIZE, shard_size=SIZE, dtype="bf16", compress_dtype=named,
            fingerprint=named,
        ) as store:  # fmt: skip
            sizes[named] = passed_below(store, data)
    assert min(sizes, key=sizes.get) == "bf16"
    assert sizes["bf16"] < 0.9 * min(sizes[other] for other in ("fp16", "fp8", "fp32"))


@pytest.mark.parametrize("dtype", ["bytes", "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2"])
@pytest.mark.parametrize("codec", ["auto", "fast", "small", "raw"])
def test_random_bytes_grow_by_a_trailer_at_most(compress, rng, dtype, codec):
    store = compress(dtype=dtype, compress_codec=codec)
    assert passed_below(store, rng.randbytes(SIZE)) <= SIZE + TRAILER


@pytest.mark.parametrize("dtype", ["bytes", "bf16", "fp32"])
def test_a_constant_is_next_to_nothing(compress, dtype):
    element = {"bytes": b"\x3f", "bf16": b"\x80\x3f", "fp32": b"\x00\x00\x80\x3f"}[dtype]
    for constant in (b"\0", element):
        assert passed_below(compress(dtype=dtype), constant * (SIZE // len(constant))) < 1024


def test_planes_have_their_own_tiles_whether_a_dtype_is_given_or_not(open_store):
    plane = SIZE // 8
    tiles = {}
    for dtype in ("bytes", "bf16"):
        with open_store(
            "Compress|Posix", block_size=SIZE, shard_size=SIZE, tensor_size_list=[plane] * 8,
            dtype=dtype, compress_codec="fast",
        ) as store:  # fmt: skip
            passed_below(store, gaussian("bf16"))
            tiles[dtype] = store.stats()["Compress"]["classes_tiles_total"]
    assert tiles == {"bytes": 8, "bf16": 8}


def test_raw_stays_raw(compress):
    assert passed_below(compress(compress_codec="raw"), bytes(SIZE)) == SIZE + TRAILER


@pytest.mark.parametrize("reader", ["auto", "fast", "small", "raw"])
@pytest.mark.parametrize("writer", ["auto", "fast", "small", "raw"])
def test_every_codec_reads_what_the_others_wrote(open_store, rng, writer, reader):
    same = {"fingerprint": "whatever the dtype"}
    with open_store("Compress|Posix", compress_codec=writer, dtype="bf16", **same) as store:
        blocks = [*kit.new_blocks(store, rng, 2), kit.Block(b"z" * 16, (bytes(8192),) * 4)]
        kit.dump(store, *blocks)
    with open_store("Compress|Posix", compress_codec=reader, dtype="fp32", **same) as store:
        kit.expect_published(store, *blocks)


def test_one_thread_is_enough(open_store, rng):
    store = open_store("Compress|Posix", compress_concurrency=1)
    blocks = kit.new_blocks(store, rng, 20)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)


def test_memory_is_bounded_and_told(compress):
    memory = compress().stats()["Compress"]["memory_bytes"]
    assert 2 * (64 << 20) <= memory < 2 * (64 << 20) + 4 * (2 << 20)


COUNT = """
import array, ctypes, os, random, sys
import ucm

allocations = ctypes.CDLL(os.environ["LD_PRELOAD"]).allocations
allocations.restype = ctypes.c_ulong
folder, size, codec = sys.argv[1], int(sys.argv[2]), sys.argv[3]
store = ucm.open_pipeline(
    "Compress|Posix", storage_backends=folder, block_size=size, shard_size=size,
    compress_codec=codec, fingerprint=f"{size} {codec}",
)
rng = random.Random(1)
ramp = array.array("f", (rng.gauss(0, 1) for _ in range(size // 8))).tobytes()
data = array.array("B", ramp + rng.randbytes(size - len(ramp)))
row = [[data.buffer_info()[0]]]

def move(first, n):
    for i in range(first, first + n):
        block = [i.to_bytes(16, "little")]
        store.wait(store.dump_data(block, [0], row))
        store.wait(store.load_data(block, [0], row))

move(0, 20)
before = allocations()
move(20, 50)
print(before, allocations() - before)
store.close()
"""


@pytest.mark.parametrize("codec", ["fast", "small"])
def test_nothing_is_allocated_for_bytes_that_move(run_python, folder, tmp_path, codec):
    source = Path(__file__).with_name("count_allocations.c")
    library = compile_library(source, tmp_path / "count.so", "-D_DEFAULT_SOURCE", "-ldl")
    counts = {}
    for size in (1 << 16, 1 << 22):
        first, counts[size] = map(
            int, run_python(COUNT, folder, size, codec, LD_PRELOAD=str(library)).split()
        )
        assert first > 0, "nothing is counted, though the store below allocates for every task"
    # A few for each task that is handed down, however long its shards are.
    assert counts[1 << 22] <= counts[1 << 16] + 50
    assert counts[1 << 16] <= 50 * 40
