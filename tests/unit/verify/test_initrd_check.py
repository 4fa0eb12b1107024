# SPDX-License-Identifier: GPL-2.0-or-later
"""The initrd that a kernel boots with: which files it is, whether it is whole, and its copy of the module."""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import elf
import kerneltree
import pytest
from kerneltree import KERNEL
from packers import PROGRAMS, packed

from knetstatd.core.model import Check, Result
from knetstatd.machine import host
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.verify import initrd_check, proof_cache, verify

if TYPE_CHECKING:
    from pathlib import Path

PASS, FAIL, UNKNOWN, NA = Result.PASS, Result.FAIL, Result.UNKNOWN, Result.NOT_APPLICABLE
MINE = "updates/dkms/demo.ko"
OURS, OTHERS = (kerneltree.module("demo", build_id=build) for build in ("aaaa", "bbbb"))
# Few zeros follow it: lsinitramfs starts two programs for every four of them.
EARLY = cpio([CpioFile("kernel/x86/microcode/a.bin", stat.S_IFREG | 0o644, b"\1" * 5000)]) + bytes(16)
DISK, UPDATE = f"boot/initrd.img-{KERNEL}", f"Run: update-initramfs -u -k {KERNEL}"


def archive(*copies: bytes, init: bool = True, name: str = MINE) -> bytes:
    entries = [CpioFile("etc", stat.S_IFDIR | 0o755), CpioFile("bin/sh", stat.S_IFREG | 0o755, bytes(99999))]
    entries += [CpioFile("init", stat.S_IFREG | 0o755, b"#!")] * init
    entries += [CpioFile(f"usr/lib/modules/{KERNEL}/{name}", stat.S_IFREG | 0o644, copy) for copy in copies]
    return cpio(entries)


def write(root: Path, name: str, data: bytes | str, mode: int = 0o644) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine that makes its initrds with initramfs-tools, and one module beside the kernel's."""
    kerneltree.make(tmp_path)
    kerneltree.add(tmp_path / "usr/lib/modules" / KERNEL, MINE, OURS)
    for name in ("update-initramfs", "mkinitramfs"):
        write(tmp_path, f"usr/sbin/{name}", "#!", 0o755)
    return tmp_path


def check(root: Path) -> Check:
    [proof] = verify.prove(root, KERNEL, ["demo"], host=host.facts(root, root / "state"))
    found = next(check for check in proof.checks if check.name == "initrd")
    assert proof.loads is (found.result in (PASS, NA)), "it decides, whatever it is"
    return found


def initrd(root: Path, data: bytes, name: str = DISK, *, after: float = 1000) -> Path:
    """after: how many seconds after the module it was made."""
    path = write(root, name, data)
    made = (root / "usr/lib/modules" / KERNEL / MINE).stat().st_ctime + after
    os.utime(path, (made, made))
    return path


def want(root: Path) -> None:
    write(root, "etc/initramfs-tools/modules", "# a comment\n\nbig\ndemo option=1\n")


# -- 40 initrds -------------------------------------------------------------------------------------------------------------


FORMS = {
    "whole": (archive(OURS), PASS), "without it": (archive(), FAIL), "stale": (archive(OTHERS), FAIL), "cut off": (b"", FAIL),
    "no program": (archive(OURS, init=False), FAIL), "early": (archive(OURS), PASS),
}  # fmt: skip


