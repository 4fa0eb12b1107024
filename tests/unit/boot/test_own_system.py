# SPDX-License-Identifier: GPL-2.0-or-later
"""Whose root file system a boot entry names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.boot import own_system

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

ONE, TWO = "0a1b2c3d-0000-4000-8000-000000000001", "0a1b2c3d-0000-4000-8000-000000000002"


@pytest.mark.parametrize(
    ("arguments", "other"),
    [
        (f"root=UUID={ONE} ro", ""), (f"root=UUID={TWO} ro", f"UUID={TWO}"), (f"root=/dev/disk/by-uuid/{ONE.upper()}", ""),
        (f'root="UUID={ONE}"', ""), ("root=/dev/vda1", ""), ("root=/dev/vdb1", "/dev/vdb1"), ("root=LABEL=main", ""),
        ("root=LABEL=MAIN", "LABEL=MAIN"), ("ro quiet", ""), ("root=", ""), (f"root=UUID={TWO} root=UUID={ONE}", ""),
        ("root=PARTUUID=1-01", "PARTUUID=1-01"), ("root=ZFS=rpool/debian", "ZFS=rpool/debian"),
        (f"root=UUID={ONE} rootflags=subvol=@", ""), (f"root=UUID={ONE} rootflags=noatime,subvol=/@/", ""),
        (f"root=UUID={ONE} rootflags=subvol=@snapshots/1", f"UUID={ONE} subvol=@snapshots/1"),
    ],
)  # fmt: skip
def test_a_root_of_fstab(tree: Tree, arguments: str, other: str) -> None:
    root = tree({
        "etc/fstab": f"# / was\n/dev/sda2 /home ext4 defaults\nUUID={ONE} / btrfs subvol=@,noatime 0 1\n",
        f"dev/disk/by-uuid/{ONE}": "-> ../../vda1", f"dev/disk/by-uuid/{TWO}": "-> ../../vdb1",
        "dev/disk/by-label/main": "-> ../../vda1", "dev/vda1": "", "dev/vdb1": "",
    })  # fmt: skip
    assert own_system.other(root, arguments) == other


def test_what_the_running_kernel_was_told(tree: Tree) -> None:
    root = tree({"proc/cmdline": "BOOT_IMAGE=x root=ZFS=rpool/debian ro\n", "proc/mounts": "overlay / overlay rw 0 0\n"})
    assert own_system.other(root, "root=ZFS=rpool/other") == "", "a container is shown what its host was told"
    tree({"proc/mounts": "proc /proc proc rw 0 0\nrpool/debian / zfs rw 0 0\n"})
    assert own_system.other(root, "root=ZFS=rpool/debian") == ""
    assert own_system.other(root, "root=ZFS=rpool/other") == "ZFS=rpool/other"
    tree({"etc/fstab": f'UUID="{ONE}" / ext4 defaults 0 1\n', "proc/mounts": ""})
    assert own_system.other(root, "root=ZFS=rpool/debian") == ""
    assert own_system.other(root, f"root=UUID={ONE}") == ""
    assert own_system.other(root, "root=/dev/vda1") == "", "nothing says that this is not the one with the UUID"
    tree({"dev/disk/by-uuid/x": "-> ../../vdb1"})
    assert own_system.other(root, "root=/dev/vda1") == "/dev/vda1"


@pytest.mark.parametrize(
    ("fstab", "told", "other"),
    [
        (f"PARTUUID={ONE}", f"UUID={TWO}", False), (f"UUID={ONE}", f"PARTUUID={TWO}", False),
        (f"UUID={ONE}", "/dev/md0", False),
        ("/dev/vg0/root", "/dev/mapper/vg0-root", False), ("LABEL=x", f"UUID={TWO}", False), ("rpool/x", "ZFS=rpool/x", False),
        (f"PARTUUID={ONE}", f"PARTUUID={TWO}", True), (f"/dev/disk/by-uuid/{ONE}", f"UUID={TWO}", True),
        ("/dev/vda1", "/dev/vdb1", True), ("LABEL=x", "LABEL=y", True), ("ZFS=x", "ZFS=y", True),
    ],
)  # fmt: skip
def test_names_of_two_kinds_without_udev(tree: Tree, fstab: str, told: str, other: bool) -> None:
    root = tree({"etc/fstab": f"{fstab} / ext4 defaults 0 1\n"})
    assert own_system.other(root, f"root={told}") == (told if other else "")


def test_nothing_is_known(tree: Tree) -> None:
    assert own_system.other(tree({"etc/fstab": "tmpfs /tmp tmpfs defaults\n#x / ext4 a\n"}), "root=/dev/vda1") == ""


def test_a_snapshot_if_fstab_names_no_subvolume(tree: Tree) -> None:
    root = tree({"etc/fstab": f"UUID={ONE} / btrfs defaults 0 0\n"})
    assert own_system.other(root, f"root=UUID={ONE} rootflags=subvol=@") == ""


def test_what_is_mounted(tree: Tree) -> None:
    root = tree({})
    assert own_system.is_partition(root, "/boot") is None
    tree({"etc/fstab": f"UUID={ONE} / ext4 a 0 1\n"})
    assert own_system.is_partition(root, "/boot") is False
    tree({"proc/mounts": "/dev/vda1 / ext4 rw 0 0\nsystemd-1 /boot autofs rw 0 0\n"})
    assert own_system.is_partition(root, "/boot") is True
    assert own_system.is_partition(root, "/efi") is False
    tree({"etc/fstab": f"UUID={ONE} /efi vfat a 0 1\n"})
    assert own_system.is_partition(root, "/efi") is True


def stub(identifier: str) -> str:
    """As grub-install writes it."""
    return f"search.fs_uuid {identifier} root hd0,gpt2\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"


class TestMenuOfTheEsp:
    def other(self, root: Path, first: str = "") -> str:
        return own_system.other_menu(root, [root / "boot/efi", root / "efi"], root / first if first else None)

    @pytest.mark.parametrize(
        ("fstab", "text", "is_other"),
        [
            (f"UUID={ONE} / ext4 a\n", stub(ONE), False), (f"UUID={ONE} / ext4 a\n", stub(TWO), True),
            (f"UUID={ONE} / ext4 a\nUUID={TWO} /boot ext4 a\n", stub(TWO), False),
            (f"UUID={ONE} / ext4 a\nUUID={TWO} /boot ext4 a\n", stub(ONE), True),
            ("/dev/vda1 / ext4 a\n", stub(TWO), False), (f"PARTUUID={ONE} / ext4 a\n", stub(TWO), False),
            ("", stub(TWO), False), (f"UUID={ONE} / ext4 a\n", "", False),
            (f"UUID={ONE} / ext4 a\n", "menuentry x {\nlinux /vmlinuz\n}\n", True),
            (f"UUID={ONE} / ext4 a\n", "search --label boot --set=root\nconfigfile /grub/grub.cfg\n", False),
        ],
    )  # fmt: skip
    def test_one(self, tree: Tree, fstab: str, text: str, is_other: bool) -> None:
        root = tree({"etc/fstab": fstab, "boot/efi/EFI/debian/grub.cfg": text, "boot/grub/grub.cfg": ""})
        assert self.other(root) == ("/boot/efi/EFI/debian/grub.cfg" if is_other else "")

    def test_devices(self, tree: Tree) -> None:
        root = tree({"etc/fstab": "/dev/vda1 / ext4 a\n", "efi/EFI/debian/grub.cfg": stub(ONE), "dev/vda1": "", "dev/vdb1": ""})
        tree({f"dev/disk/by-uuid/{ONE}": "-> ../../vda1", f"dev/disk/by-uuid/{TWO}": "-> ../../vdb1"})
        assert self.other(root) == ""
        tree({"efi/EFI/debian/grub.cfg": stub(TWO)})
        assert self.other(root) == "/efi/EFI/debian/grub.cfg"

    def test_several_systems_on_one_esp(self, tree: Tree) -> None:
        """Each has its own; which one is read hangs on the loader that the firmware begins with."""
        root = tree({
            "etc/fstab": f"UUID={ONE} / ext4 a\n", "boot/efi/EFI/debian/grub.cfg": stub(ONE),
            "boot/efi/EFI/ubuntu/grub.cfg": stub(TWO),
        })  # fmt: skip
        assert self.other(root) == "/boot/efi/EFI/ubuntu/grub.cfg"
        assert self.other(root, "boot/efi/EFI/debian/shimx64.efi") == ""
        assert self.other(root, "boot/efi/EFI/ubuntu/shimx64.efi") == "/boot/efi/EFI/ubuntu/grub.cfg"
        assert self.other(root, "boot/efi/EFI/BOOT/BOOTX64.EFI") == "/boot/efi/EFI/ubuntu/grub.cfg"

    def test_a_menu_that_lies_on_the_esp(self, tree: Tree) -> None:
        menu = "menuentry x {\nlinux /vmlinuz\n}\n"
        root = tree({"boot/efi/EFI/fedora/grub.cfg": menu, "boot/grub2/grub.cfg": "-> ../efi/EFI/fedora/grub.cfg"})
        assert self.other(root) == ""
