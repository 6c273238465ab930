"""Redis: blocks of KV cache in a Redis server."""

import ucm
from redis_store.store import RedisStore

__all__ = ["RedisStore"]


@ucm.hookimpl
def ucm_register_stores(register):
    register("Redis", RedisStore)
