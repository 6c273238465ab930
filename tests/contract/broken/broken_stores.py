"""Stores that each break one promise, over one that keeps them all."""

from __future__ import annotations

import collections
import contextlib
import itertools
import queue
import threading
import time
from pathlib import Path

from dict_store import DictStore

import ucm


class Good(DictStore):
    """Breaks nothing."""


class WrongBytes(DictStore):
    """Serves one shard of twenty with a bit flipped."""

    _loads = itertools.count(1)

    def _load(self, block_id, index, segments):
        end = super()._load(block_id, index, segments)
        if next(self._loads) % 20 == 0 and segments[0]:
            segments[0][0] ^= 1
        return end


class WrongInPieces(WrongBytes):
    """Is caught by a test of another promise: that shards may come in any order."""


class SilentAlways(DictStore):
    """Ends no dump."""

    def dump(self, block_ids, shard_index, shards):
        threading.Event().wait(3600)


class SegmentsMixed(DictStore):
    """Takes the segments of a shard from the last to the first, and gives them in order."""

    def dump(self, block_ids, shard_index, shards):
        super().dump(block_ids, shard_index, [shard[::-1] for shard in shards])


class LengthsIgnored(DictStore):
    """Says of every shard that it is as long as its memory."""

    def _load(self, block_id, index, segments):
        end = super()._load(block_id, index, segments)
        return end if isinstance(end, Exception) else sum(map(len, segments))


class SeenEarly(DictStore):
    """Publishes a block when its last index is there."""

    def lookup(self, block_ids):
        last = self.layout.shards_per_block - 1
        with self._lock:
            early = [last in self._unfinished.get(block_id, {}) for block_id in block_ids]
        return [a or b for a, b in zip(early, super().lookup(block_ids), strict=True)]


class LastCopyWins(DictStore):
    """Writes over what it has."""

    def _dump(self, block_id, index, data):
        with self._lock:
            if block_id in self._blocks:
                self._blocks[block_id][index] = data
                return
        super()._dump(block_id, index, data)


class ShortNames(DictStore):
    """Looks at 15 bytes of an id when it is asked whether a block is there."""

    def lookup(self, block_ids):
        with self._lock:
            known = {block_id[:15] for block_id in self._blocks}
        return [block_id[:15] in known for block_id in block_ids]


class NeverForgets(DictStore):
    """Says for ever that a block is there which once was."""

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self._seen = set()

    def lookup(self, block_ids):
        found = super().lookup(block_ids)
        self._seen.update(name for name, here in zip(block_ids, found, strict=True) if here)
        return [block_id in self._seen for block_id in block_ids]

    def dump(self, block_ids, shard_index, shards):
        super().dump(block_ids, shard_index, shards)
        self.lookup(block_ids)


class Racy(DictStore):
    """Copies its dictionary and puts the copy back, without a lock."""

    def _dump(self, block_id, index, data):
        before = dict(self._blocks)
        super()._dump(block_id, index, data)
        if block_id in self._blocks and block_id not in before:
            time.sleep(0.0005)
            self._blocks = {**before, block_id: self._blocks[block_id]}


class ErrorsLost(DictStore):
    """Says that a shard went well which it does not have."""

    def _load(self, block_id, index, segments):
        end = super()._load(block_id, index, segments)
        return 0 if isinstance(end, Exception) else end


class NeverAnswers(DictStore):
    """Never ends one dump: the fifth."""

    _dumps = itertools.count(1)

    def dump(self, block_ids, shard_index, shards):
        super().dump(block_ids, shard_index, shards)
        if next(self._dumps) == 5:
            threading.Event().wait()


class InFolder(DictStore):
    """Persists, as far as this process goes: the blocks are those of the folder."""

    capabilities = frozenset({"keeps", "loads", "persistent", "remove"})
    OPTIONS = None
    _folders = collections.defaultdict(dict)

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self._blocks = self._folders[options["folder"]]


class ClosesEarly(InFolder):
    """Dumps behind the caller's back, and does not wait for that in close."""

    capabilities = InFolder.capabilities | {"write_back"}

    def __init__(self, layout, options):
        super().__init__(layout, options)
        self._late = queue.Queue()
        self._closed = False
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self):
        while True:
            shard = self._late.get()
            time.sleep(0.001)
            if not self._closed:
                super()._dump(*shard)
            self._late.task_done()

    def _dump(self, block_id, index, data):
        self._late.put((block_id, index, data))

    def _drained(self):
        self._late.join()

    def lookup(self, block_ids):
        self._drained()
        return super().lookup(block_ids)

    def _load(self, block_id, index, segments):
        self._drained()
        return super()._load(block_id, index, segments)

    def remove(self, block_ids):
        self._drained()
        super().remove(block_ids)

    def drain(self):
        self._drained()

    def close(self):
        self._closed = True


class Unchecked(DictStore):
    """Keeps each block in a file, says that it checks them, and does not."""

    capabilities = frozenset({"keeps", "loads", "persistent", "verifies", "remove"})
    OPTIONS = None

    def _path(self, block_id):
        return Path(self.options["folder"], block_id.hex())

    def lookup(self, block_ids):
        return [self._path(block_id).exists() for block_id in block_ids]

    def _dump(self, block_id, index, data):
        super()._dump(block_id, index, data)
        with self._lock:
            block = self._blocks.pop(block_id, None)
        if block is not None and not self._path(block_id).exists():
            whole = self._path(block_id).with_suffix(".new")
            whole.write_bytes(b"".join(block[k] for k in sorted(block)))
            self._publish(whole, self._path(block_id))

    def _publish(self, whole, path):
        whole.rename(path)

    def _load(self, block_id, index, segments):
        size = self.layout.shard_size
        try:
            data = self._path(block_id).read_bytes()[index * size :][:size]
        except FileNotFoundError:
            return ucm.NotFoundError("not stored")
        for segment in segments:
            segment[: len(data)] = data[: len(segment)]
            data = data[len(segment) :]
        return size

    def remove(self, block_ids):
        for block_id in block_ids:
            self._path(block_id).unlink(missing_ok=True)


class PublishesInVain(Unchecked):
    """Says of a block that it is stored whose last step failed."""

    capabilities = Unchecked.capabilities - {"verifies"}

    def _publish(self, whole, path):
        with contextlib.suppress(OSError):
            whole.rename(path)


class InPlace(Unchecked):
    """Writes the shards of a block into its file as they come."""

    capabilities = Unchecked.capabilities - {"verifies"}

    def _dump(self, block_id, index, data):
        self._path(block_id).touch()
        with open(self._path(block_id), "r+b") as file:
            file.seek(index * self.layout.shard_size)
            file.write(data)
        time.sleep(0.005)


class ErrorsHidden(Unchecked):
    """Says that a shard is loaded whose file could not be read."""

    capabilities = Unchecked.capabilities - {"verifies"}

    def _load(self, block_id, index, segments):
        try:
            return super()._load(block_id, index, segments)
        except OSError:
            return self.layout.shard_size
