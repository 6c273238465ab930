"""Ledgers of storage directories, written by hand."""

import struct

import xxhash


def write_ledger(folder, *accounts, used=0, flags=0):
    """As plugins/common/ledger.h has it."""
    nonce = bytes(range(16))
    page = struct.pack(
        "<8sII16s7Q3qII", b"UCMLEDGR", 1, flags, nonce, 0, used, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0
    )
    page += struct.pack("<Q", xxhash.xxh3_64_intdigest(page))
    data = page.ljust(4096, b"\0")
    seed = xxhash.xxh3_64_intdigest(nonce)
    for writer, granted, capacity in accounts:
        record = struct.pack("<216s4Q", writer.encode(), granted, capacity, 0, 0)
        data += record + struct.pack("<Q", xxhash.xxh3_64_intdigest(record, seed))
    path = folder / ".ucm" / "ledger"
    path.write_bytes(data)
    return path
