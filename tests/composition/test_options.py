"""Option tables are the schema of a configuration."""

import logging

import pytest

import ucm
from ucm import options, pipeline
from ucm.loader import Option


def option(kind, initial=None, allowed=None, unit=None):
    return Option("key", kind, initial, allowed, unit, "What it is.")


@pytest.mark.parametrize(
    ("kind", "given", "value"),
    [
        ("bool", True, True),
        ("bool", "true", True),
        ("bool", "False", False),
        ("int", 7, 7),
        ("int", "-7", -7),
        ("size", 4096, 4096),
        ("size", "4096", 4096),
        ("size", "4K", 4096),
        ("size", "64GiB", 64 << 30),
        ("size", "1.5 MB", 3 << 19),
        ("float", 1, 1.0),
        ("float", "0.25", 0.25),
        ("string", "a|b", "a|b"),
        ("string", "", ""),
        ("strings", "/a:/b", ["/a", "/b"]),
        ("strings", ["/a", "/b:c"], ["/a", "/b:c"]),
        ("strings", "", []),
        ("ints", "1, 2,3", [1, 2, 3]),
        ("ints", (1, 2), [1, 2]),
        ("secret", "key", "key"),
    ],
)
def test_values_come_typed_or_as_text(kind, given, value):
    assert options.check_value(option(kind), given) == value


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        ("bool", 1),
        ("bool", "yes"),
        ("int", 1.5),
        ("int", True),
        ("int", "many"),
        ("int", 1 << 63),
        ("size", "4X"),
        ("size", "-1"),
        ("size", "GiB"),
        ("float", "nan"),
        ("float", float("inf")),
        ("float", "fast"),
        ("string", 5),
        ("string", "a\0b"),
        ("strings", [1]),
        ("strings", 1),
        ("ints", "1,x"),
        ("ints", [1.5]),
        ("ints", 7),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_by_key_and_value(kind, given):
    with pytest.raises(ucm.ConfigError) as raised:
        options.check_value(option(kind), given)
    assert str(raised.value).startswith("key: ")
    assert repr(given) in str(raised.value)


def test_a_secret_is_never_shown():
    with pytest.raises(ucm.ConfigError) as raised:
        options.check_value(option("secret"), 12345)
    assert "12345" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "allowed", "good", "bad", "words"),
    [
        ("int", "1..8", [1, 8], [0, 9, -1], "from 1 to 8"),
        ("int", "0..", [0, 1 << 40], [-1], "0 or more"),
        ("int", "..5", [-9, 5], [6], "5 or less"),
        ("float", "0..1", [0, 0.5, 1], [-0.1, 1.1], "from 0 to 1"),
        ("string", "auto|raw", ["auto", "raw"], ["", "fast", "auto|raw"], "one of auto, raw"),
        ("ints", "1..", [[1, 2]], [[1, 0]], "1 or more"),
    ],
)
def test_a_value_out_of_range_is_told_the_range(kind, allowed, good, bad, words):
    limited = option(kind, allowed=allowed, unit="threads")
    for value in good:
        assert options.check_value(limited, value) == value
    for value in bad:
        with pytest.raises(ucm.ConfigError, match=r"key: .* is not allowed") as raised:
            options.check_value(limited, value)
        assert words in str(raised.value)
        assert "threads" in str(raised.value)


def test_every_default_of_our_layers_is_legal():
    for layer, table in options.shipped_tables().items():
        for known in table:
            if known.initial is not None:
                options.check_value(known, known.initial, f"{layer}.{known.name}")


def test_a_required_option_is_asked_for_by_name(error_of):
    message = error_of("Posix", block_size=4096)
    assert message.startswith("storage_backends: Posix needs it")


def test_a_required_text_of_a_python_store_is_not_empty(registered):
    class Asks(ucm.StoreBase):
        OPTIONS = (ucm.Option("asks_folder", "string", None, help="Where it is."),)

    registered(Asks=Asks)
    for given in ("", None):
        with pytest.raises(ucm.ConfigError, match=r"^asks_folder: Asks needs it and it is"):
            ucm.open_pipeline("Asks", block_size=4096, asks_folder=given)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("storage_backend", "storage_backends"),
        ("io_dirct", "io_direct"),
        ("blok_size", "block_size"),
        ("timeout", "timeout_ms"),
    ],
)
def test_an_unknown_key_is_told_the_nearest(error_of, tmp_path, key, nearest):
    message = error_of("Posix", **{"storage_backends": str(tmp_path), "block_size": 64, key: 1})
    assert message == f"{key}: unknown option; did you mean {nearest!r}?"


