"""What the tests stand on: an NFS server, mounts and processes of two hosts, a disk that dies."""

import contextlib
import ctypes
import errno
import hashlib
import multiprocessing
import random
import shutil
import socket
import subprocess
import time
from pathlib import Path

import ucm
from ucm import Status
from ucm.conformance import kit

SHARDS, SEGMENTS = 4, (12000, 8000)  # a shard is no whole number of pages
SIZES = {"block_size": SHARDS * sum(SEGMENTS), "tensor_size_list": SEGMENTS}
BLOCK_FILE = 4096 + SHARDS * 20480
ACTIMEO = 3
WAIT = 180  # seconds after which a host is taken to hang
EXPORT, FLAKEY = Path("/srv/nfs"), Path("/srv/flakey")
CLONE_NEWUTS = 0x04000000
SHOWN = multiprocessing.get_context("fork").Value("q", -1, lock=False)  # see dump_for_ever


class LeftOut(Exception):
    """The test cannot be run; the text says why."""


class Hung(Exception):
    """A host gave no answer."""


def sh(command, timeout=120, check=True):
    """Run a line of shell; return what it said."""
    done = subprocess.run(
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stdout.strip()}")
    return done.stdout.strip()


def start(command):
    """Start a daemon that may keep its standard output: a pipe would never end."""
    subprocess.run(
        command, shell=True, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


class Server:
    """nfsd, and the network between it and the two hosts."""

    ADDRESS = {"a": "10.1.0.1", "b": "10.2.0.1"}

    def __init__(self):
        EXPORT.mkdir(parents=True)
        FLAKEY.mkdir()
        sh(f"mkfs.ext4 -q -F /dev/vdc && mount /dev/vdc {EXPORT}")
        for number, host in enumerate(("a", "b"), 1):
            network = f"host-{host}"
            sh(f"ip netns add {network}")
            sh(f"ip link add name veth-{host} type veth peer name veth0 netns {network}")
            sh(f"ip addr add 10.{number}.0.1/24 dev veth-{host} && ip link set veth-{host} up")
            sh(f"ip -n {network} addr add 10.{number}.0.2/24 dev veth0")
            sh(f"ip -n {network} link set veth0 up && ip -n {network} link set lo up")
        sh("mkdir -p /run/rpc_pipefs /var/lib/nfs/nfsdcld /var/lib/nfs/v4recovery")
        sh("mount -t rpc_pipefs rpc /run/rpc_pipefs && mount -t nfsd nfsd /proc/fs/nfsd")
        start("rpcbind -w && rpc.statd --no-notify && nfsdcld")
        self.export(EXPORT, 1)
        self.start()
        start("rpc.mountd")

    def export(self, folder, number):
        options = f"rw,sync,no_subtree_check,no_root_squash,fsid={number}"
        sh(f"exportfs -o {options} '*:{folder}'")

    def unexport(self, folder):
        sh(f"exportfs -u '*:{folder}' && exportfs -f")

    def start(self):
        sh("rpc.nfsd --grace-time 10 --lease-time 10 8")

    def stop(self):
        sh("rpc.nfsd 0")


def mount_of(host, version, options="", export=EXPORT):
    """Mount the export as one of the hosts does: with its own network and client cache."""
    at = Path("/host") / f"{host}{export.name}"
    at.mkdir(parents=True, exist_ok=True)
    options = f"vers={version},actimeo={ACTIMEO},nosharecache{options and ','}{options}"
    if version == "3":  # its locks need a daemon, of which there is one
        sh(f"mount -t nfs -o {options} 127.0.0.1:{export} {at}")
    else:
        source = f"{Server.ADDRESS[host]}:{export}"
        inside = f"hostname host-{host} && mount -t nfs -o {options} {source} {at}"
        sh(f"nsenter --net=/run/netns/host-{host} unshare --uts sh -c '{inside}'")
    return at


def unmount(at):
    sh(f"umount -f {at} || umount -l {at}", check=False)


@contextlib.contextmanager
def mounts(version, options="", export=EXPORT):
    """Yield the mounts of hosts a and b."""
    made = []
    try:
        for host in ("a", "b"):
            made.append(mount_of(host, version, options, export))
        yield made
    finally:
        for at in made:
            unmount(at)


def new_folder(name, export=EXPORT):
    """Make an empty folder at the server; return its name."""
    shutil.rmtree(export / name, ignore_errors=True)
    (export / name).mkdir(mode=0o700)
    return name


# What the hosts are asked to do: functions of a store.


def block_of(number, salt=0):
    """Make the block of a number; with another salt, other bytes under the same name."""
    rng = random.Random(number * 1000 + salt)
    name = hashlib.md5(str(number).encode()).digest()
    return kit.Block(name, tuple(rng.randbytes(sum(SEGMENTS)) for _ in range(SHARDS)))


def ids(numbers):
    return [block_of(number).id for number in numbers]


def lookup(store, numbers):
    return store.lookup(ids(numbers))


def dump(store, numbers, salt=0, shards=range(SHARDS)):
    """Dump blocks; return how each shard ended."""
    pieces = [block_of(number, salt).pieces()[i] for number in numbers for i in shards]
    transfer = kit.start_dump(store, pieces)
    kit.finish(store, transfer)
    return [error_name(result) for result in transfer.task.results]


def error_name(result):
    code = result.os_errno
    return result.status.name + (f" ({errno.errorcode.get(code, code)})" if code else "")


def load(store, numbers, salts=(0,)):
    """Load blocks; return for each "whole", or how its shards ended. Wrong bytes raise."""
    ends = {}
    for number in numbers:
        got = kit.load_pieces(store, block_of(number).pieces())
        ends[number] = judge(number, got, [block_of(number, salt) for salt in salts])
    return ends


def judge(number, got, candidates):
    for salt, block in enumerate(candidates):
        if tuple(got) == block.shards:
            return "whole" if len(candidates) == 1 else f"whole of {salt}"
    for i, end in enumerate(got):
        if isinstance(end, bytes) and not any(end == block.shards[i] for block in candidates):
            raise AssertionError(f"block {number}: WRONG BYTES in shard {i}")
    return "+".join(sorted({end.name if isinstance(end, Status) else "OK" for end in got}))


def wait_seen(store, number, seconds):
    """Look until a block is found; return after how long. It must be whole as soon as it is."""
    begin = time.monotonic()
    while not lookup(store, [number])[0]:
        if time.monotonic() - begin > seconds:
            raise AssertionError(f"block {number} is not seen after {seconds} s")
        time.sleep(0.02)
    took = time.monotonic() - begin
    assert load(store, [number]) == {number: "whole"}
    return took


def dump_for_ever(store, first):
    """Dump block after block, its shards in any order; SHOWN has the number of the last."""
    order = random.Random(first)
    for number in range(first, first + 1000):
        shards = order.sample(range(SHARDS), SHARDS)
        for part in (shards[:2], shards[2:]):
            expect_ok(dump(store, [number], shards=part))
        SHOWN.value = number


def expect_ok(ends):
    assert set(ends) == {"OK"}, f"of {len(ends)} shards: {sorted(set(ends))}"


class Host:
    """A process with a store on a mount, under the name of another host."""

    living = []

    def __init__(self, name, folder, **options):
        self.name = name
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(theirs, name, str(folder), options), daemon=True
        )
        self.process.start()
        theirs.close()
        self.living.append(self.process)
        self.result()

    def start(self, function, *arguments):
        self.pipe.send((function, arguments))

    def result(self, seconds=WAIT):
        if not self.pipe.poll(seconds):
            raise Hung(f"{self.name} gave no answer within {seconds} s")
        good, answer = self.pipe.recv()
        if not good:
            raise AssertionError(f"{self.name}: {answer}")
        return answer

    def call(self, function, *arguments):
        self.start(function, *arguments)
        return self.result()

    def kill(self):
        self.process.kill()
        self.process.join(WAIT)
        if self.process.is_alive():
            raise Hung(f"{self.name} cannot be killed")

    def close(self):
        self.start(None)
        self.result()
        self.process.join(WAIT)