@pytest.mark.spawns
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", PROGRAMS)
def test_every_kind_whole_and_not(root: Path, kind: str, form: str) -> None:
    contents, result = FORMS[form]
    data = packed(kind, contents or archive(OURS))
    data = EARLY + data if form == "early" else data[: len(data) // 2] if form == "cut off" else data
    want(root)
    path = initrd(root, data)
    found = check(root)
    assert found.result is result
    assert found.fix == ("" if result is PASS else UPDATE)
    if form == "cut off":
        return  # unmkinitramfs lists as far as it goes
    done = subprocess.run(["lsinitramfs", path], capture_output=True, text=True, check=False)
    listed = done.stdout.split()
    holds = any(name.endswith(MINE) for name in listed) and "init" in listed
    assert holds is (form in ("whole", "early", "stale"))


@pytest.mark.parametrize(("data", "why"), [
    (b"", "is empty"), (archive(OURS)[:-300], "ends before"), (EARLY, "its end is missing"), (b"text, no archive", "damaged"),
    (lzma.compress(archive(OURS)), "CRC64"), (gzip.compress(archive(OURS)) + b"rubbish", "damaged"),
])  # fmt: skip
def test_one_that_does_not_boot(root: Path, data: bytes, why: str) -> None:
    initrd(root, data)
    found = check(root)
    assert (found.result, why in found.reason, found.fix) == (FAIL, True, UPDATE)


def test_one_that_is_gone(root: Path) -> None:
    found = check(root)
    assert (found.result, found.found, found.fix) == (FAIL, "none", f"Run: update-initramfs -c -k {KERNEL}")
    for name in ("update-initramfs", "mkinitramfs"):
        (root / "usr/sbin" / name).unlink()
    assert check(root).result is NA, "nothing here makes initrds: this kernel may do without"


def test_a_kind_that_this_kernel_does_not_unpack(root: Path) -> None:
    initrd(root, gzip.compress(archive(OURS)))
    assert check(root).result is PASS
    config = root / f"boot/config-{KERNEL}"
    config.write_text(config.read_text().replace("CONFIG_RD_GZIP=y\n", ""))
    assert "compressed with gzip, which this kernel does not unpack" in check(root).reason
    config.unlink()
    assert check(root).result is PASS, "without a configuration every kind may be"


@pytest.mark.spawns
def test_what_is_not_known(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = initrd(root, packed("lzo", archive(OURS)))
    monkeypatch.setitem(sys.modules, "lzo", None)
    found = check(root)
    assert (found.result, found.fix) == (UNKNOWN, "Run: apt install python3-lzo")
    path.unlink()
    path.mkdir()
    (root / f"boot/initramfs-{KERNEL}.img").mkdir()
    write(root, "boot/loader/entries/a.conf", f"linux /vmlinuz-{KERNEL}\ninitrd /initrd.img-{KERNEL}\n")
    assert (check(root).result, check(root).fix) == (UNKNOWN, "")


def test_a_copy_that_the_kernel_does_not_unpack(root: Path) -> None:
    """The same build, packed as dkms before 3.1 does, in an initrd that was made before the upgrade."""
    initrd(root, archive(lzma.compress(OURS), name=f"{MINE}.xz"))
    assert check(root).result is PASS, "kmod unpacks it"
    config = root / f"boot/config-{KERNEL}"
    config.write_text(config.read_text() + "CONFIG_MODULE_DECOMPRESS=y\nCONFIG_MODULE_COMPRESS_XZ=y\n")
    kerneltree.kmod(root, b"lzma_code /sys/module/compression")
    found = check(root)
    assert (found.result, "CRC64" in found.reason, found.fix) == (FAIL, True, UPDATE)
    initrd(root, archive(lzma.compress(OURS, check=lzma.CHECK_CRC32), name=f"{MINE}.xz"))
    assert check(root).result is PASS


# -- the files that the boot entry names ------------------------------------------------------------------------------------


TOKEN = "0123456789abcdef0123456789abcdef"
OTHER_PLACE = f"boot/efi/{TOKEN}/{KERNEL}/initrd.img-{KERNEL}"
SYSTEMD_BOOT = f"title Debian\nversion {KERNEL}\nlinux /{TOKEN}/{KERNEL}/linux\ninitrd /{TOKEN}/{KERNEL}/initrd.img-{KERNEL}\n"
GRUB = "menuentry 'Debian' {{\n\tlinux /boot/vmlinuz-{0} root=/dev/vda1 ro\n\tinitrd {1}\n}}\n"


def test_systemd_boots_own_copy(root: Path) -> None:
    initrd(root, archive(OURS))
    assert check(root).result is PASS
    write(root, "boot/efi/loader/entries/a.conf", SYSTEMD_BOOT)
    write(root, f"boot/efi/{TOKEN}/{KERNEL}/linux", "image")
    found = check(root)
    assert (found.result, OTHER_PLACE in found.reason) == (FAIL, True)
    initrd(root, archive(OTHERS), OTHER_PLACE)
    found = check(root)
    assert (found.result, "another copy" in found.reason) == (FAIL, True)
    assert found.fix == f"{UPDATE} && kernel-install add {KERNEL} /boot/vmlinuz-{KERNEL}"
    write(root, "etc/initramfs/post-update.d/systemd-boot", "#!", 0o755)
    assert check(root).fix == UPDATE, "the hook makes the copy"
    initrd(root, archive(OURS), OTHER_PLACE)
    (root / DISK).unlink()
    assert check(root).result is PASS, "that in /boot is nobody's"


@pytest.mark.parametrize("path", [f"/boot/initrd.img-{KERNEL}", f"/initrd.img-{KERNEL}", f"(hd0,gpt2)/initrd.img-{KERNEL}"])
def test_grubs(root: Path, path: str) -> None:
    write(root, "boot/grub/grub.cfg", GRUB.format(KERNEL, path))
    assert (check(root).result, "which does not exist" in check(root).reason) == (FAIL, True)
    initrd(root, archive(OTHERS))
    assert check(root).result is FAIL
    initrd(root, archive(OURS))
    assert check(root).result is PASS


def test_several_files(root: Path) -> None:
    write(root, "boot/grub/grub.cfg", GRUB.format(KERNEL, f"/boot/microcode.img /boot/initrd.img-{KERNEL} /boot/more"))
    write(root, "boot/microcode.img", EARLY)
    initrd(root, archive(OTHERS))
    write(root, "boot/more", gzip.compress(archive(OURS, init=False)))
    assert check(root).result is PASS, "the last one counts"
    write(root, "boot/more", gzip.compress(archive(OTHERS, init=False)))
    assert check(root).result is FAIL
    (root / "boot/microcode.img").unlink()
    assert "microcode.img, which does not exist" in check(root).reason
    write(root, "boot/loader/entries/a.conf", f"linux /vmlinuz-{KERNEL}\ninitrd /a.img\ninitrd /initrd.img-{KERNEL}\n")
    (root / "boot/grub/grub.cfg").unlink()
    assert "a.img, which does not exist" in check(root).reason


def test_an_entry_without_one(root: Path) -> None:
    def entry(arguments: str) -> Check:
        write(root, "boot/grub/grub.cfg", f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} {arguments}\n}}\n")
        return check(root)

    initrd(root, archive(OURS))
    assert entry("").result is NA
    assert entry("root=/dev/vda1").result is NA
    assert entry("root=PARTUUID=1").result is NA
    found = entry("root=/dev/vda1 root=UUID=1 -- root=/dev/vda1")
    assert found.result is UNKNOWN
    assert "a kernel without one finds no root=UUID=1," in found.reason
    assert found.fix.startswith("Run: update-grub;")
    assert entry("root=/dev/mapper/vg-root").result is UNKNOWN


