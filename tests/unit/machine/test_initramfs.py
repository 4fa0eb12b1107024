# SPDX-License-Identifier: GPL-2.0-or-later
"""Which files are a kernel's initrd, what makes them anew, and which modules a new one would hold, and how surely."""

from __future__ import annotations

from typing import TYPE_CHECKING

import kerneltree
import pytest
from kerneltree import KERNEL

from knetstatd.formats.modules_dep import Tables
from knetstatd.machine import initramfs, modprobe_conf
from knetstatd.machine.initramfs import Wanted
from knetstatd.machine.module_needs import Sure

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = f"version {KERNEL}\nlinux /token/{KERNEL}/linux\ninitrd /token/{KERNEL}/initrd\n"
HELD = {"held"}  # by the initrd that there is
HOOK = "usr/share/initramfs-tools/hooks/one"


def write(root: Path, name: str, text: str, mode: int = 0o755) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with initramfs-tools and one added module, `demo`, without an initrd."""
    kerneltree.make(tmp_path)
    kerneltree.add(tmp_path / "usr/lib/modules" / KERNEL, "updates/dkms/demo.ko", kerneltree.module())
    kerneltree.add(tmp_path / "usr/lib/modules" / KERNEL, "kernel/fs/held.ko", kerneltree.module("held"))
    for name in ("mkinitramfs", "update-initramfs"):
        write(tmp_path, f"usr/sbin/{name}", "#!")
    return tmp_path


def wanted(root: Path, module: str = "demo", place: str = "updates/dkms") -> Wanted | None:
    tree = root / "usr/lib/modules" / KERNEL
    return initramfs.wanted(
        root, KERNEL, Tables(root, tree), modprobe_conf.rules(root), module, tree / f"{place}/{module}.ko", HELD.__contains__
    )


def test_the_boot_entry_decides_which_files(root: Path) -> None:
    assert initramfs.initrds(root, KERNEL) == initramfs.Files((), named=False)
    usual = write(root, f"boot/initrd.img-{KERNEL}", "x")
    assert initramfs.initrds(root, KERNEL) == initramfs.Files((usual,), named=False)
    write(root, f"boot/efi/token/{KERNEL}/linux", "image")
    write(root, "boot/efi/loader/entries/a.conf", ENTRY)
    assert initramfs.initrds(root, KERNEL) == initramfs.Files((root / f"boot/efi/token/{KERNEL}/initrd",), named=True)


def test_who_makes_them(root: Path) -> None:
    assert initramfs.is_made_here(root)
    assert initramfs.commands(root, KERNEL) == [["update-initramfs", "-c", "-k", KERNEL]]
    write(root, f"boot/initrd.img-{KERNEL}", "x")
    assert initramfs.commands(root, KERNEL) == [["update-initramfs", "-u", "-k", KERNEL]]
    write(root, f"boot/efi/token/{KERNEL}/linux", "image")
    write(root, "boot/efi/loader/entries/a.conf", ENTRY)
    copied = f"Run: update-initramfs -u -k {KERNEL} && kernel-install add {KERNEL} /boot/vmlinuz-{KERNEL}"
    assert initramfs.fix(root, KERNEL) == copied
    write(root, "etc/initramfs/post-update.d/systemd-boot", "#!")
    assert len(initramfs.commands(root, KERNEL)) == 1, "the hook makes the copy"
    for name in ("mkinitramfs", "update-initramfs"):
        (root / "usr/sbin" / name).unlink()
    assert not initramfs.is_made_here(root)
    write(root, "usr/bin/dracut", "#!")
    assert initramfs.is_made_here(root)
    assert initramfs.commands(root, KERNEL) == [["dracut", "--force", f"/boot/efi/token/{KERNEL}/initrd", KERNEL]]
    (root / "boot/efi/loader/entries/a.conf").unlink()
    (root / f"boot/initrd.img-{KERNEL}").unlink()
    assert initramfs.commands(root, KERNEL) == [["dracut", "--force", f"/boot/initramfs-{KERNEL}.img", KERNEL]]


@pytest.mark.parametrize(
    ("name", "text", "sure"),
    [
        ("etc/initramfs-tools/modules", "demo x=1\n", Sure.CERTAIN),
        ("usr/share/initramfs-tools/modules.d/x", "#demo\n", None),
        (HOOK, "manual_add_modules a demo\n", Sure.CERTAIN),
        (HOOK, "test -e /x && force_load demo\n", Sure.LIKELY),
        (HOOK, "copy_modules_dir updates\n", Sure.CERTAIN),
        (HOOK, "copy_modules_dir updates dkms\n", None),
        (HOOK, "# demo\nmanual_add_modules $m\n", None),
        (HOOK, "m=demo; manual_add_modules $m\n", Sure.POSSIBLE),
        (HOOK, "m=demo-more; manual_add_modules $m\n", None),
        (HOOK, "echo demo\n", None),
        ("usr/share/initramfs-tools/hooks/a b", "manual_add_modules demo\n", None),
        ("etc/fstab", "/dev/sda1 / demo\n", Sure.CERTAIN),
        ("etc/dracut.conf", 'add_drivers+=" demo "\n', None),
        ("usr/share/initramfs-tools/hook-functions", '\tmodules="$modules big demo"\n', Sure.LIKELY),
        ("usr/share/initramfs-tools/hook-functions", '\tmodules="$modules =demo"\n', None),
        ("etc/modprobe.d/x.conf", "softdep held pre: demo\n", Sure.CERTAIN),
        ("etc/modprobe.d/x.conf", "softdep other pre: demo\n", None),
    ],
)
def test_what_a_new_one_would_hold(root: Path, name: str, text: str, sure: Sure | None) -> None:
    write(root, name, text)
    why = wanted(root)
    assert (why.sure if why else None) is sure
    assert why is None or name.rpartition("/")[2].replace("hook-functions", "MODULES=most") in why.where
    assert wanted(root, "other", "extra") is None


def test_the_surest_reason_counts(root: Path) -> None:
    write(root, "usr/share/initramfs-tools/hooks/a", "x && force_load demo\n")
    write(root, "usr/share/initramfs-tools/hooks/b", "manual_add_modules demo\n")
    write(root, "usr/share/initramfs-tools/hooks/c", "y && force_load demo\n")
    assert wanted(root) == Wanted("/usr/share/initramfs-tools/hooks/b", Sure.CERTAIN)
    write(root, "etc/initramfs-tools/hooks/b", "")
    why = wanted(root)
    assert why is not None
    assert why.sure is Sure.LIKELY, "a hook in /etc takes the place of one of the same name"


def test_what_another_module_needs_is_held_too(root: Path) -> None:
    tree = root / "usr/lib/modules" / KERNEL
    kerneltree.add(tree, "updates/dkms/upper.ko", kerneltree.module("upper"), "updates/dkms/demo.ko")
    write(root, "etc/initramfs-tools/modules", "upper\n")
    assert wanted(root) == Wanted("/etc/initramfs-tools/modules, for upper which brings it along", Sure.CERTAIN)


def test_dracuts_configuration_counts_where_dracut_is(root: Path) -> None:
    write(root, "etc/dracut.conf.d/x.conf", 'force_drivers+=" demo "\n')
    assert wanted(root) is None
    write(root, "usr/bin/dracut", "#!")
    assert wanted(root) == Wanted("force_drivers in dracut.conf", Sure.CERTAIN)
    write(root, "etc/dracut.conf.d/x.conf", 'drivers="$(cat /x)"\n')
    assert wanted(root) == Wanted("drivers in dracut.conf", Sure.POSSIBLE)


def test_the_files_on_which_an_answer_depends(root: Path) -> None:
    hook, listed = write(root, HOOK, ""), root / "etc/initramfs-tools/modules"
    usual = write(root, f"boot/initrd.img-{KERNEL}", "x")
    assert {hook, listed, usual, hook.parent, root / "etc/dracut.conf.d"} <= set(initramfs.inputs(root, KERNEL))
    # A file that is written anew in its place leaves its directory as it was.
    names = ("etc/fstab", "usr/share/initramfs-tools/modules.d/a", "usr/lib/dracut/dracut.conf.d/a.conf", "etc/dracut.conf")
    assert {write(root, name, "x", 0o644) for name in names} <= set(initramfs.inputs(root, KERNEL))


CONF = "etc/initramfs-tools/initramfs.conf"


@pytest.mark.parametrize(("settings", "chosen"), [
    ({}, "most"), ({CONF: "# MODULES=dep\nMODULES=list\n"}, "list"),
    ({CONF: "MODULES=most\n", "etc/initramfs-tools/conf.d/a": "MODULES=dep\n"}, "dep"),
    ({"usr/share/initramfs-tools/conf.d/a": "MODULES=dep\n", "etc/initramfs-tools/conf.d/b": "MODULES=list\n"}, "list"),
    ({"usr/share/initramfs-tools/conf.d/a": "MODULES=dep\n", "etc/initramfs-tools/conf.d/a": "X=1\n"}, "most"),
    ({"etc/initramfs-tools/conf.d/b": "MODULES=list\n", "usr/share/initramfs-tools/conf-hooks.d/a": "MODULES=dep\n"}, "dep"),
])  # fmt: skip
def test_which_modules_it_holds_by_itself(root: Path, settings: dict[str, str], chosen: str) -> None:
    """Only with MODULES=most those that hook-functions has; only with MODULES=dep the root's own type."""
    for name, text in settings.items():
        write(root, name, text, 0o644)
    write(root, "usr/share/initramfs-tools/hook-functions", 'modules="$modules listed"\n')
    write(root, "proc/mounts", "/dev/vda / demo rw 0 0\n")
    assert (wanted(root, "listed") == Wanted("MODULES=most", Sure.LIKELY)) is (chosen == "most")
    assert wanted(root) == Wanted("the root file system is demo", Sure.CERTAIN, chosen == "dep")
    (root / "usr/sbin/mkinitramfs").unlink()
    assert wanted(root) == Wanted("the root file system is demo", Sure.CERTAIN, configured=True)


def test_a_module_that_is_to_be_listed_first(root: Path) -> None:
    assert initramfs.fix(root, KERNEL, "demo") == (
        f"Run: echo demo >>/etc/initramfs-tools/modules && update-initramfs -c -k {KERNEL}"
    )
