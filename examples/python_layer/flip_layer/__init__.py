"""Flip, a layer in Python: every bit that goes through is inverted."""

import ucm


class Flip(ucm.CodecBase):
    """Inverts every bit, anywhere over another store: "Cache|Flip|Posix"."""

    encoding = "flip.1"

    def encode(self, data):
        return data.translate(bytes(range(255, -1, -1)))

    decode = encode


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Flip known."""
    register("Flip", Flip)
