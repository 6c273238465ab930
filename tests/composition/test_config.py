"""A whole configuration is one model: a file, or what an engine passes inline."""

from pathlib import Path

import pytest
import yaml

import ucm
from ucm import config, options
from ucm.store.pipeline.connector import UcmPipelineStoreBuilder

EXAMPLE = Path(__file__).parents[2] / "examples" / "ucm_config_example.yaml"
INSIDE = "ucm_connectors[0].ucm_connector_config"


def whole(store=None, /, connector=None, **top):
    """Return a configuration of an Empty pipeline with these options and top-level keys."""
    entry = {
        "ucm_connector_name": "UcmPipelineStore",
        "ucm_connector_config": {"store_pipeline": "Empty", **(store or {})},
        **(connector or {}),
    }
    return {"ucm_connectors": [entry], **top}


@pytest.fixture
def refusal(tmp_path):
    """Return why a configuration is refused: the same inline and in a file, but for its name."""

    def refuse(data):
        with pytest.raises(ucm.ConfigError) as inline:
            config.load(data)
        path = tmp_path / "refused.yaml"
        path.write_text(yaml.safe_dump(data))
        with pytest.raises(ucm.ConfigError) as from_file:
            config.load({"UCM_CONFIG_FILE": str(path)})
        message = str(inline.value).removeprefix("kv_connector_extra_config: ")
        assert str(from_file.value) == f"{path}: {message}"
        return message

    return refuse


@pytest.fixture
def file(tmp_path):
    """Write a configuration to a file."""

    def write(data, name="config.yaml"):
        path = tmp_path / name
        path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
        return str(path)

    return write


# What it gives.


def test_the_example_is_opened_as_it_stands(tmp_path):
    text = EXAMPLE.read_text()
    assert text.count("/mnt/test") == 1
    path = tmp_path / "ucm_config_example.yaml"
    path.write_text(text.replace("/mnt/test", str(tmp_path)))
    found = config.load({"UCM_CONFIG_FILE": str(path)})
    assert found.connector_name == "UcmPipelineStore"
    assert found.connector_module_path is None
    assert found.connector_config == {
        "store_pipeline": "Cache|Posix",
        "storage_backends": str(tmp_path),
        "io_direct": False,
        "use_gdr": False,
    }
    assert found.enable_event_sync is True
    assert found.use_layerwise is True
    assert found.enable_record_traces is False
    assert found.use_lite is False
    assert found.persist_token_threshold == 0
    with ucm.open_pipeline(path, block_size=4096) as store:
        assert store.layers == ("Cache", "Posix")


def test_every_top_level_key_is_explained_and_has_its_default():
    found = config.load(whole())
    assert set(found.values) == {option.name for option in options.ENGINE_OPTIONS}
    for name, value in found.values.items():
        assert value.option.help.endswith("."), name
        assert not value.given
        assert getattr(found, name) == value.value
    assert found.enable_event_sync is found.use_layerwise is True
    assert found.load_tokens_threshold == 0
    assert found.hit_ratio is None
    assert found.metrics_config_path is None
    assert found.notes == []


@pytest.mark.parametrize(
    ("key", "given", "value"),
    [
        ("use_layerwise", False, False),
        ("use_layerwise", "false", False),
        ("hit_ratio", 0.8, 0.8),
        ("hit_ratio", "1", 1.0),
        ("persist_token_threshold", 512, 512),
        ("metrics_config", {"log_interval": 1}, {"log_interval": 1}),
    ],
)
def test_values_are_typed(key, given, value):
    found = config.load(whole(**{key: given}))
    assert getattr(found, key) == value
    assert found.values[key].given


def test_what_has_no_effect_yet_is_said_and_why():
    for key, reason in options.ENGINE_WITHOUT_EFFECT.items():
        kind = next(o.type for o in options.ENGINE_OPTIONS if o.name == key)
        asks = {"bool": True, "mapping": {"a": 1}, "string": "/x", "float": 0.5, "int": 7}[kind]
        store = {"store_pipeline": "Fake"} if key == "use_lite" else {}
        notes = config.load(whole(store, **{key: asks})).notes
        assert notes == [f"{key}: no effect yet, because {reason}"]


