"""Notes, a store in Python: blocks in a dictionary, the oldest go first."""

import threading

import ucm


class Notes(ucm.StoreBase):
    """Keeps blocks in the memory of one process."""

    capabilities = frozenset({"keeps", "loads", "remove"})
    OPTIONS = (ucm.Option("notes_mb", "int", "256", "1..1048576", "MiB", "Memory for blocks."),)

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self._limit = options["notes_mb"] << 20
        if layout and layout.block_size > self._limit:
            raise ucm.ConfigError(f"notes_mb: a block of {layout.block_size} bytes is larger")
        self._lock = threading.Lock()  # guards all below
        self._blocks, self._gathering = {}, {}  # by id: {shard: bytes}; the oldest first
        self._used = 0

    def lookup(self, block_ids):
        with self._lock:
            return [block_id in self._blocks for block_id in block_ids]

    def dump(self, block_ids, shard_index, shards):
        for block_id, index, segments in zip(block_ids, shard_index, shards, strict=True):
            data = b"".join(segments)
            with self._lock:
                block = self._gathering.setdefault(block_id, {})
                if block_id in self._blocks or index in block:
                    self._forget_if_empty(block_id)  # the first complete copy wins
                    continue
                self._make_room(len(data), block_id)
                block[index] = data
                self._used += len(data)
                if len(block) == self.layout.shards_per_block:
                    self._blocks[block_id] = self._gathering.pop(block_id)

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
                self._drop(block_id)

    def _make_room(self, size, spared):
        while self._used + size > self._limit:
            ages = (b for blocks in (self._blocks, self._gathering) for b in blocks if b != spared)
            self._drop(next(ages))

    def _drop(self, block_id):
        for blocks in (self._blocks, self._gathering):
            self._used -= sum(map(len, blocks.pop(block_id, {}).values()))

    def _forget_if_empty(self, block_id):
        if not self._gathering[block_id]:
            del self._gathering[block_id]


@ucm.hookimpl
def ucm_register_stores(register):
    """Make the word Notes known."""
    register("Notes", Notes)
