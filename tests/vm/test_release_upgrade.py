# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian 12 becomes Debian 13 by `apt full-upgrade`, with modules that 12's dkms compressed: xz, with the check CRC64.

12's kmod unpacks them itself. 13's kmod leaves them to a kernel that can unpack modules, and that takes no CRC64: a module that
loaded before the upgrade does not load after it, on a kernel that nobody has touched. Each verdict is held against the kernel
itself, which gets the modules by the modprobe of that machine.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from knetstatd.rehearsal import vm
from tests.container import next_release, product, rig
from tests.vm import upgrade

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tests.container.rig import Container, Kernel

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(3000)]

KNETSTAT, PLAIN = "knetstat", "kt_good"
CONFIG = 'modules = ["knetstat"]\nkernels = "all"\nsettle_seconds = 1.0\n'
CRC64, CRC32 = 4, 1  # xz-file-format 2.1.1.2: the second byte of the stream flags
ASK = r"""#!/bin/busybox sh
bb=/bin/busybox
$bb mkdir /tmp/ask && cd /tmp/ask && $bb tail -c +@SIZE@ /program | $bb cpio -id 2>/dev/null
$bb mount -t sysfs sysfs sys && $bb mount -t proc proc proc
for m in @MODULES@; do
    echo "== $m"
    $bb dmesg -c >/dev/null
    $bb chroot . /usr/sbin/modprobe $m 2>&1
    $bb dmesg -c
    $bb grep -sx live sys/module/$m/initstate
    echo "--"
done
"""


def kernels_answer(c: Container, kernel: Kernel, modules: Iterable[str]) -> dict[str, str]:
    """What modprobe and the kernel say when that machine loads modules, "" for one that is in."""
    release, wanted = kernel.release, tuple(modules)
    tree = f"/usr/lib/modules/{release}"
    said = c.output("sh", "-c", "ldd /usr/bin/kmod; ls -1d /usr/lib/x86_64-linux-gnu/*")  # it opens some by itself
    files = {"/usr/bin/kmod", *re.findall(r"\s(/lib\S+) \(0x", said)}
    files |= set(re.findall(r"^/usr\S+/lib(?:z|lzma|zstd|crypto)\.so\.\d+$", said, re.MULTILINE))
    files |= set(c.output("find", tree, "-maxdepth", "1", "-name", "modules.*").split())
    files |= set(c.output("find", f"{tree}/updates", "/etc/modprobe.d", "-type", "f").split())
    for module in wanted:
        shown = c.output("modprobe", "--set-version", release, "--show-depends", module)
        files |= set(re.findall(r"^insmod (\S+)", shown, re.MULTILINE))
    files = {re.sub(r"^/lib(64)?/", r"/usr/lib\1/", name) for name in files}
    links = {"usr/sbin/modprobe": b"../bin/kmod", "lib": b"usr/lib", "lib64": b"usr/lib64"}
    places = dict.fromkeys(("sys", "proc", "dev", "usr", "usr/sbin"))
    for name in sorted(files):
        places |= dict.fromkeys(os.fspath(parent) for parent in [*Path(name.lstrip("/")).parents][-2::-1])
    entries = [vm.CpioFile(place, stat.S_IFDIR | 0o755) for place in places]
    entries += [vm.CpioFile(name, stat.S_IFLNK | 0o777, target) for name, target in links.items()]
    entries += [
        vm.CpioFile(name.lstrip("/"), stat.S_IFREG | 0o755, Path(os.path.realpath(c.path(name))).read_bytes())
        for name in sorted(files)
    ]
    text = ASK.replace("@MODULES@", " ".join(wanted))
    script = text.replace("@SIZE@", f"{len(text) - len('@SIZE@') + 4 + 1:04}").encode()
    image = next(p for p in (c.path(f"/boot/vmlinuz-{release}"), c.path(f"{tree}/vmlinuz")) if p.exists())
    outcome = vm.rehearse(image, vm.Plan((), vm.Program(script + vm.cpio(entries))), memory=768, timeout=600)
    parts = dict(re.findall(r"^== (\S+)\n(.*?)^--$", outcome.output, re.MULTILINE | re.DOTALL))
    assert set(parts) == set(wanted), outcome.console[-4000:]
    return {module: "" if text.endswith("live\n") else text or "?" for module, text in parts.items()}


