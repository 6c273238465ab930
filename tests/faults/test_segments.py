"""What may be wrong with the shared memory of a cache, and with the processes that share it."""

import json
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support import cuda_standin

import ucm
from ucm import Status, segments
from ucm.conformance import kit

MIB = 1 << 20
BLOCK = MIB // 4
SIZES = {"block_size": BLOCK, "shard_size": BLOCK // 4}


def capacity(blocks):
    return {"cache_buffer_capacity_gb": blocks * BLOCK / 2**30}


def path_of(unique_id):
    return Path(f"/dev/shm/ucm-cache-{os.geteuid()}-{unique_id}")


def members_of(config):
    path = path_of(config["unique_id"])
    return [each for found in segments.inspect() if found.path == path for each in found.members]


def makes_room(config):
    """Tell whether a member of a segment makes room in it."""
    with path_of(config["unique_id"]).open("rb") as file:
        file.seek(428)  # the number of that member
        return file.read(4) != b"\xff" * 4


@pytest.fixture
def new_id():
    """Make names whose segments must be gone at the end."""
    names = []

    def make():
        names.append(f"segments-{os.getpid()}-{random.getrandbits(32):08x}")
        return names[-1]

    yield make
    left = [name for name in names if path_of(name).exists()]
    for name in left:
        path_of(name).unlink()
    assert left == []


@pytest.fixture
def config(storage, new_id):
    options = {"store_pipeline": "Cache|Posix", "storage_backends": str(storage.folder)}
    return {**options, "unique_id": new_id(), **capacity(16), **SIZES}


@pytest.fixture
def run():
    """Run a program with the configuration as `config`; what runs at the end is killed."""
    running = []

    def start(code, config, *command, **variables):
        head = "import json, os, signal, sys, time, ucm\nconfig = json.loads(sys.argv[1])\n"
        code = head + textwrap.dedent(code)
        process = subprocess.Popen(
            [*command, sys.executable, "-c", code, json.dumps(config)],
            cwd="/",
            env={**os.environ, **variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        with process:  # its pipes are closed
            process.kill()


STORES = """
    from ucm.conformance import kit
    store = ucm.open_pipeline(config)
    block = kit.Block(bytes(16), (bytes(store.layout.shard_size),) * 4)
    kit.dump_pieces(store, block.pieces()[1:] if "UNFINISHED" in os.environ else block.pieces())
    "UNFINISHED" in os.environ or store.drain(10000)
    print("stored", flush=True)
    time.sleep(60)
"""


def let_die(run, *configs, **variables):
    """Kill processes that have stored a block, or, with UNFINISHED, a part of one."""
    processes = [run(STORES, config, **variables) for config in configs]
    for process in processes:
        assert process.stdout.readline() == "stored\n", process.stderr.read()
    for process in processes:
        process.kill()
        process.wait()


def expect_all_free(store):
    """Expect every frame free, at the latest when what is still written below has ended."""
    until = time.monotonic() + 10
    while (stats := store.stats()["Cache"])["frames_free"] != stats["frames_ready"]:
        assert time.monotonic() < until, stats
        time.sleep(0.02)


def expect_gone(*paths):
    """Expect segments gone, at the latest when another test's store that looks at them is open."""
    until = time.monotonic() + 20
    while any(path.exists() for path in paths):
        assert time.monotonic() < until, paths
        time.sleep(0.02)


def said_of(path, caplog):
    """Return what was logged of a segment; others are swept by any store that opens."""
    ucm.logs.flush()
    return [text for text in caplog.messages if str(path) in text]


def expect_works(config, rng):
    with ucm.open_pipeline(config) as store:
        blocks = kit.new_blocks(store, rng, 8)
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
        assert store.drain(kit.WAIT_MS).lost == 0


# Left behind.


def test_a_segment_of_other_sizes_makes_way_when_nobody_lives_in_it(config, run, rng, caplog):
    let_die(run, config, UNFINISHED="1")
    path = path_of(config["unique_id"])
    assert path.exists()
    expect_works({**config, "block_size": 2 * BLOCK}, rng)
    (line,) = [text for text in said_of(path, caplog) if "processes that are dead" in text]
    assert "differs in shards of a block: 4 there, 8 here; it is removed, with 1 blocks" in line
    assert f"nowhere else: {bytes(16).hex()}" in line


def test_what_the_dead_accepted_is_lost_in_one_report(config, run, caplog):
    """More unfinished blocks than dumps may hold: some are below, with a handle that is gone."""
    begins = """
        from ucm.conformance import kit
        store = ucm.open_pipeline(config)
        for number in range(16):
            piece = kit.Block(bytes([number] * 16), (bytes(store.layout.shard_size),) * 4)
            kit.dump_pieces(store, piece.pieces()[1:2])
        print("stored", flush=True)
        time.sleep(60)
    """
    process = run(begins, config)
    assert process.stdout.readline() == "stored\n", process.stderr.read()
    process.kill()
    process.wait()
    store = ucm.open_pipeline(config)
    report = store.close()
    assert (report.lost, report.pending) == (16, 0)
    ucm.logs.flush()
    assert all(f"block {bytes([number] * 16).hex()} " in caplog.text for number in range(16))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"garbage!" * 10000,
        lambda data: b"\1\0\0\0" * 20000,
        lambda data: data[:100],
        lambda data: data[:8192],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4096],
        lambda data: data + bytes(4096),
        lambda data: data[:8] + b"\7" + data[9:],
    ],
)
def test_a_spoiled_segment_is_removed_by_the_next_start(config, run, rng, caplog, spoil):
    let_die(run, config, UNFINISHED="1")
    path = path_of(config["unique_id"])
    path.write_bytes(spoil(path.read_bytes()))
    with caplog.at_level(logging.INFO):
        expect_works(config, rng)
    lines = said_of(path, caplog)
    # Whoever starts in another test meanwhile may have taken it away.
    assert not lines[:-1] or "was left by processes that are dead" in lines[0]
    assert f"{path}: made" in lines[-1]


