"""``ucm remove``."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.directory import Directory, Space

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _age(context: click.Context, parameter: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    match = re.fullmatch(r"(\d+)([smhdw])", value)
    if not match:
        raise click.BadParameter(
            f"{value!r} is no age; write a number and s, m, h, d or w, such as 7d",
            context,
            parameter,
        )
    return float(int(match[1]) * _UNITS[match[2]])


@click.command("remove", short_help="Remove what a namespace keeps in storage directories.")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--namespace", required=True, help="Whose blocks to remove.")
@click.option("--model", help="Only those of this model.")
@click.option("--space", "start", help="Only this space: its digits, or how they begin.")
@click.option(
    "--older-than", callback=_age, metavar="AGE", help="Only spaces not used for so long, 7d."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_common.json_flag
def command(
    directories: tuple[str, ...],
    namespace: str,
    model: str | None,
    start: str | None,
    older_than: float | None,
    yes: bool,
    as_json: bool,
) -> int:
    """Remove spaces of one namespace: all of it, or those that the options single out.

    Engines may go on meanwhile: they miss what is removed, and store it again.
    """
    from ucm import directory

    found = [directory.inspect(path) for path in directories]
    _check_namespace(found, namespace)
    chosen = [
        space
        for one in found
        for space in one.spaces
        if space.namespace == namespace
        and model in (None, space.model)
        and space.space.startswith(start or "")
        and (older_than is None or directory.idle_seconds(space) > older_than)
    ]
    if chosen and not yes:
        _ask(chosen, as_json)
    removed: list[dict[str, str | int]] = []
    left: list[str] = []
    count = total = 0
    for space in chosen:
        blocks, size, rest = directory.remove(space)
        count, total, left = count + blocks, total + size, left + rest
        removed.append({"space": str(space.path), "blocks": blocks, "bytes": size})
    if as_json:
        _common.print_json({"removed": removed, "left": left})
    elif not chosen:
        click.echo("nothing to remove")
    else:
        click.echo(f"removed {len(removed)} spaces, {count} blocks, {_common.human_bytes(total)}")
    for path in left:
        click.echo(f"ucm: {path} is left, it is no block file", err=True)
    return int(bool(left))


def _check_namespace(found: list[Directory], namespace: str) -> None:
    known = sorted({space.namespace for one in found for space in one.spaces})
    if namespace not in known:
        names = ", ".join(known) or "none"
        raise click.UsageError(f"there is no namespace {namespace!r} here; there are: {names}")


def _ask(chosen: list[Space], as_json: bool) -> None:
    from ucm.cli.inspect import layout_text

    for space in chosen:
        click.echo(
            f"{space.path}: model {space.model or '(none)'}, {layout_text(space)}, "
            f"{space.blocks} blocks, {_common.human_bytes(space.bytes)}",
            err=as_json,
        )
    if not sys.stdin.isatty():
        raise click.UsageError("there is no terminal to ask on; --yes removes it unasked")
    count, size = sum(s.blocks for s in chosen), sum(s.bytes for s in chosen)
    click.confirm(f"Remove {count} blocks, {_common.human_bytes(size)}?", abort=True, err=as_json)
