"""The files of a storage directory, read as docs/block-format.md says."""

import struct
from typing import NamedTuple

PAGE = 4096


class Entry(NamedTuple):
    offset: int
    length: int
    raw_length: int
    checksum: int

    @property
    def end(self):
        """Return where the next payload may start."""
        return self.offset + (self.length + PAGE - 1) // PAGE * PAGE


class Storage:
    def __init__(self, folder):
        self.folder = folder

    def space(self):
        """Return the folder of the only space."""
        (manifest,) = self.folder.glob("*/*/space")
        return manifest.parent

    def path(self, block_id):
        name = block_id.hex()
        return self.space() / name[:3] / name

    def table(self, block_id):
        """Return where a block's shards are in its file."""
        data = self.path(block_id).read_bytes()
        (count,) = struct.unpack_from("<I", data, 32)
        return [Entry(*struct.unpack_from("<4Q", data, 256 + 32 * i)) for i in range(count)]

    def flip(self, block_id, offset, bit=0):
        with open(self.path(block_id), "r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ 1 << bit]))

    def published(self):
        """Return the ids of all published files."""
        return {bytes.fromhex(path.name) for path in self.folder.glob("*/*/???/*")}

    def temporaries(self):
        """Return the files of unfinished blocks."""
        return list(self.folder.glob(".ucm/writers/*/" + "[0-9a-f]" * 32 + ".*"))

    def quarantined(self):
        return {bytes.fromhex(p.name[-32:]) for p in self.folder.glob(".ucm/quarantine/*")}
