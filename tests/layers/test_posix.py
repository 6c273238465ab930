"""Posix: files in directories."""

import concurrent.futures
import multiprocessing
import os
import random
import struct

import pytest
import xxhash

import ucm
from ucm.conformance import kit


def files(folder):
    return sorted(path for path in folder.glob("*/*/???/*"))


def test_a_block_is_one_file_named_by_its_id(open_store, folder, rng):
    store = open_store("Posix")
    block = kit.new_block(store, rng)
    kit.dump(store, block)
    (path,) = files(folder)
    space = path.parents[1]
    assert path.relative_to(space).as_posix() == f"{block.id.hex()[:3]}/{block.id.hex()}"
    assert space.parent == folder / "default"
    assert path.stat().st_size == 4096 + 4 * 8192
    assert path.read_bytes()[:8] == b"UCMBLOCK"
    assert (folder / ".ucm" / "format").read_text().startswith("ucm blocks 1\n")


def test_an_unfinished_block_leaves_no_file(open_store, folder, rng):
    store = open_store("Posix")
    kit.dump_pieces(store, kit.new_block(store, rng).pieces()[1:])
    assert files(folder) == []
    store.close()
    assert files(folder) == []
    assert [path for path in folder.glob(".ucm/writers/*/*") if path.name != "lock"] == []


@pytest.mark.parametrize("written", [False, True], ids=["buffered", "direct"])
def test_buffered_and_direct_read_the_same_files(open_store, rng, written):
    with open_store("Posix", io_direct=written) as store:
        blocks = kit.new_blocks(store, rng, 5)
        kit.dump(store, *blocks)
    with open_store("Posix", io_direct=not written) as store:
        kit.expect_published(store, *blocks)


def test_one_thread_is_enough(open_store, rng):
    store = open_store("Posix", posix_data_trans_concurrency=1)
    blocks = kit.new_blocks(store, rng, 5)
    kit.dump(store, *blocks)
    kit.expect_published(store, *blocks)


@pytest.fixture
def several(tmp_path):
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    return folders


def backends(folders):
    return ":".join(map(str, folders))


def test_blocks_spread_over_directories_in_any_order(open_store, several, rng):
    with open_store("Posix", storage_backends=backends(several)) as store:
        blocks = kit.new_blocks(store, rng, 60)
        kit.dump(store, *blocks)
    counts = [len(files(folder)) for folder in several]
    assert sum(counts) == 60
    assert min(counts) > 0
    with open_store("Posix", storage_backends=backends(reversed(several))) as store:
        kit.expect_published(store, *blocks)


def test_a_new_directory_takes_only_its_share(open_store, several, rng):
    with open_store("Posix", storage_backends=backends(several[:2])) as store:
        blocks = kit.new_blocks(store, rng, 60)
        kit.dump(store, *blocks)
    with open_store("Posix", storage_backends=backends(several)) as store:
        found = store.lookup(kit.ids_of(blocks))
        assert 0 < sum(found) < 60
        kit.dump(store, *blocks)
        assert len(files(several[2])) == 60 - sum(found)
        kit.expect_published(store, *blocks)


def test_without_a_directory_only_its_blocks_are_missed(open_store, several, rng):
    with open_store("Posix", storage_backends=backends(several)) as store:
        blocks = kit.new_blocks(store, rng, 60)
        kit.dump(store, *blocks)
    kept = {path.name for folder in several[1:] for path in files(folder)}
    with open_store("Posix", storage_backends=backends(several[1:])) as store:
        assert store.lookup(kit.ids_of(blocks)) == [block.id.hex() in kept for block in blocks]
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)


def test_one_directory_named_twice_is_refused(open_store, folder):
    with pytest.raises(ucm.InvalidError, match="one directory or copies of one") as raised:
        open_store("Posix", storage_backends=f"{folder}:{folder}/.")
    assert str(folder) in str(raised.value)


def test_foreign_files_are_left_alone(open_store, folder, rng):
    (folder / "README").write_text("mine")
    (folder / "0ab").mkdir()
    (folder / "0ab" / "notes.txt").write_text("mine too")
    with open_store("Posix") as store:
        kit.dump(store, *kit.new_blocks(store, rng, 3))
    assert (folder / "README").read_text() == "mine"
    assert (folder / "0ab" / "notes.txt").read_text() == "mine too"


def dump_in_process(folder, seed):
    options = {"storage_backends": folder, "block_size": 4 << 13, "shard_size": 1 << 13}
    with ucm.open_pipeline("Posix", **options) as store:
        for block in twins(store, seed):
            kit.dump(store, block)
            assert store.lookup([block.id]) == [True]
    os._exit(0)


def dump_and_ask(folder, numbers):
    """In another process: which of these are there before, then dump them."""
    with open_here(folder) as store:
        blocks = [numbered(store, number) for number in numbers]
        found = store.lookup(kit.ids_of(blocks))
        kit.dump(store, *blocks)
    return found


def open_here(folder):
    return ucm.open_pipeline(
        "Posix", storage_backends=str(folder), block_size=4 << 13, shard_size=1 << 13
    )


def numbered(store, number):
    return kit.new_block(store, random.Random(number))


