"""The suite finds a store that breaks a promise, and names the promise."""

import json
from pathlib import Path

import pytest
from support import ROOT, compile_library

HERE = Path(__file__).parent
HEAP_SOURCE = ROOT / "examples" / "c_store" / "heap.c"
# Runs the suite on one store after the other: a process costs more than a run.
RUN = """\
import json, sys, pytest
suite = ["-q", "-p", "no:cacheprovider", "-p", "no:timeout", "--pyargs", "ucm.conformance"]
for arguments in json.loads(sys.argv[1]):
    pytest.main([*suite, *arguments])
"""

# What each breaks, and tests enough to see it.
BROKEN = {
    "WrongBytes": ("BYTES", "any_order"),
    "WrongInPieces": ("BYTES", "misses_one"),
    "SegmentsMixed": ("SEGMENTS", "keep_their_order"),
    "LengthsIgnored": ("LENGTHS", "shorter_shards"),
    "SeenEarly": ("WHOLE", "last_missing_shard or misses_one"),
    "LastCopyWins": ("FIRST", "first_wins"),
    "ShortNames": ("LOOKUP", "differ_in_one_bit"),
    "NeverForgets": ("REMOVE", "removed_block_is_absent"),
    "Racy": ("THREADS", "eight_threads"),
    "ErrorsLost": ("ALONE", "fails_alone or results_name"),
    "ClosesEarly": ("CLOSES", "close_finishes"),
    "Unchecked": ("DAMAGE", "under_an_open_store"),
    "InPlace": ("KILLED", "is_killed"),
    "ErrorsHidden": ("FAILS", "files_that_fail"),
    "PublishesInVain": ("FAILS", "whichever_call_failed"),
}
FOLDERS = ("ClosesEarly", "Unchecked", "InPlace", "ErrorsHidden", "PublishesInVain")
IN_FOLDER = ["--ucm-option", "folder={tmp}", "--ucm-files", "{tmp}/{id}"]
HASTE = ["--ucm-timeout", "0.4"]
ENOUGH = " or ".join(tests for _, tests in BROKEN.values())


@pytest.fixture
def cards(run_python, tmp_path):
    """Run the suite on stores, in one process; return their score cards."""

    def run(*runs, **variables):
        arguments = []
        for name, tests, *more in runs:
            options = IN_FOLDER if name in FOLDERS else []
            report = ["--ucm-report", f"{name}.json", "--basetemp", f"of-{name}"]
            pipeline = ["--ucm-pipeline", "Heap" if name == "Heap" else f"broken_stores:{name}"]
            arguments.append([*pipeline, "-k", tests, *options, *report, *more])
        path = [HERE, HERE / "broken"]
        done = run_python(RUN, json.dumps(arguments), path=path, check=False, **variables)
        read = {}
        for name, *_ in runs:
            report = tmp_path / f"{name}.json"
            assert report.exists(), done.stdout + done.stderr
            read[name] = json.loads(report.read_text())
        return read, done.stdout

    return run


def test_each_is_caught_and_named(cards):
    good = ("Good", ENOUGH)
    read, _ = cards(good, *((name, tests) for name, (_, tests) in BROKEN.items()))
    assert read.pop("Good")["broken"] == []
    for name, card in read.items():
        named = [broken["promise"] for broken in card["broken"]]
        assert named == [BROKEN[name][0]], f"{name}: {card['broken']}"
        assert card["broken"][0]["tests"]
        assert card["pipeline"] == f"broken_stores:{name}"


def test_a_task_that_never_ends_is_given_up(cards):
    read, said = cards(("NeverAnswers", "nobody_keeps", *HASTE))
    assert [broken["promise"] for broken in read["NeverAnswers"]["broken"]] == ["ENDS"]
    assert "BROKEN ENDS: Every accepted task ends" in said
    assert "  to do: " in said


def test_a_run_in_which_all_hangs_ends_after_five_and_has_its_card(cards):
    read, said = cards(("SilentAlways", "test_blocks", *HASTE))
    (broken,) = read["SilentAlways"]["broken"]
    assert broken["promise"] == "ENDS"
    assert len(broken["tests"]) == 5
    assert "5 tests have hung" in said


LOOKUP = "    if (a->flags) return unknown_flags(err);\n    if (a->mode"
DONE = "        t->done(t->ctx, i, &result);\n"
UNLOCKED = "            pthread_mutex_unlock(&heap->mutex);\n        }\n" + DONE
CONTINUES = "            continue;\n        }"
CLOSED = "    fill_report(heap, report);\n    destroy(heap);\n"
NATIVE = {
    # Never returns from a lookup of five blocks.
    "blocks": (
        LOOKUP,
        "    while (a->n == 5) nanosleep(&(struct timespec){1, 0}, NULL);\n" + LOOKUP,
        "new_store_has_no_block or test_round_trip_of_a_block_of_any_size",
        "ENDS",
        "it is in expect_found, test_lookup.py:",
    ),
    # Never ends the task of every fifth dumped shard.
    "leaks": (
        DONE,
        "        if (dump && heap->values[DUMPED] % 5 == 0) return UCM_OK;\n" + DONE,
        "wait_may_be_repeated or any_order",
        "ENDS",
        "within 400 ms",
    ),
    # Calls done before it leaves its lock.
    "locks": (
        UNLOCKED,
        "            t->done(t->ctx, i, &result);\n" + UNLOCKED.replace("        }", CONTINUES),
        "other_threads_while or any_order",
        "CALLBACKS",
        "metrics waits for a lock of the thread that calls it",
    ),
    # Counts no unfinished shard when it closes.
    "forgets": (
        CLOSED,
        CLOSED + "    if (report) report->unfinished = 0;\n",
        "close_counts or drain_reports",
        "REPORTS",
        "close does not count what is unfinished as drain",
    ),
}


@pytest.mark.parametrize("how", NATIVE)
def test_a_broken_native_store_is_caught_and_the_next_tests_run(cards, tmp_path, how):
    right, wrong, tests, promise, reason = NATIVE[how]
    source = HEAP_SOURCE.read_text()
    assert source.count(right) == 1
    (tmp_path / "heap.c").write_text(source.replace(right, wrong))
    library = compile_library(tmp_path / "heap.c", tmp_path / "heap.so")
    read, _ = cards(("Heap", tests, *HASTE), UCM_PLUGINS=str(library))
    (broken,) = read["Heap"]["broken"]
    assert broken["promise"] == promise
    assert len(broken["tests"]) == 1
    assert reason in broken["reason"]
    assert sum(part["passed"] for part in read["Heap"]["parts"].values()) >= 1
