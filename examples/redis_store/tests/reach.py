"""How the fault tests of the contract reach what a server keeps, stop it, and start it again."""

import atexit
import os
import signal
from pathlib import Path

import redis
from servers import Server


class Reach:
    """Over a server that keeps a log, so that it starts with what it had."""

    LOG = ("--appendonly", "yes", "--appendfsync", "no")

    def __init__(self, options):
        self._raw = redis.Redis.from_url(options["redis_url"])
        self._prefix = options["redis_prefix"]
        self._folder = Path(self._raw.config_get("dir")["dir"])

    def _key(self, block_id):
        return next(iter(self._raw.keys(f"{self._prefix}:*{block_id.hex()}")), None)

    def read(self, block_id):
        """Return the fields of the block's hash, one a shard."""
        key = self._key(block_id)
        return (
            {field.decode(): data for field, data in self._raw.hgetall(key).items()} if key else {}
        )

    def write(self, block_id, name, data):
        """Put other bytes into a field, or delete it."""
        if data is None:
            self._raw.hdel(self._key(block_id), name)
        else:
            self._raw.hset(self._key(block_id), name, data)

    def stop(self):
        """Kill the server."""
        os.kill(self._raw.info()["process_id"], signal.SIGKILL)

    def start(self):
        """Start it where it was."""
        atexit.register(Server(self._folder, *self.LOG).kill)
