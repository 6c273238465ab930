"""What the documents show is run, and their tables are whole.

The snippets of a page run in its order, in one folder. A comment before a fence says more:
``<!-- file: NAME -->`` keeps it under this name, ``<!-- not run: REASON -->`` leaves it out.
"""

import inspect
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT, compile_library

import ucm
from ucm import errors

PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "*/*/*.md", "benchmarks/*.md")
    for page in ROOT.glob(pattern)
    if not page.relative_to(ROOT).parts[0].startswith((".", "build", "tests"))
)
FENCE = re.compile(
    r"^(?:<!-- (?P<word>file|not run): (?P<said>[^\n]+) -->\n)?"
    r"```(?P<language>[^\n]*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NOT_RUN = {
    ("CONTRIBUTING.md", "$ make test"): "is this test",
    ("README.md", "$ make demo"): "builds the package, and is this test",
    ("README.md", "vllm serve MODEL"): "needs vLLM",
    (
        "docs/performance.md",
        '$ make bench-posix ARGS="--write docs/performance.md"',
    ): "takes an hour, and installs peers",
    (
        "docs/performance.md",
        "$ cc -O2 -pthread benchmarks/publish_cost.c -o publish_cost",
    ): "makes 200,000 files",
    (
        "docs/performance.md",
        '$ make bench-cache ARGS="--write docs/performance.md"',
    ): "takes half an hour, and installs peers",
    (
        "docs/performance.md",
        '$ make bench-codec ARGS="--write docs/performance.md"',
    ): "takes ten minutes, and installs peers",
    (
        "docs/performance.md",
        "$ python benchmarks/compress_pays.py",
    ): "needs root, cgroup 1 and some minutes",
    ("docs/metrics.md", "$ curl -s localhost:8000/metrics | grep ^ucm:"): "needs vLLM",
    ("docs/vllm.md", "vllm serve MODEL"): "needs vLLM",
    ("docs/nfs.md", "$ make nfs"): "boots a machine, half an hour",
    ("docs/ds3fs.md", "ucm_connectors:"): "needs 3FS",
    ("docs/ds3fs.md", "$ python benchmarks/ds3fs_counts.py"): "some minutes, and perf",
    ("docs/ds3fs.md", "$ python benchmarks/plan_3fs.py"): "a minute",
    ("docs/debugging-a-plugin.md", "export UCM_PLUGINS=$PWD/heap.so"): "needs gdb",
    ("docs/quickstart.md", "$ pip install . numpy"): "builds the package",
    ("docs/conformance.md", "pytest"): "takes a minute; tests/contract runs it",
    ("examples/c_store/README.md", "pip install ucm-store"): "builds the package",
    ("examples/cpp_store/README.md", "pip install ucm-store"): "builds the package",
    ("examples/encrypt_store/README.md", "pip install ."): "builds the package",
    (
        "examples/encrypt_store/README.md",
        'store_pipeline: "Cache|Compress|Encrypt|Posix"',
    ): "needs the package",
    (
        "examples/encrypt_store/README.md",
        "pytest examples/encrypt_store/tests",
    ): "needs the package",
    ("examples/hybrid_store/README.md", "pip install ."): "builds the package",
    ("examples/hybrid_store/README.md", "pytest examples/hybrid_store/tests"): "needs the package",
    ("examples/python_layer/README.md", "pip install ucm-store"): "builds the package",
    ("examples/python_store/README.md", "pip install ucm-store"): "builds the package",
    (
        "examples/mooncake_store/README.md",
        "pip install ./examples/mooncake_store mooncake-transfer-engine-non-cuda",
    ): "needs a cluster",
    (
        "examples/mooncake_store/README.md",
        'store_pipeline: "Cache|UcmMooncakeStore"',
    ): "needs a cluster",
    ("examples/mooncake_store/README.md", "ucm bench"): "needs a cluster",
    (
        "examples/mooncake_store/README.md",
        "pip install './examples/mooncake_store[test]'",
    ): "needs the package",
    ("examples/notebook/README.md", "pip install ucm-store numpy jupyterlab"): "is an editor",
    ("examples/redis_store/README.md", "pip install ./examples/redis_store"): "needs a server",
    ("examples/redis_store/README.md", 'store_pipeline: "Cache|Redis"'): "needs a server",
    ("examples/redis_store/README.md", "ucm bench"): "needs a server",
    (
        "examples/redis_store/README.md",
        "pip install './examples/redis_store[test]'",
    ): "needs the package",
    ("examples/rust_store/README.md", "pip install ."): "builds the package",
    ("examples/rust_store/README.md", "pytest examples/rust_store/tests"): "needs the package",
}


def read(page):
    return (ROOT / page).read_text()


def fences(page):
    return [m.groupdict() for m in FENCE.finditer(read(page))]


def run(command, cwd, **variables):
    scripts = str(Path(sys.executable).parent)
    env = {**os.environ, "PATH": f"{scripts}:{os.environ['PATH']}", **variables}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}{done.stderr}"


def run_python(code, name, cwd):
    code_or_file = [cwd / name] if name else ["-c", code]
    run([sys.executable, *code_or_file], cwd)


def run_bash(code, name, cwd):
    run(["bash", "-euo", "pipefail", "-c", code], cwd)


def run_console(code, name, cwd):
    for line in code.splitlines():
        if line.startswith("$ "):
            run_bash(line[2:], name, cwd)


