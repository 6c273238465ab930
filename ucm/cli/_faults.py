"""What ``ucm bench faults`` does to a pipeline, apart from how it is asked and shown."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import os
import random
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ucm
from ucm import breaking, demo
from ucm.breaking import DAMAGES, Killer, say

BLOCK, SHARDS, PLANE = demo.BLOCK_BYTES, 4, demo.PLANE_BYTES
SHARD = BLOCK // SHARDS
BLOCKS = 8
WAIT_MS = 30000
CACHE_GB = 0.0625
TMPFS_BYTES = 1536 << 10  # room for about four blocks

RIGHT, WRONG, TOLD, MISSED, HUNG = "right", "wrong", "told", "missed", "hung"


@dataclasses.dataclass
class Score:
    """What became of the blocks that met one fault; counted in blocks.

    ``stored``: said to be stored before. ``hit``: of them, met by the fault. ``lost``: of them, not
    served afterwards. ``recovered`` of ``again`` are served after they were dumped once more.
    """

    fault: str
    stored: int = 0
    hit: int = 0
    wrong: int = 0
    told: int = 0
    lost: int = 0
    again: int = 0
    recovered: int = 0
    hangs: int = 0
    left_out: str | None = None

    def count(self, ends: Mapping[int, str], stored: Iterable[int]) -> None:
        """Add the ends of loads after the fault."""
        kept = set(stored)
        self.stored += len(kept)
        for number, end in ends.items():
            self.wrong += end == WRONG
            self.told += end == TOLD
            self.hangs += end == HUNG
            self.lost += number in kept and end != RIGHT

    def count_again(self, ends: Mapping[int, str]) -> None:
        """Add the ends of loads after the second dump."""
        self.again += len(ends)
        self.recovered += sum(end == RIGHT for end in ends.values())
        self.wrong += sum(end == WRONG for end in ends.values())
        self.hangs += sum(end == HUNG for end in ends.values())


def block_id(number: int) -> bytes:
    """Name a block."""
    return b"ucmfault" + number.to_bytes(8, "big")


def block_bytes(number: int) -> bytearray:
    """Make the bytes of a block: real KV cache, and its number at the head of every shard."""
    with open(demo.SAMPLE, "rb") as sample:
        sample.seek(number % 10 * BLOCK)
        data = bytearray(sample.read(BLOCK))
    for start in range(0, BLOCK, SHARD):
        data[start : start + 8] = number.to_bytes(8, "big")
    return data


class Subject:
    """One opening of the pipeline."""

    def __init__(self, pipeline: str, options: Mapping[str, Any]) -> None:
        sizes = {"block_size": BLOCK, "shard_size": SHARD, "tensor_size": PLANE, "dtype": "bf16"}
        self.store = ucm.open_pipeline(pipeline, **{**sizes, **options})

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *exception: object) -> None:
        self.store.close(WAIT_MS)

    def _rows(self, data: Sequence[bytearray]) -> list[list[memoryview]]:
        return [
            [memoryview(block)[at : at + PLANE] for at in range(start, start + SHARD, PLANE)]
            for block in data
            for start in range(0, BLOCK, SHARD)
        ]

    def _names(self, numbers: Sequence[int]) -> tuple[list[bytes], list[int]]:
        return (
            [block_id(number) for number in numbers for _ in range(SHARDS)],
            list(range(SHARDS)) * len(numbers),
        )

    def _wait(self, task: ucm.Task) -> bool:
        with contextlib.suppress(ucm.StoreError):
            self.store.wait(task, WAIT_MS)
        return self.store.check(task)

    def dump(self, numbers: Sequence[int]) -> dict[int, str]:
        """Dump blocks one by one; RIGHT: said to be stored."""
        return {number: self._dump(number) for number in numbers}

    def _dump(self, number: int) -> str:
        task = self.store.dump(*self._names([number]), self._rows([block_bytes(number)]))
        if not self._wait(task):
            return HUNG
        try:
            lost = self.store.drain(WAIT_MS).lost
        except ucm.StoreTimeout:
            return HUNG
        failed = any(result.status != ucm.Status.OK for result in task.results)
        return TOLD if failed or lost else RIGHT

    def load(self, numbers: Sequence[int]) -> dict[int, str]:
        """Load blocks in one task, and compare."""
        memory = [bytearray(BLOCK) for _ in numbers]
        task = self.store.load(*self._names(numbers), self._rows(memory))
        if not self._wait(task):
            return dict.fromkeys(numbers, HUNG)
        return {
            number: _end_of_load(number, memory[k], task.results[k * SHARDS : (k + 1) * SHARDS])
            for k, number in enumerate(numbers)
        }


def _end_of_load(number: int, memory: bytearray, results: Sequence[Any]) -> str:
    want = block_bytes(number)
    ends = set()
    for shard, result in enumerate(results):
        part = slice(shard * SHARD, (shard + 1) * SHARD)
        if result.status == ucm.Status.OK:
            whole = result.bytes == SHARD and memory[part] == want[part]
            ends.add(RIGHT if whole else WRONG)
        else:
            ends.add(MISSED if result.status == ucm.Status.NOT_FOUND else TOLD)
    return next(end for end in (WRONG, TOLD, MISSED, RIGHT) if end in ends)


def files_of(directory: Path, number: int) -> list[Path]:
    """Find the files that keep a block."""
    found = directory.rglob(block_id(number).hex() + "*")
    return [path for path in found if ".ucm" not in path.relative_to(directory).parts]


def _file_of(directory: Path, number: int) -> Path:
    files = files_of(directory, number)
    if not files:
        raise ucm.ConfigError(f"no file in {directory} is named after block {number}")
    return files[0]


FULL, EIO, RESTART = "disk full (ENOSPC)", "read and write errors (EIO)", "restart without close"
RIVALS, KILLED = "4 writers of the same blocks", "writer killed (SIGKILL)"
FAULTS = (*DAMAGES, FULL, EIO, RESTART, RIVALS, KILLED)


@dataclasses.dataclass
class Matrix:
    """Runs every fault in a directory of its own."""

    pipeline: str
    options: Mapping[str, Any]
    directory: Path
    kills: int
    seed: int
    advance: Callable[[str], None]

    def run(self, only: Sequence[str]) -> list[Score]:
        """Return one score a fault; a killed writer has one for each failpoint."""
        self._rng = random.Random(self.seed)
        self._check()
        scores: list[Score] = []
        for fault in FAULTS:
            if only and fault not in only:
                continue
            self.advance(fault)
            if fault == KILLED:
                scores += self._killed()
            elif fault in DAMAGES:
                scores.append(self._damaged(fault))
            else:
                one = {FULL: self._full, EIO: self._eio, RESTART: self._restart}
                scores.append(one.get(fault, self._rivals)())
        return scores

    def _check(self) -> None:
        taken = demo.taken(self.pipeline, {"storage_backends": ""})
        with self._place() as place, self._open(place) as subject:
            capable = {"keeps", "loads", "persistent"} <= subject.store.capabilities
        if not (taken and capable):
            raise ucm.ConfigError(
                f"--pipeline {self.pipeline!r}: its blocks are to be kept in files, in a directory "
                "given by storage_backends; end it with a store such as Posix"
            )

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        place = Path(tempfile.mkdtemp(prefix="fault-", dir=self.directory))
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _settings(self, place: Path) -> dict[str, Any]:
        defaults = {"storage_backends": str(place), "cache_buffer_capacity_gb": CACHE_GB}
        return {**demo.taken(self.pipeline, defaults), **self.options}

    def _open(self, place: Path) -> Subject:
        return Subject(self.pipeline, self._settings(place))

    def _store_all(self, place: Path) -> list[int]:
        numbers = list(range(BLOCKS))
        with self._open(place) as subject:
            ends = subject.dump(numbers)
        if set(ends.values()) != {RIGHT}:
            raise ucm.StoreError(f"nothing was broken yet, and not all is stored: {ends}")
        return numbers

    def _load_and_repair(self, score: Score, place: Path, stored: Iterable[int], last: int) -> None:
        """Load all blocks up to `last`, dump what is not served right, load all again."""
        numbers = list(range(last + 1))
        with self._open(place) as subject:
            ends = subject.load(numbers)
            score.count(ends, stored)
            subject.dump([number for number, end in ends.items() if end != RIGHT])
        with self._open(place) as subject:
            score.count_again(subject.load(numbers))

    def _damaged(self, fault: str) -> Score:
        score = Score(fault)
        with self._place() as place:
            stored = self._store_all(place)
            hit = stored[1::2]
            files = [_file_of(place, number) for number in hit]
            breaking.damage_files(files, DAMAGES[fault], self._rng)
            score.hit = len(hit)
            self._load_and_repair(score, place, stored, stored[-1])
        return score

    def _eio(self) -> Score:
        score = Score(EIO, hit=BLOCKS)
        *upper, bottom = self.pipeline.split("|")
        with self._place() as place:
            control = place.with_suffix(".rules")
            settings = {**self._settings(place), "fault_control": str(control)}
            broken = "|".join([*upper, "Fault", bottom])
            try:
                control.write_text("dump:io p=0.1; lookup:io every=2")
                with Subject(broken, settings) as subject:
                    dumped = subject.dump(range(BLOCKS))
                control.write_text("load:io every=3; lookup:io every=2")
                with Subject(broken, settings) as subject:
                    loaded = subject.load(range(BLOCKS))
            finally:
                control.unlink()
            for number, end in loaded.items():
                ends = {end, dumped[number]}
                score.told += TOLD in ends
                score.wrong += WRONG in ends
                score.hangs += HUNG in ends
            stored = [number for number, end in dumped.items() if end == RIGHT]
            self._load_and_repair(score, place, stored, BLOCKS - 1)
        return score

    def _full(self) -> Score:
        with self._place() as place:
            inside = breaking.in_tmpfs(place, TMPFS_BYTES)
            why = breaking.why_not(inside)
            if why:
                return Score(FULL, left_out=f"a tmpfs cannot be mounted here: {why}")
            said, code = self._child("full", place, inside)
        if code != 0:
            raise ucm.StoreError(f"the process with the full disk ended with code {code}")
        return Score(**json.loads(said[-1]))

    def _restart(self) -> Score:
        score = Score(RESTART, hit=BLOCKS)
        with self._place() as place:
            said, code = self._child("dump", place, numbers=list(range(BLOCKS)))
            score.hangs += BLOCKS if code is None else 0
            self._load_and_repair(score, place, _stored(said), BLOCKS - 1)
        return score

    def _rivals(self) -> Score:
        score = Score(RIVALS, hit=BLOCKS)
        with self._place() as place:
            orders = [self._rng.sample(range(BLOCKS), BLOCKS) for _ in range(4)]
            ends: list[tuple[list[str], int | None]] = []

            def write(order: Sequence[int]) -> None:
                ends.append(self._child("dump", place, numbers=order))

            threads = [threading.Thread(target=write, args=(order,)) for order in orders]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            stored = set()
            for said, code in ends:
                stored |= _stored(said)
                score.hangs += BLOCKS if code is None else 0
            self._load_and_repair(score, place, stored, BLOCKS - 1)
        return score

    def _killed(self) -> list[Score]:
        score = Score(f"{KILLED} {self.kills} times at random")
        scores = [score]
        for _ in range(self.kills):
            killer = Killer(self._rng.randrange(2, 12), self._rng.uniform(0, 0.03))
            self._kill(score, {}, killer)
        for name in self._failpoints():
            score = Score(f"{KILLED} at {name}")
            self._kill(score, {"UCM_FAILPOINTS": f"{name}=crash@2"}, None)
            scores.append(score)
        if len(scores) == 1:
            why = "no failpoints are compiled in (-Dfailpoints=true)"
            scores.append(Score(f"{KILLED} at every change of state", left_out=why))
        return scores

    def _kill(self, score: Score, variables: Mapping[str, str], killer: Killer | None) -> None:
        with self._place() as place:
            said, code = self._child("work", place, variables=variables, killer=killer)
            if code is None:
                score.hangs += 1
            elif code == 0 and variables:
                score.left_out = "it was not passed"
            elif code > 0:
                raise ucm.StoreError(f"the writer ended with code {code} before it was killed")
            last = breaking.last_said(said)
            score.hit += sum(what not in ("stored", "removed") for what in last.values())
            self._load_and_repair(score, place, _stored(said), max(last, default=0) + 1)

    def _failpoints(self) -> list[str]:
        """Return the names that are compiled into the layers."""
        from ucm.pipeline import parse
        from ucm.registry import registry

        names: dict[str, None] = {}
        for word in parse(self.pipeline):
            path = registry().find(word).path
            data = Path(path).read_bytes() if path else b""
            for name in re.findall(rb"failpoint ([a-z]+\.[a-z_]+)\0", data):
                names[name.decode()] = None
        return list(names)

    def _child(
        self,
        operation: str,
        place: Path,
        inside: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        killer: Killer | None = None,
        **task: Any,
    ) -> tuple[list[str], int | None]:
        """Run an operation of this module in a process; return its lines, and how it ended.

        None: it did not end in time.
        """
        task |= {"pipeline": self.pipeline, "options": self._settings(place), "place": str(place)}
        return breaking.run_child(
            "ucm.cli._faults:child",
            {"operation": operation, **task},
            2 * WAIT_MS / 1000,
            inside=inside,
            variables=variables,
            killer=killer,
        )


def _stored(said: Sequence[str]) -> set[int]:
    """Return the blocks of which a writer said last that they are stored."""
    return {number for number, what in breaking.last_said(said).items() if what == "stored"}


# What the child processes do


def child() -> int:
    """Do what the task on stdin says; every line on stdout says what happened to a block."""
    task = json.load(sys.stdin)
    operations: dict[str, Callable[..., None]] = {
        "full": _fill_up,
        "dump": _dump_and_leave,
        "work": _work,
    }
    operations[task.pop("operation")](**task)
    return 0


def _fill_up(pipeline: str, options: Mapping[str, Any], place: str) -> None:
    score = Score(FULL)
    numbers = range(BLOCKS)
    with Subject(pipeline, options) as subject:
        dumped = subject.dump(numbers)
    counts = collections.Counter(dumped.values())
    score.hit, score.told, score.hangs = BLOCKS - counts[RIGHT], counts[TOLD], counts[HUNG]
    stored = [number for number, end in dumped.items() if end == RIGHT]
    with Subject(pipeline, options) as subject:
        score.count(subject.load(numbers), stored)
        for number in stored:
            for path in files_of(Path(place), number):
                path.unlink()
        again = [number for number, end in dumped.items() if end != RIGHT][: len(stored)]
        subject.dump(again)
    with Subject(pipeline, options) as subject:
        score.count_again(subject.load(again))
    print(json.dumps(dataclasses.asdict(score)), flush=True)


def _dump_and_leave(
    pipeline: str, options: Mapping[str, Any], place: str, numbers: Sequence[int]
) -> None:
    subject = Subject(pipeline, options)
    for number, end in subject.dump(numbers).items():
        say("stored" if end == RIGHT else "failed", number)
    os._exit(0)


def _work(pipeline: str, options: Mapping[str, Any], place: str) -> None:
    """Store, load, spoil and remove blocks, so that every part of the layers is used."""
    rng = random.Random(1)
    with Subject(pipeline, options) as subject:
        for number in range(12):
            say("storing", number)
            if subject.dump([number])[number] != RIGHT:
                continue
            say("stored", number)
            with Subject(pipeline, options) as reader:  # nothing of the block is in its memory
                if number % 4 == 2:
                    say("spoiling", number)
                    file = _file_of(Path(place), number)
                    breaking.damage_files([file], breaking.flip_in_payload, rng)
                reader.load([number])
            if number % 4 == 1 and "remove" in subject.store.capabilities:
                say("removing", number)
                subject.store.remove([block_id(number)])
                say("removed", number)
