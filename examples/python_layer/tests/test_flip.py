"""What Flip promises beyond the contract, which `pytest --pyargs ucm.conformance` checks."""

import ucm

BYTES = 8192
BLOCK = bytes(range(16))
PLAIN = b"as it was given " * (BYTES // 16)


def test_the_store_below_has_every_bit_inverted(tmp_path):
    options = {"block_size": BYTES, "storage_backends": str(tmp_path)}
    with ucm.open_pipeline("Flip|Posix", **options) as store:
        store.wait(store.dump([BLOCK], [0], [[PLAIN]]))
        store.drain()
        out = bytearray(BYTES)
        store.wait(store.load([BLOCK], [0], [[out]]))
        assert out == PLAIN
    stored = next(path for path in tmp_path.rglob(BLOCK.hex()) if path.is_file()).read_bytes()
    assert bytes(~byte & 255 for byte in PLAIN) in stored
    assert PLAIN[:16] not in stored


def test_what_was_stored_without_it_is_not_seen_through_it(tmp_path):
    options = {"block_size": BYTES, "storage_backends": str(tmp_path)}
    with ucm.open_pipeline("Posix", **options) as store:
        store.wait(store.dump([BLOCK], [0], [[PLAIN]]))
    with ucm.open_pipeline("Flip|Posix", **options) as store:
        assert store.lookup([BLOCK]) == [False]
