# SPDX-License-Identifier: GPL-2.0-or-later
"""A module that was good is looked at again when anything changes that the answer rests on, and the planner acts on it."""

from __future__ import annotations

import os
import stat
import time
from typing import TYPE_CHECKING

import elf
import kerneltree
import pytest
from kerneltree import CRCS, KERNEL, UTS_RELEASE
from keys import Key, signature_list, variable

from knetstatd.build import publish
from knetstatd.cli import render
from knetstatd.core.config import Config
from knetstatd.core.model import Action, Artefact, Step, Why
from knetstatd.machine import kernels
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from knetstatd.verdict.observe import Seen

OLD, NEW = Key("old", 1), Key("new", 2)
CONFIG = "CONFIG_MODULE_SIG=y\nCONFIG_LOCK_DOWN_IN_EFI_SECURE_BOOT=y\nCONFIG_INTEGRITY_PLATFORM_KEYRING=y\n"
BUILT = OLD.sign(kerneltree.module("demo", build_id="aaaa"))
STAGE = Step(Action.STAGE, Why.WRONG)
LATER = 4e9  # seconds: later than anything here, however long ago these tests were collected


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with one kernel, for which DKMS has built and installed `demo`."""
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/knetstatd")
    kernel = kerneltree.make(tmp_path, config=CONFIG)
    headers = tmp_path / f"usr/src/linux-headers-{KERNEL}"
    (headers / "scripts").mkdir()
    write(headers / "Makefile", "")
    write(headers / ".config", CONFIG)
    write(tmp_path / f"boot/vmlinuz-{KERNEL}", b"")
    register(tmp_path, "1.0")
    write(tmp_path / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko", BUILT)
    (tmp_path / f"var/lib/dkms/demo/kernel-{KERNEL}-x86_64").symlink_to(f"1.0/{KERNEL}/x86_64")
    write(tmp_path / "var/lib/dkms/mok.pub", OLD.certificate)
    variable(tmp_path, "SecureBoot", b"\0")
    kerneltree.add(kernel, "updates/dkms/demo.ko", BUILT)
    return tmp_path


def register(root: Path, version: str) -> Path:
    source = root / f"usr/src/demo-{version}"
    built = 'BUILT_MODULE_NAME[0]="demo"\nDEST_MODULE_LOCATION[0]="/updates"\n'
    write(source / "dkms.conf", f'PACKAGE_NAME="demo"\nPACKAGE_VERSION="{version}"\n{built}')
    write(source / "demo.c", "")
    for name in ("dkms.conf", "demo.c"):
        os.utime(source / name, (1e9, 1e9))
    (root / f"var/lib/dkms/demo/{version}").mkdir(parents=True)
    (root / f"var/lib/dkms/demo/{version}/source").symlink_to(f"/usr/src/demo-{version}")
    return source


def looked(machine: Machine) -> tuple[Seen, Step]:
    machine.refresh()
    seen = machine.observe(machine.look(KERNEL), "demo")
    return seen, machine.plan(seen, LATER)


@pytest.fixture
def machine(root: Path) -> Machine:
    made = Machine(root, Config(modules=("demo",), load=()))
    seen, step = looked(made)
    assert (seen.observation.installed, step) == (Artefact.GOOD, Step(Action.DONE, Why.READY)), seen.installed
    return made


def assert_becomes(machine: Machine, change: Callable[[], object], installed: Artefact, step: Step, word: str = "") -> None:
    before = looked(machine)[0].installed
    assert looked(machine)[0].installed[0][1] is before[0][1]  # nothing changed: not even computed
    change()
    seen, answer = looked(machine)
    assert (seen.observation.installed, answer) == (installed, step), seen.installed
    assert word in str([check for _, proof in seen.installed for check in proof.checks])


def test_the_source_of_the_same_version(root: Path, machine: Machine) -> None:
    path = root / "usr/src/demo-1.0/demo.c"
    copy = root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko"

    def build() -> None:
        time.sleep(0.02)
        os.utime(copy)

    time.sleep(0.02)
    assert_becomes(machine, lambda: path.write_text("int x;\n"), Artefact.OTHER, STAGE, "The source was changed")
    assert_becomes(machine, build, Artefact.GOOD, Step(Action.DONE, Why.READY))
    # A restored file keeps the time of its contents; one from the future counts from when it came here.
    assert_becomes(machine, lambda: os.utime(path, (1e9, 1e9)), Artefact.GOOD, Step(Action.DONE, Why.READY))
    time.sleep(0.02)
    assert_becomes(machine, lambda: os.utime(path, (LATER, LATER)), Artefact.OTHER, STAGE, "The source was changed")
    assert_becomes(machine, build, Artefact.GOOD, Step(Action.DONE, Why.READY))


def test_the_clock_was_set_back_behind_the_source(root: Path, machine: Machine) -> None:
    source, copy = root / "usr/src/demo-1.0", root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko"
    for path in source.iterdir():
        os.utime(path, (2e9, 2e9))  # counts from its ctime on
    behind = kernels.changed(source) - 3e8
    assert_becomes(machine, lambda: os.utime(copy, (behind, behind)), Artefact.OTHER, STAGE, "The source was changed")

    def published() -> None:
        publish.date(copy.parent.parent.parent, kernels.changed(source))

    assert_becomes(machine, published, Artefact.GOOD, Step(Action.DONE, Why.READY))
    dated = copy.stat().st_mtime_ns
    published()
    assert copy.stat().st_mtime_ns == dated, "what is younger already keeps its time"


def test_a_new_version(root: Path, machine: Machine) -> None:
    assert_becomes(machine, lambda: register(root, "2.0"), Artefact.OTHER, STAGE, "another version")


def test_a_kernel_of_the_same_name_that_was_built_anew(root: Path, machine: Machine) -> None:
    crcs = CRCS | {"printk": 5}
    symvers = root / f"usr/src/linux-headers-{KERNEL}/Module.symvers"

    def rebuild() -> None:
        symvers.write_text(kerneltree.symvers(crcs))
        for path in (root / f"lib/modules/{KERNEL}/kernel").rglob("*.ko"):
            name = path.stem
            own = {"intree": "Y"}
            magic = f"{KERNEL} SMP preempt mod_unload modversions "
            path.write_bytes(elf.module(name, vermagic=magic, crcs=crcs, undefined=["printk"], info=own))
        (root / f"lib/modules/{KERNEL}/modules.dep").touch()

    assert_becomes(machine, rebuild, Artefact.BAD, STAGE, "disagrees about version of symbol printk")


def test_other_headers_of_the_same_release(root: Path, machine: Machine) -> None:
    """Only the headers: they are not this kernel's, and that is said; what is built with them is proven before it is used."""
    path = root / f"usr/src/linux-headers-{KERNEL}/Module.symvers"
    change = kerneltree.symvers(CRCS | {"printk": 5})
    assert_becomes(machine, lambda: path.write_text(change), Artefact.UNKNOWN, STAGE, "headers are of another build")


