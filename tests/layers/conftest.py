"""Pipelines with one layer in the light."""

import pytest

import ucm
from ucm.conformance import kit
from ucm.conformance.fixtures import rng

__all__ = ["rng"]


@pytest.fixture
def open_store(folder):
    """Open a pipeline over one folder; blocks have 4 shards of 8 KiB unless said otherwise."""
    opened = []

    def open_one(pipeline, **options):
        known = {"storage_backends": str(folder), "block_size": 4 << 13, "shard_size": 1 << 13}
        if "device_id" in options:
            known = {"storage_backends": str(folder)}
        store = ucm.open_pipeline(pipeline, **{**known, **options})
        opened.append(store)
        return store

    yield open_one
    for store in opened:
        store.close(kit.WAIT_MS)


@pytest.fixture
def control(tmp_path):
    """Put rules of Fault in force in an open store."""
    path = tmp_path / "rules"

    def put(rules):
        new = tmp_path / "rules.new"
        new.write_text(rules)
        new.rename(path)

    put.path = str(path)
    put.remove = path.unlink
    return put
