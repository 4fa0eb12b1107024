# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that the next reboot starts, from trees of files."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knetstatd.boot import bootloader
from knetstatd.boot.bootloader import Basis, Next, next_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

OLD, NEW, BACKPORT = "6.1.0-9-amd64", "6.1.0-55-amd64", "6.12.115+deb12-amd64"
KERNELS = [NEW, OLD, BACKPORT]
EFIVARS = "sys/firmware/efi/efivars"
GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
GLOBAL = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
BLOCK = "# GRUB Environment Block\n"


def grub_cfg(default: str, *kernels: str) -> str:
    entries = "".join(f"menuentry 'Linux {k}' --id 'id-{k}' {{\n linux /vmlinuz-{k} ro {k}\n}}\n" for k in kernels)
    return (
        'load_env\nset timeout=5\nif [ "${next_entry}" ] ; then\n set default="${next_entry}"\nelse\n'
        f' set default="{default}"\nfi\n'
        f"menuentry 'Debian' {{\n linux /boot/vmlinuz-{kernels[0]} ro\n initrd /boot/initrd.img-{kernels[0]}\n}}\n"
        f"submenu 'Advanced' {{\n{entries}}}\n"
    )


def bls(linux: str, **fields: str) -> str:
    lines = [f"linux\t{linux}", *(f"{name.replace('_', '-')} {value}" for name, value in fields.items())]
    return "# an entry\n\n" + "\n".join(lines) + "\n"


def esp(where: str, *entries: tuple[str, str, dict[str, str]]) -> dict[str, str]:
    """Entry files (name, image, fields), and their images."""
    files = {}
    for name, image, fields in entries:
        files[f"{where}/loader/entries/{name}"] = bls(image, **fields)
        files[f"{where}{image}"] = "image"
    return files


def efi_variable(root: Path, name: str, value: str | bytes, guid: str = GUID) -> None:
    (root / EFIVARS).mkdir(parents=True, exist_ok=True)
    data = value if isinstance(value, bytes) else (value + "\0").encode("utf-16-le")
    (root / EFIVARS / f"{name}-{guid}").write_bytes(b"\x06\0\0\0" + data)


def brief(found: Next) -> tuple[str, str, str]:
    return found.release, found.source, found.detail


def unknown(found: Next) -> str:
    """The reason why nothing is known."""
    assert (found.release, found.basis) == ("", Basis.UNKNOWN)
    assert found.why == found.detail
    assert "\n" not in found.why
    return found.why


def test_without_a_boot_loader_the_newest_is_assumed(tmp_path: Path) -> None:
    why = "no boot loader was found; this is the newest installed kernel"
    found = next_kernel(tmp_path, KERNELS)
    assert found == Next(BACKPORT, "newest installed", why, basis=Basis.ASSUMED)
    assert found.why == why
    assert next_kernel(tmp_path, [OLD, NEW]).release == NEW
    assert unknown(next_kernel(tmp_path, [])) == "no kernel was found"


