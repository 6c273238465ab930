"""``ucm inspect``."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.directory import Directory, Space


@click.command("inspect", short_help="Show what storage directories hold.")
@click.argument("directories", nargs=-1, required=True, metavar="DIR...")
@click.option("--namespace", help="Only what belongs to this namespace.")
@click.option("--blocks", "with_blocks", is_flag=True, help="Every block too, from its header.")
@_common.json_flag
def command(
    directories: tuple[str, ...], namespace: str | None, with_blocks: bool, as_json: bool
) -> None:
    """Show what the storage directories of Posix hold: namespaces, models, layouts, sizes.

    Opens no store and writes nothing; engines may go on meanwhile.
    """
    from ucm import directory

    found = [directory.inspect(path, namespace) for path in directories]
    if as_json:
        _common.print_json([_as_json(one, with_blocks) for one in found])
        return
    for one in found:
        _show(one)
        if with_blocks:
            for space in one.spaces:
                for block in directory.blocks(space):
                    problem = f"  ({block.problem})" if block.problem else ""
                    click.echo(f"{block.path}  {block.shards} shards, {block.bytes} B{problem}")


def _as_json(one: Directory, with_blocks: bool) -> dict[str, Any]:
    from ucm import directory

    shown = dataclasses.asdict(one)
    for space, plain in zip(one.spaces, shown["spaces"], strict=True):
        plain["oldest"], plain["newest"] = _time(space.oldest), _time(space.newest)
        if with_blocks:
            plain["block_list"] = [
                {**dataclasses.asdict(block), "published": _time(block.published)}
                for block in directory.blocks(space)
            ]
    return shown


def _time(seconds: float | None) -> str | None:
    if not seconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def layout_text(space: Space) -> str:
    """Say in a few words how blocks are cut and coded."""
    coded = f", {space.encoding}" if space.encoding else ""
    return f"{space.shards_per_block} x {space.raw_capacity} B{coded}"


def _show(one: Directory) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    click.echo(f"{one.directory} ({one.uuid})")
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("namespace", "model", "fingerprint", "layout", "space"):
        table.add_column(column, overflow="fold")
    for column in ("blocks", "size", "oldest", "newest"):
        table.add_column(column, justify="right", overflow="fold")
    for space in one.spaces:
        layout = space.problem or layout_text(space)
        times = [_time(space.oldest) or "", _time(space.newest) or ""]
        cells = [space.namespace, space.model, space.fingerprint, layout, space.space]
        cells += [str(space.blocks), _common.human_bytes(space.bytes), *times]
        table.add_row(*map(escape, cells))
    if one.spaces:
        _common.console().print(table)
    else:
        click.echo("  no spaces: nothing was stored yet")
    size = _common.human_bytes
    click.echo(
        f"  {one.writers} writers alive, {size(one.temporary_bytes)} in temporary files, "
        f"{one.quarantined} files ({size(one.quarantined_bytes)}) in quarantine, "
        f"{one.trash} removed spaces still being deleted"
    )
