"""The tests: each takes the server, and may return what it measured."""

import contextlib
import functools
import random
import re
import threading
import time

from stage import (
    ACTIMEO,
    BLOCK_FILE,
    EXPORT,
    FLAKEY,
    SHOWN,
    Disk,
    Host,
    LeftOut,
    block_of,
    dump,
    dump_for_ever,
    expect_ok,
    hosts,
    ids,
    leftovers,
    load,
    lookup,
    mount_of,
    mounts,
    new_folder,
    published,
    sh,
    unmount,
    wait_seen,
    writer_folders,
)

import ucm
from ucm.conformance import kit

SEEN = 2 * ACTIMEO + 4  # emulation is slow; what it took is told
VERSIONS = {"4.2": "", "3": ""}


def option_of_posix(name):
    """Return an option of Posix, or leave the test out."""
    (posix,) = [info for info in ucm.plugins() if info.name == "Posix"]
    for option in posix.options:
        if option.name == name:
            return option
    raise LeftOut(f"Posix has no {name} yet")


def each_version(test):
    """Run a test over NFS 4.2, then over NFS 3."""

    @functools.wraps(test)
    def both(server):
        said = []
        for version, options in VERSIONS.items():
            with mounts(version, options) as places:
                line = test(places, new_folder(f"{test.__name__}{version}"))
            said.append(f"NFS {version}: {line or 'well'}")
        return "\n".join(said)

    return both


def publish(a, b, folder, **options):
    numbers, took = list(range(4)), []
    two = (("host-a", a / folder), ("host-b", b / folder))
    with hosts(*two, **options) as (writer, reader):
        assert not any(reader.call(lookup, numbers)), "blocks are seen that nobody dumped"
        for number in numbers:
            expect_ok(writer.call(dump, [number], 0, [0, 1, 2]))
            assert reader.call(lookup, [number]) == [False], "half a block is seen"
            assert reader.call(load, [number]) == {number: "NOT_FOUND"}
            expect_ok(writer.call(dump, [number], 0, [3]))
            assert writer.call(lookup, [number]) == [True], "its own writer does not see a block"
            took.append(reader.call(wait_seen, number, SEEN))
        assert set(reader.call(load, numbers).values()) == {"whole"}
    return f"seen after {sorted(took)[len(took) // 2]:.1f} s, {max(took):.1f} s at most"


@each_version
def publish_in_time(places, folder):
    """A block that host b has missed before is seen there in time, whole, and never half."""
    return publish(*places, folder)


def publish_positive(server):
    """The same with lookupcache=positive: a miss is asked again."""
    with mounts("4.2", "lookupcache=positive") as places:
        return publish(*places, new_folder("publish_positive"))


@each_version
def publish_direct(places, folder):
    """The same with io_direct."""
    return publish(*places, folder, io_direct=True)


@each_version
def publish_engines(places, folder):
    """The same with every I/O engine but psync."""
    engines = [e for e in option_of_posix("posix_io_engine").allowed.split("|") if e != "psync"]
    if not engines:
        raise LeftOut("Posix has psync alone")
    said = []
    for engine in engines:
        line = publish(*places, new_folder(f"{folder}{engine}"), posix_io_engine=engine)
        said.append(f"{engine} {line}")
    return "; ".join(said)


@each_version
def first_copy_wins(places, folder):
    """Two hosts dump the same names at once: both are told OK, one copy stands, whole."""
    a, b = places
    numbers = list(range(30))
    with hosts(("host-a", a / folder), ("host-b", b / folder)) as writers:
        for salt, writer in enumerate(writers):
            writer.start(dump, numbers, salt)
        for writer in writers:
            expect_ok(writer.result())
        time.sleep(ACTIMEO)
        seen = [writer.call(load, numbers, (0, 1)) for writer in writers]
    assert seen[0] == seen[1], "the hosts see other copies"
    assert set(seen[0].values()) <= {"whole of 0", "whole of 1"}, seen[0]
    assert len(published(folder)) == len(numbers)
    assert leftovers(folder) == []
    assert writer_folders(folder) == [], "a closed writer left its folder"
    first = list(seen[0].values()).count("whole of 0")
    return f"{first} of {len(numbers)} blocks are of host a, {len(numbers) - first} of host b"


