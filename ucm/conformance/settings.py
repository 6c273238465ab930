"""What the suite is told, on the command line or by the environment."""

from __future__ import annotations

import dataclasses
import os
import shlex

import pytest

# Option, variable, what it is called in the help, help.
_TEXTS = (
    ("--ucm-pipeline", "UCM_CONFORMANCE_PIPELINE", "PIPELINE",
     "the pipeline to test: 'Cache|MyStore', or 'module:Class' of a Python store"),
    ("--ucm-files", "UCM_CONFORMANCE_FILES", "PATTERN",
     "where a block is kept, for the fault tests: '{tmp}/**/{id}*', or 'module:Class'"),
    ("--ucm-timeout", "UCM_CONFORMANCE_TIMEOUT", "SECONDS",
     "limit of each wait; a test may take five times as long (default: 120)"),
    ("--ucm-kills", "UCM_CONFORMANCE_KILLS", "N",
     "how often a writer is killed at a random moment (default: 3)"),
    ("--ucm-report", "UCM_CONFORMANCE_REPORT", "FILE", "write the score card to a JSON file"),
)  # fmt: skip
OPTIONS_ENV = "UCM_CONFORMANCE_OPTIONS"


@dataclasses.dataclass(frozen=True)
class Given:
    """What was given; "" and defaults where nothing was."""

    pipeline: str
    options: list[str]
    parts: list[str]
    files: str
    timeout_s: float | None
    kills: int
    report: str


def add_options(parser: pytest.Parser, parts: tuple[str, ...]) -> None:
    """Add the options to pytest's."""
    group = parser.getgroup("ucm", "contract of ucm stores (--pyargs ucm.conformance)")
    for option, variable, name, text in _TEXTS:
        group.addoption(option, metavar=name, help=f"{text}; or {variable}")
    group.addoption(
        "--ucm-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="an option of the pipeline; '{tmp}' becomes a fresh directory; may be repeated; "
        f"or {OPTIONS_ENV}, with spaces between",
    )
    group.addoption(
        "--ucm-part",
        action="append",
        default=[],
        choices=parts,
        help="run this part alone; may be repeated",
    )


def read(config: pytest.Config) -> Given:
    """Read the options; what is not on the command line is in the environment."""
    texts = {
        option: config.getoption(option) or os.environ.get(variable, "")
        for option, variable, _, _ in _TEXTS
    }
    return Given(
        pipeline=texts["--ucm-pipeline"],
        options=[*shlex.split(os.environ.get(OPTIONS_ENV, "")), *config.getoption("--ucm-option")],
        parts=config.getoption("--ucm-part"),
        files=texts["--ucm-files"],
        timeout_s=_number("--ucm-timeout", texts["--ucm-timeout"]),
        kills=int(_number("--ucm-kills", texts["--ucm-kills"] or "3") or 0),
        report=texts["--ucm-report"],
    )


def _number(option: str, text: str) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        raise pytest.UsageError(f"{option} {text!r}: write a number") from None
