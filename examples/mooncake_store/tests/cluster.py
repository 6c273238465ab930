"""A Mooncake cluster on loopback, in processes of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import sysconfig
import urllib.request
from pathlib import Path

HOST = "127.0.0.1"
MIB = 1 << 20
QUIET = {"GLOG_minloglevel": "3", "MC_LOG_LEVEL": "ERROR", "MC_YLT_LOG_LEVEL": "critical"}


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


class Process:
    """A process that is no more at the end of its test."""

    def __init__(self, command, **options):
        self.popen = subprocess.Popen(
            command, env={**os.environ, **QUIET}, start_new_session=True, **options
        )

    def stop(self):
        self.popen.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.popen.send_signal(signal.SIGCONT)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait()


class Master(Process):
    """mooncake_master on a port of its own; ``again`` starts it there once more."""

    def __init__(self, log, port=None):
        self.port = port or free_port()
        self.address = f"{HOST}:{self.port}"
        self._metrics_port = free_port()
        self._log = log
        program = Path(sysconfig.get_path("scripts")) / "mooncake_master"
        if not program.exists():
            program = Path(sys.prefix) / "bin" / "mooncake_master"
        with log.open("a") as out:
            super().__init__(
                [
                    program,
                    f"--rpc_address={HOST}",
                    f"--rpc_port={self.port}",
                    f"--metrics_host={HOST}",
                    f"--metrics_port={self._metrics_port}",
                    "--client_ttl=2",
                ],
                stdout=out,
                stderr=out,
            )
        self._until_it_listens()

    def _until_it_listens(self):
        while True:
            assert self.popen.poll() is None, self._log.read_text()[-2000:]
            with contextlib.suppress(OSError):
                return socket.create_connection((HOST, self.port), 1).close()

    def objects(self):
        """Return the names of all objects."""
        url = f"http://{HOST}:{self._metrics_port}/get_all_keys"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode().split()

    def again(self):
        self.kill()
        return Master(self._log, self.port)


class Peer(Process):
    """A process that gives memory to the pool, and runs lines of Python on its store."""

    def __init__(self, master, segment=64 * MIB, **options):
        super().__init__(
            [sys.executable, Path(__file__).with_name("peer.py"), master.address, str(segment)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        assert self.popen.stdout.readline() == "ready\n"

    def run(self, line):
        """Run an expression with ``store``, ``dump`` and ``load`` there; return what it is."""
        print(line, file=self.popen.stdin, flush=True)
        answer = self.popen.stdout.readline()
        assert answer, "the peer ended"
        return eval(answer)
