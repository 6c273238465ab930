"""The contract suite as third parties run it."""

import json
import os
from pathlib import Path

import pytest

from ucm.conformance.fixtures import target_of

RUN = "import sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
PLUGIN = "-p ucm.conformance.plugin"
SUITE = ["-q", "-p", "no:cacheprovider", "--pyargs", "ucm.conformance"]


@pytest.fixture
def conformance(run_python, tmp_path):
    def run(*args, **options):
        own = ["--basetemp", tmp_path / "inner"]
        return run_python(RUN, *SUITE, *own, *args, check=False, **options)

    return run


def test_a_registered_pipeline_and_its_options(conformance):
    done = conformance("--ucm-pipeline", "Fake", "--ucm-option", "buffer_number=5000")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "BROKEN" not in done.stdout


@pytest.mark.parametrize("above", ["", "python_layers:Zlib|"])
def test_classes_that_are_not_registered(conformance, above):
    here = Path(__file__).parent
    pipeline = f"{above}dict_store:DictStore"
    done = conformance("--ucm-pipeline", pipeline, "-k", "lookup", path=[here])
    assert done.returncode == 0, done.stdout


def test_a_store_that_breaks_the_contract_fails(conformance, tmp_path):
    (tmp_path / "liar.py").write_text(
        "import ucm\n"
        "class Liar(ucm.StoreBase):\n"
        "    def lookup(self, block_ids): return [True] * len(block_ids)\n"
        "    def dump(self, *shards): pass\n"
        "    def load(self, ids, index, shards): return [sum(map(len, s)) for s in shards]\n"
    )
    done = conformance("--ucm-pipeline", "liar:Liar", "-k", "round_trip", path=[tmp_path])
    assert done.returncode == 1
    assert "round_trip" in done.stdout


FILES = {
    "UCM_CONFORMANCE_OPTIONS": "storage_backends={tmp} cache_buffer_capacity_gb=0.03125",
    "UCM_CONFORMANCE_FILES": "{tmp}/*/*/???/{id}",
    "UCM_CONFORMANCE_KILLS": "2",
    "UCM_CONFORMANCE_REPORT": "card.json",
}
POSIX = {**FILES, "UCM_CONFORMANCE_PIPELINE": "Cache|Compress|Posix"}


def test_faults_and_figures_with_everything_from_the_environment(conformance, tmp_path):
    done = conformance("-k", "test_faults or test_measured", **POSIX)
    assert done.returncode == 0, done.stdout
    card = json.loads((tmp_path / "card.json").read_text())
    assert [layer["name"] for layer in card["layers"]] == ["Cache", "Compress", "Posix"]
    assert {layer["package"] for layer in card["layers"]} == {"ucm-store"}
    assert {"persistent", "verifies"} <= set(card["capabilities"])
    assert card["parts"]["faults"]["passed"] >= 16
    assert card["broken"] == []
    for name in ("dump", "load"):
        assert card["measured"][name]["gb_per_s"] > 0
        single = card["measured"][f"{name} of one shard of 64 KiB"]
        assert 0 < single["p50_us"] <= single["p99_us"]
    assert card["measured"]["lookup"]["us_per_block"] > 0
    assert "\nfaults " in done.stdout
    assert "lookup: " in done.stdout


@pytest.mark.real_3fs
@pytest.mark.parametrize("pipeline", ["Ds3fs", "Cache|Compress|Ds3fs"])
def test_faults_over_3fs(conformance, hf3fs_library, tmp_path, pipeline):
    of_3fs = f" ds3fs_library={hf3fs_library} stream_number=4"
    options = {**FILES, "UCM_CONFORMANCE_OPTIONS": FILES["UCM_CONFORMANCE_OPTIONS"] + of_3fs}
    # A small file system of the test's own is no mount of 3FS; the stand-in takes it for a part.
    parts = ["--ucm-part", "faults"]
    if os.environ.get("HF3FS_MOUNT"):
        parts += ["-k", "not full_disk"]
    else:
        (tmp_path / "3fs-virt" / "iovs").mkdir(parents=True)
    done = conformance(*parts, "--ucm-pipeline", pipeline, **options)
    assert done.returncode == 0, done.stdout
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["broken"] == []
    assert card["parts"]["faults"]["passed"] >= (13 if pipeline == "Ds3fs" else 15)


def test_a_service_is_reached_through_a_class(conformance):
    pipeline = ["--ucm-pipeline", "service_store:ServiceStore", "-k", "away or damage or shape"]
    reach = ["--ucm-files", "service_store:Reach"]
    done = conformance(*pipeline, *reach, path=[Path(__file__).parent])
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.rpartition("\n")[2]
    assert "14 passed" in done.stdout


def test_compress_checks_for_a_store_that_does_not(conformance):
    pipeline = ["--ucm-pipeline", "Compress|shard_files:ShardFiles", "-k", "damage"]
    files = ["--ucm-option", "folder={tmp}", "--ucm-files", "{tmp}/{id}-*"]
    done = conformance(*pipeline, *files, path=[Path(__file__).parent])
    assert done.returncode == 0, done.stdout
    assert "skipped" not in done.stdout.rpartition("\n")[2]
    assert "9 passed" in done.stdout


def test_one_part_alone_and_what_is_left_out_says_why(conformance):
    done = conformance("--ucm-pipeline", "Fake", "--ucm-part", "faults")
    assert done.returncode == 0, done.stdout
    for reason in (
        "nobody said where the bytes are (--ucm-files)",
        "no option has '{tmp}' in it",
        "there is nothing below it that could fail",
        "the store does not promise 'persistent'",
    ):
        assert reason in done.stdout
    assert "contract         0" in done.stdout


def test_without_a_pipeline_it_says_what_to_add(conformance):
    done = conformance("-x")
    assert done.returncode != 0
    assert "--ucm-pipeline" in done.stdout


@pytest.mark.parametrize(
    ("pipeline", "options", "words"),
    [
        ("no_such_module:Store", [], "no_such_module"),
        ("json:NoSuchClass", [], "NoSuchClass"),
        ("Fake", ["oops"], "'oops': write KEY=VALUE"),
        ("Cache|json:NoSuchClass", [], "NoSuchClass"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(pipeline, options, words):
    with pytest.raises(pytest.UsageError, match=words):
        target_of(pipeline, options)


def test_it_needs_nothing_but_pytest(run_python):
    code = (
        "import sys, pytest\n"
        "pytest.main(sys.argv[1:])\n"
        "print({'numpy', 'torch', 'hypothesis'} & set(sys.modules))"
    )
    only = ["--ucm-pipeline", "Empty", "-k", "lookup"]
    out = run_python(code, *SUITE, *only, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", PYTEST_ADDOPTS=PLUGIN)
    assert out.rstrip().endswith("set()")
