"""Which words may stand where in a pipeline string, and how a block is cut."""

import os
import tempfile

import pytest

import ucm


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [
        ("", ["store_pipeline", "it is empty"]),
        ("  ", ["store_pipeline", "it is empty"]),
        ("Cache||Empty", ["'Cache||Empty'", "empty place"]),
        ("|Empty", ["empty place"]),
        ("Empty|", ["empty place"]),
        ("Emty", ["there is no store 'Emty'", "did you mean 'Empty'", "known: "]),
        ("posix", ["there is no store 'posix'", "did you mean 'Posix'"]),
        ("Cache|Whatever", ["there is no store 'Whatever'"]),
        ("Cache", ["Cache needs a store below it", "'Cache|Posix'"]),
        ("Cache|Compress", ["Compress needs a store below it", "'Cache|Compress|Posix'"]),
        ("Empty|Posix", ["Empty takes no store below it", "Posix stands there"]),
        ("Cache|Fake|Empty", ["Fake takes no store below it"]),
        ("|".join(["Compress"] * 17), ["17 layers", "at most 16"]),
    ],
)
def test_a_wrong_string_says_what_to_write(error_of, pipeline, words):
    message = error_of({"store_pipeline": pipeline, "block_size": 64})
    for word in words:
        assert word in message


def test_no_pipeline_at_all(error_of):
    assert "store_pipeline" in error_of({"block_size": 64})
    assert "not 7" in error_of(7)


def test_layers_are_named_from_the_top():
    with ucm.open_pipeline(" Cache | Compress|Empty ", block_size=64) as store:
        assert store.layers == ("Cache", "Compress", "Empty")
        assert tuple(store.stats()) == store.layers


def test_a_layer_may_stand_twice():
    with ucm.open_pipeline("Compress|Compress|Fake", block_size=64) as store:
        assert store.layers == ("Compress", "Compress#2", "Fake")
        store.wait(store.dump([bytes(16)], [0], [[bytes(64)]]))
        assert store.lookup([bytes(16)]) == [True]


def test_the_same_pipeline_opens_again_and_again():
    options = {"block_size": 64, "unique_id": f"engine-{os.getpid()}"}
    for _ in range(3):
        ucm.open_pipeline("Cache|Fake", **options).close()
    with ucm.open_pipeline("Cache|Fake", **options), ucm.open_pipeline("Cache|Fake", **options):
        pass


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({}, ["block_size: it is needed"]),
        ({"block_size": 100, "shard_size": 30}, ["100 is not a multiple of shard_size 30"]),
        ({"shard_size": 100, "tensor_size": 30}, ["100 is not a multiple of tensor_size 30"]),
        ({"shard_size": 100, "tensor_size_list": [30, 30]}, ["its sum 60", "shard_size 100"]),
        (
            {"block_size": 100, "tensor_size_list": [30]},
            ["100 is not a multiple of the sum of tensor_size_list, 30"],
        ),
        ({"tensor_size": 4, "tensor_size_list": [4]}, ["tensor_size and tensor_size_list"]),
        ({"block_size": 64, "tensor_size_list": [64, 0]}, ["tensor_size_list", "1 or more"]),
        ({"block_size": 16385, "shard_size": 1}, ["16385 shards", "at most 16384"]),
        ({"block_size": 4097, "tensor_size": 1}, ["4097 segments", "at most 4096"]),
        ({"block_size": -1}, ["block_size: -1"]),
        ({"block_size": "lots"}, ["block_size: 'lots'"]),
    ],
)
def test_sizes_that_do_not_fit_are_refused(error_of, sizes, words):
    message = error_of("Empty", **sizes)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("sizes", "block", "shards", "segments"),
    [
        ({"block_size": 96}, 96, 1, (96,)),
        ({"shard_size": 96}, 96, 1, (96,)),
        ({"tensor_size": 96}, 96, 1, (96,)),
        ({"block_size": 96, "shard_size": 48}, 96, 2, (48,)),
        ({"block_size": 96, "tensor_size": 24}, 96, 1, (24,) * 4),
        ({"block_size": 96, "shard_size": 48, "tensor_size": 24}, 96, 2, (24, 24)),
        ({"tensor_size_list": [40, 8]}, 48, 1, (40, 8)),
        ({"block_size": 96, "tensor_size_list": "40,8"}, 96, 2, (40, 8)),
        ({"block_size": 16384, "shard_size": 1}, 16384, 16384, (1,)),
        ({"block_size": 4096, "tensor_size": 1}, 4096, 1, (1,) * 4096),
    ],
)
def test_sizes_that_are_left_out_follow_from_the_others(sizes, block, shards, segments):
    with ucm.open_pipeline("Empty", **sizes) as store:
        assert store.layout.block_size == block
        assert store.layout.shards_per_block == shards
        assert store.layout.segment_sizes == segments


def test_a_lookup_only_store_knows_the_sizes_that_it_is_given():
    with ucm.open_pipeline("Empty", device_id=-1) as store:
        assert store.layout is None
        assert store.lookup([bytes(16)]) == [False]
    with ucm.open_pipeline("Empty", device_id=-1, block_size=100, shard_size=50) as store:
        assert store.layout.shards_per_block == 2
        assert store.lookup([bytes(16)]) == [False]
        for transfer in (store.dump_data, store.load_data):
            with pytest.raises(ucm.UnsupportedError, match="lookup only"):
                transfer([bytes(16)], [0], [[1]])
    with pytest.raises(ucm.ConfigError, match="block_size: 100"):
        ucm.open_pipeline("Empty", device_id=-1, block_size=100, shard_size=30)


@pytest.mark.parametrize("pipeline", ["Posix", "Cache|Posix", "Cache|Compress|Posix"])
def test_a_missing_directory_is_named(tmp_path, pipeline):
    missing = tmp_path / "not" / "there"
    with pytest.raises(ucm.StoreError, match=str(missing)) as raised:
        ucm.open_pipeline(pipeline, storage_backends=str(missing), block_size=64)
    assert str(raised.value).startswith("Posix: storage_backends: ")
    assert f"mkdir -p {missing}" in str(raised.value)


def test_a_file_in_place_of_the_directory_is_named(tmp_path):
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(ucm.StoreError, match=str(path)):
        ucm.open_pipeline("Posix", storage_backends=str(path), block_size=64)


def test_one_bad_directory_of_several_is_named(tmp_path):
    backends = f"{tmp_path}:{tmp_path / 'missing'}"
    with pytest.raises(ucm.StoreError, match=str(tmp_path / "missing")):
        ucm.open_pipeline("Posix", storage_backends=backends, block_size=64)


def test_an_empty_list_of_directories_is_refused(error_of):
    with pytest.raises(ucm.StoreError, match="storage_backends"):
        ucm.open_pipeline("Posix", storage_backends="", block_size=64)


UNWRITABLE = """
import os, sys, ucm
ucm.open_pipeline("Empty", block_size=64).close()
if os.getuid() == 0:  # root may write anywhere
    os.setgid(65534), os.setuid(65534)
try:
    ucm.open_pipeline("Posix", storage_backends=sys.argv[1], block_size=64)
except ucm.StoreError as error:
    print(error)
"""


def test_an_unwritable_directory_is_named(run_python):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o555)
        out = run_python(UNWRITABLE, folder)
    assert folder in out
    assert "Permission denied" in out
