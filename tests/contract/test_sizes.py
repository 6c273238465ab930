"""Round trips of blocks of whatever sizes hypothesis thinks of."""

import hashlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ucm
from ucm.conformance import kit
from ucm.options import DTYPES

sizes = st.lists(st.integers(1, 9000), min_size=1, max_size=4)


@st.composite
def layouts(draw):
    segments = draw(sizes)
    shards = draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(0, sum(segments)), min_size=shards, max_size=shards))
    return segments, lengths


@pytest.mark.parametrize("pipeline", ["Posix", "Compress|Posix", "Cache|Compress|Posix"])
@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    layout=layouts(),
    dtype=st.sampled_from(DTYPES),
    shift=st.integers(0, 4096),
    seed=st.integers(0, 1 << 32),
    small=st.integers(1, 256),
)
def test_round_trip(tmp_path, pipeline, direct, layout, dtype, shift, seed, small):
    segments, lengths = layout
    rng = random.Random(seed)
    options = {
        "storage_backends": str(tmp_path),
        "io_direct": direct,
        "cache_buffer_capacity_gb": 1 / 256,
        "posix_data_trans_concurrency": 2,
        "tensor_size_list": segments,
        "block_size": len(lengths) * sum(segments),
        "dtype": dtype,
    }
    with ucm.open_pipeline(pipeline, **options) as store:
        shards = tuple(bytes(rng.randrange(small) for _ in range(n)) for n in lengths)
        name = hashlib.md5(repr((layout, dtype, seed, small)).encode()).digest()
        block = kit.Block(name, shards)
        pieces = rng.sample(block.pieces(), len(shards))
        kit.dump_pieces(store, pieces, shift)
        kit.expect_served(store, pieces, shift // 2)
    with ucm.open_pipeline(pipeline, **options) as store:
        kit.expect_published(store, block)
        kit.expect_served(store, pieces, shift)