def test_an_empty_file_becomes_a_segment(config, rng):
    path = path_of(config["unique_id"])
    path.touch(0o600)
    expect_works(config, rng)


def test_segments_of_other_dead_engines_are_swept(config, run, rng, new_id):
    others = [{**config, "unique_id": new_id()} for _ in range(3)]
    unfinished = run(STORES, others[2], UNFINISHED="1")
    assert unfinished.stdout.readline() == "stored\n"
    let_die(run, *others[:2])
    unfinished.kill()
    unfinished.wait()
    path_of(others[1]["unique_id"]).write_bytes(b"garbage!" * 10000)  # there or not
    expect_works(config, rng)
    expect_gone(*(path_of(other["unique_id"]) for other in others[:2]))
    waits = path_of(others[2]["unique_id"])
    assert waits.exists(), "what waits to be stored is kept for a while"
    with ucm.open_pipeline(others[2]) as store:
        assert store.stats()["Cache"]["members"] == 1


def test_what_is_lost_with_a_swept_segment_is_named(config, run, rng, new_id, caplog):
    for _ in range(5):  # whoever starts in another test meanwhile may take it away
        other = {**config, "unique_id": new_id()}
        path = path_of(other["unique_id"])
        let_die(run, other, UNFINISHED="1")
        with path.open("r+b") as file:
            file.seek(352)  # its last sign of life
            file.write(struct.pack("<q", -(1 << 60)))
        expect_works(config, rng)
        expect_gone(path)
        lines = said_of(path, caplog)
        if lines:
            break
    (line,) = lines
    assert f"{path} was left by processes that are dead" in line
    assert f"with 1 blocks that were stored nowhere else: {bytes(16).hex()}" in line


