"""A process of several that share a cache: dumps, loads, removes, and says so, until it ends.

Every line that it prints names what happened to a block: of what it said last, nobody knows more.
Blocks from COMMON on are made by two members, who bring the shards of one half each; those below 0
are stored by others before, and nobody removes them.
"""

from __future__ import annotations

import json
import random
import sys
import threading

from writer import block_of

import ucm
from ucm import Status
from ucm.conformance import kit

HANG_MS = 10000  # nothing may take longer, whoever dies
COMMON = 1 << 30
STORED = [-1 - number for number in range(12)]
MANY = 24  # unfinished blocks at once: more than dumps may hold


class Member:
    """One store, and what its process does with it."""

    def __init__(self, store, seed, say):
        self.store, self.say = store, say
        # Over a store that keeps nothing, all that is not here is gone.
        self.absent = () if "write_back" in store.capabilities else (Status.NOT_FOUND,)
        self.half = seed % 2
        self.next = seed * 100000
        self.common = COMMON
        self.rng = random.Random(seed)
        self.owned = []

    def step(self):
        """Do one thing, at random."""
        self.rng.choice(
            (
                self.dump_whole,
                self.dump_whole,
                self.dump_by_shards,
                self.dump_half,
                self.load_stored,
                self.load_stored,
                self.load_own,
                self.load_new,
                self.remove,
                self.drain,
                self.prefetch,
            )
        )()

    def new(self, n):
        self.next += n
        self.say("begins", self.next - n)
        self.say("begins", self.next - 1)
        return [(number, block_of(number)) for number in range(self.next - n, self.next)]

    def dump(self, pieces):
        """Tell whether they were accepted: what cannot go below has to fit."""
        transfer = kit.start_dump(self.store, pieces)
        try:
            self.store.wait(transfer.task, HANG_MS)
        except ucm.NoSpaceError:
            if not self.absent:
                raise
            return False
        return True

    def dump_whole(self):
        blocks = self.new(self.rng.randint(1, 6))
        if self.dump(kit.pieces_of(block for _, block in blocks)):
            self.accepted(blocks)

    def dump_by_shards(self, n=3):
        blocks = self.new(n)
        order = self.rng.sample(range(6), 6)
        if all(self.dump([block.pieces()[index] for _, block in blocks]) for index in order):
            self.accepted(blocks)

    def spill(self):
        """More blocks at once than there is room for: the oldest go below unfinished."""
        self.dump_by_shards(MANY)

    def dump_half(self):
        self.common += 1
        self.say("begins", self.common)
        self.dump(block_of(self.common).pieces()[self.half :: 2])

    def accepted(self, blocks):
        for number, _ in blocks:
            self.say("accepted", number)
            self.owned.append(number)

    def load(self, numbers, allowed=(Status.NOT_FOUND,)):
        blocks = [block_of(number) for number in numbers]
        pieces = kit.pieces_of(blocks)
        transfer = kit.start_load(self.store, pieces)
        kit.expect_ends(pieces, kit.ends_of_load(self.store, transfer), allowed)

    def load_stored(self):
        self.load(self.rng.sample(STORED, 3), allowed=self.absent)

    def load_own(self):
        self.load(self.rng.sample(self.owned, min(3, len(self.owned))), allowed=self.absent)

    def load_new(self):
        """What another member may be dumping."""
        self.load([self.common + self.rng.randint(-2, 1), self.rng.randint(0, 9) * 100000])

    def prefetch(self):
        self.store.prefetch([block_of(number).id for number in self.rng.sample(STORED, 3)])

    def remove(self):
        for number in self.owned[:1]:
            self.say("removing", number)
            self.owned.remove(number)
            self.store.remove([block_of(number).id])

    def drain(self):
        assert self.store.drain(HANG_MS).pending == 0


def say(what, number):
    print(what, number, flush=True)


def act(config, seed, steps):
    """Take so many steps, or as many as there is time for; end when the input does."""
    ended = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
    with ucm.open_pipeline(config) as store:
        say("open", 0)
        member = Member(store, seed, say)
        if steps == 0:
            while not ended.is_set():
                member.step()
            member.drain()
            return
        for _ in range(steps):
            member.load_stored()
            member.dump_whole()
            member.spill()
            member.dump_half()
            member.remove()
            member.step()
            member.drain()


if __name__ == "__main__":
    act(json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