def try_yaml(code, name, cwd):
    """Open what it configures; its directories are made under the working directory."""
    code = code.replace("/mnt/", f"{cwd}/mnt/")
    for folder in re.findall(rf"{cwd}/mnt/\w+", code):
        Path(folder).mkdir(parents=True, mode=0o700, exist_ok=True)
    file = cwd / (name or "config.yaml")
    file.write_text(code)
    if "ucm_connectors:" in code:
        run(["ucm", "check", file], cwd)
    else:
        run_python(f"import ucm; ucm.open_pipeline({str(file)!r}).close()", None, cwd)


def compile_cpp(code, name, cwd):
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", f"-I{ucm.get_include()}"]
    run(["c++", *flags, "-fsyntax-only", cwd / name], cwd)


def compile_c(code, name, cwd):
    """What it leaves out is declared and nowhere defined, of which gcc warns."""
    run(["cc", "-std=c11", "-Wall", f"-I{ucm.get_include()}", "-fsyntax-only", cwd / name], cwd)


HOW = {
    "c": compile_c,
    "python": run_python,
    "bash": run_bash,
    "sh": run_bash,
    "console": run_console,
    "yaml": try_yaml,
    "cpp": compile_cpp,
    "toml": lambda code, name, cwd: None,  # an excerpt of what tests of packages install
    "text": lambda code, name, cwd: None,  # no code
    "{eval-rst}": lambda code, name, cwd: None,  # Sphinx runs it
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder but for the examples, and one in an example's own for its page."""

    def prepare(page):
        home = ROOT / page
        if home.parent.parent != ROOT / "examples":
            (tmp_path / "examples").symlink_to(ROOT / "examples")
            return tmp_path
        shutil.copytree(home.parent, tmp_path / "example")
        if home.parent.name == "c_store":  # as if it were installed
            library = compile_library(home.with_name("heap.c"), tmp_path / "heap.so")
            monkeypatch.setenv("UCM_PLUGINS", str(library))
        return tmp_path / "example"

    return prepare


@pytest.mark.parametrize("page", [page for page in PAGES if fences(page)])
def test_the_snippets_of(page, folder):
    cwd = folder(page)
    for fence in fences(page):
        name = fence["said"] if fence["word"] == "file" else None
        if name:
            (cwd / name).write_text(fence["code"])
        if fence["word"] != "not run":
            HOW[fence["language"]](fence["code"], name, cwd)
        elif fence["language"] != "console":
            run(["bash", "-n", "-c", fence["code"]], cwd)


@pytest.mark.parametrize("example", ["ucm_config_example.yaml", "vllm/ucm.yaml"])
def test_the_configuration(example, tmp_path):
    try_yaml((ROOT / "examples" / example).read_text(), None, tmp_path)


def test_few_snippets_are_not_run():
    found = {
        (page, fence["code"].splitlines()[0].partition("  ")[0].partition(" --")[0]): fence["said"]
        for page in PAGES
        for fence in fences(page)
        if fence["word"] == "not run"
    }
    assert found == NOT_RUN


def test_there_are_no_snippets_of_other_shapes():
    for page in PAGES:
        assert read(page).count("```") == 2 * len(fences(page)), page
        assert not re.search(r"\n\n    \S", FENCE.sub("", read(page))), f"{page}: indented code"


def test_the_targets_of_make_exist():
    makefile = read("Makefile")
    for page in PAGES:
        for target in set(re.findall(r"(?:`|\$ )make ([a-z][a-z0-9-]*)", read(page))):
            assert re.search(rf"^(?:\S+ )*{target}[ :]", makefile, re.MULTILINE), (page, target)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)[^):]*\)", read(page)):
            assert (ROOT / page).parent.joinpath(link).exists(), (page, link)


def test_the_index_has_every_page():
    links = re.findall(r"\]\(([^)]+)\)", read("docs/index.md"))
    listed = {os.path.normpath(f"docs/{link}") for link in links}
    assert listed == set(PAGES) - {"docs/index.md"}


def rows_of(page, heading):
    """Return the first cells of the tables under a heading."""
    section = read(page).partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [row.strip("` ") for row in re.findall(r"^\| (.+?) \|", section, re.MULTILINE)][2:]


def test_every_status_of_the_header_is_explained():
    header = (Path(ucm.get_include()) / "ucm" / "store_v1.h").read_text()
    statuses = header.partition("typedef int32_t ucm_status;")[2].partition("};")[0]
    assert rows_of("docs/errors.md", "Statuses") == re.findall(r"UCM_(\w+) = \d+", statuses)


def test_every_class_of_error_is_explained():
    classes = [
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, errors.StoreError)
    ]
    assert sorted(rows_of("docs/errors.md", "Classes")) == sorted(classes)


def test_statuses_are_told_with_their_class():
    page = read("docs/errors.md")
    for status in errors.Status:
        if status != errors.Status.OK:
            name = type(errors.error_for(status, "")).__name__
            assert re.search(rf"^\| {status.name} \| {status} \| `{name}`", page, re.MULTILINE)


def test_every_public_name_is_in_the_reference():
    page = read("docs/api.md")
    for name in ucm.__all__:
        assert name == "__version__" or re.search(rf":: {name}(\(\))?$", page, re.MULTILINE), name


def test_every_environment_variable_is_listed():
    sources = [p for tree in ("ucm", "plugins") for p in (ROOT / tree).rglob("*.[ph]*")]
    texts = [p.read_text() for p in sources if p.suffix in (".py", ".h", ".hpp", ".cpp")]
    asking = [text for text in texts if "environ" in text or "getenv" in text]
    names = {name for text in asking for name in re.findall(r'"(UCM?_[A-Z_]+)"', text)}
    names -= set(re.findall(r"`(UCM_CONFORMANCE_\w+)`", read("docs/conformance.md")))
    assert set(rows_of("docs/options.md", "Environment variables")) == names
