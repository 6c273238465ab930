"""Cache: hits stay in memory, dumps are written behind, memory is bounded."""

import pytest

import ucm
from ucm.conformance import kit

GIB = 1 << 30
BLOCK = 4 << 13


def capacity(blocks):
    """Return the option that gives room for so many blocks."""
    return {"cache_buffer_capacity_gb": blocks * BLOCK / GIB}


def below(store, name):
    return store.stats()["Posix"][name]


def test_a_hit_does_not_touch_the_layer_below(open_store, rng):
    store = open_store("Cache|Posix", **capacity(64))
    blocks = kit.new_blocks(store, rng, 8)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)
    assert store.tiers(kit.ids_of(blocks)) == [1] * 8
    assert below(store, "load_shards_total") == 0


def test_a_miss_is_read_once_and_then_a_hit(open_store, rng):
    with open_store("Posix") as store:
        blocks = kit.new_blocks(store, rng, 8)
        kit.dump(store, *blocks)
    store = open_store("Cache|Posix", **capacity(64))
    assert store.tiers(kit.ids_of(blocks)) == [2] * 8
    for _ in range(3):
        kit.expect_published(store, *blocks)
        assert below(store, "load_shards_total") == 32
    assert store.tiers(kit.ids_of(blocks)) == [1] * 8


def test_what_many_want_at_once_is_read_once(open_store, rng):
    with open_store("Posix") as store:
        blocks = kit.new_blocks(store, rng, 8)
        kit.dump(store, *blocks)
    store = open_store("Cache|Posix", **capacity(64))
    loads = [kit.start_load(store, kit.pieces_of(blocks)) for _ in range(10)]
    for transfer in loads:
        kit.expect_ends(transfer.pieces, kit.ends_of_load(store, transfer))
    assert below(store, "load_shards_total") == 32


def test_drain_means_stored_below(open_store, rng):
    store = open_store("Cache|Posix", **capacity(64))
    assert "write_back" in store.capabilities
    blocks = kit.new_blocks(store, rng, 8)
    kit.dump(store, *blocks)
    assert store.drain(kit.WAIT_MS) == ucm.Report(32, 0, 0, 0)
    kit.expect_published(open_store("Posix"), *blocks)


def test_dumping_again_writes_nothing(open_store, rng):
    store = open_store("Cache|Posix", **capacity(64))
    blocks = kit.new_blocks(store, rng, 8)
    for _ in range(3):
        kit.dump(store, *blocks)
        store.drain(kit.WAIT_MS)
    assert below(store, "published_blocks_total") == 8
    assert below(store, "dump_out_bytes_total") == 8 * (BLOCK + 4096)


@pytest.mark.parametrize("pipeline", ["Cache|Posix", "Cache|Compress|Posix"])
def test_more_than_fits_goes_through(open_store, rng, pipeline):
    store = open_store(pipeline, **capacity(4))
    blocks = kit.new_blocks(store, rng, 100)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)
    assert store.drain(kit.WAIT_MS).lost == 0
    kit.expect_published(store, *blocks)
    with open_store(pipeline, **capacity(4)) as again:
        kit.expect_published(again, *blocks)


def test_memory_is_what_the_option_says(open_store, rng):
    store = open_store("Cache|Posix", **capacity(16))
    kit.dump(store, *kit.new_blocks(store, rng, 100))
    store.drain(kit.WAIT_MS)
    stats = store.stats()["Cache"]
    assert stats["slots"] == 16 * 4
    assert stats["slots_dirty"] == 0
    assert stats["evicted_blocks_total"] >= 100 - 16


def test_unfinished_blocks_do_not_fill_the_cache_for_ever(open_store, rng):
    store = open_store("Cache|Posix", **capacity(8))
    halves = kit.new_blocks(store, rng, 50)
    for half in halves:
        kit.dump_pieces(store, half.pieces()[1:])
    whole = kit.new_blocks(store, rng, 20)
    kit.dump(store, *whole)
    kit.expect_published(store, *whole)
    kit.expect_absent(store, *halves)
    kit.dump_pieces(store, [half.pieces()[0] for half in halves])
    report = store.drain(kit.WAIT_MS)
    found = store.lookup(kit.ids_of(halves))
    visible = [half for half, here in zip(halves, found, strict=True) if here]
    kit.expect_published(store, *visible)
    assert report.pending == 0


def test_room_for_two_blocks_is_the_least(open_store):
    with pytest.raises(ucm.StoreError, match=r"cache_buffer_capacity_gb: .* two blocks"):
        open_store("Cache|Posix", **capacity(1))


def test_more_than_the_machine_has_is_refused(open_store):
    with pytest.raises(ucm.StoreError, match=r"cache_buffer_capacity_gb=.* more than"):
        open_store("Cache|Posix", cache_buffer_capacity_gb=1 << 20)


def test_short_queues_take_any_work(open_store, rng):
    store = open_store("Cache|Posix", waiting_queue_depth=1, running_queue_depth=1, **capacity(8))
    blocks = kit.new_blocks(store, rng, 50)
    for transfer in [kit.start_dump(store, block.pieces()) for block in blocks]:
        store.wait(transfer.task, kit.WAIT_MS)
    kit.expect_published(store, *blocks)


def test_over_fake_blocks_are_served_while_they_are_in_memory(open_store, rng):
    store = open_store("Cache|Fake", **capacity(16))
    blocks = kit.new_blocks(store, rng, 100)
    kit.dump(store, *blocks)
    store.drain(kit.WAIT_MS)
    assert store.lookup(kit.ids_of(blocks)) == [True] * 100
    kit.expect_nothing_wrong(store, *blocks)


def test_a_cache_for_lookup_only_needs_no_memory(open_store, rng):
    with open_store("Posix") as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    store = open_store("Cache|Posix", device_id=-1)
    assert store.lookup([block.id, bytes(16)]) == [True, False]
    assert store.lookup_on_prefix([block.id, bytes(16)]) == 0
