"""What the commands share."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")
option_flag = click.option(
    "--option",
    "-o",
    "pairs",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the pipeline, such as Posix.timeout_ms=5000; may be repeated.",
)


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=2, default=str))


def console() -> Console:
    """Return a console for tables; piped output is not squeezed into 80 columns."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> None:
    """Print a table; ``right``: so many columns after the first are numbers."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for at, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="right" if 0 < at <= right else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console().print(table)


def parse_options(pairs: Iterable[str]) -> dict[str, str]:
    """Read KEY=VALUE texts."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--option {pair}: write it as KEY=VALUE")
        options[key] = value
    return options


def size(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Callback of flags that take a number of bytes, or text like 64KiB."""
    from ucm.options import parse_size

    if value is None:
        return None
    try:
        return parse_size(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is not a number of bytes, or text like '64KiB'", context, parameter
        ) from None


def human_bytes(count: float) -> str:
    """Show bytes in the unit that fits."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def human_seconds(seconds: float) -> str:
    """Show an age in the largest unit of which there are two."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