def test_what_was_removed_as_its_writer_died_is_not_stored_later(config, run, rng, new_id):
    posix = {"store_pipeline": "Posix", "storage_backends": config["storage_backends"], **SIZES}
    let_die(run, config, UNFINISHED="1")
    with ucm.open_pipeline(posix) as store:  # the dead wrote it
        block = kit.Block(bytes(16), (bytes(store.layout.shard_size),) * 4)
        kit.dump(store, block)
    with path_of(config["unique_id"]).open("r+b") as file:
        file.seek(312)
        (at,) = struct.unpack("<Q", file.read(8))
        file.seek(at + 20)
        while struct.unpack("<I", file.read(4)) != (2,):  # the one that gathers
            at += 128
            file.seek(at + 20)
        file.seek(at + 20)
        file.write(struct.pack("<I", 4))  # a zombie
        file.seek(at + 48)
        file.write(struct.pack("<I", 1 << 0 | 1 << 2))  # being written, and removed
        file.seek(at + 60)
        file.write(struct.pack("<I", 1))  # used by its writer
    expect_works({**config, "unique_id": new_id()}, rng)
    with ucm.open_pipeline(config) as store:
        until = time.monotonic() + 20
        while store.lookup([block.id]) == [True]:
            assert time.monotonic() < until, "the block is back"
            time.sleep(0.02)
        assert store.stats()["Cache"]["members"] == 1


def test_a_living_segment_is_not_swept(config, rng, new_id):
    with ucm.open_pipeline(config) as store:
        block = kit.new_block(store, rng)
        kit.dump(store, block)
        expect_works({**config, "unique_id": new_id()}, rng)
        assert path_of(config["unique_id"]).exists()
        kit.expect_published(store, block)


# Room.


def needs(*command):
    try:
        probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"it needs {command[0]}: {error}")
    if probe.returncode:
        pytest.skip(f"{command[0]} needs root: {probe.stderr.strip()}")


def in_small_memory(run, size, code, config, before="", **variables):
    """Run it where /dev/shm is a file system of its own; return what it printed and logged."""
    script = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && {before} exec "$0" "$@"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    needs(*command)
    code = "import logging; logging.basicConfig()\n" + textwrap.dedent(code)
    return run(code, config, *command, **variables).communicate(timeout=120)


WORKS = """
    import random
    from ucm.conformance import kit
    with ucm.open_pipeline(config) as store:
        if "FILL" in os.environ:  # somebody else takes the rest
            with open("/dev/shm/else", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        blocks = kit.new_blocks(store, random.Random(1), 60)
        kit.dump(store, *blocks)
        kit.expect_published(store, *blocks)
        assert store.drain(20000).lost == 0
        kit.expect_published(store, *blocks)
        print(store.stats()["Cache"]["frames_ready"])
    print(os.listdir("/dev/shm"))
"""


CHOOSES = """
    from ucm import checks
    logging.getLogger("ucm").setLevel(logging.INFO)
    try:
        with ucm.open_pipeline(config) as store:
            print(store.stats()["Cache"]["frames"])
    except ucm.StoreError as error:
        print(error)
    print(checks.automatic_pool(checks.read_memory(), True))
"""


@pytest.mark.parametrize(
    ("size", "limit", "used", "cached", "pool", "why"),
    [
        ("8g", "4294967296", 4294967296, 3 << 30, 3 << 29, "half of what this container may"),
        ("2g", "4294967296", 4294967296, 3 << 30, 1 << 30, "half of what /dev/shm has free"),
        ("2g", "max", 4294967296, 0, 1 << 30, "half of what /dev/shm has free"),
        ("1t", "max", 0, 0, 256 << 30, "the most that is taken unasked"),
        ("8g", "4294967296", 4294963200, 0, None, "raise the memory limit of the container"),
    ],
)
def test_the_limit_that_sets_the_size_is_named(config, run, size, limit, used, cached, pool, why):
    group = "/sys/fs/cgroup"
    before = f"mount -t tmpfs tmpfs {group} && echo {limit} > {group}/memory.max && "
    before += f"echo {used} > {group}/memory.current && "
    before += f"printf 'file 1\ninactive_file {cached}\n' > {group}/memory.stat && "
    block = {"block_size": 16 * MIB, "shard_size": 16 * MIB}
    config = {**config, **block, "cache_buffer_capacity_gb": 0}
    out, errors = in_small_memory(run, size, CHOOSES, config, before)
    made, checked = out.splitlines()
    if pool is None:
        assert why in made
        assert "/dev/shm larger" not in made
    else:
        assert why in errors
        assert int(made) == int(checked) // (16 * MIB)
        assert abs(int(checked) - pool) <= MIB