def test_a_copy_that_is_damaged(root: Path) -> None:
    """The file was damaged when the initrd was made, and is good again; a build ID tells nothing of that."""
    data, debug = elf.Sec(".rodata", b"contents" * 9), elf.Sec(".debug", b"d", flags=0)
    whole = kerneltree.module("demo", build_id="aaaa", more=[data, debug])
    kerneltree.add(root / "usr/lib/modules" / KERNEL, MINE, whole)
    stripped = kerneltree.module("demo", build_id="aaaa", more=[data])
    for copy, result in (
        (whole, PASS), (kerneltree.module("demo", build_id="aaaa", more=[data, debug], signature=b"x"), PASS),
        (whole.replace(b"contents", b"\0" * 8, 1), FAIL), (whole.replace(b".debug", b".deaug"), FAIL),
        (stripped, PASS), (stripped.replace(b"contents", b"\0" * 8, 1), FAIL),
        (whole[:-1], UNKNOWN),
    ):  # fmt: skip
        initrd(root, archive(copy))
        assert check(root).result is result


def test_one_of_another_kernel(root: Path) -> None:
    """A boot entry written by hand names it, or it was copied: it has no driver for this kernel."""
    other = f"usr/lib/modules/9{KERNEL}"
    driver = CpioFile(f"{other}/kernel/fs/ext4/ext4.ko", stat.S_IFREG | 0o644, b"x")
    for name in (f"{other}/kernel/fs/ext4/ext4.ko", f"{other}/{MINE}"):
        initrd(root, archive() + cpio([CpioFile(name, stat.S_IFREG | 0o644, OURS)]))
        for _ in "read", "kept":
            found = check(root)
            assert (found.result, found.found, found.fix) == (FAIL, f"modules of 9{KERNEL} alone", UPDATE)
    initrd(root, archive(OURS) + cpio([driver]))
    assert check(root).result is PASS, "made for several kernels, and this is one of them"
    initrd(root, archive(b"x", name="kernel/lib/x.ko") + cpio([driver]))
    assert check(root).result is PASS
    initrd(root, archive(b"x", name="modules.dep") + cpio([driver]))
    assert check(root).result is PASS, "it knows this kernel, and needs no module of it"


