"""The README's Python and bash blocks work as they stand; so does the quickstart."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language):
    text = (ROOT / "README.md").read_text()
    return [code for found, code in BLOCK.findall(text) if found == language]


def run(command, cwd, **variables):
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", **variables}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_opens_with_one_sentence_and_an_example_of_about_ten_lines():
    _, sentence, heading = (ROOT / "README.md").read_text().split("\n\n")[:3]
    assert sentence.count(".") == 1
    assert heading.startswith("```python")
    assert len([line for line in blocks("python")[0].splitlines() if line]) <= 12


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code, tmp_path):
    run([sys.executable, "-c", code], tmp_path)


@pytest.mark.parametrize("code", blocks("bash"))
def test_bash(code, tmp_path):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    run(["bash", "-euo", "pipefail", "-c", code], tmp_path)


def test_the_targets_of_make_that_it_names_exist():
    text = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z][a-z0-9-]*)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_what_it_links_to_exists():
    for link in re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text()):
        assert (ROOT / link).exists(), link


def test_the_quickstart_computes_nothing_the_second_time(tmp_path):
    script = shutil.copy(ROOT / "examples" / "quickstart.py", tmp_path)
    command = [sys.executable, script, "kv"]
    assert "22 blocks: 0 loaded, 22 computed" in run(command, tmp_path)
    assert "22 blocks: 22 loaded, 0 computed" in run(command, tmp_path)