JOINS = """
    def take_the_rest():
        shm = os.statvfs("/dev/shm")
        with open("/dev/shm/other", "ab") as other:
            other.write(bytes(shm.f_bavail * shm.f_frsize - config["block_size"]))
    with ucm.open_pipeline(config) as first:
        take_the_rest()
        with ucm.open_pipeline(config) as second:
            print(second.stats()["Cache"]["members"])
    take_the_rest()
    try:
        ucm.open_pipeline(config)
    except ucm.ConfigError as error:
        print(error)
    print(os.listdir("/dev/shm"))
"""


def test_who_joins_needs_no_room(config, run):
    block = {"block_size": MIB, "shard_size": MIB, "cache_buffer_capacity_gb": 0}
    members, refused, left = in_small_memory(run, "32m", JOINS, {**config, **block})[0].splitlines()
    assert members == "2"
    assert "cannot hold two blocks" in refused
    assert left == "['other']"


def test_shared_memory_without_a_limit_is_as_large_as_memory(config, run):
    config = {**config, "cache_buffer_capacity_gb": 0}
    made, checked = in_small_memory(run, "0", CHOOSES, config)[0].splitlines()
    assert 0 < int(made) * BLOCK <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert abs(int(made) * BLOCK - int(checked)) <= 256 * MIB  # memory in use comes and goes
    frames, left = in_small_memory(run, "0", WORKS, {**config, **capacity(64)})[0].splitlines()
    assert (int(frames) >= 60, left) == (True, "[]")


def test_what_another_version_left_waits_ten_minutes_for_it(config, new_id, caplog, run):
    let_die(run, config, UNFINISHED="1")
    path = path_of(config["unique_id"])
    with path.open("r+b") as file:
        file.seek(8)
        file.write(struct.pack("<I", 1))
    elsewhere = {**config, "unique_id": new_id()}
    with ucm.open_pipeline(elsewhere):
        assert path.exists()
    os.utime(path, (time.time() - 601,) * 2)
    with ucm.open_pipeline(elsewhere):
        assert not path.exists()
    ucm.logs.flush()
    assert "of another version; it is removed, with whatever was in it" in caplog.text


