"""Fault breaks what its rules say, when they say it, and nothing else."""

import pytest

import ucm
from ucm import Status
from ucm.conformance import kit

SIZE = 8192


@pytest.fixture
def fault(open_store):
    def open_one(rules="", pipeline="Fault|Posix", **options):
        return open_store(pipeline, fault_rules=rules, **options)

    return open_one


def dump_statuses(store, pieces):
    transfer = kit.start_dump(store, pieces)
    kit.finish(store, transfer)
    return [result.status for result in transfer.task.results]


def flipped_bits(one, other):
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))


def counts(store):
    """Return what was injected, by kind."""
    stats = store.stats()["Fault"]
    return {
        name.removeprefix("injected_").removesuffix("_total"): count
        for name, count in stats.items()
        if name.startswith("injected_") and count
    }


def test_without_rules_it_is_invisible(open_store, rng):
    with open_store("Posix") as bare, open_store("Fault|Posix") as store:
        assert store.capabilities == bare.capabilities
        assert store.layout == bare.layout
        blocks = kit.new_blocks(store, rng, 4)
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
        kit.expect_published(bare, *blocks)
        assert counts(store) == {}


@pytest.mark.parametrize(
    ("word", "status", "os_errno"),
    [
        ("io", Status.IO, 5),
        ("io errno=116", Status.IO, 116),
        ("no_space", Status.NO_SPACE, 28),
        ("not_found", Status.NOT_FOUND, 0),
        ("corrupt", Status.CORRUPT, 0),
        ("unavailable", Status.UNAVAILABLE, 0),
        ("timeout", Status.TIMEOUT, 0),
        ("cancelled", Status.CANCELLED, 0),
        ("incompatible", Status.INCOMPATIBLE, 0),
        ("internal", Status.INTERNAL, 0),
    ],
)
@pytest.mark.parametrize("operation", ["load", "dump"])
def test_a_shard_fails_alone(fault, rng, operation, word, status, os_errno):
    store = fault(f"{operation}:{word} at=3")
    block = kit.new_block(store, rng)
    assert (Status.OK in dump_statuses(store, block.pieces())) is True
    transfer = kit.start_dump(store, block.pieces()[2:3])
    kit.finish(store, transfer)
    if operation == "load":
        transfer = kit.start_load(store, block.pieces())
        ends = kit.ends_of_load(store, transfer)
        assert ends == [*block.shards[:2], status, block.shards[3]]
        assert transfer.task.results[2].os_errno == os_errno
    kit.expect_published(store, block)
    assert counts(store) == {"errors": 1}


def test_what_a_dump_refuses_does_not_reach_the_store_below(fault, rng):
    store = fault("dump:io at=2")
    block = kit.new_block(store, rng)
    assert dump_statuses(store, block.pieces()) == [0, Status.IO, 0, 0]
    kit.expect_absent(store, block)
    assert store.drain().unfinished == 3
    kit.dump_pieces(store, block.pieces()[1:2])
    kit.expect_published(store, block)


def test_when_all_shards_fail_nothing_goes_below(fault, rng):
    store = fault("dump:no_space; load:io")
    block = kit.new_block(store, rng)
    assert dump_statuses(store, block.pieces()) == [Status.NO_SPACE] * 4
    assert kit.load_pieces(store, block.pieces()) == [Status.IO] * 4
    assert store.stats()["Posix"]["dump_shards_total"] == 0


def test_every_nth(fault, rng):
    store = fault("load:corrupt every=3")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    ends = [end for _ in range(3) for end in kit.load_pieces(store, block.pieces())]
    assert [i for i, end in enumerate(ends) if end == Status.CORRUPT] == [2, 5, 8, 11]


def test_at_random_by_seed(fault, rng):
    def failures(seed):
        store = fault("load:io p=0.25", fault_seed=seed)
        kit.dump(store, block)
        ends = [end for _ in range(50) for end in kit.load_pieces(store, block.pieces())]
        return [i for i, end in enumerate(ends) if end == Status.IO]

    block = kit.new_block(fault(), rng)
    assert failures(1) == failures(1)
    assert failures(1) != failures(2)
    assert 20 < len(failures(3)) < 80


def test_a_bit_flipped_on_the_way_up(fault, rng):
    store = fault("load:flip at=2", tensor_size_list=(SIZE - 192, 192), shard_size=SIZE)
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    ends = kit.load_pieces(store, block.pieces())
    assert [flipped_bits(*pair) for pair in zip(ends, block.shards, strict=True)] == [0, 1, 0, 0]
    kit.expect_published(store, block)


