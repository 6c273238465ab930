"""``ucm config``."""

from __future__ import annotations

import click

from ucm.cli import _common


@click.command("config", short_help="Say where the headers are.")
@click.option("--cflags", is_flag=True, help="Compiler flags.")
@click.option("--includedir", is_flag=True, help="The folder that holds ucm/store_v1.h.")
@click.option("--pkgconfigdir", is_flag=True, help="The folder that holds ucm-store.pc.")
@_common.json_flag
def command(cflags: bool, includedir: bool, pkgconfigdir: bool, as_json: bool) -> None:
    """Say where the headers for plugin authors are. Without a flag: all of it."""
    import ucm

    include = ucm.get_include()
    everything = {
        "cflags": f"-I{include}",
        "includedir": include,
        "pkgconfigdir": ucm.get_pkgconfig_dir(),
    }
    asked = {"cflags": cflags, "includedir": includedir, "pkgconfigdir": pkgconfigdir}
    chosen = [name for name, flag in asked.items() if flag] or list(everything)
    if as_json:
        _common.print_json({name: everything[name] for name in chosen})
    elif any(asked.values()):
        click.echo(" ".join(everything[name] for name in chosen))
    else:
        for name in chosen:
            click.echo(f"{name}: {everything[name]}")
