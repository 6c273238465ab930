"""The store: one hash a block, index to checksum and bytes, under a name of its own until whole.

Redis runs one command after another, so that renaming a hash publishes its block, and evicting or
deleting it takes all of the block.
"""

import hashlib
import secrets
import struct
import threading

import redis
import xxhash

import ucm
from redis_store.server import OPTIONS, connect, error_of, errors

_SUM = struct.Struct("<Q")
_BATCH_BYTES = 16 << 20  # that are in memory twice for the moment
_KEYS = 4000  # of one script; Lua takes some 8000
_UNFINISHED = 4096
_MAX_VALUE = 512 << 20

# The block is published or complete: 1. The writer's copy goes if it came too late.
_PUBLISH = """
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('UNLINK', KEYS[1])
  return 1
end
if redis.call('HLEN', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return 0
end
redis.call('RENAME', KEYS[1], KEYS[2])
if ARGV[3] == '0' then
  redis.call('PERSIST', KEYS[2])
else
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
"""

_EXIST = """
local found = {}
for i, key in ipairs(KEYS) do
  found[i] = redis.call('EXISTS', key)
end
return found
"""


class RedisStore(ucm.StoreBase):
    """Keeps blocks in a Redis server."""

    OPTIONS = OPTIONS
    capabilities = frozenset({"keeps", "loads", "persistent", "verifies", "remove"})

    def __init__(self, layout, options):
        super().__init__(layout, options)
        if layout and layout.shard_size + _SUM.size > _MAX_VALUE:
            raise ucm.ConfigError(
                f"shard_size: {layout.shard_size} bytes are more than Redis takes as one value "
                f"({_MAX_VALUE}); let a block have more shards"
            )
        self._url = options["redis_url"]
        self._ttl_ms = options["redis_ttl_s"] * 1000
        self._unfinished_ms = options["redis_unfinished_s"] * 1000
        model = hashlib.sha256(options["model"].encode()).hexdigest()[:16]
        self._root = f"{options['redis_prefix']}:{options['namespace']}:"
        self._spaces = f"{self._root}spaces-of-{model}"
        self._space = space_of(layout, options) if layout else None
        self._writer = secrets.token_hex(16)  # copies of two writers never mix
        self._lock = threading.Lock()  # guards _unfinished
        self._unfinished = {}
        self._server = connect(options)

    def lookup(self, block_ids):
        """Ask for all blocks in one call."""
        found = []
        with errors(self._url):
            if self._space is None:
                self._space = self._only_space()
            if self._space is None:
                return [False] * len(block_ids)
            for at in range(0, len(block_ids), _KEYS):
                keys = [self._key(block_id) for block_id in block_ids[at : at + _KEYS]]
                found += self._server.eval(_EXIST, len(keys), *keys)
        return found

    def dump(self, block_ids, shard_index, shards):
        """Store shards; publish the blocks that are complete."""
        ids = list(dict.fromkeys(block_ids))
        there = {b for b, present in zip(ids, self.lookup(ids), strict=True) if present}
        answers = [ucm.Dumped.PUBLISHED] * len(block_ids)
        todo = [i for i, block_id in enumerate(block_ids) if block_id not in there]
        sizes = [sum(map(len, row)) for row in shards]
        for batch in _batches(todo, sizes):
            ends = self._write(batch, block_ids, shard_index, shards)
            for i, end in zip(batch, ends, strict=True):
                answers[i] = end
        with self._lock:
            for i, end in enumerate(answers):
                if end == ucm.Dumped.PUBLISHED:
                    self._unfinished.pop(block_ids[i], None)
                elif not isinstance(end, Exception):
                    self._unfinished.setdefault(block_ids[i], set()).add(shard_index[i])
            while len(self._unfinished) > _UNFINISHED:
                self._unfinished.pop(next(iter(self._unfinished)))
        return answers

    def load(self, block_ids, shard_index, shards):
        """Load shards and verify them; what fails is read once more before it is given up."""
        answers = [None] * len(block_ids)
        sizes = [sum(map(len, row)) for row in shards]
        left = list(range(len(block_ids)))
        try:
            for _ in range(2):
                bad = []
                for batch in _batches(left, sizes):
                    bad += self._read(batch, block_ids, shard_index, shards, answers)
                left = bad
            corrupt = {block_ids[i] for i in left}
            if corrupt:  # so that the next dump stores them anew
                with errors(self._url):
                    self._server.unlink(*map(self._key, corrupt))
        except ucm.StoreError as error:
            answers = [error if answer is None else answer for answer in answers]
        return answers

    def remove(self, block_ids):
        """Forget blocks, whole ones and those that this store is writing."""
        with self._lock:
            for block_id in block_ids:
                self._unfinished.pop(block_id, None)
        keys = [key for b in block_ids for key in (self._key(b), self._partial(b))]
        with errors(self._url):
            for at in range(0, len(keys), _KEYS):
                self._server.unlink(*keys[at : at + _KEYS])

    def drain(self):
        """Report what is unfinished; a dump has stored its shards when it returns."""
        with self._lock:
            return ucm.Report(0, 0, 0, sum(map(len, self._unfinished.values())))

    def close(self):
        """Close the connections."""
        self._server.connection_pool.disconnect()
        return self.drain()

    def _key(self, block_id):
        return f"{self._root}{self._space}:{block_id.hex()}"

    def _partial(self, block_id):
        return f"{self._key(block_id)}:{self._writer}"

    def _only_space(self):
        """Find the space of this namespace and model, for who has not been told the sizes."""
        spaces = self._server.smembers(self._spaces)
        return spaces.pop().decode() if len(spaces) == 1 else None

    def _write(self, batch, block_ids, shard_index, shards):
        """Store some shards; return how each ended."""
        pipe = self._server.pipeline(transaction=False)
        for i in batch:
            data = checksum(block_ids[i], shard_index[i], shards[i])
            value = b"".join((_SUM.pack(data), *shards[i]))
            pipe.hsetnx(self._partial(block_ids[i]), shard_index[i], value)
        ids = list(dict.fromkeys(block_ids[i] for i in batch))
        for b in ids:
            keys = (self._partial(b), self._key(b))
            limits = (self.layout.shards_per_block, self._unfinished_ms, self._ttl_ms)
            pipe.eval(_PUBLISH, 2, *keys, *limits)
        pipe.sadd(self._spaces, self._space)
        with errors(self._url):
            ends = pipe.execute(raise_on_error=False)
        published = dict(zip(ids, ends[len(batch) :], strict=False))
        answers = []
        for i, end in zip(batch, ends, strict=False):
            last = published[block_ids[i]]
            error = next((e for e in (end, last) if isinstance(e, Exception)), None)
            answers.append(error_of(error, self._url) if error else ucm.Dumped(int(last == 1)))
        return answers

    def _read(self, batch, block_ids, shard_index, shards, answers):
        """Load some shards; return those whose bytes fail their check."""
        pipe = self._server.pipeline(transaction=False)
        for i in batch:
            pipe.hget(self._key(block_ids[i]), shard_index[i])
        for b in dict.fromkeys(block_ids[i] for i in batch) if self._ttl_ms else ():
            pipe.pexpire(self._key(b), self._ttl_ms)
        with errors(self._url):
            values = pipe.execute(raise_on_error=False)
        bad = []
        for i, value in zip(batch, values, strict=False):
            if isinstance(value, redis.RedisError):
                answers[i] = error_of(value, self._url)
            elif value is None:
                answers[i] = ucm.NotFoundError("not stored")
            else:
                answers[i] = self._verified(block_ids[i], shard_index[i], value, shards[i])
                if isinstance(answers[i], ucm.CorruptError):
                    bad.append(i)
        return bad

    def _verified(self, block_id, index, value, row):
        data = memoryview(value)[_SUM.size :]
        if value[: _SUM.size] != _SUM.pack(checksum(block_id, index, [data])):
            return ucm.CorruptError("the bytes in Redis fail their checksum")
        if len(data) > sum(map(len, row)):
            return ucm.IncompatibleError(
                f"{len(data)} bytes are stored, more than the memory has room for"
            )
        return self.fill(row, data)


def checksum(block_id, index, parts):
    """Return the sum of a shard, which covers whose it is and its length."""
    seed = xxhash.xxh3_64_intdigest(block_id + index.to_bytes(4, "little"))
    digest = xxhash.xxh3_64(seed=seed)
    for part in parts:
        digest.update(part)
    return digest.intdigest()


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


def _batches(numbers, sizes):
    batch, used = [], 0
    for i in numbers:
        if batch and used + sizes[i] > _BATCH_BYTES:
            yield batch
            batch, used = [], 0
        batch.append(i)
        used += sizes[i]
    if batch:
        yield batch
