"""Oxide, a store in Rust, for pipeline strings of ucm."""

from pathlib import Path

import ucm


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Oxide known."""
    register("Oxide", Path(__file__).with_name("oxide.so"))
