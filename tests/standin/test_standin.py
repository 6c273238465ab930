"""The stand-in of 3FS's library: what it answers, what it ends a process for, what it breaks."""

import ctypes
import json
import os
import subprocess
from pathlib import Path

import pytest
import usrbio

RINGS = """
write, read = client.ring(False), client.ring(True)
fd = client.open("a")
"""


def symbols_of(library):
    command = ["nm", "-D", "--defined-only", str(library)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in lines.splitlines()}


# --- what it is ---


def test_the_library_exports_the_eleven_functions_and_nothing_else(hf3fs_library):
    assert symbols_of(hf3fs_library) == set(usrbio.SYMBOLS)


def test_the_real_library_has_all_of_them():
    real = os.environ.get("HF3FS_LIBRARY")
    if not real:
        pytest.skip("HF3FS_LIBRARY names no library of 3FS")
    assert symbols_of(real) >= set(usrbio.SYMBOLS)


def offsets():
    for name, struct in (
        ("hf3fs_iov", usrbio.Iov),
        ("hf3fs_ior", usrbio.Ior),
        ("hf3fs_cqe", usrbio.Cqe),
    ):
        yield f"sizeof(struct {name}) == {ctypes.sizeof(struct)}"
        for member, *_ in struct._fields_:
            yield f"offsetof(struct {name}, {member}) == {getattr(struct, member).offset}"


def test_layouts_are_those_of_the_real_header(tmp_path):
    """`standin.h` asserts the same; this compares them with 3FS's, where it is."""
    folder = os.environ.get("HF3FS_INCLUDE")
    if not folder:
        pytest.skip("HF3FS_INCLUDE names no folder with hf3fs_usrbio.h")
    source = tmp_path / "layouts.c"
    asserts = "".join(f'_Static_assert({each}, "{each}");\n' for each in offsets())
    source.write_text(
        f"#include <stddef.h>\n#include <time.h>\n#include <hf3fs_usrbio.h>\n{asserts}"
    )
    subprocess.run(["cc", "-std=c11", "-fsyntax-only", f"-I{folder}", source], check=True)


def test_sizes_are_those_that_were_measured():
    sizes = [ctypes.sizeof(each) for each in (usrbio.Iov, usrbio.Ior, usrbio.Cqe)]
    assert sizes == [312, 600, 24]


# --- what it answers ---


def test_bytes_go_to_a_file_and_come_back_out_of_order(run_client):
    out = run_client(
        RINGS
        + """
orders = set()
for round in range(20):
    for page in range(8):
        client.fill(page, 16 * round % 251 + page)
        assert client.prepare(write, fd, page) >= 0
    client.submit(write)
    came = client.fetch(write, 8)
    assert sorted(came) == [(page, PAGE) for page in range(8)]
    orders.add(tuple(page for page, _ in came))
    for page in range(8):
        client.fill(page, 255)
    assert client.run(read, fd, range(8)) == {page: PAGE for page in range(8)}
    assert all(set(client.page(page)) == {16 * round % 251 + page} for page in range(8))
print(len(orders))
"""
    )
    assert int(out) > 1


def test_a_request_may_start_before_it_is_submitted_and_may_not(run_client):
    out = run_client(
        RINGS
        + """
early = 0
for n in range(20):
    client.prepare(write, fd)
    time.sleep(0.005)
    came = client.fetch(write, 0)
    early += len(came)
    client.submit(write)
    assert came or client.fetch(write, 1)
print(0 < early < 20)
"""
    )
    assert out == "True"


def test_a_full_ring_says_so_until_completions_are_fetched(run_client):
    run_client(
        RINGS
        + """
assert client.lib.hf3fs_io_entries(ctypes.byref(write)) == 8
for page in range(8):
    assert client.prepare(write, fd, page) >= 0
assert client.prepare(write, fd) == -errno.EAGAIN
client.submit(write)
time.sleep(0.05)
assert client.prepare(write, fd) == -errno.EAGAIN
assert len(client.fetch(write, 1)) > 0
assert client.prepare(write, fd) >= 0
"""
    )


@pytest.mark.parametrize(("depth", "timeout"), [(3, 0), (-3, 1)])
def test_a_batch_that_is_not_full_waits_for_ever(run_client, depth, timeout):
    run_client(
        f"""
ring, fd = client.ring(False, depth={depth}, timeout={timeout}), client.open("a")
for page in range(4):
    client.prepare(ring, fd, page)
client.submit(ring)
assert len(client.fetch(ring, 3)) == 3
client.submit(ring)
assert client.fetch(ring, 1, seconds=0.05) == []
"""
    )


