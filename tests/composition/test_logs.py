"""Logs: the known lines, files of every process's own, bursts cut short, no crash on bad values."""

import logging
import re

import pytest

from ucm.logs import Limiter

# What a native thread says, without a store: NAME, level 0 to 3, text, count.
SAY = """
import sys, time
from ucm import logs
from ucm._abi import lib
def say(name, level, text, count=1):
    host = lib.ucmh_host()
    for _ in range(count):
        if level >= host.log_level(host.ctx):
            host.log(host.ctx, level, name, text)
logs.start()
"""
MOVE = """
import os, sys, ucm
with ucm.open_pipeline("Cache|Posix", storage_backends=sys.argv[1], block_size=4096,
                       cache_buffer_capacity_gb=0.01) as store:
    store.wait(store.dump([bytes(16)], [0], [[bytes(4096)]]))
    store.drain()
    print(os.getpid(), *os.listdir("/proc/self/task"))
"""


@pytest.fixture
def log_folder(tmp_path):
    return tmp_path / "log" / "ucm"


def test_a_task_is_logged_as_it_starts_and_ends_by_the_thread_that_does_it(run_python, folder):
    done = run_python(MOVE, folder, check=False, UC_LOGGER_LEVEL="debug")
    pid, *threads = done.stdout.split()
    line = r"\[UC\]\[D\] (\w+) task\((\d+),(\w+),1,4096\) (\w+).*\. \[(\d+),(\d+)\]"
    found = re.findall(line, done.stderr)
    said = {(layer, operation, what) for layer, _, operation, what, _, _ in found}
    assert said == {
        ("Cache", "DUMP", "dispatching"),
        ("Cache", "DUMP", "finished"),
        ("Posix", "Cache2Backend", "dispatching"),
        ("Posix", "Cache2Backend", "finished"),
    }
    assert {process for *_, process, _ in found} == {pid}
    by = {(layer, what): thread for layer, _, _, what, _, thread in found}
    assert set(by.values()) <= set(threads)
    assert by["Cache", "dispatching"] == pid
    assert by["Posix", "finished"] != pid
    assert re.search(r"finished, cost [\d.]+ms\. \[", done.stderr)


@pytest.mark.parametrize(
    ("level", "shown"), [("debug", "DIWE"), ("info", "IWE"), ("Warning", "WE"), ("ERROR", "E")]
)
def test_a_level_shows_what_is_as_grave_or_graver(run_python, level, shown):
    code = f'{SAY}\nfor i in range(4): say(b"Heap", i, b"something")'
    done = run_python(code, check=False, UC_LOGGER_LEVEL=level)
    assert "".join(re.findall(r"^\[UC\]\[(.)\] something \[", done.stderr, re.M)) == shown


def test_messages_go_to_the_logger_of_their_layer(run_python):
    code = f"""
import logging, sys
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stdout)
{SAY}
say(b"Heap", 2, b"100% of it")
"""
    assert run_python(code) == "ucm.Heap WARNING 100% of it\n"


def test_every_process_writes_a_file_of_its_own(run_python, log_folder):
    code = f"""{SAY}
import os
say(b"Heap", 1, b"parent")
logs.flush()
child = os.fork()
if child == 0:
    logs.start()
    say(b"Heap", 2, b"child")
    logs.flush()
    os._exit(0)
os.waitpid(child, 0)
say(b"Heap", 3, b"parent again")
print(os.getpid(), child)
"""
    parent, child = run_python(code, UCM_LOG_PATH=str(log_folder)).split()
    lines = {}
    for path in log_folder.iterdir():
        pid = re.fullmatch(r"ucm-.+-(\d+)\.log", path.name)[1]
        lines[pid] = [
            re.fullmatch(rf"[\d-]+ [\d:.]+ (\[UC\]\[.\] .*) \[{pid},\d+\]", line)[1]
            for line in path.read_text().splitlines()
        ]
    assert lines == {
        parent: ["[UC][I] parent", "[UC][E] parent again"],
        child: ["[UC][W] child"],
    }


def test_a_process_that_says_nothing_makes_no_file(run_python, log_folder):
    run_python("import ucm.store_api", UCM_LOG_PATH=str(log_folder))
    assert list(log_folder.iterdir()) == []


@pytest.mark.parametrize("files", [1, 3])
def test_files_are_bounded_in_size_and_number(run_python, log_folder, files):
    code = f"{SAY}\nfor i in range(3000): logs.logger.warning('line %d', i)"
    variables = {"UCM_LOG_MAX_FILES": str(files), "UCM_LOG_MAX_SIZE": "0.01"}
    run_python(code, UCM_LOG_PATH=str(log_folder), **variables)
    found = sorted(log_folder.iterdir())
    assert len(found) == files
    assert all(path.stat().st_size <= 0.01 * 2**20 for path in found)
    assert "line 2999" in found[0].read_text()


def test_files_of_processes_that_ended_are_bounded_and_of_living_ones_kept(run_python, log_folder):
    log_folder.mkdir(parents=True)
    other = log_folder / "somebody-elses.log"
    other.touch()
    code = f"""{SAY}
import os, subprocess
logs.logger.warning("first")
for _ in range(5):
    subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
print(os.getpid())
"""
    child = "from ucm import logs; logs.logger.warning('child')"
    variables = {"UCM_LOG_PATH": str(log_folder), "UCM_LOG_MAX_FILES": "2"}
    pid = run_python(code, child, **variables).strip()
    names = {path.name for path in log_folder.iterdir()}
    assert other.name in names
    assert any(name.endswith(f"-{pid}.log") for name in names)
    # Two of processes that had ended when the last one began, that one, and the first.
    assert len(names - {other.name}) == 4


