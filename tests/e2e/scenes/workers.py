"""One of two workers is killed under requests: none hangs, a restart finds what was stored."""

import os
import signal
import time

from engines import BLOCK
from place import Failed, check, say
from scenes.failures import wait_for
from server import serve, written

LENGTH, OUTPUTS, ASKED = 2000, 200, 4
BLOCKS = LENGTH // BLOCK
TWO = ("--tensor-parallel-size", "2", "--shutdown-timeout", "20")


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    config = written(test.folder / "ucm.yaml", storage, 0.5)
    prompts = test.place.prompts("tiny", ASKED, LENGTH)
    with serve(test, "workers-first", config, model="tiny", more=TWO) as first:
        (right,) = first.answers(prompts[:1])
        (again,) = first.answers(prompts[:1])
        check(first.hits()[-1] == (BLOCKS, 0, BLOCKS), f"workers: found {first.hits()}")
        segments = first.segments()
        ended, seconds = killed(first, prompts)
        first.wait()
    left_by_dead = len(test.left(segments))  # none where vLLM let the other worker end
    with serve(test, "workers-second", config, model="tiny", more=TWO) as second:
        answers = second.answers(prompts)
        hits = second.hits()[-len(prompts) :]
        segments |= second.segments()
        second.end()
    check(answers[0][1] == again[1] == right[1], f"workers: {answers[0][1]!r}, not {right[1]!r}")
    check((BLOCKS, 0, BLOCKS) in hits, f"workers: after the restart found {hits}")
    left = test.left(segments)
    check(not left, f"workers: left in shared memory after the restart: {left}")
    say(
        f"workers: one killed, and {ended} of {ASKED} requests under way ended without a text, "
        f"after {seconds:.1f} s; segments left by the dead: {left_by_dead}; after the restart "
        f"found: {[hit[2] for hit in hits]}"
    )
    return {
        "broken off": ended,
        "seconds": round(seconds, 1),
        "left by the dead": left_by_dead,
        "hits": hits,
    }


def killed(server, prompts):
    """Kill a worker under requests; return how many of these failed, and when the last ended."""
    workers = server.workers()
    check(len(workers) == 2, f"workers: vllm serve has {workers}")
    before = len(server.hits())
    with server.asked(prompts, OUTPUTS) as futures:
        wait_for(lambda: len(server.hits()) >= before + len(prompts), "requests under way")
        os.kill(workers[1], signal.SIGKILL)
        start = time.monotonic()
        failures = [future.exception(timeout=120) for future in futures]
    seconds = time.monotonic() - start
    for failure in failures:
        check(failure is None or isinstance(failure, (Failed, OSError)), f"workers: {failure!r}")
    return sum(failure is not None for failure in failures), seconds
