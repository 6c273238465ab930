"""The quota under SIGKILL, a full file system, and files that cannot go."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from support import taken

import ucm
from ucm.conformance import kit

MIB = 1 << 20
FILE = MIB // 4 + 4096
LIMIT = 4 * MIB
ROUNDS = int(os.environ.get("UCM_TEST_ROUNDS", "20"))
SIZES = {"block_size": MIB // 4, "shard_size": MIB // 16, "posix_capacity_gb": LIMIT / 2**30}

POINTS = [
    *("ledger.locked", "ledger.changed", "ledger.page_written"),
    *("gc.locked", "gc.walked", "gc.counted", "gc.before_evict", "gc.evicted"),
]

WRITER = """
import json, random, sys, ucm
from ucm.conformance import kit
config, seed = json.loads(sys.argv[1]), int(sys.argv[2])
rng = random.Random(seed)
with ucm.open_pipeline(config) as store:
    print("open", flush=True)
    blocks = []
    while True:
        blocks.append(kit.new_block(store, rng))
        kit.dump(store, blocks[-1])
        if len(blocks) % 7 == 0:
            kit.load_pieces(store, rng.choice(blocks).pieces())
        print("dumped", flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "kv").mkdir()
    return tmp_path / "kv"


class Writer:
    """A process that dumps until it is killed."""

    def __init__(self, folder, out, seed, variables):
        config = {"store_pipeline": "UCM_PLUGINS:Posix", "storage_backends": str(folder), **SIZES}
        self._out = out
        with open(out, "wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", WRITER, json.dumps(config), str(seed)],
                cwd=out.parent,  # away from the checkout
                env={**os.environ, **variables},
                stdout=file,
            )

    def dumped(self):
        return self._out.read_bytes().count(b"dumped\n")

    def ended(self):
        return self.process.poll() is not None

    def until_dumped(self, count):
        end = time.monotonic() + 120
        while self.dumped() < count:
            assert not self.ended()
            assert time.monotonic() < end, "it does not go on"
            time.sleep(0.01)

    def kill(self):
        self.process.kill()
        return self.process.wait()


@pytest.fixture
def start_writer(folder, libraries):
    """Start a writer with failpoints."""
    running = []

    def start(seed, failpoints=""):
        variables = {"UCM_PLUGINS": ":".join(map(str, libraries)), "UCM_FAILPOINTS": failpoints}
        out = folder.with_name(f"out.{len(running)}")
        running.append(Writer(folder, out, seed, variables))
        return running[-1]

    yield start
    for writer in running:
        writer.kill()


def expect_well(folder, writers):
    """Nobody is beyond the limit, and a new writer gets room at once."""
    assert taken(folder) <= LIMIT + writers * FILE
    with ucm.open_pipeline("Posix", storage_backends=str(folder), **SIZES) as store:
        rng = random.Random(time.monotonic_ns())
        for _ in range(20):
            kit.dump(store, kit.new_block(store, rng))
            assert taken(folder) <= LIMIT + FILE
        assert store.stats()["Posix"]["quota_limit_bytes"] == LIMIT
    assert not [path for path in folder.glob(".ucm/writers/*/*") if path.name != "lock"]


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("passage", [1, 2, 9])
def test_killed_at(start_writer, folder, name, passage):
    writer = start_writer(1, f"{name}=crash@{passage}")
    assert writer.process.wait(120) == -signal.SIGKILL
    expect_well(folder, 1)


@pytest.mark.parametrize("name", POINTS)
def test_the_others_go_on_when_one_is_killed_at(start_writer, folder, name):
    one, other = start_writer(1, f"{name}=crash@5"), start_writer(2)
    # It may be the other one who collects.
    while not one.ended() and not (name.startswith("gc.") and other.dumped() > 200):
        time.sleep(0.01)
    assert one.kill() == -signal.SIGKILL
    other.until_dumped(other.dumped() + 30)
    assert taken(folder) <= LIMIT + 2 * FILE
    other.kill()
    expect_well(folder, 2)


def test_killed_at_any_time(start_writer, folder):
    chance = random.Random(5)
    for round_ in range(ROUNDS):
        writers = [start_writer(round_ * 10 + i) for i in range(2)]
        for writer in writers:
            writer.until_dumped(chance.randrange(12))
        for writer in writers:
            assert writer.kill() == -signal.SIGKILL
        assert taken(folder) <= LIMIT + 2 * FILE
    expect_well(folder, 2)


@pytest.fixture
def small(tmp_path):
    """Make a file system of 8 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)],
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a file system of its own cannot be mounted here (root is needed): {error}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def until_evicted(store, before):
    until = time.monotonic() + 20
    while store.stats()["Posix"]["evicted_blocks_total"] == before:
        assert time.monotonic() < until, "no room is made"
        time.sleep(0.005)


def test_a_full_file_system_makes_room_within_the_limit(small, rng):
    options = {**SIZES, "posix_capacity_gb": "64MiB", "storage_backends": str(small)}
    with ucm.open_pipeline("Posix", **options) as store:
        failed = evicted = 0
        for block in kit.new_blocks(store, rng, 80):
            transfer = kit.start_dump(store, block.pieces())
            kit.finish(store, transfer)
            statuses = {result.status for result in transfer.task.results}
            assert statuses <= {ucm.Status.OK, ucm.Status.NO_SPACE}
            if ucm.Status.NO_SPACE in statuses:
                failed += 1
                until_evicted(store, evicted)
            evicted = store.stats()["Posix"]["evicted_blocks_total"]
        assert 0 < failed < 40
        assert store.drain(kit.WAIT_MS).pending == 0
