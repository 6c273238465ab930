"""A process that is killed while it dumps: never half a block, and nothing left behind."""

import json
import os
import signal
import subprocess
import sys

import pytest
import writer
from writer import SIZES, block_of

from ucm.conformance import kit

ROUNDS = int(os.environ.get("UCM_TEST_ROUNDS", "20"))


def dump_until_killed(config, first, count):
    """Start a writer, kill it after ``count`` blocks; return how many it said were dumped."""
    process = subprocess.Popen(
        [sys.executable, writer.__file__, str(first), json.dumps(config)],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(count):
        assert process.stdout.readline()
    process.kill()
    rest = process.stdout.read().count("\n")
    process.wait()
    return count + rest


@pytest.mark.parametrize("pipeline", ["Posix", "Compress|Posix", "Cache|Compress|Posix", "Ds3fs"])
def test_killed_again_and_again(open_store, storage, pipeline, of_3fs, rng):
    config = {"store_pipeline": pipeline, "storage_backends": str(storage.folder), **SIZES}
    config |= of_3fs
    config["cache_buffer_capacity_gb"] = 1 / 64
    for turn in range(ROUNDS):
        first = turn * 1000
        said = dump_until_killed(config, first, rng.randint(1, 12))
        with open_store(**SIZES) as store:
            blocks = [block_of(number) for number in range(first, first + said + 5)]
            found = store.lookup(kit.ids_of(blocks))
            assert not any(found[said + 2 :])
            if "write_back" not in store.capabilities:
                assert all(found[:said])
            visible = [block for block, here in zip(blocks, found, strict=True) if here]
            kit.expect_published(store, *visible)
            hidden = [block for block, here in zip(blocks, found, strict=True) if not here]
            kit.expect_absent(store, *hidden)
            kit.dump(store, *hidden)
            kit.expect_published(store, *blocks)
    with open_store(**SIZES):
        assert storage.temporaries() == []
        assert len(list(storage.folder.glob(".ucm/writers/*"))) <= 1
    assert storage.quarantined() == set()


@pytest.mark.parametrize("pipeline", ["Posix"])
@pytest.mark.parametrize("engine", ["psync", "io_uring"])
def test_killed_readers_hurt_nobody(open_store, storage, pipeline, rng, engine):
    config = {"store_pipeline": pipeline, "storage_backends": str(storage.folder), **SIZES}
    config["posix_io_engine"] = engine
    blocks = [block_of(number) for number in range(30)]
    with open_store(**SIZES) as store:
        kit.dump(store, *blocks[:20])
        readers = []
        for turn in range(ROUNDS):
            readers.append(
                subprocess.Popen(
                    [sys.executable, writer.__file__, "read", json.dumps(config)],
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(rng.randint(1, 4)):
                assert readers[-1].stdout.readline()
            if turn % 2:  # two at a time
                kit.dump(store, blocks[20 + turn % 10])
                for reader in readers[-2:]:
                    reader.kill()
                    assert reader.wait() == -signal.SIGKILL
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
    for reader in readers:
        reader.kill()
        reader.wait()
    with open_store(**SIZES):
        assert storage.temporaries() == []
        assert len(list(storage.folder.glob(".ucm/writers/*"))) <= 1
    assert storage.quarantined() == set()
