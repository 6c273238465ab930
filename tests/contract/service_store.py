"""A store over a service that can be away, and how the fault tests reach what the service keeps."""

from __future__ import annotations

import errno
import pickle
import zlib

from dict_store import DictStore

import ucm

SERVICE = {}  # blocks of the one service, packed; b"away" is there while it is not


class Away(ucm.UnavailableError):
    """The service does not answer."""

    def __init__(self):
        super().__init__("the service is away", os_errno=errno.ECONNREFUSED)


def service():
    if SERVICE.get(b"away"):
        raise Away
    return SERVICE


class ServiceStore(DictStore):
    """Gathers blocks in memory, and keeps them packed and checked in the service."""

    capabilities = frozenset({"keeps", "loads", "persistent", "verifies", "remove"})
    OPTIONS = None

    def _shape(self):
        return self.layout.segment_sizes, self.layout.shards_per_block

    def lookup(self, block_ids):
        return [block_id in SERVICE and not SERVICE.get(b"away") for block_id in block_ids]

    def _dump(self, block_id, index, data):
        kept = service().get(block_id)
        if kept is not None and pickle.loads(kept[4:])[0] == self._shape():
            return
        super()._dump(block_id, index, data)
        with self._lock:
            block = self._blocks.pop(block_id, None)
        if block is not None:
            packed = pickle.dumps((self._shape(), block))
            SERVICE[block_id] = zlib.crc32(block_id + packed).to_bytes(4, "big") + packed

    def _load(self, block_id, index, segments):
        kept = service().get(block_id)
        if kept is None:
            return ucm.NotFoundError("not stored")
        if kept[:4] != zlib.crc32(block_id + kept[4:]).to_bytes(4, "big"):
            del SERVICE[block_id]
            return ucm.CorruptError("not what was stored")
        shape, block = pickle.loads(kept[4:])
        if shape != self._shape():
            return ucm.IncompatibleError("another shape")
        left = memoryview(block[index])
        for segment in segments:
            segment[: len(left)] = left[: len(segment)]
            left = left[len(segment) :]
        return len(block[index])

    def remove(self, block_ids):
        super().remove(block_ids)
        for block_id in block_ids:
            service().pop(block_id, None)


class Reach:
    """What --ucm-files names."""

    def __init__(self, options):
        self.options = options

    def read(self, block_id):
        return {"block": SERVICE[block_id]} if block_id in SERVICE else {}

    def write(self, block_id, name, data):
        if data is None:
            del SERVICE[block_id]
        else:
            SERVICE[block_id] = data

    def stop(self):
        SERVICE[b"away"] = True

    def start(self):
        del SERVICE[b"away"]
