"""The store: one object a shard, and one, written last, that publishes the block."""

import collections
import hashlib
import logging
import threading

import ucm
from mooncake_store import record
from mooncake_store.client import (
    GONE,
    OBJECTS,
    TRANSFER_FAILED,
    Away,
    Client,
    error_of,
    error_of_put,
)
from mooncake_store.gathering import Gathering
from mooncake_store.settings import OPTIONS, Settings

logger = logging.getLogger("ucm.mooncake")

_LANE_BYTES = 8 << 20
_RECORDS = 4096  # that are remembered


class UcmMooncakeStore(ucm.StoreBase):
    """Keeps blocks in the memory pool of a Mooncake cluster."""

    OPTIONS = OPTIONS

    def __init__(self, layout, options):
        super().__init__(layout, options)
        settings = Settings.of(options)
        self.capabilities = frozenset({"keeps", "loads", "verifies", "remove"})
        if not settings.global_segment_size:  # else the blocks go with this process
            self.capabilities |= {"persistent"}
        self._timeout = settings.timeout
        self._replicas = settings.replica_num
        self._root = f"{options['mooncake_prefix']}/{options['namespace']}/"
        self._model = options["model"]
        self._space = space_of(layout, options) if layout else None
        self._gathering = Gathering()
        self._lock = threading.Lock()  # guards _records
        self._records = collections.OrderedDict()
        size = record.size_of(layout.shards_per_block) if layout else 0
        shard = layout.shard_size if layout else 0
        self._client = Client(settings, max(size, shard, _LANE_BYTES if layout else 4096))

    def lookup(self, block_ids):
        """Ask for all records in one call."""
        if not block_ids:
            return []
        with self._client.lane() as lane:
            if self._space is None:
                self._space = self._only_space(lane)
            if self._space is None:
                return [False] * len(block_ids)
            return self._client.exist(lane, [self._key(block_id) for block_id in block_ids])

    def dump(self, block_ids, shard_index, shards):
        """Store shards; publish the blocks that are complete."""
        named = list(zip(block_ids, shard_index, strict=True))
        answers = {}
        ids = list(dict.fromkeys(block_ids))
        with self._gathering.claim(ids, self._timeout), self._client.lane() as lane:
            there = self._client.exist(lane, [self._key(block_id) for block_id in ids])
            done = {block_id for block_id, present in zip(ids, there, strict=True) if present}
            todo = {}
            for name, row in zip(named, shards, strict=True):  # of duplicates the first wins
                if name[0] in done:
                    answers[name] = ucm.Dumped.PUBLISHED
                elif name[1] in self._gathering.of(name[0]).shards:
                    answers[name] = ucm.Dumped.STORED
                else:
                    todo.setdefault(name, row)
            for batch in self._batches(todo.items(), lane.size):
                self._put_shards(lane, batch, answers)
            for block_id in done:
                self._gathering.pop(block_id)
            self._publish(lane, [block_id for block_id in ids if block_id not in done], answers)
        return [answers[name] for name in named]

    def load(self, block_ids, shard_index, shards):
        """Load shards, verify them, and copy them to where they are wanted."""
        wanted = list(zip(block_ids, shard_index, shards, strict=True))
        answers = [None] * len(wanted)
        left = list(range(len(wanted)))
        try:
            with self._client.lane() as lane:
                for again in (False, True):  # what is remembered may be of a copy that is gone
                    ids = list(dict.fromkeys(wanted[i][0] for i in left))
                    records = self._read_records(lane, ids, again)
                    left = self._get_shards(lane, left, wanted, records, answers)
                    if not left:
                        break
                useless = {wanted[i][0] for i in left if not isinstance(answers[i], Away)}
                self._forget(lane, {block_id: records[block_id] for block_id in useless})
        except ucm.StoreError as error:
            answers = [error if answer is None else answer for answer in answers]
        return answers

    def remove(self, block_ids):
        """Forget blocks, whole ones and those that this store is writing."""
        ids = list(dict.fromkeys(block_ids))
        if not ids:
            return
        with self._gathering.claim(ids, self._timeout), self._client.lane() as lane:
            self._forget(lane, self._read_records(lane, ids, again=True))
            keys = []
            for block_id in ids:
                unfinished = self._gathering.pop(block_id)
                if unfinished:
                    keys += self._shard_keys(block_id, unfinished.token, unfinished.shards)
            if keys:
                self._client.remove(lane, keys)

    def drain(self):
        """Report what is unfinished; a dump has stored its shards when it returns."""
        return ucm.Report(0, 0, 0, self._gathering.count())

    def close(self):
        """Leave the cluster; what this process gave to the pool goes with it."""
        self._client.close()
        return self.drain()

    def _key(self, block_id):
        return f"{self._root}{self._space}/{block_id.hex()}"

    def _shard_keys(self, block_id, token, indexes):
        return [f"{self._key(block_id)}/{token.hex()}/{index}" for index in indexes]

    def _marker(self):
        model = hashlib.sha256(self._model.encode()).hexdigest()[:16]
        return f"{self._root}space-of-{model}"

    def _only_space(self, lane):
        """Find the first space of this namespace and model, for who has not been told the sizes."""
        (length,) = self._client.get(lane, [self._marker()], [lane.address], [lane.size])
        if length in GONE:
            return None
        if length < 0:
            raise error_of(length)
        return bytes(lane.memory[:length]).decode()

    def _config(self, groups):
        from mooncake.store import ReplicateConfig

        config = ReplicateConfig()
        config.replica_num = self._replicas
        if hasattr(config, "group_ids"):  # so that the objects of a block age together
            config.group_ids = groups
        return config

    @staticmethod
    def _batches(items, room):
        batch, used = [], 0
        for name, row in items:
            length = sum(map(len, row))
            if batch and (used + length > room or len(batch) == OBJECTS):
                yield batch
                batch, used = [], 0
            batch.append((name, row, length))
            used += length
        if batch:
            yield batch

    def _put_shards(self, lane, batch, answers):
        keys, places, lengths, groups, named, at = [], [], [], [], [], 0
        for (block_id, index), row, length in batch:
            memory = lane.memory[at : at + length]
            place = 0
            for segment in row:
                memory[place : place + len(segment)] = segment
                place += len(segment)
            known = (length, record.checksum(block_id, index, memory))
            block = self._gathering.of(block_id)
            if not length:  # Mooncake has no empty objects
                block.shards[index] = known
                answers[block_id, index] = ucm.Dumped.STORED
                continue
            keys += self._shard_keys(block_id, block.token, [index])
            places.append(lane.address + at)
            lengths.append(length)
            groups.append(block.token.hex())
            named.append((block_id, index, known))
            at += length
        codes = self._client.put(lane, keys, places, lengths, self._config(groups)) if keys else []
        for (block_id, index, known), code in zip(named, codes, strict=True):
            answers[block_id, index] = error_of_put(code) if code else ucm.Dumped.STORED
            if not code:
                self._gathering.of(block_id).shards[index] = known

    def _publish(self, lane, block_ids, answers):
        whole = [
            block_id
            for block_id in block_ids
            if len(self._gathering.of(block_id).shards) == self.layout.shards_per_block
        ]
        size = record.size_of(self.layout.shards_per_block)
        step = min(OBJECTS - 1, max(1, (lane.size - len(self._space)) // size))
        for some in (whole[i : i + step] for i in range(0, len(whole), step)):
            keys, places, lengths, groups = [], [], [], []
            for at, block_id in enumerate(some):
                token, shards = self._gathering.of(block_id)
                data = record.Record(token, tuple(shards[i] for i in range(len(shards)))).pack()
                lane.memory[at * size : (at + 1) * size] = data
                keys.append(self._key(block_id))
                places.append(lane.address + at * size)
                lengths.append(size)
                groups.append(token.hex())
            name = self._space.encode()
            lane.memory[lane.size - len(name) : lane.size] = name
            codes = self._client.put(
                lane,
                [*keys, self._marker()],
                [*places, lane.address + lane.size - len(name)],
                [*lengths, len(name)],
                self._config([*groups, ""]),
            )
            for block_id, code in zip(some, codes, strict=False):
                self._gathering.pop(block_id)
                end = error_of_put(code) if code else ucm.Dumped.PUBLISHED
                answers.update({name: end for name in answers if name[0] == block_id})

    def _read_records(self, lane, block_ids, again):
        """Return for each block its record, or why there is none."""
        with self._lock:
            found = {} if again else {i: self._records[i] for i in block_ids if i in self._records}
        missing = [block_id for block_id in block_ids if block_id not in found]
        count = self.layout.shards_per_block
        size = record.size_of(count)
        step = min(OBJECTS, lane.size // size)
        for some in (missing[i : i + step] for i in range(0, len(missing), step)):
            places = [lane.address + at * size for at in range(len(some))]
            keys = [self._key(block_id) for block_id in some]
            lengths = self._client.get(lane, keys, places, [size] * len(some))
            for at, (block_id, length) in enumerate(zip(some, lengths, strict=True)):
                found[block_id] = _record(lane.memory[at * size :][:size], length, count)
        with self._lock:
            for block_id in missing:
                self._records.pop(block_id, None)
                if isinstance(found[block_id], record.Record):
                    self._records[block_id] = found[block_id]
            while len(self._records) > _RECORDS:
                self._records.popitem(last=False)
        return found

    def _get_shards(self, lane, numbers, wanted, records, answers):
        """Load shards by their number; return those that are worth a second look."""
        ready, broken, used = [], [], 0
        for i in numbers:
            block_id, index, row = wanted[i]
            known = records[block_id]
            if isinstance(known, Exception):
                answers[i] = known
                if isinstance(known, ucm.CorruptError):
                    broken.append(i)
                continue
            length, _ = known.shards[index]
            if length > sum(map(len, row)):
                answers[i] = ucm.IncompatibleError(
                    f"{length} bytes are stored, more than the memory has room for"
                )
                continue
            if ready and (used + length > lane.size or len(ready) == OBJECTS):
                broken += self._get_batch(lane, ready, wanted, records, answers)
                ready, used = [], 0
            ready.append((i, used, length))
            used += length
        return broken + self._get_batch(lane, ready, wanted, records, answers)

    def _get_batch(self, lane, ready, wanted, records, answers):
        full = [part for part in ready if part[2]]
        keys = []
        for i, _, _ in full:
            block_id, index, _ = wanted[i]
            keys += self._shard_keys(block_id, records[block_id].token, [index])
        places = [lane.address + at for _, at, _ in full]
        sizes = [length for _, _, length in full]
        codes = self._client.get(lane, keys, places, sizes) if keys else []
        ends = dict(zip((i for i, _, _ in full), codes, strict=True))
        broken = []
        for i, at, length in ready:
            block_id, index, row = wanted[i]
            end = ends.get(i, 0)
            memory = lane.memory[at : at + length]
            known = records[block_id].shards[index]
            if end in GONE or end == TRANSFER_FAILED:
                answers[i] = error_of(end)
                broken.append(i)
            elif end < 0:
                answers[i] = error_of(end)
            elif (end, record.checksum(block_id, index, memory)) != known:
                answers[i] = ucm.CorruptError("the bytes in the pool fail their checksum")
                broken.append(i)
            else:
                answers[i] = self.fill(row, memory)
        return broken

    def _forget(self, lane, records):
        """Remove blocks: first the records, so that no half is seen, then the shards."""
        with self._lock:
            for block_id in records:
                self._records.pop(block_id, None)
        if records:
            self._client.remove(lane, [self._key(block_id) for block_id in records])
        keys = []
        for block_id, known in records.items():
            if isinstance(known, record.Record):
                keys += self._shard_keys(block_id, known.token, range(len(known.shards)))
        if keys:
            self._client.remove(lane, keys)


def space_of(layout, options):
    """Name the space of blocks that this store may share: one for each meaning of bytes."""
    meaning = (
        options["model"],
        options["fingerprint"],
        layout.shards_per_block,
        layout.shard_size,
        layout.encoding,
    )
    return hashlib.sha256(repr(meaning).encode()).hexdigest()[:32]


def _record(data, length, shards):
    """Return the record, or why there is none."""
    if length in GONE:
        return ucm.NotFoundError("not stored")
    if length < 0:
        return error_of(length)
    try:
        return record.unpack(data[:length], shards)
    except ucm.StoreError as error:
        return error