@each_version
def opened_after_a_look(places, folder):
    """A writer opens where its host has just seen nothing, and another has written since."""
    a, b = places
    with hosts(("host-a", a / folder), namespace="other"):
        pass
    with hosts(("host-b", b / folder), device_id=-1) as (looking,):
        assert looking.call(lookup, [0]) == [False]
        with hosts(("host-a", a / folder)) as (first,):
            expect_ok(first.call(dump, range(20)))
            looking.call(lookup, [0])
            with hosts(("host-b", b / folder)) as (second,):
                expect_ok(second.call(dump, range(10, 30)))
                assert set(second.call(load, range(10, 30)).values()) == {"whole"}
                looking.call(wait_found, 0, SEEN)
    assert len(published(folder)) == 30


def wait_found(store, number, seconds):
    end = time.monotonic() + seconds
    while not lookup(store, [number])[0]:
        assert time.monotonic() < end, f"block {number} is not seen after {seconds} s"
        time.sleep(0.05)


@each_version
def live_writers_are_left_alone(places, folder):
    """Whoever opens, on the same or the other host, leaves the unfinished blocks of the living."""
    a, b = places
    with hosts(("host-a", a / folder)) as (writer,):
        expect_ok(writer.call(dump, [1], 0, [0, 1, 2]))
        with hosts(("host-a", a / folder), ("host-b", b / folder)):
            assert len(leftovers(folder)) == 1, leftovers(folder)
        assert len(leftovers(folder)) == 1, leftovers(folder)
        expect_ok(writer.call(dump, [1], 0, [3]))
        assert writer.call(load, [1]) == {1: "whole"}


def check_visible(store, numbers):
    """Load all that lookup finds; return how many blocks are there."""
    there = [n for n, here in zip(numbers, lookup(store, numbers), strict=True) if here]
    ends = load(store, there)
    assert set(ends.values()) <= {"whole"}, ends
    return len(there)


@each_version
def killed_writers(places, folder):
    """20 writers on host a are killed while host b reads: nothing wrong, nothing half."""
    a, b = places
    order, numbers = random.Random(5), []
    with hosts(("host-b", b / folder)) as (reader,):
        for turn in range(20):
            SHOWN.value = -1
            writer = Host("host-a", a / folder)
            writer.start(dump_for_ever, 1000 * turn)
            reader.start(check_visible, numbers[-12:])
            time.sleep(order.uniform(0.1, 2))
            writer.kill()
            reader.result()
            numbers += range(1000 * turn, max(1000 * turn, SHOWN.value + 1) + 2)
    orphans, folders = len(leftovers(folder)), len(writer_folders(folder))
    # The server may not have heard of the last death when the first of these opens.
    for _ in range(2):
        with hosts(("host-a", a / folder)):
            pass
    assert leftovers(folder) == []
    assert writer_folders(folder) == [], "folders of dead writers stay"
    with hosts(("host-b", b / folder)) as (reader,):
        there = reader.call(check_visible, numbers)
    assert there == len(published(folder)) > 0
    return (
        f"{there} blocks whole; {orphans} unfinished, {folders} folders before the next opening, "
        "0 after it"
    )


@each_version
def removed_while_loaded(places, folder):
    """A block that host a removes while host b loads it comes whole or is NOT_FOUND."""
    a, b = places
    counts = {}
    with hosts(("host-a", a / folder), ("host-b", b / folder)) as (writer, reader):
        for turn in range(5):
            numbers = list(range(10 * turn, 10 * turn + 10))
            writer.call(dump, numbers)
            reader.call(wait_seen, numbers[-1], SEEN)
            reader.start(load, numbers)
            time.sleep(0.01 * turn)
            writer.call(remove, numbers)
            for end in reader.result().values():
                counts[end] = counts.get(end, 0) + 1
            assert not any(writer.call(lookup, numbers))
    assert set(counts) <= {"whole", "NOT_FOUND", "NOT_FOUND+OK"}, counts
    assert published(folder) == set()
    assert not list((EXPORT / folder).rglob(".nfs*")), "silly names stay"
    return ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))


def remove(store, numbers):
    store.remove(ids(numbers))


@each_version
def removed_by_the_loading_host(places, folder):
    """The same within one host, where NFS renames what is open instead of deleting it."""
    a, _ = places
    counts = {}
    with hosts(("host-a", a / folder), ("host-a", a / folder)) as (writer, reader):
        for turn in range(5):
            numbers = list(range(10 * turn, 10 * turn + 10))
            writer.call(dump, numbers)
            reader.start(load, numbers)
            time.sleep(0.02 * turn)
            writer.call(remove, numbers)
            for end in reader.result().values():
                counts[end] = counts.get(end, 0) + 1
    assert set(counts) <= {"whole", "NOT_FOUND", "NOT_FOUND+OK"}, counts
    assert not list((EXPORT / folder).rglob(".nfs*")), "silly names stay"
    return ", ".join(f"{count} {end}" for end, count in sorted(counts.items()))


