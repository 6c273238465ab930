"""Attic, a store in C++, for pipeline strings of ucm."""

from pathlib import Path

import ucm


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Attic known."""
    register("Attic", Path(__file__).with_name("attic.so"))