def test_a_proof_is_computed_again(root: Path) -> None:
    write(root, "boot/efi/loader/entries/a.conf", SYSTEMD_BOOT)
    initrd(root, archive(OURS), OTHER_PLACE)
    proofs = proof_cache.Proofs(root)

    def loads() -> bool:
        [(_, proof)] = proofs.installed(proof_cache.Look(root, KERNEL), {"demo": None})
        return proof.loads

    assert loads()
    initrd(root, archive(OTHERS), OTHER_PLACE)
    assert not loads()
    initrd(root, archive(), OTHER_PLACE)
    assert loads()
    want(root)
    assert not loads()


# -- a module that it is to hold ----------------------------------------------------------------------------------------------


HOOK = "#!/bin/sh\n. /usr/share/initramfs-tools/hook-functions\n"
HOOKS = "usr/share/initramfs-tools/hooks/demo"


@pytest.mark.parametrize(("name", "text"), [
    ("etc/initramfs-tools/modules", "demo\n"), ("usr/share/initramfs-tools/modules.d/demo", "demo x=1\n"),
    (HOOKS, f"{HOOK}manual_add_modules spl demo\n"), (HOOKS, f"{HOOK}force_load demo a=b\n"),
    ("etc/initramfs-tools/hooks/demo", f"{HOOK}manual_add_modules \\\n  'demo'\n"),
    (HOOKS, f"{HOOK}copy_modules_dir updates\n"), ("etc/modprobe.d/x.conf", "softdep big pre: demo\n"),
])  # fmt: skip
def test_one_that_a_new_initrd_would_hold(root: Path, name: str, text: str) -> None:
    kerneltree.add(root / "usr/lib/modules" / KERNEL, "kernel/fs/big.ko", kerneltree.module("big"))
    big = f"usr/lib/modules/{KERNEL}/kernel/fs/big.ko"
    initrd(root, archive() + cpio([CpioFile(big, stat.S_IFREG | 0o644, b"x")]))
    assert check(root).result is PASS
    write(root, name, text, 0o755)
    found = check(root)
    assert (found.result, found.fix) == (FAIL, UPDATE)
    assert found.reason.startswith("The initrd lacks this module, which a new one would hold: ")
    initrd(root, archive(OURS))
    assert check(root).result is PASS


