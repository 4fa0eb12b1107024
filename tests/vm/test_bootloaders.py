# SPDX-License-Identifier: GPL-2.0-or-later
"""What the next kernel is said to be, and what real boot loaders start: generated menus, asked of both.

    pytest tests/vm/test_bootloaders.py -m slow -s       # 64 menus for each loader; prints those that are not known

A menu's number is its seed, so one that fails can be looked at: `grub_menus.files(17)["boot/grub/grub.cfg"]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from knetstatd.boot import bootloader
from knetstatd.boot.bootloader import Basis
from tests.vm import bootloaders, grub_menus, systemd_boot_menus

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

pytestmark = pytest.mark.vm

SUITES = ("bookworm", "trixie")
QUICK, ALL = range(8), range(64)
# Boots of UEFI firmware take several times as long.
QUICK_UEFI = range(3)


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def compare_grub(suite: str, seeds: Iterable[int], tmp_path: Path) -> None:
    """Fails where GRUB starts another kernel than the one that is named, or where too much is unknown."""
    loader = bootloaders.grub(suite)
    images = {f"boot/vmlinuz-{release}": bootloaders.linux(release) for release in grub_menus.INSTALLED}
    differ, unknown, agreed = [], [], 0
    for seed in seeds:
        files = grub_menus.files(seed)
        directory = tmp_path / str(seed)
        found = bootloader.next_kernel(write(directory / "root", files | images), grub_menus.INSTALLED)
        answer = bootloaders.started(loader, files | images, directory)
        if found.basis is Basis.UNKNOWN and answer.kernel:
            unknown.append((seed, found.why, answer.kernel))
        # GRUB stops where an image is missing, and starts nothing.
        elif answer.kernel == found.release or (not answer.kernel and found.release not in grub_menus.INSTALLED):
            agreed += 1
        else:
            differ.append((seed, found, answer.kernel or answer.screen[-400:]))
    print(f"GRUB {loader.version}: {agreed} agree, unknown: {unknown}")
    assert differ == []
    assert len(unknown) <= 1 + agreed // 30


def compare_systemd_boot(suite: str, seeds: Iterable[int], tmp_path: Path) -> None:
    loader = bootloaders.systemd_boot(suite)
    differ, unknown, agreed = [], [], 0
    for seed in seeds:
        menu = systemd_boot_menus.menu(seed)
        images = {name: bootloaders.efi_program(name, sections) for name, sections in menu.images.items()}
        directory = tmp_path / str(seed)
        program = {"EFI/systemd/systemd-bootx64.efi": loader.program}
        root = write(directory / "root/efi", menu.files | images | program).parent
        efivars = {f"{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f": value for name, value in menu.variables.items()}
        write(root / "sys/firmware/efi/efivars", {k: bytes(4) + (v + "\0").encode("utf-16-le") for k, v in efivars.items()})
        found = bootloader.next_kernel(root, systemd_boot_menus.RELEASES)
        answer = bootloaders.chosen(loader, menu.files | images, menu.variables, directory)
        wanted = next((release for release in systemd_boot_menus.RELEASES if release in answer.kernel), "")
        if found.basis is Basis.UNKNOWN and wanted:
            unknown.append((seed, found.why, answer.kernel))
        elif wanted == found.release:
            agreed += 1
        else:
            differ.append((seed, found, answer.kernel or answer.screen[-400:]))
    print(f"systemd-boot {loader.version}: {agreed} agree, unknown: {unknown}")
    assert differ == []
    assert len(unknown) <= 1 + agreed // 15


@pytest.mark.parametrize("suite", SUITES)
def test_grub(suite: str, tmp_path: Path) -> None:
    compare_grub(suite, QUICK, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("fallback", ["", "set fallback=1"])
@pytest.mark.parametrize("suite", SUITES)
def test_grub_with_menus_made_by_hand(suite: str, fallback: str, tmp_path: Path) -> None:
    """What is unknown may start anything; what is named, GRUB starts."""
    loader = bootloaders.grub(suite)
    images = {f"boot/vmlinuz-{release}": bootloaders.linux(release) for release in grub_menus.INSTALLED}
    differ, agreed = [], 0
    for name in grub_menus.BY_HAND:
        files = grub_menus.by_hand(name, fallback)
        found = bootloader.next_kernel(write(tmp_path / name / "root", files | images), grub_menus.INSTALLED)
        answer = bootloaders.started(loader, files | images, tmp_path / name)
        agreed += answer.kernel == found.release
        if found.release not in ("", answer.kernel):
            differ.append((name, found, answer.kernel or answer.screen[-400:]))
    print(f"GRUB {loader.version}: {agreed} of {len(grub_menus.BY_HAND)} agree")
    assert differ == []
    assert agreed > len(grub_menus.BY_HAND) // 2


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_grub_with_many_menus(suite: str, tmp_path: Path) -> None:
    compare_grub(suite, ALL, tmp_path)


@pytest.mark.parametrize("suite", SUITES)
def test_systemd_boot(suite: str, tmp_path: Path) -> None:
    compare_systemd_boot(suite, QUICK_UEFI, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", ALL[::8])
@pytest.mark.parametrize("suite", SUITES)
def test_systemd_boot_with_many_menus(suite: str, first: int, tmp_path: Path) -> None:
    compare_systemd_boot(suite, ALL[first : first + 8], tmp_path)
