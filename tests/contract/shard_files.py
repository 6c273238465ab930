"""A store in Python that checks nothing: each shard in a file, of exactly its bytes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import ucm


class ShardFiles(ucm.StoreBase):
    """Serves whatever is in the files."""

    capabilities = frozenset({"keeps", "loads", "persistent", "remove"})
    OPTIONS = None

    def _path(self, block_id, index):
        return Path(self.options["folder"], f"{block_id.hex()}-{index}")

    def _paths(self, block_id):
        return [self._path(block_id, i) for i in range(self.layout.shards_per_block)]

    def lookup(self, block_ids):
        return [all(path.exists() for path in self._paths(block_id)) for block_id in block_ids]

    def dump(self, block_ids, shard_index, shards):
        for block_id, index, segments in zip(block_ids, shard_index, shards, strict=True):
            path = self._path(block_id, index)
            if path.exists():
                continue
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(b"".join(segments))
            Path(file.name).rename(path)

    def load(self, block_ids, shard_index, shards):
        return [self._load(*shard) for shard in zip(block_ids, shard_index, shards, strict=True)]

    def _load(self, block_id, index, segments):
        try:
            data = self._path(block_id, index).read_bytes()
        except FileNotFoundError:
            return ucm.NotFoundError("not stored")
        return self.fill(segments, data)

    def remove(self, block_ids):
        time.sleep(0.01)  # so that what others dump meanwhile would go too
        for block_id in block_ids:
            for path in self._paths(block_id):
                path.unlink(missing_ok=True)
