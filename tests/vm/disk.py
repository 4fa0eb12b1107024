# SPDX-License-Identifier: GPL-2.0-or-later
"""A Debian root, prepared in a container, as a disk that a virtual machine boots: the heavy steps at full speed, the rest real.

    with rig.container("bookworm", boot=False) as c:
        disk.prepare(c)                      # before kernels are installed: initramfs with the drivers of the disk
        ...
        image = disk.make(c, tmp_path)
    said = disk.boot(image, disk.kernel(image, release), "uname -r")

A script runs as root when the machine is up, its output comes back; then the machine is powered off. The disk keeps what was
written, so the next `boot` is a reboot, also into another kernel.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.container.rig import Container

QEMU = "qemu-system-x86_64"
# Emulated, on two busy cores, a boot to the end of a short script takes one to two minutes.
TIMEOUT = 600.0
# In this time a kernel is in its initramfs, which says the first of these lines; the script prints the second.
INIT_TIMEOUT = 240.0
_CPU = "Haswell-noTSX-IBRS"
_INIT = "Loading, please wait..."
_BEGIN, _END = "== driver begins ==", "== driver ends "

_DRIVER = f"""\
[Unit]
Description=Run the test's script, then power off
After=multi-user.target knetstatd.service

[Service]
Type=oneshot
# Its own lines on the console, nobody else's.
ExecStart=/bin/sh -c 'exec >/dev/ttyS0 2>&1; echo; echo "{_BEGIN}"; sh /usr/local/lib/driver; echo; echo "{_END}$? =="; sync'
ExecStopPost=systemctl --no-block poweroff
TimeoutStartSec=infinity

[Install]
WantedBy=default.target
"""


class Files(NamedTuple):
    """What QEMU starts: a kernel's image and initramfs, copied from the root."""

    release: str
    vmlinuz: Path
    initrd: Path


class Said(NamedTuple):
    """What the script printed, its exit status (None: the machine ended before it did), and all that the console had."""

    output: str
    code: int | None
    console: str


def prepare(c: Container) -> None:
    """Makes every initramfs of this root from now on able to find the disk, and remakes those that there are."""
    modules = c.path("/etc/initramfs-tools/modules")
    modules.write_text("virtio_pci\nvirtio_blk\next4\n")
    c.write("/etc/systemd/system/driver.service", _DRIVER)
    wants = c.path("/etc/systemd/system/default.target.wants")
    wants.mkdir(exist_ok=True)
    (wants / "driver.service").symlink_to("../driver.service")
    c.run(["update-initramfs", "-u", "-k", "all"], check=True, timeout=300)


def keep_repository(c: Container) -> None:
    """Puts apt's repository, which a container has from its host, into the root itself."""
    shutil.copytree(c.repository, c.path("/srv/repo"), dirs_exist_ok=True)


def make(c: Container, directory: Path, megabytes: int = 4000) -> Path:
    """The root of a container that is switched off, as a disk image. What made it seem to run a kernel is taken out."""
    assert not c.booted
    directory.mkdir(parents=True, exist_ok=True)
    for trick in ("/etc/ld.so.preload", "/etc/rig/release"):
        c.path(trick).unlink(missing_ok=True)
    c.write("/etc/fstab", "/dev/vda / ext4 defaults 0 1\n")
    image = directory / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", c.root, image, f"{megabytes}M"], stdout=subprocess.DEVNULL, check=True)
    return image


def kernel(image: Path, release: str) -> Files:
    """A kernel's image and initramfs, taken out of the disk of a machine that is off."""
    found = Files(release, image.with_name(f"vmlinuz-{release}"), image.with_name(f"initrd-{release}"))
    _dump(image, [f"/boot/vmlinuz-{release}", f"/usr/lib/modules/{release}/vmlinuz"], found.vmlinuz)
    _dump(image, [f"/boot/initrd.img-{release}"], found.initrd)
    return found


def _dump(image: Path, paths: list[str], target: Path) -> None:
    for path in paths:
        subprocess.run(["debugfs", "-R", f"dump {path} {target}", image], capture_output=True, check=True)
        if target.exists() and target.stat().st_size:
            return
    raise AssertionError(f"{image} has none of {paths}")


