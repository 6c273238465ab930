"""The connection: its options, and Redis's errors as the store's."""

import contextlib
import os

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import ucm
from ucm import Option

CONNECTIONS = 8

OPTIONS = (
    Option(
        "redis_url",
        "string",
        "redis://127.0.0.1:6379/0",
        None,
        None,
        "redis://HOST:PORT/DB, rediss:// for TLS, or unix:///PATH?db=DB; no password in it.",
    ),
    Option("redis_username", "string", "", None, None, "Who to log in as; default: nobody."),
    Option("redis_password", "secret", "", None, None, "Default: $UCM_REDIS_PASSWORD."),
    Option("redis_tls_ca_file", "string", "", None, None, "Whom to trust; default: the system."),
    Option("redis_timeout_ms", "int", "5000", "100..", "ms", "Limit of every wait for the server."),
    Option(
        "redis_ttl_s", "int", "0", "0..", "s", "Blocks go so long after their last use; 0: never."
    ),
    Option(
        "redis_unfinished_s",
        "int",
        "600",
        "1..",
        "s",
        "Blocks that are not complete go so long after their last shard.",
    ),
    Option("redis_prefix", "string", "ucm", None, None, "What all keys begin with."),
    Option("namespace", "string", "default", None, None, "Whose blocks: a tenant, team, purpose."),
    Option("model", "string", "", None, None, "The model whose KV cache it is."),
    Option("fingerprint", "string", "", None, None, "What else tells what the bytes mean."),
)


def connect(options):
    """Open a pool of connections, and try one."""
    url, timeout = options["redis_url"], options["redis_timeout_ms"] / 1000
    if "@" in url.partition("://")[2].partition("?")[0] or "password=" in url:
        raise ucm.ConfigError(
            "redis_url: who logs in does not belong here, where logs show it; "
            "use redis_username and redis_password or $UCM_REDIS_PASSWORD"
        )
    tls = {"ssl_ca_certs": options["redis_tls_ca_file"]} if options["redis_tls_ca_file"] else {}
    if tls and not url.startswith("rediss:"):
        raise ucm.ConfigError("redis_tls_ca_file: TLS takes a redis_url that begins with rediss://")
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            username=options["redis_username"] or None,
            password=str(options["redis_password"]) or os.environ.get("UCM_REDIS_PASSWORD") or None,
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            timeout=timeout,
            max_connections=CONNECTIONS,
            # Once more after the server closed an idle connection; everything may be done twice.
            retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            **tls,
        )
    except ValueError as error:
        raise ucm.ConfigError(f"redis_url: {url!r}: {error}") from None
    server = redis.Redis(connection_pool=pool)
    with errors(url):
        server.ping()
    return server


@contextlib.contextmanager
def errors(url):
    """Raise what Redis raises as the store's own."""
    try:
        yield
    except redis.RedisError as error:
        raise error_of(error, url) from None


def error_of(error, url):
    """Make the store's exception of one of Redis's."""
    text = f"redis_url {url!r}: {error}"
    if isinstance(error, redis.AuthenticationError):
        return ucm.UnavailableError(f"{text}; see redis_username and redis_password")
    if isinstance(error, redis.TimeoutError):
        return ucm.StoreTimeout(f"{text} (redis_timeout_ms)")
    if isinstance(error, redis.ConnectionError):
        return ucm.UnavailableError(text)
    if isinstance(error, (redis.OutOfMemoryError, redis.ResponseError)):
        if str(error).startswith(("OOM", "command not allowed when used memory")):
            return ucm.NoSpaceError(f"{text}; see maxmemory and maxmemory-policy of the server")
        if str(error).startswith(("READONLY", "MASTERDOWN", "NOPERM", "NOREPLICAS", "CLUSTERDOWN")):
            return ucm.UnavailableError(text)
    return ucm.IoError(text)
