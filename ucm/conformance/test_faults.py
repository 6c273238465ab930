"""Damage, full disks, errors, slowness, killed and rival processes: right bytes, or none.

After each fault: no wrong byte, no half block, no hang; what was not touched is served; what was
hit is whole again after the next dump.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from ucm import Status, Store, StoreTimeout, breaking
from ucm.conformance import kit, settings
from ucm.conformance.children import FILLING, SIZES, TMPFS_BYTES, block_of
from ucm.conformance.fixtures import OpenStore, Target, classes_of
from ucm.conformance.promises import Promise, stands_for
from ucm.conformance.storage import Storage, damage

STEPS = 64  # most calls of one dump that fail, one after the other
# How a shard may end that is not there any more, or cannot be had now.
GONE = (Status.NOT_FOUND, Status.CORRUPT, Status.INCOMPATIBLE, Status.IO, Status.UNAVAILABLE)


def need(store: Store, *capabilities: str) -> None:
    """Leave the test out where a store does not promise what it is about."""
    for capability in capabilities:
        if capability not in store.capabilities:
            pytest.skip(f"the store does not promise {capability!r}")


def expect_gone_or_right(store: Store, blocks: Sequence[kit.Block]) -> None:
    """Check that each shard is served right or ends in a way that says it is not to be had."""
    pieces = kit.pieces_of(blocks)
    kit.expect_ends(pieces, kit.load_pieces(store, pieces), GONE)


def stored(store: Store, blocks: Sequence[kit.Block]) -> None:
    """Dump blocks and wait until they are stored."""
    kit.dump(store, *blocks)
    assert store.drain(kit.WAIT_MS).lost == 0


# Damage

DAMAGES = {**breaking.DAMAGES, "bit flipped at the end": breaking.flip_at_the_end}


@stands_for(Promise.DAMAGE)
@pytest.mark.parametrize("how", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_not_served_and_is_repaired_by_the_next_dump(
    open_store: OpenStore, storage: Storage, rng: random.Random, how: breaking.Damage
) -> None:
    with open_store(**SIZES) as store:
        need(store, "persistent", "verifies")
        blocks = kit.new_blocks(store, rng, 8)
        stored(store, blocks)
    hit, spared = blocks[1::2], blocks[::2]
    damage(storage, kit.ids_of(hit), how, rng)
    with open_store(**SIZES) as store:
        expect_gone_or_right(store, hit)
        kit.expect_published(store, *spared)
        stored(store, hit)
        kit.expect_published(store, *blocks)
    with open_store(**SIZES) as store:
        kit.expect_published(store, *blocks)


@stands_for(Promise.DAMAGE)
def test_damage_under_an_open_store(
    open_store: OpenStore, storage: Storage, rng: random.Random
) -> None:
    with open_store(**SIZES) as store:
        need(store, "persistent", "verifies")
        blocks = kit.new_blocks(store, rng, 8)
        stored(store, blocks)
        damage(storage, kit.ids_of(blocks[:4]), breaking.flip_in_payload, rng)
        expect_gone_or_right(store, blocks[:4])
        kit.expect_published(store, *blocks[4:])


# What the system refuses


class Child:
    """Runs operations of ``children`` on the target, in processes of their own."""

    def __init__(self, target: Target, folder: Path) -> None:
        self._target, self.folder = target, folder

    def run(
        self,
        operation: str,
        numbers: Sequence[int],
        inside: Sequence[str] = (),
        killer: breaking.Killer | None = None,
        variables: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Return what it said; it must end by itself, or by the killer."""
        task = {
            "operation": operation,
            "numbers": list(numbers),
            "pipeline": self._target.pipeline,
            "options": self._target.options_in(self.folder),
            "classes": classes_of(self._target.pipeline),
            "wait_ms": kit.WAIT_MS,
        }
        limit_s = 3 * kit.WAIT_MS / 1000
        said, code = breaking.run_child(
            "ucm.conformance.children:child",
            task,
            limit_s,
            inside=inside,
            variables=variables,
            killer=killer,
        )
        for line in said:
            if line.startswith("broke "):
                pytest.fail(f"{operation}, in a process of its own: {line.removeprefix('broke ')}")
        assert code is not None, f"{operation}: the process has not ended after {limit_s:g} s"
        assert code == 0 or killer, f"{operation}: the process ended with {code} after {said}"
        return said


@pytest.fixture
def child(target: Target, tmp_path: Path) -> Child:
    return Child(target, tmp_path)


def need_storage(target: Target, open_store: OpenStore) -> None:
    """Leave the test out where the target keeps nothing in the test's own folder."""
    if not any("{tmp}" in value for value in target.options.values()):
        pytest.skip("no option has '{tmp}' in it, so its storage is not in the test's folder")
    with open_store(**SIZES) as store:
        need(store, "persistent")


