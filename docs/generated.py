"""What pages take from the package itself: ``<!-- generated: NAME -->`` becomes Markdown."""

from __future__ import annotations

import re

import click

import ucm
from ucm import options
from ucm.cli import cli
from ucm.conformance.promises import Promise
from ucm.integration.vllm.metrics import METRICS
from ucm.store import older_options

_PLACE = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)
_SECTION = re.compile(r"^## (.+)\n((?:(?!^## ).*\n)*)", re.MULTILINE)
_PAGE = re.compile(r"\]\(([^)#:]+)\.md\)")


def fill_in(text: str) -> str:
    """Return a page with its places filled in."""

    def content(place: re.Match[str]) -> str:
        return _toctrees(text) if place[1] == "toctree" else _CONTENTS[place[1]]()

    return _PLACE.sub(content, text)


def _table(columns: str, rows: list[tuple[str, ...]]) -> str:
    names = columns.split("|")
    lines = [names, ["---"] * len(names), *rows]
    cells = [[re.sub(r"([|*<_])", r"\\\1", c) if "`" not in c else c for c in r] for r in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def _code(text: str | None) -> str:
    return f"`{text}`" if text else ""


def _allowed(option: options.Option) -> str:
    if not option.allowed:
        return ""
    values = option.allowed.split("|")
    return f"`{option.allowed}`" if len(values) == 1 else ", ".join(f"`{v}`" for v in values)


def _default(option: options.Option, required: bool) -> str:
    if option.initial is None:
        return "required" if required else "not set"
    return _code(option.initial)


def _options(table: tuple[options.Option, ...], required: bool = True) -> str:
    rows = [
        (
            _code(o.name),
            o.type,
            _default(o, required),
            _allowed(o),
            o.unit or "",
            o.help,
        )
        for o in table
    ]
    return _table("option|type|default|allowed|unit|what", rows)


def _shipped() -> list[ucm.PluginInfo]:
    return [info for info in ucm.plugins() if info.origin == "ucm-store"]


def _layer_options() -> str:
    parts = []
    for info in _shipped():
        table = _options(info.options) if info.options else "It takes no options.\n"
        page = f"[{info.name}](../plugins/{info.name.lower()}/README.md)"
        parts.append(f"### {info.name}\n\n{info.summary} More: {page}.\n\n{table}")
    return "\n".join(parts)


def _metrics() -> str:
    parts = []
    for info in _shipped():
        rows = [(_code(m.name), m.kind, m.unit, m.help) for m in info.metrics]
        parts.append(f"## {info.name}\n\n{_table('metric|kind|unit|what', rows)}")
    return "\n".join(parts)


def _connector_metrics() -> str:
    rows = []
    for m in METRICS.values():
        label = ", ".join(_code(name) for name in m.labels)
        values = ", ".join(_code(value) for value in m.values)
        rows.append((_code(m.name), m.kind, m.unit, f"{label}: {values}" if label else "", m.help))
    return _table("metric|kind|unit|label|what", rows)


def _reasons(reasons: dict[str, str]) -> str:
    return _table("key|why", [(_code(key), reason) for key, reason in reasons.items()])


def _renamed() -> str:
    rows = [(_code(older), _code(key)) for older, key in older_options.RENAMED.items()]
    return _table("older key|read as", rows)


def _commands() -> str:
    parts = []

    def add(command: click.Command, context: click.Context) -> None:
        text = command.get_help(context)
        parts.append(f"## {context.command_path}\n\n```text\n{text}\n```\n")
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            add(inner, click.Context(inner, info_name=name, parent=context))

    width = {"max_content_width": 100, "terminal_width": 100}
    add(cli, click.Context(cli, info_name="ucm", **width, **cli.context_settings))
    return "\n".join(parts)


def _promises() -> str:
    rows = [(_code(p.name), p.part, p.text, p.remedy) for p in Promise]
    return _table("promise|part|what|when it broke", rows)


def _toctrees(index: str) -> str:
    """Make a hidden table of contents of the links in each section of a page."""
    parts = []
    for title, body in _SECTION.findall(index):
        pages = "\n".join(_PAGE.findall(body))
        parts.append(f"```{{toctree}}\n:hidden:\n:caption: {title}\n\n{pages}\n```\n")
    return "\n".join(parts)


_CONTENTS = {
    "host-options": lambda: _options(options.HOST_OPTIONS),
    "engine-options": lambda: _options(options.ENGINE_OPTIONS, required=False),
    "engine-without-effect": lambda: _reasons(options.ENGINE_WITHOUT_EFFECT),
    "layer-options": _layer_options,
    "without-effect": lambda: _reasons(options.WITHOUT_EFFECT),
    "not-built": lambda: _reasons(options.NOT_BUILT),
    "renamed": _renamed,
    "older-without-effect": lambda: _reasons(older_options.WITHOUT_EFFECT),
    "connector-metrics": _connector_metrics,
    "metrics": _metrics,
    "commands": _commands,
    "promises": _promises,
}
