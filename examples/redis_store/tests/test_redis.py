"""Two processes and a server: what one dumps, the other loads; whatever dies, nothing hangs."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
from peer import SHARD, SHARDS, block, dump, load, open_store
from reach import Reach
from servers import Server

import ucm


def test_what_one_process_dumps_another_loads(store, peer):
    for seed in range(20):
        peer.run(f"dump(store, {seed})")
    assert store.lookup([block(seed)[0] for seed in range(21)]) == [True] * 20 + [False]
    assert all(load(store, seed) for seed in range(20))


def test_shards_of_two_writers_do_not_make_a_block(store, peer):
    dump(store, 1, [0, 1])
    peer.run("dump(store, 1, [2, 3])")
    assert store.lookup([block(1)[0]]) == [False]
    dump(store, 1, [2, 3])
    assert peer.run("load(store, 1)")


def test_what_is_removed_is_gone_for_all(store, peer):
    peer.run("dump(store, 1)")
    store.remove([block(1)[0]])
    assert peer.run("store.lookup([block(1)[0]])") == [False]
    with pytest.raises(ucm.NotFoundError):
        load(store, 1)


def test_another_model_or_geometry_misses(store, server):
    dump(store, 1)
    name = block(1)[0]
    for other in ({"model": "other"}, {"fingerprint": "v2"}, {"namespace": "b"}, {"dtype": "bf16"}):
        with open_store(server.url, **other) as elsewhere:
            assert elsewhere.lookup([name]) == [False]
    with ucm.open_pipeline("Redis", redis_url=server.url, block_size=SHARD, shard_size=SHARD) as s:
        assert s.lookup([name]) == [False]
    with open_store(server.url) as same:
        assert same.lookup([name]) == [True]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def eventually(works):
    """Wait until something works; the test's own limit is how long."""
    while True:
        try:
            if works():
                return
        except ucm.StoreError:
            pass
        time.sleep(0.02)


def test_a_server_that_was_killed_is_used_again(store, server, run):
    dump(store, 1)
    server.kill()
    for call in (lambda: load(store, 1), lambda: dump(store, 2), lambda: store.lookup([bytes(16)])):
        with pytest.raises(ucm.UnavailableError):
            call()
    with pytest.raises(ucm.UnavailableError, match=server.url):
        store.lookup([bytes(16)])
    run(server.again())
    eventually(lambda: dump(store, 3))
    assert load(store, 3)
    assert store.lookup([block(1)[0]]) == [False]  # this server keeps nothing on a disk


def test_a_server_with_a_log_has_the_blocks_after_a_kill(tmp_path_factory, run):
    server = run(
        Server(tmp_path_factory.mktemp("r"), "--appendonly", "yes", "--appendfsync", "always")
    )
    with open_store(server.url) as store:
        dump(store, 1)
        dump(store, 2, [0])
        run(server.again())
        eventually(lambda: load(store, 1))
        assert store.lookup([block(2)[0]]) == [False]


def test_a_server_that_does_not_answer_is_a_timeout(server):
    with open_store(server.url, redis_timeout_ms=300) as store:
        dump(store, 1)
        server.stop()
        for call in (lambda: load(store, 1), lambda: dump(store, 2)):
            with pytest.raises(ucm.StoreTimeout, match="TIMEOUT"):
                call()
        with pytest.raises(ucm.StoreTimeout, match="redis_timeout_ms"):
            store.lookup([bytes(16)])
        server.go_on()
        eventually(lambda: load(store, 1))


def test_altered_bytes_are_corrupt_and_the_next_dump_replaces_them(store, server):
    dump(store, 1)
    raw = redis.Redis.from_url(server.url)
    (key,) = raw.keys(f"*{block(1)[0].hex()}")
    value = bytearray(raw.hget(key, 2))
    value[100] ^= 1
    raw.hset(key, 2, bytes(value))
    with pytest.raises(ucm.CorruptError, match="shard 2"):
        load(store, 1)
    assert store.lookup([block(1)[0]]) == [False]
    dump(store, 1)
    assert load(store, 1)


def test_swapped_shards_are_corrupt(store, server):
    dump(store, 1)
    raw = redis.Redis.from_url(server.url)
    (key,) = raw.keys(f"*{block(1)[0].hex()}")
    raw.hset(key, mapping={"0": raw.hget(key, 1), "1": raw.hget(key, 0)})
    with pytest.raises(ucm.CorruptError, match=r"shard 0.*shard 1"):
        load(store, 1)