def test_a_needed_key_that_is_misspelt_is_told_the_nearest(error_of):
    message = error_of("Posix", storage_backend="/kv", block_size=64)
    assert message == "storage_backend: unknown option; did you mean 'storage_backends'?"


def test_a_key_like_no_other_is_told_where_to_look(error_of):
    message = error_of("Empty", block_size=64, zzz=1)
    assert message.startswith("zzz: unknown option; ")
    assert "ucm plugins" in message


def test_a_bare_key_goes_to_every_layer_that_takes_it():
    tables = [("Top", (option("int", "1"),)), ("Bottom", (option("int", "2"),))]
    resolved = options.resolve({"store_pipeline": "x", "key": 5}, tables)
    assert [layer[0].value for layer in resolved.layers] == [5, 5]
    assert resolved.notes == []


@pytest.mark.parametrize("config", [{"Top.key": 5}, {"Top": {"key": 5}}, {"key": 7, "Top.key": 5}])
def test_an_addressed_key_goes_to_that_layer_alone(config):
    tables = [("Top", (option("int", "1"),)), ("Bottom", (option("int", "2"),))]
    resolved = options.resolve({"store_pipeline": "x", **config}, tables)
    assert [layer[0].value for layer in resolved.layers] == [5, config.get("key", 2)]
    assert [layer[0].given for layer in resolved.layers] == [True, "key" in config]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"Posix.io_dirct": True}, ["Posix.io_dirct", "did you mean 'Posix.io_direct'"]),
        ({"Posx.io_direct": True}, ["Posx", "did you mean 'Posix'"]),
        ({"Posx": {"io_direct": True}}, ["Posx", "did you mean 'Posix'"]),
        ({"Posix.posix_data_trans_concurrency": 0}, ["posix_data_trans_concurrency: 0", "1 to"]),
        ({"io_direct": "maybe"}, ["io_direct: 'maybe' is not true or false"]),
        ({"Posix": 3}, ["Posix: needs a mapping of this layer's options, or Posix.OPTION"]),
        ({"posix_capacity_gb": 1e30}, ["posix_capacity_gb: 1e+30", "from 0 to 1000000000 GiB"]),
        ({"posix_io_engine": "magic"}, ["posix_io_engine: 'magic'", "one of psync"]),
        ({"dtype": "bf17"}, ["dtype: 'bf17'", "bf16"]),
        ({"device_id": -2}, ["device_id: -2", "-1 or more"]),
        ({"timeout_ms": 0}, ["timeout_ms: 0", "ms"]),
        ({"unique_id": 5}, ["unique_id: 5 is not text"]),
    ],
)
def test_a_wrong_key_or_value_is_one_clear_error(error_of, tmp_path, keys, words):
    message = error_of("Posix", **{"storage_backends": str(tmp_path), "block_size": 64, **keys})
    for word in words:
        assert word in message


def notes(**keys):
    with ucm.open_pipeline("Empty", block_size=64, **keys) as store:
        return store.notes


def test_a_key_of_a_layer_outside_the_string_is_reported():
    assert notes(io_direct=True) == ["io_direct: not used, Posix is not in the pipeline"]
    assert notes(**{"Posix.io_direct": True}) == [
        "Posix.io_direct: not used, Posix is not in the pipeline"
    ]
    assert notes(Posix={"io_direct": True}) == [
        "Posix.io_direct: not used, Posix is not in the pipeline"
    ]


def test_notes_are_logged(caplog):
    notes(io_direct=True)
    assert "io_direct: not used" in caplog.text


@pytest.mark.parametrize("key", sorted(options.WITHOUT_EFFECT))
def test_a_knob_without_effect_is_accepted_and_says_why(key):
    (note,) = notes(**{key: 1})
    assert note.startswith(f"{key}: no effect, because ")


@pytest.mark.parametrize(("capacity", "notes"), [(0, 1), (1, 0)])
def test_collecting_without_a_limit_has_no_effect(capacity, notes):
    given = {"storage_backends": "/x", "posix_gc_enable": True, "posix_capacity_gb": capacity}
    table = options.shipped_tables()["Posix"]
    found = options.resolve(given, [("Posix", table)]).notes
    assert found == ["posix_gc_enable: no effect, because posix_capacity_gb sets no limit"][:notes]