def used_files(folder):
    """Return what st_blocks of all files say, as the quota counts, by path and inode."""
    used = {}
    for path in (EXPORT / folder).rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                status = path.stat()
                used[path, status.st_ino] = 512 * status.st_blocks
    return used


@each_version
def quota(places, folder):
    """Writers on two hosts stay within posix_capacity_gb, by one block each at most."""
    option_of_posix("posix_capacity_gb")
    a, b = places
    capacity, most, stop = 40 * BLOCK_FILE, 0, threading.Event()

    def watch():
        nonlocal most
        before = {}
        while not stop.wait(0.05):
            now = used_files(folder)
            # A pass takes its time, while files come and go: those of two were there at once.
            most = max(most, sum(min(now[file], before[file]) for file in now.keys() & before))
            before = now

    two = (("host-a", a / folder), ("host-b", b / folder))
    with hosts(*two, posix_capacity_gb=capacity / 2**30) as writers:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for first, writer in zip((0, 1000), writers, strict=True):
            writer.start(dump, range(first, first + 60))
        ends = [set(writer.result()) for writer in writers]
        stop.set()
        watcher.join()
        time.sleep(ACTIMEO)
        numbers = [*range(60), *range(1000, 1060)]
        seen = dict(zip(numbers, writers[0].call(lookup, numbers), strict=True))
        kept = [number for number in numbers if seen[number]]
        assert set(writers[0].call(load, kept).values()) <= {"whole"}
    assert ends == [{"OK"}, {"OK"}], ends
    assert most <= capacity + 2 * BLOCK_FILE, f"{most} bytes, {capacity} are allowed"
    for number in (59, 1059):
        assert seen[number], "the newest block was recycled before older ones"
    return f"{most} bytes at most of {capacity}; {len(kept)} of {len(numbers)} blocks kept"


def cut_power(disk, folder, durability, seconds, first):
    """Dump until the power goes; return the blocks that were published before, and all tried."""
    options = {"posix_durability": durability} if durability else {}
    SHOWN.value = -1
    writer = Host("server", folder, **options)
    writer.start(dump_for_ever, first)
    time.sleep(seconds)
    last = SHOWN.value
    disk.cut()
    time.sleep(0.2)
    writer.kill()
    disk.power_up()
    tried = list(range(first, max(first, SHOWN.value + 1) + 2))
    return [n for n in tried if n <= last], tried


def after_the_cut(folder, acknowledged, tried):
    """Load everything; return how it ended, and how many of the acknowledged are whole."""
    with hosts(("server", folder)) as (store,):
        seen = dict(zip(tried, store.call(lookup, tried), strict=True))
        ends = store.call(load, tried)
        expect_ok(store.call(dump, tried))
        assert set(store.call(load, tried).values()) == {"whole"}, "it is not repaired by a dump"
    bad = {n: end for n, end in ends.items() if seen[n] and end != "whole"}
    return ends, bad, sum(ends[n] == "whole" for n in acknowledged)


ORDERED, UNORDERED = "data=ordered", "data=writeback,nodelalloc"  # sizes may come before bytes


def power_cuts(durability):
    disk, turns = Disk(), 6
    order, lines, acked, whole, torn = random.Random(7), {}, 0, 0, 0
    try:
        for turn in range(turns):
            disk.mount_again(ORDERED if turn % 2 else UNORDERED)
            folder = FLAKEY / f"{durability}{turn}"
            folder.mkdir(mode=0o700)
            sh(f"sync -f {FLAKEY}")
            seconds = order.uniform(0.3, 3)
            acknowledged, tried = cut_power(disk, folder, durability, seconds, 1000 * turn)
            ends, bad, back = after_the_cut(folder, acknowledged, tried)
            acked, whole, torn = acked + len(acknowledged), whole + back, torn + len(bad)
            for end in ends.values():
                lines[end] = lines.get(end, 0) + 1
    finally:
        disk.end()
    allowed = {"whole", "NOT_FOUND"}
    if durability in ("", "none"):
        allowed |= {"CORRUPT", "CORRUPT+OK"}
    assert set(lines) <= allowed, lines
    if durability == "full":
        assert whole == acked, f"{acked - whole} of {acked} published blocks are lost: {lines}"
    found = f"{torn} that lookup finds are not whole, and told"
    return f"{turns} cuts: {whole} of {acked} published blocks back; {found}"


def power_cut_none(server):
    """Power cut, local ext4, nothing synced: no wrong byte; what is torn is told and repaired."""
    return power_cuts("")


def power_cut_data(server):
    """Power cut, local ext4, posix_durability data: what is found is whole."""
    option_of_posix("posix_durability")
    return power_cuts("data")


