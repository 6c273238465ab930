"""Make synthetic traces for ``ucm replay``: python benchmarks/replay_traces.py FOLDER."""

import heapq
import itertools
import json
import random
import sys
from pathlib import Path


class Ids:
    """Numbers that were not used before."""

    def __init__(self):
        self.count = itertools.count()

    def __call__(self, n):
        return list(itertools.islice(self.count, n))


def chats(random_, ids, requests=6000, think=200):
    """Chats of several turns, of other lengths, after the same system prompt."""
    system, due = ids(1), []
    for at in range(requests):
        if due and due[0][0] < at:
            prompt = heapq.heappop(due)[2] + ids(random_.randint(1, 12))
        else:
            prompt = system + ids(min(100, int(3 * random_.paretovariate(1.1))))
        yield prompt
        if random_.random() < 0.7:
            pause = think * (0.3 + random_.lognormvariate(0, 0.8))
            heapq.heappush(due, (at + int(pause), at, prompt))


def agents(random_, ids, requests=6000, prompts=200):
    """Prompts of tools, some far more popular, with ends that never come again."""
    tools = [ids(random_.randint(4, 40)) for _ in range(prompts)]
    weights = [1 / (i + 1) for i in range(prompts)]
    for tool in random_.choices(tools, weights, k=requests):
        yield tool + ids(random_.randint(1, 8))


def documents(random_, ids, requests=3000, open_at_once=60):
    """Documents that are asked about up to ten times while they are open, and then no more."""
    questions = {}
    texts = []
    for _ in range(requests):
        while len(texts) < open_at_once:
            texts.append(ids(random_.randint(20, 80)))
            questions[texts[-1][0]] = random_.randint(1, 10)
        text = random_.choice(texts)
        yield text + ids(random_.randint(1, 2))
        questions[text[0]] -= 1
        if not questions[text[0]]:
            texts.remove(text)


def scans(random_, ids, requests=6000, hot=100):
    """A working set, and in between long runs of what comes once."""
    working = [ids(10) for _ in range(hot)]
    for i in range(requests):
        if i % 600 < 300:
            yield ids(20)
        else:
            yield working[min(hot - 1, int(random_.expovariate(1 / 30)))]


def zipf(random_, ids, requests=8000, prompts=20000):
    """Prompts by popularity alone."""
    known = [ids(4) for _ in range(prompts)]
    weights = [1 / (i + 1) ** 0.9 for i in range(prompts)]
    yield from random_.choices(known, weights, k=requests)


def shifts(random_, ids):
    """Agents, of which others are popular after a while."""
    for _ in range(4):
        yield from agents(random_, ids, 2000, 150)


def loops(random_, ids, requests=4000, prompts=200):
    """The same prompts in the same order, again and again."""
    known = [ids(20) for _ in range(prompts)]
    for i in range(requests):
        yield known[i % prompts]


TRACES = (chats, agents, documents, scans, zipf, shifts, loops)


def records(trace, seed=1):
    """One record a request, as ``ucm replay`` reads them."""
    for i, prompt in enumerate(trace(random.Random(seed), Ids())):
        yield {
            "timestamp": 300 * i,
            "input_length": 512 * len(prompt),
            "output_length": 100,
            "hash_ids": prompt,
        }


def main(folder):
    Path(folder).mkdir(parents=True, exist_ok=True)
    for trace in TRACES:
        lines = [json.dumps(record) for record in records(trace)]
        Path(folder, f"{trace.__name__}.jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("replay_traces.py: name the folder for the traces")
    main(sys.argv[1])
