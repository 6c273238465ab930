"""What a store promises: each test stands for one promise, and the score card says which broke."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeVar

PARTS = ("contract", "threads", "timeouts", "errors", "closing", "faults")

_Test = TypeVar("_Test", bound=Callable[..., Any])


class Promise(enum.Enum):
    """One promise: the part of the suite that tests it, the promise, and what to do if it broke."""

    def __init__(self, part: str, text: str, remedy: str) -> None:
        self.part = part
        self.text = text
        self.remedy = remedy

    BYTES = (
        "contract",
        "What is loaded is, bit for bit, what was dumped.",
        "compare what arrives in dump with what load writes; log both by block and shard",
    )
    SEGMENTS = (
        "contract",
        "The bytes of a shard run through its segments in their order.",
        "walk the row of addresses from the first to the last, in dump and in load",
    )
    LENGTHS = (
        "contract",
        "A shard shorter than its capacity comes back with its own length.",
        "store the length with the shard; load says it in its result, and writes no byte more",
    )
    MEMORY = (
        "contract",
        "Memory is borrowed from the call to the shard's done, at any address, and not beyond.",
        "copy before done; write only inside the segments; bounce where I/O wants alignment",
    )
    WHOLE = (
        "contract",
        "A block is seen when all of its shards are stored, in whatever order, and never before.",
        "keep the set of indexes that arrived, not the highest; publish when the set is full",
    )
    FIRST = (
        "contract",
        "The first complete copy of a block wins; what is dumped again is ignored, and fine.",
        "answer OK to a shard that is there already, and keep the bytes of the first",
    )
    LOOKUP = (
        "contract",
        "Lookup finds what is published, and nothing else; any 16 bytes are a name.",
        "compare whole ids; answer for each id asked; hits are prefix or last by the mode",
    )
    REMOVE = (
        "contract",
        "A removed block is absent, and stays so until it is dumped again.",
        "forget unfinished shards too; let nothing that was under way put the block back",
    )
    METRICS = (
        "contract",
        "Metrics are those of the table; counters only grow, and count shards and bytes once.",
        "return one value for each row of the table, in its order; count when a shard ends",
    )
    THREADS = (
        "threads",
        "Every call may be made from any thread, and from many at once.",
        "guard what calls share with a lock; run the suite under ThreadSanitizer if it is native",
    )
    CALLBACKS = (
        "threads",
        "done and finished are called with no lock held.",
        "take what is to be said under the lock, leave it, and only then call",
    )
    ENDS = (
        "timeouts",
        "Every accepted task ends, and no call blocks for ever.",
        "call done once for each shard on every path, finished after the last; bound every wait",
    )
    WAIT = (
        "timeouts",
        "A wait that runs out of time loses nothing: the task goes on.",
        "leave the task alone when a wait ends early; its result stays to be had",
    )
    ROOM = (
        "timeouts",
        "More work than there is room for is refused with BUSY; finished work leaves nothing.",
        "bound the queue; refuse a transfer whole; free what a task held when it has finished",
    )
    CANCEL = (
        "timeouts",
        "Cancel ends each shard as done or as cancelled, and loses nothing else.",
        "call done with CANCELLED for what has not begun; or do not publish the capability",
    )
    ALONE = (
        "errors",
        "A shard that fails fails alone, and its result says why.",
        "give each shard its own status, and never OK to one whose bytes are not there",
    )
    SHAPES = (
        "errors",
        "A store of another shape is served nothing that was stored in this one.",
        "keep sizes with each block, or spaces apart; answer INCOMPATIBLE, and let a dump replace",
    )
    REFUSED = (
        "errors",
        "A wrong call is refused with a reason, and does nothing.",
        "check every argument before the first effect; say its name and value in the message",
    )
    OPENS = (
        "closing",
        "An open store says what it can do; for lookup only it needs no sizes.",
        "publish the capabilities that hold; with UCM_OPEN_LOOKUP_ONLY, layout may be NULL",
    )
    REPORTS = (
        "closing",
        "Drain and close say what became of all that was accepted: stored, lost or pending.",
        "stored: since the last report, block whole or not; unfinished: now, of those that are not",
    )
    CLOSES = (
        "closing",
        "Close finishes what was accepted, and then refuses everything.",
        "let close wait for running work, up to its timeout, and say PENDING if that is over",
    )
    NEXT = (
        "closing",
        "What persists is served by the next store, and by others that are open.",
        "publish with one atomic step; read the storage at open, not an index that may be stale",
    )
    FORKS = (
        "closing",
        "A forked child is refused, and its parent goes on.",
        "close descriptors in the child (pthread_atfork); let no thread or lock of it be needed",
    )
    DAMAGE = (
        "faults",
        "Damaged bytes are never served, hurt no other block, and the next dump repairs them.",
        "checksum each shard with its id, index and length; after CORRUPT let a dump replace it",
    )
    FULL = (
        "faults",
        "A full disk costs the blocks that do not fit, aloud, and no other.",
        "report NO_SPACE, or lost in drain; write to another name, and rename when it is whole",
    )
    FAILS = (
        "faults",
        "An error of a read or write below fails its shard with that error, and nothing else.",
        "check what write, fsync, close and rename return; publish nothing after one that failed",
    )
    SLOW = (
        "faults",
        "Slow storage makes work late, and nothing else.",
        "let no wait give up memory that is still in use; end late work as if it were in time",
    )
    KILLED = (
        "faults",
        "A process that is killed while it writes leaves whole blocks, or none.",
        "publish with one atomic step; clean up what the dead left when the next store opens",
    )
    RESTARTS = (
        "faults",
        "What drain said was stored is served after the process has gone without a word.",
        "sync before drain says stored; keep nothing that a reader needs in the process alone",
    )
    RIVALS = (
        "faults",
        "Processes that dump the same blocks at once leave one whole copy of each.",
        "write to names of your own; let the step that publishes decide, and the loser say OK",
    )
    AWAY = (
        "faults",
        "While a service is away calls end with an error or a miss; after that all is as before.",
        "bound every wait for the service; connect again when it is back; answer UNAVAILABLE",
    )


def stands_for(promise: Promise) -> Callable[[_Test], _Test]:
    """Name the promise that a test stands for."""

    def mark(test: _Test) -> _Test:
        test.ucm_promise = promise  # type: ignore[attr-defined]
        return test

    return mark


def promise_of(test: Any) -> Promise | None:
    """Return the promise that a test of this suite stands for."""
    promise: Promise | None = getattr(test, "ucm_promise", None)
    return promise
