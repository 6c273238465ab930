"""``ucm new-plugin``: what it writes is whole. `make packages` builds and tests it as a package."""

import re
import sys

import pytest

OLD = {"c": "heap", "cpp": "attic", "python": "notes", "layer": "flip"}


def write(ucm_command, kind, folder, name="acme"):
    done = ucm_command("new-plugin", name, f"--{kind}", "--into", str(folder), "--json")
    assert done.code == 0, done.err
    return done.json


@pytest.mark.parametrize("kind", OLD)
def test_nothing_of_the_template_s_name_is_left(ucm_command, tmp_path, kind):
    made = write(ucm_command, kind, tmp_path / "made")
    texts = [(path, (tmp_path / path).read_text()) for path in made["files"]]
    assert len(texts) >= 4
    assert not [path for path, text in texts if OLD[kind] in (path + text).lower()]
    assert any("pyproject.toml" in path for path, _ in texts)
    assert any("Acme" in text for _, text in texts)


@pytest.mark.parametrize("into", [(), ("--into", "a/b")])
def test_the_lines_that_it_prints_name_the_folder_and_not_a_package_of_an_index(
    ucm_command, tmp_path, monkeypatch, into
):
    monkeypatch.chdir(tmp_path)
    done = ucm_command("new-plugin", "acme", "--python", *into)
    install, _, tests, _ = [line.strip() for line in done.out.splitlines()[1:]]
    target = install.removeprefix("pip install ")
    assert target.startswith("./")
    assert (tmp_path / target / "pyproject.toml").exists()
    assert (tmp_path / tests.removeprefix("pytest ") / "test_acme.py").exists()


@pytest.mark.parametrize("kind", OLD)
def test_who_builds_a_library_is_told_where_its_header_is(ucm_command, tmp_path, kind):
    (first, *_) = write(ucm_command, kind, tmp_path / "made")["next"]
    assert first.startswith("export PKG_CONFIG_PATH=" if kind in ("c", "cpp") else "pip install ")


@pytest.mark.parametrize("kind", OLD)
def test_its_tests_import_nothing_that_installing_it_does_not_bring(ucm_command, tmp_path, kind):
    made = tmp_path / "made"
    write(ucm_command, kind, made)
    tests = next((made / "tests").glob("test_*.py")).read_text()
    found = set(re.findall(r"^(?:import|from) (\w+)", tests, re.MULTILINE))
    others = found - {"ucm", "pytest"} - sys.stdlib_module_names
    needs = re.search(r"^dependencies = (.*)", (made / "pyproject.toml").read_text(), re.MULTILINE)
    assert all(f'"{name}"' in needs[1] for name in others)


@pytest.mark.parametrize("name", ["a-b", "1st", "", "a b"])
def test_a_word_that_no_pipeline_can_name_is_refused(ucm_command, tmp_path, name):
    done = ucm_command("new-plugin", name, "--c", "--into", str(tmp_path / "made"))
    assert done.code == 2
    assert "letter" in done.err


def test_a_word_that_is_taken_is_refused(ucm_command, tmp_path):
    done = ucm_command("new-plugin", "posix", "--c", "--into", str(tmp_path / "made"))
    assert done.code == 2
    assert "ucm plugins Posix" in done.err


def test_files_that_are_there_are_left_alone(ucm_command, tmp_path):
    (tmp_path / "mine").write_text("mine")
    done = ucm_command("new-plugin", "acme", "--c", "--into", str(tmp_path))
    assert done.code == 2
    assert "--into" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_language_has_to_be_said(ucm_command, tmp_path):
    done = ucm_command("new-plugin", "acme")
    assert done.code == 2
    assert "--cpp" in done.err
