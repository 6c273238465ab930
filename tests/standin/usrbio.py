"""USRBIO through ctypes: as much as the tests of the stand-in need."""

import ctypes
import os
import time

SYMBOLS = (
    "hf3fs_dereg_fd",
    "hf3fs_extract_mount_point",
    "hf3fs_io_entries",
    "hf3fs_iorcreate4",
    "hf3fs_iordestroy",
    "hf3fs_iovcreate",
    "hf3fs_iovdestroy",
    "hf3fs_prep_io",
    "hf3fs_reg_fd",
    "hf3fs_submit_ios",
    "hf3fs_wait_for_ios",
)
PAGE = 4096
FORBID_READ_HOLES = 2


class Iov(ctypes.Structure):
    _fields_ = [
        ("base", ctypes.c_void_p),
        ("iovh", ctypes.c_void_p),
        ("id", ctypes.c_uint8 * 16),
        ("mount_point", ctypes.c_char * 256),
        ("size", ctypes.c_size_t),
        ("block_size", ctypes.c_size_t),
        ("numa", ctypes.c_int),
    ]


class Ior(ctypes.Structure):
    _fields_ = [
        ("iov", Iov),
        ("iorh", ctypes.c_void_p),
        ("mount_point", ctypes.c_char * 256),
        ("for_read", ctypes.c_bool),
        ("io_depth", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("timeout", ctypes.c_int),
        ("flags", ctypes.c_uint64),
    ]


class Cqe(ctypes.Structure):
    _fields_ = [
        ("index", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("result", ctypes.c_int64),
        ("userdata", ctypes.c_void_p),
    ]


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("ns", ctypes.c_long)]


class Client:
    """One mount, memory of 16 pages, and rings of 8 requests."""

    def __init__(self, library, mount):
        self.lib = ctypes.CDLL(str(library))
        self.mount = str(mount).encode()
        self.iov = self.memory()

    def memory(self, pages=16, block_size=0):
        iov = Iov()
        size, block_size = ctypes.c_size_t(pages * PAGE), ctypes.c_size_t(block_size)
        result = self.lib.hf3fs_iovcreate(ctypes.byref(iov), self.mount, size, block_size, -1)
        if result != 0:
            raise OSError(-result, "iovcreate")
        return iov

    def free(self, iov):
        self.lib.hf3fs_iovdestroy(ctypes.byref(iov))

    def ring(self, read, entries=8, depth=0, timeout=0, flags=0):
        ior, flags = Ior(), ctypes.c_uint64(flags)
        result = self.lib.hf3fs_iorcreate4(
            ctypes.byref(ior), self.mount, entries, read, depth, timeout, -1, flags
        )
        if result != 0:
            raise OSError(-result, "iorcreate4")
        return ior

    def destroy(self, ring):
        self.lib.hf3fs_iordestroy(ctypes.byref(ring))

    def open(self, name, flags=os.O_RDWR | os.O_CREAT):
        fd = os.open(os.path.join(self.mount.decode(), name), flags, 0o600)
        assert self.register(fd) <= 0
        return fd

    def register(self, fd):
        return self.lib.hf3fs_reg_fd(fd, ctypes.c_uint64(0))

    def deregister(self, fd):
        self.lib.hf3fs_dereg_fd(fd)

    def page(self, n, iov=None):
        return (ctypes.c_uint8 * PAGE).from_address((iov or self.iov).base + n * PAGE)

    def fill(self, n, byte, iov=None):
        ctypes.memset(self.page(n, iov), byte, PAGE)

    def prepare(self, ring, fd, page=0, to=None, pages=1, read=None, iov=None):
        """Prepare a request between a page of memory and one of the file."""
        iov = iov or self.iov
        return self.lib.hf3fs_prep_io(
            ctypes.byref(ring),
            ctypes.byref(iov),
            ring.for_read if read is None else read,
            ctypes.c_void_p(iov.base + page * PAGE),
            fd,
            ctypes.c_size_t((page if to is None else to) * PAGE),
            ctypes.c_uint64(pages * PAGE),
            ctypes.c_void_p(page),
        )

    def submit(self, ring):
        return self.lib.hf3fs_submit_ios(ctypes.byref(ring))

    def fetch(self, ring, least, seconds=10, clock=time.CLOCK_REALTIME, most=64):
        """Wait once; return the pairs (page, result) that came."""
        cqes = (Cqe * most)()
        until = Timespec(*divmod(time.clock_gettime_ns(clock) + int(seconds * 1e9), 10**9))
        n = self.lib.hf3fs_wait_for_ios(ctypes.byref(ring), cqes, most, least, ctypes.byref(until))
        assert n >= 0
        return [(cqe.userdata or 0, cqe.result) for cqe in cqes[:n]]

    def run(self, ring, fd, pages, to=None):
        """Do a request of a page for each of these; return the results by page."""
        for page in pages:
            assert self.prepare(ring, fd, page, to) >= 0
        self.submit(ring)
        return dict(self.fetch(ring, len(pages)))
