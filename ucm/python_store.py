"""Stores and layers written in Python: the classes that authors derive from."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ucm import errors
from ucm.layout import Layout

if TYPE_CHECKING:
    from ucm._lower import Lower
    from ucm.loader import Option
    from ucm.store_api import Report


class Dumped(enum.IntFlag):
    """What became of a dumped shard; a dump may answer it, and a lower store's dump does."""

    STORED = 0
    PUBLISHED = 1
    DECLINED = 2


class StoreBase:
    """Derive from this to write a store in Python, and register the class under a name.

    Methods are called from several threads at once, ``threads`` of them for dumps and loads, each
    with one or more whole transfers. A block is published, that is seen by ``lookup``, when all of
    its ``layout.shards_per_block`` shards are stored, in whatever order they came; the first
    complete copy wins, and dumping again is fine.

    What a method raises is the end of every shard of its call: a StoreError with its own status,
    KeyError as NOT_FOUND, OSError as IO, anything else as INTERNAL, with the traceback in the log.
    """

    #: Which promises the store makes; see ``Store.capabilities``.
    capabilities: frozenset[str] | None = frozenset({"keeps", "loads"})
    #: The options that it takes, checked and with defaults; None: whatever nobody else knows.
    OPTIONS: Sequence[Option] | None = ()
    #: How many dumps and loads run at once. Other calls come from one thread more.
    threads = 4
    #: From how many accepted shards, or bytes of them, on the store answers BUSY.
    max_shards = 8192
    max_bytes = 1 << 30

    needs_lower = False

    def __init__(self, layout: Layout | None, options: Mapping[str, Any]) -> None:
        """Open. ``layout`` is None when opened for lookup only. Raise to refuse."""
        self.layout = layout
        self.options = options

    def lookup(self, block_ids: list[bytes]) -> Sequence[int]:
        """Tell for each block whether it is published."""
        raise errors.UnsupportedError(f"{type(self).__name__} has no lookup")

    def dump(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException | None] | None:
        """Store shard ``shard_index[i]`` of ``block_ids[i]``: the bytes of ``shards[i]``, in order.

        Return None if all went well, or for each shard its exception, a :class:`Dumped`, or None,
        which leaves it to ``lookup`` whether its block is published. The memory is the caller's
        again after the return: copy.
        """
        raise errors.UnsupportedError(f"{type(self).__name__} has no dump")

    def load(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException]:
        """Fill the memory of each shard; return its length in bytes, or its exception."""
        raise errors.UnsupportedError(f"{type(self).__name__} has no load")

    def remove(self, block_ids: list[bytes]) -> None:
        """Forget blocks, finished or not; needed for the capability ``remove``."""
        raise errors.UnsupportedError(f"{type(self).__name__} cannot remove")

    def prefetch(self, block_ids: list[bytes]) -> None:
        """Take the hint that these blocks will be loaded soon."""

    def touch(self, block_ids: list[bytes]) -> None:
        """Take the hint that these blocks were used."""

    def drain(self) -> Report | None:
        """Return when everything that ``dump`` accepted is stored; needed for ``write_back``.

        One at a time. It may report what it has ``lost`` since the last report and, at the bottom,
        what is ``unfinished``; with ``write_back`` what was ``stored`` too. Otherwise all that was
        dumped well counts as stored.
        """

    def close(self) -> Report | None:
        """Release everything; the last call. It may report as ``drain`` does."""

    @staticmethod
    def fill(shard: Sequence[Any], data: Any) -> int:
        """Copy data into the memory of a shard, segment after segment; return its length."""
        left = memoryview(data).cast("B")
        length = len(left)
        for segment in shard:
            if not left:
                break
            view = memoryview(segment).cast("B")
            part = left[: len(view)]
            view[: len(part)] = part
            left = left[len(part) :]
        if left:
            raise errors.IncompatibleError(f"{length} bytes are more than a shard's memory")
        return length


class LayerBase(StoreBase):
    """Derive from this to write a layer that stands over another store, ``self.lower``.

    A method that is not defined goes straight to the store below, without Python; one that is
    passes on what it wants to. Memory in ``shards`` is the upper layer's until the method returns,
    and may be handed on to ``lower``. Draining and closing what is below is the host's task.
    """

    #: None: those of the store below.
    capabilities: frozenset[str] | None = None
    #: Name and version of what the layer does to the bytes, such as "zlib.1"; "" if nothing.
    encoding = ""

    needs_lower = True

    def __init__(self, layout: Layout | None, options: Mapping[str, Any], lower: Lower) -> None:
        """Open. The store below is open already."""
        super().__init__(layout, options)
        self.lower = lower

    @classmethod
    def lower_layout(cls, layout: Layout, options: Mapping[str, Any]) -> Layout:
        """Return the layout to open the store below with; see ``Layout.resized``."""
        return layout

    def lookup(self, block_ids: list[bytes]) -> Sequence[int]:
        """Ask the store below."""
        return self.lower.lookup(block_ids)

    def dump(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException | None] | None:
        """Dump into the store below."""
        return self.lower.dump(block_ids, shard_index, shards)

    def load(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException]:
        """Load from the store below."""
        return self.lower.load(block_ids, shard_index, shards)

    def remove(self, block_ids: list[bytes]) -> None:
        """Remove from the store below."""
        self.lower.remove(block_ids)


class CodecBase(LayerBase):
    """Derive from this to write a layer that changes the bytes of each shard, and nothing else.

    Define ``encode``, ``decode`` and ``encoding``, and ``encoded_size`` if the bytes may become
    more. The same bytes must come back: the lengths of shards vary.
    """

    @classmethod
    def encoded_size(cls, size: int) -> int:
        """Return the most bytes that a shard of up to ``size`` bytes may be encoded to."""
        return size

    def encode(self, data: bytes) -> bytes:
        """Return what is stored below in place of a shard's bytes."""
        raise errors.UnsupportedError(f"{type(self).__name__} has no encode")

    def decode(self, data: bytes) -> bytes:
        """Return a shard's bytes again. What it raises ends the shard as CORRUPT."""
        raise errors.UnsupportedError(f"{type(self).__name__} has no decode")

    @classmethod
    def lower_layout(cls, layout: Layout, options: Mapping[str, Any]) -> Layout:
        """Make room for ``encoded_size``."""
        return layout.resized(cls.encoded_size(layout.shard_size))

    def dump(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException | None] | None:
        """Dump what is encoded into the store below."""
        encoded = [self.encode(b"".join(shard)) for shard in shards]
        return self.lower.dump(block_ids, shard_index, encoded)

    def load(
        self, block_ids: list[bytes], shard_index: list[int], shards: list[list[memoryview]]
    ) -> Sequence[int | BaseException]:
        """Load from the store below, and decode."""
        size = self.lower.layout.shard_size if self.lower.layout else 0
        rooms = [bytearray(size) for _ in shards]
        ends = self.lower.load(block_ids, shard_index, rooms)
        return [self._decoded(*row) for row in zip(ends, rooms, shards, strict=True)]

    def _decoded(
        self, end: int | BaseException, room: bytearray, shard: list[memoryview]
    ) -> int | BaseException:
        if isinstance(end, BaseException):
            return end
        try:
            return self.fill(shard, self.decode(bytes(memoryview(room)[:end])))
        except errors.StoreError as error:
            return error
        except Exception as error:
            return errors.CorruptError(f"{type(self).__name__}.decode: {error}")


def defines(store: object, method: str) -> bool:
    """Tell whether an author's class has a method of its own."""
    mine = getattr(type(store), method)
    return mine is not getattr(StoreBase, method) and mine is not getattr(LayerBase, method)
