"""What a process asks of the kernel during one round: system calls, io_uring requests, threads."""

import mmap
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path

import numpy as np

EVENTS = {
    "system_calls": "raw_syscalls:sys_enter",
    "sqes": "io_uring:io_uring_submit_req",
    "punted": "io_uring:io_uring_queue_async_work",
}


def parse_perf(text):
    """Return the counts of perf stat -x, by our names; None where it could not count."""
    counts = dict.fromkeys(EVENTS)
    for line in text.splitlines():
        cells = line.split(",")
        for name, event in EVENTS.items():
            if len(cells) > 2 and event in cells and cells[0].isdigit():
                counts[name] = int(cells[0])
    return counts


def perf_counts():
    """Tell whether perf can count these here."""
    if not shutil.which("perf"):
        return False
    command = ["perf", "stat", "-x,", "-e", ",".join(EVENTS.values()), "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode == 0 and parse_perf(done.stderr)["system_calls"] is not None


class Counted:
    """A with block in which the system calls of a process are counted; .counts afterwards."""

    def __init__(self, pid):
        self.pid, self.counts = pid, dict.fromkeys(EVENTS)

    def __enter__(self):
        control, self.control = os.pipe()
        self.ack, ack = os.pipe()
        command = ["perf", "stat", "-x,", "-D", "-1", "-e", ",".join(EVENTS.values())]
        command += ["-p", str(self.pid), "--control", f"fd:{control},{ack}"]
        self.perf = subprocess.Popen(
            command, pass_fds=(control, ack), stderr=subprocess.PIPE, text=True
        )
        os.close(control)
        os.close(ack)
        self.tell(b"enable\n")
        return self

    def tell(self, what):
        os.write(self.control, what)
        os.read(self.ack, 16)

    def __exit__(self, *_):
        self.tell(b"disable\n")
        self.perf.send_signal(2)
        self.counts = parse_perf(self.perf.communicate()[1])
        os.close(self.control)
        os.close(self.ack)


def thread_names(pid):
    names = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/comm") as comm:
                names.append(comm.read().strip())
        except FileNotFoundError:
            pass
    return names


def device_bytes(pid, operation):
    """Return how many bytes this process has moved past the page cache, or left it to write."""
    field = "read_bytes" if operation == "load" else "write_bytes"
    with open(f"/proc/{pid}/io") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field))


class Watched:
    """A with block in which the threads of a process are looked at every millisecond."""

    def __init__(self, pid):
        self.pid, self.peak, self.kernel = pid, 0, 0
        self.stop = threading.Event()

    def __enter__(self):
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.stop.is_set():
            try:
                names = thread_names(self.pid)
            except FileNotFoundError:
                return
            # The kernel's threads for io_uring are of the process, and so in the list.
            kernel = sum(name.startswith(("iou-wrk", "iou-sqp")) for name in names)
            self.peak, self.kernel = max(self.peak, len(names)), max(self.kernel, kernel)
            time.sleep(0.001)

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()


def huge_pages():
    """Tell whether the kernel gives huge pages to those who ask."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return path.exists() and "[never]" not in path.read_text()


def pages_in_a_row(path):
    """Return how many physical pages of this memory file follow each other, on average.

    None: only root may know.
    """
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        touched = np.frombuffer(memory, np.uint8)
        touched[::4096].sum()
        begin, count = touched.ctypes.data // 4096, len(touched) // 4096
        del touched
        with open("/proc/self/pagemap", "rb") as pages:
            pages.seek(8 * begin)
            numbers = np.frombuffer(pages.read(8 * count), np.uint64) & np.uint64((1 << 55) - 1)
    if not numbers.any():
        return None
    return float(count / (1 + np.count_nonzero(np.diff(numbers.astype(np.int64)) != 1)))
