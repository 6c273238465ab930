"""What Encrypt promises beyond the contract, which `pytest --pyargs ucm.conformance` checks."""

import hashlib
import hmac
import os
import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import ucm

BYTES = 8192
BLOCK = bytes(range(16))
SECRET = b"what nobody is to read " * (BYTES // 23 + 1)


@pytest.fixture
def key(monkeypatch):
    text = secrets.token_hex(32)
    monkeypatch.setenv("UCM_ENCRYPT_KEY", text)
    return bytes.fromhex(text)


def opened(folder, pipeline="Encrypt|Posix", **options):
    return ucm.open_pipeline(
        pipeline, storage_backends=str(folder), block_size=BYTES, tensor_size=BYTES, **options
    )


def dumped(store, data=SECRET):
    plain = np.frombuffer(data[:BYTES], np.uint8).copy()
    store.wait(store.dump([BLOCK], [0], [[plain]]))
    return plain


def loaded(store):
    out = np.zeros(BYTES, np.uint8)
    store.wait(store.load([BLOCK], [0], [[out]]))
    return out


def block_file(folder):
    return next(path for path in folder.rglob(BLOCK.hex()) if path.is_file())


def test_what_was_dumped_is_loaded_by_another_process_that_has_the_key(tmp_path, key):
    with opened(tmp_path) as store:
        plain = dumped(store)
        store.drain()
    with opened(tmp_path) as store:
        assert (loaded(store) == plain).all()


def test_no_plain_text_is_on_the_disk(tmp_path, key):
    with opened(tmp_path) as store:
        dumped(store)
        store.drain()
    stored = block_file(tmp_path).read_bytes()
    assert len(stored) > BYTES
    assert SECRET[:16] not in stored


@pytest.mark.parametrize("tenant", ["", "acme"])
def test_it_is_aes_256_gcm_as_others_compute_it(tmp_path, key, tenant):
    with opened(tmp_path, encrypt_tenant=tenant) as store:
        plain = dumped(store)
        store.drain()
    payload = block_file(tmp_path).read_bytes()[4096 : 4096 + BYTES + 28]
    sealed, nonce, tag = payload[:BYTES], payload[BYTES:-16], payload[-16:]
    label = BLOCK + (0).to_bytes(4, "little")
    of_tenant = hmac.digest(key, b"ucm encrypt 1/" + tenant.encode(), hashlib.sha256)
    cipher = AESGCM(hmac.digest(of_tenant, label, hashlib.sha256))
    assert cipher.decrypt(nonce, sealed + tag, label) == plain.tobytes()


def test_the_same_block_is_never_sealed_twice_the_same_way(tmp_path, key):
    payloads = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        with opened(folder) as store:
            dumped(store)
            store.drain()
        payloads.append(block_file(folder).read_bytes()[4096:])
    assert payloads[0] != payloads[1]


def test_another_key_or_tenant_finds_nothing(tmp_path, key, monkeypatch):
    with opened(tmp_path) as store:
        dumped(store)
        store.drain()
    with opened(tmp_path, encrypt_tenant="acme") as store:
        assert store.lookup([BLOCK]) == [False]
    monkeypatch.setenv("UCM_ENCRYPT_KEY", secrets.token_hex(32))
    with opened(tmp_path) as store:
        assert store.lookup([BLOCK]) == [False]


def test_what_was_altered_below_is_corrupt_and_replaced_by_the_next_dump(tmp_path, key):
    rules = tmp_path / "rules"
    rules.write_text("load:flip")
    kv = tmp_path / "kv"
    kv.mkdir()
    with opened(kv, "Encrypt|Fault|Posix", fault_control=str(rules)) as store:
        plain = dumped(store)
        store.drain()
        with pytest.raises(ucm.StoreError) as caught:
            loaded(store)
        assert caught.value.status == ucm.Status.CORRUPT
        assert store.stats()["Encrypt"]["refused_shards_total"] == 1
        before = block_file(kv).stat().st_ino
        rules.write_text("")
        dumped(store)
        store.drain()
        assert block_file(kv).stat().st_ino != before
        assert (loaded(store) == plain).all()


def test_a_key_from_a_file_and_from_the_environment_are_the_same(tmp_path, key):
    file = tmp_path / "key"
    file.write_text(key.hex() + "\n")
    file.chmod(0o600)
    kv = tmp_path / "kv"
    kv.mkdir()
    with opened(kv) as store:
        plain = dumped(store)
        store.drain()
    with opened(kv, encrypt_key_file=str(file)) as store:
        assert (loaded(store) == plain).all()


def test_a_key_that_is_missing_is_said_to_be(tmp_path, monkeypatch):
    monkeypatch.delenv("UCM_ENCRYPT_KEY", raising=False)
    with pytest.raises(ucm.StoreError, match=r"encrypt_key_file: .*UCM_ENCRYPT_KEY"):
        opened(tmp_path)


@pytest.mark.parametrize("text", ["", "00" * 31, "zz" * 32, "00" * 33])
def test_a_key_that_is_none_is_refused_and_not_shown(tmp_path, monkeypatch, text):
    monkeypatch.setenv("UCM_ENCRYPT_KEY", text)
    with pytest.raises(ucm.StoreError, match="64 hex digits") as caught:
        opened(tmp_path)
    assert not text or text not in str(caught.value)


def test_a_key_file_that_others_may_read_is_refused(tmp_path):
    file = tmp_path / "key"
    file.write_text("00" * 32)
    file.chmod(0o644)
    with pytest.raises(ucm.StoreError, match="chmod 600"):
        opened(tmp_path, encrypt_key_file=str(file))
    with pytest.raises(ucm.StoreError, match="absent"):
        opened(tmp_path, encrypt_key_file=os.fspath(tmp_path / "absent"))