def test_a_cache_is_not_made_for_more_than_shared_memory_can_have(config, run):
    out, errors = in_small_memory(run, "8m", CHOOSES, {**config, **capacity(4096)})
    assert out.splitlines()[0] == str(8 * MIB // BLOCK)
    assert "the cache will be smaller" in errors


def test_in_a_small_shared_memory_the_cache_is_smaller(config, run):
    out, errors = in_small_memory(run, "8m", WORKS, {**config, **capacity(64)})
    frames, left = out.splitlines()
    assert 16 <= int(frames) < 32, errors
    assert left == "[]"
    assert "cannot grow beyond" in errors
    assert "make /dev/shm larger" in errors


def test_where_others_fill_the_shared_memory_nobody_dies(config, run):
    out, errors = in_small_memory(run, "8m", WORKS, {**config, **capacity(64)}, FILL="1")
    assert out, errors
    frames, left = out.splitlines()
    assert 2 <= int(frames) < 32, errors
    assert left == "['else']"


def test_what_a_device_gets_room_for_later_is_pinned(config, run, tmp_path):
    code = """
        import ctypes
        cuda = ctypes.CDLL("libcuda.so.1")
        context, rows = ctypes.c_void_p(), ctypes.c_uint64()
        assert cuda.cuInit(0) == 0
        assert cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
        assert cuda.cuCtxPushCurrent_v2(context) == 0
        assert cuda.cuMemAlloc_v2(ctypes.byref(rows), ctypes.c_size_t(config["block_size"])) == 0
        with open("/dev/shm/else", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, 7 << 19)
        device = {**config, "memory": "cuda", "device_id": 0}
        with ucm.open_pipeline(device) as store, ucm.open_pipeline(config) as other:
            ready = lambda: store.stats()["Cache"]["frames_ready"]
            print(ready())
            os.remove("/dev/shm/else")
            addresses = [[rows.value + shard * config["shard_size"]] for shard in range(4)]
            block, grown = 0, 0
            while grown < 16:  # then every frame had its turn: each takes the one longest free
                grown += ready() == 16
                ids = [block.to_bytes(16, "little")] * 4
                store.wait(store.dump_data(ids, range(4), addresses))
                store.wait(store.load_data(ids, range(4), addresses))
                store.drain()
                block += 1
        # What the stand-in finds wrong ends the process with a status of its own.
        assert cuda.cuMemFree_v2(rows) == 0
        assert cuda.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0
        assert cuda.cuDevicePrimaryCtxRelease_v2(0) == 0
        print("copied")
    """
    driver = {"LD_LIBRARY_PATH": str(cuda_standin(tmp_path))}
    out, errors = in_small_memory(run, "8m", code, config, **driver)
    assert out.splitlines()[1:] == ["copied"], errors
    assert int(out.splitlines()[0]) < 16
    assert "fake CUDA" not in errors


@pytest.mark.parametrize("blocks", [8, 0])
def test_no_room_for_two_blocks_is_told(config, run, blocks):
    code = """
        try:
            ucm.open_pipeline(config)
        except ucm.StoreError as error:
            print(error)
        print(os.listdir("/dev/shm"))
    """
    out, _ = in_small_memory(run, "400k", code, {**config, **capacity(blocks)})
    error, left = out.splitlines()
    assert "/dev/shm" in error
    assert "share_buffer_enable: false" in error
    assert left == "[]"


# Who lives.


def test_a_forked_child_keeps_no_dead_parent_alive(config, run, rng):
    code = """
        from ucm.conformance import kit
        store = ucm.open_pipeline(config)
        shards = (bytes([7]) * store.layout.shard_size,) * 4
        kit.dump_pieces(store, kit.Block(b"of-a-dead-parent", shards).pieces()[1:])
        if os.fork() == 0:
            print("child", os.getpid(), flush=True)
            time.sleep(60)
            os._exit(0)
        time.sleep(60)
    """
    with ucm.open_pipeline(config) as store:
        parent = run(code, config)
        child = int(parent.stdout.readline().split()[1])
        assert store.stats()["Cache"]["members"] == 2
        parent.kill()
        parent.wait()
        try:
            until = time.monotonic() + 10
            while store.stats()["Cache"]["members"] == 2:
                assert time.monotonic() < until, "the child keeps its parent alive"
                time.sleep(0.02)
            os.kill(child, 0)
            shards = (bytes([7]) * (BLOCK // 4),) * 4
            block = kit.Block(b"of-a-dead-parent", shards)
            kit.dump_pieces(store, block.pieces()[:1])
            kit.expect_published(store, block)
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_stopped_reader_stops_nobody(config, run, rng, libraries):
    with ucm.open_pipeline({**config, "unique_id": ""}) as store:
        blocks = kit.new_blocks(store, rng, 2)
        kit.dump(store, *blocks)
    config = {**config, **capacity(32)}  # two frames of the slow can be spared
    code = """
        from ucm.conformance import kit
        store = ucm.open_pipeline(config)
        ids = [bytes.fromhex(each) for each in os.environ["IDS"].split()]
        blocks = [kit.Block(each, (b"",) * 4) for each in ids]
        transfer = kit.start_load(store, kit.pieces_of(blocks))
        print("loading", flush=True)
        kit.finish(store, transfer)
        print([result.status.name for result in transfer.task.results], flush=True)
        sys.stdin.read()
        store.close()
    """
    variables = {
        "UCM_PLUGINS": ":".join(map(str, libraries)),
        "UCM_FAILPOINTS": "cache.before_fill=delay:2000@1",
        "IDS": " ".join(name.hex() for name in kit.ids_of(blocks)),
    }
    of_failpoints = {**config, "store_pipeline": "UCM_PLUGINS:Cache|UCM_PLUGINS:Posix"}
    with ucm.open_pipeline(config) as store:
        reader = run(code, of_failpoints, **variables)
        assert reader.stdout.readline() == "loading\n", reader.stderr.read()
        time.sleep(0.5)
        os.kill(reader.pid, signal.SIGSTOP)
        kit.expect_published(store, *blocks)
        os.kill(reader.pid, signal.SIGCONT)
        assert set(json.loads(reader.stdout.readline().replace("'", '"'))) == {Status.OK.name}
        kit.expect_published(store, *blocks)
        reader.stdin.close()
        assert reader.wait(60) == 0, reader.stderr.read()
        store.remove(kit.ids_of(blocks))
        expect_all_free(store)


@pytest.mark.parametrize("next_dies", [False, True])
def test_what_the_dead_of_another_pid_namespace_accepted_is_adopted(
    config, run, libraries, next_dies
):
    """As a container that is restarted; one that still runs is not joined."""
    command = ["unshare", "--pid", "--fork", "--kill-child"]
    needs(*command)
    elsewhere = run(STORES, config, *command, UNFINISHED="1")
    assert elsewhere.stdout.readline() == "stored\n", elsewhere.stderr.read()
    with pytest.raises(ucm.StoreError, match="PID namespace"):
        ucm.open_pipeline(config)
    elsewhere.kill()
    until = time.monotonic() + 10
    while any(member.alive for member in members_of(config)):
        assert time.monotonic() < until, "it lives"
        time.sleep(0.02)
    if next_dies:
        of_failpoints = {**config, "store_pipeline": "UCM_PLUGINS:Cache|UCM_PLUGINS:Posix"}
        plugins = {"UCM_PLUGINS": ":".join(map(str, libraries))}
        dies = run(STORES, of_failpoints, **plugins, UCM_FAILPOINTS="segment.moved=crash@1")
        assert dies.wait(60) == -signal.SIGKILL, dies.stderr.read()
    with ucm.open_pipeline(config) as store:
        block = kit.Block(bytes(16), (bytes(store.layout.shard_size),) * 4)
        kit.dump_pieces(store, block.pieces()[:1])
        kit.expect_published(store, block)
        store.remove([block.id])
        expect_all_free(store)


@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_a_device_store_opens_though_who_makes_room_does_not_go_on(
    config, run, libraries, tmp_path, end
):
    code = """
        import logging
        logging.basicConfig()
        print("opening", flush=True)
        store = ucm.open_pipeline(config)
        stats = store.stats()["Cache"]
        print("all" if stats["frames_ready"] == stats["frames"] else "some", file=sys.stderr)
        if "GROWER" not in os.environ:
            print("open", flush=True)
            time.sleep(3600)
        os.kill(int(os.environ["GROWER"]), signal.SIGKILL)
        while store.stats()["Cache"]["members"] > 1:
            time.sleep(0.02)
        store.close()
    """
    pipeline = {"store_pipeline": "UCM_PLUGINS:Cache|UCM_PLUGINS:Posix", **capacity(256)}
    config = {**config, **pipeline}
    plugins = {"UCM_PLUGINS": ":".join(map(str, libraries))}
    grower = run(code, config, **plugins, UCM_FAILPOINTS="segment.grown=delay:3600000@1")
    assert grower.stdout.readline() == "opening\n"
    assert grower.stdout.readline() == "open\n", grower.stderr.read()
    while not makes_room(config):  # as soon as it is open
        assert grower.poll() is None, grower.stderr.read()
        time.sleep(0.02)
    driver = {"LD_LIBRARY_PATH": str(cuda_standin(tmp_path)), "GROWER": str(grower.pid)}
    config = {**config, "memory": "cuda", "device_id": 0}
    device = run(code, config, **plugins, **driver)
    assert device.stdout.readline() == "opening\n"
    if end == "killed":
        while not any(member.device for member in members_of(config)):
            assert device.poll() is None, device.stderr.read()
            time.sleep(0.02)
        os.kill(grower.pid, signal.SIGKILL)
    _, errors = device.communicate(timeout=60)
    assert device.returncode == 0, errors
    assert ("has been making room" in errors) == (end == "stopped"), errors
    assert ("all" if end == "killed" else "some") in errors.splitlines(), errors