def test_not_asking_for_it_needs_no_word():
    assert config.load(whole(use_lite=False, persist_token_threshold=0)).notes == []


def test_notes_of_the_store_come_too():
    (note,) = config.load(whole({"io_direct": True})).notes
    assert note == "io_direct: not used, Posix is not in the pipeline"


def test_options_of_a_store_are_not_shown_by_repr():
    found = config.load(whole({"unique_id": "who-may-know"}))
    assert "who-may-know" not in repr(found)


@pytest.mark.parametrize("capacity", [64, "64", "64GiB", "65536MiB", "64 G"])
def test_memory_comes_in_gib_or_with_its_unit(capacity):
    checked = options.check_value(
        next(o for o in options.shipped_tables()["Cache"] if o.name == "cache_buffer_capacity_gb"),
        capacity,
    )
    assert checked == 64.0


@pytest.mark.parametrize("form", [":".join, list])
def test_directories_come_as_text_or_as_a_list(tmp_path, form):
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
    data = whole({"store_pipeline": "Posix", "storage_backends": form(map(str, places))})
    with ucm.open_pipeline(config.load(data).connector_config, block_size=4096):
        assert all((place / ".ucm").is_dir() for place in places)


# Where it is found.


def test_inline_keys_win_over_the_file(file):
    path = file(whole(use_layerwise=True, persist_token_threshold=5))
    found = config.load({"UCM_CONFIG_FILE": path, "use_layerwise": False})
    assert found.use_layerwise is False
    assert found.persist_token_threshold == 5
    assert found.source == path


def test_the_environment_names_the_file_where_nothing_else_does(file, monkeypatch):
    monkeypatch.setenv("UCM_CONFIG_FILE", file(whole(persist_token_threshold=1), "env.yaml"))
    assert config.load({}).persist_token_threshold == 1
    assert config.load({"use_layerwise": False}).use_layerwise is False
    assert config.load(whole(persist_token_threshold=2)).persist_token_threshold == 2
    other = file(whole(persist_token_threshold=3))
    assert config.load({"UCM_CONFIG_FILE": other}).persist_token_threshold == 3


@pytest.mark.parametrize("path", [5, "", ["a"]])
def test_a_path_must_be_one(path):
    with pytest.raises(ucm.ConfigError, match=r"UCM_CONFIG_FILE: .* is not the path of a file"):
        config.load({"UCM_CONFIG_FILE": path})


def test_a_file_names_no_other(file):
    path = file(whole(UCM_CONFIG_FILE="/other.yaml"))
    with pytest.raises(ucm.ConfigError, match="a file cannot name another"):
        config.load({"UCM_CONFIG_FILE": path})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: [", "line 2: is not YAML"),
        ("a: 1\n\tb: 2\n", "line 2: is not YAML"),
        (
            "use_lite: true\na:\n  b: 1\nuse_lite: false\n",
            "line 4: is not YAML: the key 'use_lite'",
        ),
        ("a:\n  b: 1\n  b: 1\n", "line 3: is not YAML: the key 'b' stands twice"),
        ("a: !!python/object:os.system 1\n", "line 1: is not YAML"),
        ("", "a mapping of options is needed"),
        ("just words", "a mapping of options is needed"),
    ],
)
def test_a_file_that_is_not_yaml_is_told_the_line(file, text, words):
    path = file(text)
    with pytest.raises(ucm.ConfigError) as raised:
        config.load({"UCM_CONFIG_FILE": path})
    assert str(raised.value).startswith(f"{path}: ")
    assert words in str(raised.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ucm.ConfigError, match="is not YAML"):
        config.load({"UCM_CONFIG_FILE": str(path)})


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(
        ucm.ConfigError,
        match=r"^/not/there\.yaml: cannot be read: No such file.*UCM_CONFIG_FILE, which names it",
    ):
        config.load({"UCM_CONFIG_FILE": "/not/there.yaml"})


