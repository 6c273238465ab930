"""How traces are read, and what a broken one is told."""

import base64
import gzip
import json
import os
import threading

import pytest

from ucm import replay
from ucm.errors import InvalidError

RECORD = {"timestamp": 0, "input_length": 1024, "output_length": 10, "hash_ids": [5, 7]}


def record(**changed):
    return json.dumps({**RECORD, **changed})


@pytest.fixture
def read(tmp_path):
    def make(*lines, pack=None):
        path = tmp_path / "trace.jsonl"
        data = "\n".join(lines).encode()
        path.write_bytes(pack(data) if pack else data)
        return replay.read(str(path))

    return make


def test_blocks_are_numbered_as_they_appear(read):
    trace = read(record(), "", record(hash_ids=[7, 9]), record(hash_ids=[]))
    assert trace.requests == [[0, 1], [1, 2], []]
    assert (trace.blocks, trace.distinct) == (4, 3)


def test_32_byte_ids_are_hex_in_either_case(read):
    ids = ["0A" * 32, "0b" * 32]
    trace = read(record(hash_ids=ids), record(hash_ids=[ids[0].lower(), "0x" + ids[1].upper()]))
    assert trace.requests == [[0, 1], [0, 1]]


def test_numbers_may_be_of_any_size(read):
    assert read(record(timestamp=10**400)).requests == [[0, 1]]


@pytest.mark.parametrize("one", ["ab" * 16, base64.b64encode(bytes(32)).decode(), -3, 1 << 200])
def test_other_ids_are_names(read, one):
    assert read(record(hash_ids=[one, 5, one])).requests == [[0, 1, 0]]


def test_ids_of_base64_differ_by_case(read):
    assert read(record(hash_ids=["QUJD" * 11, "qujd" * 11])).distinct == 2


def test_a_packed_trace_is_unpacked(read):
    assert read(record(), pack=gzip.compress).requests == [[0, 1]]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_pipe_is_read_once(tmp_path, pack):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    data = pack("\n".join([record(), record(hash_ids=[7, 9])]).encode())
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    try:
        assert replay.read(str(path)).requests == [[0, 1], [1, 2]]
    finally:
        writer.join()


def test_a_byte_order_mark_is_no_text(read):
    assert read("\ufeff" + record()).requests == [[0, 1]]


def test_whether_ids_stand_for_all_before_them(read):
    assert read(record(hash_ids=[1, 2]), record(hash_ids=[1, 3])).chained
    assert not read(record(hash_ids=[1, 2]), record(hash_ids=[3, 2])).chained


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[1]", "[1] is no object"),
        ("{}", "hash_ids is missing"),
        (record(hash_ids=7), "hash_ids: 7 is no list"),
        (record(hash_ids=[1, None]), "hash_ids[1]: null is no id"),
        (record(hash_ids=[True]), "hash_ids[0]: true is no id"),
        (record(hash_ids=[1.5]), "hash_ids[0]: 1.5 is no id"),
        (record(hash_ids=[""]), 'hash_ids[0]: "" is no id'),
        (record(hash_ids=[[1] * 100]), "hash_ids[0]: [1, 1, 1"),
        (record(timestamp="now"), 'timestamp: "now" is no number'),
        (record(timestamp=float("nan")), "timestamp: NaN is no number"),
        (record(input_length=-1), "input_length: -1 is negative"),
        (record(output_length=None), "output_length: null is no number"),
    ],
)
def test_a_broken_line_is_named(read, line, said):
    with pytest.raises(InvalidError) as caught:
        read(record(), line)
    assert said in str(caught.value)
    assert "trace.jsonl:2: " in str(caught.value)


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_an_empty_trace(read, lines):
    with pytest.raises(InvalidError, match="no requests; give a file with one JSON object a line"):
        read(*lines)


def test_a_trace_without_blocks(read):
    with pytest.raises(InvalidError, match="no block in any request"):
        read(record(hash_ids=[]))


def test_a_file_that_is_no_text(read):
    with pytest.raises(InvalidError, match="not UTF-8 text"):
        read(pack=lambda data: b"\xff\xfe\x00")


def test_a_torn_package(read):
    with pytest.raises(InvalidError, match="unpack it first"):
        read(record(), pack=lambda data: gzip.compress(data)[:-9])


def test_several_files_are_one_trace_in_the_order_of_timestamps(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text(f"{record(timestamp=3, hash_ids=[1])}\n{record(timestamp=1, hash_ids=[2])}")
    two.write_text(record(timestamp=2, hash_ids=[1, 2]))
    trace = replay.read(str(one), str(two))
    assert trace.requests == [[1], [0, 1], [0]]
    assert trace.path == f"{one}, {two}"


def test_without_timestamps_the_order_is_that_of_the_file(read):
    assert read(record(timestamp=5), '{"hash_ids": [7]}').requests == [[0, 1], [1]]
