"""``ucm gc``."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.directory import Collected


@click.command("gc", short_help="Make room in a storage directory, coldest blocks first.")
@click.argument("directory_path", metavar="DIR")
@click.option(
    "--to",
    callback=_common.size,
    metavar="SIZE",
    help="How much may be left, such as 100GiB; default: what a store's own round leaves of the "
    "limit that running stores set.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would go.")
@click.option("--quarantine", is_flag=True, help="Empty the quarantine too.")
@_common.json_flag
def command(
    directory_path: str, to: int | None, dry_run: bool, quarantine: bool, as_json: bool
) -> int:
    """Evict blocks until no more than SIZE is left: the coldest first, tails of prefixes first.

    The order is a store's own. What killed writers and removals have left goes before any block.
    Engines may go on meanwhile: they miss what is gone.
    """
    from ucm import directory

    found = directory.collect(directory_path, to, dry_run, quarantine)
    if as_json:
        _common.print_json({**dataclasses.asdict(found), "dry_run": dry_run})
    else:
        _show(found, dry_run)
    if found.problem:
        click.echo(f"ucm: {found.refused} blocks cannot be removed; {found.problem}", err=True)
    elif not found.enough:
        click.echo("ucm: more is left than wanted: it was used meanwhile", err=True)
    elif found.after > found.target:
        left = _common.human_bytes(found.after)
        click.echo(
            f"ucm: no block is left; {left} are quarantine (--quarantine removes it), marks and "
            "what living writers hold",
            err=True,
        )
    return int(not found.enough or found.problem is not None)


def _show(found: Collected, dry_run: bool) -> None:
    size = _common.human_bytes
    click.echo(
        f"{found.directory}: {size(found.before)} {'are' if dry_run else 'were'} there, "
        f"{size(found.target)} may be left"
    )
    if found.spaces:
        rows = [(space, str(blocks)) for space, blocks in sorted(found.spaces.items())]
        _common.print_table(("space", "blocks"), rows, right=1)
    swept = "".join(
        f", {size(freed)} {what}"
        for freed, what in (
            (found.orphan_bytes, "of killed writers and removals"),
            (found.quarantine_bytes, "in quarantine"),
        )
        if freed
    )
    click.echo(
        f"{'would remove' if dry_run else 'removed'} {found.blocks} blocks, "
        f"{size(found.block_bytes)}{swept}; {size(found.after)} left"
    )
