import pytest

TINY = ("--blocks", "4", "--repeat", "2")


def test_json_has_rates_of_every_operation(ucm_command):
    outcome = ucm_command("bench", *TINY, "--json")
    assert outcome.code == 0, outcome.err
    result = outcome.json
    assert result["bytes"] == 4 * 368_640
    assert result["data"] == "sample"
    assert result["verified"] is True
    assert result["ratio"] > 1
    assert result["page_cache_before_cold_load"] == "dropped"
    assert list(result["results"]) == ["dump", "dump and drain", "lookup", "cold load", "hot load"]
    for name, figures in result["results"].items():
        rate = figures["blocks_per_s" if name == "lookup" else "gb_per_s"]
        assert 0 < rate["min"] <= rate["median"] <= rate["max"]
        seconds = figures["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
    assert {"cpu", "cores", "kernel", "python", "ucm"} == set(result["machine"])


def test_the_table_has_every_operation(ucm_command):
    outcome = ucm_command("bench", *TINY)
    assert outcome.code == 0, outcome.err
    for name in ("dump", "dump and drain", "lookup", "cold load", "hot load"):
        assert f"  {name} " in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize(
    "shape",
    [
        ("--block-size", "256KiB", "--shard-size", "4KiB", "--tensor-size", "2048"),
        ("--block-size", "30000", "--shard-size", "10000", "--tensor-size", "5000"),
        ("--dtype", "fp16", "--data", "random"),
        ("--dtype", "bytes", "--io-direct"),
        ("-o", "Posix.timeout_ms=20000"),
    ],
)
def test_any_shape(ucm_command, shape):
    outcome = ucm_command("bench", *TINY, *shape, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["verified"] is True


def test_a_pipeline_that_keeps_nothing_is_only_dumped_to(ucm_command):
    result = ucm_command("bench", *TINY, "--pipeline", "Empty", "--json").json
    assert list(result["results"]) == ["dump", "dump and drain", "lookup"]
    assert result["verified"] is None


def test_blocks_in_a_named_directory_are_removed(ucm_command, tmp_path):
    assert ucm_command("bench", *TINY, "--dir", tmp_path).code == 0
    assert not [path for path in tmp_path.glob("*/*/???/*") if path.is_file()]


def test_sizes_that_do_not_divide_are_2(ucm_command, refused):
    refused(ucm_command("bench", "--shard-size", "1000"), 2, "--shard-size", "1000", "368640")
    refused(ucm_command("bench", "--tensor-size", "7KiB"), 2, "--tensor-size", "7168")
    refused(ucm_command("bench", "--block-size", "many"), 2, "--block-size", "many", "64KiB")
    refused(ucm_command("bench", "--dtype", "int4"), 2, "--dtype", "int4")
