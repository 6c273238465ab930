"""A Redis server on a socket or port of its own."""

import contextlib
import os
import signal
import socket
import subprocess


class Server:
    """redis-server in a folder; ``again`` starts it there once more."""

    def __init__(self, folder, *arguments):
        self._folder, self._arguments = folder, arguments
        self.path = folder / "redis.sock"
        self.url = f"unix://{self.path}"
        self.path.unlink(missing_ok=True)
        with (folder / "redis.log").open("a") as log:
            self.popen = subprocess.Popen(
                [
                    *("redis-server", "--port", "0", "--unixsocket", self.path, "--save", ""),
                    *("--dir", folder, *arguments),
                ],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        while not self._answers():
            assert self.popen.poll() is None, (folder / "redis.log").read_text()[-2000:]
            os.sched_yield()

    def _answers(self):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.path))
            probe.sendall(b"PING\r\n")
            return not probe.recv(64).startswith(b"-LOADING")

    def stop(self):
        self.popen.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.popen.send_signal(signal.SIGCONT)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            self.popen.kill()
        self.popen.wait()

    def again(self):
        self.kill()
        return Server(self._folder, *self._arguments)