def test_a_full_server_is_no_space_and_serves_what_it_has(tmp_path_factory, run):
    server = run(
        Server(
            tmp_path_factory.mktemp("r"), "--maxmemory", "8mb", "--maxmemory-policy", "noeviction"
        )
    )

    def until_it_is_full(store):
        for seed in range(100):
            dump(store, seed)

    with open_store(server.url) as store:
        with pytest.raises(ucm.NoSpaceError):
            until_it_is_full(store)
        assert load(store, 0)
        store.remove([block(seed)[0] for seed in range(10)])
        eventually(lambda: dump(store, 200))
        assert load(store, 200)


def test_what_a_server_evicts_is_not_found_and_never_half(tmp_path_factory, run):
    server = run(
        Server(
            tmp_path_factory.mktemp("r"), "--maxmemory", "8mb", "--maxmemory-policy", "allkeys-lru"
        )
    )
    with open_store(server.url) as store:
        for seed in range(100):
            dump(store, seed)
        present = store.lookup([block(seed)[0] for seed in range(100)])
        assert 0 < sum(present) < 100
        for seed in (s for s in range(100) if present[s]):
            assert load(store, seed)
        with pytest.raises(ucm.NotFoundError, match=f"{SHARDS} of {SHARDS} shards"):
            load(store, present.index(False))


def test_blocks_go_when_nobody_loads_them_and_unfinished_ones_too(server):
    with open_store(server.url, redis_ttl_s=1, redis_unfinished_s=1) as store:
        dump(store, 1)
        dump(store, 2, [0])
        eventually(lambda: not redis.Redis.from_url(server.url).keys("*:*:*:*"))
        assert store.lookup([block(1)[0]]) == [False]


def test_a_password_comes_as_an_option_or_from_the_environment(
    tmp_path_factory, run, monkeypatch, caplog
):
    server = run(Server(tmp_path_factory.mktemp("r"), "--requirepass", "open sesame"))
    for wrong in ({}, {"redis_password": "wrong"}):
        with pytest.raises(ucm.UnavailableError, match="redis_password") as raised:
            open_store(server.url, **wrong)
        assert "wrong" not in str(raised.value).replace("WRONGPASS", "").replace("wrong num", "")
    with open_store(server.url, redis_password="open sesame") as store:
        assert "sesame" not in repr(store) + caplog.text
        dump(store, 1)
    monkeypatch.setenv("UCM_REDIS_PASSWORD", "open sesame")
    with open_store(server.url) as store:
        assert load(store, 1)


@pytest.mark.parametrize("url", ["redis://:secret@localhost:1", "unix:///a?password=secret"])
def test_a_password_in_the_address_is_refused(url):
    with pytest.raises(ucm.ConfigError, match=r"redis_url.*redis_password") as raised:
        open_store(url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"redis_url": "http://localhost"}, "redis_url"),
        ({"redis_url": "redis://h", "redis_tls_ca_file": "ca.pem"}, "redis_tls_ca_file"),
        ({"redis_url": "redis://127.0.0.1:1"}, "redis_url"),
    ],
)
def test_what_cannot_be_reached_is_named(options, named):
    with pytest.raises((ucm.ConfigError, ucm.UnavailableError), match=named):
        open_store(options.pop("redis_url"), **options)


def test_tls(tmp_path, run):
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", key, "-out", certificate),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    run(
        Server(
            tmp_path,
            *("--tls-port", str(port), "--tls-cert-file", certificate, "--tls-key-file", key),
            *("--tls-ca-cert-file", certificate, "--tls-auth-clients", "no"),
        )
    )
    url = f"rediss://localhost:{port}"
    with open_store(url, redis_tls_ca_file=str(certificate)) as store:
        dump(store, 1)
        assert load(store, 1)
    with pytest.raises(ucm.UnavailableError, match="certificate"):
        open_store(url)


def test_below_the_cache_and_from_yaml(server, tmp_path):
    config = tmp_path / "ucm.yaml"
    config.write_text(
        "store_pipeline: 'Cache|Redis'\n"
        f"redis_url: {server.url}\n"
        "cache_buffer_capacity_gb: 0.02\n"
        f"block_size: {SHARDS * SHARD}\nshard_size: {SHARD}\n"
    )
    with ucm.open_pipeline(config) as store:
        for seed in range(10):
            dump(store, seed)
        assert store.drain(30000).lost == 0
    with ucm.open_pipeline(config, unique_id="another") as store:
        assert store.lookup_on_prefix([block(seed)[0] for seed in range(10)]) == 9
        assert all(load(store, seed) for seed in range(10))


@pytest.mark.timeout(600)
def test_the_contract(tmp_path_factory, run):
    server = run(Server(tmp_path_factory.mktemp("r"), *Reach.LOG))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "--pyargs", "ucm.conformance", "-q", "-rf"),
            *("-p", "no:cacheprovider", "--ucm-pipeline", "Redis"),
            *("--ucm-option", f"redis_url={server.url}", "--ucm-option", "redis_prefix={tmp}"),
            *("--ucm-files", "reach:Reach"),
        ],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