def test_what_another_process_published_is_found_when_it_says_so(open_store, folder):
    store = open_store("Posix")
    first, *rest = (numbered(store, number) for number in range(20))
    kit.dump(store, first)
    while store.stats()["Posix"]["index_listed"] < 100:
        store.lookup([first.id])
    assert store.lookup(kit.ids_of(rest)) == [False] * 19
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for number in range(1, 20):
            found = pool.submit(dump_and_ask, folder, [number - 1, number]).result(60)
            assert found == [True, False]
            assert store.lookup([rest[number - 1].id]) == [True]
    kit.expect_published(store, first, *rest)
    assert store.stats()["Posix"]["index_blocks"] == 20


def test_a_warm_lookup_asks_the_file_system_for_no_block(open_store, rng):
    store = open_store("Posix")
    blocks = kit.new_blocks(store, rng, 4)
    kit.dump(store, *blocks)
    while store.stats()["Posix"]["index_listed"] < 100:
        store.lookup(kit.ids_of(blocks))
    before = store.stats()["Posix"]["lookup_stats_total"]
    absent = [rng.randbytes(16) for _ in range(1000)]
    for _ in range(100):
        assert store.lookup([*absent, blocks[0].id]) == [False] * 1000 + [True]
    assert store.stats()["Posix"]["lookup_stats_total"] == before


def test_foreign_files_do_not_count(open_store, folder, rng):
    with open_store("Posix") as store:
        blocks = kit.new_blocks(store, rng, 4)
        kit.dump(store, *blocks)
    (block, *_) = files(folder)
    for number in range(int(os.environ.get("UCM_TEST_FOREIGN", "2000"))):  # three each
        (block.parent / f"{number:032d}.tmp").touch()
        (block.parent.parent / f"note{number}").touch()
        (folder / f"note{number}").touch()
    with open_store("Posix") as store:
        while store.stats()["Posix"]["index_listed"] < 100:
            store.lookup(kit.ids_of(blocks))
        assert store.stats()["Posix"]["index_blocks"] == 4
        kit.expect_published(store, *blocks)


def twins(store, seed):
    """Make 30 blocks whose names are everywhere the same and whose bytes are not."""
    rng = random.Random(seed)
    names = [bytes([i]) * 16 for i in range(30)]
    return [kit.Block(name, kit.new_block(store, rng).shards) for name in names]


def test_processes_that_dump_the_same_blocks_make_one_copy_of_each(open_store, folder):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=dump_in_process, args=(str(folder), i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    store = open_store("Posix")
    copies = zip(*(twins(store, seed) for seed in range(3)), strict=True)
    for candidates in copies:
        assert tuple(kit.load_pieces(store, candidates[0].pieces())) in [
            block.shards for block in candidates
        ]


def test_stats_tell_what_was_written_and_read(open_store, folder, rng):
    store = open_store("Posix")
    blocks = kit.new_blocks(store, rng, 3)
    kit.dump(store, *blocks)
    kit.dump(store, *blocks)
    kit.expect_served(store, kit.pieces_of(blocks))
    stats = store.stats()["Posix"]
    assert stats["published_blocks_total"] == 3
    assert stats["dump_out_bytes_total"] == sum(path.stat().st_size for path in files(folder))
    assert stats["load_in_bytes_total"] >= stats["load_bytes_total"] == 3 * 4 * 8192
    assert stats["unfinished_blocks"] == 0
    files(folder)[0].write_bytes(b"")
    kit.load_pieces(store, kit.pieces_of(blocks))
    stats = store.stats()["Posix"]
    assert stats["corrupt_shards_total"] == 4
    assert stats["quarantined_blocks_total"] == 1


def test_shards_that_waited_past_their_time_say_so(open_store, rng):
    sizes = {"block_size": 1 << 26, "shard_size": 1 << 20, "posix_data_trans_concurrency": 1}
    store = open_store("Posix", **sizes, **{"Posix.timeout_ms": 1})
    blocks = kit.new_blocks(store, rng, 2)
    transfer = kit.start_dump(store, kit.pieces_of(blocks))
    kit.finish(store, transfer)
    statuses = {result.status for result in transfer.task.results}
    assert statuses <= {ucm.Status.OK, ucm.Status.TIMEOUT}
    late = {
        piece.block.id
        for piece, result in zip(transfer.pieces, transfer.task.results, strict=True)
        if result.status == ucm.Status.TIMEOUT
    }
    assert store.lookup(kit.ids_of(blocks)) == [block.id not in late for block in blocks]


def test_the_ring_is_as_the_document_says(open_store, folder, rng):
    with open_store("Posix") as store:
        blocks = kit.new_blocks(store, rng, 3)
        kit.dump(store, *blocks)
        store.remove([blocks[1].id])
    (path,) = folder.glob("*/*/recent")
    data = path.read_bytes()
    magic, version, slots, nonce, head = struct.unpack_from("<8sII16sQ", data)
    assert (magic, version, slots, head) == (b"UCMRECNT", 1, 65536, 4)
    assert data[40:56] == bytes(16)
    assert struct.unpack_from("<Q", data, 56)[0] == xxhash.xxh3_64_intdigest(data[:56])
    assert len(data) == 4096 + 4 * 32
    seed = xxhash.xxh3_64_intdigest(nonce)
    records = [data[4096 + 32 * i : 4096 + 32 * (i + 1)] for i in range(4)]
    for number, record in enumerate(records, 1):
        assert int.from_bytes(record[:8], "little") == number
        check = xxhash.xxh3_64_intdigest(record[:28], seed) & 0xFFFFFFFF
        assert int.from_bytes(record[28:], "little") == check
    told = [(record[8:24], record[24]) for record in records]
    assert sorted(told[:3]) == sorted((block.id, 1) for block in blocks)
    assert told[3] == (blocks[1].id, 2)