class TestGrub:
    @pytest.mark.parametrize("directory", ["boot/grub", "boot/grub2"])
    def test_default_saved_and_next_entry(self, tree: Tree, directory: str) -> None:
        config, block = f"{directory}/grub.cfg", f"{directory}/grubenv"
        root = tree({config: grub_cfg("1>1", BACKPORT, NEW, OLD)})
        assert brief(next_kernel(root, KERNELS)) == (NEW, "grub default entry", f"Advanced > Linux {NEW}")
        tree({config: grub_cfg("${saved_entry}", BACKPORT, NEW, OLD), block: f"{BLOCK}saved_entry=Advanced>id-{OLD}\n"})
        assert brief(next_kernel(root, KERNELS)) == (OLD, "grub saved entry", f"Advanced > Linux {OLD}")
        tree({block: f"{BLOCK}saved_entry=1>2\nnext_entry=Advanced>Linux {NEW}\n"})
        assert brief(next_kernel(root, KERNELS)) == (NEW, "grub next entry", f"Advanced > Linux {NEW}")
        tree({block: ""})
        found = next_kernel(root, KERNELS)
        assert (*brief(found), found.basis) == (BACKPORT, "grub default entry", "Debian", Basis.LOADER)

    @pytest.mark.parametrize("default", ["1> 1", "1 > 1", "1 >1", "0x1>1", " 1>1x"])
    def test_defaults_as_people_write_them(self, tree: Tree, default: str) -> None:
        root = tree({"boot/grub/grub.cfg": grub_cfg(default, BACKPORT, NEW, OLD)})
        assert next_kernel(root, KERNELS).release == NEW

    def test_what_it_is_told_and_its_initrds(self, tree: Tree) -> None:
        root = tree({"boot/grub/grub.cfg": grub_cfg("0", NEW), f"boot/initrd.img-{NEW}": "x"})
        found = next_kernel(root, KERNELS)
        assert (found.arguments, found.initrds) == ("ro", (root / f"boot/initrd.img-{NEW}",))
        assert bootloader.command_lines(root, NEW) == ["ro", f"ro {NEW}"]

    def test_what_the_entry_that_is_started_tells_counts(self, tree: Tree) -> None:
        """A kernel may have several entries: its first, one for recovery, one that somebody wrote."""
        cfg = grub_cfg("mine", NEW) + f"menuentry Mine --id mine {{\n linux /vmlinuz-{NEW} $more module_blacklist=demo\n}}\n"
        root = tree({"boot/grub/grub.cfg": cfg, "proc/cmdline": "running\n"})
        assert bootloader.command_line(root, NEW) == "module_blacklist=demo"
        tree({"boot/grub/grub.cfg": cfg.replace('"mine"', '"0"')})
        assert bootloader.command_line(root, NEW) == "ro"
        assert bootloader.command_line(root, OLD) == "running", "no entry starts it"

    def test_a_kernel_without_modules_is_not_replaced_by_another(self, tree: Tree) -> None:
        found = next_kernel(tree({"boot/grub/grub.cfg": grub_cfg("0", "7.3.0-amd64", NEW)}), KERNELS)
        assert (*brief(found), found.basis) == (
            "7.3.0-amd64", "grub default entry", "Debian; it has no modules in /lib/modules", Basis.LOADER,
        )  # fmt: skip

    def test_what_is_odd_is_said(self, tree: Tree) -> None:
        root = tree({"boot/grub/grub.cfg": grub_cfg("gone", NEW).replace("timeout=5", "timeout=-1")})
        why = "no entry 'gone', so GRUB takes the first > Debian; the menu waits for a key"
        assert next_kernel(root, KERNELS).detail == why

    @pytest.mark.parametrize(
        ("entry", "why"),
        [
            ("linux /boot/vmlinuz-\\$\\(reboot\\)", "starts '/boot/vmlinuz-$(reboot)', whose release is unknown"),
            ("linux '/boot/vmlinuz-6.1\n;x'", "starts '/boot/vmlinuz-6.1\\n;x', whose release is unknown"),
            ("linux /boot/vmlinuz-custom", "starts '/boot/vmlinuz-custom', whose release is unknown"),
            ("chainloader /EFI/Microsoft/bootmgfw.efi", "starts '/EFI/Microsoft/bootmgfw.efi', whose release is unknown"),
            ("fwsetup", "starts no Linux"),
        ],
    )
    def test_what_is_no_kernel_is_unknown(self, tree: Tree, entry: str, why: str) -> None:
        root = tree({"boot/grub/grub.cfg": f"timeout=5\nmenuentry Odd {{\n{entry}\n}}\n"})
        assert unknown(next_kernel(root, KERNELS)) == f"the grub default entry (Odd) {why}"

    @pytest.mark.parametrize(
        ("files", "why"),
        [
            ({"grub.cfg": "menuentry x { }"}, "GRUB's menu (/boot/grub/grub.cfg) cannot be read: grub.cfg GRUB finds a syntax"),
            ({"grub.cfg": "\0\1\2"}, "NUL"), ({"grub.cfg": "configfile /x\n"}, "is replaced by another file's"),
            ({"grub.cfg": ""}, "has no entries"), ({"grub.cfg/": ""}, "Is a directory"),
            ({"grub.cfg": "-> gone"}, "has no entries"),
            ({"grub.cfg": "#" * ((1 << 20) + 1)}, "larger than 1048576"), ({"grubenv": BLOCK}, "has no grub.cfg there"),
            ({"i386-pc/normal.mod": ""}, "GRUB is installed in /boot/grub, and has no grub.cfg there"),
            ({"grub.cfg": grub_cfg("0", NEW), "grubenv": "#" * ((1 << 20) + 1)}, "larger than 1048576"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_read_is_unknown(self, tree: Tree, files: dict[str, str], why: str) -> None:
        root = tree({f"boot/grub/{name}": text for name, text in files.items()})
        assert why in unknown(next_kernel(root, KERNELS))

    def test_two_menus(self, tree: Tree) -> None:
        root = tree({"boot/grub/grub.cfg": grub_cfg("0", NEW), "boot/grub2/grub.cfg": grub_cfg("0", NEW)})
        assert next_kernel(root, KERNELS).release == NEW
        tree({"boot/grub2/grub.cfg": grub_cfg("0", OLD)})
        assert "there are two GRUB menus" in unknown(next_kernel(root, KERNELS))

    def test_entry_files(self, tree: Tree) -> None:
        root = tree({
            "boot/grub2/grub.cfg": 'load_env\nset default="${saved_entry}"\ntimeout=5\ninsmod blscfg\nblscfg\n',
            f"boot/loader/entries/abc-{OLD}.conf": bls(f"/vmlinuz-{OLD}", title="Fedora old"),
            f"boot/loader/entries/abc-{NEW}.conf": bls(f"/vmlinuz-{NEW}", title="Fedora new", initrd=f"/initramfs-{NEW}.img"),
            "boot/loader/entries/README": "no entry",
        })  # fmt: skip
        assert brief(next_kernel(root, KERNELS)) == (NEW, "grub default entry", "Fedora new")
        tree({"boot/grub2/grubenv": f"{BLOCK}saved_entry=abc-{OLD}\n"})
        assert brief(next_kernel(root, KERNELS)) == (OLD, "grub saved entry", "Fedora old")


class TestTheRelease:
    def test_from_the_image_s_name(self, tree: Tree) -> None:
        root = tree({
            "vmlinuz": f"-> boot/vmlinuz-{NEW}",
            "boot/vmlinuz": "-> vmlinuz",
            "boot/vmlinuz.old": f"-> vmlinuz-{OLD}",
            "lib/modules/6.18.3-arch1-1/pkgbase": "linux\n",
        })  # fmt: skip
        installed = [*KERNELS, "6.18.3-arch1-1", "6.1.12-gentoo"]
        for image, release in (
            (f"/vmlinuz-{NEW}.efi.signed", NEW),
            (f"($root)/boot/vmlinux-{NEW}", NEW),
            ("/kernel-genkernel-x86_64-6.1.12-gentoo", "6.1.12-gentoo"),
            (f"/0123456789abcdef/{OLD}/linux", OLD),
            ("/vmlinuz-linux", "6.18.3-arch1-1"),
            ("/vmlinuz", NEW),
            ("(hd0,gpt2)/vmlinuz.old", OLD),
            (f"/EFI/Linux/0123456789abcdef-{BACKPORT}+2-1.efi", BACKPORT),
        ):
            tree({"boot/grub/grub.cfg": f"menuentry x {{\nlinux '{image}'\n}}"})
            found = next_kernel(root, installed)
            assert found.release == release, image

    def test_links_that_go_round(self, tree: Tree) -> None:
        root = tree({"vmlinuz": "-> vmlinuz", "boot/grub/grub.cfg": "menuentry x { linux /vmlinuz; }"})
        assert "whose release is unknown" in unknown(next_kernel(root, [NEW]))

    def test_from_the_image_itself(self, tree: Tree) -> None:
        root = tree({"boot/grub/grub.cfg": "menuentry x { linux /mine; }"})
        header = bytearray(0x400)
        header[0x202:0x206] = b"HdrS"
        header[0x20E:0x210] = (0x180).to_bytes(2, "little")
        (root / "mine").write_bytes(bytes(header[:0x380]) + f"{OLD} (who@where) #1 SMP".encode() + bytes(99))
        assert next_kernel(root, KERNELS).release == OLD
        for data in (b"", bytes(header[:0x207]), bytes(header[:0x380]) + b"$(reboot) x", b"MZ" + bytes(62)):
            (root / "mine").write_bytes(data)
            assert "whose release is unknown" in unknown(next_kernel(root, KERNELS))

    def test_what_is_in_it_counts_more_than_its_name(self, tree: Tree) -> None:
        """`cp vmlinuz-NEW vmlinuz-OLD` as a rescue, and forgotten: that kernel asks for its own modules and initrd."""
        root = tree({"boot/grub/grub.cfg": f"menuentry x {{\nlinux /vmlinuz-{NEW}\ninitrd /i\n}}"})
        header = bytearray(0x400)
        header[0x202:0x206] = b"HdrS"
        header[0x20E:0x210] = (0x180).to_bytes(2, "little")
        (root / f"vmlinuz-{NEW}").write_bytes(bytes(header[:0x380]) + f"{OLD} (who@where) #1 SMP".encode() + bytes(99))
        found = next_kernel(root, KERNELS)
        assert found.release == OLD
        assert found.detail.endswith(f"'/vmlinuz-{NEW}' holds {OLD}")
        assert bootloader.initrds(root, OLD) == (root / "i",)


class TestSystemdBoot:
    @pytest.mark.parametrize("where", ["efi", "boot/efi", "boot"])
    def test_what_chooses(self, tree: Tree, where: str) -> None:
        root = tree(esp(where, (f"m-{OLD}.conf", f"/m/{OLD}/linux", {"title": "Old", "version": OLD, "options": "ro",
        "initrd": "/i"}),
                        (f"m-{NEW}.conf", f"/m/{NEW}/linux", {"title": "New", "version": NEW})))  # fmt: skip
        assert brief(next_kernel(root, KERNELS)) == (NEW, "systemd-boot first entry", "New")
        tree({f"{where}/loader/loader.conf": f"timeout 3\ndefault  m-{OLD}*\n"})
        found = next_kernel(root, KERNELS)
        assert brief(found) == (OLD, "systemd-boot default entry", "Old")
        assert (found.arguments, found.initrds) == ("ro", (root / where / "i",))
        # The whole id, with its suffix.
        tree({f"{where}/loader/loader.conf": f"default m-{OLD}\n"})
        assert next_kernel(root, KERNELS).source == "systemd-boot first entry"
        tree({f"{where}/loader/loader.conf": "default @saved\ndefault @current\n"})
        assert next_kernel(root, KERNELS).source == "systemd-boot first entry"
        efi_variable(root, "LoaderEntryLastBooted", f"m-{OLD}.conf")
        assert brief(next_kernel(root, KERNELS)) == (OLD, "systemd-boot saved entry", "Old")
        efi_variable(root, "LoaderEntryDefault", f"M-{NEW}.conf")
        assert brief(next_kernel(root, KERNELS)) == (NEW, "systemd-boot default entry", "New")
        efi_variable(root, "LoaderEntryDefault", "@saved")
        assert brief(next_kernel(root, KERNELS)) == (OLD, "systemd-boot saved entry", "Old")
        efi_variable(root, "LoaderEntryOneShot", f"m-{NEW}.conf")
        assert brief(next_kernel(root, KERNELS)) == (NEW, "systemd-boot one-shot entry", "New")
        efi_variable(root, "LoaderEntryOneShot", "auto-windows")
        assert "may start auto-windows" in unknown(next_kernel(root, KERNELS))

    def test_what_the_entry_that_is_started_tells_counts(self, tree: Tree) -> None:
        image = (f"/{NEW}/linux", {"options": "ro"}), (f"/{NEW}/linux", {"options": "ro module_blacklist=demo"})
        root = tree(esp("efi", *((name, *one) for name, one in zip(("b.conf", "a.conf"), image, strict=True))))
        assert next_kernel(root, KERNELS).arguments == bootloader.command_line(root, NEW) == "ro"
        tree({"efi/loader/loader.conf": "default a.conf\n"})
        assert next_kernel(root, KERNELS).arguments == bootloader.command_line(root, NEW) == "ro module_blacklist=demo"

    def test_entries_on_the_esp_and_in_boot_count_together(self, tree: Tree) -> None:
        root = tree({
            "efi/loader/loader.conf": f"default m-{NEW}.conf\n",
            **esp("boot", (f"m-{NEW}.conf", f"/vmlinuz-{NEW}", {})),
            **esp("efi", (f"m-{BACKPORT}.conf", f"/vmlinuz-{BACKPORT}", {})),
        })  # fmt: skip
        assert brief(next_kernel(root, KERNELS)) == (NEW, "systemd-boot default entry", f"m-{NEW}.conf")

    def test_a_loader_without_entries_is_unknown(self, tree: Tree) -> None:
        root = tree({"boot/grub/grub.cfg": grub_cfg("0", OLD), **esp("boot/efi", (f"{NEW}.conf", f"/vmlinuz-{NEW}", {}))})
        assert brief(next_kernel(root, KERNELS)) == (OLD, "grub default entry", "Debian")
        efi_variable(root, "LoaderInfo", "systemd-boot 257.1")
        assert brief(next_kernel(root, KERNELS)) == (NEW, "systemd-boot first entry", f"{NEW}.conf")
        (root / f"boot/efi/vmlinuz-{NEW}").unlink()
        assert "none of its entries is found" in unknown(next_kernel(root, KERNELS))

    def test_an_image_that_is_not_whole(self, tree: Tree) -> None:
        """systemd-boot's own copy, on a full ESP; that in /boot, of which `kernels` speaks, is good."""
        root = tree({f"boot/vmlinuz-{NEW}": "image", **esp("efi", (f"m-{NEW}.conf", f"/m/{NEW}/linux", {}))})
        assert next_kernel(root, KERNELS).release == NEW
        header = bytes(0x1F1) + b"\1" + bytes(2) + (100).to_bytes(4, "little") + bytes(10) + b"HdrS"
        for data in (b"", header):
            (root / f"efi/m/{NEW}/linux").write_bytes(data)
            assert unknown(next_kernel(root, KERNELS)) == f"systemd-boot starts '/m/{NEW}/linux', which is empty or cut off"

    def test_the_version_on_the_disk_counts(self, tree: Tree) -> None:
        root = tree(esp("efi", (f"m-{OLD}+3.conf", f"/{OLD}/linux", {}), (f"m-{NEW}.conf", f"/{NEW}/linux", {})))
        tree({"efi/loader/loader.conf": f"default m-{OLD}.conf\n"})
        assert "versions differ" in unknown(next_kernel(root, KERNELS))
        program = "efi/EFI/systemd/systemd-bootx64.efi"
        for version, release in (("252.39-1", NEW), ("257.13-1~deb13u1", OLD)):
            tree({program: f"x#### LoaderInfo: systemd-boot {version} ####x"})
            efi_variable(root, "LoaderInfo", "systemd-boot 252.1")
            assert next_kernel(root, KERNELS).release == release
        for version in ("247", "258"):
            tree({program: f"x#### LoaderInfo: systemd-boot {version} ####x"})
            assert f"is version {version}" in unknown(next_kernel(root, KERNELS))


@pytest.mark.parametrize(
    ("files", "why"),
    [
        # systemctl(1), reboot: what is loaded for kexec, or set up in /run/nextroot, comes before the loader.
        ({"sys/kernel/kexec_loaded": "1\n"}, "a kernel is loaded for kexec"),
        ({"run/nextroot/etc/os-release": "ID=x\n"}, "/run/nextroot holds a system"),
        ({"run/nextroot/usr/lib/os-release": "ID=x\n"}, "/run/nextroot holds a system"),
        ({"etc/default/kexec": "# x\nLOAD_KEXEC=true\n", "etc/init.d/kexec-load": ""}, "kexec-tools"),
    ],
)
def test_what_comes_before_the_loader(tree: Tree, files: dict[str, str], why: str) -> None:
    root = tree({"boot/grub/grub.cfg": grub_cfg("0", NEW), "sys/kernel/kexec_loaded": "0\n", "run/nextroot/": "",
                 "etc/default/kexec": "LOAD_KEXEC=false\n", "etc/init.d/kexec-load": ""})  # fmt: skip
    assert next_kernel(root, KERNELS).release == NEW
    tree(files)
    assert why in unknown(next_kernel(root, KERNELS))


def test_the_firmware_s_one_shot(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg": grub_cfg("0", NEW)})
    efi_variable(root, "BootCurrent", b"\1\0", GLOBAL)
    assert next_kernel(root, KERNELS).release == NEW
    efi_variable(root, "BootNext", b"\1\0", GLOBAL)
    assert next_kernel(root, KERNELS).release == NEW
    efi_variable(root, "BootNext", b"\2\0", GLOBAL)
    assert "BootNext" in unknown(next_kernel(root, KERNELS))


@pytest.mark.parametrize(
    "path",
    ["boot/extlinux/extlinux.conf", "boot/syslinux/syslinux.cfg", "etc/lilo.conf", "boot/efi/EFI/refind/refind.conf",
    "boot/boot.scr",
     "boot/refind_linux.conf", "etc/zipl.conf", "boot/firmware/config.txt", "boot/limine.conf", "boot/grub/menu.lst",
     "efi/EFI/OC/config.plist",
     "etc/kboot.conf"],
)  # fmt: skip
def test_a_loader_that_is_not_read_is_unknown(tree: Tree, path: str) -> None:
    root = tree({path: ""})
    assert f"(/{path}) is here, and its configuration is not read" in unknown(next_kernel(root, KERNELS))
    tree({"boot/grub/grub.cfg": grub_cfg("0", OLD)})
    # Left behind by a package, or as likely as GRUB to be the one?
    if path in ("etc/lilo.conf", "boot/grub/menu.lst"):
        assert next_kernel(root, KERNELS).release == OLD
    else:
        assert "is not read" in unknown(next_kernel(root, KERNELS))
    efi_variable(root, "LoaderInfo", "GRUB 2.12")
    assert next_kernel(root, KERNELS).release == OLD


def test_a_loader_that_says_its_name_and_is_not_read(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg": grub_cfg("0", OLD)})
    efi_variable(root, "LoaderInfo", "rEFInd 0.14.0")
    assert unknown(next_kernel(root, KERNELS)).startswith("rEFInd 0.14.0 started this system")
    (root / EFIVARS / f"LoaderInfo-{GUID}").write_bytes(b"x" * 5000)
    assert next_kernel(root, KERNELS).release == OLD


class TestAnotherSystem:
    """Entries of systems on other disks, as os-prober writes them."""

    MINE = f"menuentry Mine {{\nlinux /boot/vmlinuz-{OLD} root=UUID=aa ro\ninitrd /boot/initrd.img-{OLD}\n}}\n"
    OTHER = f"menuentry Other {{\nlinux /boot/vmlinuz-{NEW} root=UUID=bb ro quiet\ninitrd /boot/other.img\n}}\n"
    FSTAB = "UUID=aa / ext4 defaults 0 1\n"

    def test_grub(self, tree: Tree) -> None:
        root = tree({"boot/grub/grub.cfg": "set default=1\n" + self.MINE + self.OTHER, "etc/fstab": self.FSTAB})
        said = unknown(next_kernel(root, KERNELS))
        assert said.startswith("the grub default entry (Other; ")
        assert said.endswith(" may be another system's: its root=UUID=bb is not what this system has for /")
        assert bootloader.entry_line(root, OLD) == "root=UUID=aa ro"
        assert (bootloader.entry_line(root, NEW), bootloader.initrds(root, NEW)) == (None, None)
        tree({"boot/grub/grub.cfg": self.OTHER.replace(NEW, OLD) + self.MINE})
        assert bootloader.entry_line(root, OLD) == "root=UUID=aa ro"
        assert bootloader.initrds(root, OLD) == (root / f"boot/initrd.img-{OLD}",)
        tree({"etc/fstab": "UUID=bb / ext4 defaults 0 1\n"})
        assert next_kernel(root, KERNELS).release == OLD

    def test_a_grub_that_reads_another_menu(self, tree: Tree) -> None:
        uuid = "0a1b2c3d-0000-4000-8000-00000000000"
        way = f"search.fs_uuid {uuid}2 root\nset prefix=($root)'/boot/grub'\nconfigfile $prefix/grub.cfg\n"
        root = tree({"boot/grub/grub.cfg": grub_cfg("0", OLD), "boot/efi/EFI/debian/grub.cfg": way})
        tree({"etc/fstab": f"UUID={uuid}1 / ext4 defaults\n"})
        assert "reads another menu than that in /boot: /boot/efi/EFI/debian/grub.cfg" in unknown(next_kernel(root, KERNELS))
        tree({"etc/fstab": f"UUID={uuid}2 / ext4 defaults\n"})
        assert next_kernel(root, KERNELS).release == OLD
        tree({"etc/fstab": f"UUID={uuid}1 / ext4 defaults\n"})
        (root / "sys/firmware").mkdir(parents=True)
        assert next_kernel(root, KERNELS).release == OLD, "the machine has no EFI"

    def test_systemd_boot(self, tree: Tree) -> None:
        entry = esp("boot", ("a.conf", f"/a/{NEW}/linux", {"options": "root=UUID=bb rw"}))
        root = tree({**entry, "etc/fstab": self.FSTAB})
        assert "may be another system's: its root=UUID=bb is not" in unknown(next_kernel(root, KERNELS))
        assert bootloader.initrds(root, NEW) is None


def test_entries_on_no_partition_are_read_by_no_loader(tree: Tree) -> None:
    """Left by kernel-install in a directory of the root file system; the ESP has others."""
    old = esp("boot/efi", ("a.conf", f"/a/{OLD}/linux", {"options": "root=/dev/vda2 rw"}))
    new = esp("boot", ("z.conf", f"/a/{NEW}/linux", {"options": "root=/dev/vda2 rw"}))
    root = tree({**old, **new})
    assert next_kernel(root, KERNELS).release == NEW
    tree({"etc/fstab": "/dev/vda2 / ext4 defaults 0 1\n/dev/vda1 /boot/efi vfat defaults 0 1\n"})
    assert next_kernel(root, KERNELS).release == OLD
    (root / "boot/efi/loader/entries/a.conf").unlink()
    (root / "boot/efi/loader/entries").rmdir()
    assert next_kernel(root, KERNELS).release == NEW, "who put them there?"
    efi_variable(root, "LoaderInfo", "systemd-boot 257")
    assert "is the ESP mounted?" in unknown(next_kernel(root, KERNELS))


def test_a_kernel_that_the_firmware_starts(tree: Tree) -> None:
    root = tree({})
    efi_variable(root, "StubInfo", "systemd-stub 257")
    assert "the firmware itself" in unknown(next_kernel(root, KERNELS))


@given(st.binary(), st.binary(), st.binary())
def test_no_bytes_raise(tmp_path: Path, script: bytes, entry: bytes, variable: bytes) -> None:
    for name, data in (
        ("boot/grub/grub.cfg", b"menuentry x { linux " + script),
        ("boot/grub/grubenv", BLOCK.encode() + script),
        ("boot/loader/entries/x.conf", b"linux " + entry),
        ("boot/EFI/Linux/x.efi", b"MZ".ljust(60, b"\0") + b"\x40\0\0\0PE\0\0" + entry),
        ("boot/loader/loader.conf", b"default " + entry),
        (f"{EFIVARS}/LoaderInfo-{GUID}", variable[:1] + b"\0\0\0" + "systemd-boot".encode("utf-16-le")),
        (f"{EFIVARS}/LoaderEntryDefault-{GUID}", variable),
    ):
        os.makedirs((tmp_path / name).parent, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert "\n" not in next_kernel(tmp_path, [NEW]).detail
    bootloader.command_line(tmp_path, NEW)


def test_a_path_of_thousands_of_directories_ends_quickly(tree: Tree) -> None:
    """Each of its ends may be the path on a disk that is mounted somewhere."""
    root = tree({"boot/grub/grub.cfg": f"menuentry x {{\nlinux {'/a' * 5000}/vmlinuz-{OLD}\n}}\n"})
    start = time.process_time()
    assert next_kernel(root, KERNELS).release == OLD
    assert time.process_time() - start < 2


def test_a_hostile_file_of_kexec_tools_ends_quickly(tree: Tree) -> None:
    root = tree({"etc/default/kexec": "\n" * 65536})
    start = time.process_time()
    next_kernel(root, KERNELS)
    assert time.process_time() - start < 2
