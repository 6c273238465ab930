"""What every version has written is read by this one."""

import shutil

import goldens
import pytest
import xxhash

import ucm
from ucm import directory
from ucm.directory import names

NAMES = [path.name for path in goldens.DIRECTORIES]


@pytest.fixture(params=goldens.DIRECTORIES, ids=NAMES)
def golden(request, tmp_path):
    """A copy: a store makes its folders there."""
    return shutil.copytree(request.param, tmp_path / request.param.name)


def test_there_is_one_of_every_version():
    versions = range(1, len(NAMES) + 1)
    assert [f"blocks-{version}" for version in versions] == NAMES
    assert NAMES


@pytest.mark.parametrize("direct", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize("of", goldens.ALL, ids=lambda of: of.options["model"])
def test_every_shard_comes_back_bit_for_bit(golden, of, direct):
    of.options["io_direct"] = direct
    with of.open(golden) as store:
        assert store.lookup([goldens.block_id(block) for block in of.blocks]) == [True] * len(
            of.blocks
        )
        for block, lengths in of.blocks.items():
            wanted = [goldens.contents(block, i, n) for i, n in enumerate(lengths)]
            assert goldens.load(store, block, lengths) == wanted


@pytest.mark.parametrize("of", goldens.ALL, ids=lambda of: of.options["model"])
def test_what_is_there_is_not_written_again(golden, of):
    before = {path: path.read_bytes() for path in golden.glob("*/*/*/*")}
    with of.open(golden) as store:
        for block, lengths in of.blocks.items():
            goldens.dump(store, block, lengths)
    assert {path: path.read_bytes() for path in golden.glob("*/*/*/*")} == before
    assert len(list(golden.glob("*/*/space"))) == len(goldens.ALL)


def test_the_tools_read_them(golden):
    checked = directory.check(golden, threads=2)
    assert (checked.blocks, checked.findings) == (sum(len(of.blocks) for of in goldens.ALL), [])
    found = {space.model: space for space in directory.inspect(golden, headers=None).spaces}
    for of in goldens.ALL:
        space = found[of.options["model"]]
        assert space.problem is None
        assert (space.blocks, space.headers.problems) == (len(of.blocks), 0)
        shown = {block.id: block for block in directory.blocks(space)}
        for block, lengths in of.blocks.items():
            one = shown[goldens.block_id(block).hex()]
            assert (one.shards, one.raw_bytes) == (len(lengths), sum(lengths))
            if not space.encoding:
                assert one.shard_bytes == lengths


def test_a_block_of_the_next_version_is_incompatible(golden):
    of = goldens.TINY
    (block,) = of.blocks
    name = goldens.block_id(block).hex()
    (path,) = golden.glob(f"golden/*/*/{name}")
    data = bytearray(path.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    data[248:256] = bytes(8)
    data[248:256] = xxhash.xxh3_64_intdigest(bytes(data[:4096])).to_bytes(8, "little")
    path.write_bytes(data)
    with of.open(golden) as store, pytest.raises(ucm.IncompatibleError):
        goldens.load(store, block, of.blocks[block])
    assert path.read_bytes() == data
    (finding,) = directory.check(golden, threads=1, action="delete").findings
    assert finding.kind == "unknown"
    assert path.read_bytes() == data


def test_a_directory_of_the_next_version_is_incompatible(golden):
    mark = golden / ".ucm" / "format"
    mark.write_text(mark.read_text().replace("ucm blocks 1", "ucm blocks 2"))
    with pytest.raises(ucm.IncompatibleError, match=r"/\.ucm/format"):
        goldens.TINY.open(golden)
    with pytest.raises(ucm.IncompatibleError, match="ucm blocks 2"):
        names.check_format(golden)
