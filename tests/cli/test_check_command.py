"""``ucm check`` explains a configuration, tries it, and says what is slow or unsafe here."""

import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

import ucm
from ucm import checks, checks_3fs, registry
from ucm.cli import _check

GIB = checks.GIB


@pytest.fixture
def directory(tmp_path):
    """Make a directory for blocks, as it should be."""
    path = tmp_path / "blocks"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def file(tmp_path):
    """Write a configuration of a pipeline with these options and top-level keys."""

    def write(pipeline, /, top=None, **store):
        entry = {
            "ucm_connector_name": "UcmPipelineStore",
            "ucm_connector_config": {"store_pipeline": pipeline, **store},
        }
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"ucm_connectors": [entry], **(top or {})}))
        return path

    return write


@pytest.fixture
def report(ucm_command):
    """Check a file that works."""

    def run(path):
        outcome = ucm_command("check", path, "--json")
        assert outcome.code == 0, outcome
        assert outcome.json["ok"] is True
        return outcome.json

    return run


def rows(report, key):
    return {row["taken_by"]: row for row in report["values"] if row["key"] == key}


def warned(report):
    return {warning["check"] for warning in report["warnings"]}


# It explains.


def test_every_value_says_what_it_is_whence_and_whither(report, file, directory):
    made = report(
        file(
            "Cache|Posix",
            storage_backends=str(directory),
            timeout_ms=20000,
            **{"Posix.timeout_ms": 10000},
            top={"enable_event_sync": False},
        )
    )
    timeouts = rows(made, "timeout_ms")
    assert {taker: row["value"] for taker, row in timeouts.items()} == {
        "the pipeline": 20000,
        "Cache": 20000,
        "Posix": 10000,
    }
    assert all(row["given"] for row in timeouts.values())
    (direct,) = rows(made, "io_direct").values()
    assert (direct["value"], direct["given"], direct["taken_by"]) == (False, False, "Posix")
    events = rows(made, "enable_event_sync")["the engine's connector"]
    assert (events["value"], events["given"]) == (False, True)
    assert events["effect"].startswith("no effect yet, because ")
    assert all(row["help"] for row in made["values"])


def test_what_is_given_and_not_taken_is_shown_with_the_reason(report, file):
    made = report(file("Empty", io_direct=True, store_health={"enabled": True}))
    (unused,) = rows(made, "io_direct").values()
    assert unused["taken_by"] == "nobody"
    assert unused["effect"] == "not used, Posix is not in the pipeline"
    assert rows(made, "store_health")["nobody"]["effect"].startswith("no effect, because")
    assert len(made["notes"]) == 2


def test_the_text_says_the_same(ucm_command, file, directory):
    path = file("Cache|Posix", storage_backends=str(directory), top={"enable_event_sync": True})
    outcome = ucm_command("check", path)
    assert outcome.code == 0, outcome.err
    for words in (
        f"{path}: UcmPipelineStore Cache|Posix",
        "storage_backends",
        "note: enable_event_sync: no effect yet, because",
        "may grow until the disk is full",
        "why: ",
        "do:  ",
        "came back bit for bit",
        "is removed again: open ",
    ):
        assert words in outcome.out
    assert outcome.err == ""


def test_options_of_a_store_alone_are_fine_too(report, ucm_command, refused, tmp_path):
    path = tmp_path / "store.yaml"
    path.write_text("store_pipeline: Empty\nblock_size: 4K\n")
    assert report(path)["notes"] == [
        "ucm_connectors is missing: open_pipeline takes such a file, an engine does not"
    ]
    path.write_text("store_pipeline: Empty\nblok_size: 4K\n")
    refused(ucm_command("check", path), 2, f"{path}: ", "blok_size: unknown option", "block_size")


def test_the_environment_may_name_the_file(ucm_process, file):
    path = file("Empty")
    assert ucm_process("check", "--json", UCM_CONFIG_FILE=str(path)).json["file"] == str(path)


# It tries.


def blocks(directory):
    return [path for path in directory.glob("*/*/???/*") if path.is_file()]


@pytest.mark.parametrize("pipeline", ["Posix", "Cache|Posix", "Cache|Compress|Posix"])
def test_a_block_goes_there_and_back_and_is_removed(report, file, directory, pipeline):
    probe = report(file(pipeline, storage_backends=str(directory)))["probe"]
    assert probe["verified"] is True
    assert probe["removed"] is True
    assert probe["block_size"] == _check.PROBE_BYTES
    assert "a default" in probe["sizes"]
    assert list(probe["times_ms"]) == ["open", "dump", "lookup", "load", "remove"]
    assert blocks(directory) == []
    assert [entry.name for entry in directory.iterdir()] == [".ucm"]


