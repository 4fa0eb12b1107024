# SPDX-License-Identifier: GPL-2.0-or-later
"""What a machine needs to have a root file system: its type, and every driver below it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.machine import root_drivers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

KERNEL = "6.1.0-1-amd64"
FSTAB = "# / of old\n#/dev/sda1 / xfs\n/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 /srv btrfs\nshort /\n"


def modules(root: Path) -> list[str]:
    return [name for name, _ in root_drivers.needed(root, KERNEL)]


def test_nothing_is_known_of_an_empty_root(tmp_path: Path) -> None:
    assert modules(tmp_path) == []


def test_the_type_that_fstab_names(tree: Tree) -> None:
    assert list(root_drivers.needed(tree({"etc/fstab": FSTAB}), KERNEL)) == [
        ("ext4", "the root file system is ext4 (/etc/fstab)"),
    ]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("ro quiet", []), ("rootfstype=ext4,xfs ro", ["ext4", "xfs"]), ("root=/dev/sda1 myrootfstype=xfs", []),
        ("root=ZFS=rpool/ROOT/debian", ["zfs"]), ("boot=zfs", ["zfs"]),
    ],
)  # fmt: skip
def test_the_type_that_the_boot_entry_names(tree: Tree, arguments: str, names: list[str]) -> None:
    menu = f"menuentry x {{\nlinux /boot/vmlinuz-{KERNEL} {arguments}\n}}\n"
    assert modules(tree({"boot/grub/grub.cfg": menu, f"boot/vmlinuz-{KERNEL}": "image"})) == names


def test_every_driver_on_the_way_to_the_disk(tree: Tree) -> None:
    """A mapped device on a partition of a disk, behind a controller, behind a bus; each is looked at once."""
    root = tree({
        "proc/mounts": "rootfs / rootfs rw 0 0\n/dev/mapper/root / ext4 rw 0 0\nproc /proc proc rw 0 0\n",
        "dev/dm-0": "", "dev/mapper/root": "-> ../dm-0",
        "sys/devices/virtual/block/dm-0/slaves/sda1/": "", "sys/devices/virtual/block/dm-0/slaves/dm-0/": "",
        "sys/devices/pci0/card/disk/block/sda/sda1/": "",
        "sys/class/block/dm-0": "-> ../../devices/virtual/block/dm-0",
        "sys/class/block/sda1": "-> ../../devices/pci0/card/disk/block/sda/sda1",
        "sys/module/ahci/": "", "sys/module/sd_mod/": "",
        "sys/bus/pci/drivers/ahci/module": "-> ../../../../module/ahci",
        "sys/bus/scsi/drivers/sd/module": "-> ../../../../module/sd_mod",
        "sys/devices/pci0/card/driver": "-> ../../../bus/pci/drivers/ahci",
        "sys/devices/pci0/card/disk/driver": "-> ../../../../bus/scsi/drivers/sd",
        # A driver that is no module has no such link.
        "sys/bus/pci/drivers/root/": "", "sys/devices/pci0/driver": "-> ../../bus/pci/drivers/root",
    })  # fmt: skip
    why = "the root file system lies on /dev/mapper/root, which is driven by it"
    assert list(root_drivers.needed(root, KERNEL)) == [
        ("rootfs", "the root file system is rootfs"), ("ext4", "the root file system is ext4"), ("sd_mod", why), ("ahci", why),
    ]  # fmt: skip


def test_what_lies_on_no_device_has_no_driver(tree: Tree) -> None:
    assert modules(tree({"proc/mounts": "overlay / overlay rw 0 0\n"})) == ["overlay"]
