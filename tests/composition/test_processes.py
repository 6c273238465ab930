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


FILES = """
import os, pathlib, sys, threading, ucm
from ucm.registry import registry

class Files(ucm.StoreBase):
    def lookup(self, block_ids):
        return [pathlib.Path(sys.argv[1], i.hex()).exists() for i in block_ids]
    def dump(self, block_ids, shard_index, shards):
        for block_id, shard in zip(block_ids, shards):
            pathlib.Path(sys.argv[1], block_id.hex()).write_bytes(b"".join(shard))

class Hangs(Files):
    def dump(self, *shards):
        inside.set()
        threading.Event().wait()

class Exits(Files):
    def dump(self, *shards):
        sys.exit(7)

inside = threading.Event()
for store in (Files, Hangs, Exits):
    registry().register(store.__name__, store)

def open(pipeline, **options):
    return ucm.open_pipeline(pipeline, block_size=64, cache_buffer_capacity_gb=0.01, **options)

def dump(store, *numbers):
    ids = [bytes([i] * 16) for i in numbers]
    return store.dump(ids, [0] * len(ids), [[bytes(64)]] * len(ids))
"""


@pytest.mark.parametrize("ending", ["", "sys.exit()", "raise SystemExit", "1 / 0"])
def test_a_python_store_below_still_stores_at_exit_what_was_accepted(run_python, folder, ending):
    code = f"{FILES}\nstore = open('Cache|Files')\ndump(store, *range(8))\n{ending}"
    done = run_python(code, folder, check=False, UC_LOGGER_LEVEL="warning")
    assert done.returncode == int(ending == "1 / 0"), done.stderr
    assert "was still open at exit" in done.stderr
    assert len(list(folder.iterdir())) == 8


@pytest.mark.parametrize("pipeline", ["Hangs", "Cache|Hangs"])
def test_a_python_store_that_hangs_does_not_hold_up_the_exit(run_python, folder, pipeline):
    code = f"{FILES}\ndump(open({pipeline!r}, timeout_ms=500), 1)\ninside.wait()"
    assert run_python(code, folder) == ""


def test_exit_inside_of_a_method_is_an_error_like_others(run_python, folder):
    code = f"{FILES}\nstore = open('Exits')\ntask = dump(store, 1)\ntask.poll(9999)\n"
    code += "print(task.results[0].status.name)\nstore.close()"
    assert run_python(code, folder) == "INTERNAL\n"


LATE = """
from ucm import _bridge
hangs, store = open("Hangs"), open("Compress|Files")
waits = [dump(hangs, i) for i in range(40)]
inside.wait()
_bridge._shut_all()  # as at the very end, when the interpreter is about to go
waits[-1].poll(9999)
print(waits[-1].results[0].status.name)
for call in (lambda: store.lookup([bytes(16)]), lambda: dump(hangs, 1)):
    try:
        call()
    except ucm.ClosedError as error:
        print(error, flush=True)
os._exit(0 if waits[0].poll(0) == ucm.Status.PENDING else 1)
"""


def test_when_the_interpreter_ends_what_waits_and_what_comes_is_closed(run_python, folder):
    done = run_python(FILES + LATE, folder)
    assert done == "CLOSED\n" + "the Python interpreter has ended\n" * 2


CHILD = """
store = open("Cache|Files")
store.wait(dump(store, 1))
child = os.fork()
if child == 0:
    from ucm._abi import ffi, lib
    error = ffi.new("ucm_error *", {"struct_size": ffi.sizeof("ucm_error")})
    bottom = store._service.stack._stores[-1]
    args = (bottom, 0, 1, ffi.new("uint8_t[16]"), ffi.NULL, 0, ffi.NULL, ffi.NULL, error)
    print(ucm.Status(lib.ucmh_lookup(*args)).name, flush=True)
    mine = open("Compress|Files")
    print(mine.lookup([b"\1" * 16]), flush=True)
    mine.close()
    sys.exit(0)
print("exit", os.waitpid(child, 0)[1])
store.wait(dump(store, 2))
store.close()
print(len(os.listdir(sys.argv[1])))
"""


def test_a_forked_child_leaves_the_parents_python_store_alone(run_python, folder):
    assert run_python(FILES + CHILD, folder).split("\n")[:-1] == [
        "INVALID",
        "[True]",
        "exit 0",
        "2",
    ]