def test_what_is_wrong_with_a_request_is_told(run_client):
    run_client(
        RINGS
        + """
assert client.prepare(write, fd, page=15, pages=2) == -errno.EINVAL  # outside
assert client.prepare(write, fd, page=-1) == -errno.EINVAL
assert client.prepare(write, fd, pages=0) == -errno.EINVAL
assert client.prepare(write, fd, read=True) == -errno.EINVAL
assert client.prepare(write, 999) == -errno.EBADF
assert client.prepare(read, client.open("b", os.O_WRONLY | os.O_CREAT)) == -errno.EACCES
assert client.prepare(write, client.open("b", os.O_RDONLY)) == -errno.EACCES
assert client.prepare(write, -abs(fd)) >= 0
"""
    )


def test_a_deadline_is_of_the_clock_of_the_world(run_client):
    """A time of CLOCK_MONOTONIC is long past: it returns at once, with nothing."""
    run_client(
        RINGS
        + """
client.prepare(write, fd)
assert client.fetch(write, 1, seconds=60, clock=time.CLOCK_MONOTONIC) == []
""",
        HF3FS_STANDIN="delay_us=200000",
    )


def test_a_wait_returns_enough_and_not_all(run_client):
    out = run_client(
        RINGS
        + """
counts = set()
for n in range(30):
    for page in range(8):
        client.prepare(write, fd, page)
    client.submit(write)
    time.sleep(0.002)
    first = len(client.fetch(write, 2))
    counts.add(first)
    assert first >= 2
    while first < 8:
        first += len(client.fetch(write, 1))
print(len(counts))
"""
    )
    assert int(out) > 1


def test_descriptors_are_registered_once_and_only_on_3fs(run_client, tmp_path):
    run_client(
        f"""
fd = client.open("a")
assert client.register(fd) == errno.EINVAL
assert client.register(os.open({str(tmp_path)!r}, os.O_RDONLY)) == errno.EBADF
assert client.register(999) == errno.EBADF
open_files = len(os.listdir("/proc/self/fd"))
client.deregister(fd)
assert len(os.listdir("/proc/self/fd")) == open_files - 1  # the duplicate
"""
    )


def test_a_number_that_was_closed_before_it_was_deregistered_is_lost(run_client):
    run_client(
        """
fd = client.open("a")
os.close(fd)
client.deregister(fd)  # of nothing
again = os.open(client.mount.decode() + "/b", os.O_RDWR | os.O_CREAT)
assert again == fd and client.register(again) == errno.EINVAL
"""
    )


def test_holes_are_zeros_if_data_follows(run_client):
    run_client(
        RINGS
        + """
os.pwrite(fd, b"x" * PAGE, 2 * PAGE)
os.ftruncate(fd, 8 * PAGE)
client.fill(0, 7), client.fill(1, 7), client.fill(2, 7), client.fill(3, 7)
client.prepare(read, fd, 0, pages=4)
client.submit(read)
assert client.fetch(read, 1) == [(0, 3 * PAGE)]  # the end is short, not zeros
assert set(client.page(0)) == set(client.page(1)) == {0}
assert set(client.page(3)) == {7}
assert client.run(read, fd, [5]) == {5: 0}
strict = client.ring(True, flags=FORBID_READ_HOLES)
client.prepare(strict, fd, 0, pages=4)
client.submit(strict)
assert client.fetch(strict, 1) == [(0, -errno.ENODATA)]
assert client.run(strict, fd, [2]) == {2: PAGE}
"""
    )


def test_a_read_past_the_end_is_short(run_client):
    run_client(
        RINGS
        + """
os.pwrite(fd, b"x" * 5000, 0)
assert client.run(read, fd, [0, 1, 2]) == {0: PAGE, 1: 5000 - PAGE, 2: 0}
"""
    )


def test_a_size_is_old_until_fsync_or_close(run_client):
    run_client(
        RINGS
        + """
path = client.mount.decode() + "/a"
def sizes():
    return {os.fstat(fd).st_size, os.stat(path).st_size}
client.run(write, fd, [0, 1])
assert sizes() == {0}
os.fdatasync(fd)
assert sizes() == {0}
os.fsync(fd)
assert sizes() == {2 * PAGE}
client.run(write, fd, [2])
assert sizes() == {2 * PAGE}
os.close(os.open(path, os.O_RDONLY))
assert sizes() == {3 * PAGE}
"""
    )


def test_links_of_rings_with_flags_stay_behind(run_client):
    out = run_client(
        """
for flags in 0, 1, 2:
    client.destroy(client.ring(True, flags=flags))
client.free(client.iov)
print(*os.listdir(client.mount + b"/3fs-virt/iovs"))
"""
    )
    assert out.startswith("b'")
    assert out.endswith(".r0.t0.f10'")