def _serve(pipe, name, folder, options):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUTS) == 0:
        socket.sethostname(name)
    store = None
    while True:
        try:
            if store is None:
                store = ucm.open_pipeline("Posix", storage_backends=folder, **SIZES, **options)
                answer = None
            else:
                function, arguments = pipe.recv()
                if function is None:
                    break
                answer = function(store, *arguments)
            pipe.send((True, answer))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}"))
            if store is None:
                return
    store.close()
    pipe.send((True, None))


@contextlib.contextmanager
def hosts(*wanted, **options):
    """Yield a Host for each (name, folder); none is left behind."""
    made = []
    try:
        for name, folder in wanted:
            made.append(Host(name, folder, **options))
        yield made
        for host in made:
            host.close()
    finally:
        for host in made:
            host.process.kill()


def kill_all_hosts():
    for process in Host.living:
        process.kill()
        process.join(WAIT)
    Host.living.clear()


def leftovers(folder, name="*"):
    """Return temporary files of writers, as the server has them."""
    here = EXPORT / folder if isinstance(folder, str) else folder
    return sorted(
        str(path.relative_to(here))
        for path in here.glob(f".ucm/writers/{name}/*")
        if path.name != "lock"
    )


def writer_folders(folder):
    return sorted(path.name for path in (EXPORT / folder).glob(".ucm/writers/*"))


def published(folder):
    here = EXPORT / folder if isinstance(folder, str) else folder
    return {path.name for path in here.glob("*/*/???/*") if not path.name.startswith(".")}


class Disk:
    """ext4 on dm-flakey, whose power can be cut: what is not on the disk by then is gone."""

    DEVICE = "/dev/vdd"

    def __init__(self, at=FLAKEY):
        self.at = at
        self.sectors = int(sh(f"blockdev --getsz {self.DEVICE}"))
        sh(f"dmsetup create flakey --table '{self._table(True)}'")
        sh("dmsetup mknodes")
        sh("mkfs.ext4 -q -F /dev/mapper/flakey")
        for knob in ("dirty_writeback_centisecs", "dirty_expire_centisecs"):
            Path("/proc/sys/vm", knob).write_text("30")  # some is on the disk, some is not
        self.mount()

    def _table(self, works):
        up = "180 0" if works else "0 180 1 drop_writes"
        return f"0 {self.sectors} flakey {self.DEVICE} 0 {up}"

    def _load(self, works):
        sh(
            f"dmsetup suspend --noflush --nolockfs flakey && "
            f"dmsetup load flakey --table '{self._table(works)}' && dmsetup resume flakey"
        )

    def mount(self, options="defaults"):
        """Mount it; the journal is written often, so that names are there before what they name."""
        self.options = options
        sh(f"mount -o commit=1,{options} /dev/mapper/flakey {self.at}")

    def mount_again(self, options):
        sh(f"umount {self.at}")
        self.mount(options)

    def cut(self):
        self._load(False)

    def power_up(self):
        """Forget all that was not on the disk, and mount again."""
        sh(f"umount {self.at}")
        sh("echo 3 > /proc/sys/vm/drop_caches")
        self._load(True)
        self.mount(self.options)

    def end(self):
        kill_all_hosts()
        sh(f"umount {self.at}; dmsetup remove flakey", check=False)
