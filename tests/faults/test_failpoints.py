"""Killed in the middle of every change of state: never wrong bytes, and nothing stored is lost."""

import json
import os
import re
import signal
import subprocess
import sys

import actor
import pytest
from support import ROOT
from writer import SIZES, block_of

from ucm import Status, registry
from ucm.conformance import kit

ROUNDS = 12
HEADER = ROOT / "plugins" / "common" / "failpoint.h"
NAMES = re.findall(r'^    "([a-z]+\.[a-z_]+)",', HEADER.read_text(), re.MULTILINE)
# See test_quota.py and test_shared_cache.py.
NAMES = [name for name in NAMES if not name.startswith(("gc.", "segment."))]
NAMES = [n for n in NAMES if n not in ("cache.spilled", "cache.unspilled", "cache.adopted")]
OF_POSIX = [name for name in NAMES if name.startswith(("posix.", "ledger."))]
ONCE = {"posix.ring_made"}  # in the life of a space


@pytest.fixture
def run_actor(libraries, storage, of_3fs):
    """Let an actor work in the storage with failpoints; return what it said, and its exit code."""

    def run(pipeline, failpoints):
        config = {
            # The same words are there twice in that process.
            "store_pipeline": "|".join(f"UCM_PLUGINS:{word}" for word in pipeline.split("|")),
            "storage_backends": str(storage.folder),
            "cache_buffer_capacity_gb": 1 / 1024,
            **of_3fs,
            **SIZES,
        }
        variables = {"UCM_PLUGINS": ":".join(map(str, libraries)), "UCM_FAILPOINTS": failpoints}
        done = subprocess.run(
            [sys.executable, actor.__file__, json.dumps(config), str(ROUNDS)],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        said = [line.split() for line in done.stdout.splitlines()]
        return [(what, int(number)) for what, number in said], done.returncode

    return run


def expect_sound(open_store, storage, said):
    """Check all that is owed after the actor's end, whenever that was."""
    last = {number: what for what, number in said}
    blocks = {number: block_of(number) for number in range(max(last, default=0) + 2)}
    with open_store(**SIZES) as store:
        for number, block in blocks.items():
            ends = kit.load_pieces(store, block.pieces())
            allowed = [Status.NOT_FOUND]
            if last.get(number) == "dumped":
                allowed = []
            if last.get(number) in ("spoiling", "spoiled"):
                allowed.append(Status.CORRUPT)
            kit.expect_ends(block.pieces(), ends, allowed)
        found = store.lookup(kit.ids_of(blocks.values()))
        hidden = [number for number, here in zip(blocks, found, strict=True) if not here]
        kit.expect_nothing_wrong(store, *(blocks[n] for n in hidden))
        assert all(last.get(n) != "dumped" for n in hidden)
        assert all(n in hidden for n, what in last.items() if what in ("removed", "spoiled"))
        kit.dump(store, *blocks.values())
        kit.expect_published(store, *blocks.values())
        assert store.drain(kit.WAIT_MS).lost == 0
    with open_store(**SIZES) as store:
        kit.expect_published(store, *blocks.values())
    assert storage.temporaries() == []
    assert list(storage.folder.glob(".ucm/writers/*/recent.*")) == []
    assert storage.quarantined() <= {blocks[n].id for what, n in said if what.startswith("spoil")}


PLACES = [
    *[("Cache|Compress|Posix", name, 1) for name in NAMES],
    *[("Cache|Compress|Posix", name, 3) for name in NAMES if name not in ONCE],
    *[("Posix", name, 2) for name in OF_POSIX if name not in ONCE],
    *[("Ds3fs", name, 1) for name in OF_POSIX],
]


@pytest.mark.parametrize(("pipeline", "name", "passage"), PLACES)
def test_killed_at(run_actor, open_store, storage, pipeline, name, passage):
    said, code = run_actor(pipeline, f"{name}=crash@{passage}")
    assert code == -signal.SIGKILL, f"{name} was not passed {passage} times: {said}"
    expect_sound(open_store, storage, said)


@pytest.mark.parametrize("pipeline", ["Posix"])
@pytest.mark.parametrize("name", ["posix.published", "posix.ring_records", "posix.ring_appended"])
def test_what_a_killed_publisher_did_not_tell_is_found_by_prefix(
    run_actor, open_store, storage, name
):
    with open_store(**SIZES) as reader:
        kit.dump(reader, block_of(99))
        while reader.stats()["Posix"]["index_listed"] < 100:
            reader.lookup([block_of(99).id])
        said, code = run_actor("Posix", f"{name}=crash@1")
        assert code == -signal.SIGKILL
        assert said[-1][0] == "dumping"
        ids = [block_of(99).id, block_of(said[-1][1]).id]
        assert set(ids) <= storage.published()
        assert reader.lookup_on_prefix(ids) == 1
        kit.expect_published(reader, block_of(99), block_of(said[-1][1]))


@pytest.mark.parametrize("pipeline", ["Posix", "Cache|Compress|Posix"])
def test_everything_dawdles(run_actor, open_store, storage, pipeline):
    said, code = run_actor(pipeline, ";".join(f"{name}=delay:2" for name in NAMES))
    assert code == 0
    assert len([number for what, number in said if what == "dumped"]) == ROUNDS
    expect_sound(open_store, storage, said)


@pytest.mark.parametrize("pipeline", ["Posix"])
def test_a_failpoint_that_cannot_be_read_is_told(run_actor, pipeline):
    with pytest.raises(AssertionError, match="crash@K"):
        run_actor(pipeline, "posix.removed=explode")


def test_what_is_shipped_has_none():
    shipped = registry.shipped_libraries()
    assert shipped
    for library in shipped:
        assert b"failpoint" not in library.read_bytes(), library