def test_given_sizes_are_kept(report, file, directory):
    sizes = {"block_size": "48K", "shard_size": "24K", "tensor_size_list": [8192, 16384]}
    probe = report(file("Posix", storage_backends=str(directory), **sizes))["probe"]
    assert (probe["sizes"], probe["block_size"], probe["shard_size"]) == ("given", 49152, 24576)
    assert probe["verified"] is True


def test_a_scheduler_s_configuration_is_probed_as_a_worker_s(report, file, directory):
    made = report(file("Posix", storage_backends=str(directory), device_id=-1))
    assert made["probe"]["verified"] is True
    assert rows(made, "device_id")["the pipeline"]["value"] == -1


def test_device_memory_is_tried_where_it_is_needed(ucm_command, report, file, directory):
    store = {"storage_backends": str(directory), "memory": "cuda"}
    outcome = ucm_command("check", file("Posix", **store))
    assert outcome.code == 1
    assert "memory: Posix takes host memory only, not 'cuda'" in outcome.err
    assert report(file("Posix", **store, device_id=-1))["probe"]["verified"] is True


@pytest.mark.parametrize("pipeline", ["Empty", "Fake"])
def test_a_pipeline_that_loads_nothing_is_only_dumped_to(report, file, pipeline):
    probe = report(file(pipeline))["probe"]
    assert probe["verified"] is None
    assert "load" not in probe["times_ms"]


def test_what_does_not_outlive_the_store_is_loaded_from_the_same(report, file):
    assert report(file("Cache|Fake"))["probe"]["verified"] is True


