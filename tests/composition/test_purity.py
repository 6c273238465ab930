"""What is imported and opened, and when."""

HEAVY = "{'torch', 'numpy', 'asyncio', 'rich', 'click', 'pydantic', 'yaml', 'pluggy'}"
LOADED = (
    "maps = open('/proc/self/maps').read()\n"
    "print(sorted(n for n in ('cache', 'compress', 'empty', 'fake', 'posix') "
    "if f'/ucm/plugins/{n}.so' in maps))"
)


def test_importing_ucm_imports_nothing_heavy(run_python):
    code = f"import sys, ucm; dir(ucm); print({HEAVY} & set(sys.modules))"
    assert run_python(code) == "set()\n"


def test_moving_blocks_needs_neither_numpy_nor_torch(run_python):
    code = """
import sys, ucm
with ucm.open_pipeline("Cache|Fake", block_size=64, cache_buffer_capacity_gb=0.01) as store:
    store.wait(store.dump([bytes(16)], [0], [[bytes(64)]]))
    store.lookup([bytes(16)])
print({'torch', 'numpy', 'rich', 'click', 'pydantic', 'yaml'} & set(sys.modules))
"""
    assert run_python(code) == "set()\n"


def test_a_library_is_opened_when_it_is_named(run_python):
    code = f"""
import ucm
store = ucm.open_pipeline("Empty", block_size=64, io_direct=True)
{LOADED}
with ucm.open_pipeline("Compress|Fake", block_size=64):
    pass
{LOADED}
store.close()
"""
    assert run_python(code) == "['empty']\n['compress', 'empty', 'fake']\n"


def test_an_unknown_word_opens_no_library(run_python):
    code = f"""
import ucm
try:
    ucm.open_pipeline("Cache|Posic", block_size=64)
except ucm.ConfigError as error:
    assert "did you mean 'Posix'" in str(error), error
{LOADED}
"""
    assert run_python(code) == "[]\n"


def test_an_unknown_key_opens_no_store(run_python, tmp_path):
    code = """
import os, sys, threading, ucm
try:
    ucm.open_pipeline("Posix", storage_backends=sys.argv[1], block_size=64, io_dirct=True)
except ucm.ConfigError:
    print(os.listdir(sys.argv[1]), threading.active_count(), len(os.listdir("/proc/self/task")))
"""
    folder = tmp_path / "kv"
    folder.mkdir()
    assert run_python(code, folder) == "[] 1 1\n"


def test_every_public_name_is_there(run_python):
    code = "import ucm; print([n for n in ucm.__all__ if not hasattr(ucm, n)], len(ucm.__all__))"
    assert run_python(code).startswith("[] ")