WRONG = {
    "UC_LOGGER_LEVEL=loud": "is not one of debug, info, warning, error; info is used",
    "UCM_LOG_MAX_FILES=many": "is not a whole number from 1 to 1000000; 10 is used",
    "UCM_LOG_MAX_FILES=0": "is not a whole number from 1 to 1000000; 10 is used",
    "UCM_LOG_MAX_SIZE=nan": "is not a number of MB from 0.001 to 1000000; 5 is used",
    "UCM_LOG_MAX_SIZE=-1": "is not a number of MB from 0.001 to 1000000; 5 is used",
    "UCM_LOG_PATH=/proc/nowhere": "cannot be written: No such file or directory; no file is",
    "UCM_LOG_PATH=/dev/null": "cannot be written: File exists; no file is",
}


@pytest.mark.parametrize("given", WRONG)
def test_a_wrong_value_is_said_and_the_rest_works(run_python, log_folder, given):
    name, _, value = given.partition("=")
    variables = {"UCM_LOG_PATH": str(log_folder), name: value}
    done = run_python(f'{SAY}\nlogs.logger.error("works")', check=False, **variables)
    assert done.returncode == 0
    (line,) = [line for line in done.stderr.splitlines() if given in line]
    assert line.startswith("[UC][W] ")
    assert WRONG[given] in line
    if name != "UCM_LOG_PATH":
        (path,) = log_folder.iterdir()
        assert "works" in path.read_text()


def test_a_file_that_cannot_be_written_is_said_once(run_python, log_folder):
    code = f"""{SAY}
import os
os.rmdir({str(log_folder)!r})
for _ in range(3): logs.logger.error("lost")
"""
    done = run_python(code, check=False, UCM_LOG_PATH=str(log_folder))
    assert (done.returncode, done.stderr.count("is not written")) == (0, 1)


def test_a_burst_is_cut_and_the_rest_is_counted(run_python):
    code = f"""{SAY}
for i in range(300):
    say(b"Heap", 2, f"block {{i:032x}} is corrupt".encode())
    if i % 100 == 99: logs.flush()
say(b"Heap", 2, b"something else")
"""
    done = run_python(code, check=False, UC_LOGGER_LEVEL="info")
    lines = done.stderr.splitlines()
    assert len(lines) == Limiter.BURST + 2
    assert "something else" in lines[-2]
    assert f"290 more like this were left out: block {299:032x} is corrupt [" in lines[-1]


def test_lines_that_came_too_fast_are_counted(run_python):
    code = f"""{SAY}
import logging
logging.getLogger("ucm").handlers[-1].acquire()  # the reader waits at its first line
say(b"Heap", 1, b"line", 2000)
logging.getLogger("ucm").handlers[-1].release()
logs.flush()
say(b"Heap", 1, b"last")
"""
    done = run_python(code, check=False, UC_LOGGER_LEVEL="info")
    dropped = re.findall(r"\[W\] (\d+) log lines were dropped: they came faster", done.stderr)
    left_out = re.findall(r"(\d+) more like this were left out: line", done.stderr)
    shown = len(re.findall(r"^\[UC\]\[I\] line ", done.stderr, re.M))
    assert shown == Limiter.BURST
    assert dropped
    assert sum(map(int, dropped + left_out)) + shown == 2000


def admitted(limiter, texts, level=logging.WARNING, now=0.0):
    return sum(limiter.admit("Heap", level, text, now) for text in texts)


def test_warnings_are_alike_when_only_ids_and_numbers_differ():
    limiter = Limiter()
    assert admitted(limiter, [f"shard {i} of block {i:032x}: short" for i in range(50)]) == 10
    assert admitted(limiter, [f"shard {i} of block {i:032x}: lost" for i in range(50)]) == 10
    assert [text[:2] for _, _, text in limiter.left_out(10.0)] == ["40", "40"]


def test_debug_lines_are_alike_when_they_are_equal():
    limiter = Limiter()
    assert admitted(limiter, [f"task({i}) dispatching" for i in range(50)], logging.DEBUG) == 50
    assert admitted(limiter, ["task(0) dispatching"] * 50, logging.DEBUG) == 9


def test_after_the_window_messages_are_shown_again():
    limiter = Limiter()
    assert admitted(limiter, ["full"] * 15) == 10
    assert limiter.left_out(9.9) == []
    assert admitted(limiter, ["full"] * 15, now=10.0) == 10
    more = ("Heap", logging.WARNING, "5 more like this were left out: full")
    assert limiter.left_out(10.0) == [more]
    assert limiter.left_out(20.0) == [more]
    assert limiter.left_out(99.0) == []


def test_what_the_limiter_remembers_is_bounded():
    limiter = Limiter()
    for i in range(10 * Limiter.KINDS):
        assert admitted(limiter, [f"{i:b}".translate({48: "a", 49: "b"})] * 11) == 10
    assert len(limiter._kinds) == Limiter.KINDS
    assert len(limiter.left_out(10.0)) == 10 * Limiter.KINDS
