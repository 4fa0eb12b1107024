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

import os
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    from tests.container.rig import Container, Kernel

# Emulated, on two busy cores, a boot to the end of a short script takes one to two minutes.
TIMEOUT = 600.0
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


class Upgrade(NamedTuple):
    """A disk, the kernel that is installed on it, and the one that can be."""

    image: Path
    old: Kernel
    new: Kernel


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
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", c.root, image, f"{megabytes}M"], check=True)
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


def boot(image: Path, kernel: Files, script: str, *, timeout: float = TIMEOUT, arguments: str = "") -> Said:
    """Boots the disk with a kernel, runs `script` in it, and returns when the machine is off."""
    put(image, "/usr/local/lib/driver", script)
    with open(image.with_name("console"), "w+b") as console:
        process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "Haswell-noTSX-IBRS", "-M", "pc", "-smp", "2",
                "-m", "2048", "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
                "-drive", f"file={image},format=raw,if=virtio,cache=unsafe",
                "-device", "virtio-rng-pci", "-kernel", kernel.vmlinuz, "-initrd", kernel.initrd, "-append",
                f"root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off {arguments}",
            ],
            stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        console.seek(0)
        text = console.read().decode("utf-8", "replace").replace("\r\n", "\n")
    return said(text)


def said(console: str) -> Said:
    """What the script printed, out of all that the console had."""
    inside, ended, rest = console.partition(_BEGIN + "\n")[2].partition("\n" + _END)
    return Said(inside, int(rest.split()[0]) if ended else None, console)


def put(image: Path, path: str, text: str) -> None:
    """Writes one file into the image of a machine that is off."""
    source = image.with_name("put")
    source.write_text(text)
    orders = f"rm {path}\nwrite {os.fspath(source)} {path}\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=orders, text=True, capture_output=True, check=True)
