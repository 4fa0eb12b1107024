# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel that the boot loader starts, from trees of files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knetstatd.machine.bootloader import Next, next_kernel

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Tree = Callable[[dict[str, str]], Path]

OLD, NEW, BACKPORT = "6.1.0-9-amd64", "6.1.0-55-amd64", "6.12.115+deb12-amd64"
KERNELS = [NEW, OLD, BACKPORT]
EFIVARS = "sys/firmware/efi/efivars"
GUID = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"


def grub_cfg(default: str, *kernels: str) -> str:
    entries = "".join(f"menuentry 'Linux {k}' $menuentry_id_option 'id-{k}' {{\n linux /vmlinuz-{k} ro\n}}\n" for k in kernels)
    return (
        f'if [ "${{next_entry}}" ] ; then\n set default="${{next_entry}}"\nelse\n set default="{default}"\nfi\n'
        f"menuentry 'Debian' {{\n linux /boot/vmlinuz-{kernels[0]} ro\n}}\nsubmenu 'Advanced' {{\n{entries}}}\n"
    )


def bls(linux: str, **fields: str) -> str:
    lines = [f"linux\t{linux}", *(f"{name.replace('_', '-')} {value}" for name, value in fields.items())]
    return "# an entry\n\n" + "\n".join(lines) + "\n"


def efi_variable(root: Path, name: str, value: str) -> None:
    (root / EFIVARS).mkdir(parents=True, exist_ok=True)
    (root / EFIVARS / f"{name}-{GUID}").write_bytes(b"\x06\0\0\0" + (value + "\0").encode("utf-16-le"))


def test_without_a_boot_loader_it_is_the_newest(tmp_path: Path) -> None:
    assert next_kernel(tmp_path, KERNELS) == Next(BACKPORT, "newest installed")
    assert next_kernel(tmp_path, [OLD, NEW]) == Next(NEW, "newest installed")
    assert next_kernel(tmp_path, []) is None


@pytest.mark.parametrize("directory", ["boot/grub", "boot/grub2"])
def test_grub_default_saved_and_next_entry(tree: Tree, directory: str) -> None:
    config = f"{directory}/grub.cfg"
    root = tree({config: grub_cfg("1>1", BACKPORT, NEW, OLD)})
    assert next_kernel(root, KERNELS) == Next(NEW, "grub default entry", f"Advanced > Linux {NEW}")
    tree({config: grub_cfg("${saved_entry}", BACKPORT, NEW, OLD), f"{directory}/grubenv": f"saved_entry=Advanced>id-{OLD}\n"})
    assert next_kernel(root, KERNELS) == Next(OLD, "grub saved entry", f"Advanced > Linux {OLD}")
    tree({f"{directory}/grubenv": f"saved_entry=1>2\nnext_entry=Advanced>Linux {NEW}\n"})
    assert next_kernel(root, KERNELS) == Next(NEW, "grub next entry", f"Advanced > Linux {NEW}")
    tree({f"{directory}/grubenv": ""})
    assert next_kernel(root, KERNELS) == Next(BACKPORT, "grub default entry", "Debian")


def test_a_kernel_without_modules_is_not_replaced_by_another(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg": grub_cfg("0", "7.3.0-amd64", NEW)})
    found = next_kernel(root, KERNELS)
    assert found == Next("7.3.0-amd64", "grub default entry", "Debian; it has no modules in /lib/modules", False)


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("linux /boot/vmlinuz-$(reboot)", "starts '/boot/vmlinuz-$(reboot)', whose release is unknown"),
        ("linux '/boot/vmlinuz-6.1\n;x'", "starts '/boot/vmlinuz-6.1\\n;x', whose release is unknown"),
        ("linux /boot/vmlinuz-custom", "starts '/boot/vmlinuz-custom', whose release is unknown"),
        ("chainloader /EFI/Microsoft/bootmgfw.efi", "starts '/EFI/Microsoft/bootmgfw.efi', whose release is unknown"),
        ("fwsetup", "starts no Linux"),
    ],
)
def test_what_cannot_be_understood_is_said(tree: Tree, entry: str, why: str) -> None:
    root = tree({"boot/grub/grub.cfg": f"menuentry Odd {{\n{entry}\n}}\n"})
    assert next_kernel(root, KERNELS) == Next(BACKPORT, "newest installed", f"the grub default entry (Odd) {why}")
    assert next_kernel(root, []) is None


