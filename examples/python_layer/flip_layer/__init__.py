"""Flip, a layer in Python: every bit that goes through is inverted."""

import numpy as np

import ucm


class Flip(ucm.LayerBase):
    """Stands anywhere over another store: "Cache|Flip|Posix"."""

    encoding = "flip.1"

    def dump(self, block_ids, shard_index, shards):
        inverted = [[~np.frombuffer(segment, np.uint8) for segment in row] for row in shards]
        return self.lower.dump(block_ids, shard_index, inverted)

    def load(self, block_ids, shard_index, shards):
        lengths = self.lower.load(block_ids, shard_index, shards)
        for row in shards:
            for segment in row:
                view = np.frombuffer(segment, np.uint8)
                np.invert(view, out=view)
        return lengths


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Flip known."""
    register("Flip", Flip)