@pytest.mark.parametrize(("name", "text"), [
    ("etc/fstab", "# /etc/fstab\n/dev/vda1 / demo defaults 0 1\n"), ("proc/mounts", "/dev/vda1 / demo rw 0 0\n"),
])  # fmt: skip
def test_one_that_the_root_needs_and_nobody_lists(root: Path, name: str, text: str) -> None:
    """Made anew as it is configured, the initrd would lack it too."""
    initrd(root, archive())
    write(root, name, text)
    found = check(root)
    assert (found.result, found.fix) == (FAIL, UPDATE.replace("Run: ", "Run: echo demo >>/etc/initramfs-tools/modules && "))
    assert found.reason.startswith("The initrd lacks this module, and nothing would put it into a new one: the root file")
    want(root)
    assert check(root).fix == UPDATE
    (root / "etc/initramfs-tools/modules").unlink()
    write(root, "etc/initramfs-tools/conf.d/dep", "MODULES=dep\n")
    assert check(root).fix == UPDATE, "this configuration asks for what the root lies on"


@pytest.mark.parametrize(("name", "text", "mode"), [
    ("etc/initramfs-tools/modules", "#demo\nbig\n", 0o644), (HOOKS, f"{HOOK}# manual_add_modules demo\n", 0o755),
    (HOOKS, f"{HOOK}manual_add_modules demo\n", 0o644), (f"{HOOKS} copy", f"{HOOK}manual_add_modules demo\n", 0o755),
    (HOOKS, f"{HOOK}manual_add_modules demo-more\n", 0o755), (HOOKS, f"{HOOK}force_load big demo\n", 0o755),
    (HOOKS, f"{HOOK}copy_modules_dir kernel/fs\n", 0o755), (HOOKS, f"{HOOK}copy_modules_dir updates demo.ko\n", 0o755),
    ("etc/fstab", "/dev/vda1 /srv demo defaults 0 1\n", 0o644), ("proc/mounts", "/dev/vda1 /srv demo rw 0 0\n", 0o644),
    (HOOKS, f"{HOOK}echo demo; for m in big; do manual_add_modules $m; done\n", 0o755),
])  # fmt: skip
def test_one_that_it_would_not_hold(root: Path, name: str, text: str, mode: int) -> None:
    initrd(root, archive())
    write(root, name, text, mode)
    assert check(root).result is PASS


def test_a_hook_of_etc_takes_the_place_of_a_packages(root: Path) -> None:
    initrd(root, archive())
    write(root, HOOKS, f"{HOOK}manual_add_modules demo\n", 0o755)
    write(root, "etc/initramfs-tools/hooks/demo", HOOK, 0o755)
    assert check(root).result is PASS


def test_a_condition_in_a_hook(root: Path) -> None:
    """Whether it holds is not known; an initrd that was made since tells."""
    write(root, HOOKS, f"{HOOK}if [ -e /etc/x ]; then\n\tmanual_add_modules demo\nfi\n", 0o755)
    initrd(root, archive(), after=-1000)
    assert (check(root).result, check(root).fix) == (FAIL, UPDATE)
    initrd(root, archive(), after=60)
    assert check(root).result is FAIL, "it may have been in the making already"
    initrd(root, archive(), after=1000)
    assert check(root).result is PASS


def test_a_variable_in_a_hook(root: Path) -> None:
    write(root, HOOKS, f"{HOOK}for m in demo other; do manual_add_modules $m; done\n", 0o755)
    initrd(root, archive(), after=-1000)
    assert (check(root).result, check(root).fix) == (UNKNOWN, UPDATE)
    initrd(root, archive(), after=1000)
    assert check(root).result is PASS


