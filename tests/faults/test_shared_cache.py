"""Processes that share one cache are killed: no wrong byte, nothing accepted lost, nobody stuck."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import member
import pytest
from member import COMMON, HANG_MS, STORED, Member
from support import ROOT
from writer import SIZES, block_of

import ucm
from ucm.conformance import kit

FRAMES = 16
CAPACITY_GB = FRAMES * 6 * 8192 / 2**30
HEADER = ROOT / "plugins" / "common" / "failpoint.h"
NAMES = re.findall(r'^    "((?:cache|segment)\.[a-z_]+)",', HEADER.read_text(), re.MULTILINE)
# These are passed by who makes a segment, makes it larger, or leaves it last.
ALONE = {"segment.made", "segment.before_ready", "segment.grown", "segment.before_unlink"}
ADOPTED = "cache.adopted"
FIRST_MUST_DIE = {ADOPTED, "segment.moved"}  # that one: see test_segments.py
ROUNDS = int(os.environ.get("UCM_TEST_ROUNDS", "12"))  # kills at random, of each pipeline
KILLS_OF_A_ROUND = 12
MEMBERS = 4


def path_of(unique_id):
    return Path(f"/dev/shm/ucm-cache-{os.geteuid()}-{unique_id}")


@pytest.fixture
def unique_id():
    """Return a name whose segment must be gone at the end."""
    name = f"crash-{os.getpid()}-{random.getrandbits(32):08x}"
    yield name
    failed = bool(Process.living)
    while Process.living:
        process = Process.living.pop().process
        process.kill()
        process.wait()
    left = path_of(name).exists() and not failed
    path_of(name).unlink(missing_ok=True)
    assert not left, "a segment was left in /dev/shm"


@pytest.fixture
def pipeline():
    return "Cache|Posix"


@pytest.fixture
def config(pipeline, storage, unique_id):
    config = {
        "store_pipeline": pipeline,
        "unique_id": unique_id,
        "cache_buffer_capacity_gb": CAPACITY_GB,
        "timeout_ms": HANG_MS,
        **SIZES,
    }
    if "Posix" in pipeline:
        config["storage_backends"] = str(storage.folder)
    store_below(config)
    return config


def below(config):
    """Return the configuration of what is below the cache alone."""
    pipeline = config["store_pipeline"].partition("|")[2]
    return {k: v for k, v in config.items() if not k.startswith("cache")} | {
        "store_pipeline": pipeline
    }


def store_below(config):
    with ucm.open_pipeline(below(config)) as store:
        kit.dump(store, *map(block_of, STORED))


class Process:
    """A member in a process of its own, and what it said."""

    living: ClassVar[set] = set()

    def __init__(self, config, seed, steps=0, libraries=(), failpoints=""):
        variables = {}
        if libraries:
            config = {**config, "store_pipeline": "UCM_PLUGINS:Cache|UCM_PLUGINS:Posix"}
            variables = {"UCM_PLUGINS": ":".join(map(str, libraries)), "UCM_FAILPOINTS": failpoints}
        self.said = []
        self.process = subprocess.Popen(
            [sys.executable, member.__file__, json.dumps(config), str(seed), str(steps)],
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.living.add(self)
        self.errors = ""
        self.readers = [threading.Thread(target=it) for it in (self._listen, self._read_errors)]
        for reader in self.readers:
            reader.start()

    def _listen(self):
        for line in self.process.stdout:
            what, _, number = line.strip().partition(" ")
            if number:
                self.said.append((what, int(number)))

    def _read_errors(self):
        self.errors = self.process.stderr.read()

    def kill(self):
        self.process.kill()
        return self.wait()

    def finish(self):
        """Let it drain and close."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        assert self.wait() == 0, self.errors

    def wait(self):
        code = self.process.wait(timeout=120)
        for reader in self.readers:
            reader.join()
        self.living.discard(self)
        assert code in (0, -signal.SIGKILL), self.errors
        return code

    def until_said(self, what):
        until = time.monotonic() + 60
        while not any(each[0] == what for each in self.said):
            assert self.process.poll() is None, self.errors
            assert time.monotonic() < until, f"{what} was not said: {self.said}"
            time.sleep(0.005)


def owed(*saids):
    """Return the numbers of blocks that must be stored, given what each member said.

    Those of which each member brings a half may be lost, and counted, when one that has stored
    a part of them dies.
    """
    gone = {number for said in saids for what, number in said if what == "removing"}
    return {number for said in saids for what, number in said if what == "accepted"} - gone


def numbers_of(*saids):
    """Return all that may be somewhere."""
    numbers = set(STORED)
    for said in saids:
        begun = [number for what, number in said if what == "begins"]
        for some in ([n for n in begun if n < COMMON], [n for n in begun if n >= COMMON]):
            if some:
                numbers |= set(range(min(some), max(some) + 1))
    return numbers


def settled(store):
    """Wait until the dead are nobody's members any more, and all they left is stored."""
    until = time.monotonic() + 10
    while store.stats()["Cache"]["members"] > 1:
        assert time.monotonic() < until, "dead members are still there"
        time.sleep(0.05)
    assert store.drain(HANG_MS).pending == 0


