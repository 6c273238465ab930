"""Signals, exits, forks and logs, each in a process of its own."""

import re

import pytest

import ucm
from ucm import logs

CTRL_C = """
import os, signal, sys, threading, ucm
from ucm.registry import registry

awake = threading.Event()

class Sleeper(ucm.StoreBase):
    def lookup(self, block_ids): return [False] * len(block_ids)
    def dump(self, *shards): awake.wait()

registry().register("Sleeper", Sleeper)
store = ucm.open_pipeline("Sleeper", block_size=64)
task = store.dump([bytes(16)], [0], [[bytes(64)]])
# A shell that runs its jobs in the background hands SIGINT down ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    {call}
except KeyboardInterrupt:
    print("interrupted", task.done())
awake.set()
{call}
task.poll(10**6)
print(task.results[0].status.name)
store.close()
"""


@pytest.mark.parametrize("call", ["store.wait(task, 10**9)", "store.drain(10**9)", "store.close()"])
def test_ctrl_c_ends_a_wait_and_nothing_else(run_python, call):
    assert run_python(CTRL_C.format(call=call)) == "interrupted False\nOK\n"


DUMP = """
import logging, sys, ucm
store = ucm.open_pipeline(
    "Cache|Posix", storage_backends=sys.argv[1], block_size=1 << 20, cache_buffer_capacity_gb=0.05)
for i in range(8):
    store.dump([bytes([i] * 16)], [0], [[bytes([i]) * (1 << 20)]])
"""


def found(folder):
    with ucm.open_pipeline("Posix", storage_backends=str(folder), device_id=-1) as store:
        return sum(store.lookup([bytes([i] * 16) for i in range(8)]))


def test_an_unclosed_store_is_closed_at_exit_and_said_so(run_python, folder):
    done = run_python(DUMP, folder, check=False, UC_LOGGER_LEVEL="warning")
    assert done.returncode == 0, done.stderr
    assert "<Store 'Cache|Posix'> was still open at exit" in done.stderr
    assert found(folder) == 8


def test_a_closed_store_says_nothing_at_exit(run_python, folder):
    done = run_python(f"{DUMP}\nstore.close()", folder, check=False, UC_LOGGER_LEVEL="warning")
    assert (done.returncode, done.stderr) == (0, "")
    assert found(folder) == 8


def test_an_exception_still_stores_what_was_accepted(run_python, folder):
    done = run_python(f"{DUMP}\nraise ValueError('oops')", folder, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: oops")
    assert found(folder) == 8


def test_a_store_that_is_dropped_is_harmless(run_python, folder):
    code = f"{DUMP}\nimport gc\ndel store\ngc.collect()\nprint('alive')"
    assert run_python(code, folder) == "alive\n"
    assert found(folder) == 8


FORK = """
import os
store.drain()
child = os.fork()
if child == 0:
    try:
        store.lookup([bytes(16)])
    except ucm.InvalidError as error:
        print("child:", error, flush=True)
    mine = ucm.open_pipeline("Posix", storage_backends=sys.argv[1], block_size=1 << 20)
    print("child:", mine.lookup([bytes(16)]), flush=True)
    mine.close()
    sys.exit(0)
print("exit", os.waitpid(child, 0)[1])
memory = bytearray(1 << 20)
store.wait(store.load([b"\\3" * 16], [0], [[memory]]))
print("parent:", memory == b"\\3" * (1 << 20))
store.close()
"""


def test_a_forked_child_exits_without_touching_the_parents_store(run_python, folder):
    lines = run_python(DUMP + FORK, folder).splitlines()
    assert lines[0].startswith("child: <Store 'Cache|Posix'> was opened by the parent process")
    assert lines[1:] == ["child: [True]", "exit 0", "parent: True"]


def test_debug_logs_have_the_known_form(run_python, folder):
    done = run_python(f"{DUMP}\nstore.close()", folder, check=False, UC_LOGGER_LEVEL="debug")
    for layer in ("Cache", "Posix"):
        for rest in (r"dispatching\.", r"finished, cost [\d.]+ms\."):
            line = rf"^\[UC\]\[D\] {layer} task\(\d+,\w+,\d+,\d+\) {rest} \[\d+,\d+\]$"
            assert re.search(line, done.stderr, re.MULTILINE), (line, done.stderr)


def test_by_default_nothing_is_logged(run_python, folder):
    done = run_python(f"{DUMP}\nstore.close()", folder, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wrong_log_level_is_said(run_python):
    code = "import logging; logging.basicConfig(); import ucm.logs"
    done = run_python(code, check=False, UC_LOGGER_LEVEL="loud")
    assert "UC_LOGGER_LEVEL=loud is not one of" in done.stderr


def test_native_messages_reach_logging(folder, caplog):
    with ucm.open_pipeline("Posix", storage_backends=str(folder), block_size=4096) as store:
        store.wait(store.dump([bytes(16)], [0], [[bytes(4096)]]))
        (path,) = folder.glob(f"*/*/000/{bytes(16).hex()}")
        path.write_bytes(path.read_bytes()[:-1] + b"!")
        with pytest.raises(ucm.CorruptError):
            store.wait(store.load([bytes(16)], [0], [[bytearray(4096)]]))
    logs.flush()
    records = [record for record in caplog.records if record.name == "ucm.Posix"]
    record = next(record for record in records if record.levelname != "INFO")
    assert record.levelname == "WARNING"
    assert bytes(16).hex() in record.getMessage()
