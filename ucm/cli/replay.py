"""``ucm replay``."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

import click

from ucm.cli import _common

if TYPE_CHECKING:
    from ucm.replay import Maker, Trace

FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
OPTIMUM = "optimum"
_GIB = 1 << 30
_MOST_BLOCKS = 1 << 62


@click.command("replay", short_help="Hit ratios of a trace of requests, per policy and capacity.")
@click.argument(
    "trace_paths",
    metavar="TRACE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False),
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    metavar="NAME",
    help="fifo, lru, s3fifo, arc, cache (what Cache uses), optimum, or a class of yours as "
    "FILE.py:CLASS or MODULE:CLASS; may be repeated. Default: all that have a name.",
)
@click.option(
    "--capacity",
    "capacities",
    multiple=True,
    metavar="BLOCKS",
    help="A number of blocks, or a part of the trace's distinct ones such as 5%; may be repeated. "
    "Default: 1, 2, 5, 10, 20 and 50 %.",
)
@click.option(
    "--capacity-gb",
    "gigabytes",
    multiple=True,
    type=float,
    metavar="GB",
    help="The same in 2^30 bytes; needs --block-bytes.",
)
@click.option(
    "--block-bytes",
    callback=_common.size,
    metavar="SIZE",
    help="What one block takes, such as 4MiB.",
)
@_common.json_flag
def command(
    trace_paths: tuple[str, ...],
    policies: tuple[str, ...],
    capacities: tuple[str, ...],
    gigabytes: tuple[float, ...],
    block_bytes: int | None,
    as_json: bool,
) -> None:
    """Replay the requests of TRACE against caches of blocks, and show what they would hit.

    TRACE has one JSON object a line: timestamp, input_length, output_length, and hash_ids, the ids
    of the blocks of the prompt in order. Several files, such as enable_record_traces lets engines
    write, are one trace, in the order of timestamps. Of each pair of figures, the first counts all
    blocks that were found, the second those before the first miss of their request: what an engine
    can load.
    """
    from ucm import replay

    with contextlib.redirect_stdout(sys.stderr):  # what a policy prints is no part of the answer
        makers = _makers(policies)
    _check_sizes(gigabytes, block_bytes)
    for text in capacities:
        _blocks(text, 100)
    trace = replay.read(*trace_paths)
    limits = sorted(
        {_blocks(text, trace.distinct) for text in capacities}
        | {_in_blocks(size, block_bytes or 1) for size in gigabytes}
        or {max(1, int(part * trace.distinct)) for part in FRACTIONS}
    )
    with contextlib.redirect_stdout(sys.stderr):
        found = [_row(trace, maker, limit) for maker in makers for limit in limits]
    if as_json:
        _common.print_json(_as_json(trace, found, block_bytes))
    else:
        _show(trace, limits, found, block_bytes)


def _makers(names: tuple[str, ...]) -> list[Maker | None]:
    """Return what makes each policy; None is the optimum, which needs the whole trace."""
    from ucm import replay

    wanted = dict.fromkeys(names or (*replay.NAMED, OPTIMUM))
    return [None if name == OPTIMUM else replay.find(name, (OPTIMUM,)) for name in wanted]


def _check_sizes(gigabytes: tuple[float, ...], block_bytes: int | None) -> None:
    if gigabytes and block_bytes is None:
        raise click.UsageError("--capacity-gb needs --block-bytes, what one block takes")
    if block_bytes is not None and block_bytes < 1:
        raise click.UsageError(f"--block-bytes {block_bytes}: a block takes 1 byte or more")
    for size in gigabytes:
        if not 0 < size <= _MOST_BLOCKS / _GIB:
            raise click.UsageError(
                f"--capacity-gb {size:g}: write a number greater than 0, at most 2^32"
            )
        _in_blocks(size, block_bytes or 1)


def _in_blocks(gigabytes: float, block_bytes: int) -> int:
    blocks = int(gigabytes * _GIB) // block_bytes
    if not blocks:
        raise click.UsageError(f"--capacity-gb {gigabytes:g}: no block of {block_bytes} B fits")
    return blocks


def _blocks(text: str, distinct: int) -> int:
    """Read a capacity: a number of blocks, or a part of those that there are."""
    try:
        if text.endswith("%"):
            part = float(text[:-1])
            if not 0 < part <= _MOST_BLOCKS:
                raise ValueError
            return max(1, int(part / 100 * distinct))
        blocks = int(text)
        if not 1 <= blocks <= _MOST_BLOCKS:
            raise ValueError
    except ValueError:
        raise click.UsageError(
            f"--capacity {text[:40]}: write 1 block or more, or a part of all such as 5%"
        ) from None
    return blocks


def _row(trace: Trace, maker: Maker | None, limit: int) -> dict[str, Any]:
    from ucm import replay

    if maker:
        score = replay.replay(trace.requests, maker, limit)
    else:
        score = replay.Score(trace.blocks, *replay.optimum(trace.requests, limit))
    return {
        "policy": maker.name if maker else OPTIMUM,
        "capacity_blocks": limit,
        "hits": score.hits,
        "prefix_hits": score.prefix_hits,
        "hit_ratio": score.hit_ratio,
        "prefix_hit_ratio": score.prefix_hit_ratio,
    }


def _as_json(trace: Trace, found: list[dict[str, Any]], block_bytes: int | None) -> dict[str, Any]:
    return {
        "trace": trace.path,
        "requests": len(trace.requests),
        "blocks": trace.blocks,
        "distinct_blocks": trace.distinct,
        "ids_cover_prefixes": trace.chained,
        "block_bytes": block_bytes,
        "results": found,
    }


def _show(
    trace: Trace, limits: list[int], found: list[dict[str, Any]], block_bytes: int | None
) -> None:
    click.echo(
        f"{trace.path}: {len(trace.requests):,} requests, {trace.blocks:,} blocks, "
        f"{trace.distinct:,} distinct; at most {1 - trace.distinct / trace.blocks:.2%} can hit"
    )
    rows: dict[str, list[str]] = {}
    for one in found:
        ratios = f"{100 * one['hit_ratio']:.2f} / {100 * one['prefix_hit_ratio']:.2f}"
        rows.setdefault(one["policy"], []).append(ratios)
    columns = [_column(limit, trace.distinct, block_bytes) for limit in limits]
    _common.print_table(
        ("policy", *columns), [(name, *cells) for name, cells in rows.items()], right=len(columns)
    )
    click.echo(
        "% of blocks found / found before the first miss of their request, by blocks of capacity "
        "(and part of the distinct ones)"
    )
    if not trace.chained:
        click.echo(
            "some blocks follow different ones: their ids do not stand for all before them, and a "
            "policy may have more before the first miss than optimum has there, though never more "
            "than it finds"
        )


def _column(limit: int, distinct: int, block_bytes: int | None) -> str:
    size = f"\n{_common.human_bytes(limit * block_bytes)}" if block_bytes else ""
    return f"{limit:,}\n{limit / distinct:.1%}{size}"
