"""`vllm serve` with a file of ours: the guide's table; then it is killed and started again.

Eight prompts of 8,000 tokens at once take three minutes of computing on two cores, so that they
are left to `--long`.
"""

import random
import statistics

from engines import BLOCK
from place import check, say
from server import serve, written

# Tokens, and how many requests at once.
ROWS = [(n, k) for n in (1000, 2000, 4000, 8000) for k in (1, 4, 8)]
LONG = [(8000, 8)]


def run(test):
    storage = test.folder / "blocks"
    storage.mkdir()
    config = written(test.folder / "ucm.yaml", storage, 2, "hit_ratio: 0.8")
    prompts = Prompts()
    rows = []
    with serve(test, "serve-first", config) as first:
        first.ask(prompts.some(1, 300))  # the first one is slow
        for length, count in [row for row in ROWS if test.long or row not in LONG]:
            given = prompts.some(count, length)
            full, hit = first.ask(given), first.ask(given)
            rows.append({"tokens": length, "at once": count, "full_ms": full, "hit_ms": hit})
            say(f"serve: {length} tokens, {count} at once: {mean(full):.0f}, {mean(hit):.0f} ms")
        last = prompts.some(1, 2000)
        first.ask(last)
        segments = first.segments()
        check(segments, "the server has no shared memory")
        hits = first.hits()
    check(test.left(segments), "the killed server left nothing, so nothing could be taken over")
    with serve(test, "serve-second", config, more=("--shutdown-timeout", "20")) as second:
        second.ask(last)
        second.ask(given)
        again = second.hits()
        stale = set(test.left(segments)) - second.segments()
        check(not stale, f"left in shared memory by the killed server: {stale}")
        segments |= second.segments()
        second.end()
    check(not test.left(segments), f"left in shared memory: {test.left(segments)}")
    blocks = int(0.8 * length) // BLOCK
    check(again[-1] == (length // BLOCK, 0, blocks), f"the restarted server found {again}")
    check_hits(rows, hits)
    return {"rows": rows, "hits after restart": again}


def check_hits(rows, hits):
    for row in rows:
        total = row["tokens"] // BLOCK
        wanted = (total, 0, int(0.8 * row["tokens"]) // BLOCK)
        found = hits.count(wanted)
        check(found >= row["at once"], f"serve: {row['tokens']} tokens: {wanted} {found} times")


class Prompts:
    """Random tokens, new ones each time."""

    def __init__(self):
        self._random = random.Random(1)

    def some(self, count, length):
        return [[self._random.randrange(100, 49000) for _ in range(length)] for _ in range(count)]


def mean(values):
    return statistics.fmean(values)


def table(results):
    lines = ["Mean time to the first token, `vllm serve`:", "",
             "| tokens | at once | full compute, ms | 80 % hit, ms | times faster |",
             "| --- | --- | --- | --- | --- |"]  # fmt: skip
    for row in results["rows"]:
        full, hit = mean(row["full_ms"]), mean(row["hit_ms"])
        lines.append(
            f"| {row['tokens']} | {row['at once']} | {full:.0f} | {hit:.0f} | {full / hit:.1f} |"
        )
    return "\n".join(lines)
