"""Mooncake's client behind calls that end in time, whatever the cluster does.

Every call runs on a thread of a lane, which also owns memory that the library has registered. If
the call does not end in time, its caller goes on, and the lane stays out of use until it does:
the library may still write to that memory.
"""

import concurrent.futures
import contextlib
import ctypes
import mmap
import os
import queue
import socket
import threading
import time

import ucm

LANES = 4
OBJECTS = 128  # of a transfer; Mooncake's TCP has room for 1024 at a time, and loses some beyond
_RETRY_S = 1.0
_SETUP_S = 60.0  # registering much memory for RDMA takes its time

OK = 0
NO_ROOM = (-200, -1700)
GONE = (-703, -704, -707, -710, -712)
TRANSFER_FAILED = -800
CHECKSUM_MISMATCH = -801
RPC_FAILED, RPC_TIMEOUT = -900, -901


class Away(ucm.NotFoundError):
    """What holds the bytes may come back."""


def error_of(code):
    """Make the exception for what the library answered for one object that was read."""
    if code in GONE:
        return ucm.NotFoundError("not in the pool")
    if code in NO_ROOM:
        return ucm.NoSpaceError("the pool is full, or no client gives memory to it")
    if code == TRANSFER_FAILED:
        return Away("the client whose memory holds it does not answer")
    if code == CHECKSUM_MISMATCH:
        return ucm.CorruptError("Mooncake's own checksum does not match")
    if code == RPC_FAILED:
        return ucm.UnavailableError("mooncake_master cannot be reached")
    if code == RPC_TIMEOUT:
        return ucm.StoreTimeout("mooncake_master does not answer")
    return ucm.IoError(f"Mooncake error {code}")


def error_of_put(code):
    """Make the exception for one object that was to be written."""
    if code == TRANSFER_FAILED:
        return ucm.IoError("the client whose memory was to hold it does not answer")
    return error_of(code)


class Lane:
    """A thread, and registered memory."""

    def __init__(self, client, size):
        self._client = client
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "ucm-mooncake")
        self.running = None
        self.size = size
        self._pages = mmap.mmap(-1, size) if size else None
        self.memory = memoryview(self._pages) if size else memoryview(b"")
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._pages)) if size else 0

    def call(self, method, *args):
        """Call a method of the library; raises StoreTimeout when it takes too long."""
        self.running = self._thread.submit(method, *args)
        try:
            return self.running.result(self._client.timeout)
        except concurrent.futures.TimeoutError:
            self._client.suspect(certain=False)
            raise ucm.StoreTimeout(
                f"Mooncake did not answer within {self._client.timeout:g} s (mooncake_timeout_ms)"
            ) from None

    def stop(self):
        """Let the thread end."""
        self._thread.shutdown(wait=False)


class Client:
    """A connection to the cluster, which it finds again by itself after the master was away."""

    def __init__(self, settings, lane_size):
        self.timeout = settings.timeout
        self._address = settings.master_server_address
        self._lock = threading.Lock()  # guards _down and _prober
        self._down = False
        self._prober = None
        self._closing = threading.Event()
        self._library = _connect(settings)
        self._lanes = [Lane(self, lane_size) for _ in range(LANES)]
        self._free = queue.SimpleQueue()
        for lane in self._lanes:
            if lane_size and self._library.register_buffer(lane.address, lane_size):
                raise ucm.UnavailableError(f"Mooncake cannot register {lane_size} bytes of memory")
            self._free.put(lane)

    @contextlib.contextmanager
    def lane(self):
        """Take a lane; refuse at once while the master is away."""
        if self._down:
            raise ucm.UnavailableError(
                f"mooncake_master at {self._address} does not answer; asked again every second"
            )
        try:
            lane = self._free.get(timeout=self.timeout)
        except queue.Empty:
            raise ucm.BusyError(f"all {LANES} calls that may run wait for Mooncake") from None
        lane.running = None
        try:
            yield lane
        finally:
            if lane.running is None:
                self._free.put(lane)
            else:
                lane.running.add_done_callback(lambda _: self._free.put(lane))

    def exist(self, lane, keys):
        """Tell which objects are there; raises if the master cannot say."""
        codes = lane.call(self._library.batch_is_exist, keys)
        self._check_master(codes)
        failed = next((code for code in codes if code < 0), 0)
        if failed:
            raise error_of(failed)
        return [code == 1 for code in codes]

    def put(self, lane, keys, addresses, sizes, config):
        """Store objects out of the lane's memory; what is there already stays."""
        codes = lane.call(self._library.batch_put_from, keys, addresses, sizes, config)
        self._check_master(codes)
        return codes

    def get(self, lane, keys, addresses, sizes):
        """Load objects into the lane's memory; return their lengths, or codes below 0."""
        codes = lane.call(self._library.batch_get_into, keys, addresses, sizes)
        self._check_master(codes)
        return codes

    def remove(self, lane, keys):
        """Remove objects, also those that were read a moment ago."""
        codes = lane.call(self._library.batch_remove, keys, True)
        self._check_master(codes)
        return codes

    def _check_master(self, codes):
        if any(code in (RPC_FAILED, RPC_TIMEOUT) for code in codes):
            self.suspect(certain=True)

    def suspect(self, certain):
        """Ask the master until it answers; until then the store does not, at once if certain."""
        with self._lock:
            self._down |= certain
            if self._closing.is_set() or self._prober:
                return
            self._prober = threading.Thread(
                target=self._probe, name="ucm-mooncake-probe", daemon=True
            )
            self._prober.start()

    def _probe(self):
        while self._library.batch_is_exist(["ucm"])[0] < 0:
            self._down = True
            if self._closing.wait(_RETRY_S):
                return
        with self._lock:
            self._down, self._prober = False, None

    def close(self):
        """Leave the cluster; with a call that does not end, leave the library to the process."""
        self._closing.set()
        until = time.monotonic() + self.timeout
        with self._lock:
            prober = self._prober
        if prober:
            prober.join(self.timeout)
        stuck = prober is not None and prober.is_alive()
        for lane in self._lanes:
            if lane.running:
                left = max(0.0, until - time.monotonic())
                stuck |= bool(concurrent.futures.wait([lane.running], left).not_done)
            lane.stop()
        if not stuck:
            _bounded(self._library.close, self.timeout)