def the_daemon_says_ready(c: Container, kernels: Collection[Kernel], count: int) -> None:
    """In its status file: it has outlived the upgrade of Python, systemd and itself."""

    def said() -> bool:
        verdicts = json.loads(c.output("cat", "/run/knetstatd/status.json"))["verdicts"]
        states = {(v["kernel"], v["package"]): v["ready"] for v in verdicts}
        asked = {kernel for kernel, _ in states} == {kernel.release for kernel in kernels}
        return asked and len(states) == count * len(kernels) and all(states.values())

    product.wait("the daemon is content", said, 300)


def xz_check(file: Path | None) -> int:
    assert file is not None
    head = file.read_bytes()[:8]
    assert head.startswith(b"\xfd7zXZ\0"), f"{file} is not compressed"
    return head[7]


def is_green(c: Container, kernel: Kernel, module: str) -> bool:
    """What `verify` says of the installed file, without asking dkms's copy."""
    file = c.module_file(kernel, module)
    assert file is not None
    return c.run(["knetstatctl", "verify", f"/{file.relative_to(c.root)}", "--kernel", kernel.release]).returncode == 0


def agrees(c: Container, kernels: Iterable[Kernel]) -> list[tuple[str, str]]:
    """Holds every file against its kernel; returns the kernels and modules that are red."""
    red = []
    for kernel in kernels:
        answer = kernels_answer(c, kernel, (KNETSTAT, PLAIN))
        for module, words in answer.items():
            green = is_green(c, kernel, module)
            print(f"{kernel.release:30} {module:10} {'green' if green else 'red':6} {words!r}")
            assert green == (not words), (kernel.release, module, words)
            red += [] if green else [(kernel.release, module)]
    return red


def test_modules_that_debian_12_compressed(packages_of: upgrade.PackagesOf) -> None:
    repo = next_release.repository("bookworm", "trixie")
    with rig.container("bookworm") as c:
        first, newer = c.kernels("6.1")[0], c.kernels("6.12")[0]
        c.install_kernel(newer)
        packages = [c.add_fixture("good"), f"knetstat/{upgrade.version()}"]
        debs = {deb.name.partition("_")[0]: deb for deb in packages_of("bookworm").debs()}
        upgrade.install_debs(c, [debs["knetstat-dkms"]])
        for package, kernel in itertools.product(packages, (first, newer)):
            c.run(["dkms", "install", package, "-k", kernel.release], check=True, timeout=300)
        # The guard comes last: what it guards dkms has built, and packed, by itself.
        c.write("/etc/knetstatd/knetstatd.toml.d/50-test.toml", CONFIG)
        upgrade.install_debs(c, [debs["knetstatd"]])
        product.wait_ready(c, "all")
        assert {xz_check(c.module_file(newer, module)) for module in (KNETSTAT, PLAIN)} == {CRC64}
        assert agrees(c, (first, newer)) == []

        print(next_release.upgrade(c, repo).stdout[-3000:])
        at_once = product.check(c, newer.release)
        assert at_once or xz_check(c.module_file(newer, KNETSTAT)) == CRC32, "green, for a module that the kernel refuses"
        assert c.output("cat", "/etc/debian_version").startswith("13")
        [new] = set(c.output("ls", "/lib/modules").split()) - {first.release, newer.release}
        latest = next_release.kernel(new)
        every = (first, newer, latest)
        the_daemon_says_ready(c, every, 1)
        assert product.check(c, "all") == 0
        assert xz_check(c.module_file(newer, KNETSTAT)) == CRC32, "built again"
        assert xz_check(c.module_file(newer, PLAIN)) == CRC64, "nobody guards it"
        assert agrees(c, every) == [(newer.release, PLAIN)]

        c.write("/etc/knetstatd/knetstatd.toml.d/50-test.toml", CONFIG.replace("]", ', "kt-good"]'))
        assert product.check(c, newer.release) in (1, 75), "not green for a moment"
        c.run(["systemctl", "reload", "knetstatd"], check=True)
        the_daemon_says_ready(c, every, 2)
        assert agrees(c, every) == []
