"""``ucm new-plugin``."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from ucm.cli import _common

# Each is a package of its own that works: its word, and what there is of it.
_TEMPLATES = {
    "c": ("Heap", "a store in C"),
    "cpp": ("Attic", "a store in C++"),
    "python": ("Notes", "a store in Python"),
    "layer": ("Flip", "a layer in Python"),
}


def _word(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*", value):
        raise click.BadParameter(
            f"{value!r} cannot stand in a pipeline string; use a letter, then letters and digits",
            context,
            parameter,
        )
    return value[0].upper() + value[1:]


def _renamed(text: str, old: str, new: str) -> str:
    for a, b in ((old, new), (old.lower(), new.lower()), (old.upper(), new.upper())):
        text = text.replace(a, b)
    return text


@click.command("new-plugin", short_help="Write a package with a store of your own.")
@click.argument("name", callback=_word)
@click.option("--c", "kind", flag_value="c", help="A store in C.")
@click.option("--cpp", "kind", flag_value="cpp", help="A store in C++.")
@click.option("--python", "kind", flag_value="python", help="A store in Python.")
@click.option("--layer", "kind", flag_value="layer", help="A layer in Python.")
@click.option(
    "--into", type=click.Path(path_type=Path), help="The folder to make; NAME-store here."
)
@_common.json_flag
def command(name: str, kind: str | None, into: Path | None, as_json: bool) -> None:
    """Write a package that builds, is discovered under NAME and passes the contract's tests.

    It is one of ucm's examples under another name, for you to change.
    """
    import ucm

    if kind is None:
        raise click.UsageError("say in what it is to be written: --c, --cpp, --python or --layer")
    if any(name == known.name for known in ucm.plugins()):
        raise click.UsageError(f"there is a store {name!r} already; 'ucm plugins {name}' shows it")
    old, what = _TEMPLATES[kind]
    suffix = "layer" if kind == "layer" else "store"
    folder = into or Path(f"{name.lower()}-{suffix}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise click.UsageError(f"{folder} exists already; name another with --into")
    source = Path(ucm.__file__).with_name("templates") / kind
    files = []
    for path in sorted(p for p in source.rglob("*") if p.is_file() and p.suffix != ".pyc"):
        target = folder / _renamed(os.fspath(path.relative_to(source)), old, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(_renamed(path.read_text(), old, name))
        files.append(os.fspath(target))
    steps = [
        # pip builds where only what it installs for that is to be found.
        *(["export PKG_CONFIG_PATH=$(ucm config --pkgconfigdir)"] if kind in ("c", "cpp") else []),
        # A name without a slash is a package on the index to pip.
        f"pip install {folder if folder.is_absolute() else f'./{folder}'}",
        f"ucm plugins {name}",
        f"pytest {folder / 'tests'}",
        f"pytest --pyargs ucm.conformance --ucm-pipeline {name}"
        if suffix == "store"
        else f"pytest --pyargs ucm.conformance --ucm-pipeline '{name}|Posix' "
        "--ucm-option storage_backends={tmp}",
    ]
    if as_json:
        _common.print_json({"folder": os.fspath(folder), "files": files, "next": steps})
        return
    click.echo(f"{folder}: {what}, {len(files)} files. Next:")
    for step in steps:
        click.echo(f"    {step}")