def test_headers_that_go_away(root: Path, machine: Machine) -> None:
    path = root / f"usr/src/linux-headers-{KERNEL}/include/generated/utsrelease.h"
    answer = Step(Action.GIVE_UP, Why.HEADERS_PARTIAL)
    assert_becomes(machine, lambda: path.write_text(UTS_RELEASE.format("6.2")), Artefact.UNKNOWN, answer, "cannot be known")


def test_secure_boot_and_keys(root: Path, machine: Machine) -> None:
    denied, ready = Step(Action.GIVE_UP, Why.DENIED), Step(Action.DONE, Why.READY)
    assert_becomes(machine, lambda: variable(root, "SecureBoot", b"\1"), Artefact.DENIED, denied, "mokutil --import")
    enrolled = signature_list(OLD.certificate)
    assert_becomes(machine, lambda: variable(root, "MokListRT", enrolled), Artefact.GOOD, ready, "which is enrolled")

    def replace() -> None:
        variable(root, "MokListRT", signature_list(NEW.certificate))
        write(root / "var/lib/dkms/mok.pub", NEW.certificate)

    assert_becomes(machine, replace, Artefact.BAD, STAGE, "unavailable key")


def test_the_boot_loader(root: Path, machine: Machine) -> None:
    def enforce() -> None:
        write(root / "boot/grub/grub.cfg", f"menuentry x {{\nlinux /vmlinuz-{KERNEL} module.sig_enforce=1\n}}\n")

    assert_becomes(machine, enforce, Artefact.DENIED, Step(Action.GIVE_UP, Why.DENIED), "module.sig_enforce")


def test_modprobes_configuration(root: Path, machine: Machine) -> None:
    path = root / "etc/modprobe.d/x.conf"
    forbid = lambda: write(path, "install demo /bin/false\n")  # noqa: E731
    assert_becomes(machine, forbid, Artefact.DENIED, Step(Action.GIVE_UP, Why.DENIED), "/etc/modprobe.d/x.conf line 1")
    assert_becomes(machine, path.unlink, Artefact.GOOD, Step(Action.DONE, Why.READY))


