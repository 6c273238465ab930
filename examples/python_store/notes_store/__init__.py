"""Notes, a store in Python: blocks in a dictionary, the oldest go first."""

import threading

import ucm


class Notes(ucm.StoreBase):
    """Keeps blocks in the memory of one process."""

    capabilities = frozenset({"keeps", "loads", "remove"})
    OPTIONS = (ucm.Option("notes_mb", "int", "256", "1..1048576", "MiB", "Memory for blocks."),)

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self._most = (options["notes_mb"] << 20) // layout.block_size if layout else 0
        if layout and not self._most:
            raise ucm.ConfigError(f"notes_mb: a block of {layout.block_size} bytes is larger")
        self._lock = threading.Lock()  # guards both
        self._blocks, self._gathering = {}, {}  # by id: {shard: bytes}; the oldest first

    def lookup(self, block_ids):
        with self._lock:
            return [block_id in self._blocks for block_id in block_ids]

    def dump(self, block_ids, shard_index, shards):
        for block_id, index, segments in zip(block_ids, shard_index, shards, strict=True):
            data = b"".join(segments)
            with self._lock:
                if block_id in self._blocks:
                    continue  # the first complete copy wins
                block = self._gathering.setdefault(block_id, {})
                block.setdefault(index, data)
                if len(block) == self.layout.shards_per_block:
                    self._blocks[block_id] = self._gathering.pop(block_id)
                while len(self._blocks) + len(self._gathering) > self._most:
                    oldest = self._blocks or self._gathering
                    del oldest[next(iter(oldest))]

    def load(self, block_ids, shard_index, shards):
        return [self._load(*shard) for shard in zip(block_ids, shard_index, shards, strict=True)]

    def _load(self, block_id, index, segments):
        with self._lock:
            if block_id not in self._blocks:
                return ucm.NotFoundError("not stored")
            data = self._blocks[block_id][index]
        return self.fill(segments, data)

    def remove(self, block_ids):
        with self._lock:
            for block_id in block_ids:
                self._blocks.pop(block_id, None)
                self._gathering.pop(block_id, None)


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Notes known."""
    register("Notes", Notes)