def _connect(settings):
    try:
        from mooncake.store import MooncakeDistributedStore
    except ImportError as error:
        raise ucm.UnavailableError(
            f"{error}; pip install mooncake-transfer-engine-non-cuda (or the build for your "
            "accelerator), and apt-get install libibverbs1 librdmacm1"
        ) from None
    # The library reads these when it connects; its own limits are half a minute and more.
    limit = max(1, round(settings.timeout * 500))
    os.environ.setdefault("MC_RPC_TIMEOUT_MS", str(limit))
    os.environ.setdefault("MC_RPC_CONNECT_TIMEOUT_MS", str(limit))
    os.environ.setdefault("MC_TCP_PROGRESS_TIMEOUT_SEC", str(max(1, round(settings.timeout))))
    os.environ.setdefault("MC_TCP_STATUS_TIMEOUT_SEC", str(max(1, round(settings.timeout))))
    os.environ.setdefault("MC_STORE_CLIENT_SETUP_RETRIES", "3")
    # Without it every object is a connection, and a busy hour uses up the ports.
    os.environ.setdefault("MC_TCP_ENABLE_CONNECTION_POOL", "1")
    _knock(settings)
    library = MooncakeDistributedStore()
    code = _bounded(
        lambda: library.setup(
            settings.local_hostname,
            settings.metadata_server,
            settings.global_segment_size,
            settings.local_buffer_size,
            settings.protocol,
            settings.device_name,
            settings.master_server_address,
        ),
        _SETUP_S,
        late=library.close,
    )
    if code != OK:
        raise _no_cluster(settings, "no answer" if code is None else f"error {code}")
    return library


def _knock(settings):
    """Fail soon where nobody listens; the library itself tries for minutes."""
    host, _, port = settings.master_server_address.rpartition(":")
    if not port.isdigit() or "," in host or "/" in host:
        return  # several masters, or where to find them
    try:
        socket.create_connection((host.strip("[]"), int(port)), settings.timeout).close()
    except OSError as error:
        raise _no_cluster(settings, str(error)) from None


def _no_cluster(settings, why):
    return ucm.UnavailableError(
        f"Mooncake: {why}: master_server_address {settings.master_server_address!r}, "
        f"metadata_server {settings.metadata_server!r}, protocol {settings.protocol!r}, "
        f"local_hostname {settings.local_hostname!r}; is mooncake_master running?"
    )


def _bounded(call, timeout, late=lambda: None):
    """Return what the call does, or None if it takes too long; ``late`` runs when it ends then."""
    answer = concurrent.futures.Future()

    def run():
        result = call()
        try:
            answer.set_result(result)
        except concurrent.futures.InvalidStateError:
            late()

    threading.Thread(target=run, name="ucm-mooncake-call", daemon=True).start()
    try:
        return answer.result(timeout)
    except concurrent.futures.TimeoutError:
        return None if answer.cancel() else answer.result()