def test_the_initrd(root: Path, machine: Machine) -> None:
    path = root / f"boot/initrd.img-{KERNEL}"

    def disk(module: bytes) -> None:
        write(path, cpio([CpioFile(f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko", stat.S_IFREG | 0o644, module)]))

    stale = kerneltree.module("demo", build_id="bbbb")
    assert_becomes(machine, lambda: disk(stale), Artefact.DENIED, Step(Action.GIVE_UP, Why.DENIED), "another copy")
    assert_becomes(machine, lambda: disk(BUILT), Artefact.GOOD, Step(Action.DONE, Why.READY), "the same copy")


def test_dkms_own_copy(root: Path, machine: Machine) -> None:
    copy = root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko"
    other = kerneltree.module("demo", build_id="bbbb")
    assert_becomes(machine, lambda: copy.write_bytes(other), Artefact.OTHER, STAGE, "not the one that DKMS built")


def test_another_compiler_is_a_remark(root: Path, machine: Machine) -> None:
    path = root / f"boot/config-{KERNEL}"
    text = path.read_text().replace("12.2.0", "14.2.0")
    assert_becomes(machine, lambda: path.write_text(text), Artefact.GOOD, Step(Action.DONE, Why.READY), "Install gcc-14")


@pytest.mark.parametrize(
    "conf",
    [
        'if [ "${kernelver%%.*}" = 6 ]; then\nBUILT_MODULE_NAME[0]="demo-six"\nelse\nBUILT_MODULE_NAME[0]="demo"\nfi\n',
        'case "$kernelver" in\n6.*) BUILT_MODULE_NAME[0]="demo-six" ;;\n*) BUILT_MODULE_NAME[0]="demo" ;;\nesac\n',
    ],
)
def test_what_comes_and_goes_is_what_is_made_for_the_running_kernel(root: Path, machine: Machine, conf: str) -> None:
    machine.running = KERNEL
    assert machine.module_names() == {"demo"}
    built = root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module"
    (built / "demo.ko").rename(built / "demo-six.ko")
    head, tail = 'PACKAGE_NAME="demo"\nPACKAGE_VERSION="1.0"\n', 'DEST_MODULE_LOCATION[0]="/updates"\n'
    write(root / "usr/src/demo-1.0/dkms.conf", head + conf + tail)
    machine.refresh()
    assert machine.module_names() == {"demo_six"}


@pytest.mark.parametrize(
    ("wanted", "guarded"),
    [("next+running", {"2", "1"}), (1, {"2", "1", "4"}), (2, {"2", "1", "4", "3"}), ("all", {"1", "2", "3", "4"})],
)
def test_which_kernels_are_guarded(tmp_path: Path, wanted: str | int, guarded: set[str]) -> None:
    """The next one and the running one, and the newest N; what has no image is not one of those."""
    releases = {number: f"6.1.0-{number}-amd64" for number in "12345"}
    for number, release in releases.items():
        kerneltree.make(tmp_path, release)
        if number != "5":
            write(tmp_path / f"boot/vmlinuz-{release}", b"")
    write(tmp_path / "boot/grub/grub.cfg", f"menuentry x {{\nlinux /vmlinuz-{releases['2']}\n}}\n")
    machine = Machine(tmp_path, Config(kernels=wanted))
    machine.running = releases["1"]
    machine.refresh()
    assert machine.wanted() == {releases[number] for number in guarded}


def test_one_of_two_modules_is_not_the_package(root: Path, machine: Machine) -> None:
    conf = root / "usr/src/demo-1.0/dkms.conf"
    second = 'BUILT_MODULE_NAME[1]="second"\nDEST_MODULE_LOCATION[1]="/updates"\n'

    def add() -> None:
        conf.write_text(conf.read_text() + second)
        os.utime(conf, (1e9, 1e9))
        os.utime(root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko")

    assert_becomes(machine, add, Artefact.BAD, STAGE)
    (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").unlink()
    kerneltree.tables(root / "usr/lib/modules" / KERNEL, "kernel/fs/big.ko:")
    seen, step = looked(machine)
    assert (seen.observation.installed, step) == (Artefact.NONE, Step(Action.STAGE, Why.NOT_BUILT))


@pytest.mark.parametrize(("place", "installed"), [("weak-updates", Artefact.GOOD), ("extra", Artefact.OTHER)])
def test_weak_updates_are_meant_to_be_another_kernels(root: Path, machine: Machine, place: str, installed: Artefact) -> None:
    """RHEL and SUSE link there what another kernel of the same symbols has."""
    tree = root / "usr/lib/modules" / KERNEL
    (root / f"var/lib/dkms/demo/kernel-{KERNEL}-x86_64").unlink()
    (tree / "updates/dkms/demo.ko").unlink()
    kerneltree.tables(tree, "kernel/fs/big.ko: kernel/lib/my-lib.ko", "kernel/lib/my-lib.ko:")
    magic = "6.1.0-0-amd64 SMP preempt mod_unload modversions "
    kerneltree.add(tree, f"{place}/demo.ko", kerneltree.module("demo", vermagic=magic))
    assert looked(machine)[0].observation.installed is installed


def test_a_kernel_that_is_left_alone_may_be_the_next(root: Path, machine: Machine) -> None:
    """Its directory is a link: none of the others is called next then, and nobody is told to reboot."""
    seen, step = looked(machine)
    assert machine.next == KERNEL
    assert "Safe to reboot." in render.status_text(machine, [judge.verdict(machine, seen, step)], enabled=False)
    newer = "9.9.9-1-amd64"
    (root / f"usr/lib/modules/{newer}").symlink_to("/srv")
    seen, step = looked(machine)
    assert machine.next == KERNEL, "it has no image"
    write(root / f"boot/vmlinuz-{newer}", b"x")
    seen, step = looked(machine)
    assert machine.next == ""
    text = render.status_text(machine, [judge.verdict(machine, seen, step)], enabled=False)
    assert f"'{newer}'  left alone" in text or f"{newer}  left alone" in text
    assert "Safe to reboot." not in text