def test_a_class_elsewhere_is_asked_for_a_block(report, tmp_path, monkeypatch):
    (tmp_path / "acme_check.py").write_text(
        "from ucm.store.ucmstore_v1 import UcmKVStoreBaseV1\n"
        "class Acme(UcmKVStoreBaseV1):\n"
        "    def cc_store(self): return 0\n"
        "    def lookup(self, block_ids): return [False]\n"
        "    lookup_on_prefix = prefetch = load = dump = load_data = dump_data = lookup\n"
        "    wait = check = lookup\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "acme.yaml"
    entry = {
        "ucm_connector_name": "Acme",
        "ucm_connector_module_path": "acme_check",
        "ucm_connector_config": {"colour": "blue", "access_key": "hidden"},
    }
    path.write_text(yaml.safe_dump({"ucm_connectors": [entry]}))
    made = report(path)
    assert made["probe"] is None
    assert "only our own stores are probed" in made["notes"][0]
    assert rows(made, "colour")["Acme"]["value"] == "blue"
    assert rows(made, "access_key")["Acme"]["value"] == "(secret)"


class Guarded(ucm.StoreBase):
    """Takes every dump and keeps nothing."""

    capabilities = frozenset()
    OPTIONS = (
        ucm.Option("guarded_by", "string", "nobody", help="Who asks."),
        ucm.Option("guarded_word", "secret", "", help="What it asks for."),
    )

    def lookup(self, block_ids):
        return [False] * len(block_ids)

    def dump(self, block_ids, shard_index, shards):
        return None


@pytest.mark.parametrize("pipeline", ["Guarded", "Compress|Guarded"])
def test_the_options_of_a_store_in_python_are_explained_but_not_its_secret(
    ucm_command, file, pipeline
):
    registry.registry().register("Guarded", Guarded)
    try:
        path = file(pipeline, guarded_word="hunter2", compress_codec="raw")
        shown = [ucm_command("check", path), ucm_command("check", path, "--json")]
        shown.append(ucm_command("plugins", "Guarded"))
    finally:
        registry.registry.cache_clear()
    assert [outcome.code for outcome in shown] == [0, 0, 0]
    assert rows(shown[1].json, "guarded_by")["Guarded"]["value"] == "nobody"
    assert rows(shown[1].json, "guarded_word")["Guarded"]["value"] == "(secret)"
    assert "hunter2" not in "".join(outcome.out + outcome.err for outcome in shown)


def test_what_cannot_work_is_1_and_explained_all_the_same(ucm_command, file, tmp_path):
    path = file("Posix", storage_backends=str(tmp_path / "missing"))
    outcome = ucm_command("check", path, "--json")
    assert outcome.code == 1
    assert outcome.json["ok"] is False
    assert outcome.json["probe"] is None
    assert "does not exist; create it with: mkdir -p" in outcome.json["error"]
    assert rows(outcome.json, "storage_backends")
    assert outcome.err.startswith(f"ucm: {path}: Posix: storage_backends")
    assert outcome.err.count("\n") == 1


def test_a_wrong_configuration_is_2(ucm_command, refused, file, tmp_path):
    refused(ucm_command("check", file("Empty", zzz=1)), 2, "config.yaml", "zzz: unknown option")
    refused(ucm_command("check", tmp_path / "gone.yaml"), 2, "gone.yaml", "cannot be read")
    refused(ucm_command("check"), 2, "CONFIG.yaml")


# It warns of this machine.


def test_a_directory_as_it_should_be_is_only_without_a_quota(report, file, directory):
    made = report(file("Posix", storage_backends=str(directory)))
    # What is left depends on whose disk this is.
    assert warned(made) - {"nearly_full", "not_persistent", "nofile"} == {"unbounded"}


def test_every_warning_says_what_why_and_what_to_do(report, file, directory):
    directory.chmod(0o777)
    made = report(file("Cache|Posix", storage_backends=str(directory)))
    assert made["warnings"]
    for warning in made["warnings"]:
        assert all(warning[part] for part in ("check", "what", "why", "remedy"))


@pytest.mark.parametrize(
    ("mode", "check"), [(0o777, "writable"), (0o1777, "writable"), (0o755, "readable")]
)
def test_a_directory_open_to_others_is_named(report, file, directory, mode, check):
    directory.chmod(mode)
    made = report(file("Posix", storage_backends=str(directory)))
    (found,) = [w for w in made["warnings"] if w["check"] in ("writable", "readable")]
    assert found["check"] == check
    assert f"{directory} can be" in found["what"]
    assert f"{mode:04o}" in found["what"]


def test_a_directory_in_memory_is_named(report, file):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        made = report(file("Posix", storage_backends=place, io_direct=True))
        (found,) = [w for w in made["warnings"] if w["check"] == "not_persistent"]
        assert found["what"] == f"{place} is on tmpfs"
        refuses = checks.try_direct(place) is not None  # newer kernels accept it
        assert ("io_direct" in warned(made)) == refuses
        assert sorted(path.name for path in Path(place).glob(".ucm-*")) == []


def test_low_limits_are_named(file, directory):
    path = file("Cache|Posix", storage_backends=str(directory), cache_buffer_capacity_gb=0.25)
    done = subprocess.run(
        [sys.executable, "-c", "from ucm.cli import main; main()", "check", str(path), "--json"],
        preexec_fn=lambda: (
            resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)),
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536)),
        ),
        cwd=directory,
        capture_output=True,
        text=True,
        check=True,
    )
    found = {warning["check"]: warning for warning in json.loads(done.stdout)["warnings"]}
    assert "RLIMIT_NOFILE is 200" in found["nofile"]["what"]
    assert "RLIMIT_MEMLOCK is 65536 bytes" in found["memlock"]["what"]


# What each check makes of a machine, whatever this one is.

MOUNTS = r"""
rootfs / rootfs rw 0 0
/dev/sda1 / ext4 rw,relatime 0 0
tmpfs /dev/shm tmpfs rw,size=65536k 0 0
/dev/sdb1 /data xfs rw 0 0
/dev/sdc1 /data/with\040blank xfs rw 0 0
nas:/kv /mnt/kv nfs4 rw,vers=4.2,hard,proto=tcp,addr=10.0.0.1 0 0
nas:/slow /mnt/slow nfs rw,noac 0 0
nas:/pos /mnt/pos nfs rw,lookupcache=pos 0 0
nas:/none /mnt/none nfs rw,lookupcache=none 0 0
nas:/one /mnt/one nfs rw,actimeo=1 0 0
nas:/five /mnt/five nfs rw,acdirmax=5 0 0
hf3fs.stage /mnt/3fs fuse.hf3fs rw,nosuid,nodev,relatime,user_id=0,group_id=0 0 0
"""


@pytest.mark.parametrize(
    ("path", "point"),
    [
        ("/", "/"),
        ("/home/me", "/"),
        ("/data", "/data"),
        ("/data/kv", "/data"),
        ("/database", "/"),
        ("/data/with blank/kv", "/data/with blank"),
    ],
)
def test_a_path_lies_on_the_deepest_mount(path, point):
    assert checks.mount_of(path, checks.parse_mounts(MOUNTS)).point == point


