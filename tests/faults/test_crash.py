"""A process that is killed while it dumps: never half a block, and nothing left behind."""

import hashlib
import json
import random
import subprocess
import sys

import pytest

from ucm.conformance import kit

ROUNDS = 20
SHARDS = 6
SIZES = {"block_size": SHARDS * 5000, "tensor_size_list": (3000, 2000)}

WRITER = """
import json, random, sys
sys.path.insert(0, sys.argv[1])
from test_crash import block_of
import ucm
from ucm.conformance import kit

first, config = int(sys.argv[2]), json.loads(sys.argv[3])
store = ucm.open_pipeline(config)
order = random.Random(first)
for number in range(first, first + 1000):
    block = block_of(number)
    pieces = order.sample(block.pieces(), len(block.shards))
    dumps = [kit.start_dump(store, part) for part in (pieces[:2], pieces[2:4], pieces[4:])]
    for dump in dumps:
        store.wait(dump.task)
    print(number, flush=True)
"""


def block_of(number):
    """Make the block of a number, the same in every process."""
    rng = random.Random(number)
    name = hashlib.md5(str(number).encode()).digest()
    return kit.Block(name, tuple(rng.randbytes(5000) for _ in range(SHARDS)))


def dump_until_killed(store_config, first, count):
    """Start a writer, kill it after ``count`` blocks; return how many it said were dumped."""
    folder = __file__.rpartition("/")[0]
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, folder, str(first), json.dumps(store_config)],
        cwd=store_config["storage_backends"],
        stdout=subprocess.PIPE,
        text=True,
    )
    for _ in range(count):
        assert writer.stdout.readline()
    writer.kill()
    rest = writer.stdout.read().count("\n")
    writer.wait()
    return count + rest


@pytest.mark.parametrize("pipeline", ["Posix", "Compress|Posix", "Cache|Compress|Posix"])
def test_killed_again_and_again(open_store, storage, pipeline, rng):
    config = {"store_pipeline": pipeline, "storage_backends": str(storage.folder), **SIZES}
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
