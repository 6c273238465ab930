"""``ucm check``."""

from __future__ import annotations

from typing import Any

import click

from ucm.cli import _common


@click.command("check", short_help="Explain and try a configuration file.")
@click.argument("file", metavar="CONFIG.yaml", envvar="UCM_CONFIG_FILE", type=click.Path())
@_common.json_flag
def command(file: str, as_json: bool) -> int:
    """Explain every value of a configuration, open its store, and look at this machine.

    A block of random bytes goes there and back, and is removed. The exit code is 0 if that works,
    whatever is warned of, 1 if it does not, and 2 if the configuration is wrong. Without
    CONFIG.yaml the environment variable UCM_CONFIG_FILE names the file.
    """
    from ucm.cli import _check

    report = _check.run(file)
    if as_json:
        _common.print_json(report)
    else:
        _show(report)
    if not report["ok"]:
        click.echo(f"ucm: {file}: {' '.join(report['error'].split())}", err=True)
    return 0 if report["ok"] else 1


def _show(report: dict[str, Any]) -> None:
    from rich.markup import escape

    click.echo(f"{report['file']}: {report['connector']} {report['pipeline'] or ''}".rstrip())
    console = _common.console()
    console.print(_values(report["values"]))
    for note in report["notes"]:
        console.print(f"note: {escape(note)}", soft_wrap=True)
    for warning in report["warnings"]:
        console.print(f"[yellow]warning[/]: {escape(warning['what'])}", soft_wrap=True)
        console.print(f"    why: {escape(warning['why'])}", soft_wrap=True)
        console.print(f"    do:  {escape(warning['remedy'])}", soft_wrap=True)
    if report["probe"]:
        click.echo(_verdict(report["probe"]))


def _values(rows: list[dict[str, Any]]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("taken by", "key", "value", "from", "what"):
        table.add_column(column, overflow="fold")
    last = ""
    for row in rows:
        what = row["help"]
        if row["effect"]:  # the notes say why
            what += " (no effect yet)" if what else "(no effect)"
        taken_by = row["taken_by"] if row["taken_by"] != last else ""
        last = row["taken_by"]
        origin = "file" if row["given"] else "default"
        cells = [taken_by, row["key"], _text(row["value"], row["unit"]), origin, what]
        table.add_row(*map(escape, cells))
    return table


def _text(value: Any, unit: str | None) -> str:
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        value = ":".join(map(str, value)) if isinstance(value[0], str) else value
    return f"{value} {unit}" if unit else str(value)


def _verdict(probe: dict[str, Any]) -> str:
    times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in probe["times_ms"].items())
    size = _common.human_bytes(probe["block_size"])
    done = (
        "came back bit for bit" if probe["verified"] else "was taken; this pipeline loads nothing"
    )
    gone = "removed again" if probe["removed"] else f"still there as {probe['id']}"
    return f"a block of {size} (the size is {probe['sizes']}) {done} and is {gone}: {times}"
