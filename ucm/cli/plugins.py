"""``ucm plugins``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from rich.table import Table

    from ucm.registry import PluginInfo


@click.command("plugins", short_help="List the stores and their options.")
@click.argument("name", required=False)
@_common.json_flag
def command(name: str | None, as_json: bool) -> int:
    """List the stores that a pipeline string may name; with NAME, its options and metrics.

    A store that was refused is listed with the reason.
    """
    import ucm

    infos = ucm.plugins()
    if name is None:
        if as_json:
            _common.print_json([_as_json(info) for info in infos])
        else:
            _common.console().print(_list(infos))
        return 0
    # Two packages may have the same name; "dist:Name" says which.
    found = [info for info in infos if name in (info.name, f"{info.origin}:{info.name}")]
    if not found:
        near = difflib.get_close_matches(name.capitalize(), [i.name for i in infos], 1, 0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "; 'ucm plugins' lists all"
        raise click.UsageError(f"there is no store {name!r}{hint}")
    if as_json:
        _common.print_json([_as_json(i) for i in found] if len(found) > 1 else _as_json(found[0]))
    for info in found:
        if info.error is not None:
            click.echo(f"ucm: {info.name} ({info.origin}) was refused: {info.error}", err=True)
        elif not as_json:
            _show(info)
    return int(any(info.error is not None for info in found))


def _as_json(info: PluginInfo) -> dict[str, Any]:
    return dataclasses.asdict(info)


def _table(title: str, columns: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _list(infos: Sequence[PluginInfo]) -> Table:
    from rich.markup import escape

    from ucm.loader import own_abi

    title = f"this ucm-store has ABI {own_abi()}"
    table = _table(title, ["name", "version", "origin", "ABI", "what"])
    for info in infos:
        what = info.summary if info.error is None else f"refused: {info.error}"
        style = None if info.error is None else "red"
        origin = f"{info.origin} {info.origin_version}".strip()
        abi = info.abi or ("" if info.error else "Python")
        table.add_row(info.name, info.version, escape(origin), abi, escape(what), style=style)
    return table


def _show(info: PluginInfo) -> None:
    from rich.markup import escape

    console = _common.console()
    origin = f"{info.origin} {info.origin_version}".strip()
    click.echo(f"{info.name} {info.version} ({origin}): {info.summary}".replace("  ", " "))
    click.echo(f"{info.path}, {f'ABI {info.abi}' if info.abi else 'in Python'}")
    place = "a layer over another store" if info.needs_lower else "stands at the bottom"
    click.echo(f"{place}; takes {'host and cuda' if info.takes_cuda else 'host'} memory")
    if info.options:
        table = _table("options", ["name", "type", "default", "allowed", "unit", "what"])
        for option in info.options:
            default = "(required)" if option.initial is None else option.initial
            cells = [option.name, option.type, default, option.allowed, option.unit, option.help]
            table.add_row(*(escape(cell or "") for cell in cells))
        console.print(table)
    if info.metrics:
        table = _table("metrics", ["name", "kind", "unit", "what"])
        for metric in info.metrics:
            table.add_row(metric.name, metric.kind, metric.unit, escape(metric.help))
        console.print(table)