def power_cut_full(server):
    """Power cut, local ext4, posix_durability full: every published block comes back whole."""
    option_of_posix("posix_durability")
    return power_cuts("full")


def server_power_cut(server):
    """Power cut of the NFS server, a sync export: every published block comes back whole."""
    disk, said = Disk(), []
    try:
        for version in VERSIONS:
            acked = whole = 0
            for turn in range(2):
                one = server_power_cut_once(server, disk, version, 1000 * turn)
                acked, whole = acked + one[0], whole + one[1]
            assert whole == acked > 0, f"NFS {version}: {acked - whole} of {acked} are lost"
            said.append(f"NFS {version}: 2 cuts, {whole} of {acked} published blocks back")
    finally:
        disk.end()
    return "\n".join(said)


def server_power_cut_once(server, disk, version, first):
    name = f"cut{version}-{first}"
    SHOWN.value = -1
    server.export(FLAKEY, 2)
    new_folder(name, FLAKEY)
    a = mount_of("a", version, export=FLAKEY)
    writer = Host("host-a", a / name)
    writer.start(dump_for_ever, first)
    time.sleep(3 + first / 1000)
    last = SHOWN.value
    disk.cut()
    writer.kill()
    unmount(a)
    server.stop()
    server.unexport(FLAKEY)
    disk.power_up()
    server.export(FLAKEY, 2)
    server.start()
    b = mount_of("b", version, export=FLAKEY)
    try:
        tried = list(range(first, max(first, SHOWN.value + 1) + 2))
        with hosts(("host-b", b / name)) as (reader,):
            ends = reader.call(load, tried)
            expect_ok(reader.call(dump, tried))
            assert set(reader.call(load, tried).values()) == {"whole"}
    finally:
        unmount(b)
        server.unexport(FLAKEY)
    assert set(ends.values()) <= {"whole", "NOT_FOUND", "CORRUPT", "CORRUPT+OK"}, ends
    acknowledged = [n for n in tried if n <= last]
    return len(acknowledged), sum(ends[n] == "whole" for n in acknowledged)


def load_error(store, number):
    """Load a block that cannot be had; return its statuses, errno and text."""
    transfer = kit.start_load(store, block_of(number).pieces())
    kit.finish(store, transfer)
    results = transfer.task.results
    names = "+".join(sorted({one.status.name for one in results}))
    return names, results[0].os_errno, str(transfer.task.error())


def lookup_error(store, number):
    try:
        return f"found: {lookup(store, [number])[0]}"
    except ucm.StoreError as error:
        return str(error)


def dump_error(store, number):
    transfer = kit.start_dump(store, block_of(number).pieces())
    kit.finish(store, transfer)
    result = transfer.task.results[0]
    return result.status.name, result.os_errno, str(transfer.task.error())


def start_slow_load(store, number):
    """Start a load, which stays PENDING; keep it for later."""
    store.waiting = kit.start_load(store, block_of(number).pieces())
    try:
        store.wait(store.waiting.task, 3000)
    except ucm.StoreTimeout:
        return "pending"
    return "ended"


def end_slow_load(store, number):
    ends = kit.ends_of_load(store, store.waiting)
    return "whole" if tuple(ends) == block_of(number).shards else str(ends)[:80]


def server_away_hard(server):
    """The server stops for a while, hard mounts: loads stay PENDING, then end whole."""
    said = []
    for version in VERSIONS:
        folder = new_folder(f"hard{version}")
        with (
            mounts(version) as (a, b),
            hosts(("host-a", a / folder), ("host-b", b / folder)) as (writer, reader),
        ):
            writer.call(dump, range(6))
            reader.call(wait_seen, 5, SEEN)
            writer.call(dump, [6], 0, [0, 1, 2])
            server.stop()
            assert reader.call(start_slow_load, 1) == "pending"
            writer.start(dump, [7])
            time.sleep(2)
            begin = time.monotonic()
            server.start()
            expect_ok(writer.result())
            assert reader.call(end_slow_load, 1) == "whole"
            took = time.monotonic() - begin
            # Nobody takes the folder of a writer for dead because its server was away.
            with hosts(("host-a", a / folder)):
                pass
            expect_ok(writer.call(dump, [6], 0, [3]))
            reader.call(wait_seen, 7, SEEN)
            assert set(reader.call(load, range(8)).values()) == {"whole"}
        said.append(f"NFS {version}: all goes on {took:.0f} s after the server is back")
    return "\n".join(said)


