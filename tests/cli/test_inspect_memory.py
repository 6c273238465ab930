"""``ucm inspect --memory``: segments of shared memory, as others have them."""

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import textwrap
import time
import urllib.parse
from pathlib import Path

import pytest

import ucm
from ucm import segments

SIZES = {"block_size": 4096 * 4, "shard_size": 4096}
BLOCKS = 8


@pytest.fixture
def unique_id():
    return f"inspect {os.getpid()}-{random.getrandbits(32):08x}"


@pytest.fixture
def path(unique_id):
    """Return where its segment is, which is gone after the test."""
    quoted = urllib.parse.quote(unique_id)
    path = Path(f"/dev/shm/ucm-cache-{os.geteuid()}-{quoted}")
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def config(folder, unique_id):
    return {
        "store_pipeline": "Cache|Posix",
        "storage_backends": str(folder),
        "unique_id": unique_id,
        "model": "llama",
        "cache_buffer_capacity_gb": BLOCKS * 16384 / 2**30,
        **SIZES,
    }


@pytest.fixture
def mine(ucm_command, unique_id):
    """Return what is said of this test's segment, or None."""

    def read():
        found = ucm_command("inspect", "--memory", "--json").json
        return next((one for one in found if one["unique_id"] == unique_id), None)

    return read


def dump(store, number, shards=4):
    rows = [[bytes([number]) * 4096] for _ in range(shards)]
    store.wait(store.dump([bytes([number]) * 16] * shards, list(range(shards)), rows))


def test_a_living_segment_says_what_is_in_it(config, mine, path):
    assert mine() is None
    with ucm.open_pipeline(config) as store, ucm.open_pipeline(config):
        dump(store, 1)
        dump(store, 2)
        store.drain()
        dump(store, 3, shards=1)
        # The living write there when they like; looking does not.
        assert any(path.stat().st_mtime_ns == (mine(), path.stat().st_mtime_ns)[1] for _ in "12345")
        ready = None
        while ready != (ready := store.stats()["Cache"]["frames_ready"]):  # a thread makes room
            found = mine()
        free = store.stats()["Cache"]["frames_free"]
        assert (found["path"], found["version"], found["phase"]) == (str(path), 2, "ready")
        assert found["label"] == "default llama bytes:4096"
        assert (found["shards_per_block"], found["shard_bytes"]) == (4, 4096)
        assert (found["frames"], found["frames_ready"]) == (BLOCKS, ready)
        assert found["frames_free"] == free
        blocks = {"clean": 2, "gathering": 1, "dirty": 0, "zombie": 0, "spilled": 0}
        assert found["blocks"] == blocks
        members = [(one["pid"], one["alive"]) for one in found["members"]]
        assert members == [(os.getpid(), True)] * 2
        assert (found["alive"], found["problem"]) == (True, None)
        assert BLOCKS * 16384 < found["allocated_bytes"] <= found["bytes"]
        assert found["idle_s"] < 60
    assert mine() is None


def kernel_collapses():
    """Tell whether shared memory can be made huge pages here."""
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    offered = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    return release >= (6, 1) and offered.exists()


def test_memory_in_huge_pages_is_told(config, mine):
    block = {"block_size": 1 << 20, "shard_size": 1 << 20, "cache_buffer_capacity_gb": 0.25}
    with ucm.open_pipeline({**config, **block}) as store:
        for number in range(32):
            store.wait(store.dump([bytes([number]) * 16], [0], [[bytes([number]) * (1 << 20)]]))
        until = time.monotonic() + 20
        while kernel_collapses() and not mine()["huge_bytes"]:  # a thread asks for them
            assert time.monotonic() < until, "none of it is"
        found = mine()
        assert found["huge_bytes"] % (2 << 20) == 0
        assert found["huge_bytes"] <= found["allocated_bytes"]


def test_who_copies_by_a_device_is_told(config, mine, path):
    with ucm.open_pipeline(config):
        assert [one["device"] for one in mine()["members"]] == [False]
        with path.open("r+b") as file:
            (members_at,) = struct.unpack_from("<Q", file.read(512), 280)
            file.seek(members_at + 8)
            file.write(struct.pack("<I", 1))
        assert [one["device"] for one in mine()["members"]] == [True]


def test_people_see_the_same(config, unique_id, path, ucm_command):
    with ucm.open_pipeline(config):
        out = ucm_command("inspect", "--memory").out
        for word in ("ready", "4 x 4.0 KiB", f"pid {os.getpid()}; default llama bytes:4096"):
            assert word in out


def test_the_dead_are_called_dead(config, mine, path):
    code = """
        import json, os, signal, sys, ucm
        store = ucm.open_pipeline(json.loads(sys.argv[1]))
        # A part of a block, so that no start elsewhere takes the segment away.
        store.wait(store.dump([bytes(16)], [0], [[bytes(4096)]]))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen([*command, json.dumps(config)], cwd="/") as dead:
        assert dead.wait() == -signal.SIGKILL
    found = mine()
    assert [(one["pid"], one["alive"]) for one in found["members"]] == [(dead.pid, False)]
    assert (found["alive"], found["huge_bytes"], found["phase"]) == (False, None, "ready")
    with ucm.open_pipeline(config):
        assert [one["alive"] for one in mine()["members"]] == [True]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it is not ready"),
        (b"\0" * 8192, "it is not ready"),
        (b"no segment" * 1000, "it is no segment"),
        (struct.pack("<8sI", b"UCMCACHE", 1).ljust(8192, b"\0"), "its version is 1"),
        (struct.pack("<8s3I", b"UCMCACHE", 2, 0, 2).ljust(8192, b"\0"), "is not sound"),
    ],
)
def test_what_is_no_segment_is_told(tmp_path, path, data, problem):
    # Elsewhere, so that no start of another store takes it away.
    (tmp_path / path.name).write_bytes(data)
    (found,) = segments.inspect(tmp_path)
    assert problem in found.problem
    assert found.members == []


def test_other_files_are_left_alone(tmp_path):
    (tmp_path / "else").touch()
    (tmp_path / f"ucm-cache-{os.geteuid() + 1}-of-another").touch()
    assert segments.inspect(tmp_path) == []
    mine = tmp_path / f"ucm-cache-{os.geteuid()}-link"
    mine.symlink_to("/etc/passwd")
    (found,) = segments.inspect(tmp_path)
    assert "cannot be opened" in found.problem
    mine.unlink()
    os.mkfifo(mine)
    (found,) = segments.inspect(tmp_path)
    assert found.problem == "it is no file"
    assert segments.inspect(tmp_path / "gone") == []


def test_a_segment_of_another_user_under_our_name_is_told(tmp_path):
    path = tmp_path / f"ucm-cache-{os.geteuid()}-theirs"
    path.touch()
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 12345, -1)
    (found,) = segments.inspect(tmp_path)
    assert "belongs to user 12345" in found.problem


def test_directories_or_memory(ucm_command, refused, folder):
    refused(ucm_command("inspect"), 2, "--memory")
    refused(ucm_command("inspect", folder, "--memory"), 2, "--memory")
