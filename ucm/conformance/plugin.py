"""The contract suite's part of pytest, for pytest's entry point; it touches no other tests."""

from __future__ import annotations

from typing import Any

import pytest

from ucm.conformance import settings
from ucm.conformance.promises import PARTS, promise_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    settings.add_options(parser, PARTS)


def pytest_configure(config: pytest.Config) -> None:
    """Keep score when something is tested."""
    given = settings.read(config)
    if given.pipeline:
        from ucm.conformance import kit
        from ucm.conformance.card import Card

        limit_ms = max(1, round((given.timeout_s or 0) * 1000))
        kit.WAIT_MS = limit_ms if given.timeout_s else kit.USUAL_WAIT_MS
        card = Card(given, worker=hasattr(config, "workerinput"))
        config.pluginmanager.register(card, "ucm-conformance-card")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give every test the name of its promise; leave out the parts that were not asked for."""
    wanted = settings.read(config).parts
    left_out = []
    for item in items:
        promise = promise_of(getattr(item, "function", None))
        if promise is None:
            continue
        item.user_properties += [("ucm_part", promise.part), ("ucm_promise", promise.name)]
        if wanted and promise.part not in wanted:
            left_out.append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> None:
    """Bound the time of every test of this suite."""
    if promise_of(pyfuncitem.function) is not None:
        from ucm.conformance.bounds import bounded

        pyfuncitem.obj = bounded(pyfuncitem)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """Do not wait at exit for what has hung."""
    card: Any = config.pluginmanager.get_plugin("ucm-conformance-card")
    if card is not None:
        from ucm.conformance import bounds

        # A worker of pytest-xdist has told its results by now.
        bounds.leave_if_abandoned(card.exit_code)