# What it refuses.


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({}, ["ucm_connectors: exactly one connector is needed", "UcmPipelineStore"]),
        ({"ucm_connectors": []}, ["exactly one", "0 are given"]),
        ({"ucm_connectors": [{}, {}]}, ["exactly one", "2 are given"]),
        ({"ucm_connectors": {"a": 1}}, ["exactly one"]),
        ({"ucm_connectors": ["Posix"]}, ["ucm_connectors[0]: a mapping is needed, not 'Posix'"]),
        (
            {"ucm_connectors": [{"ucm_connector_config": {}}]},
            ["ucm_connectors[0].ucm_connector_name: it is needed", "UcmPipelineStore"],
        ),
        (
            whole(connector={"ucm_connector_name": "UcmPipelinStore"}),
            ["'UcmPipelinStore' is unknown; did you mean 'UcmPipelineStore'"],
        ),
        (
            whole(connector={"ucm_connector_name": "Acme"}),
            ["'Acme' is unknown", "UcmNfsStore", "ucm_connector_module_path"],
        ),
        (whole(connector={"ucm_connector_name": 5}), ["ucm_connector_name: 5 is not a name"]),
        (
            whole(connector={"ucm_connector_config": None}),
            ["ucm_connectors[0]: ucm_connector_config must be a mapping"],
        ),
        (
            whole(connector={"ucm_conector_config": {}}),
            ["ucm_connectors[0].ucm_conector_config", "did you mean 'ucm_connector_config'?"],
        ),
    ],
)
def test_a_connector_must_be_one(refusal, data, words):
    message = refusal(data)
    for word in words:
        assert word in message


@pytest.mark.parametrize("name", ["UcmNfsStore", "UcmPCStore", "UcmPcStore"])
def test_older_stores_have_options_of_their_own(name):
    found = config.load(
        whole(connector={"ucm_connector_name": name, "ucm_connector_config": {"io_size": 1}})
    )
    assert (found.connector_name, found.connector_config) == (name, {"io_size": 1})


def test_a_class_elsewhere_takes_what_it_likes():
    entry = {
        "ucm_connector_name": "Acme",
        "ucm_connector_module_path": "acme.store",
        "ucm_connector_config": {"anything": [1]},
    }
    found = config.load({"ucm_connectors": [entry]})
    assert found.connector_name == "Acme"
    assert found.connector_module_path == "acme.store"
    assert found.connector_config == {"anything": [1]}