@stands_for(Promise.FULL)
def test_a_full_disk_costs_what_does_not_fit_and_says_so(
    target: Target, open_store: OpenStore, child: Child
) -> None:
    need_storage(target, open_store)
    inside = breaking.in_tmpfs(child.folder, TMPFS_BYTES)
    why = breaking.why_not(inside)
    if why:
        pytest.skip(f"a tmpfs cannot be mounted here: {why}")
    if child.run("fill", range(FILLING), inside)[-1].startswith("fitted"):
        pytest.skip(f"it did not fill a file system of {TMPFS_BYTES >> 20} MiB up")


@stands_for(Promise.FAILS)
def test_writes_that_the_system_refuses_cost_their_blocks_and_no_other(
    target: Target, open_store: OpenStore, child: Child
) -> None:
    need_storage(target, open_store)
    if child.run("refuse writes", range(8))[:1] == ["fitted 7"]:
        pytest.skip("none of its files is longer than 16 KiB")


def failing_in(folder: Path) -> dict[str, str]:
    """Return variables of a process in which calls on files in a folder can be made to fail."""
    failing = Path(__file__).with_name("failing.so")
    first = filter(None, (str(failing), os.environ.get("LD_PRELOAD")))
    return {"LD_PRELOAD": ":".join(first), "ucm_failing_folder": str(folder)}


@stands_for(Promise.FAILS)
def test_files_that_fail_cost_their_blocks_and_slow_ones_time(
    target: Target, open_store: OpenStore, child: Child
) -> None:
    need_storage(target, open_store)
    if child.run("fail", range(8), variables=failing_in(child.folder))[-1].endswith(" 0"):
        pytest.skip(
            "its reads and writes are not calls of the C library, which can be made to fail"
        )


@stands_for(Promise.FAILS)
def test_what_was_said_to_be_stored_is_there_whichever_call_failed(
    target: Target, open_store: OpenStore, child: Child
) -> None:
    need_storage(target, open_store)
    numbers = range(STEPS)
    said = breaking.last_said(child.run("fail steps", numbers, variables=failing_in(child.folder)))
    if len(said) == 1:
        pytest.skip("no call of its dumps is one of the C library, which can be made to fail")
    expect_whole_or_none(open_store, numbers[: len(said)], said)


# What a layer is told from below


class Faults:
    """The pipeline with Fault above its bottom, and the rules of Fault."""

    def __init__(self, target: Target, open_store: OpenStore, folder: Path) -> None:
        *upper, bottom = target.pipeline.split("|")
        if not upper:
            pytest.skip("it is the bottom: there is nothing below it that could fail")
        self._pipeline = "|".join([*upper, "Fault", bottom])
        self._open_store = open_store
        self._control = folder / "fault.rules"

    def open(self) -> Store:
        return self._open_store(
            store_pipeline=self._pipeline, fault_control=str(self._control), **SIZES
        )

    def set(self, rules: str) -> None:
        new = self._control.with_suffix(".new")
        new.write_text(rules)
        new.rename(self._control)


@pytest.fixture
def faults(target: Target, open_store: OpenStore, tmp_path: Path) -> Faults:
    return Faults(target, open_store, tmp_path)


def eventually(attempt: Callable[[], bool]) -> None:
    """Try again until it is true; a layer may rest for a while after errors from below."""
    until = time.monotonic() + kit.WAIT_MS / 1000
    while not attempt():
        assert time.monotonic() < until, "it did not come right after the errors had stopped"
        time.sleep(0.01)


def all_served(store: Store, blocks: Sequence[kit.Block]) -> bool:
    """Tell whether all is served; wrong bytes fail."""
    pieces = kit.pieces_of(blocks)
    ends = kit.load_pieces(store, pieces)
    kit.expect_ends(pieces, ends, GONE)
    return not any(isinstance(end, Status) for end in ends)


def redumped(store: Store, blocks: Sequence[kit.Block]) -> bool:
    """Dump again; tell whether it went well."""
    kit.finish(store, kit.start_dump(store, kit.pieces_of(blocks)))
    return store.drain(kit.WAIT_MS).lost == 0 and all_served(store, blocks)


@stands_for(Promise.FAILS)
def test_read_errors_below_cost_their_shards_and_no_other(
    faults: Faults, rng: random.Random
) -> None:
    faults.set("")
    with faults.open() as store:
        need(store, "keeps", "loads")
        blocks = kit.new_blocks(store, rng, 8)
        stored(store, blocks)
        persistent = "persistent" in store.capabilities
        if not persistent:
            faults.set("load:io errno=5 every=5")
            expect_gone_or_right(store, blocks)
            faults.set("")
            eventually(lambda: all_served(store, blocks))
            return
    faults.set("load:io errno=5 every=5; lookup:io every=3")
    with faults.open() as store:
        expect_gone_or_right(store, blocks)
        faults.set("")
        eventually(lambda: all_served(store, blocks))


