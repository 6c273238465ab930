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
from ucm.registry import registry

OpenStore = Callable[..., Store]

SHARDS = 4
SEGMENTS = (1536, 512)
CLOSE_MS = 60000


@dataclasses.dataclass(frozen=True)
class Target:
    """What is tested: a pipeline string and its options as text."""

    pipeline: str
    options: dict[str, str] = dataclasses.field(default_factory=dict)


def target_of(pipeline: str, options: list[str]) -> Target:
    """Read the command line; a ``module:Class`` is imported and registered as its class's name."""
    pairs = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise pytest.UsageError(f"--ucm-option {option!r}: write KEY=VALUE")
        pairs[key] = value
    return Target(_registered(pipeline), pairs)


def _registered(pipeline: str) -> str:
    for word in pipeline.split("|"):
        module, colon, name = word.strip().partition(":")
        if colon:
            _register(module, name)
    return pipeline


def _register(module: str, name: str) -> None:
    word = f"{module}:{name}"
    try:
        registry().find(word)
    except ConfigError:
        try:
            store_class = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise pytest.UsageError(f"--ucm-pipeline {word!r}: {error}") from error
        registry().register(name, store_class, origin=module)


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config) -> Target:
    """Return what ``--ucm-pipeline`` and ``--ucm-option`` name."""
    pipeline = pytestconfig.getoption("--ucm-pipeline")
    if not pipeline:
        raise pytest.UsageError("ucm.conformance: say what to test, --ucm-pipeline 'Cache|MyStore'")
    return target_of(pipeline, pytestconfig.getoption("--ucm-option"))


@pytest.fixture
def open_store(target: Target, tmp_path: Path) -> Iterator[OpenStore]:
    """Open the target; all stores of one test share one storage, and are closed at its end.

    Without other sizes a block has 4 shards of two unequal segments.
    """
    fixed = {key: value.replace("{tmp}", str(tmp_path)) for key, value in target.options.items()}
    opened: list[Store] = []

    def open_one(**overrides: Any) -> Store:
        sizes = {"tensor_size_list": SEGMENTS, "block_size": SHARDS * sum(SEGMENTS)}
        if overrides.keys() & {"block_size", "shard_size", "tensor_size", "tensor_size_list"}:
            sizes = {}
        store = open_pipeline(target.pipeline, **{**sizes, **fixed, **overrides})
        opened.append(store)
        return store

    yield open_one
    for store in reversed(opened):
        store.close(CLOSE_MS)


@pytest.fixture
def store(open_store: OpenStore) -> Store:
    """Open the target once, in the default sizes."""
    return open_store()


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """Return random numbers that are the same whenever this test runs."""
    return random.Random(zlib.crc32(request.node.nodeid.encode()))
