"""Spaces of a storage directory: who shares blocks, who misses them, and who may read the files."""

import os
import time

import pytest

import ucm
from ucm.conformance import kit

PIPELINES = ["Posix", "Cache|Posix", "Compress|Posix", "Cache|Compress|Posix"]


@pytest.fixture
def stored(open_store, rng):
    """Return a function that stores blocks through a pipeline, and closes it."""

    def store_blocks(pipeline="Posix", n=2, **options):
        with open_store(pipeline, cache_buffer_capacity_gb=1 / 64, **options) as store:
            blocks = kit.new_blocks(store, rng, n)
            kit.dump(store, *blocks)
            store.drain(kit.WAIT_MS)
        return blocks

    return store_blocks


def spaces(folder):
    return sorted(path.parent for path in folder.glob("*/*/space"))


OTHERS = {
    "model": {"model": "other"},
    "namespace": {"namespace": "other"},
    "fingerprint": {"fingerprint": "other"},
    "dtype": {"dtype": "bf16"},
    "segments": {"tensor_size": 1 << 12},
    "shards": {"shard_size": 1 << 12},
    "block size": {"block_size": 8 << 13},
    "encoding": {},
}


@pytest.mark.parametrize("options", OTHERS.values(), ids=OTHERS.keys())
def test_other_blocks_are_missed_and_nothing_mixes(open_store, stored, folder, rng, options):
    blocks = stored()
    pipeline = "Posix" if options else "Compress|Posix"
    with open_store(pipeline, **options) as store:
        assert store.lookup(kit.ids_of(blocks)) == [False, False]
        twins = [kit.Block(block.id, kit.new_block(store, rng).shards) for block in blocks]
        kit.dump(store, *twins)
        kit.expect_published(store, *twins)
    assert len(spaces(folder)) == 2
    kit.expect_published(open_store("Posix"), *blocks)
    kit.expect_published(open_store(pipeline, **options), *twins)


def test_the_folder_of_a_layout_is_the_same_for_ever(open_store, folder):
    open_store("Compress|Posix", model="llama", dtype="bf16", tensor_size=4096, block_size=2 << 13)
    (space,) = spaces(folder)
    assert space == folder / "default" / "ee160f82260e42d5003e234cd816368d"
    assert (space / "space").read_text().split("\n\n")[0] == (
        "ucm space 1\nnamespace=default\nmodel=llama\nfingerprint=bf16:4096x2\n"
        "shards_per_block=2\nraw_capacity=8192\nencoding=ucmz.3"
    )


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_who_only_looks_finds_what_a_worker_stored(open_store, stored, folder, pipeline):
    names = {"namespace": "team-a", "model": "some/model"}
    blocks = stored(pipeline, **names)
    stored(pipeline, **{**names, "fingerprint": "other"})
    sizes = {"block_size": 4 << 13, "shard_size": 1 << 13}
    with open_store(pipeline, device_id=-1, **sizes, **names) as store:
        assert store.layout.shards_per_block == 4
        assert store.lookup(kit.ids_of(blocks)) == [True, True]
        with pytest.raises(ucm.UnsupportedError):
            store.load_data([blocks[0].id], [0], [[1]])
    with open_store(pipeline, device_id=-1, **sizes, namespace="team-a") as store:
        assert store.lookup(kit.ids_of(blocks)) == [False, False]
    assert {space.parent.name for space in spaces(folder)} == {"team-a"}


def test_layers_of_one_top_layout_share_what_they_can(open_store, stored):
    blocks = stored("Cache|Posix")
    kit.expect_published(open_store("Posix"), *blocks)
    coded = stored("Cache|Compress|Posix")
    kit.expect_published(open_store("Compress|Posix"), *coded)


def test_without_sizes_the_only_space_of_the_model_is_meant(open_store, stored, caplog):
    looking = open_store("Posix", device_id=-1, model="m")
    blocks = stored(model="m")
    ids = kit.ids_of([*blocks])
    while looking.lookup(ids) != [True, True]:
        time.sleep(0.01)
    assert open_store("Posix", device_id=-1).lookup(ids) == [False, False]
    assert open_store("Posix", device_id=-1, model="m", namespace="n").lookup(ids) == [False] * 2
    stored("Compress|Posix", model="m")
    late = open_store("Posix", device_id=-1, model="m")
    assert late.lookup(ids) == [False, False]
    ucm.logs.flush()
    (warning,) = [r.getMessage() for r in caplog.records if "give the sizes" in r.getMessage()]
    assert "2 spaces of model 'm'" in warning
    stored(model="m", fingerprint="f", n=1)
    given = open_store("Posix", device_id=-1, model="m", fingerprint="f")
    assert given.lookup(ids) == [False, False]


