"""The score card: what passed by part, which promises broke, who was tested, how fast it was."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ucm import Store, __version__
from ucm.conformance.promises import PARTS, Promise
from ucm.conformance.settings import Given

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_ENDS = ("passed", "failed", "skipped")
_DESCRIBED = pytest.StashKey[bool]()  # once a run is enough


def describe(item: pytest.Item, store: Store) -> None:
    """Attach to a test's report what was opened; the card is made where the reports arrive."""
    if not item.config.stash.get(_DESCRIBED, False):
        item.config.stash[_DESCRIBED] = True
        item.user_properties.append(("ucm_store", description_of(store)))


def description_of(store: Store) -> dict[str, Any]:
    """Say what a pipeline is made of: versions of layers and packages, capabilities."""
    from ucm.registry import plugins

    known = {info.name: info for info in plugins()}
    layers = []
    for layer in store.layers:
        info = known.get(layer.partition("#")[0])
        layers.append(
            {
                "name": layer,
                "version": info.version if info else "",
                "package": info.origin if info else "",
                "package_version": info.origin_version if info else "",
            }
        )
    return {
        "pipeline": store.pipeline,
        "layers": layers,
        "capabilities": sorted(store.capabilities),
        "ucm": __version__,
    }


class Card:
    """Collects reports; prints the card at the end of the run, and writes it to a file."""

    def __init__(self, given: Given, worker: bool) -> None:
        self._given = given
        self._worker = worker  # of pytest-xdist: it has a part of the reports
        self._ends: dict[str, str] = {}  # by test
        self._parts: dict[str, str] = {}
        self._promises: dict[str, Promise] = {}  # the test's own, or one that broke in it
        self._reasons: dict[str, str] = {}
        self._store: dict[str, Any] = {}
        self._measured: dict[str, Any] = {}
        self.exit_code = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take a report: a test passed if no phase of it did anything else."""
        properties: dict[str, Any] = dict(report.user_properties)
        if "ucm_promise" not in properties:
            return
        self._store = self._store or properties.get("ucm_store") or {}
        self._measured = properties.get("ucm_measured") or self._measured
        test = report.nodeid.rpartition("/")[2]
        worse = _ENDS.index(report.outcome) > 0
        if self._ends.get(test, "passed") == "passed" or report.outcome == "failed":
            self._ends[test] = report.outcome
        self._parts[test] = properties["ucm_part"]
        self._promises[test] = Promise[properties["ucm_promise"]]
        if worse and test not in self._reasons:
            self._reasons[test] = _reason(report)

    def as_dict(self) -> dict[str, Any]:
        """Return the card as it goes into the file."""
        parts = {part: dict.fromkeys(_ENDS, 0) for part in PARTS}
        for test, end in self._ends.items():
            parts[self._parts[test]][end] += 1
        broken: dict[Promise, list[str]] = {}
        for test, end in self._ends.items():
            if end == "failed":
                broken.setdefault(self._promises[test], []).append(test)
        skipped = collections.Counter(
            self._reasons[test] for test, end in self._ends.items() if end == "skipped"
        )
        return {
            **self._store,
            "parts": parts,
            "broken": [
                {
                    "promise": promise.name,
                    "part": promise.part,
                    "text": promise.text,
                    "remedy": promise.remedy,
                    "tests": broken[promise],
                    "reason": self._reasons[broken[promise][0]],
                }
                for promise in Promise
                if promise in broken
            ],
            "skipped": dict(skipped),
            "measured": self._measured,
        }

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        """Write the file."""
        self.exit_code = int(exitstatus)
        if self._given.report and self._ends and not self._worker:
            Path(self._given.report).write_text(json.dumps(self.as_dict(), indent=2) + "\n")

    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> None:
        """Print it."""
        if not self._ends:
            return
        terminalreporter.section("ucm.conformance")
        for line in lines_of(self.as_dict()):
            terminalreporter.write_line(line)


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):
        return str(report.longrepr[2]).removeprefix("Skipped: ")
    crash = getattr(report.longrepr, "reprcrash", None)
    text: str = crash.message if crash else str(report.longrepr)
    for noise in (
        "AssertionError: ",
        "Failed: ",
        "ucm.errors.",
        "ucm.conformance.bounds.",
        "ucm.conformance.kit.OtherBytes: ",
    ):
        text = text.removeprefix(noise)
    return text.partition("\n")[0][:200]


def lines_of(card: dict[str, Any]) -> list[str]:
    """Write the card as text."""
    lines = []
    if "pipeline" in card:
        names = (_layer_line(layer) for layer in card["layers"])
        lines += [f"{card['pipeline']}: {', '.join(names)}; ucm-store {card['ucm']}"]
        lines += [f"capabilities: {' '.join(card['capabilities'])}"]
    lines += [f"{'part':10}{'passed':>8}{'failed':>8}{'skipped':>9}"]
    for part, ends in card["parts"].items():
        lines.append(f"{part:10}{ends['passed']:8}{ends['failed']:8}{ends['skipped']:9}")
    for reason, count in card["skipped"].items():
        lines.append(f"skipped {count}: {reason}")
    for broken in card["broken"]:
        first, *others = broken["tests"]
        more = f" and {len(others)} more" if others else ""
        lines += [
            f"BROKEN {broken['promise']}: {broken['text']}",
            f"  by {first}{more}: {broken['reason']}",
            f"  to do: {broken['remedy']}",
        ]
    lines += [f"{name}: {figure}" for name, figure in _figures(card["measured"])]
    return lines


def _layer_line(layer: dict[str, str]) -> str:
    package = f"{layer['package']} {layer['package_version']}".strip()
    return f"{layer['name']} {layer['version']}".strip() + (f" ({package})" if package else "")


def _figures(measured: dict[str, Any]) -> list[tuple[str, str]]:
    figures = []
    for name, figure in measured.items():
        if "gb_per_s" in figure:
            shown = f"{figure['gb_per_s']:.2f} GB/s, {figure['bytes'] >> 20} MiB in one task"
        elif "p99_us" in figure:
            shown = f"p50 {figure['p50_us']:.0f} us, p99 {figure['p99_us']:.0f} us"
        else:
            shown = f"{figure['us_per_block']:.2f} us a block"
        figures.append((name, shown))
    return figures
