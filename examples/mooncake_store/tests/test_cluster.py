"""Two processes and a master: what one dumps, the other loads; whatever dies, nothing hangs."""

import time

import pytest
from cluster import MIB, Master, Peer
from peer import block, dump, load, open_store

import ucm


def test_what_one_process_dumps_another_loads(store, peer):
    for seed in range(20):
        peer.run(f"dump(store, {seed})")
    assert store.lookup([block(seed)[0] for seed in range(21)]) == [True] * 20 + [False]
    assert all(load(store, seed) for seed in range(20))


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


def test_a_client_that_does_not_answer_holds_up_nobody_for_ever(store, peer, master):
    dump(store, 1)
    peer.stop()
    with pytest.raises((ucm.NotFoundError, ucm.StoreTimeout)):
        load(store, 1)
    peer.go_on()
    eventually(lambda: dump(store, 2))
    eventually(lambda: load(store, 2))


def test_without_a_master_opening_says_what_to_look_at(tmp_path, run):
    master = Master(tmp_path / "log")
    master.kill()
    with pytest.raises(ucm.UnavailableError, match=f"{master.address}.*mooncake_master running"):
        open_store(master.address, 0, mooncake_timeout_ms=200)


def test_a_full_pool_is_no_space(master):
    def until_it_is_full(store):
        for seed in range(1000):
            dump(store, seed)

    with open_store(master.address, 16 * MIB) as store, pytest.raises(ucm.NoSpaceError):
        until_it_is_full(store)