def test_the_release_from_the_image(tree: Tree) -> None:
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
        (f"/kernel-genkernel-x86_64-{'6.1.12-gentoo'}", "6.1.12-gentoo"),
        (f"/0123456789abcdef/{OLD}/linux", OLD),
        ("/vmlinuz-linux", "6.18.3-arch1-1"),
        ("/vmlinuz", NEW),
        ("(hd0,gpt2)/vmlinuz.old", OLD),
        (f"/EFI/Linux/0123456789abcdef-{BACKPORT}+2-1.efi", BACKPORT),
    ):
        tree({"boot/grub/grub.cfg": f"menuentry x {{\nlinux '{image}'\n}}"})
        found = next_kernel(root, installed)
        assert found is not None
        assert (found.release, found.has_modules) == (release, True), image


def test_links_that_go_round(tree: Tree) -> None:
    root = tree({"vmlinuz": "-> vmlinuz", "boot/grub/grub.cfg": "menuentry x { linux /vmlinuz }"})
    found = next_kernel(root, [NEW])
    assert found is not None
    assert found.source == "newest installed"


def test_grub_with_entry_files(tree: Tree) -> None:
    root = tree({
        "boot/grub2/grub.cfg": 'set default="${saved_entry}"\ninsmod blscfg\nblscfg\n',
        f"boot/loader/entries/abc-{OLD}.conf": bls(f"/vmlinuz-{OLD}", title="Fedora old"),
        f"boot/loader/entries/abc-{NEW}.conf": bls(f"/vmlinuz-{NEW}", title="Fedora new"),
        "boot/loader/entries/README": "no entry",
    })  # fmt: skip
    assert next_kernel(root, KERNELS) == Next(NEW, "grub default entry", "Fedora new")
    tree({"boot/grub2/grubenv": f"saved_entry=abc-{OLD}\n"})
    assert next_kernel(root, KERNELS) == Next(OLD, "grub saved entry", "Fedora old")


