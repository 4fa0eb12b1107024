# SPDX-License-Identifier: GPL-2.0-or-later
"""A module that was good is looked at again when anything changes that the answer rests on, and the planner acts on it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import elf
import guardedtree
import kerneltree
import pytest
from guardedtree import BUILT, NEW, OLD, register, register_another
from kerneltree import CRCS, KERNEL, UTS_RELEASE
from keys import signature_list, variable
from machinetree import write

from knetstatd.build import publish
from knetstatd.cli import render
from knetstatd.core.config import Config
from knetstatd.core.model import (
    Action,
    Artefact,
    Attempt,
    Headers,
    KernelState,
    Kind,
    Loaded,
    Observation,
    Rehearsed,
    Result,
    Source,
    Step,
    Why,
)  # fmt: skip
from knetstatd.machine import kernels
from knetstatd.rehearsal.vm import CpioFile, cpio
from knetstatd.state import attempts, load_history
from knetstatd.system import locks
from knetstatd.verdict import judge
from knetstatd.verdict.observe import Machine
from knetstatd.verdict.states import State

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from knetstatd.verdict.observe import Seen

STAGE = Step(Action.STAGE, Why.WRONG)
LATER = 4e9  # seconds: later than anything here, however long ago these tests were collected


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/knetstatd")
    guardedtree.make(tmp_path)
    return tmp_path


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
    behind = kernels.age(source).changed - 3e8
    assert_becomes(machine, lambda: os.utime(copy, (behind, behind)), Artefact.OTHER, STAGE, "The source was changed")

    def published() -> None:
        publish.date(copy.parent.parent.parent, kernels.age(source).changed)

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


def test_a_boot_image_and_headers_of_other_builds(root: Path, machine: Machine) -> None:
    """No build of the module would help, and none is made."""
    denied, ready = Step(Action.GIVE_UP, Why.DENIED), Step(Action.DONE, Why.READY)
    table = root / f"usr/src/linux-headers-{KERNEL}/Module.symvers"
    before = table.read_text()
    image = root / f"boot/vmlinuz-{KERNEL}"
    assert_becomes(machine, lambda: kerneltree.image(root), Artefact.GOOD, ready)
    change = kerneltree.symvers(CRCS | {"printk": 5})
    assert_becomes(machine, lambda: table.write_text(change), Artefact.DENIED, denied, "headers are of another build")
    assert_becomes(machine, lambda: table.write_text(before), Artefact.GOOD, ready)
    whole = image.read_bytes()
    damaged = whole[:-100] + bytes([whole[-100] ^ 0x55]) + whole[-99:]
    assert_becomes(machine, lambda: image.write_bytes(damaged), Artefact.DENIED, denied, "whether it starts is not known")
    other = lambda: kerneltree.image(root, crcs=CRCS | {"printk": 9})  # noqa: E731
    assert_becomes(machine, other, Artefact.DENIED, denied, "of another build than its modules")
    assert_becomes(machine, lambda: image.write_bytes(whole), Artefact.GOOD, ready)


def test_what_the_kernels_modules_export_is_looked_up_again(root: Path, machine: Machine) -> None:
    """depmod's table of it alone may change."""
    kerneltree.image(root)
    shutil.rmtree(root / f"usr/src/linux-headers-{KERNEL}")
    module = OLD.sign(kerneltree.module("demo", undefined=["printk", "lib_fn"], crcs=CRCS))
    for path in (f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko", f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko"):
        write(root / path, module)
    tree = root / "usr/lib/modules" / KERNEL
    kerneltree.tables(tree, "updates/dkms/demo.ko: kernel/lib/my-lib.ko", "kernel/lib/my-lib.ko:")
    machine.refresh()
    assert looked(machine)[0].observation.installed is Artefact.GOOD
    (tree / "modules.symbols").unlink()
    assert looked(machine)[0].observation.installed is Artefact.UNKNOWN


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
        init = CpioFile("init", stat.S_IFREG | 0o755, b"#!")
        write(path, cpio([CpioFile(f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko", stat.S_IFREG | 0o644, module), init]))

    stale = kerneltree.module("demo", build_id="bbbb")
    assert_becomes(machine, lambda: disk(stale), Artefact.DENIED, Step(Action.GIVE_UP, Why.DENIED), "another copy")
    assert looked(machine)[0].observation.initrd, "a new one is all that is needed"
    forbids = write(root / "etc/modprobe.d/x.conf", "install demo /bin/false\n")
    assert not looked(machine)[0].observation.initrd, "a new one would not help"
    forbids.unlink()
    assert_becomes(machine, lambda: disk(BUILT), Artefact.GOOD, Step(Action.DONE, Why.READY), "the same copy")
    assert not looked(machine)[0].observation.initrd


def test_an_initrd_that_cannot_be_read_is_not_made_anew(root: Path, machine: Machine) -> None:
    place = f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko"
    init = CpioFile("init", stat.S_IFREG | 0o755, b"#!")
    write(root / f"boot/initrd.img-{KERNEL}", cpio([CpioFile(place, stat.S_IFREG | 0o644, b"nonsense"), init]))
    observation = looked(machine)[0].observation
    assert (observation.installed, observation.initrd) == (Artefact.DENIED, False)


def test_dkms_own_copy(root: Path, machine: Machine) -> None:
    copy = root / f"var/lib/dkms/demo/1.0/{KERNEL}/x86_64/module/demo.ko"
    other = kerneltree.module("demo", build_id="bbbb")
    assert_becomes(machine, lambda: copy.write_bytes(other), Artefact.BAD, STAGE, "not those of DKMS's copy")


def test_another_compiler_is_a_remark(root: Path, machine: Machine) -> None:
    path = root / f"boot/config-{KERNEL}"
    text = path.read_text().replace("12.2.0", "14.2.0")
    assert_becomes(machine, lambda: path.write_text(text), Artefact.GOOD, Step(Action.DONE, Why.READY), "Install gcc-14")


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


class TestWhatIsSeen:
    """Each field of an observation, as a machine of small files has it."""

    def see(self, machine: Machine, *, own: bool = False, changed: float = 0.0) -> Seen:
        machine.refresh()
        return machine.observe(machine.look(KERNEL), "demo", changed, own=own)

    def test_good(self, root: Path, machine: Machine) -> None:
        seen = self.see(machine, changed=7.0)
        assert seen.observation == Observation(
            "demo", KERNEL, "1.0", KernelState.BOOTABLE, Source.REGISTERED, Headers.COMPLETE, Artefact.GOOD, changed=7.0
        )
        assert [(name, proof.path) for name, proof in seen.installed] == [
            ("demo", f"{root}/usr/lib/modules/{KERNEL}/updates/dkms/demo.ko")
        ]
        assert (seen.headers.state, seen.headers.path) == (Headers.COMPLETE, root / f"usr/src/linux-headers-{KERNEL}")
        assert (seen.source, seen.fingerprint) == (root / "usr/src/demo-1.0", ""), "nothing is to be done, so nothing is asked"
        assert (seen.source_reason, seen.source_fix, seen.answer, seen.remark) == ("", "", None, "")
        assert seen.subject is not None
        assert (seen.subject.kernel, seen.subject.package) == (KERNEL, "demo")

    def test_a_kernel_without_an_image(self, root: Path, machine: Machine) -> None:
        (root / f"boot/vmlinuz-{KERNEL}").unlink()
        assert self.see(machine).observation.state is KernelState.NO_IMAGE

    def test_what_is_wrong_is_not_rehearsed(self, root: Path, machine: Machine) -> None:
        for program in ("usr/bin/qemu-system-x86_64", "usr/bin/busybox"):
            write(root / program, "").chmod(0o755)
        assert self.see(machine).observation.rehearsed is Rehearsed.DUE
        (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(kerneltree.module("demo", struct_size=64))
        seen = self.see(machine)
        assert (seen.observation.rehearsed, seen.subject) == (Rehearsed.NOT_DUE, None)

    def test_another_build_is_loaded(self, root: Path, machine: Machine) -> None:
        machine.running = KERNEL
        write(root / "proc/modules", "")
        write(root / "sys/module/demo/initstate", "live\n")
        write(root / "sys/module/demo/srcversion", "ABC\n")
        seen = self.see(machine)
        assert (seen.observation.loaded, seen.remark) == (Loaded.OUTDATED, "demo")

    def test_a_kernel_that_a_package_leaves_out_keeps_its_own(self, root: Path, machine: Machine) -> None:
        """BUILD_EXCLUSIVE: nothing is to replace the kernel's module there; without it, the package's is missing."""
        tree = root / "usr/lib/modules" / KERNEL
        shutil.rmtree(tree / "updates")
        shutil.rmtree(root / f"var/lib/dkms/demo/1.0/{KERNEL}")
        (root / f"var/lib/dkms/demo/kernel-{KERNEL}-x86_64").unlink()
        kerneltree.tables(tree, "kernel/lib/my-lib.ko:")
        kerneltree.add(tree, "kernel/net/demo.ko", BUILT)
        (tree / "modules.order").write_text("kernel/net/demo.ko\n")
        conf = root / "usr/src/demo-1.0/dkms.conf"
        plain = conf.read_text()
        for registered in (True, False):
            if not registered:
                shutil.rmtree(root / "var/lib/dkms/demo")
            conf.write_text(plain)
            assert self.see(machine).observation.installed is Artefact.NONE
            conf.write_text(plain + 'BUILD_EXCLUSIVE_KERNEL="^5\\."\n')
            assert self.see(machine).observation.installed is Artefact.GOOD
        shutil.rmtree(conf.parent)
        assert self.see(machine).observation.installed is Artefact.GOOD, "no package, and a module of the kernel's of that name"

    def test_a_package_that_is_not_registered(self, root: Path, machine: Machine) -> None:
        shutil.rmtree(root / "var/lib/dkms/demo")
        seen = self.see(machine)
        assert (seen.observation.source, seen.observation.version) == (Source.MISSING, "1.0"), "its source is there"
        assert seen.source_reason
        assert "dkms add demo/1.0" in seen.source_fix or "knetstatctl repair" in seen.source_fix
        assert machine.registered() == frozenset()
        assert seen.observation.installed is Artefact.UNKNOWN, "nothing tells whether the file is what was built"
        made = judge.verdict(machine, seen, machine.plan(seen, LATER))
        assert (made.state, made.reason, made.ready) == (State.UNPROVEN, seen.source_reason, False)

    def test_a_source_that_cannot_be_used(self, root: Path, machine: Machine) -> None:
        (root / "usr/src/demo-1.0/dkms.conf").unlink()
        seen = self.see(machine)
        assert (seen.observation.source, seen.observation.version, seen.source) == (Source.BROKEN, "1.0", None)
        assert "the source of demo 1.0 cannot be used: " in seen.source_reason
        assert seen.source_fix.endswith("/usr/src/demo-1.0")

    @pytest.mark.parametrize("line", ['DEST_MODULE_LOCATION[0]="/etc"\n', 'BUILT_MODULE_NAME[0]="demo.ko"\n'])
    def test_a_source_that_dkms_refuses(self, root: Path, machine: Machine, line: str) -> None:
        conf = root / "usr/src/demo-1.0/dkms.conf"
        conf.write_text(conf.read_text() + line)
        seen = self.see(machine)
        assert seen.observation.source is Source.BROKEN
        assert seen.source_reason.rpartition(": ")[2] != "", "it says what is refused"

    @pytest.mark.spawns
    def test_a_dkms_conf_from_windows(self, root: Path, machine: Machine) -> None:
        conf = root / "usr/src/demo-1.0/dkms.conf"
        text = conf.read_text()
        conf.write_text(text + "AUTOINSTALL=yes\r\n# said with care\r\n")
        assert self.see(machine).observation.source is Source.REGISTERED, "dkms does not mind"
        conf.write_text(text.replace("\n", "\r\n"), newline="")
        seen = self.see(machine)
        assert seen.observation.source is Source.BROKEN
        assert seen.source_reason.endswith("its lines end in CR LF, as Windows writes them")
        subprocess.run(["sh", "-c", seen.source_fix], check=True)
        assert self.see(machine).observation.source is Source.REGISTERED

    def test_another_dkms(self, root: Path, machine: Machine) -> None:
        pid = 1 << 23  # more than there can be: it is not we
        write(root / f"proc/{pid}/comm", "dkms\n")
        write(root / f"proc/{pid}/cmdline", "dkms\0build\0x/1\0")
        write(root / f"proc/{pid}/stat", f"{pid} (dkms) S 1 0")
        o = self.see(machine).observation
        assert f"(pid {pid})" in o.foreign_dkms
        assert not o.removing
        write(root / f"proc/{pid}/cmdline", "dkms\0remove\0x/1\0")
        assert self.see(machine).observation.removing

    def test_other_headers_are_another_attempt(self, root: Path, machine: Machine) -> None:
        (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(b"")
        before = self.see(machine).fingerprint
        assert before == self.see(machine).fingerprint
        config = root / f"usr/src/linux-headers-{KERNEL}/.config"
        config.write_text(config.read_text() + "#\n")
        assert self.see(machine).fingerprint != before

    def test_what_was_staged_together_is_proven_together(self, root: Path, machine: Machine) -> None:
        (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(b"")
        stage = machine.places.stage(KERNEL, "demo")
        write(stage / "fingerprint", self.see(machine).fingerprint)
        place = stage / f"tree/demo/1.0/{KERNEL}/x86_64/module"
        write(place / "demo.ko", kerneltree.module("demo", undefined=["fn"], crcs={**CRCS, "fn": 7}))
        assert self.see(machine).observation.staged is Artefact.BAD
        write(place / "gives.ko", kerneltree.module("gives", exports={"fn": (7, "", "")}))
        assert self.see(machine).observation.staged is Artefact.GOOD

    def test_who_is_at_work(self, root: Path, machine: Machine) -> None:
        places = machine.places
        with locks.locked(places.build_lock, 0):
            assert self.see(machine).observation.own_run
            assert self.see(machine, own=True).observation.own_run == ""
        assert self.see(machine).observation.own_run == ""
        with locks.locked(places.build_lock, 0):
            plain = machine.observe(machine.look(KERNEL), "demo").observation
        assert (bool(plain.own_run), plain.changed, plain.transaction) == (True, 0.0, "")
        lock = root / "var/lib/dpkg/lock-frontend"
        lock.parent.mkdir()
        lock.symlink_to(lock)  # whether it is held cannot be known
        assert self.see(machine).observation.transaction

    def test_what_was_staged_and_what_has_failed(self, root: Path, machine: Machine) -> None:
        (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(kerneltree.module("demo", struct_size=64))
        seen = self.see(machine)
        o = seen.observation
        assert (o.installed, o.staged, o.attempt, o.hook_builds) == (Artefact.BAD, Artefact.NONE, None, False)
        assert seen.fingerprint
        stage = machine.places.stage(KERNEL, "demo")
        made = write(stage / f"tree/demo/1.0/{KERNEL}/x86_64/module/demo.ko", BUILT)
        write(stage / "fingerprint", seen.fingerprint)
        assert self.see(machine).observation.staged is Artefact.GOOD
        # Of the key nothing is asked before it is published; of the kernel it was compiled for all is.
        made.write_bytes(kerneltree.module("demo", vermagic="6.1.0-0-amd64 SMP preempt mod_unload modversions "))
        assert self.see(machine).observation.staged is Artefact.BAD, "it loads, and is another kernel's"
        made.write_bytes(kerneltree.module("demo", struct_size=64))
        assert self.see(machine).observation.staged is Artefact.BAD
        write(stage / "fingerprint", "another")
        assert self.see(machine).observation.staged is Artefact.NONE
        failed = Attempt(Kind.COMPILE, 1, reason="line 3")
        attempts.save(root, machine.places, KERNEL, "demo", "1.0", seen.fingerprint, failed)
        assert self.see(machine).observation.attempt == failed
        attempts.save(root, machine.places, KERNEL, "demo", "1.0", "another", failed)
        assert self.see(machine).observation.attempt is None

    @pytest.mark.parametrize(("hook", "automatic", "builds"), [(True, True, True), (True, False, False), (False, True, False)])
    def test_whether_a_hook_builds_it_too(
        self, root: Path, machine: Machine, hook: bool, automatic: bool, builds: bool
    ) -> None:
        (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(b"")
        if hook:
            write(root / "etc/kernel/postinst.d/dkms", "#!/bin/sh\n").chmod(0o755)
        if automatic:
            conf = root / "usr/src/demo-1.0/dkms.conf"
            conf.write_text(conf.read_text() + 'AUTOINSTALL="yes"\n')
        assert self.see(machine).observation.hook_builds is builds

    def test_the_variables_that_its_make_is_given(self, root: Path, machine: Machine) -> None:
        conf = root / "usr/src/demo-1.0/dkms.conf"
        conf.write_text(conf.read_text() + 'MAKE[0]="make KVER=$kernelver"\n')
        assert self.see(machine).passed == {"KVER"}

    def test_what_the_running_kernel_refused(self, root: Path, machine: Machine) -> None:
        machine.running = KERNEL
        machine.places.build_lock.parent.mkdir(parents=True)
        file = root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko"
        assert load_history.refuse(machine.places, "demo", [file])
        assert self.see(machine).observation.installed is Artefact.BAD
        machine.running = "another"
        assert self.see(machine).observation.installed is Artefact.GOOD, "it is that kernel's word, of itself"

    def test_loadings_are_known_of_what_is_out(self, root: Path, machine: Machine) -> None:
        machine.config = machine.config._replace(load=("demo",))
        write(root / "proc/modules", "")
        machine.places.build_lock.parent.mkdir(parents=True)
        load_history.add(machine.places, "demo", 5.0)
        o = self.see(machine).observation
        assert (o.loaded, o.loads) == (Loaded.NOT_HERE, ())
        machine.running = KERNEL
        o = self.see(machine).observation
        assert (o.loaded, o.loads) == (Loaded.NO, (5.0,))
        assert self.see(machine).fingerprint, "what loading failed at is asked"
        for load in ((), ("other",)):
            machine.config = machine.config._replace(load=load)
            assert self.see(machine).observation.loaded is not Loaded.NO
        machine.config = machine.config._replace(load=("*",))
        assert self.see(machine).observation.loaded is Loaded.NO

    def test_what_modprobe_is_told_is_no_fault_of_the_file(self, root: Path, machine: Machine) -> None:
        write(root / "etc/modprobe.d/x.conf", "install demo /bin/false\n")
        assert self.see(machine).observation.installed is Artefact.DENIED

    def test_what_cannot_be_known(self, root: Path, machine: Machine) -> None:
        (root / f"usr/src/linux-headers-{KERNEL}/Module.symvers").unlink()
        assert self.see(machine).observation.installed is Artefact.UNKNOWN


def test_two_packages_that_make_one_module(root: Path, machine: Machine) -> None:
    """The other one's file is installed: that package is named, and only a guarded one stands in the way."""
    register_another(root, "other")
    theirs = kerneltree.module("demo", build_id="cccc")
    write(root / f"var/lib/dkms/other/1.0/{KERNEL}/x86_64/module/demo.ko", theirs)
    (root / f"var/lib/dkms/other/kernel-{KERNEL}-x86_64").symlink_to(f"1.0/{KERNEL}/x86_64")
    (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(theirs)

    def result(name: str) -> tuple[Result, str]:
        seen, _ = looked(machine)
        check = next(check for check in seen.installed[0][1].checks if check.name == name)
        return check.result, check.reason

    assert result("winner")[0] is Result.PASS
    assert "is of other/1.0" in result("origin")[1]
    machine.config = machine.config._replace(modules=("demo", "other"))
    assert result("winner")[0] is Result.FAIL


def test_a_kernel_that_is_left_alone_may_be_the_next(root: Path, machine: Machine) -> None:
    """Its directory is a link: none of the others is called next then, and nobody is told to reboot."""
    seen, step = looked(machine)
    assert machine.next == KERNEL
    text = render.status_text(machine, [judge.verdict(machine, seen, step)], enabled=False)
    coloured = render.status_text(machine, [judge.verdict(machine, seen, step)], enabled=True)
    assert ("\x1b[33mready" in coloured, "\x1b[32m" in coloured) == (True, False), "assumed is not green"
    assert f"Safe to reboot if {KERNEL} starts: no boot loader was found; this is the newest installed kernel." in text
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
    assert text.endswith(f"The next kernel is not known: it is {newer}, whose directory in /lib/modules is left alone.")


def test_nothing_is_under_way_for_a_kernel_that_is_not_guarded(root: Path, machine: Machine) -> None:
    """Who waits for the daemon would wait for ever."""
    (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").unlink()
    seen, step = looked(machine)
    made = judge.verdict(machine, seen, step)
    assert (made.progress, made.reason.partition(":")[0]) == (True, "the installed module is wrong, and will be built again")
    machine.next = machine.running = "9.9"
    made = judge.verdict(machine, seen, step)
    assert (made.progress, made.state, made.fix) == (False, State.NEEDS_REBUILD, f"knetstatctl build {KERNEL}")
    assert made.reason.startswith("the installed module is wrong, and the daemon does not guard this kernel: ")
    apt = step._replace(action=Action.WAIT, why=Why.TRANSACTION)
    assert judge.verdict(machine, seen, apt).progress, "whose hook may build it"


def test_what_somebody_chose_is_left_alone_and_said(root: Path, machine: Machine) -> None:
    """An older version that was installed by hand after the newer one was registered: nothing is planned."""
    register(root, "2.0")
    _, step = looked(machine)
    assert step == STAGE, "it was there before"
    mark = root / f"var/lib/dkms/demo/kernel-{KERNEL}-x86_64"
    os.utime(mark, (LATER, LATER), follow_symlinks=False)
    seen, step = looked(machine)
    assert step == Step(Action.DONE, Why.READY)
    made = judge.verdict(machine, seen, step)
    assert (made.version, made.state, made.ready, made.why) == ("1.0", State.READY, True, "ready")
    assert made.reason == "version 1.0 was installed by hand after 2.0 was registered, and is left alone"
    assert made.fix == f"dkms install --force -m demo -v 2.0 -k {KERNEL}"
    assert {check.result for _, check in made.checks if check.name == "origin"} == {Result.PASS}
    (root / f"usr/lib/modules/{KERNEL}/updates/dkms/demo.ko").write_bytes(b"torn")
    seen, step = looked(machine)
    assert (step, seen.observation.version, seen.source) == (STAGE, "1.0", root / "usr/src/demo-1.0"), "the same again"
    register(root, "3.0")
    os.utime(root / "var/lib/dkms/demo/3.0/source", (LATER + 1, LATER + 1), follow_symlinks=False)
    seen, step = looked(machine)
    assert (step, seen.observation.version) == (STAGE, "3.0"), "it was not chosen over that one"


def test_what_is_to_be_replaced_and_loads_all_the_same_is_not_called_wrong(root: Path, machine: Machine) -> None:
    register(root, "2.0")
    made = judge.verdict(machine, *looked(machine))
    assert made.ready
    machine.next = KERNEL
    assert judge.verdict(machine, *looked(machine)).reason.startswith("an outdated module is installed, and ")