def expect_stored(config, numbers, saids):
    """Check what is below: all that must be there, and nothing wrong."""
    with ucm.open_pipeline(below(config)) as store:
        blocks = [block_of(number) for number in sorted(numbers)]
        found = store.lookup(kit.ids_of(blocks))
        missing = [n for n, here in zip(sorted(numbers), found, strict=True) if not here]
        assert not missing, "what was accepted is not stored"
        kit.expect_served(store, kit.pieces_of([*blocks, *map(block_of, STORED)]))
        every = sorted(numbers_of(*saids))
        for first in range(0, len(every), 500):
            kit.expect_nothing_wrong(store, *map(block_of, every[first : first + 500]))


def expect_all_frames(store, *saids):
    """Remove all blocks: every frame comes back, some after they rested."""
    ids = [block_of(number).id for number in numbers_of(*saids)]
    until = time.monotonic() + 20
    while True:
        store.remove(ids)
        store.drain(HANG_MS)
        stats = store.stats()["Cache"]
        if stats["frames_free"] == stats["frames_ready"] and stats["frames_dirty"] == 0:
            return
        assert time.monotonic() < until, f"frames are lost: {stats}"
        time.sleep(0.1)


def expect_sound(store, config, *saids):
    """Check, through a living member, what is owed after others died."""
    settled(store)
    if "Posix" in config["store_pipeline"]:
        expect_stored(config, owed(*saids), saids)
    every = sorted(numbers_of(*saids))
    kit.expect_nothing_wrong(store, *map(block_of, every[:500]))
    expect_all_frames(store, *saids)
    fresh = [block_of(10**9 + number) for number in range(FRAMES)]
    kit.dump(store, *fresh)
    kit.expect_nothing_wrong(store, *fresh)
    store.remove(kit.ids_of(fresh))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FIRST_MUST_DIE])
def test_the_only_process_is_killed_at(config, libraries, name):
    passage = 1 if name.startswith("segment.") else 3
    victim = Process(config, 1, 2, libraries, f"{name}=crash@{passage}")
    assert victim.wait() == -signal.SIGKILL, f"{name} was not passed {passage} times"
    with ucm.open_pipeline(config) as store:
        expect_sound(store, config, victim.said)


def test_who_takes_over_is_killed(config, libraries):
    first = Process(config, 1, 2, libraries, "cache.before_write_back=crash@1")
    assert first.wait() == -signal.SIGKILL
    second = Process(config, 2, 2, libraries, f"{ADOPTED}=crash@1")
    assert second.wait() == -signal.SIGKILL, f"{ADOPTED} was not passed"
    with ucm.open_pipeline(config) as store:
        expect_sound(store, config, first.said, second.said)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ALONE | FIRST_MUST_DIE])
def test_one_of_two_is_killed_at(config, libraries, name):
    passage, steps = (1, 1) if name.startswith("segment.") else (2, 50)
    said = []
    with ucm.open_pipeline(config) as store:
        survivor = Member(store, 2, lambda *words: said.append(words))
        victim = Process(config, 1, steps, libraries, f"{name}=crash@{passage}")
        while victim.process.poll() is None:
            survivor.step()
        assert victim.wait() == -signal.SIGKILL, f"{name} was not passed {passage} times"
        for _ in range(10):
            survivor.step()
        expect_sound(store, config, victim.said, said)


@pytest.mark.timeout(120 + 10 * ROUNDS)
@pytest.mark.parametrize("pipeline", ["Cache|Posix", "Cache|Compress|Posix", "Cache|Empty"])
def test_killed_at_random_among_four(config, pipeline, capsys):
    begun, seed = time.monotonic(), int(os.environ.get("UCM_TEST_SEED", "1"))
    for kills in range(0, ROUNDS, KILLS_OF_A_ROUND):
        rng = random.Random(seed + kills)
        once = min(KILLS_OF_A_ROUND, ROUNDS - kills)
        kill_at_random(config, rng, seed + kills, once, all_at_last=bool(rng.randint(0, 1)))
        if ROUNDS > KILLS_OF_A_ROUND:
            with capsys.disabled():
                print(
                    f"{pipeline}: {kills + once} of {ROUNDS} kills, {time.monotonic() - begun:.0f} "
                    f"s; to go on from here: UCM_TEST_SEED={seed + kills + once}",
                    flush=True,
                )


def kill_at_random(config, rng, seed, kills, all_at_last):
    """Kill members under load, each replaced by a new one; at last let all end, or none."""
    store_below(config)
    seeds = iter(range(seed * 100 % 10000 + 1, 10**6))
    living, saids = [Process(config, next(seeds)) for _ in range(MEMBERS)], []
    for _ in range(kills):
        time.sleep(rng.expovariate(4))
        victim = living.pop(rng.randrange(MEMBERS))
        if rng.random() < 0.8:
            victim.until_said("open")
            time.sleep(rng.random() * 0.2)
        assert victim.kill() == -signal.SIGKILL, victim.errors
        saids.append(victim.said)
        living.append(Process(config, next(seeds)))
    if all_at_last:
        for each in living:
            each.process.kill()
    for each in living:
        each.wait() if all_at_last else each.finish()
        saids.append(each.said)
    with ucm.open_pipeline(config) as store:
        expect_sound(store, config, *saids)
