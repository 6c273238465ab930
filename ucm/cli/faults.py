"""``ucm bench faults``."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.cli._faults import Score

COUNTS = ("stored", "hit", "wrong", "told", "lost", "recovered", "hangs")


@click.command("faults", short_help="Break a pipeline in every way, and keep the score.")
@click.option("--pipeline", default="Cache|Compress|Posix", show_default=True, help="Layers.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False),
    help="Where the files go for the time. Default: a temporary directory.",
)
@click.option(
    "--only", multiple=True, metavar="FAULT", help="One fault of the table; may be repeated."
)
@click.option(
    "--kills", type=click.IntRange(0), default=8, show_default=True, help="Kills at random moments."
)
@click.option("--seed", type=int, default=1, show_default=True, help="What is random follows it.")
@_common.option_flag
@_common.json_flag
def command(
    pipeline: str,
    directory: str | None,
    only: tuple[str, ...],
    kills: int,
    seed: int,
    pairs: tuple[str, ...],
    as_json: bool,
) -> int:
    """Damage files, fill the disk, kill writers: what does the pipeline serve afterwards?

    All is counted in blocks. Stored: said to be stored before the fault. Hit: met by it. Wrong:
    served with other bytes than were dumped. Told: ended with an error that says so. Lost: stored
    before, and not served now; what was hit must be. Recovered: served again after another dump.
    Hangs: did not end within 30 s. The exit code is 1 if anything is wrong or hangs.
    """
    from ucm.cli._faults import FAULTS, Matrix
    from ucm.cli._measure import machine

    for name in only:
        if name not in FAULTS:
            raise click.UsageError(f"--only {name!r}: there are {', '.join(map(repr, FAULTS))}")
    options = _common.parse_options(pairs)
    with _directory(directory) as place, _progress(len(only or FAULTS)) as advance:
        scores = Matrix(pipeline, options, place, kills, seed, advance).run(only)
    result = {
        "pipeline": pipeline,
        "faults": [dataclasses.asdict(score) for score in scores],
        "wrong": sum(score.wrong for score in scores),
        "hangs": sum(score.hangs for score in scores),
        "machine": machine(),
    }
    if as_json:
        _common.print_json(result)
    else:
        _show(pipeline, scores)
    return 1 if result["wrong"] or result["hangs"] else 0


@contextlib.contextmanager
def _directory(named: str | None) -> Iterator[Path]:
    if named is not None:
        Path(named).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ucm-faults-", dir=named) as temporary:
        yield Path(temporary)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda name: progress.update(task, advance=1, description=name)


def _row(score: Score) -> list[str]:
    values: dict[str, Any] = dataclasses.asdict(score)
    cells = {name: str(values[name]) for name in COUNTS}
    cells["recovered"] = f"{score.recovered} of {score.again}"
    return list(cells.values())


def _show(pipeline: str, scores: list[Score]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(title=f"{pipeline}, in blocks", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("fault")
    for name in COUNTS:
        table.add_column(name, justify="right")
    for score in scores:
        if score.left_out:
            table.add_row(score.fault, "left out")
        else:
            table.add_row(score.fault, *_row(score))
    _common.console().print(table)
    for score in scores:
        if score.left_out:
            click.echo(f"left out: {score.fault}: {score.left_out}")
    wrong, hangs = (sum(getattr(score, name) for score in scores) for name in ("wrong", "hangs"))
    click.echo(f"{wrong} blocks with wrong bytes, {hangs} hangs")