@pytest.mark.parametrize(("key", "value"), [("use_gdr", True)])
def test_what_cannot_be_had_is_refused(error_of, key, value):
    message = error_of("Empty", block_size=64, **{key: value})
    assert message.startswith(f"{key}: {value!r} cannot be had")


@pytest.mark.parametrize(("key", "value"), [("use_gdr", False)])
def test_not_asking_for_it_is_fine(key, value):
    assert len(notes(**{key: value})) == 1


def test_a_configuration_may_be_a_mapping():
    with ucm.open_pipeline({"store_pipeline": "Empty", "block_size": "4K"}) as store:
        assert store.layout.block_size == 4096


def test_keyword_arguments_win_over_a_mapping():
    config = {"store_pipeline": "Empty", "block_size": 64}
    with ucm.open_pipeline(config, block_size=128) as store:
        assert store.layout.block_size == 128
    assert config == {"store_pipeline": "Empty", "block_size": 64}


def test_a_configuration_may_be_a_file(tmp_path):
    flat = tmp_path / "flat.yaml"
    flat.write_text("store_pipeline: Empty\nblock_size: 4K\nPosix:\n  io_direct: true\n")
    nested = tmp_path / "nested.yml"
    nested.write_text(
        "ucm_connectors:\n"
        "  - ucm_connector_name: UcmPipelineStore\n"
        "    ucm_connector_config:\n"
        "      store_pipeline: Empty\n"
        "      block_size: 4096\n"
    )
    for path in (flat, str(flat), nested):
        with ucm.open_pipeline(path) as store:
            assert store.layout.block_size == 4096


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("a: [", "is not YAML"),
        ("- Empty\n", "a mapping of options is needed"),
        ("ucm_connectors: []\n", "exactly one connector"),
        ("ucm_connectors: [{ucm_connector_name: x}]\n", "ucm_connector_config must be a mapping"),
    ],
)
def test_a_wrong_file_is_named(error_of, tmp_path, text, words):
    path = tmp_path / "config.yaml"
    if text is not None:
        path.write_text(text)
    message = error_of(path)
    assert message.startswith(f"{path}: ")
    assert words in message


def test_what_a_plugin_does_not_take_is_told_like_what_its_table_refuses(tmp_path):
    path = tmp_path / "refused.yaml"
    path.write_text("store_pipeline: Posix\nblock_size: 4096\nfile_group: no-such-group\n")
    refusal = r"Posix: file_group: there is no group 'no-such-group'"
    with pytest.raises(ucm.ConfigError, match=f"^{refusal}"):
        ucm.open_pipeline(
            "Posix", block_size=4096, storage_backends=str(tmp_path), file_group="no-such-group"
        )
    with pytest.raises(ucm.ConfigError, match=f"^{path}: {refusal}"):
        ucm.open_pipeline(path, storage_backends=str(tmp_path))


class Notes(ucm.StoreBase):
    """Keeps nothing but its options."""

    OPTIONS = (
        Option("notes_folder", "string", None, help="Where."),
        Option("notes_limit", "size", "4KiB", "1..", "bytes", "How much."),
        Option("notes_mode", "string", "fast", "fast|safe", help="How."),
        Option("notes_key", "secret", "", help="Who."),
    )
    last = None

    def __init__(self, layout, options):
        super().__init__(layout, options)
        Notes.last = self


GIVEN = {"notes_folder": "/n", "block_size": 64}


@pytest.fixture
def notes_known(registered):
    registered(Notes=Notes)


def test_options_of_a_python_store_are_checked_and_have_defaults(notes_known):
    with ucm.open_pipeline("Cache|Notes", notes_limit="1M", **GIVEN, cache_buffer_capacity_gb=0.01):
        assert Notes.last.options == {
            "notes_folder": "/n", "notes_limit": 1 << 20, "notes_mode": "fast", "notes_key": "",
        }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"notes_limt": 1}, "notes_limt: unknown option; did you mean 'notes_limit'?"),
        ({"notes_limit": 0}, "notes_limit: 0 is not allowed; it must be 1 or more bytes"),
        ({"notes_mode": "odd"}, "notes_mode: 'odd' is not allowed; it must be one of fast, safe"),
        ({"Notes.notes_mode": "odd"}, "Notes.notes_mode: 'odd' is not allowed"),
        ({"notes_folder": None}, "notes_folder: Notes needs it and it is not given. Where."),
        ({"posix_verfy": 1}, "posix_verfy: unknown option; did you mean 'posix_verify'?"),
    ],
)
@pytest.mark.parametrize("pipeline", ["Notes", "Compress|Notes"])
def test_a_wrong_option_of_a_python_store_is_refused(notes_known, error_of, pipeline, given, words):
    assert words in error_of(pipeline, **{**GIVEN, **given})


