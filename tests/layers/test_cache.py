"""Cache: hits stay in memory, dumps are written behind, memory is bounded."""

import contextlib
import os
import random
import re
import time
from pathlib import Path

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
    assert (stats["frames"], stats["frames_ready"], stats["frames_dirty"]) == (16, 16, 0)
    assert stats["frames_free"] < 16
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


def test_a_private_cache_knows_of_nobody_else(open_store, caplog):
    store = open_store("Cache|Posix", **capacity(16))
    assert store.stats()["Cache"]["members"] == 1
    ucm.logs.flush()
    assert caplog.messages == []


# Several stores of one unique_id.


@pytest.fixture
def unique_id():
    """Return a name whose segment must be gone after the test, when all stores are closed."""
    return f"layers-{os.getpid()}-{random.getrandbits(32):08x}"


def segment(unique_id):
    return Path(f"/dev/shm/ucm-cache-{os.geteuid()}-{unique_id}")


@pytest.fixture
def open_members(open_store, unique_id):
    """Open stores of one name."""

    def open_some(n, pipeline="Cache|Posix", blocks=64, **options):
        options = {"unique_id": unique_id, **capacity(blocks), **options}
        return [open_store(pipeline, **options) for _ in range(n)]

    return open_some


@pytest.fixture
def stored(open_store, rng):
    with open_store("Posix") as store:
        blocks = kit.new_blocks(store, rng, 16)
        kit.dump(store, *blocks)
    return blocks


def test_what_one_store_dumps_another_has_at_once(open_members, unique_id, rng):
    one, other = open_members(2)
    blocks = kit.new_blocks(one, rng, 8)
    kit.dump(one, *blocks)
    assert other.tiers(kit.ids_of(blocks)) == [1] * 8
    kit.expect_published(other, *blocks)
    assert below(other, "load_shards_total") == 0
    assert one.stats()["Cache"]["members"] == 2
    one.close()
    kit.expect_published(other, *blocks)
    other.close()
    assert not segment(unique_id).exists()


def test_stores_that_want_the_same_read_it_once(open_members, stored):
    members = open_members(4)
    loads = [(m, kit.start_load(m, kit.pieces_of(stored))) for m in members for _ in range(3)]
    for member, transfer in loads:
        kit.expect_ends(transfer.pieces, kit.ends_of_load(member, transfer))
    assert sum(below(member, "load_shards_total") for member in members) == 16 * 4


def test_shards_of_a_block_may_come_from_two_stores(open_members, open_store, rng):
    one, other = open_members(2)
    blocks = kit.new_blocks(one, rng, 8)
    kit.dump_pieces(one, [piece for block in blocks for piece in block.pieces()[::2]])
    kit.expect_absent(one, *blocks)
    kit.dump_pieces(other, [piece for block in blocks for piece in block.pieces()[1::2]])
    kit.expect_published(one, *blocks)
    for store in (one, other):
        assert store.drain(kit.WAIT_MS).pending == 0
    kit.expect_published(open_store("Posix"), *blocks)
    assert below(one, "published_blocks_total") + below(other, "published_blocks_total") == 8


def test_what_one_store_removes_is_gone_for_all(open_members, rng):
    one, other = open_members(2)
    blocks = kit.new_blocks(one, rng, 8)
    kit.dump(one, *blocks)
    one.drain(kit.WAIT_MS)
    other.remove(kit.ids_of(blocks))
    for store in (one, other):
        kit.expect_absent(store, *blocks)


def test_unfinished_blocks_of_a_store_that_closes_are_finished_by_others(open_members, rng):
    one, other = open_members(2)
    block = kit.new_block(one, rng)
    kit.dump_pieces(one, block.pieces()[1:])
    one.close()
    kit.dump_pieces(other, block.pieces()[:1])
    kit.expect_published(other, block)


def test_a_drain_takes_below_what_belongs_to_another_store(open_members, rng):
    one, other = open_members(2)
    block = kit.new_block(one, rng)
    for store, piece in zip((one, other, one, other), block.pieces(), strict=True):
        kit.dump_pieces(store, [piece])
        assert store.drain(10000).pending == 0
    kit.expect_published(other, block)
    assert below(one, "published_blocks_total") == 1


def test_so_are_those_of_which_a_part_was_stored_already(open_members, open_store, rng):
    one, other = open_members(2)
    blocks = kit.new_blocks(one, rng, 8)
    kit.dump_pieces(one, [piece for block in blocks for piece in block.pieces()[1:]])
    assert one.drain(kit.WAIT_MS).unfinished == 24
    one.close()
    kit.dump_pieces(other, [block.pieces()[0] for block in blocks])
    kit.expect_published(other, *blocks)
    assert other.drain(kit.WAIT_MS).lost == 0
    kit.expect_published(open_store("Posix"), *blocks)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"block_size": 8 << 13}, "shards of a block: 4 there, 8 here"),
        ({"shard_size": 1 << 14}, "shards of a block: 4 there, 2 here"),
        ({"model": "other"}, "namespace, model or fingerprint"),
    ],
)
def test_stores_that_do_not_fit_together_are_refused(open_members, options, what):
    open_members(1)
    with pytest.raises(ucm.StoreError, match=f"{what}.*another unique_id"):
        open_members(1, **options)


def test_without_a_capacity_it_is_half_of_what_is_free_and_says_so(open_store, unique_id, caplog):
    caplog.set_level("INFO", logger="ucm")
    block = {"block_size": 4 << 20, "shard_size": 4 << 20}
    store = open_store("Cache|Posix", unique_id=unique_id, cache_buffer_capacity_gb=0, **block)
    ucm.logs.flush()
    said = r"cache_buffer_capacity_gb: (\S+) GiB, half of what /dev/shm has free"
    (gib,) = re.findall(said, caplog.text)
    shm = os.statvfs("/dev/shm")
    assert 0 < float(gib) * GIB <= min(256 * GIB, shm.f_blocks * shm.f_frsize / 2) * 1.001
    assert abs(store.stats()["Cache"]["frames"] - float(gib) * 256) <= 1


