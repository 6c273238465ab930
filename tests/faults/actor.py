"""A process that dumps, loads, spoils and removes blocks, and says so, until it is killed.

Every line that it prints names what happened to a block: of what it said last, nobody knows more.
"""

import json
import sys
from pathlib import Path

from storage import Storage
from writer import block_of

import ucm
from ucm.conformance import kit


def act(config, rounds):
    storage = Storage(Path(config["storage_backends"]))
    with ucm.open_pipeline(config) as store:
        for number in range(rounds):
            block = block_of(number)
            pieces = block.pieces()
            print(f"dumping {number}", flush=True)
            for part in (pieces[::2], pieces[1::2]):
                kit.dump_pieces(store, part)
            assert store.drain(kit.WAIT_MS).lost == 0
            print(f"dumped {number}", flush=True)
            with ucm.open_pipeline(config) as reader:  # nothing of the block is in its memory
                read(reader, storage, number, block)
            if number % 4 == 1:
                print(f"removing {number}", flush=True)
                store.remove([block.id])
                print(f"removed {number}", flush=True)


def read(reader, storage, number, block):
    if number % 4 != 2:
        return kit.expect_published(reader, block)
    print(f"spoiling {number}", flush=True)
    storage.flip(block.id, storage.path(block.id).stat().st_size - 4096)
    ends = kit.load_pieces(reader, block.pieces())
    assert ends.count(ucm.Status.CORRUPT) == 1
    print(f"spoiled {number}", flush=True)


if __name__ == "__main__":
    act(json.loads(sys.argv[1]), int(sys.argv[2]))
