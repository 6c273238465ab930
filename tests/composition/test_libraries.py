"""A library that is not a plugin of this ABI is refused by name, and breaks only itself."""

import os
import subprocess
import types

import pytest

import ucm
from ucm import loader


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
    "a draft": ({"DRAFT": 99}, ["abi_draft is 99, this ucm has 0", "1.0 draft 99", "the vendor's"]),
    "a later draft": ({"DRAFT": 1, "MINOR": 7}, ["abi_draft is 1", "1.7 draft 1", "for ABI 1.7"]),
    "a short descriptor": ({"SIZE": 40}, ["struct_size is 40", "rebuild"]),
    "an unknown flag": ({"FLAGS": "1ul<<40"}, ["flags is 0x10000000000", "upgrade"]),
    "short options": ({"OPTION_STRIDE": 8}, ["option_stride is 8", "rebuild"]),
    "short metrics": ({"METRIC_STRIDE": 8}, ["metric_stride is 8", "rebuild"]),
    "uneven options": ({"OPTION_STRIDE": 52}, ["option_stride is 52", "rebuild"]),
    "no options": ({"OPTIONS": "0"}, ["its options are NULL"]),
    "a bad name": ({"NAME": '"Tiny|x"'}, ["its name 'Tiny|x'", "letters and digits"]),
    "no name": ({"NAME": "0"}, ["its name ''"]),
    "no open": ({"OPEN": "0"}, ["open is NULL"]),
    "no descriptor": ({"ANSWER": "0"}, ["returned NULL"]),
    "no symbol": ({"SYMBOL": "something_else"}, ["no symbol ucm_store_plugin_v1", "not a StoreV1"]),
    "StoreV2": ({"SYMBOL": "ucm_store_plugin_v2"}, ["only one of StoreV2", "a newer ucm-store"]),
}


@pytest.mark.parametrize(("macros", "words"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_descriptor_is_refused(registered, tiny, macros, words):
    library = tiny(**macros)
    registered(Tiny=library)
    message = refusal(library, "Tiny")
    for word in ["refused", *words]:
        assert word in message


@pytest.mark.parametrize("theirs", [(0, 0), (0, 1), (1, 2)])
@pytest.mark.parametrize("ours", [(0, 0), (1, 2)])
def test_drafts_meet_only_their_like(monkeypatch, ours, theirs):
    monkeypatch.setattr(loader, "lib", types.SimpleNamespace(
        UCM_ABI_MAJOR=1, UCM_ABI_MINOR=ours[0], UCM_ABI_DRAFT=ours[1],
    ))  # fmt: skip
    plugin = types.SimpleNamespace(abi_major=1, abi_minor=theirs[0], abi_draft=theirs[1])
    if theirs in (ours, (0, 0)):
        return loader._check_draft("x.so", plugin)
    with pytest.raises(ucm.PluginError, match="a build for a draft"):
        loader._check_draft("x.so", plugin)
    return None


def test_a_draft_of_a_version_takes_no_later_one(monkeypatch):
    monkeypatch.setattr(loader, "lib", types.SimpleNamespace(
        UCM_ABI_MAJOR=1, UCM_ABI_MINOR=1, UCM_ABI_DRAFT=2,
    ))  # fmt: skip
    with pytest.raises(ucm.PluginError, match="upgrade ucm-store"):
        loader._check_draft("x.so", types.SimpleNamespace(abi_major=1, abi_minor=1, abi_draft=0))


def test_any_minor_version_loads(registered, tiny):
    registered(tiny(MINOR=7))
    (info,) = [info for info in ucm.plugins() if info.name == "Tiny"]
    assert (info.abi, info.error) == ("1.7", None)


UNSOUND = {
    "no store": ({"STORE": "0"}, "it is NULL"),
    "a short store": ({"STORE_SIZE": 40}, "struct_size is too small"),
    "short operations": ({"OPS_SIZE": 88}, "struct_size is too small"),
    "no lookup": ({"LOOKUP": "0"}, "its lookup is NULL"),
    "no remove": ({"CAPABILITIES": "UCM_CAP_REMOVE"}, "it can remove, but has no such slot"),
    "another capacity": ({"CAPACITY": 63}, "its capacity is 63, and that of its layout 64"),
}


@pytest.mark.parametrize(("macros", "words"), UNSOUND.values(), ids=UNSOUND.keys())
def test_a_store_that_is_not_sound_is_never_called(registered, tiny, macros, words):
    registered(Tiny=tiny(OPEN="unsound", **macros))
    with pytest.raises(ucm.PluginError, match=f"Tiny: its open returned no sound store: .*{words}"):
        ucm.open_pipeline("Tiny", block_size=64)


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


def in_a_folder(library):
    folder = library.parent / "folder"
    folder.mkdir(mode=0o755)
    return library.rename(folder / library.name)


def test_what_everybody_can_write_is_refused(registered, tiny):
    library = tiny()
    library.chmod(0o666)
    registered(Tiny=library)
    assert f"everybody can write {library}; chmod o-w" in refusal(library, "Tiny")


def test_a_library_in_a_folder_that_everybody_can_write_is_refused(registered, tiny):
    library = in_a_folder(tiny())
    library.parent.chmod(0o777)
    registered(Tiny=library)
    assert f"everybody can write {library.parent}; chmod o-w" in refusal(library, "Tiny")


def test_in_a_folder_with_the_sticky_bit_others_change_nothing(registered, tiny):
    library = in_a_folder(tiny())
    library.parent.chmod(0o1777)
    registered(library)
    assert "Tiny" in [info.name for info in ucm.plugins() if not info.error]


@pytest.mark.parametrize("whose", ["the file", "its folder", "a link to it"])
def test_what_another_user_owns_is_refused(registered, tiny, monkeypatch, whose):
    library = in_a_folder(tiny())
    link = library.parent.parent / "link.so"
    link.symlink_to(library)
    owned = {"the file": library, "its folder": library.parent, "a link to it": link}[whose]
    if os.geteuid() == 0:
        os.chown(owned, 12345, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    path = link if owned == link else library
    registered(Tiny=path)
    assert "belongs to another user (uid" in refusal(path, "Tiny")


def test_a_link_is_followed_to_what_everybody_can_write(registered, tiny):
    library = in_a_folder(tiny())
    link = library.parent.parent / "link.so"
    link.symlink_to(f"folder/../{library.parent.name}/{library.name}")
    library.parent.chmod(0o777)
    registered(Tiny=link)
    assert f"everybody can write {library.parent};" in refusal(link, "Tiny")


def test_what_a_group_can_write_is_warned_of(registered, tiny, caplog):
    library = tiny()
    library.chmod(0o664)
    registered(library)
    ucm.plugins()
    assert f"its group can write {library}; chmod g-w {library}" in caplog.text
    assert "Tiny" in [info.name for info in ucm.plugins() if not info.error]


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