def boot(
    image: Path,
    kernel: Files,
    script: str,
    *,
    timeout: float = TIMEOUT,
    arguments: str = "",
    show: TextIO | None = None,
    cpu: str = _CPU,
    more: Sequence[Path] = (),
    until: str = "",
) -> Said:
    """Boots the disk with a kernel, runs `script` in it, and returns when the machine is off.

    show: gets what the script prints, while it does.  cpu: the processor, where it is emulated.  more: other disks, /dev/vdb
    and on.  until: the machine is ended when its console has this.
    """
    put(image, "/usr/local/lib/driver", script)
    text = _run(image, kernel, arguments, timeout, show, cpu, more, until)
    if _INIT not in text and not kvm():
        # A kernel that is emulated now and then hangs or dies before its init. That is the emulator's: nothing of the disk
        # has run yet. Once more, and what comes then counts.
        text = _run(image, kernel, arguments, timeout, show, cpu, more, until)
    return said(text)


def said(console: str) -> Said:
    """What the script printed, out of all that the console had."""
    inside, ended, rest = console.partition(_BEGIN + "\n")[2].partition("\n" + _END)
    return Said(inside, int(rest.split()[0]) if ended else None, console)


def _run(
    image: Path, kernel: Files, arguments: str, timeout: float, show: TextIO | None, cpu: str, more: Sequence[Path], until: str
) -> str:
    """Starts the machine, waits until it is off, and returns what its console had."""
    console = image.with_name("console")
    # A 7.x kernel patches its own code while it starts, and one whose other processor is emulated at the same time dies of it.
    alone = not kvm() and int(kernel.release.partition(".")[0]) >= 7
    accelerator = ["-accel", "kvm", "-cpu", "host"] if kvm() else ["-accel", "tcg,thread=multi", "-cpu", cpu]
    with console.open("wb") as out:
        process = subprocess.Popen(
            [
                QEMU, *accelerator, "-M", "pc", "-smp", "1" if alone else "2",
                "-m", "2048", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
                *(word for disk in (image, *more) for word in ("-drive", f"file={disk},format=raw,if=virtio,cache=unsafe")),
                "-device", "virtio-rng-pci", "-kernel", kernel.vmlinuz, "-initrd", kernel.initrd, "-append",
                # Without "quiet" the initramfs says that it began; nobody else is to talk on the console.
                f"root=/dev/vda rw console=ttyS0 loglevel=3 systemd.show_status=0 panic=-1 mitigations=off {arguments}",
            ],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    began, shown, ended = time.monotonic(), 0, False
    try:
        while not ended and time.monotonic() - began < timeout:
            time.sleep(0.2)
            ended = process.poll() is not None
            text = console.read_bytes().decode("utf-8", "replace").replace("\r\n", "\n")
            if (time.monotonic() - began > INIT_TIMEOUT and _INIT not in text) or (until and until in text):
                break
            if show is not None:
                lines = re.sub(r"[^\n]*\Z", "", said(text).output)
                show.write(lines[shown:])
                show.flush()
                shown = len(lines)
    finally:
        process.kill()
        process.wait()
    return text


@functools.cache
def kvm() -> bool:
    """Does /dev/kvm work, and fast? A virtual machine's own may be there and hang, or be thirty times slower than emulation."""
    # A boot sector that ends the machine: mov dx, 0xf4; mov al, 0x21; out dx, al.
    sector = bytes.fromhex("ba f4 00 b0 21 ee").ljust(510, b"\0") + b"\x55\xaa"
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "sector").write_bytes(sector)
        try:
            done = subprocess.run(
                [
                    QEMU, "-accel", "kvm", "-cpu", "host", "-M", "pc", "-nodefaults", "-no-user-config", "-display", "none",
                    "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
                    "-drive", f"file={directory}/sector,format=raw,if=floppy,readonly=on",
                ],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=2, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 2 * 0x21 + 1


def put(image: Path, path: str, text: str) -> None:
    """Writes one file into the image of a machine that is off."""
    source = image.with_name("put")
    source.write_text(text)
    orders = f"rm {path}\nwrite {os.fspath(source)} {path}\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=orders, text=True, capture_output=True, check=True)