@pytest.mark.parametrize("segments", [(SIZE,), (SIZE - 192, 192)])
def test_a_bit_flipped_on_the_way_down(fault, rng, segments):
    store = fault("dump:flip at=2", tensor_size_list=segments, shard_size=SIZE)
    block = kit.new_block(store, rng)
    transfer = kit.dump_pieces(store, block.pieces())
    assert [row.read(SIZE) for row in transfer.rows] == list(block.shards)
    ends = kit.load_pieces(store, block.pieces())
    assert [flipped_bits(*pair) for pair in zip(ends, block.shards, strict=True)] == [0, 1, 0, 0]


def test_compress_finds_what_was_flipped_below_it(open_store, rng):
    store = open_store("Compress|Fault|Posix", fault_rules="dump:flip at=2; load:flip at=4")
    block = kit.new_block(store, rng)
    for piece in block.pieces():  # one by one: Compress hands on in no order of its own
        kit.dump_pieces(store, [piece])
    ends = [kit.load_pieces(store, [piece])[0] for piece in block.pieces()]
    assert ends == [block.shards[0], Status.CORRUPT, block.shards[2], Status.CORRUPT]
    kit.dump(store, block)
    kit.expect_published(store, block)


@pytest.mark.parametrize(("word", "left"), [("short", SIZE // 2), ("short bytes=100", 100)])
def test_a_short_read(fault, rng, word, left):
    store = fault(f"load:{word} at=1")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    ends = kit.load_pieces(store, block.pieces())
    assert ends == [block.shards[0][:left], *block.shards[1:]]


def test_compress_finds_a_short_read(open_store, rng):
    store = open_store("Compress|Fault|Posix", fault_rules="load:short at=2")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    ends = kit.load_pieces(store, block.pieces())
    assert ends == [block.shards[0], Status.CORRUPT, *block.shards[2:]]


@pytest.mark.parametrize("pipeline", ["Fault|Posix", "Cache|Fault|Posix", "Compress|Fault|Posix"])
def test_busy_is_tried_again(open_store, rng, pipeline):
    rules = "dump:busy every=2; load:busy every=2"
    store = open_store(pipeline, fault_rules=rules)
    blocks = kit.new_blocks(store, rng, 6)
    for block in blocks:
        kit.dump(store, block)
        assert store.drain(kit.WAIT_MS).lost == 0  # so that each goes below alone
    for block in blocks:
        kit.expect_published(store, block)
    assert counts(store)["busy"] > 0


def test_busy_for_ever_is_told(fault, rng):
    store = fault("dump:busy", timeout_ms=50)
    with pytest.raises(ucm.BusyError):
        kit.dump(store, kit.new_block(store, rng))


@pytest.mark.parametrize("operation", ["load", "dump"])
def test_a_delay_holds_the_end_back(fault, rng, operation):
    store = fault(f"{operation}:delay ms=40 at=2")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_published(store, block)
    assert counts(store) == {"delays": 1}
    assert store.stats()["Fault"]["held_shards"] == 0


def test_what_hangs_is_let_go_when_the_rules_change(fault, control, rng):
    control("load:hang every=2")
    store = fault(fault_control=control.path)
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    transfer = kit.start_load(store, block.pieces())
    with pytest.raises(ucm.StoreTimeout):
        store.wait(transfer.task, 50)
    kit.expect_ends(block.pieces()[:1], kit.load_pieces(store, block.pieces()[:1]))
    assert not store.check(transfer.task)
    assert store.stats()["Fault"]["held_shards"] == 2
    control("")
    kit.expect_ends(block.pieces(), kit.ends_of_load(store, transfer))


def test_a_hang_ends_by_itself(fault, rng):
    store = fault("dump:hang ms=30 at=1")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    kit.expect_published(store, block)


@pytest.mark.parametrize("operation", ["load", "dump"])
def test_close_ends_what_hangs(fault, rng, operation):
    store = fault(f"{operation}:hang at=1")
    block = kit.new_block(store, rng)
    start = kit.start_dump if operation == "dump" else kit.start_load
    if operation == "load":
        kit.dump(store, block)
    transfer = start(store, block.pieces())
    report = store.close()
    assert report.pending == 0
    assert transfer.task.results[0].status == Status.CANCELLED


def test_what_hangs_below_cache_ends_above_it_in_time(open_store, control, rng):
    control("")
    options = {"fault_control": control.path, "cache_buffer_capacity_gb": 1 / 64}
    with open_store("Cache|Fault|Posix", **options) as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
    with open_store("Cache|Fault|Posix", timeout_ms=1000, **options) as store:
        control("load:hang")
        assert set(kit.load_pieces(store, block.pieces())) == {Status.TIMEOUT}
        control("")
        kit.expect_published(store, block)


@pytest.mark.parametrize(("word", "found"), [("hit", True), ("miss", False)])
@pytest.mark.parametrize("pipeline", ["Fault|Posix", "Compress|Fault|Posix"])
def test_lookups_may_lie(open_store, rng, pipeline, word, found):
    store = open_store(pipeline, fault_rules=f"lookup:{word} at=1; lookup:{word} at=2")
    here, missing = kit.new_blocks(store, rng, 2)
    kit.dump(store, here)
    ids = kit.ids_of([here, missing])
    assert store.lookup(ids) == [found, found]
    assert store.lookup_on_prefix(ids) == (1 if found else -1)
    assert store.lookup(ids) == [True, False]
    assert counts(store) == {"lies": 2}


def test_a_lookup_that_lies_costs_a_miss(open_store, rng):
    store = open_store("Cache|Compress|Fault|Posix", fault_rules="lookup:hit")
    missing = kit.new_block(store, rng)
    assert store.lookup([missing.id]) == [True]
    assert set(kit.load_pieces(store, missing.pieces())) == {Status.NOT_FOUND}


def test_lookup_and_remove_fail_as_calls(fault, rng):
    store = fault("lookup:unavailable errno=2 at=2; remove:io at=1; lookup:delay ms=5")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    assert store.lookup([block.id]) == [True]
    with pytest.raises(ucm.UnavailableError) as raised:
        store.lookup([block.id])
    assert raised.value.os_errno == 2
    with pytest.raises(ucm.IoError, match="fault_rules"):
        store.remove([block.id])
    kit.expect_published(store, block)
    store.remove([block.id])
    kit.expect_absent(store, block)


def test_the_control_file_holds_while_it_exists(fault, control, rng):
    store = fault("load:io", fault_control=control.path)
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    first = block.pieces()[:1]
    assert kit.load_pieces(store, first) == [Status.IO]
    control("# a drill\nload:corrupt\n\nlookup:miss ; # and\n")
    assert kit.load_pieces(store, first) == [Status.CORRUPT]
    assert store.lookup([block.id]) == [False]
    control("")
    kit.expect_published(store, block)
    control.remove()
    assert kit.load_pieces(store, first) == [Status.IO]


def test_a_control_file_that_cannot_be_read_changes_nothing(fault, control, rng, caplog):
    store = fault("load:io", fault_control=control.path)
    control("load:iou")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    assert kit.load_pieces(store, block.pieces()[:1]) == [Status.IO]
    store.close()
    ucm.logs.flush()
    assert "load:iou" in caplog.text


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ("load", ["OPERATION:FAULT", '"load"']),
        ("laod:io", ["'laod'", "load dump lookup remove"]),
        ("load:oi", ["'oi'", "busy delay hang flip short", "not_found", "incompatible"]),
        ("dump:short", ["'short'", "busy delay hang flip"]),
        ("lookup:hang", ["'hang'", "delay hit miss"]),
        ("load:io; dump:delay", ['"dump:delay"', "ms="]),
        ("load:io evry=3", ["'evry=3'", "errno at every p"]),
        ("load:io bytes=3", ["'bytes=3'"]),
        ("load:io every=0", ["every=0", "from 1"]),
        ("load:io every=two", ["every=two", "whole number"]),
        ("load:io p=1.5", ["p=1.5", "0 to 1"]),
        ("load:io p=0.5 at=3", ["only one"]),
        ("load:delay ms=99999999999999999999", ["whole number"]),
    ],
)
def test_rules_that_cannot_be_read_are_refused(fault, rules, words):
    with pytest.raises(ucm.InvalidError) as raised:
        fault(rules)
    for word in ["fault_rules", *words]:
        assert word in str(raised.value)


def test_it_needs_a_store_below(open_store):
    with pytest.raises(ucm.ConfigError, match="Fault"):
        open_store("Fault")
