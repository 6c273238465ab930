"""``ucm inspect``."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.directory import Directory, Space
    from ucm.directory.ledger import Ledger
    from ucm.segments import Segment


@click.command("inspect", short_help="Show what storage directories, or shared memory, hold.")
@click.argument("directories", nargs=-1, metavar="[DIR...]")
@click.option(
    "--memory",
    "memory",
    is_flag=True,
    help="Instead of DIR: the segments of shared memory that stores of this user have.",
)
@click.option("--namespace", help="Only what belongs to this namespace.")
@click.option(
    "--headers",
    "all_headers",
    is_flag=True,
    help="Read the header of every block, not of 1,000 a space, for ratio and time of publishing, "
    "and the frames of all for codecs, not of 32.",
)
@click.option("--blocks", "with_blocks", is_flag=True, help="Every block too, from its header.")
@_common.json_flag
def command(
    directories: tuple[str, ...],
    memory: bool,
    namespace: str | None,
    all_headers: bool,
    with_blocks: bool,
    as_json: bool,
) -> None:
    """Show what the storage directories of Posix hold: namespaces, models, layouts, sizes, ages.

    Opens no store and writes nothing; engines may go on meanwhile. A block's file says when it was
    last used, its header when it was published.

    With --memory, shows the segments in /dev/shm that stores of one unique_id share: their room,
    their blocks, and which of their processes live. It joins none of them.
    """
    if memory == bool(directories):
        raise click.UsageError("name storage directories, or --memory for shared memory")
    if memory:
        return _inspect_memory(as_json)
    from ucm import directory

    headers = None if all_headers else directory.SAMPLED_HEADERS
    found = [directory.inspect(path, namespace, headers) for path in directories]
    if as_json:
        _common.print_json([_as_json(one, with_blocks) for one in found])
        return None
    for one in found:
        _show(one, namespace)
        if with_blocks:
            for space in one.spaces:
                for block in directory.blocks(space):
                    problem = f"  ({block.problem})" if block.problem else ""
                    click.echo(f"{block.path}  {block.shards} shards, {block.bytes} B{problem}")
    return None


def _inspect_memory(as_json: bool) -> None:
    from ucm import segments

    found = segments.inspect()
    if as_json:
        return _common.print_json([{**dataclasses.asdict(s), "alive": s.alive} for s in found])
    if not found:
        click.echo(f"no segments of this user in {segments.FOLDER}")
        return None
    size, rows = _common.human_bytes, []
    for one in found:
        blocks = one.blocks
        rows.append(
            (
                one.unique_id,
                one.problem or one.phase or "",
                f"{one.shards_per_block} x {size(one.shard_bytes)}" if one.frames else "",
                f"{one.frames_free}/{one.frames_ready}/{one.frames}" if one.frames else "",
                "/".join(str(blocks[s]) for s in ("clean", "gathering", "dirty")) if blocks else "",
                size(one.allocated_bytes),
                "" if one.huge_bytes is None else size(one.huge_bytes),
                _common.human_seconds(one.idle_s) if one.idle_s is not None else "",
            )
        )
    columns = ("unique_id", "phase", "block", "free/ready/all", "clean/gathering/dirty")
    _common.print_table((*columns, "memory", "huge", "idle"), rows)
    for one in found:
        click.echo(f"  {one.unique_id}: {_members_text(one)}{f'; {one.label}' * bool(one.label)}")
    return None


def _members_text(one: Segment) -> str:
    texts = [f"{m.pid or '?'}{'' if m.alive else ' (dead)'}" for m in one.members]
    return f"pid {', '.join(texts)}" if texts else "no members"


def _as_json(one: Directory, with_blocks: bool) -> dict[str, Any]:
    from ucm import directory

    shown = dataclasses.asdict(one)
    for space, plain in zip(one.spaces, shown["spaces"], strict=True):
        plain["coldest"], plain["hottest"] = _time(space.coldest), _time(space.hottest)
        plain["headers"]["oldest"] = _time(space.headers.oldest)
        plain["headers"]["newest"] = _time(space.headers.newest)
        plain["headers"]["ratio"] = space.headers.ratio
        for name, coded in space.headers.codecs.items():
            plain["headers"]["codecs"][name]["ratio"] = coded.ratio
        if with_blocks:
            plain["block_list"] = [
                {
                    **dataclasses.asdict(block),
                    "published": _time(block.published),
                    "used": _time(block.used),
                }
                for block in directory.blocks(space)
            ]
    if one.ledger:
        shown["ledger"]["set_by"] = [account.writer for account in one.ledger.setters]
    return shown


def _time(seconds: float | None) -> str | None:
    if not seconds:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def layout_text(space: Space) -> str:
    """Say in a few words how blocks are cut and coded."""
    coded = f", {space.encoding}" if space.encoding else ""
    return f"{space.shards_per_block} x {space.raw_capacity} B{coded}"


def _show(one: Directory, namespace: str | None) -> None:
    click.echo(f"{one.directory} ({one.uuid})")
    if one.spaces:
        _show_spaces(one)
        _show_blocks(one)
        _show_codecs(one)
    elif namespace:
        click.echo(f"  no spaces of namespace {namespace!r}; without --namespace all are shown")
    else:
        click.echo("  no spaces: nothing was stored yet")
    size = _common.human_bytes
    click.echo(
        f"  {one.writers} writers alive, {size(one.temporary_bytes)} in temporary files, "
        f"{one.quarantined} files ({size(one.quarantined_bytes)}) in quarantine, "
        f"{one.trash} removed spaces still being deleted"
    )
    if one.ledger:
        _show_ledger(one.ledger)


def _show_spaces(one: Directory) -> None:
    rows = [
        (
            space.space,
            space.namespace,
            space.model,
            space.fingerprint,
            space.problem or layout_text(space),
        )
        for space in one.spaces
    ]
    _common.print_table(("space", "namespace", "model", "fingerprint", "layout"), rows)


def _show_blocks(one: Directory) -> None:
    size, rows = _common.human_bytes, []
    for space in one.spaces:
        read, used = space.headers, space.used
        rows.append(
            (
                space.space[:8],
                str(space.blocks),
                size(space.bytes),
                size(space.disk_bytes),
                space.dtype,
                f"{read.ratio:.2f}" if read.ratio else "",
                _ages(read.newest, read.oldest),
                _ages(space.hottest, space.coldest),
                "/".join(str(count) for count in used.values()) if space.blocks else "",
            )
        )
    columns = ("space", "blocks", "size", "on disk", "dtype", "ratio", "published", "last used")
    _common.print_table((*columns, "in 1h/1d/1w/older"), rows, right=3)
    sampled = [space for space in one.spaces if space.headers.read < space.blocks]
    if sampled:
        click.echo(
            f"  ratio and published: from {sum(s.headers.read for s in sampled)} of "
            f"{sum(s.blocks for s in sampled)} headers; --headers reads all"
        )
    if problems := sum(space.headers.problems for space in one.spaces):
        click.echo(f"  {problems} headers are not sound; ucm fsck says more")


def _show_codecs(one: Directory) -> None:
    size = _common.human_bytes
    rows = [
        (
            space.space[:8],
            name,
            str(coded.tiles),
            size(coded.raw_bytes),
            size(coded.stored_bytes),
            f"{coded.ratio:.2f}" if coded.ratio else "",
            f"{space.headers.framed} of {space.blocks}",
        )
        for space in one.spaces
        for name, coded in sorted(space.headers.codecs.items())
    ]
    if rows:
        columns = ("space", "codec", "tiles", "raw", "stored", "ratio", "of blocks")
        _common.print_table(columns, rows, right=4)


def _ages(newest: float | None, oldest: float | None) -> str:
    if newest is None or oldest is None:
        return ""
    texts = [_common.human_seconds(max(0.0, time.time() - stamp)) for stamp in (newest, oldest)]
    return f"{texts[0]} ago" if texts[0] == texts[1] else f"{texts[0]} to {texts[1]} ago"


def _show_ledger(found: Ledger) -> None:
    size = _common.human_bytes
    if found.problem:
        click.echo(f"  ledger: {found.problem}")
        return
    limit = f"limit {size(found.limit)}" if found.limit else "no limit"
    setters = ", ".join(account.writer for account in found.setters)
    click.echo(
        f"  ledger: {limit}{f', set by {setters}' if setters else ''}; {size(found.used)} used, "
        f"{size(found.granted)} granted{'; to be recounted' if found.recount else ''}"
    )
    if found.accounts:
        rows = [
            (
                account.writer,
                "yes" if account.alive else "no",
                size(account.granted),
                size(account.capacity) if account.capacity else "none",
            )
            for account in found.accounts
        ]
        _common.print_table(("writer", "alive", "granted", "posix_capacity_gb"), rows)