def test_a_python_stores_table_is_shown(notes_known):
    (info,) = [info for info in ucm.plugins() if info.name == "Notes"]
    assert [(o.name, o.initial) for o in info.options][1] == ("notes_limit", "4KiB")
    assert info.summary == "Keeps nothing but its options."


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ([("x", "int")], "is no ucm.Option"),
        ([Option("x", "number", "1")], "is no ucm.Option"),
        ([Option("x", "int", "1"), Option("x", "int", "1")], "'x' twice"),
        ([Option("x", "int", "0", "1..")], "x: '0' is not allowed"),
    ],
)
def test_a_wrong_table_is_refused_when_it_is_registered(registered, table, words):
    class Wrong(ucm.StoreBase):
        OPTIONS = table

    with pytest.raises(ucm.StoreError, match=words):
        registered(Wrong=Wrong)


def test_a_class_may_take_what_nobody_else_knows(registered):
    class Anything(Notes):
        OPTIONS = None

    registered(Anything=Anything)
    with ucm.open_pipeline("Anything", block_size=64, colour="blue"):
        assert Notes.last.options == {"colour": "blue"}


SECRET = "hunter2"


def test_the_secret_of_a_python_store_is_not_shown(notes_known, caplog):
    caplog.set_level("DEBUG")
    with ucm.open_pipeline("Notes", **GIVEN, notes_key=SECRET) as store:
        assert Notes.last.options["notes_key"] == SECRET
        shown = f"{Notes.last.options} {store!r} {store.notes}"
        shown += repr(pipeline.check({"store_pipeline": "Notes", **GIVEN, "notes_key": SECRET}))
        shown += repr(pipeline.shown("Notes", {"notes_key": SECRET}))
    assert shown.count("(secret)") == 3
    assert SECRET not in shown + caplog.text


class Tells(Notes):
    """Puts its key into whatever it says."""

    def __init__(self, layout, options):
        super().__init__(layout, options)
        logging.getLogger("ucm.Notes").warning("the key is %s", options["notes_key"])
        if options["notes_folder"] == "none":
            raise ValueError(f"wrong key: {options['notes_key']!s}")

    def lookup(self, block_ids):
        raise ucm.UnavailableError(f"the service refuses {self.options['notes_key']!s}")

    def dump(self, block_ids, shard_index, shards):
        raise RuntimeError(f"refused: {self.options['notes_key']!s}")


def test_what_a_store_says_of_its_secret_is_not_shown(registered, caplog):
    registered(Notes=Tells)
    with pytest.raises(ValueError, match=r"wrong key: \(secret\)"):
        ucm.open_pipeline("Notes", notes_folder="none", block_size=64, notes_key=SECRET)
    with ucm.open_pipeline("Notes", **GIVEN, notes_key=SECRET) as store:
        with pytest.raises(ucm.UnavailableError, match=r"the service refuses \(secret\)"):
            store.lookup([bytes(16)])
        with pytest.raises(ucm.StoreError):
            store.wait(store.dump([bytes(16)], [0], [[bytes(64)]]))
    assert caplog.text.count("RuntimeError: refused: (secret)") == 2  # the second in its traceback
    assert "the key is (secret)" in caplog.text
    assert SECRET not in caplog.text


def test_the_secret_of_a_library_is_not_shown(registered, tiny, error_of):
    registered(tiny(TYPE="UCM_TYPE_SECRET"))
    message = error_of("Tiny", block_size=64, tiny_size=SECRET)
    assert message == "tiny_size: (secret) is not allowed; it must be one of 1..9"
    given = {"store_pipeline": "Tiny", "block_size": 64, "tiny_size": "1..9"}
    assert "1..9" not in repr(pipeline.check(given).options)
    assert pipeline.shown("Cache|Tiny", given)["tiny_size"] == "(secret)"
    assert "1..9" not in repr(pipeline.Wired("Tiny", None, given))