def test_memory_that_is_only_linked_is_as_good(run_client):
    """The daemon maps what the link names; a request must not leave its block."""
    run_client(
        RINGS
        + """
import mmap, tempfile, uuid
with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="ucm-test-") as file:
    file.truncate(8 * PAGE)
    memory = mmap.mmap(file.fileno(), 8 * PAGE)
    mine, known_as = Iov(), uuid.uuid4()
    mine.base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    mine.id[:], mine.mount_point, mine.size = known_as.bytes, client.mount, 8 * PAGE
    assert client.run(write, fd, [0]) == {0: PAGE}
    def one(page, pages=1):
        client.prepare(write, fd, page, pages=pages, iov=mine)
        client.submit(write)
        return client.fetch(write, 1)[0][1]
    assert one(3) == -errno.EINVAL  # nobody told the daemon
    link = f"{client.mount.decode()}/3fs-virt/iovs/{known_as}.b{2 * PAGE}"
    os.symlink(file.name, link)
    memory[3 * PAGE : 4 * PAGE] = b"m" * PAGE
    assert one(3) == PAGE and os.pread(fd, PAGE, 3 * PAGE) == b"m" * PAGE
    assert one(2, pages=2) == 2 * PAGE and one(1, pages=2) == -errno.EINVAL
    os.unlink(link)
    assert one(3) == -errno.EINVAL
    for name, target in ((uuid.uuid4(), "/etc/passwd"), ("no-id", file.name)):
        try:
            os.symlink(target, f"{client.mount.decode()}/3fs-virt/iovs/{name}")
            raise SystemExit("this link makes no sense")
        except OSError as error:
            assert error.errno == errno.EINVAL
"""
    )


# --- what it ends a process for ---

ENDS = {
    "two threads prepare requests of one ring": """
client.prepare(write, fd)
threading.Thread(target=client.prepare, args=(write, fd, 1)).start()
""",
    "two threads wait for one ring": """
client.fetch(write, 0)
threading.Thread(target=client.fetch, args=(write, 0)).start()
""",
    "was closed before it was deregistered": """
os.close(fd)
client.prepare(write, fd)
""",
    "is another file's than the one registered": """
os.close(fd)
assert os.open(client.mount + b"/b", os.O_RDWR | os.O_CREAT) == fd
client.prepare(write, fd)
""",
    "that stays so": """
client.deregister(-client.register(os.dup(fd)))
""",
    "memory changed while a write from it was in flight": """
client.prepare(write, fd)
client.fill(0, 1)
client.submit(write)
client.fetch(write, 1)
""",
    "memory changed while a read into it was in flight": """
client.prepare(read, fd)
client.fill(0, 1)
client.submit(read)
client.fetch(read, 1)
""",
    "memory is used again before its read is done": """
client.prepare(read, fd)
client.prepare(write, fd)
""",
    "memory is used again before its write is done": """
client.prepare(write, fd)
client.prepare(read, fd)
""",
    "iordestroy while 1 requests of it run": """
client.prepare(read, fd)
client.destroy(read)
""",
    "iovdestroy while 1 requests use its memory": """
client.prepare(read, fd)
client.free(client.iov)
""",
    "the real one throws": """
client.lib.hf3fs_extract_mount_point(ctypes.create_string_buffer(256), 256, b"/not/there")
""",
    "blocks larger than all": """
client.memory(1, block_size=2 * PAGE)
""",
}


@pytest.mark.parametrize("sentence", ENDS)
def test_what_would_corrupt_in_silence_ends_the_process(run_client, sentence):
    assert sentence in run_client(RINGS + ENDS[sentence], HF3FS_STANDIN="delay_us=20000")


def test_a_thread_takes_a_ring_over_from_one_that_ended(run_client):
    run_client(
        RINGS
        + """
thread = threading.Thread(target=client.run, args=(write, fd, [0]))
thread.start()
thread.join()
assert client.run(write, fd, [1]) == {1: PAGE}
"""
    )


# --- what it breaks on demand ---


def test_requests_fail_or_end_early_by_number(run_client):
    run_client(
        RINGS
        + """
os.pwrite(fd, b"x" * 8 * PAGE, 0)
results = [client.run(read, fd, [page])[page] for page in range(6)]
assert results == [PAGE, -errno.EIO, PAGE, 100, 100, 100]
assert client.page(3)[:101] == list(b"x" * 100) + [0]
results = [client.run(write, fd, [page])[page] for page in range(3)]
assert results == [PAGE, PAGE, -errno.ENOSPC]
""",
        HF3FS_STANDIN="read_error=2:EIO read_short=4+:100 write_error=3:ENOSPC",
    )


