import itertools
import os

import pytest

SAMPLE_BYTES = 3_686_400


def block_files(directory):
    return sorted(path for path in directory.glob("*/*/???/*") if path.is_file())


@pytest.mark.parametrize(
    "pipeline", ["Posix", "Cache|Posix", "Compress|Posix", "Cache|Compress|Posix"]
)
def test_json_says_what_happened(ucm_command, tmp_path, pipeline):
    outcome = ucm_command("demo", "--pipeline", pipeline, "--dir", tmp_path, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["pipeline"] == pipeline
    assert result["blocks"] == 10
    assert result["bytes"] == SAMPLE_BYTES
    assert result["verified"] is True
    assert result["already_stored"] == 0
    assert result["stored_bytes"] == sum(path.stat().st_size for path in block_files(tmp_path))
    assert result["ratio"] == pytest.approx(SAMPLE_BYTES / result["stored_bytes"], abs=1e-4)
    assert list(result["layers"]) == pipeline.split("|")
    for layer in result["layers"].values():
        assert layer["dump_ms"] > 0
        assert layer["load_ms"] > 0


def test_each_layer_passes_on_what_the_next_takes(ucm_command):
    result = ucm_command("demo", "--json").json
    layers = list(result["layers"].values())
    assert layers[0]["bytes_in"] == SAMPLE_BYTES
    assert layers[0]["load_bytes_out"] == SAMPLE_BYTES
    for upper, lower in itertools.pairwise(layers):
        assert upper["bytes_out"] == lower["bytes_in"]
        assert upper["load_bytes_in"] == lower["load_bytes_out"]


def test_real_kv_cache_compresses(ucm_command):
    plain = ucm_command("demo", "--pipeline", "Posix", "--json").json
    packed = ucm_command("demo", "--pipeline", "Compress|Posix", "--json").json
    assert packed["ratio"] > 1.2 > 1 > plain["ratio"]


def test_the_table_has_every_layer_and_the_last_line_the_verdict(ucm_command):
    outcome = ucm_command("demo")
    assert outcome.code == 0, outcome.err
    for layer in ("Cache", "Compress", "Posix"):
        assert f"  {layer} " in outcome.out
    assert outcome.out.endswith("10 blocks, 3,686,400 bytes, verified bit for bit\n")


def test_files_in_a_named_directory_stay_and_are_not_written_again(ucm_command, tmp_path):
    directory = tmp_path / "made" / "by the demo"
    assert ucm_command("demo", "--dir", directory).code == 0
    before = {path: path.stat().st_mtime_ns for path in block_files(directory)}
    assert len(before) == 10
    again = ucm_command("demo", "--dir", directory, "--json").json
    assert again["already_stored"] == 10
    assert again["verified"] is True
    assert {path: path.stat().st_mtime_ns for path in block_files(directory)} == before


def test_the_temporary_directory_goes(ucm_process, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    assert ucm_process("demo", TMPDIR=str(temporary)).code == 0
    assert list(temporary.iterdir()) == []


def test_a_byte_that_differs_is_1(ucm_command, refused, tmp_path):
    assert ucm_command("demo", "--dir", tmp_path).code == 0
    victim = block_files(tmp_path)[0]
    contents = bytearray(victim.read_bytes())
    contents[len(contents) // 2] ^= 1
    victim.write_bytes(contents)
    outcome = ucm_command("demo", "--dir", tmp_path, "--json")
    refused(outcome, 1, "second process", victim.name)


def test_it_needs_neither_numpy_nor_torch(ucm_process, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('numpy', 'torch'):\n    sys.modules[name] = None\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    outcome = ucm_process("demo", "--json", PYTHONPATH=path)
    assert outcome.code == 0, outcome.err
    assert outcome.json["verified"] is True


@pytest.mark.parametrize("pipeline", ["Empty", "Fake", "Cache|Empty"])
def test_what_does_not_come_back_cannot_be_shown(ucm_command, refused, pipeline):
    refused(ucm_command("demo", "--pipeline", pipeline), 2, "store_pipeline", "Posix")


def test_options_reach_the_layers(ucm_command):
    assert ucm_command("demo", "-o", "Posix.io_direct=true", "--json").json["verified"] is True


def test_a_directory_that_is_a_file_is_2(ucm_command, refused, tmp_path):
    path = tmp_path / "file"
    path.touch()
    refused(ucm_command("demo", "--dir", path), 2, str(path))