@stands_for(Promise.FAILS)
def test_write_errors_below_cost_their_blocks_and_no_other(
    faults: Faults, rng: random.Random
) -> None:
    faults.set("")
    with faults.open() as store:
        need(store, "keeps", "loads")
        before, blocks = kit.new_blocks(store, rng, 4), kit.new_blocks(store, rng, 8)
        stored(store, before)
        faults.set("dump:io errno=5 every=3")
        for block in blocks:
            kit.finish(store, kit.start_dump(store, block.pieces()))
        store.drain(kit.WAIT_MS)
        kit.expect_published(store, *before)
        expect_gone_or_right(store, blocks)
        faults.set("")
        eventually(lambda: redumped(store, blocks))
        kit.expect_published(store, *before, *blocks)


@stands_for(Promise.SLOW)
def test_slow_storage_below_makes_work_late_and_nothing_else(
    faults: Faults, rng: random.Random
) -> None:
    faults.set("dump:delay ms=100; load:delay ms=100; lookup:delay ms=20")
    with faults.open() as store:
        need(store, "keeps", "loads")
        blocks = kit.new_blocks(store, rng, 4)
        dumped = kit.start_dump(store, kit.pieces_of(blocks))
        with contextlib.suppress(StoreTimeout):
            store.wait(dumped.task, 1)
        store.wait(dumped.task, kit.WAIT_MS)
        with contextlib.suppress(StoreTimeout):
            store.drain(1)
        assert store.drain(kit.WAIT_MS).lost == 0
    with faults.open() as store:
        if "persistent" not in store.capabilities:
            return
        pieces = kit.pieces_of(blocks)
        loading = kit.start_load(store, pieces)
        with contextlib.suppress(StoreTimeout):
            store.wait(loading.task, 1)
        kit.expect_ends(pieces, kit.ends_of_load(store, loading))
        kit.expect_published(store, *blocks)


# Processes


def expect_whole_or_none(
    open_store: OpenStore, numbers: Sequence[int], said: dict[int, str]
) -> None:
    """Check the blocks of a writer that has gone, dump what is missing, and look again."""
    blocks = [block_of(number) for number in numbers]
    with open_store(**SIZES) as store:
        found = dict(zip(blocks, store.lookup(kit.ids_of(blocks)), strict=True))
        for number, block in zip(numbers, blocks, strict=True):
            assert found[block] or said.get(number) != "stored", f"block {number} was stored"
        kit.expect_published(store, *(block for block in blocks if found[block]))
        kit.expect_absent(store, *(block for block in blocks if not found[block]))
        stored(store, blocks)
        kit.expect_published(store, *blocks)
    with open_store(**SIZES) as store:
        kit.expect_published(store, *blocks)


@stands_for(Promise.RESTARTS)
def test_what_drain_said_was_stored_outlives_the_process(
    open_store: OpenStore, child: Child
) -> None:
    with open_store(**SIZES) as store:
        need(store, "persistent")
    said = breaking.last_said(child.run("write", range(6)))
    assert said == dict.fromkeys(range(6), "stored")
    expect_whole_or_none(open_store, range(6), said)


@stands_for(Promise.KILLED)
def test_a_writer_that_is_killed_leaves_whole_blocks_or_none(
    open_store: OpenStore, child: Child, rng: random.Random, pytestconfig: pytest.Config
) -> None:
    with open_store(**SIZES) as store:
        need(store, "persistent")
    for turn in range(settings.read(pytestconfig).kills):
        first = turn * 1000
        killer = breaking.Killer(rng.randrange(1, 16), rng.uniform(0, 0.01))
        said = breaking.last_said(child.run("write", range(first, first + 500), killer=killer))
        expect_whole_or_none(open_store, range(first, max(said) + 2), said)


@stands_for(Promise.RIVALS)
def test_processes_that_dump_the_same_blocks_leave_one_copy_of_each(
    open_store: OpenStore, child: Child, rng: random.Random
) -> None:
    with open_store(**SIZES) as store:
        need(store, "persistent")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(child.run, "write", rng.sample(range(12), 12)) for _ in range(2)]
        for run in runs:
            assert breaking.last_said(run.result()) == dict.fromkeys(range(12), "stored")
    expect_whole_or_none(open_store, range(12), dict.fromkeys(range(12), "stored"))


# A service


@stands_for(Promise.AWAY)
def test_a_service_that_is_away_gives_errors_and_comes_back(
    open_store: OpenStore, storage: Any, rng: random.Random
) -> None:
    if not (hasattr(storage, "stop") and hasattr(storage, "start")):
        pytest.skip("its --ucm-files has no stop and start: no service keeps the blocks")
    with open_store(**SIZES) as store:
        need(store, "keeps", "loads")
        blocks = kit.new_blocks(store, rng, 4)
        stored(store, blocks)
        others = kit.new_blocks(store, rng, 2)
        storage.stop()
        try:
            expect_gone_or_right(store, blocks)
            kit.finish(store, kit.start_dump(store, kit.pieces_of(others)))
        finally:
            storage.start()
        eventually(lambda: redumped(store, [*blocks, *others]))
        kit.expect_published(store, *blocks, *others)