def test_some_of_a_hundred_fail_as_the_seed_says(run_client):
    counts = [
        run_client(
            RINGS + "print(sum(client.run(write, fd, [0])[0] < 0 for _ in range(200)), end='')",
            HF3FS_STANDIN=f"seed={seed} write_error=20%:EIO",
        )
        for seed in (1, 1, 2)
    ]
    assert counts[0] == counts[1]
    assert all(0 < int(count) < 100 for count in counts)


def test_some_requests_never_complete(run_client):
    run_client(
        RINGS
        + """
for page in range(3):
    client.prepare(write, fd, page)
client.submit(write)
assert sorted(client.fetch(write, 3, seconds=0.2)) == [(0, PAGE), (2, PAGE)]
""",
        HF3FS_STANDIN="write_never=2",
    )


def test_a_daemon_that_hangs_goes_on(run_client, tmp_path):
    run_client(
        RINGS
        + """
hung = os.environ["HF3FS_STANDIN_HUNG"]
open(hung, "w").close()
client.prepare(write, fd)
client.submit(write)
assert client.fetch(write, 1, seconds=0.05) == []
os.remove(hung)
assert client.fetch(write, 1) == [(0, PAGE)]
""",
        HF3FS_STANDIN_HUNG=str(tmp_path / "hung"),
    )


def test_a_daemon_that_died_takes_its_mount_along_and_a_new_one_knows_nothing(run_client, tmp_path):
    run_client(
        RINGS
        + """
dead = os.environ["HF3FS_STANDIN_DEAD"]
client.run(write, fd, [0])
open(dead, "w").close()
client.prepare(write, fd)
client.submit(write)
assert client.fetch(write, 1, seconds=0.05) == []
for call in (
    lambda: os.stat(client.mount + b"/a"),
    lambda: os.open(client.mount + b"/b", os.O_RDWR | os.O_CREAT),
    lambda: os.rename(client.mount + b"/a", client.mount + b"/b"),
    lambda: os.fsync(fd),
    lambda: client.ring(True),
    client.memory,
):
    try:
        raise SystemExit(f"this went well: {call()}")
    except OSError as error:
        assert error.errno == errno.ENOTCONN
client.deregister(fd)
os.remove(dead)

other = client.memory()
assert os.listdir(client.mount + b"/3fs-virt/iovs") != []
assert client.fetch(write, 1, seconds=0.05) == []
client.destroy(write)
client.free(client.iov)
assert client.register(fd) == errno.EINVAL
new = client.ring(False)
client.prepare(new, fd, 1, iov=other)
client.submit(new)
assert client.fetch(new, 1) == [(1, -errno.EBADF)]
fresh = client.open("fresh")
client.prepare(new, fresh, 1, iov=other)
client.submit(new)
assert client.fetch(new, 1) == [(1, PAGE)]
""",
        HF3FS_STANDIN_DEAD=str(tmp_path / "dead"),
    )


def test_a_daemon_may_die_at_a_request(run_client):
    run_client(
        RINGS
        + """
assert client.run(write, fd, [0]) == {0: PAGE}
client.prepare(write, fd, 1)
client.submit(write)
assert client.fetch(write, 1, seconds=0.05) == []
assert client.register(os.dup(fd)) == errno.EBADF
os.environ["HF3FS_STANDIN"] = ""  # a new one
client.ring(True)
assert client.open("b") > 0
""",
        HF3FS_STANDIN="dead_after=2",
    )


def test_words_that_mean_nothing_are_not_ignored(run_client):
    assert "no word read_sohrt" in run_client("", HF3FS_STANDIN="read_sohrt=3:100")
    assert "no error is known as ENOWAY" in run_client("", HF3FS_STANDIN="read_error=3:ENOWAY")


def test_the_log_counts_what_happened_and_what_was_left(run_client, tmp_path):
    run_client(
        RINGS
        + """
for page in range(4):
    client.run(write, fd, [page])
for page in range(4):
    client.prepare(read, fd, page)
os.rename(client.mount + b"/a", client.mount + b"/b")
""",
        HF3FS_STANDIN="read_never=1+",
        HF3FS_STANDIN_LOG=str(tmp_path / "log"),
    )
    log = json.loads(Path(tmp_path, "log").read_text())
    assert (log["writes"], log["written_bytes"], log["submits"]) == (4, 4 * 4096, 4)
    assert (log["registrations"], log["registered"]) == (1, 1)
    assert (log["in_flight_most"], log["in_flight"]) == (4, 4)
    assert (log["open_rings"], log["open_iovs"]) == (2, 1)
    assert log["renamed_unsynced"] == 1
