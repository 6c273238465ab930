"""Fake keeps ids, Empty keeps nothing."""

from ucm.conformance import kit


def test_fake_forgets_the_oldest(open_store, rng):
    store = open_store("Fake", buffer_number=5)
    blocks = kit.new_blocks(store, rng, 8)
    for block in blocks:
        kit.dump(store, block)
    assert store.lookup(kit.ids_of(blocks)) == [False] * 3 + [True] * 5
    assert store.stats()["Fake"]["remembered_blocks"] == 5


def test_fake_forgets_everything_at_close(open_store, rng):
    with open_store("Fake") as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    assert open_store("Fake").lookup([block.id]) == [False]


def test_empty_counts_what_it_throws_away(open_store, rng):
    store = open_store("Empty")
    blocks = kit.new_blocks(store, rng, 3)
    kit.dump(store, *blocks)
    kit.expect_absent(store, *blocks)
    assert store.stats()["Empty"]["dump_bytes_total"] == 3 * 4 * 8192
    assert store.capabilities == {"remove"}
