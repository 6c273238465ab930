"""Fixtures of the contract suite; other suites may override ``target``."""

from __future__ import annotations

import dataclasses
import importlib
import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ucm import ConfigError, Store, open_pipeline
from ucm.conformance import bounds, card, kit, settings
from ucm.conformance.storage import Storage, storage_of
from ucm.pipeline import parse
from ucm.registry import registry

OpenStore = Callable[..., Store]

SHARDS = 4
SEGMENTS = (1536, 512)


@dataclasses.dataclass(frozen=True)
class Target:
    """What is tested: a pipeline string and its options as text.

    ``files`` says where its bytes are, as ``--ucm-files`` does; "" if nobody knows.
    """

    pipeline: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)
    files: str = ""

    def options_in(self, folder: Path) -> dict[str, str]:
        """Return the options of a test that has this folder."""
        return {key: value.replace("{tmp}", str(folder)) for key, value in self.options.items()}


def target_of(pipeline: str, options: list[str], files: str = "") -> Target:
    """Read the command line; a ``module:Class`` is imported and registered as its class's name."""
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise pytest.UsageError(f"--ucm-option {option!r}: write KEY=VALUE")
        pairs[key] = value
    return Target(_registered(pipeline), pairs, files)


def _registered(pipeline: str) -> str:
    for word in pipeline.split("|"):
        if ":" in word:
            known(word.strip(), word.strip())
    return pipeline


def known(word: str, place: str) -> None:
    """See to it that a word of a pipeline is known: if it is not, as ``module:Class`` says."""
    try:
        registry().find(word)
        return
    except ConfigError as error:
        unknown = error
    module, _, class_name = place.partition(":")
    try:
        store_class = getattr(importlib.import_module(module), class_name)
    except (ImportError, AttributeError) as error:
        raise pytest.UsageError(f"--ucm-pipeline {word!r}: {error}; {unknown}") from error
    origin, _, name = word.rpartition(":")
    registry().register(name, store_class, origin=origin or module)


def classes_of(pipeline: str) -> dict[str, str]:
    """Return where the classes are that another process does not know by itself."""
    found = {word: registry().find(word).python for word in parse(pipeline)}
    return {word: ":".join(p.path.rsplit(".", 1)) for word, p in found.items() if p is not None}


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    """Return what the command line or the environment names."""
    given = settings.read(pytestconfig)
    if not given.pipeline:
        raise pytest.UsageError("ucm.conformance: say what to test, --ucm-pipeline 'Cache|MyStore'")
    return target_of(given.pipeline, given.options, given.files)


@pytest.fixture
def open_store(
    target: Target, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[OpenStore]:
    """Open the target; all stores of one test share one storage, and are closed at its end.

    Without other sizes a block has 4 shards of two unequal segments.
    """
    fixed = target.options_in(tmp_path)
    opened: list[Store] = []

    def open_one(**overrides: Any) -> Store:
        sizes = {"tensor_size_list": SEGMENTS, "block_size": SHARDS * sum(SEGMENTS)}
        if overrides.keys() & {"block_size", "shard_size", "tensor_size", "tensor_size_list"}:
            sizes = {}
        limit = {"timeout_ms": kit.WAIT_MS} if kit.WAIT_MS < kit.USUAL_WAIT_MS else {}
        pipeline = overrides.pop("store_pipeline", target.pipeline)
        store = open_pipeline(pipeline, **{**sizes, **limit, **fixed, **overrides})
        opened.append(store)
        card.describe(request.node, store)
        return store

    yield open_one
    bounds.close_all(request.node, opened)


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """Open the target once, in the default sizes."""
    return open_store()


@pytest.fixture
def storage(target: Target, tmp_path: Path) -> Storage:
    """Reach what the target keeps, as ``--ucm-files`` says."""
    if not target.files:
        pytest.skip("nobody said where the bytes are (--ucm-files)")
    return storage_of(target.files, target.options_in(tmp_path), tmp_path)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Return random numbers that are the same whenever this test runs."""
    return random.Random(zlib.crc32(request.node.nodeid.encode()))