def server_away_soft(server):
    """The server stops for a while, soft mounts: errors say so, and all works when it is back."""
    said = []
    for version in VERSIONS:
        folder = new_folder(f"soft{version}")
        with mounts(version, "soft,timeo=10,retrans=1") as (a, b):
            two = (("host-a", a / folder), ("host-b", b / folder))
            with hosts(*two) as (writer, reader):
                expect_ok(writer.call(dump, range(3)))
                reader.call(wait_seen, 2, SEEN)
                time.sleep(ACTIMEO + 1)
                server.stop()
                looked, loaded = reader.call(lookup_error, 0), reader.call(load_error, 1)
                dumped = writer.call(dump_error, 5)
                server.start()
                # From memory, or what the server is asked for and does not say.
                told = all(word in looked for word in (block_of(0).id.hex(), "error"))
                assert looked == "found: True" or told, looked
                assert loaded[0] == "IO", loaded
                assert loaded[1] in (5, 110), loaded
                assert dumped[0] == "IO", dumped
                recover(writer, reader)
        texts = [re.sub(r"[0-9a-f]{32}", "ID", text) for text in (looked, loaded[2], dumped[2])]
        said += [f"NFS {version}: {text[:120]}" for text in texts]
    return "\n".join(said)


def recover(writer, reader):
    """After a failure all works, if not at once: the server has its grace period."""
    for _ in range(10):
        if set(writer.call(dump_error, 5)[0:1]) == {"OK"}:
            break
        time.sleep(2)
    expect_ok(writer.call(dump, range(8)))
    reader.call(wait_seen, 7, SEEN)
    assert set(reader.call(load, range(8)).values()) == {"whole"}


def unexported(server):
    """The export is withdrawn and comes back: a miss or an error that says so, then all works."""
    said = []
    for version in VERSIONS:
        folder = new_folder(f"unexported{version}")
        with (
            mounts(version, "soft,timeo=10,retrans=1") as (a, b),
            hosts(("host-a", a / folder), ("host-b", b / folder)) as (writer, reader),
        ):
            expect_ok(writer.call(dump, range(3)))
            reader.call(wait_seen, 2, SEEN)
            time.sleep(ACTIMEO + 1)
            server.unexport(EXPORT)
            try:
                loaded, dumped = reader.call(load_error, 1), writer.call(dump_error, 5)
            finally:
                server.export(EXPORT, 1)
            assert loaded[0] in ("NOT_FOUND", "IO"), loaded
            assert dumped[0] not in ("OK", "CORRUPT"), dumped
            recover(writer, reader)
        said.append(f"NFS {version}: load {loaded[0]}, dump {dumped[0]} (errno {dumped[1]})")
    return "\n".join(said)


def calls(mount):
    """Return how many requests a mount has sent, by operation."""
    text = sh("cat /proc/self/mountstats")
    part = text.split(f"mounted on {mount} ", 1)[1].split("\ndevice ", 1)[0]
    return {name: int(n) for name, n in re.findall(r"^\s+([A-Z_]+): (\d+)", part, re.M)}


def requests_of_lookup(server):
    """What attribute caching is worth: requests of 20 present and 20 absent lookups."""
    said, folder = [], new_folder("cost")
    (EXPORT / folder).chmod(0o700)
    for options in ("", "lookupcache=positive", "noac"):
        with mounts("4.2", options) as (a, _), hosts(("host-a", a / folder)) as (host,):
            host.call(dump, range(20))
            counts = []
            for numbers in (range(20), range(100, 120)):
                host.call(lookup, numbers)
                before = sum(calls(a).values())
                host.call(lookup, numbers)
                counts.append(sum(calls(a).values()) - before)
            before = sum(calls(a).values())
            host.call(load, range(20))
            counts.append(sum(calls(a).values()) - before)
            before = sum(calls(a).values())
            host.call(dump, range(1000, 1010))
            counts.append(sum(calls(a).values()) - before)
            host.call(remove, range(1000, 1010))
        present, absent, loads, dumps = counts
        said.append(
            f"actimeo={ACTIMEO}{options and ','}{options}: {present} present, {absent} absent; "
            f"20 loads {loads}, 10 dumps {dumps}"
        )
    return "\n".join(said)


ALL = [
    publish_in_time,
    publish_positive,
    publish_direct,
    publish_engines,
    first_copy_wins,
    opened_after_a_look,
    live_writers_are_left_alone,
    killed_writers,
    removed_while_loaded,
    removed_by_the_loading_host,
    quota,
    power_cut_none,
    power_cut_data,
    power_cut_full,
    server_power_cut,
    server_away_hard,
    server_away_soft,
    unexported,
    requests_of_lookup,
]
