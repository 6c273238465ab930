"""Posix over real NFS, and under power cuts: in a Debian guest, as few kernels here have a client.

    make nfs                            everything
    make nfs ARGS="--only quota,kill"   the tests with one of these in their name

It makes a root disk of Debian 12 with Debian's own kernel, once, in build/nfs; boots it in QEMU,
emulated, so that no hypervisor is needed; and runs guest/main.py there on the built wheel. What the
guest says is shown, and kept in docs/nfs-run.txt when all of it passed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

HERE = Path(__file__).parent
TRANSCRIPT = HERE.parents[1] / "docs" / "nfs-run.txt"
SUITE = "bookworm"
GUEST_PYTHON = "3.11"
PACKAGES = [
    *("linux-image-amd64", "kmod", "zstd", "iproute2", "procps", "e2fsprogs", "dmsetup"),
    *("nfs-kernel-server", "nfs-common", "rpcbind"),
    *("python3", "libstdc++6", "libzstd1", "libaio1", "liburing2"),
]
MODULES = ["nfsd", "nfs", "nfsv3", "nfsv4", "dm-flakey", "veth", "ext4", "virtio_blk"]
# Debian's initrd has every driver there is, which emulation takes a minute to unpack.
CUSTOMIZE = r"""
set -e
echo MODULES=list > "$1/etc/initramfs-tools/conf.d/modules"
printf 'virtio_pci\nvirtio_blk\next4\n' >> "$1/etc/initramfs-tools/modules"
chroot "$1" update-initramfs -u
printf '#!/bin/sh\nmount -o ro /dev/vdb /mnt\nexec sh /mnt/guest/init.sh\n' > "$1/sbin/init"
chmod 755 "$1/sbin/init"
"""
TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
}
PLATFORMS = ("linux_x86_64", "manylinux2014_x86_64", "manylinux_2_28_x86_64")
BEGIN = "nfs: begin"
ESCAPES = re.compile(r"\x1b(\[[0-9;?]*[A-Za-z]|c)")
KERNEL = re.compile(r"\[ *\d+\.\d+\] ")
END = re.compile(r"nfs: (\d+) passed, (\d+) failed, (\d+) left out")


class Failed(Exception):
    """Something is not as it must be."""


def say(text):
    print(f"nfs: {text}", flush=True)


def call(command, **options):
    """Run a command, silent unless it fails."""
    command = list(map(str, command))
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise Failed(f"{' '.join(command[:3])}... failed; its last lines:\n{tail}")


def missing_tools():
    """Return the Debian packages of what is not on this machine."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]


def see_to_tools():
    packages = missing_tools()
    if not packages:
        return
    if os.geteuid() != 0:
        raise Failed(f"this machine lacks some packages: sudo apt-get install {' '.join(packages)}")
    say(f"installing {' '.join(packages)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    call(["apt-get", "update"], env=env)
    call(["apt-get", "install", "-y", "--no-install-recommends", *packages], env=env)


class Guest:
    """What the guest boots from, in a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.root, self.run = folder / "root.img", folder / "run.img"
        self.kernel, self.initrd = folder / "vmlinuz", folder / "initrd"

    def make_root(self):
        marker, recipe = self.folder / "recipe", f"{SUITE} {PACKAGES} {CUSTOMIZE}"
        if marker.exists() and marker.read_text() == recipe:
            return
        if os.geteuid() != 0:
            raise Failed("the guest's root disk is made by root, once: run make nfs as root")
        say("making the guest's root disk, some minutes")
        shutil.rmtree(self.folder, ignore_errors=True)
        tree = self.folder / "root"
        tree.parent.mkdir(parents=True)
        bootstrap = ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
        quiet = "--aptopt=Apt::Install-Recommends false"
        call([*bootstrap, quiet, f"--customize-hook={CUSTOMIZE}", SUITE, tree])
        for module in MODULES:
            if not any(tree.glob(f"lib/modules/**/{module}.ko*")):
                raise Failed(f"the guest's kernel has no module {module}")
        shutil.copy(next(tree.glob("boot/vmlinuz-*")), self.kernel)
        shutil.copy(next(tree.glob("boot/initrd.img-*")), self.initrd)
        call(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, self.root, "1500M"])
        shutil.rmtree(tree)
        marker.write_text(recipe)

    def make_run(self, wheel, only):
        """Make the disk with the package, what it needs, and the tests."""
        tree = self.folder / "run"
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(HERE / "guest", tree / "guest")
        (tree / "guest" / "only").write_text(only)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", tree / "site"]
        only = ["--only-binary=:all:", f"--python-version={GUEST_PYTHON}"]
        only += [f"--platform={platform}" for platform in PLATFORMS]
        call([*pip, *only, wheel, "numpy", "pytest"])
        self.run.unlink(missing_ok=True)
        call(["mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, self.run, "400M"])

    def make_disk(self, name, size):
        path = self.folder / name
        path.unlink(missing_ok=True)
        path.touch()
        os.truncate(path, size)
        return path

    def command(self):
        disks = [self.make_disk("export.img", 1 << 30), self.make_disk("flakey.img", 256 << 20)]
        command = ["qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"]
        command += ["-m", "1536", "-nographic", "-no-reboot", "-nic", "none"]
        command += ["-kernel", self.kernel, "-initrd", self.initrd]
        command += ["-append", "console=ttyS0 quiet panic=-1 root=/dev/vda rw"]
        for disk, options in (
            (self.root, ",snapshot=on"),
            (self.run, ",snapshot=on"),
            *((disk, ",cache=unsafe") for disk in disks),
        ):
            command += ["-drive", f"file={disk},if=virtio,format=raw{options}"]
        return list(map(str, command))


def boot(guest, minutes):
    """Run the guest to its end; return what it said from its first line on."""
    process = subprocess.Popen(
        guest.command(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    limit = threading.Timer(minutes * 60, process.kill)
    limit.start()
    lines = []
    try:
        for raw in process.stdout:
            line = ESCAPES.sub("", raw).strip("\r\n")
            if line.endswith(BEGIN) or lines:
                lines.append(line)
            print(line, flush=True)
    finally:
        if limit.is_alive():
            limit.cancel()
        else:
            say(f"the guest was stopped after {minutes} minutes")
        process.kill()
        process.wait()
    return [line for line in lines[1:] if not KERNEL.match(line)]


def verdict(lines):
    """Return how many tests failed; all must have come to an end."""
    ends = [match for match in map(END.fullmatch, lines) if match]
    if not ends:
        raise Failed("the guest did not come to its end")
    return int(ends[-1][2])


def emulator():
    done = subprocess.run(
        ["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True
    )
    return re.search(r"version ([\d.]+)", done.stdout)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="disks of the guest")
    parser.add_argument("--wheel", type=Path, required=True, help="the package to test")
    parser.add_argument("--only", metavar="WORDS", help="tests with one in their name: quota,kill")
    parser.add_argument("--minutes", type=int, default=45, help="for all of the guest's run")
    args = parser.parse_args()
    start = time.monotonic()
    try:
        see_to_tools()
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        guest = Guest(args.folder.absolute())
        guest.make_root()
        guest.make_run(args.wheel.absolute(), args.only or "")
        lines = boot(guest, args.minutes)
        failed = verdict(lines)
    except Failed as failure:
        say(f"FAILED: {failure}")
        return 1
    if not failed and not args.only:
        head = f"make nfs: QEMU {emulator()}, emulated (TCG), 2 CPUs, 1.5 GiB"
        TRANSCRIPT.write_text("\n".join([head, *lines]) + "\n")
    say(f"{time.monotonic() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
