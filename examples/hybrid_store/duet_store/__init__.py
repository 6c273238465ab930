"""Duet: a store whose manners are Python and whose bytes are C++."""

import ucm
from duet_store._core import Core


class Duet(ucm.StoreBase):
    """Blocks in the memory of this process."""

    capabilities = frozenset({"keeps", "loads", "remove"})
    OPTIONS = (
        ucm.Option("duet_capacity_mb", "int", "1024", "1..1048576", "MiB", "Memory for blocks."),
    )

    def __init__(self, layout, options):
        super().__init__(layout, options)
        limit = options["duet_capacity_mb"] << 20
        if layout and layout.block_size > limit:
            raise ucm.ConfigError(
                f"duet_capacity_mb: {limit >> 20}, less than one block of {layout.block_size} bytes"
            )
        self._core = Core(layout.shards_per_block if layout else 1, limit)

    def lookup(self, block_ids):
        return self._core.lookup(block_ids)

    def dump(self, block_ids, shard_index, shards):
        kept = self._core.dump(block_ids, shard_index, shards)
        return [None if each else ucm.NoSpaceError("duet_capacity_mb is used up") for each in kept]

    def load(self, block_ids, shard_index, shards):
        lengths = self._core.load(block_ids, shard_index, shards)
        return [n if n >= 0 else ucm.NotFoundError("not stored") for n in lengths]

    def remove(self, block_ids):
        self._core.remove(block_ids)


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Duet known."""
    register("Duet", Duet)
