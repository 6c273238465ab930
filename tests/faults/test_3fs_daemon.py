"""Ds3fs whose daemon fails at random, hangs or dies: what is served is what was dumped."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

import pytest

import ucm
from ucm import Status
from ucm.conformance import kit

ROUNDS = int(os.environ.get("UCM_TEST_ROUNDS", "8"))
SHARDS, SHARD = 4, 8192
ERRORS = ("EIO", "EREMOTEIO", "EINTR", "EAGAIN", "ENOSPC", "EACCES", "EINVAL", "EBADF", "ENODATA")
BYTES = (0, 1, 100, 4095, 4096, 5000, SHARD)
PIPELINES = ("Ds3fs", "Compress|Ds3fs", "Cache|Ds3fs", "Cache|Ds3fs, zero copy")
PATIENT = {"ds3fs_request_timeout_ms": 60000}  # where nothing is late, but for a busy machine
FAILS = (Status.IO, Status.TIMEOUT, Status.UNAVAILABLE, Status.CORRUPT, Status.NO_SPACE)


@pytest.fixture
def plan(monkeypatch):
    """Say what goes wrong, for stores that are opened from now on."""
    return lambda words: monkeypatch.setenv("HF3FS_STANDIN", words)


@pytest.fixture
def switches(monkeypatch, tmp_path):
    """Return the files that, as long as they exist, say that the daemon is dead, or hangs."""
    paths = {name: tmp_path / name for name in ("DEAD", "HUNG")}
    for name, path in paths.items():
        monkeypatch.setenv(f"HF3FS_STANDIN_{name}", str(path))
    return paths


@pytest.fixture
def options(hf3fs_library, hf3fs_mount):
    (hf3fs_mount / "kv").mkdir()
    return {
        "storage_backends": str(hf3fs_mount / "kv"),
        "ds3fs_library": str(hf3fs_library),
        "block_size": SHARDS * SHARD,
        "shard_size": SHARD,
        "ds3fs_request_timeout_ms": 100,
        "stream_number": 8,
        "ior_entries": 4,
    }


def open_store(pipeline, options, **others):
    name, _, zero_copy = pipeline.partition(", ")
    options = {**options, **others}
    if "Compress" in name:
        options["dtype"] = "bf16"
    if "Cache" in name:
        options["cache_buffer_capacity_gb"] = 1 / 256
        options["unique_id"] = f"ds3fs-{os.getpid()}-{random.getrandbits(64):x}"
        options["ds3fs_zero_copy"] = bool(zero_copy)
    return ucm.open_pipeline(name, **options)


def some_faults(rng, pipeline):
    """Draw what fails; memory of a caller waits for a request for ever, so there none may."""
    words = [f"seed={rng.getrandbits(30)}", f"random_us={rng.choice([0, 200, 2000])}"]
    for way in ("read", "write"):
        drawn = [
            f"{way}_error={rng.randint(1, 15)}%:{rng.choice(ERRORS)}",
            f"{way}_short={rng.randint(1, 15)}%:{rng.choice(BYTES)}",
        ]
        if "zero" not in pipeline:
            drawn.append(f"{way}_never={rng.randint(1, 40)}")
        words += [word for word in drawn if rng.random() < 0.5]
    return " ".join(words)


def try_to(start, store, pieces):
    """Start and finish a transfer; None where it is refused since every buffer waits."""
    try:
        transfer = start(store, pieces)
    except ucm.UnavailableError:
        return None
    kit.finish(store, transfer)
    return transfer


def check_load(store, blocks, allowed=FAILS):
    """Load blocks and compare what comes; return how many shards came."""
    pieces = kit.pieces_of(blocks)
    transfer = try_to(kit.start_load, store, pieces)
    if transfer is None:
        return 0
    ends = kit.ends_of_load(store, transfer)
    kit.expect_ends(pieces, ends, (*kit.ABSENT, *allowed))
    return sum(isinstance(end, bytes) for end in ends)


def check_what_was_kept(options, blocks):
    """Look with a new store: blocks are there whole or not at all, and can be dumped again."""
    with open_store("Ds3fs", options, **PATIENT) as store:
        found = store.lookup(kit.ids_of(blocks))
        kept = [block for block, there in zip(blocks, found, strict=True) if there]
        kit.expect_served(store, kit.pieces_of(kept))
        kit.expect_absent(store, *(block for block in blocks if block not in kept))
    return kept


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_whatever_fails_no_byte_is_wrong(options, plan, rng, pipeline):
    for _ in range(max(1, ROUNDS // 4)):
        words = some_faults(rng, pipeline)
        plan(words)
        with open_store(pipeline, options, stream_number=rng.choice([1, 2, 32])) as store:
            blocks = kit.new_blocks(store, rng, 20)
            try_to(kit.start_dump, store, kit.pieces_of(blocks))
            check_load(store, blocks)
            check_load(store, blocks)
        plan(f"seed={rng.getrandbits(30)}")
        if "Compress" in pipeline:
            with open_store(pipeline, options, **PATIENT) as store:
                check_load(store, blocks, allowed=())
        else:
            check_what_was_kept(options, blocks)
            with open_store("Ds3fs", options, **PATIENT) as store:
                kit.dump(store, *blocks)
                kit.expect_published(store, *blocks)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_daemon_that_dies_under_64_loads(options, plan, switches, rng, pipeline):
    plan(f"seed={rng.getrandbits(30)} delay_us=1000 random_us=3000")
    with open_store(pipeline, options, cache_buffer_capacity_gb=1 / 1024, **PATIENT) as store:
        blocks = kit.new_blocks(store, rng, 64)
        kit.dump(store, *blocks)
        assert store.drain().lost == 0
        transfer = kit.start_load(store, kit.pieces_of(blocks))
        time.sleep(rng.random() * 0.01)
        switches["DEAD"].touch()
        killer = threading.Timer(0.3, switches["DEAD"].unlink)
        killer.start()
        ends = kit.ends_of_load(store, transfer)
        kit.expect_ends(transfer.pieces, ends, FAILS)
        killer.join()
        until = time.monotonic() + 60
        while check_load(store, blocks) < 64 * SHARDS:
            assert time.monotonic() < until
        more = kit.new_blocks(store, rng, 4)
        while not (done := try_to(kit.start_dump, store, kit.pieces_of(more))) or any(
            result.status != Status.OK for result in done.task.results
        ):
            assert time.monotonic() < until
    if "Compress" not in pipeline:
        assert len(check_what_was_kept(options, blocks + more)) == 68


@pytest.mark.parametrize(
    ("when", "pipeline"),
    [("before", "Cache|Ds3fs"), ("amid", "Cache|Ds3fs"), ("amid", "Cache|Ds3fs, zero copy")],
)
def test_what_cache_accepted_is_stored_when_the_daemon_is_back(
    options, plan, switches, rng, pipeline, when
):
    """Ds3fs says UNAVAILABLE of a dump, once; Cache tries again for as long as it is so."""
    plan(f"seed={rng.getrandbits(30)} delay_us=5000 random_us=20000")
    with open_store(pipeline, options, **PATIENT) as store:
        blocks = kit.new_blocks(store, rng, 40)
        if when == "before":
            switches["DEAD"].touch()
        kit.dump(store, *blocks)
        if when == "amid":
            while not store.stats()["Ds3fs"]["requests_total"]:
                time.sleep(0.001)
            switches["DEAD"].touch()
        time.sleep(2)  # longer than the tries of a block that fails alone
        assert store.stats()["Cache"]["lost_shards_total"] == 0
        kit.expect_served(store, kit.pieces_of(blocks))
        switches["DEAD"].unlink()
        until = time.monotonic() + 60
        while store.stats()["Cache"]["frames_dirty"]:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert store.drain(kit.WAIT_MS).lost == 0
    assert len(check_what_was_kept(options, blocks)) == 40


def test_what_completes_late_harms_nobody(options, plan, switches, rng):
    """The stand-in ends the process if memory is used again before its request is done."""
    plan(f"seed={rng.getrandbits(30)} random_us=500")
    with open_store("Ds3fs", options, **PATIENT) as store:
        blocks = kit.new_blocks(store, rng, 40)
        kit.dump(store, *blocks)
    with open_store("Ds3fs", options, ds3fs_request_timeout_ms=30) as store:
        for _ in range(ROUNDS):
            switches["HUNG"].touch()
            killer = threading.Timer(rng.random() * 0.08, switches["HUNG"].unlink)
            killer.start()
            check_load(store, rng.sample(blocks, 20))
            try_to(kit.start_dump, store, kit.pieces_of(kit.new_blocks(store, rng, 3)))
            killer.join()
        until = time.monotonic() + 60
        while check_load(store, blocks) < 40 * SHARDS:
            assert time.monotonic() < until
    assert len(check_what_was_kept(options, blocks)) == 40


WRITER = """
import json, random, sys, ucm
from ucm.conformance import kit
rng = random.Random(int(sys.argv[2]))
with ucm.open_pipeline("Ds3fs", **json.loads(sys.argv[1])) as store:
    print("open", flush=True)
    while True:
        kit.dump(store, *kit.new_blocks(store, rng, 4))
"""


def test_a_writer_that_is_killed_leaves_no_half_block(options, plan, rng, tmp_path):
    plan("random_us=500")
    seeds = [rng.getrandbits(30) for _ in range(max(2, ROUNDS // 4))]
    for seed in seeds:
        command = [sys.executable, "-c", WRITER, json.dumps(options), str(seed)]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            time.sleep(rng.random() * 0.2)
            writer.send_signal(signal.SIGKILL)
    with open_store("Ds3fs", options, **PATIENT) as store:
        blocks = [
            block for seed in seeds for block in kit.new_blocks(store, random.Random(seed), 40)
        ]
    check_what_was_kept(options, blocks)
