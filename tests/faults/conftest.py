"""Pipelines over files, and hands on those files."""

import random

import pytest
from mounts import Mount, Unavailable, compile_faulty_fs
from storage import Storage
from support import build_plugins

import ucm
from ucm.conformance import kit
from ucm.conformance.fixtures import rng

__all__ = ["rng"]

SEGMENTS = (3000, 2000)
SHARDS = 4


PIPELINES = ["Posix", "Posix, direct", "Compress|Posix", "Cache|Compress|Posix", "Ds3fs"]


@pytest.fixture(params=PIPELINES)
def pipeline(request):
    return request.param


@pytest.fixture(scope="session")
def libraries():
    """Build the layers with failpoints."""
    return build_plugins("failpoints", ["posix", "compress", "cache", "ds3fs"], "-Dfailpoints=true")


@pytest.fixture
def storage(tmp_path):
    (tmp_path / "kv").mkdir()
    return Storage(tmp_path / "kv")


@pytest.fixture
def of_3fs(pipeline, request):
    """Return the options that Ds3fs needs, in a folder that the stand-in takes for a mount."""
    if "Ds3fs" not in pipeline:
        return {}
    (request.getfixturevalue("tmp_path") / "3fs-virt" / "iovs").mkdir(parents=True)
    library = request.getfixturevalue("hf3fs_library")
    return {"ds3fs_library": str(library), "stream_number": 4}


@pytest.fixture
def open_store(pipeline, storage, of_3fs):
    """Open the pipeline anew: nothing of an earlier store is in memory."""
    opened = []

    def open_one(**overrides):
        options = {
            "storage_backends": str(storage.folder),
            "io_direct": pipeline.endswith("direct"),
            "cache_buffer_capacity_gb": 1 / 64,
            "posix_data_trans_concurrency": 4,
            "tensor_size_list": SEGMENTS,
            "block_size": SHARDS * sum(SEGMENTS),
            **of_3fs,
        }
        options["store_pipeline"] = pipeline.partition(",")[0]
        store = ucm.open_pipeline({**options, **overrides})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close()


@pytest.fixture
def stored(open_store, rng):
    """Return a function that stores n blocks and closes the store behind them."""

    def store_blocks(n):
        with open_store() as store:
            blocks = kit.new_blocks(store, rng, n)
            kit.dump(store, *blocks)
        return blocks

    return store_blocks


@pytest.fixture
def bits():
    return random.Random(7)


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    try:
        return compile_faulty_fs(tmp_path_factory.mktemp("fuse"))
    except Unavailable as error:
        pytest.skip(f"no file system that fails can be mounted: {error}")


@pytest.fixture
def mount(program, tmp_path):
    """Mount a directory; all mounts are gone at the end of the test."""
    mounts = []

    def mount_one(backing, **how):
        backing.mkdir(exist_ok=True)
        try:
            made = Mount(program, backing, tmp_path / f"mount{len(mounts)}", **how)
        except Unavailable as error:
            pytest.skip(f"no file system that fails can be mounted: {error}")
        mounts.append(made)
        return made

    yield mount_one
    for made in mounts:
        made.end()