def test_one_that_another_module_needs(root: Path) -> None:
    tree = root / "usr/lib/modules" / KERNEL
    kerneltree.add(tree, "updates/dkms/upper.ko", kerneltree.module("upper"), MINE)
    initrd(root, archive())
    write(root, "etc/initramfs-tools/modules", "upper\n")
    found = check(root)
    assert (found.result, "for upper which brings it along" in found.reason) == (FAIL, True)


@pytest.mark.parametrize(("arguments", "result"), [
    ("rootfstype=demo", FAIL), ("rootfstype=ext4,demo", FAIL), ("root=ZFS=rpool/ROOT", PASS), ("", PASS),
])  # fmt: skip
def test_the_boot_entry_names_the_root_file_system(root: Path, arguments: str, result: Result) -> None:
    write(root, "boot/grub/grub.cfg", GRUB.format(f"{KERNEL} {arguments}", f"/boot/initrd.img-{KERNEL}"))
    initrd(root, archive())
    assert check(root).result is result


def test_the_driver_of_the_disk_that_root_lies_on(root: Path) -> None:
    initrd(root, archive())
    write(root, "proc/mounts", "rootfs / rootfs rw 0 0\n/dev/mapper/vg-root / ext4 rw 0 0\n")
    write(root, "dev/dm-0", "")
    (root / "dev/mapper").mkdir()
    (root / "dev/mapper/vg-root").symlink_to("../dm-0")
    part = root / "sys/devices/pci0/card/host0/block/sda/sda1"
    part.mkdir(parents=True)
    (root / "sys/devices/virtual/block/dm-0/slaves/sda1").mkdir(parents=True)
    (root / "sys/class/block").mkdir(parents=True)
    (root / "sys/class/block/sda1").symlink_to("../../devices/pci0/card/host0/block/sda/sda1")
    (root / "sys/class/block/dm-0").symlink_to("../../devices/virtual/block/dm-0")
    assert check(root).result is PASS
    (root / "sys/module/demo").mkdir(parents=True)
    (root / "sys/bus/pci/drivers/demo").mkdir(parents=True)
    (root / "sys/bus/pci/drivers/demo/module").symlink_to("../../../../module/demo")
    (root / "sys/devices/pci0/card/driver").symlink_to("../../../bus/pci/drivers/demo")
    found = check(root)
    assert (found.result, "driven by it" in found.reason) == (FAIL, True)


@pytest.mark.parametrize(("text", "result"), [
    ('add_drivers+=" demo "\n', FAIL), ('force_drivers+=" big demo "\n', FAIL), ('add_drivers+=" big "\n', PASS),
    ('#add_drivers+=" demo "\n', PASS), ('omit_drivers+=" demo "\n', PASS), ('add_drivers+=" $(cat /etc/x) "\n', UNKNOWN),
])  # fmt: skip
def test_dracut(root: Path, text: str, result: Result) -> None:
    for name in ("update-initramfs", "mkinitramfs"):
        (root / "usr/sbin" / name).unlink()
    initrd(root, archive(), after=-1000)
    write(root, "etc/dracut.conf.d/x.conf", text)
    assert check(root).result is PASS, "nobody reads it"
    write(root, "usr/bin/dracut", "#!", 0o755)
    found = check(root)
    assert (found.result, found.fix) == (result, "" if result is PASS else f"Run: dracut --force /{DISK} {KERNEL}")


def test_an_initrd_may_be_older_that_was_ready_soon_after_the_module(tmp_path: Path) -> None:
    """Making it takes a while, and what was written meanwhile may not be in it."""
    module, made = tmp_path / "m.ko", tmp_path / "initrd"
    for path in (module, made):
        path.touch()
    late = module.stat().st_ctime_ns + initrd_check._MAKING * 10**9
    for when, older in ((late - 1, True), (late, False)):
        os.utime(made, ns=(when, when))
        assert initrd_check._is_older([made], module) is older
    assert initrd_check._is_older([tmp_path / "gone"], module)