def test_a_pipeline_with_a_builder_of_its_own_takes_what_it_likes(monkeypatch):
    monkeypatch.setitem(UcmPipelineStoreBuilder._builders, "Special", lambda *_: None)
    found = config.load(whole({"store_pipeline": "Special", "anything": 1}))
    assert found.connector_config["anything"] == 1
    assert not config.is_pipeline(found)
    assert config.is_pipeline(config.load(whole()))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (whole(use_layerwize=True), ["use_layerwize: unknown key", "'use_layerwise'?"]),
        (whole({"io_dirct": True}), [f"{INSIDE}.io_dirct: unknown option", "'io_direct'?"]),
        (whole(zzz=1), ["zzz: unknown key; known: ", "use_layerwise"]),
    ],
)
def test_an_unknown_key_is_told_the_nearest_of_its_level(refusal, data, words):
    message = refusal(data)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (whole(io_direct=True), ["io_direct: it is an option of a store; move it to " + INSIDE]),
        (whole(use_gdr=False), ["use_gdr: it is an option of a store"]),
        (whole(Posix={"io_direct": True}), ["Posix: it is an option of a store"]),
        ({"store_pipeline": "Empty"}, ["store_pipeline: it is an option of a store"]),
        (whole(io_dirct=1), ["did you mean 'io_direct', which belongs into " + INSIDE]),
        (whole(ucm_connector_name="x"), ["it belongs into the entry of ucm_connectors"]),
        (
            whole({"use_layerwise": True}),
            [f"{INSIDE}.use_layerwise", "it belongs at the top level"],
        ),
        (
            whole({"use_layerwize": True}),
            ["did you mean 'use_layerwise', which belongs at the top level"],
        ),
        (whole(connector={"io_direct": True}), ["io_direct: it is an option of a store; move it"]),
        (whole(connector={"hit_ratio": 1}), ["hit_ratio: it belongs at the top level"]),
    ],
)
def test_a_key_at_the_wrong_level_is_told_where_it_belongs(refusal, data, words):
    message = refusal(data)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (whole(use_layerwise="maybe"), "use_layerwise: 'maybe' is not true or false"),
        (whole(hit_ratio=1.5), "hit_ratio: 1.5 is not allowed; it must be from 0 to 1"),
        (whole(persist_token_threshold=-1), "persist_token_threshold: -1 is not allowed"),
        (whole(metrics_config="x"), "metrics_config: 'x' is not a mapping"),
        (whole({"timeout_ms": 0}), f"{INSIDE}.timeout_ms: 0 is not allowed"),
        (whole({"store_pipeline": "Cache|Posxi"}), f"{INSIDE}.store_pipeline: there is no store"),
        (whole({"store_pipeline": ["Empty"]}), f"{INSIDE}.store_pipeline: ['Empty'] is not text"),
        (whole({"store_pipeline": "Posix"}), f"{INSIDE}.storage_backends: Posix needs it"),
        (whole({"use_gdr": True}), f"{INSIDE}.use_gdr: True cannot be had"),
    ],
)
def test_a_wrong_value_is_told_file_key_and_remedy(refusal, data, words):
    assert words in refusal(data)


@pytest.mark.parametrize(
    ("data", "first", "second"),
    [
        (
            whole({"tensor_size": 4, "tensor_size_list": [4]}),
            "tensor_size",
            "tensor_size_list",
        ),
        (whole({"block_size": 100, "shard_size": 64}), "block_size", "shard_size"),
        (whole(use_lite=True), "use_lite", "store_pipeline: Empty"),
        (whole({"store_pipeline": "Fake"}, use_lite=True, hit_ratio=0.5), "use_lite", "hit_ratio"),
        (
            whole(enable_metrics=False, metrics_config_path="/x"),
            "enable_metrics",
            "metrics_config_path",
        ),
        (
            whole(metrics_config={"a": 1}, metrics_config_path="/x"),
            "metrics_config_path",
            "metrics_config",
        ),
        (
            whole(use_request_async_load=True, use_layerwise=True),
            "use_request_async_load",
            "use_layerwise",
        ),
    ],
)
def test_two_keys_that_contradict_are_both_named(refusal, data, first, second):
    message = refusal(data)
    assert first in message
    assert second in message


@pytest.mark.parametrize("pipeline", ["Fake", "Cache|Fake"])
def test_lite_goes_with_fake(pipeline):
    assert config.load(whole({"store_pipeline": pipeline}, use_lite=True)).use_lite


def test_a_default_contradicts_nothing():
    assert config.load(whole(use_request_async_load=True)).use_request_async_load


# As a store's options alone.


def test_open_pipeline_takes_the_store_out_of_a_whole_configuration(file):
    with ucm.open_pipeline(file(whole({"block_size": "4K"}, use_layerwise=True))) as store:
        assert store.pipeline == "Empty"
        assert store.layout.block_size == 4096


def test_open_pipeline_names_the_file(file, error_of):
    path = file(whole({"block_size": 64, "io_dirct": 1}))
    assert error_of(path).startswith(f"{path}: io_dirct: unknown option")


def test_open_pipeline_opens_no_other_connector(file, error_of):
    path = file(whole(connector={"ucm_connector_name": "UcmNfsStore"}))
    assert "UcmNfsStore is no pipeline" in error_of(path)


def test_an_engine_key_given_to_a_store_is_told_where_it_belongs(error_of):
    assert error_of("Empty", block_size=64, use_layerwise=True).startswith(
        "use_layerwise: is no option of a store; it belongs at the top level"
    )
