import pytest

import ucm

SIZES = {"block_size": 4096, "shard_size": 2048}


@pytest.fixture
def fill():
    """Return a function that stores n blocks of two shards."""

    def dump(folder, n, pipeline="Posix", **options):
        options = {"storage_backends": str(folder), **SIZES, **options}
        with ucm.open_pipeline(pipeline, **options) as store:
            for i in range(n):
                store.wait(store.dump([bytes([i]) * 16] * 2, [0, 1], [[bytes(2048)]] * 2))

    return dump


def listing(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_json_has_every_space(ucm_command, folder, fill):
    fill(folder, 3, model="llama")
    fill(folder, 1, "Compress|Posix", namespace="team-a", dtype="bf16")
    before = listing(folder)
    (found,) = ucm_command("inspect", folder, "--json").json
    assert listing(folder) == before
    assert found["directory"] == str(folder)
    assert found["uuid"] == (folder / ".ucm" / "format").read_text().split("\n")[1]
    assert (found["writers"], found["quarantined"], found["trash"]) == (0, 0, 0)
    one, other = found["spaces"]
    assert (one["namespace"], one["model"], one["fingerprint"]) == (
        "default",
        "llama",
        "bytes:2048",
    )
    assert (one["shards_per_block"], one["raw_capacity"], one["encoding"]) == (2, 2048, "")
    assert (one["blocks"], one["bytes"]) == (3, 3 * 3 * 4096)
    assert one["oldest"] <= one["newest"]
    assert (other["namespace"], other["encoding"], other["blocks"]) == ("team-a", "ucmz.1", 1)


def test_people_see_the_same(ucm_command, folder, fill):
    fill(folder, 3, model="llama")
    outcome = ucm_command("inspect", folder)
    assert outcome.code == 0
    for word in (str(folder), "llama", "2 x 2048 B", "36.0 KiB", "0 writers alive"):
        assert word in outcome.out


def test_one_namespace_alone(ucm_command, folder, fill):
    fill(folder, 1)
    fill(folder, 1, namespace="team-a")
    (found,) = ucm_command("inspect", folder, "--namespace", "team-a", "--json").json
    assert [space["namespace"] for space in found["spaces"]] == ["team-a"]


def test_blocks_come_from_their_headers(ucm_command, folder, fill):
    fill(folder, 2)
    bad = next(folder.glob("*/*/010/*"))
    bad.write_bytes(b"no block" * 512)
    (found,) = ucm_command("inspect", folder, "--blocks", "--json").json
    good, wrong = found["spaces"][0]["block_list"]
    assert good["id"] == bytes(16).hex()
    assert (good["shards"], good["shard_bytes"], good["problem"]) == (2, [2048, 2048], None)
    assert wrong["problem"] == "it is no block file"
    assert bytes(16).hex() in ucm_command("inspect", folder, "--blocks").out


def test_what_writers_have_open_is_counted(ucm_command, folder):
    with ucm.open_pipeline("Posix", storage_backends=str(folder), **SIZES) as store:
        store.wait(store.dump([bytes(16)], [0], [[bytes(2048)]]))
        (found,) = ucm_command("inspect", folder, "--json").json
        assert found["writers"] == 1
        assert found["temporary_bytes"] > 0
        assert found["spaces"][0]["blocks"] == 0
        with pytest.raises(ucm.StoreError):
            store.wait(store.load([bytes(16)], [0], [[bytearray(2048)]]))


def test_corrupt_blocks_are_counted_by_namespace(ucm_command, folder, fill):
    fill(folder, 1, namespace="a.b")
    next(folder.glob("*/*/000/*")).write_bytes(bytes(4096))
    options = {"storage_backends": str(folder), "namespace": "a.b", **SIZES}
    with ucm.open_pipeline("Posix", **options) as store, pytest.raises(ucm.CorruptError):
        store.wait(store.load([bytes(16)], [0], [[bytearray(2048)]]))
    for namespace, count in (("a.b", 1), ("a", 0)):
        (found,) = ucm_command("inspect", folder, "--namespace", namespace, "--json").json
        assert found["quarantined"] == count


def test_a_torn_manifest_is_told(ucm_command, folder, fill):
    fill(folder, 1)
    next(folder.glob("*/*/space")).write_text("ucm sp")
    (found,) = ucm_command("inspect", folder, "--json").json
    assert found["spaces"][0]["problem"] == "its manifest is torn"
    assert found["spaces"][0]["blocks"] == 1


def test_another_folder_is_1(ucm_command, refused, tmp_path):
    refused(ucm_command("inspect", tmp_path), 1, str(tmp_path), "is not a storage directory")
    refused(ucm_command("inspect", tmp_path / "no"), 1, "is not a storage directory")
