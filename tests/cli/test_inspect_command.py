import array
import os
import random
import time

import pytest
from ledgers import write_ledger

import ucm
import ucm.directory

SIZES = {"block_size": 4096, "shard_size": 2048}


def listing(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_json_has_every_space(ucm_command, folder, fill):
    fill(3, model="llama")
    fill(1, "Compress|Posix", namespace="team-a", dtype="bf16")
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
    assert one["disk_bytes"] >= one["bytes"]
    assert (one["dtype"], other["dtype"]) == ("bytes", "bf16")
    assert one["coldest"] <= one["hottest"]
    assert one["used"] == {"hour": 3, "day": 0, "week": 0, "older": 0}
    assert one["headers"]["read"] == 3
    assert one["headers"]["oldest"] <= one["headers"]["newest"]
    assert (one["headers"]["ratio"], found["ledger"]["limit"]) == (1.0, 0)
    assert other["headers"]["ratio"] > 10
    assert (other["namespace"], other["encoding"], other["blocks"]) == ("team-a", "ucmz.3", 1)


def test_people_see_the_same(ucm_command, folder, fill):
    fill(3, model="llama")
    outcome = ucm_command("inspect", folder)
    assert outcome.code == 0
    for word in (str(folder), "llama", "2 x 2048 B", "36.0 KiB", "0 writers alive"):
        assert word in outcome.out


def numbers(n):
    """Normal numbers in bf16."""
    rng = random.Random(1)
    wide = array.array("f", (rng.gauss(0, 1) for _ in range(n // 2))).tobytes()
    return b"".join(wide[i + 2 : i + 4] for i in range(0, len(wide), 4))


def test_codecs_come_from_frames(ucm_command, folder):
    plane = 1 << 16
    data = numbers(plane) + bytes(plane) + random.Random(2).randbytes(plane)
    with ucm.open_pipeline(
        "Compress|Posix", storage_backends=str(folder), block_size=len(data), tensor_size=plane,
        dtype="bf16", compress_codec="fast",
    ) as store:  # fmt: skip
        for i in range(40):
            planes = [data[at : at + plane] for at in range(0, len(data), plane)]
            store.wait(store.dump([bytes([i]) * 16], [0], [planes]))
        assert store.drain().lost == 0
    for given, of in ((), 32), (("--headers",), 40):
        (found,) = ucm_command("inspect", folder, "--json", *given).json
        headers = found["spaces"][0]["headers"]
        assert headers["framed"] == of
        assert {name: coded["tiles"] for name, coded in headers["codecs"].items()} == {
            "classes": of,
            "constant": of,
            "raw": of,
        }
        assert headers["codecs"]["raw"]["ratio"] == 1
        assert headers["codecs"]["constant"]["stored_bytes"] == of * 4
        assert 1.4 < headers["codecs"]["classes"]["ratio"] < 1.6
        assert found["spaces"][0]["disk_bytes"] < 40 * 0.8 * len(data)
    shown = ucm_command("inspect", folder).out
    assert "classes" in shown
    assert "32 of 40" in shown


def test_a_damaged_frame_has_no_codecs(ucm_command, folder, fill):
    fill(1, "Compress|Posix", dtype="bf16")
    (path,) = folder.glob("*/*/000/*")
    data = bytearray(path.read_bytes())
    data[4096:] = bytes(len(data) - 4096)
    path.write_bytes(data)
    (found,) = ucm_command("inspect", folder, "--json").json
    assert found["spaces"][0]["headers"]["codecs"] == {}


def test_one_namespace_alone(ucm_command, folder, fill):
    fill(1)
    fill(1, namespace="team-a")
    (found,) = ucm_command("inspect", folder, "--namespace", "team-a", "--json").json
    assert [space["namespace"] for space in found["spaces"]] == ["team-a"]
    assert (
        "no spaces of namespace 'team-b'"
        in ucm_command("inspect", folder, "--namespace", "team-b").out
    )


def test_blocks_come_from_their_headers(ucm_command, folder, fill):
    fill(2)
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
    fill(1, namespace="a.b")
    next(folder.glob("*/*/000/*")).write_bytes(bytes(4096))
    options = {"storage_backends": str(folder), "namespace": "a.b", **SIZES}
    with ucm.open_pipeline("Posix", **options) as store, pytest.raises(ucm.CorruptError):
        store.wait(store.load([bytes(16)], [0], [[bytearray(2048)]]))
    for namespace, count in (("a.b", 1), ("a", 0)):
        (found,) = ucm_command("inspect", folder, "--namespace", namespace, "--json").json
        assert found["quarantined"] == count


def test_a_torn_manifest_is_told(ucm_command, folder, fill):
    fill(1)
    next(folder.glob("*/*/space")).write_text("ucm sp")
    (found,) = ucm_command("inspect", folder, "--json").json
    assert found["spaces"][0]["problem"] == "its manifest is torn"
    assert found["spaces"][0]["blocks"] == 1


def test_last_used_is_the_files_and_published_the_headers(ucm_command, folder, fill):
    for path, age in zip(fill(4), (60, 7200, 2 * 86400, 30 * 86400), strict=True):
        os.utime(path, (0, time.time() - age))
    (found,) = ucm_command("inspect", folder, "--json").json
    (space,) = found["spaces"]
    assert space["used"] == {"hour": 1, "day": 1, "week": 1, "older": 1}
    assert space["coldest"] < space["headers"]["oldest"]
    outcome = ucm_command("inspect", folder)
    assert "1/1/1/1" in outcome.out
    assert "60 s to 30 d ago" in outcome.out


def test_headers_are_sampled_unless_all_are_wanted(ucm_command, folder, fill, monkeypatch):
    monkeypatch.setattr(ucm.directory, "SAMPLED_HEADERS", 3)
    fill(10)
    assert "from 3 of 10 headers; --headers" in ucm_command("inspect", folder).out
    outcome = ucm_command("inspect", folder, "--headers", "--json")
    assert outcome.json[0]["spaces"][0]["headers"]["read"] == 10
    assert "headers;" not in ucm_command("inspect", folder, "--headers").out


def test_a_header_that_is_not_sound_is_counted(ucm_command, folder, fill):
    path, _ = fill(2)
    path.write_bytes(b"no block" * 512)
    assert "1 headers are not sound; ucm fsck" in ucm_command("inspect", folder).out


def test_the_ledger_says_who_sets_the_limit(ucm_command, folder, fill):
    fill(1)
    options = {"storage_backends": str(folder), "posix_capacity_gb": 1, **SIZES}
    with ucm.open_pipeline("Posix", **options):
        (writer,) = (path.name for path in folder.glob(".ucm/writers/*"))
        until = time.monotonic() + 20
        while True:  # it enters its account in the background
            (found,) = ucm_command("inspect", folder, "--json").json
            shown = found["ledger"]
            if shown["limit"] or time.monotonic() > until:
                break
        assert (shown["limit"], shown["set_by"]) == (1 << 30, [writer])
        assert [one["alive"] for one in shown["accounts"]] == [True]
        assert f"limit 1.00 GiB, set by {writer}; " in ucm_command("inspect", folder).out


def test_a_ledger_of_the_dead_sets_no_limit(ucm_command, folder, fill):
    fill(1)
    write_ledger(folder, ("of-the-dead", 8192, 1 << 20), used=1 << 20, flags=2)
    (found,) = ucm_command("inspect", folder, "--json").json
    shown = found["ledger"]
    assert (shown["limit"], shown["used"], shown["granted"]) == (0, 1 << 20, 8192)
    assert (shown["recount"], shown["accounts"][0]["alive"]) == (True, False)
    assert "to be recounted" in ucm_command("inspect", folder).out
    path = folder / ".ucm" / "ledger"
    path.write_bytes(path.read_bytes()[:100])
    assert "ledger: it is torn" in ucm_command("inspect", folder).out


@pytest.mark.parametrize("kind", ["config", "folders", "data", "flat"])
@pytest.mark.parametrize(
    ("command", "code"), [(["inspect"], 1), (["fsck"], 2), (["gc", "--to", "0"], 1)]
)
def test_a_directory_of_uc_manager_is_refused(
    ucm_command, refused, folder, uc_manager, kind, command, code
):
    uc_manager(kind)
    refused(ucm_command(*command, folder), code, str(folder), "uc-manager", "another directory")


@pytest.mark.parametrize("kind", ["config", "folders", "flat"])
def test_ours_is_ours_whatever_else_lies_there(ucm_command, folder, fill, uc_manager, kind):
    fill(1)
    uc_manager(kind)
    assert ucm_command("inspect", folder).code == 0


def test_another_folder_is_1(ucm_command, refused, tmp_path):
    refused(ucm_command("inspect", tmp_path), 1, str(tmp_path), "is not a storage directory")
    refused(ucm_command("inspect", tmp_path / "no"), 1, "does not exist")
    (tmp_path / "file").touch()
    refused(ucm_command("inspect", tmp_path / "file"), 1, "is not a directory")
