"""Two processes and a master: what one dumps, the other loads; whatever dies, nothing hangs."""

import time

import pytest
from cluster import MIB, Master, Peer
from peer import SHARD, SHARDS, block, dump, load, open_store

import ucm


def test_what_one_process_dumps_another_loads(store, peer):
    for seed in range(20):
        peer.run(f"dump(store, {seed})")
    assert store.lookup([block(seed)[0] for seed in range(21)]) == [True] * 20 + [False]
    assert all(load(store, seed) for seed in range(20))


@pytest.mark.slow
def test_what_is_removed_is_gone_for_all(store, peer):
    peer.run("dump(store, 1)")
    assert load(store, 1)
    peer.run("load(store, 1)")
    store.remove([block(1)[0]])
    assert peer.run("store.lookup([block(1)[0]])") == [False]
    with pytest.raises(ucm.NotFoundError):
        load(store, 1)
    dump(store, 1)
    assert peer.run("load(store, 1)")


def eventually(works):
    """Wait until something works; the test's own limit is how long."""
    while True:
        try:
            if works():
                return
        except ucm.StoreError:
            pass
        time.sleep(0.05)


def test_a_master_that_comes_back_is_used_again(store, peer, master, run):
    dump(store, 1)
    master.kill()
    for call in (lambda: load(store, 1), lambda: dump(store, 2), lambda: store.lookup([bytes(16)])):
        with pytest.raises((ucm.UnavailableError, ucm.StoreTimeout)):
            call()
    run(master.again())
    eventually(lambda: dump(store, 3))
    eventually(lambda: load(store, 3))
    assert store.lookup([block(1)[0]]) == [False]  # a master forgets what it knew
    dump(store, 1)
    assert load(store, 1)


@pytest.mark.slow
def test_a_master_that_does_not_answer_is_a_timeout(store, master):
    dump(store, 1)
    master.stop()
    with pytest.raises((ucm.UnavailableError, ucm.StoreTimeout)):
        load(store, 1)
    with pytest.raises((ucm.UnavailableError, ucm.StoreTimeout)):
        store.lookup([bytes(16)])
    master.go_on()
    eventually(lambda: store.lookup([bytes(16)]) == [False])
    eventually(lambda: dump(store, 2))
    eventually(lambda: load(store, 2))


def test_blocks_of_a_client_that_was_killed_are_not_found(store, peer, master, run):
    dump(store, 1)
    peer.kill()
    with pytest.raises(ucm.NotFoundError):
        load(store, 1)
    run(Peer(master))
    eventually(lambda: dump(store, 2))
    eventually(lambda: load(store, 2))
    eventually(lambda: store.lookup([block(1)[0]]) == [False])


@pytest.mark.slow
def test_a_client_that_does_not_answer_holds_up_nobody_for_ever(store, peer, master):
    dump(store, 1)
    peer.stop()
    with pytest.raises((ucm.NotFoundError, ucm.StoreTimeout)):
        load(store, 1)
    peer.go_on()
    eventually(lambda: dump(store, 2))
    eventually(lambda: load(store, 2))


@pytest.mark.slow
def test_without_a_master_opening_says_what_to_look_at(tmp_path, run):
    master = Master(tmp_path / "log")
    master.kill()
    with pytest.raises(ucm.UnavailableError, match=f"{master.address}.*mooncake_master running"):
        open_store(master.address, 0, mooncake_timeout_ms=200)


@pytest.mark.slow
def test_a_full_pool_is_no_space(master):
    def until_it_is_full(store):
        for seed in range(1000):
            dump(store, seed)

    with open_store(master.address, 16 * MIB) as store, pytest.raises(ucm.NoSpaceError):
        until_it_is_full(store)


