"""Ways to break what a store keeps, and the processes that use it.

Parts of ``ucm bench faults`` and of ``ucm.conformance``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

#: Takes what keeps each of some blocks, returns what becomes of it; None: it is deleted.
Damage = Callable[[Sequence[bytes], random.Random], Sequence["bytes | None"]]


def _flip(data: bytes, offset: int, rng: random.Random) -> bytes:
    flipped = bytes([data[offset] ^ 1 << rng.randrange(8)])
    return data[:offset] + flipped + data[offset + 1 :]


def flip_in_payload(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Flip one bit of each, somewhere behind its first page."""
    return [_flip(d, rng.randrange(min(4096, len(d) // 2), len(d)), rng) for d in kept]


def flip_in_header(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Flip one bit in the first bytes of each."""
    return [_flip(d, rng.randrange(min(128, len(d))), rng) for d in kept]


def flip_at_the_end(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Flip one bit in the last bytes of each."""
    return [_flip(d, rng.randrange(max(0, len(d) - 64), len(d)), rng) for d in kept]


def truncate(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Cut each in half."""
    return [data[: len(data) // 2] for data in kept]


def empty(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Leave nothing of each but its name."""
    return [b"" for _ in kept]


def swap(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Give each what the next one had."""
    return [*kept[1:], kept[0]]


def delete(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Leave nothing."""
    return [None for _ in kept]


def garbage(kept: Sequence[bytes], rng: random.Random) -> Sequence[bytes | None]:
    """Overwrite each with random bytes."""
    return [rng.randbytes(len(data)) for data in kept]


DAMAGES: dict[str, Damage] = {
    "bit flipped in the data": flip_in_payload,
    "bit flipped in the header": flip_in_header,
    "truncated to half": truncate,
    "emptied": empty,
    "swapped with another block": swap,
    "deleted": delete,
    "overwritten with garbage": garbage,
}


def replace_file(path: Path, data: bytes | None) -> None:
    """Write into a file as it is, so that whoever has it open sees it; None: unlink it."""
    if data is None:
        path.unlink()
        return
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()


def damage_files(paths: Sequence[Path], damage: Damage, rng: random.Random) -> None:
    """Do it to files."""
    for path, data in zip(paths, damage([p.read_bytes() for p in paths], rng), strict=True):
        replace_file(path, data)


def in_tmpfs(place: Path, size: int) -> list[str]:
    """Return the words that put a command into a small file system that goes with it."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    mount = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
    return ["unshare", *user, "--mount", "sh", "-c", mount, str(place)]


def why_not(inside: Sequence[str]) -> str | None:
    """Say why a command cannot be run so, or None."""
    probe = subprocess.run([*inside, "true"], capture_output=True, text=True, check=False)
    if not probe.returncode:
        return None
    return (probe.stderr.strip().splitlines() or ["no reason given"])[-1]


@dataclasses.dataclass
class Killer:
    """Says when to kill a process: some time after some of its lines."""

    lines: int
    seconds: float

    def due(self, said: Sequence[str]) -> bool:
        """Tell whether it is time, having slept until then."""
        if len(said) == self.lines:
            time.sleep(self.seconds)
        return len(said) == self.lines


# The child looks for modules where this process does, whatever directory either was started in.
_CHILD = """\
import importlib, sys
sys.path[:] = sys.argv[1].split(":")
module, _, name = sys.argv[2].partition(":")
sys.exit(getattr(importlib.import_module(module), name)())
"""


def run_child(
    function: str,
    task: Mapping[str, Any],
    limit_s: float,
    *,
    inside: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
    killer: Killer | None = None,
) -> tuple[list[str], int | None]:
    """Run ``module:function`` in a process, with the task on its stdin; return its lines and code.

    None: it did not end in time.
    """
    process = subprocess.Popen(
        [*inside, sys.executable, "-c", _CHILD, ":".join(sys.path), function],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(variables or {})},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(limit_s, give_up)
    timer.start()
    said = []
    with process, process.stdin as stdin, contextlib.suppress(BrokenPipeError):
        json.dump(task, stdin)
        stdin.close()
        for line in process.stdout:
            said.append(line.strip())
            if killer and killer.due(said):
                process.kill()
    timer.cancel()
    return said, None if late.is_set() else process.returncode


def say(what: str, number: int) -> None:
    """Tell the parent of a child what happened to a block.

    In one piece: the process may be killed at any time, and its output may not be buffered.
    """
    sys.stdout.write(f"{what} {number}\n")
    sys.stdout.flush()


def last_said(said: Sequence[str]) -> dict[int, str]:
    """Return what a child said last of each block."""
    return {int(line.split()[1]): line.split()[0] for line in said}