def test_of_two_mounts_in_one_place_the_last_counts():
    assert checks.mount_of("/", checks.parse_mounts(MOUNTS)).type == "ext4"


@pytest.mark.parametrize(
    ("path", "found", "words"),
    [
        ("/data/kv", [], ""),
        ("/dev/shm/kv", ["not_persistent"], "on tmpfs"),
        ("/mnt/kv", ["nfs_attributes"], "up to 60 s"),
        ("/mnt/five", ["nfs_attributes"], "up to 5 s"),
        ("/mnt/slow", [], ""),
        ("/mnt/pos", [], ""),
        ("/mnt/none", [], ""),
        ("/mnt/one", [], ""),
        ("/mnt/3fs/kv", ["3fs"], "on 3FS"),
    ],
)
def test_file_systems(path, found, words):
    made = checks.file_system(path, checks.mount_of(path, checks.parse_mounts(MOUNTS)))
    assert [warning.check for warning in made] == found
    assert words in "".join(warning.what + warning.why for warning in made)


def test_a_file_system_without_o_direct():
    assert checks.direct_io("/kv", None) == []
    (found,) = checks.direct_io("/kv", OSError(errno.EINVAL, "Invalid argument"))
    assert found.what == "io_direct is true, but /kv refuses O_DIRECT: Invalid argument"
    assert "io_direct: false" in found.remedy


@pytest.mark.parametrize(
    ("pool", "limit", "words"),
    [
        (8 * GIB, None, None),
        (8 * GIB, 9 * GIB, None),
        (17 * GIB, None, "available now"),
        (8 * GIB, 4 * GIB, "control group"),
        (17 * GIB, 4 * GIB, "control group"),
    ],
)
def test_a_pool_larger_than_memory(pool, limit, words):
    made = checks.pool_memory(pool, checks.Memory(16 * GIB, limit, 0))
    assert len(made) == (words is not None)
    assert all(words in warning.what for warning in made)


