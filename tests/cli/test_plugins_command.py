import pytest

LAYERS = ("Cache", "Compress", "Empty", "Fake", "Posix")


@pytest.fixture
def garbage(tmp_path):
    path = tmp_path / "garbage.so"
    path.write_bytes(b"not a library")
    return path


def test_the_list_has_every_layer(ucm_command):
    outcome = ucm_command("plugins")
    assert outcome.code == 0
    for layer in LAYERS:
        assert f"  {layer} " in outcome.out


def test_json_has_the_same_and_more(ucm_command):
    infos = {info["name"]: info for info in ucm_command("plugins", "--json").json}
    assert set(LAYERS) <= set(infos)
    assert infos["Cache"]["needs_lower"]
    assert not infos["Posix"]["needs_lower"]
    for layer in LAYERS:
        assert infos[layer]["origin"] == "ucm-store"
        assert infos[layer]["error"] is None
        assert infos[layer]["summary"].endswith(".")
        assert {"name", "kind", "scope", "unit", "help"} == set(infos[layer]["metrics"][0])


def test_a_layer_shows_its_options_and_metrics(ucm_command):
    outcome = ucm_command("plugins", "Posix")
    assert outcome.code == 0
    assert outcome.out.startswith("Posix ")
    for word in ("storage_backends", "(required)", "timeout_ms", "30000", "dump_bytes_total"):
        assert word in outcome.out


def test_every_option_is_explained(ucm_command):
    for info in ucm_command("plugins", "--json").json:
        for entry in info["options"] + info["metrics"]:
            assert entry["help"], (info["name"], entry["name"])


def test_one_layer_as_json_is_an_object(ucm_command):
    info = ucm_command("plugins", "Fake", "--json").json
    assert info["name"] == "Fake"
    assert info["options"][0]["name"] == "buffer_number"


def test_a_misspelt_name_is_2(ucm_command, refused):
    refused(ucm_command("plugins", "Cahce"), 2, "Cahce", "did you mean 'Cache'?")
    refused(ucm_command("plugins", "Zzz"), 2, "Zzz", "ucm plugins")


def test_a_refused_library_is_listed_with_the_reason(ucm_process, garbage):
    listed = ucm_process("plugins", "--json", UCM_PLUGINS=str(garbage))
    assert listed.code == 0
    info = next(info for info in listed.json if info["name"] == "garbage")
    assert str(garbage) in info["error"]
    assert "refused" in ucm_process("plugins", UCM_PLUGINS=str(garbage)).out


def test_asking_for_a_refused_library_is_1(ucm_process, refused, garbage):
    outcome = ucm_process("plugins", "garbage", UCM_PLUGINS=str(garbage))
    refused(outcome, 1, "garbage", str(garbage))