def test_share_buffer_enable_false_is_private_memory(open_members, unique_id, rng):
    one, other = open_members(2, share_buffer_enable=False)
    assert not segment(unique_id).exists()
    blocks = kit.new_blocks(one, rng, 2)
    kit.dump(one, *blocks)
    one.drain(kit.WAIT_MS)
    assert (one.tiers(kit.ids_of(blocks)), other.tiers(kit.ids_of(blocks))) == ([1, 1], [2, 2])


def test_two_caches_of_one_pipeline_share_nothing_with_each_other(open_members, unique_id, stored):
    one, other = open_members(2, "Cache|Cache|Posix")
    assert segment(unique_id).exists()
    assert segment(f"{unique_id}%232").exists()
    for store in (one, other):
        assert [store.stats()[name]["members"] for name in ("Cache", "Cache#2")] == [2, 2]
        kit.expect_published(store, *stored)
    assert below(one, "load_shards_total") + below(other, "load_shards_total") == 16 * 4


def test_who_only_looks_up_sees_what_is_shared(open_members, open_store, unique_id, rng):
    looker = open_store("Cache|Empty", device_id=-1, unique_id=unique_id)
    assert looker.lookup([bytes(16)]) == [False]
    (member,) = open_members(1, "Cache|Empty")
    blocks = kit.new_blocks(member, rng, 4)
    kit.dump(member, *blocks)
    until = time.monotonic() + 10
    while looker.lookup(kit.ids_of(blocks)) != [True] * 4:  # it looks for a segment now and then
        assert time.monotonic() < until
    member.close()
    assert looker.lookup(kit.ids_of(blocks)) == [False] * 4


# Threads.


def threads_named(name):
    """Return for each thread of that name the cores that it may use."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text().strip().startswith(name):
                found[int(task.name)] = os.sched_getaffinity(int(task.name))
    return found


def test_copies_run_on_the_cores_that_are_named(open_store):
    core = max(os.sched_getaffinity(0))
    before = set(threads_named("ucm-cache-"))
    open_store("Cache|Posix", cpu_affinity_cores=[core], **capacity(16))
    until = time.monotonic() + 20
    while True:  # each thread goes there when it begins
        found = {k: v for k, v in threads_named("ucm-cache-").items() if k not in before}
        if sum(cores == {core} for cores in found.values()) == 3:  # two load, one dumps
            break
        assert time.monotonic() < until, found


@pytest.mark.parametrize("core", [9999, -1, 1 << 32, 1 << 40])
def test_a_core_that_is_not_there_is_refused(open_store, core):
    with pytest.raises(ucm.StoreError, match=f"cpu_affinity_cores: {core} is no core that this"):
        open_store("Cache|Posix", cpu_affinity_cores=[0, core], **capacity(16))


# The store below is down.


def fail_until_open(store, blocks):
    """Load what cannot be read until the breaker is open."""
    until = time.monotonic() + 20
    while not store.stats()["Cache"]["breaker_open"]:
        assert time.monotonic() < until, "the breaker does not open"
        for end in kit.load_pieces(store, blocks[0].pieces()):
            assert end in (ucm.Status.IO, ucm.Status.UNAVAILABLE)


def test_while_the_store_below_is_down_misses_fail_at_once(open_store, control, stored):
    store = open_store("Cache|Fault|Posix", fault_control=control.path, **capacity(64))
    kit.expect_published(store, *stored[:4])
    control("load:io; dump:io; lookup:io")
    fail_until_open(store, stored[4:])
    asked = store.stats()["Fault"]["injected_errors_total"]
    for _ in range(20):
        ends = set(kit.load_pieces(store, kit.pieces_of(stored[4:])))
        assert ends <= {ucm.Status.UNAVAILABLE, ucm.Status.IO}
    # But for a probe now and then, nothing of it went below.
    assert store.stats()["Fault"]["injected_errors_total"] - asked < 20 * 48 / 2
    kit.expect_published(store, *stored[:4])
    assert store.lookup(kit.ids_of(stored)) == [True] * 4 + [False] * 12


def test_dumps_stay_in_memory_until_the_store_below_is_back(open_store, control, stored, rng):
    store = open_store("Cache|Fault|Posix", fault_control=control.path, **capacity(64))
    control("load:io; dump:io; lookup:io")
    fail_until_open(store, stored)
    blocks = kit.new_blocks(store, rng, 16)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)
    assert store.stats()["Cache"]["frames_dirty"] == 16
    control("")
    until = time.monotonic() + 30
    while store.stats()["Cache"]["breaker_open"]:  # nobody asks for anything meanwhile
        assert time.monotonic() < until, "it does not recover by itself"
        time.sleep(0.05)
    assert store.drain(kit.WAIT_MS) == ucm.Report(64, 0, 0, 0)
    kit.expect_published(store, *stored)
    kit.expect_published(open_store("Posix"), *blocks)


def test_a_block_that_is_lost_is_named_with_the_reason_in_words(open_store, rng, caplog):
    store = open_store("Cache|Fault|Posix", fault_rules="dump:corrupt", **capacity(64))
    (block,) = kit.new_blocks(store, rng, 1)
    kit.dump(store, block)
    assert store.drain(kit.WAIT_MS).lost == 4
    store.close()  # what was said of it is said by then
    ucm.logs.flush()
    assert f"block {block.id.hex()} is given up" in caplog.text
    assert "the store below failed: CORRUPT" in caplog.text


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
