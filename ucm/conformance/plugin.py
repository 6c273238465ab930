"""The command line options of the contract suite, for pytest's entry point."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("ucm", "contract of ucm stores (--pyargs ucm.conformance)")
    group.addoption(
        "--ucm-pipeline",
        metavar="PIPELINE",
        help="the pipeline to test: 'Cache|MyStore', or 'module:Class' of a Python store",
    )
    group.addoption(
        "--ucm-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the pipeline; '{tmp}' becomes a fresh directory; may be repeated",
    )
