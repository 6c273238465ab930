"""Heap, a store for ucm pipelines that is written in plain C."""

from __future__ import annotations

from pathlib import Path

from ucm.hookspecs import Register, hookimpl


@hookimpl
def ucm_register_stores(register: Register) -> None:
    """Make the word ``Heap`` known; the library is opened when a pipeline names it."""
    register("Heap", Path(__file__).with_name("heap.so"))
