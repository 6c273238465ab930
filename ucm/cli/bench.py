"""``ucm bench``."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from ucm.cli import _common, faults

SAMPLE_BLOCK, SAMPLE_PLANE = 368_640, 6_144
DTYPES = ("bytes", "bf16", "fp16", "fp32", "fp8_e4m3", "fp8_e5m2")


@click.group("bench", invoke_without_command=True, short_help="Measure a pipeline, or a part.")
@click.option("--pipeline", default="Cache|Compress|Posix", show_default=True, help="Layers.")
@click.option("--blocks", type=click.IntRange(1), default=256, show_default=True, help="How many.")
@click.option(
    "--block-size",
    metavar="SIZE",
    callback=_common.size,
    default=str(SAMPLE_BLOCK),
    show_default=True,
    help="Bytes of a block.",
)
@click.option(
    "--shard-size",
    metavar="SIZE",
    callback=_common.size,
    help="Bytes of a shard. Default: a block.",
)
@click.option(
    "--tensor-size",
    metavar="SIZE",
    callback=_common.size,
    help=f"Bytes of a segment. Default: {SAMPLE_PLANE} if it divides a shard, else a shard.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="bf16",
    show_default=True,
    help="What the numbers are.",
)
@click.option(
    "--data",
    type=click.Choice(["sample", "random"]),
    help="Real KV cache or random bytes. Default: sample if the dtype is bf16.",
)
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False),
    help="Where the files go. Default: a temporary directory.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 255), default=5, show_default=True, help="How often."
)
@click.option("--io-direct/--no-io-direct", default=False, help="Bypass the page cache.")
@_common.option_flag
@_common.json_flag
@click.pass_context
def command(context: click.Context, /, **flags: Any) -> None:
    """Measure dump, lookup, cold load and hot load of a pipeline.

    A dump ends when the caller's memory is free; "dump and drain" when everything is stored. A cold
    load reads through a store that was just opened, after the kernel was told to forget the files;
    a hot load is the same load again. GB are 10^9 bytes. What is loaded is compared each time.
    """
    if context.invoked_subcommand is not None:
        return
    from ucm import demo

    with _directory(flags["directory"]) as place:
        defaults: dict[str, Any] = {
            "storage_backends": str(place),
            "io_direct": flags["io_direct"],
            # Twice what is moved: a hot load is to find it all.
            "cache_buffer_capacity_gb": max(
                0.25, round(2 * flags["blocks"] * flags["block_size"] / 2**30, 3)
            ),
        }
        options = {
            **demo.taken(flags["pipeline"], defaults),
            **_common.parse_options(flags["pairs"]),
        }
        result = _measure(flags, options)
    if flags["as_json"]:
        _common.print_json(result)
    else:
        _show(result)


@command.command("codec", short_help="Measure the codec of Compress alone.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--dtype", type=click.Choice(DTYPES), required=True, help="What the numbers in FILE are."
)
@click.option(
    "--plane",
    metavar="SIZE",
    required=True,
    callback=_common.size,
    help="Bytes that are alike: K or V of one layer in one block.",
)
@click.option(
    "--shard",
    metavar="SIZE",
    callback=_common.size,
    help="Bytes of a frame: those of a shard in a store, the planes of all layers mostly. 2 MiB.",
)
@click.option(
    "--codec",
    type=click.Choice(["fast", "small", "raw"]),
    default="fast",
    show_default=True,
    help="Which one: the quickest, the one that stores least, or none.",
)
@click.option(
    "--kernels",
    type=click.Choice(["best", "scalar", "avx2", "avx512", "neon"]),
    default="best",
    show_default=True,
    help="Which instructions; a store takes the best that the processor has.",
)
@click.option(
    "--checksums/--no-checksums",
    default=True,
    show_default=True,
    help="As a store does it, or the codec alone.",
)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often."
)
@_common.json_flag
def codec(
    file: Path,
    dtype: str,
    plane: int,
    shard: int | None,
    codec: str,
    kernels: str,
    checksums: bool,
    repeat: int,
    as_json: bool,
) -> None:
    """Compress FILE in memory and decompress it again, and compare.

    Rates are bytes of FILE by CPU time of the one thread that did it, medians of all repeats;
    memcpy copies the same pieces. GB are 10^9 bytes. What --dtype says is tried first, and the
    bytes decide. What was found out of a plane helps with the one at its place in the next shard,
    so that small planes are coded faster with the --shard that a store has.
    """
    from ucm.cli import _codec

    result = _codec.run(file, dtype, plane, codec, repeat, kernels, checksums, shard=shard)
    if as_json:
        _common.print_json(result)
        return
    click.echo(
        f"{result['bytes']:,} bytes of {dtype} in planes of {plane:,}: "
        f"{result['frame_bytes']:,} bytes stored, ratio {result['ratio']}, verified"
    )
    for name in ("compress", "decompress", "memcpy"):
        click.echo(f"{name:10}  {result[name + '_gbps']:8.3f} GB/s of CPU time")


def _measure(flags: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    from ucm.cli._measure import Bench, Shape

    shard_size = flags["shard_size"] or flags["block_size"]
    tensor_size = flags["tensor_size"] or (
        SAMPLE_PLANE if shard_size % SAMPLE_PLANE == 0 else shard_size
    )
    shape = Shape(flags["blocks"], flags["block_size"], shard_size, tensor_size, flags["dtype"])
    data = flags["data"] or ("sample" if shape.dtype == "bf16" else "random")
    with _progress(flags["repeat"]) as advance:
        return Bench(flags["pipeline"], shape, data, flags["repeat"], options, advance).run()


@contextlib.contextmanager
def _directory(named: str | None) -> Iterator[Path]:
    if named is None:
        with tempfile.TemporaryDirectory(prefix="ucm-bench-") as temporary:
            yield Path(temporary)
    else:
        Path(named).mkdir(parents=True, exist_ok=True)
        yield Path(named).resolve()


@contextlib.contextmanager
def _progress(repeat: int) -> Iterator[Callable[[str], None]]:
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        # Dump, lookup, cold load and hot load; a pipeline that cannot load ends early.
        task = progress.add_task("dump", total=4 * repeat)

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        yield advance


def _show(result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    title = (
        f"{result['pipeline']}: {result['blocks']} blocks of "
        f"{_common.human_bytes(result['block_size'])}, {result['dtype']}, {result['data']} data"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("operation")
    for column in ("median", "min", "max", "ms"):
        table.add_column(column, justify="right")
    for name, figures in result["results"].items():
        unit = "blocks/s" if name == "lookup" else "GB/s"
        rate = figures["blocks_per_s" if name == "lookup" else "gb_per_s"]
        digits = 0 if name == "lookup" else 3
        shown = [f"{rate[key]:,.{digits}f}" for key in ("median", "min", "max")]
        table.add_row(
            name, f"{shown[0]} {unit}", *shown[1:], f"{figures['seconds']['median'] * 1e3:.1f}"
        )
    _common.console().print(table)
    machine = result["machine"]
    if result["ratio"]:
        click.echo(f"stored {result['stored_bytes']:,} of {result['bytes']:,} bytes")
    click.echo(
        f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"Python {machine['python']}; {result['repeat']} repeats"
    )


command.add_command(faults.command)
