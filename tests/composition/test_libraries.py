"""A library that is not a plugin of this ABI is refused by name, and breaks only itself."""

import os
import subprocess

import pytest

import ucm


def refusal(path, name):
    """Return why a registered library cannot be opened."""
    with pytest.raises(ucm.PluginError) as raised:
        ucm.open_pipeline(name, block_size=64)
    message = str(raised.value)
    assert str(path) in message
    (info,) = [info for info in ucm.plugins() if info.path == str(path)]
    assert info.error
    with ucm.open_pipeline("Empty", block_size=64):
        pass
    return message


WRONG = {
    "another major": ({"MAJOR": 2}, ["abi_major is 2, this ucm has 1", "rebuild"]),
    "another minor": ({"MINOR": 7}, ["abi_minor is 7, this ucm has 0", "rebuild"]),
    "another draft": ({"DRAFT": 99}, ["abi_draft is 99, this ucm has", "rebuild"]),
    "a short descriptor": ({"SIZE": 40}, ["struct_size is 40", "rebuild"]),
    "an unknown flag": ({"FLAGS": "1ul<<40"}, ["flags is 0x10000000000", "upgrade"]),
    "short options": ({"OPTION_STRIDE": 8}, ["option_stride is 8", "rebuild"]),
    "short metrics": ({"METRIC_STRIDE": 8}, ["metric_stride is 8", "rebuild"]),
    "an unknown type": ({"TYPE": 42}, ["tiny_size", "type 42"]),
    "a bad name": ({"NAME": '"Tiny|x"'}, ["its name 'Tiny|x'", "letters and digits"]),
    "no name": ({"NAME": "0"}, ["its name ''"]),
    "no open": ({"OPEN": "0"}, ["open is NULL"]),
    "no descriptor": ({"ANSWER": "0"}, ["returned NULL"]),
    "no symbol": ({"SYMBOL": "something_else"}, ["no symbol ucm_store_plugin_v1"]),
}


@pytest.mark.parametrize(("macros", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_descriptor_is_refused(registered, tiny, macros, words):
    library = tiny(**macros)
    registered(Tiny=library)
    message = refusal(library, "Tiny")
    for word in ["refused", *words]:
        assert word in message


def text(path):
    path.write_text("This is no library.\n")


def empty(path):
    path.touch()


def random_bytes(path):
    path.write_bytes(b"\x7fELF" + os.urandom(5000))


def cut_short(path):
    source = path.with_suffix(".c")
    source.write_text("int x;")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", path], check=True)
    os.truncate(path, path.stat().st_size // 2)


def missing_symbol(path):
    source = path.with_suffix(".c")
    source.write_text("void nowhere(void); void call(void) { nowhere(); }")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", path], check=True)


@pytest.mark.parametrize("make", [text, empty, random_bytes, cut_short, missing_symbol])
def test_garbage_named_so_is_refused(registered, tmp_path, make):
    path = tmp_path / "garbage.so"
    make(path)
    registered(Garbage=path)
    assert "it does not load" in refusal(path, "Garbage")


def test_a_missing_library_is_named(registered, tmp_path):
    path = tmp_path / "gone.so"
    registered(Gone=path)
    assert "there is no such file" in refusal(path, "Gone")


def test_a_folder_is_no_library(registered, tmp_path):
    registered(Folder=tmp_path)
    assert "there is no such file" in refusal(tmp_path, "Folder")


def test_a_relative_path_is_refused(registered, tiny, monkeypatch):
    library = tiny()
    monkeypatch.chdir(library.parent)
    registered(Tiny="tiny.so")
    assert "give the absolute path" in refusal("tiny.so", "Tiny")


def test_a_library_must_be_what_it_was_registered_as(registered, tiny):
    library = tiny()
    registered(Large=library)
    assert "registered as 'Large', but it calls itself 'Tiny'" in refusal(library, "Large")


def test_a_sound_library_is_described(registered, tiny):
    library = tiny()
    registered(Tiny=library)
    (info,) = [info for info in ucm.plugins() if info.name == "Tiny"]
    assert (info.version, info.summary, info.error) == ("1.2.3", "Refuses to open.", None)
    (option,) = info.options
    assert (option.name, option.type, option.initial, option.allowed) == (
        "tiny_size", "int", "1", "1..9",
    )  # fmt: skip
    assert [metric.name for metric in info.metrics] == ["x_total"]


def test_a_store_that_does_not_open_says_why(registered, tiny):
    registered(Tiny=tiny())
    with pytest.raises(ucm.UnavailableError) as raised:
        ucm.open_pipeline("Compress|Tiny", block_size=64)
    assert str(raised.value) == "Tiny: there is no tiny device"
    assert raised.value.os_errno == 19
    with pytest.raises(ucm.ConfigError, match="tiny_size: 10 is not allowed"):
        ucm.open_pipeline("Tiny", block_size=64, tiny_size=10)
