"""Mounts of a directory through faulty_fs.c, which breaks what it is told to."""

import os
import subprocess
import time
from pathlib import Path

SOURCE = Path(__file__).with_name("faulty_fs.c")


class Unavailable(Exception):
    """File systems in user space cannot be had here."""


def compile_faulty_fs(folder):
    """Compile the file system; return the program's path."""
    if not Path("/dev/fuse").exists():
        raise Unavailable("there is no /dev/fuse")
    flags = subprocess.run(
        ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=False
    )
    if flags.returncode:
        raise Unavailable("libfuse3 is missing; on Debian: apt install libfuse3-dev fuse3")
    program = folder / "faulty_fs"
    command = ["cc", "-std=c11", "-D_GNU_SOURCE", "-D_FILE_OFFSET_BITS=64", "-O1"]
    command += ["-Wall", "-Wextra", "-Werror", str(SOURCE), "-o", str(program)]
    subprocess.run([*command, *flags.stdout.split()], check=True)
    return program


class Mount:
    """One mount. ``rules`` are the lines of the head of faulty_fs.c."""

    def __init__(self, program, backing, folder, cache_seconds=0, options=""):
        self.folder = folder
        self._control = folder.with_suffix(".rules")
        self.folder.mkdir()
        command = [program, backing, self._control, str(cache_seconds), folder]
        self._process = subprocess.Popen(
            [*map(str, command), "-f", "-o", f"max_threads=64{options}"],
            stderr=subprocess.PIPE,
            text=True,
        )
        until = time.monotonic() + 20
        while not self.folder.is_mount():
            if self._process.poll() is not None:
                raise Unavailable(f"it cannot be mounted: {self._process.stderr.read().strip()}")
            assert time.monotonic() < until, "the mount does not come"
            time.sleep(0.01)

    def break_with(self, *rules):
        """Break this from now on, and nothing else; without rules, nothing."""
        new = self._control.with_suffix(".new")
        new.write_text("".join(f"{rule}\n" for rule in rules))
        new.rename(self._control)

    def end(self):
        self.break_with()
        command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*command, str(self.folder)], check=True)
        self._process.wait(20)
        self._process.stderr.close()
