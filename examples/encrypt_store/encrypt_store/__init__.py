"""Encrypt, a layer that seals what goes through it, for pipeline strings of ucm."""

from pathlib import Path

import ucm


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Encrypt known."""
    register("Encrypt", Path(__file__).with_name("encrypt.so"))
