"""``ucm demo``."""

from __future__ import annotations

from typing import Any

import click

from ucm.cli import _common


@click.command("demo", short_help="Move real KV cache into files and back.")
@click.option("--pipeline", default="Cache|Compress|Posix", show_default=True, help="Layers.")
@click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False),
    help="Where the files go and stay. Default: a temporary directory, removed at the end.",
)
@_common.option_flag
@_common.json_flag
def command(pipeline: str, directory: str | None, pairs: tuple[str, ...], as_json: bool) -> None:
    """Move a sample of real KV cache into files and back in a second process.

    The second process compares every byte; the exit code is 0 only if all are as they were.
    """
    from ucm import demo

    result = demo.run(pipeline, directory, _common.parse_options(pairs))
    if as_json:
        _common.print_json(result)
    else:
        _show(result)


def _show(result: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("layer")
    for column in ("bytes in", "bytes out", "ratio", "dump", "load"):
        table.add_column(column, justify="right")
    for name, layer in result["layers"].items():
        ratio = "-" if layer["ratio"] is None else f"{layer['ratio']:.3f}"
        table.add_row(
            name,
            f"{layer['bytes_in']:,}",
            f"{layer['bytes_out']:,}",
            ratio,
            f"{layer['dump_ms']:.1f} ms",
            f"{layer['load_ms']:.1f} ms",
        )
    click.echo(f"{result['pipeline']}, times of all threads of a layer added up")
    _common.console().print(table)
    if result["already_stored"]:
        click.echo(
            f"{result['already_stored']} blocks were there already; what is published is not "
            "written again"
        )
    stored = f"{result['stored_bytes']:,} bytes stored"
    click.echo(
        f"{stored} (ratio {result['ratio']}), dump {result['dump_ms']:.1f} ms, "
        f"load in a second process {result['load_ms']:.1f} ms"
    )
    click.echo(f"{result['blocks']} blocks, {result['bytes']:,} bytes, verified bit for bit")