def test_an_empty_grub_menu_is_none(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg": "configfile /other\n", "boot/grub2/grub.cfg": grub_cfg("0", OLD)})
    found = next_kernel(root, KERNELS)
    assert found is not None
    assert found.release == OLD


@pytest.mark.parametrize("esp", ["efi", "boot/efi", "boot"])
def test_systemd_boot(tree: Tree, esp: str) -> None:
    root = tree({
        f"{esp}/loader/entries/m-{OLD}.conf": bls(f"/m/{OLD}/linux", title="Old", version=OLD),
        f"{esp}/loader/entries/m-{NEW}.conf": bls(f"/m/{NEW}/linux", title="New", version=NEW),
        f"{esp}/EFI/Linux/{BACKPORT}+0-3.efi": "",
        f"{esp}/EFI/Linux/notes.txt": "",
    })  # fmt: skip
    # The backport's tries are used up, so it is last.
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot first entry", "New")
    tree({f"{esp}/loader/loader.conf": f"timeout 3\ndefault  m-{OLD}*\n"})
    assert next_kernel(root, KERNELS) == Next(OLD, "systemd-boot default entry", "Old")
    tree({f"{esp}/loader/loader.conf": "default nothing-*\n"})
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot first entry", "New")
    tree({f"{esp}/loader/loader.conf": "default @saved\n"})
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot first entry", "New")
    efi_variable(root, "LoaderEntryLastBooted", f"m-{OLD}.conf")
    assert next_kernel(root, KERNELS) == Next(OLD, "systemd-boot default entry", "Old")
    efi_variable(root, "LoaderEntryDefault", f"{BACKPORT}.efi")
    assert next_kernel(root, KERNELS) == Next(BACKPORT, "systemd-boot default entry", BACKPORT)
    efi_variable(root, "LoaderEntryOneShot", f"m-{NEW}.conf")
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot one-shot entry", "New")


def test_entries_on_the_esp_and_in_boot_count_together(tree: Tree) -> None:
    root = tree({
        "efi/loader/loader.conf": f"default m-{NEW}\n",
        f"boot/loader/entries/m-{NEW}.conf": bls(f"/vmlinuz-{NEW}"),
        f"efi/loader/entries/m-{BACKPORT}.conf": bls(f"/vmlinuz-{BACKPORT}"),
    })  # fmt: skip
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot default entry", f"m-{NEW}")


def test_the_specification_s_order(tree: Tree) -> None:
    root = tree({
        "boot/loader/entries/zzz.conf": bls(f"/vmlinuz-{BACKPORT}"),
        "boot/loader/entries/b.conf": bls("/vmlinuz-5.0.0", sort_key="other", version="9"),
        "boot/loader/entries/c.conf": bls(f"/vmlinuz-{OLD}", sort_key="debian", version=OLD, machine_id="2"),
        "boot/loader/entries/d.conf": bls(f"/vmlinuz-{NEW}", sort_key="debian", version=NEW, machine_id="2"),
        "boot/loader/entries/e+0.conf": bls("/vmlinuz-5.0.0", sort_key="a", version="9"),
    })  # fmt: skip
    # With a sort key first; then the machine, then the version downwards; an entry that failed is last.
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot first entry", "d")
    tree({"boot/loader/entries/f.conf": bls(f"/vmlinuz-{OLD}", sort_key="debian", version="1", machine_id="1")})
    assert next_kernel(root, KERNELS) == Next(OLD, "systemd-boot first entry", "f")


def test_a_version_of_thousands_of_digits(tree: Tree) -> None:
    root = tree({"boot/loader/entries/a.conf": bls(f"/vmlinuz-{OLD}", sort_key="x", version="9" * 9999)})
    assert next_kernel(root, KERNELS) == Next(OLD, "systemd-boot first entry", "a")


def test_the_loader_that_started_this_boot_is_asked_first(tree: Tree) -> None:
    root = tree({
        "boot/grub/grub.cfg": grub_cfg("0", OLD),
        f"boot/loader/entries/{NEW}.conf": bls(f"/vmlinuz-{NEW}"),
    })  # fmt: skip
    assert next_kernel(root, KERNELS) == Next(OLD, "grub default entry", "Debian")
    efi_variable(root, "LoaderInfo", "systemd-boot 257.1")
    assert next_kernel(root, KERNELS) == Next(NEW, "systemd-boot first entry", NEW)
    (root / EFIVARS / f"LoaderInfo-{GUID}").write_bytes(b"x" * 5000)
    assert next_kernel(root, KERNELS) == Next(OLD, "grub default entry", "Debian")


def test_what_cannot_be_read_is_not_there(tree: Tree) -> None:
    root = tree({"boot/grub/grub.cfg/": "", "boot/loader/entries/x.conf/": "", "boot/grub2/grub.cfg": "-> nowhere"})
    assert next_kernel(root, [NEW]) == Next(NEW, "newest installed")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(st.binary(), st.binary(), st.binary())
def test_no_bytes_raise(tmp_path: Path, script: bytes, entry: bytes, variable: bytes) -> None:
    for name, data in (
        ("boot/grub/grub.cfg", b"menuentry x { linux " + script),
        ("boot/grub/grubenv", script),
        ("boot/loader/entries/x.conf", b"linux " + entry),
        ("boot/loader/loader.conf", b"default " + entry),
        (f"{EFIVARS}/LoaderInfo-{GUID}", variable[:1] + b"\0\0\0" + "systemd-boot".encode("utf-16-le")),
        (f"{EFIVARS}/LoaderEntryDefault-{GUID}", variable),
    ):
        os.makedirs((tmp_path / name).parent, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    found = next_kernel(tmp_path, [NEW])
    assert found is not None
    assert "\n" not in found.detail