def test_below_the_cache_and_from_yaml(master, run, tmp_path):
    run(Peer(master))
    config = tmp_path / "ucm.yaml"
    config.write_text(
        "store_pipeline: 'Cache|UcmMooncakeStore'\n"
        f"master_server_address: {master.address}\n"
        "local_hostname: 127.0.0.1\n"
        "global_segment_size: 0\n"
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


def test_options_come_from_the_file_that_mooncake_users_have(master, peer, tmp_path, monkeypatch):
    config = tmp_path / "mooncake.json"
    config.write_text(
        f'{{"master_server_address": "{master.address}", "local_hostname": "127.0.0.1",'
        ' "global_segment_size": "0", "metadata_server": "P2PHANDSHAKE", "other": 1}'
    )
    monkeypatch.setenv("MOONCAKE_CONFIG_PATH", str(config))
    with ucm.open_pipeline("UcmMooncakeStore", block_size=4096) as store:
        assert "persistent" in store.capabilities  # it gives no memory
        assert store.lookup([bytes(16)]) == [False]
    config.write_text('{"master_server_address": 7}')
    with pytest.raises(ucm.ConfigError, match=r"mooncake.json: master_server_address"):
        ucm.open_pipeline("UcmMooncakeStore", block_size=4096)
    monkeypatch.delenv("MOONCAKE_CONFIG_PATH")
    with pytest.raises(ucm.ConfigError, match="MOONCAKE_CONFIG_PATH"):
        ucm.open_pipeline("UcmMooncakeStore", block_size=4096)


@pytest.mark.slow
def test_another_model_or_geometry_misses(store, master):
    dump(store, 1)
    name = block(1)[0]
    for other in ({"model": "other"}, {"fingerprint": "v2"}, {"namespace": "b"}, {"dtype": "bf16"}):
        with open_store(master.address, 0, **other) as elsewhere:
            assert elsewhere.lookup([name]) == [False]
    with open_store(master.address, 0) as same:
        assert same.lookup([name]) == [True]


@pytest.fixture
def raw(master):
    """A client of Mooncake itself."""
    from mooncake.store import MooncakeDistributedStore

    client = MooncakeDistributedStore()
    assert client.setup("127.0.0.1", "P2PHANDSHAKE", 0, MIB, "tcp", "", master.address) == 0
    yield client
    client.close()


def shard_keys(master, seed):
    """Return the names of the objects that hold the block's shards, by index."""
    keys = [key for key in master.objects() if f"/{block(seed)[0].hex()}/" in key]
    return sorted(keys, key=lambda key: int(key.rpartition("/")[2]))


def test_altered_bytes_are_corrupt_and_the_next_dump_replaces_them(store, master, raw):
    dump(store, 1)
    second = shard_keys(master, 1)[1]
    altered = bytearray(raw.get(second))
    altered[100] ^= 1
    assert raw.remove(second, True) == 0
    assert raw.put(second, bytes(altered)) == 0
    with pytest.raises(ucm.CorruptError, match="1 of 4 shards failed: shard 1"):
        load(store, 1)
    assert store.lookup([block(1)[0]]) == [False]
    dump(store, 1)
    assert load(store, 1)
    assert len(shard_keys(master, 1)) == SHARDS


@pytest.mark.slow
def test_a_shard_that_was_evicted_is_not_found_and_the_next_dump_replaces_it(store, master, raw):
    dump(store, 1)
    assert raw.remove(shard_keys(master, 1)[2], True) == 0
    with pytest.raises(ucm.NotFoundError, match="1 of 4 shards failed: shard 2"):
        load(store, 1)
    assert store.lookup([block(1)[0]]) == [False]
    dump(store, 1)
    assert load(store, 1)


@pytest.mark.slow
def test_shards_of_two_writers_do_not_make_a_block(store, peer):
    dump(store, 1, [0, 1])
    peer.run("dump(store, 1, [2, 3])")
    assert store.lookup([block(1)[0]]) == [False]
    dump(store, 1, [2, 3])
    assert peer.run("load(store, 1)")
