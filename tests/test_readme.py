"""The README is short at the top, and the quickstart works. Its snippets: see test_docs.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(command, cwd, **variables):
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", **variables}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_opens_with_one_sentence_and_an_example_of_about_ten_lines():
    _, sentence, rest = (ROOT / "README.md").read_text().split("\n\n", 2)
    assert sentence.count(".") == 1
    fence, _, code = rest.partition("\n")
    assert fence == "```python"
    assert len([line for line in code.partition("```")[0].splitlines() if line]) <= 12


def test_the_quickstart_computes_nothing_the_second_time(tmp_path):
    script = shutil.copy(ROOT / "examples" / "quickstart.py", tmp_path)
    command = [sys.executable, script, "kv"]
    assert "22 blocks: 0 loaded, 22 computed" in run(command, tmp_path)
    assert "22 blocks: 22 loaded, 0 computed" in run(command, tmp_path)