@pytest.mark.parametrize(
    ("memory", "shared", "pool"),
    [
        (checks.Memory(16 * GIB, None, 6 * GIB), True, 3 * GIB),
        (checks.Memory(16 * GIB, None, 6 * GIB), False, 8 * GIB),
        (checks.Memory(16 * GIB, 4 * GIB, 6 * GIB, GIB), True, 3 * GIB // 2),
        (checks.Memory(16 * GIB, 4 * GIB, 6 * GIB, 5 * GIB), True, 0),
        (checks.Memory(2048 * GIB, None, 1024 * GIB), True, 256 * GIB),
    ],
)
def test_the_size_of_a_pool_that_is_not_given(memory, shared, pool):
    assert checks.automatic_pool(memory, shared) == pool


def test_a_pool_that_no_process_shares_needs_no_shared_memory(monkeypatch):
    monkeypatch.setattr(checks, "read_memory", lambda: checks.Memory(16 * GIB, None, 64 << 20))
    monkeypatch.setattr(checks, "read_logind", lambda: "")
    named = {True: set(), False: set()}
    for shared in named:
        named[shared] = {found.check for found in checks.pool_warnings(1, shared)}
    assert "dev_shm" in named[True] - named[False]


def test_a_pool_larger_than_shared_memory():
    memory = checks.Memory(16 * GIB, None, 64 << 20)
    (found,) = checks.pool_shm(GIB, memory)
    assert "/dev/shm has 0.06 GiB free" in found.what
    assert "share_buffer_enable: false" in found.remedy
    assert checks.pool_shm(64 << 20, memory) == []


@pytest.mark.parametrize(
    ("memlock", "warns"), [(None, False), (GIB, False), (GIB - 1, True), (0, True)]
)
def test_a_pool_larger_than_may_be_locked(memlock, warns):
    assert bool(checks.memlock(GIB, checks.Limits(memlock, None, 0))) == warns


@pytest.mark.parametrize(
    ("nofile", "threads", "warns"),
    [(None, 512, False), (1024, 16, False), (1023, 16, True), (1024, 1024, True)],
)
def test_few_files(nofile, threads, warns):
    assert bool(checks.nofile(threads, 2, checks.Limits(None, nofile, 10))) == warns


@pytest.mark.parametrize(
    ("uid", "systemd", "logind", "warns"),
    [
        (1000, True, "", True),
        (1000, True, "#RemoveIPC=no\n", True),
        (1000, True, "[Login]\nRemoveIPC=no\n", False),
        (1000, True, "RemoveIPC=no\nRemoveIPC=yes\n", True),
        (1000, True, "RemoveIPC = off\n", False),
        (1000, False, "", False),
        (0, True, "", False),
        (999, True, "", False),
        (65534, True, "", False),
    ],
)
def test_shared_memory_that_goes_with_the_session(uid, systemd, logind, warns):
    assert bool(checks.remove_ipc(uid, systemd, logind)) == warns


def test_the_drop_in_that_wins_comes_last(tmp_path):
    for name, text in {
        "etc/systemd/logind.conf": "RemoveIPC=yes",
        "usr/lib/systemd/logind.conf.d/50-vendor.conf": "RemoveIPC=maybe",
        "etc/systemd/logind.conf.d/50-vendor.conf": "RemoveIPC=no",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert checks.read_logind(tmp_path).split() == ["RemoveIPC=yes", "RemoveIPC=no"]


@pytest.mark.parametrize(
    ("mode", "found"),
    [
        (0o40700, []),
        (0o40770, []),
        (0o40755, ["readable"]),
        (0o40701, ["readable"]),
        (0o40777, ["writable"]),
        (0o41777, ["writable"]),
    ],
)
def test_permissions(mode, found):
    assert [warning.check for warning in checks.permissions("/kv", mode)] == found


@pytest.mark.parametrize(
    ("has", "capacity", "found"),
    [
        (checks.Space(1000, 500, 1000, 500), 10, []),
        (checks.Space(1000, 40, 1000, 500), 10, ["nearly_full"]),
        (checks.Space(1000, 500, 1000, 10), 10, ["nearly_full"]),
        (checks.Space(1000, 500, 0, 0), 10, []),  # btrfs counts no files
        (checks.Space(1000, 500, 1000, 500), 2000, ["quota"]),
        (checks.Space(1000, 500, 1000, 500), 0, ["unbounded"]),
    ],
)
def test_room_in_the_directory(has, capacity, found):
    assert [warning.check for warning in checks.space("/kv", has, capacity)] == found


def test_what_the_machine_says_can_be_read():
    memory, limits = checks.read_memory(), checks.read_limits()
    assert memory.available > 0
    assert limits.open_files > 0
    assert checks.mount_of(os.path.realpath("/proc/self"), checks.read_mounts()).type == "proc"


# 3FS


def test_a_mount_of_3fs_is_known_by_its_type_or_its_folder(tmp_path):
    mounts = checks.parse_mounts(MOUNTS)
    assert checks_3fs.mount_point("/mnt/3fs/kv", mounts) == Path("/mnt/3fs")
    assert checks_3fs.mount_point(str(tmp_path), mounts) is None
    (tmp_path / "3fs-virt" / "iovs").mkdir(parents=True)
    (tmp_path / "kv").mkdir()
    assert checks_3fs.mount_point(str(tmp_path / "kv"), mounts) == tmp_path


def test_what_3fs_lacks_is_named(ucm_command, file, directory):
    path = file("Ds3fs", storage_backends=str(directory), ds3fs_library="libnone.so")
    outcome = ucm_command("check", path, "--json")
    assert outcome.code == 1
    made = json.loads(outcome.out)
    found = {warning["check"]: warning for warning in made["warnings"]}
    assert "libnone.so is not there" in found["3fs_library"]["what"]
    assert "no folder above it holds 3fs-virt/iovs" in found["3fs_mount"]["what"]
    assert "cannot open libnone.so" in made["error"]
    assert checks_3fs.daemon(Path("/mnt/3fs"), True, True) == []
    assert checks_3fs.daemon(Path("/mnt/3fs"), True, False)[0].check == "3fs_daemon"
    assert checks_3fs.daemon(Path("/mnt/3fs"), False, False)[0].check == "3fs_iovs"
    assert checks_3fs.shared_memory(64 << 20, 1 << 20)[0].check == "3fs_memory"


def test_a_block_goes_there_and_back_over_3fs(report, file, hf3fs_mount, hf3fs_library):
    kv = hf3fs_mount / "kv"
    kv.mkdir(mode=0o700)
    made = report(file("Ds3fs", storage_backends=str(kv), ds3fs_library=str(hf3fs_library)))
    assert made["probe"]["verified"]
    assert not {check for check in warned(made) if check.startswith("3fs")}
