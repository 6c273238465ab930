"""What the vLLM connector opens for a configuration."""

import json
import os

import pytest

import ucm
from ucm.integration.vllm import opening

SIZES = {"block_size": 4096, "shard_size": 1024, "tensor_size": 1024, "dtype": "bf16"}


def extra(name, **options):
    connector = {"ucm_connector_name": name, "ucm_connector_config": options}
    return {"ucm_connectors": [connector]}


def open_one(settings, lookup_only=False):
    return opening.open_store(settings, "m-0123456789ab", "m", 0, "kv_both", SIZES, lookup_only)


@pytest.mark.parametrize("name", ["UcmNfsStore", "UcmPCStore", "UcmPcStore"])
def test_older_names_open_a_pipeline_with_the_engine_s_sizes(tmp_path, name):
    older = {"kv_block_size": 65536, "io_size": 32768, "use_direct": False, "role": "worker"}
    settings = opening.settings(extra(name, storage_backends=str(tmp_path), **older))
    with open_one(settings) as store:
        assert store.layers == ("Cache", "Posix")
        assert (store.layout.block_size, store.layout.shard_size) == (4096, 1024)
    assert any("use_direct" in note for note in settings.notes)


def test_a_class_elsewhere_is_refused():
    config = extra("Mine", storage_backends="/kv")
    config["ucm_connectors"][0]["ucm_connector_module_path"] = "mine"
    with pytest.raises(ucm.ConfigError, match="Mine cannot be used here; write UcmPipelineStore"):
        opening.settings(config)


def test_device_memory_is_refused(tmp_path):
    settings = opening.settings(extra("UcmPipelineStore", **posix(tmp_path), memory="cuda"))
    with pytest.raises(ucm.ConfigError, match="memory: 'cuda' is not supported by this connector"):
        open_one(settings)


def test_what_cannot_be_opened_names_the_configuration_too(tmp_path):
    file = tmp_path / "ucm.yaml"
    file.write_text(json.dumps(extra("UcmPipelineStore", **posix(tmp_path / "gone"))))
    settings = opening.settings({"UCM_CONFIG_FILE": str(file)})
    with pytest.raises(ucm.StoreError, match=r"ucm\.yaml: .*gone"):
        open_one(settings)


def test_what_is_refused_whatever_the_sizes_are_is_found_before_they_are_known(tmp_path):
    file = tmp_path / "ucm.yaml"
    file.write_text(json.dumps(extra("UcmPipelineStore", **posix(tmp_path / "gone"))))
    with pytest.raises(ucm.StoreError, match=r"ucm\.yaml: .*gone"):
        opening.try_open(opening.settings({"UCM_CONFIG_FILE": str(file)}))


def test_trying_leaves_nothing_and_meets_no_store_of_other_sizes(tmp_path):
    options = {**posix(tmp_path), "store_pipeline": "Cache|Posix", "cache_buffer_capacity_gb": 0.01}
    settings = opening.settings(
        extra("UcmPipelineStore", **options, unique_id=f"try-{os.getpid()}")
    )
    opening.try_open(settings)
    assert not list(tmp_path.iterdir())
    with open_one(settings):
        before = set(tmp_path.rglob("*"))
        opening.try_open(settings)
        assert set(tmp_path.rglob("*")) == before


def test_worker_and_scheduler_mean_the_same_blocks(tmp_path):
    settings = opening.settings(extra("UcmPipelineStore", **posix(tmp_path)))
    with open_one(settings) as worker, open_one(settings, lookup_only=True) as scheduler:
        ids, rows = [bytes(16)] * 4, [[bytes(1024)]] * 4
        worker.wait(worker.dump(ids, range(4), rows))
        assert scheduler.lookup([bytes(16), bytes([1] * 16)]) == [True, False]


def posix(path):
    return {"store_pipeline": "Posix", "storage_backends": str(path)}


def test_a_namespace_of_one_s_own_wins(tmp_path):
    settings = opening.settings(extra("UcmPipelineStore", **posix(tmp_path), namespace="team-a"))
    open_one(settings).close()
    assert {entry.name for entry in tmp_path.iterdir()} == {".ucm", "team-a"}
