"""``ucm fsck``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.directory import Checked

# The table has no more; --json has all.
_TOLD = 100


@click.command("fsck", short_help="Verify every byte in storage directories.")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option(
    "--quarantine",
    is_flag=True,
    help="Move damaged blocks to .ucm/quarantine, as a store does; beyond 64 delete them.",
)
@click.option("--delete", "deletes", is_flag=True, help="Delete damaged blocks.")
@click.option(
    "--threads", type=click.IntRange(1, 256), help="That read and verify; default: by the machine."
)
@_common.json_flag
def command(
    directories: tuple[str, ...],
    quarantine: bool,
    deletes: bool,
    threads: int | None,
    as_json: bool,
) -> int:
    """Verify every byte of every block, and name what else is not as it should be.

    Reports only, unless told otherwise; engines may go on meanwhile and keep what they have in the
    page cache. Exit code 0: no damage; 1: damage was found; 2: the command line is wrong,
    or a DIR is no storage directory.
    """
    from ucm import directory, errors

    if quarantine and deletes:
        raise click.UsageError("--quarantine and --delete are both given; keep one of them")
    for path in directories:
        try:
            directory.check_format(path)
        except errors.StoreError as error:  # 1 is for damage
            raise click.UsageError(str(error)) from None
    action = "quarantine" if quarantine else "delete" if deletes else None
    threads = threads or max(4, min(16, 2 * (os.cpu_count() or 1)))
    found = []
    with _progress(directories) as advance:
        for path in directories:
            found.append(directory.check(path, threads, action, advance))
    if as_json:
        _common.print_json([_as_json(one) for one in found])
    else:
        for one in found:
            _show(one)
    return int(any(one.damaged for one in found))


@contextlib.contextmanager
def _progress(directories: tuple[str, ...]) -> Iterator[Callable[[int], None]]:
    """Show a bar on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    from ucm import directory

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda size: None
        return
    total = sum(directory.stored_bytes(path) for path in directories)
    columns = (
        TextColumn("verifying"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda size: progress.advance(task, size)


def _as_json(one: Checked) -> dict[str, object]:
    shown = dataclasses.asdict(one)
    shown["damaged"] = one.damaged
    for finding, plain in zip(one.findings, shown["findings"], strict=True):
        plain["damage"] = finding.damage
    return shown


def _show(one: Checked) -> None:
    size = _common.human_bytes
    damage = f"{one.damaged} damaged" if one.damaged else "no damage"
    notes = f", {one.total - one.damaged} notes" if one.total > one.damaged else ""
    click.echo(f"{one.directory}: {one.blocks} blocks, {size(one.bytes)} verified, {damage}{notes}")
    if one.findings:
        rows = [(f.kind, f.path, f.problem, f.action) for f in one.findings[:_TOLD]]
        _common.print_table(("kind", "path", "problem", "done"), rows)
    if (more := one.total - _TOLD) > 0:
        click.echo(f"  and {more} more; --json lists them")