def test_a_new_space_says_what_is_different(open_store, stored, caplog):
    stored(model="llama")
    caplog.set_level("INFO", logger="ucm")
    open_store("Posix", model="lama").close()
    ucm.logs.flush()
    (line,) = [r.getMessage() for r in caplog.records if "is new" in r.getMessage()]
    assert "model 'llama' there and 'lama' here" in line
    assert "raw_capacity" not in line


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"namespace": "a/b"}, ["namespace: 'a/b'", "'/' cannot be in it", "'a-b' would do"]),
        ({"namespace": ".hidden"}, ["namespace: '.hidden'", "'hidden' would do"]),
        ({"namespace": ""}, ["namespace: ''", "'default' would do"]),
        ({"namespace": "x" * 65}, ["1 to 64 characters"]),
        ({"namespace": "é"}, ["'é' cannot be in it"]),
        ({"model": "a\nb"}, ["model: 'a\\nb'", "'\\n'"]),
        ({"model": "é" * 129}, ["model: 258 bytes", "at most 256"]),
        ({"file_mode": 0o640}, ["file_mode: 416", "write it in quotes"]),
        ({"file_mode": "0644"}, ["file_mode: '0644'", "one of 0600, 0640, 0660"]),
        ({"file_group": 0}, ["file_group: 0", "write it in quotes"]),
    ],
)
def test_a_wrong_name_or_mode_is_one_clear_error(open_store, options, words):
    with pytest.raises(ucm.ConfigError) as raised:
        open_store("Posix", **options)
    for word in words:
        assert word in str(raised.value)


def test_an_unknown_group_is_an_error_at_open(open_store):
    with pytest.raises(ucm.InvalidError, match="file_group: there is no group 'no-such-group'"):
        open_store("Posix", file_group="no-such-group")


def test_where_nothing_is_recorded_names_have_no_effect(caplog):
    with ucm.open_pipeline("Empty", block_size=64, model="m") as store:
        assert store.notes == ["model: no effect, because no layer of Empty records it"]
    with ucm.open_pipeline("Empty", block_size=64) as store:
        assert store.notes == []


MAKE_FILES = """
import os, sys, ucm
folder, mode, group = sys.argv[1:]
os.umask(0o077)
store = ucm.open_pipeline("Posix", storage_backends=folder, block_size=4096, shard_size=2048,
                          file_mode=mode, file_group=group)
store.wait(store.dump([b"a" * 16] * 2, [0, 1], [[bytes(2048)]] * 2))
store.wait(store.dump([b"b" * 16], [0], [[bytes(2048)]]))
for path, folders, files in os.walk(folder):
    for name in folders + files:
        info = os.stat(os.path.join(path, name))
        print(oct(info.st_mode & 0o7777), info.st_gid, "folder" if name in folders else "file")
"""


@pytest.mark.parametrize(
    ("mode", "of_file", "of_folder"),
    [("0600", "0o600", "0o700"), ("0640", "0o640", "0o2750"), ("0660", "0o660", "0o2770")],
)
def test_modes_and_group_are_right_whatever_the_umask(run_python, folder, mode, of_file, of_folder):
    group = os.getegid()
    lines = set(run_python(MAKE_FILES, folder, mode, group).splitlines())
    assert lines == {f"{of_folder} {group} folder", f"{of_file} {group} file"}


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="root is needed to be somebody else")


@needs_root
def test_another_group_is_given_to_every_file(run_python, folder):
    lines = run_python(MAKE_FILES, folder, "0660", 65534).splitlines()
    assert len(lines) > 8
    assert {line.split()[1] for line in lines} == {"65534"}


AS_ANOTHER = """
import os, sys, ucm
folder, user, groups = sys.argv[1], int(sys.argv[2]), [int(g) for g in sys.argv[3].split(",") if g]
more = dict(part.split("=") for part in sys.argv[4:])
ucm.plugins()
ucm.open_pipeline("Empty", block_size=64).close()
os.setgroups(groups), os.setgid(user), os.setuid(user)
options = {"storage_backends": folder, "block_size": 4096, "shard_size": 2048, **more}
try:
    with ucm.open_pipeline("Posix", **options) as store:
        print(store.lookup([b"a" * 16, b"b" * 16]))
        if store.layout and "device_id" not in more:
            store.wait(store.dump([b"b" * 16] * 2, [0, 1], [[bytes(2048)]] * 2))
            print(store.lookup([b"a" * 16, b"b" * 16]))
except ucm.StoreError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def reachable(tmp_path_factory):
    """Make a folder that other users can get to."""
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        os.chmod(path, 0o777)
        yield path


@needs_root
def test_a_group_the_process_is_not_in_is_an_error_at_open(run_python, reachable):
    out = run_python(AS_ANOTHER, reachable, 65534, "", "file_mode=0660", "file_group=4321")
    assert "ConfigError Posix: file_group: this process is not in group '4321'" in out


@needs_root
def test_a_group_shares_what_0660_made_and_reads_what_0640_made(run_python, reachable):
    kind = {"file_group": "4321"}
    options = [f"{key}={value}" for key, value in kind.items()]
    run_python(AS_ANOTHER, reachable, 65533, "4321", "file_mode=0660", *options)
    out = run_python(AS_ANOTHER, reachable, 65534, "4321", "file_mode=0660", *options)
    assert out.splitlines() == ["[False, True]", "[False, True]"]


@needs_root
def test_who_may_not_read_is_told_whose_it_is_and_what_to_do(run_python, reachable):
    run_python(AS_ANOTHER, reachable, 65533, "")
    for more in ([], ["device_id=-1"]):
        out = run_python(AS_ANOTHER, reachable, 65534, "", *more)
        assert f"{reachable}/" in out
        assert "belongs to 65533" in out
        assert "mode 0700" in out
        assert "file_mode" in out
